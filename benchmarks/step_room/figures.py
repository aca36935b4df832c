"""What the times of a measurement amount to, and how they are told."""

import resource
import statistics
from functools import partial
from typing import Any, NamedTuple

from step_room.mini import GRID, NEW, TEXT
from vlaa_jax.models.qwen_vl.config import QwenVLConfig


def forward_flops(
    config: QwenVLConfig, *, images: int, prefix: int, prompts: int, rows: int
) -> int:
    """FLOPs of a forward pass over `prompts` prefixes and `rows` completions of NEW tokens each."""
    text, vision = config.text, config.vision
    attention = text.width * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    per_token = 2 * text.layers * (attention + 3 * text.width * text.intermediate)
    seen = prompts * prefix**2 / 2 + rows * (NEW * prefix + NEW**2 / 2)
    scores = 4 * text.layers * text.heads * text.head_dim * seen
    head = 2 * rows * NEW * text.width * text.vocab_size
    patches = GRID[1] * GRID[2]
    width = vision.width
    per_patch = 2 * vision.depth * (4 * width**2 + 3 * width * vision.intermediate)
    spans = len(vision.full_blocks) * patches + (vision.depth - len(vision.full_blocks)) * 64
    per_patch += 4 * width * spans + 2 * 1176 * width
    merged = 4 * width
    per_patch += 2 * (merged * merged + merged * text.width) / 4
    tokens = prompts * prefix + rows * NEW
    return round(tokens * per_token + scores + head + images * patches * per_patch)


class Measured(NamedTuple):
    """What was measured of the contenders ours, naive and hf.

    Attributes:
        prompts: P.
        completions: G.
        config: of the model.
        parameters: that it has.
        gaps: largest differences of log-probabilities.
        memory: bytes of the gradient program, of those that jax compiles.
        peak: fastest matrix product, FLOP/s.
        times: seconds by contender and phase, one of each round.
    """

    prompts: int
    completions: int
    config: QwenVLConfig
    parameters: int
    gaps: dict[str, float]
    memory: dict[str, int]
    peak: float
    times: dict[str, dict[str, list[float]]]

    def medians(self) -> dict[str, dict[str, float]]:
        """Seconds by contender and phase."""
        return {
            name: {phase: statistics.median(values) for phase, values in phases.items()}
            for name, phases in self.times.items()
        }

    def speedup(self, other: str, phase: str) -> float:
        """How many times as fast ours is, within rounds."""
        pairs = zip(self.times[other][phase], self.times["ours"][phase], strict=True)
        return statistics.median(x / y for x, y in pairs)

    def flops(self) -> dict[str, dict[str, int]]:
        """Counted FLOPs by contender and phase."""
        rows, prefix = self.prompts * self.completions, TEXT + GRID[1] * GRID[2] // 4
        count = partial(forward_flops, self.config, prefix=prefix, rows=rows)
        least = count(images=self.prompts, prompts=self.prompts)
        repeated = count(images=rows, prompts=rows)
        return {
            name: {"rollout": forward, "score": forward, "update": 3 * forward}
            for name, forward in (("ours", least), ("naive", repeated), ("hf", repeated))
        }


def summary(rounds: int, measured: Measured) -> dict[str, Any]:
    """Medians, ratios within rounds, and shares of the floor."""
    medians, flops, memory = measured.medians(), measured.flops(), measured.memory
    floor = {phase: count / measured.peak for phase, count in flops["ours"].items()}
    rows = measured.prompts * measured.completions
    return {
        "prompts": measured.prompts,
        "completions": measured.completions,
        "rounds": rounds,
        "parameters": measured.parameters,
        "median_s": medians,
        **{
            f"{phase}_speedup_vs_{other}": measured.speedup(other, phase)
            for phase in ("update", "score", "rollout")
            for other in ("naive", "hf")
        },
        "completions_per_s": {n: rows / m["rollout"] for n, m in medians.items()},
        "flops": flops,
        "peak_flop_per_s": measured.peak,
        "floor_s": floor,
        "share_of_floor": {
            name: {phase: floor[phase] / m[phase] for phase in floor} for name, m in medians.items()
        },
        "gradient_peak_bytes": memory,
        "memory_share_of_naive": memory["ours"] / memory["naive"],
        "largest_logprob_gap": measured.gaps,
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def report(found: dict[str, Any]) -> None:
    """Prints the figures."""
    print(f"\n{found['parameters'] / 1e6:.1f} M parameters, float32")
    print(f"largest gaps of log-probabilities: {found['largest_logprob_gap']}")
    for name, medians in found["median_s"].items():
        phases = "  ".join(
            f"{phase} {value:6.2f} s, {found['flops'][name][phase] / 1e9:5.0f} GFLOP counted, "
            f"{found['share_of_floor'][name][phase]:4.0%} of the floor's speed;"
            for phase, value in medians.items()
        )
        print(f"{name:6} {phases}  {found['completions_per_s'][name]:5.1f} completions/s")
    floors = ", ".join(f"{phase} {value:.2f} s" for phase, value in found["floor_s"].items())
    print(f"floors: {floors} ({found['peak_flop_per_s'] / 1e9:.0f} GFLOP/s measured)")
    for phase in ("update", "score", "rollout"):
        print(
            f"{phase}: {found[f'{phase}_speedup_vs_naive']:.2f}x naive, "
            f"{found[f'{phase}_speedup_vs_hf']:.2f}x HF"
        )
    sizes = {name: f"{size / 2**30:.1f} GiB" for name, size in found["gradient_peak_bytes"].items()}
    share = found["memory_share_of_naive"]
    print(f"memory of the gradient program: {sizes}, {share:.0%} of naive")
