"""What a rollout loses where free rows wait: for their group's longest answer, or for other shards.

    python benchmarks/refill.py --json benchmarks/results/refill.json

The engine's own host code (rollout/engine.py, rollout/slots.py) seats, shrinks and ends; a stand-in
for the device keeps the lengths of the answers and counts the steps that a device would decode.
A step costs what it reads: the weights, the prefixes of the buffer and the completions' caches, all
at their padded sizes, over the bandwidth of one device (`plan/tasks.py` counts the same). Two other
decoders stand against it. The same buffer with every row filled anew as soon as it is free, as if a
row could take any prompt's answer at the price of a shared prefix: `waiting` is what a group costs
against that. And a buffer as large that is full of growing answers to the last one: `lost`; nobody
can have that, since the last answers end alone. `halves_s` is a way to wait less: groups are seated
by halves, each with a copy of the prefix. Answers are lognormal (sigma 0.6), cut off at the limit.
Nothing is measured on a device.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.plan.chips import CHIPS
from vlaa_jax.plan.formulas import sizes_of
from vlaa_jax.rollout.engine import Decoding, Engine

PROMPTS, GROUP, LIMIT, BURST, PREFIX, STOP = 512, 4, 1024, 64, 2048, 1
MEDIANS, SIGMA = (148, 245, 493), 0.6


class Buffers(NamedTuple):
    """As much of the device's buffers as decides how long they decode.

    Attributes:
        left_PG: tokens that a row still gives, 0 where it is done.
        suffix: its cache, for its shape.
    """

    left_PG: np.ndarray
    suffix: Any


def buffers(left_PG: np.ndarray, length: int) -> Buffers:
    """Buffers of these rows, with caches of that many positions."""
    slots, rows = left_PG.shape
    cache = np.broadcast_to(np.float32(0), (1, slots, 1, rows, length, 1))
    return Buffers(left_PG, SimpleNamespace(k_LPKGUH=cache))


class Device(Engine):
    """The engine with programs that count instead of computing.

    Args:
        lengths_PG: of every answer.
        shards: data shards.
        slots: prompts decoded at once.
        second: seconds of a step with a buffer of (slots, rows, positions).
    """

    def __init__(self, lengths_PG: np.ndarray, shards: int, slots: int, second: Any) -> None:
        self.decoding = Decoding(lengths_PG.shape[1], LIMIT, slots, BURST)
        self._stop_ids, self._shards = (STOP,), shards
        self._allowed_V, self.weights = None, lambda params: params  # type: ignore[assignment]
        self._lengths_PG, self._second = lengths_PG, second
        self.steps, self.row_steps, self.seconds = 0, 0, 0.0

    def _prefill(self, params: Any, prompt: Any) -> Any:
        return prompt

    def _empty(self, part: Any, keys: Any, *, slots: int, length: int, **_: int) -> Buffers:
        return buffers(np.zeros((slots, self.decoding.completions), int), length)

    def _insert(self, old: Buffers, part: Any, keys_U: Any, slots_SU: Any, real_SU: Any) -> Buffers:
        left = old.left_PG.reshape(self._shards, -1, self.decoding.completions).copy()
        new = self._lengths_PG[keys_U].reshape(*slots_SU.shape, -1)
        shard, who = np.nonzero(real_SU)
        left[shard, slots_SU[shard, who]] = new[shard, who]
        return old._replace(left_PG=left.reshape(-1, self.decoding.completions))

    def _regroup(self, old: Buffers, slot_SP: Any, row_SPG: Any, alive_SPG: Any) -> Buffers:
        left = old.left_PG.reshape(self._shards, -1, old.left_PG.shape[1])
        shard = np.arange(self._shards)[:, None, None]
        left = left[shard, slot_SP[..., None], row_SPG] * alive_SPG
        return buffers(left.reshape(-1, left.shape[-1]), old.suffix.k_LPKGUH.shape[4])

    def _lengthen(self, old: Buffers, length: int) -> Buffers:
        return buffers(old.left_PG, length)

    def _burst(self, params: Any, old: Buffers, allowed: Any) -> tuple[Buffers, Any, Any]:
        left, place = old.left_PG, np.arange(BURST)
        tokens = np.where(place == left[..., None] - 1, STOP, 2) * (place < left[..., None])
        steps = int(min(left.max(), BURST))
        self.steps += steps
        self.row_steps += steps * left.size
        self.seconds += steps * self._second(*left.shape, old.suffix.k_LPKGUH.shape[4] + BURST)
        after = old._replace(left_PG=np.maximum(left - BURST, 0))
        return after, tokens, np.zeros(tokens.shape, np.float32)


def step_seconds(config: QwenVLConfig, chip: str, shards: int) -> Any:
    """Seconds of a step by the bytes that a device reads, whole weights on each."""
    text, bandwidth = config.text, CHIPS[chip].hbm
    weights = (sizes_of(config).layers + sizes_of(config).embedding) * 2
    per_token = 2 * text.layers * text.kv_heads * text.head_dim * 2

    def second(slots: int, rows: int, length: int) -> float:
        held = slots / shards * (PREFIX + rows * length)
        return (weights + held * per_token) / bandwidth

    return second


def cache_gib(config: QwenVLConfig, shards: int, slots: int, rows: int) -> float:
    """Of a device, with the longest past."""
    text = config.text
    held = slots / shards * (PREFIX + rows * (LIMIT + BURST))
    return 2 * text.layers * text.kv_heads * text.head_dim * 2 * held / 2**30


def decode(lengths_PG: np.ndarray, shards: int, slots: int, unit: int, second: Any) -> Device:
    """One rollout."""
    device, count = Device(lengths_PG, shards, slots, second), len(lengths_PG)
    parts = [SimpleNamespace(ids_PT=np.zeros((unit, 1))) for _ in range(count // unit)]
    out = device.generate({}, parts, np.arange(count), prefix_length=PREFIX)
    if not np.array_equal(out.length_PG, lengths_PG):
        raise SystemExit("the engine lost tokens")
    return device


def simulate(case: dict[str, Any], lengths_PG: np.ndarray) -> dict[str, float]:
    """One rollout: steps, share of row-steps that made a token, seconds over the best."""
    shards, slots, unit = case["shards"], case["slots"], case["unit"]
    config = QwenVLConfig.RELEASED[f"Qwen2.5-VL-{case['model']}"]
    second = step_seconds(config, case["chip"], shards)
    device = decode(lengths_PG, shards, slots, unit, second)

    def shared(rows: int, _: int, length: int) -> float:
        return second(rows / GROUP, GROUP, length)

    halves = decode(lengths_PG.reshape(-1, GROUP // 2), shards, 2 * slots, unit, second)
    alone = decode(lengths_PG.reshape(-1, 1), shards, slots * GROUP, shards, shared)
    tokens = float(lengths_PG.sum())
    best = tokens / (slots * GROUP) * second(slots, GROUP, LIMIT / 2 + BURST)
    return {
        "steps": device.steps,
        "rows_used": tokens / device.row_steps,
        "seconds": device.seconds,
        "tokens_per_s": tokens / device.seconds,
        "cache_gib": cache_gib(config, shards, slots, GROUP),
        "halves_s": halves.seconds,
        "halves_gib": cache_gib(config, shards, 2 * slots, GROUP // 2),
        "waiting": 1 - alone.seconds / device.seconds,
        "lost": 1 - best / device.seconds,
    }


def cases() -> list[dict[str, Any]]:
    """Devices, slots, and prompts that are seated together."""
    found = []
    for model, chip, shards in (("3B", "h200", 1), ("3B", "v6e", 8), ("3B", "v5e", 16)):
        for slots in (64, 128, 256, 512):
            for unit in sorted({max(4, shards), 16}):
                found.append(
                    {"model": model, "chip": chip, "shards": shards, "slots": slots, "unit": unit}
                )
    return found


def main() -> None:
    """Simulates, prints, writes."""
    parser = argparse.ArgumentParser(description="What waiting costs a rollout.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    found = []
    for median in MEDIANS:
        for case in cases():
            rng, runs = np.random.default_rng(0), []
            for _ in range(args.rounds):
                drawn = np.ceil(median * np.exp(SIGMA * rng.normal(size=(PROMPTS, GROUP))))
                runs.append(simulate(case, np.clip(drawn, 1, LIMIT).astype(int)))
            mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
            found.append({"median": median, **case, **mean})
            print(
                f"median {median}  {case['model']} on {case['shards']} {case['chip']}  slots "
                f"{case['slots']}  seated {case['unit']}: {mean['steps']:.0f} steps, rows used "
                f"{mean['rows_used']:.0%}, {mean['seconds']:.1f} s, waiting {mean['waiting']:.0%}, "
                f"lost {mean['lost']:.0%}, caches {mean['cache_gib']:.1f} GiB; by halves "
                f"{mean['halves_s']:.1f} s, {mean['halves_gib']:.1f} GiB",
                flush=True,
            )
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
