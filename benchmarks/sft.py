"""One SFT update three ways, same samples and weights: packed rows, padded rows, HF in torch.

    python benchmarks/sft.py --rounds 3 --json benchmarks/results/sft_2cpu.json

Samples of one image and an answer each, image sizes as frequent as in the released SFT file
(``data_room.padding``), in a Qwen2.5-VL of 38 million parameters in float32. The samples of each
round are those of one packed batch; the two padded contenders get the same samples as one batch
that is as long as its longest. Every contender sees a batch once untimed (compilation, caches) and
once timed: forward, loss of the answer tokens, backward, AdamW. Before anything is timed, the three
must give the same loss. Needs torch and transformers (the test extra).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

from data_room.padding import SIZE_MIX
from data_room.samples import HUB_PIXELS, answer, checkpoint, text
from step_room.machine import release_memory
from step_room.mini import END, IMAGE, MINI, START, VIDEO
from step_room.theirs import hf_state
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.rows.batches import BatchLayout, collate_rows
from vlaa_jax.data.rows.packing import PackBudget, Packer, fit_budget
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.attend import choose
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.model import Compute, init_params, split_model
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.rows import row_targets
from vlaa_jax.train.sft_loss import sft_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

LR = 1e-6


def draw_samples(count: int, max_pixels: int) -> Iterator[Encoded]:
    """Samples of random ids and random patches, as long as those of the data room's mix."""
    rng = np.random.default_rng(0)
    weights = np.array([n for _, n in SIZE_MIX]) / sum(n for _, n in SIZE_MIX)
    with tempfile.TemporaryDirectory() as root:
        hf_dir = checkpoint(Path(root), max_pixels)
        chat, processor = Chat.from_dir(hf_dir), ImageProcessor.from_dir(hf_dir)
    for _ in range(count):
        grid = processor.grid(*SIZE_MIX[rng.choice(len(SIZE_MIX), p=weights)][0])
        question, learnt = len(chat.encode(text(rng, 10, 40))) + 20, len(chat.encode(answer(rng)))
        image = [START, *[IMAGE] * (grid[1] * grid[2] // 4), END]
        words = rng.integers(3, 3900, question + learnt)
        ids = np.concatenate([words[:8], image, words[8:]]).astype(np.int32)
        mask = np.arange(len(ids)) >= len(ids) - learnt
        tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "tokens_per_second": 2}
        positions, delta = mrope_positions(ids, [grid], **tokens)
        patches = rng.normal(size=(grid[1] * grid[2], 1176)).astype(np.float32)
        yield Encoded(
            ids, mask, positions, delta, (patches,), (grid,), len(image) - 2, ids == IMAGE
        )


class Ours:
    """Our update, on packed rows or on rows of one sample each."""

    def __init__(self, config: QwenVLConfig, budget: Any, packed: bool) -> None:
        self.budget, self.packed = budget, packed
        compute = Compute(unroll=True, attention=choose("auto", jax.default_backend()))
        graphdef, _ = split_model(config, compute)
        optimizer = optax.adamw(LR, b2=0.95, weight_decay=0.0)
        self.update_ = Update(partial(sft_loss, Distribution(graphdef, 1.0, 0, 1)), optimizer)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = jax.device_put(init_params(config, 0), place)
        self.state = new_state(params, optimizer, place)  # type: ignore[arg-type]

    def batch(self, rows: list[list[Encoded]]) -> Any:
        """Rows as arrays; padded ones are as long as the longest sample."""
        if self.packed:
            layout = self.budget.layout(0)
            return collate_rows(rows, layout, tokens_per_row=self.budget.tokens_per_row)
        rows = [[sample] for row in rows for sample in row]
        longest = max(row[0].length for row in rows)
        return collate_rows(rows, BatchLayout(), tokens_per_row=longest)

    def update(self, batch: Any) -> float:
        """Forward, loss, backward, AdamW."""
        targets = jnp.float32(batch.loss_mask_BT.sum())
        grads, (loss, _) = self.update_.gradients(
            self.state.trainable, {}, row_targets(batch, vision=True), targets
        )
        self.state, norm = self.update_.apply(self.state, grads)
        jax.block_until_ready(norm)
        return float(loss)

    def slots(self, batch: Any) -> int:
        """Token places, padding included."""
        return batch.ids_BT.size


class Torch:
    """A plain update with transformers on a padded batch."""

    def __init__(self, config: QwenVLConfig) -> None:
        self.model = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(**MINI)
        )
        self.model.load_state_dict(hf_state(config, init_params(config, 0)), strict=False)
        self.model.tie_weights()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0
        )

    def batch(self, rows: list[list[Encoded]]) -> dict[str, torch.Tensor]:
        """Samples padded on the right; labels at answers."""
        samples = [sample for row in rows for sample in row]
        shape = (len(samples), max(s.length for s in samples))
        ids, mask, labels = np.zeros(shape, int), np.zeros(shape, int), np.full(shape, -100)
        for i, s in enumerate(samples):
            ids[i, : s.length], mask[i, : s.length] = s.ids_T, 1
            labels[i, : s.length] = np.where(s.loss_mask_T, s.ids_T, -100)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
            "mm_token_type_ids": torch.tensor((ids == IMAGE).astype(int)),
            "pixel_values": torch.tensor(np.concatenate([s.patches[0] for s in samples])),
            "image_grid_thw": torch.tensor([s.grids[0] for s in samples]),
        }

    def update(self, batch: dict[str, torch.Tensor]) -> float:
        """Forward, loss, backward, AdamW."""
        loss = self.model(**batch).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def slots(self, batch: dict[str, torch.Tensor]) -> int:
        """Token places, padding included."""
        return batch["input_ids"].numel()


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall time, and processor time of all threads, which a busy machine disturbs less."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All figures after each round, so that an interrupted measurement keeps those it has."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = parse_config(MINI)
    samples = list(draw_samples(args.samples, args.max_pixels))
    sizes = [(s.length, s.grids) for s in samples]
    budget = fit_budget(sizes, PackBudget(args.tokens_per_row, args.rows))
    packer: Packer[int] = Packer(budget)
    packed = (packer.add(i, n, grids) for i, (n, grids) in enumerate(sizes))
    batches = [batch.rows for batch in packed if batch is not None][: args.rounds]
    if len(batches) < args.rounds:
        raise SystemExit(f"--samples={args.samples} fill only {len(batches)} batches")
    runs: dict[str, Any] = {
        "packed": Ours(config, budget, packed=True),
        "padded": Ours(config, budget, packed=False),
        "hf": Torch(config),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    counts: dict[str, list[int]] = {name: [] for name in ("samples", "tokens", "loss_tokens")}
    slots: dict[str, list[int]] = {name: [] for name in runs}
    losses: dict[str, float] = {}
    for number, indices in enumerate(batches):
        rows = [[samples[i] for i in row] for row in indices]
        flat = [sample for row in rows for sample in row]
        counts["samples"].append(len(flat))
        counts["tokens"].append(sum(s.length for s in flat))
        counts["loss_tokens"].append(sum(int(s.loss_mask_T.sum()) for s in flat))
        for name, run in runs.items():
            batch = run.batch(rows)
            loss = run.update(batch)
            losses.setdefault(name, loss)
            wall, busy = seconds(lambda run=run, batch=batch: run.update(batch))
            times[name].append(wall)
            cpu[name].append(busy)
            slots[name].append(run.slots(batch))
            release_memory()
            print(
                f"round {number + 1}  {name:6}  {wall:6.2f} s, cpu {busy:6.2f} s  loss {loss:.6f}"
            )
        if max(abs(loss / losses["hf"] - 1) for loss in losses.values()) > 1e-4:
            raise SystemExit(f"the three do not compute the same loss: {losses}")
        yield summary(args, budget, {"wall": times, "cpu": cpu}, counts, slots, losses)


def summary(
    args: argparse.Namespace,
    budget: Any,
    clocks: dict[str, dict[str, list[float]]],
    counts: dict[str, list[int]],
    slots: dict[str, list[int]],
    losses: dict[str, float],
) -> dict[str, Any]:
    """Speeds over all rounds, and ratios within rounds."""

    def ratio(clock: str, a: str, b: str) -> float:
        pairs = zip(clocks[clock][a], clocks[clock][b], strict=True)
        return statistics.median(x / y for x, y in pairs)

    times = clocks["wall"]

    return {
        **{k: v for k, v in vars(args).items() if k != "json"},
        "rounds_done": len(times["packed"]),
        "budget": vars(budget),
        **counts,
        "first_loss": losses,
        "seconds": times,
        "cpu_seconds": clocks["cpu"],
        "padding": {name: 1 - sum(counts["tokens"]) / sum(n) for name, n in slots.items()},
        "tokens_per_s": {name: sum(counts["tokens"]) / sum(t) for name, t in times.items()},
        "slots_per_s": {name: sum(slots[name]) / sum(t) for name, t in times.items()},
        "loss_tokens_per_s": {
            name: sum(counts["loss_tokens"]) / sum(t) for name, t in times.items()
        },
        "packed_over_padded": ratio("wall", "padded", "packed"),
        "packed_over_hf": ratio("wall", "hf", "packed"),
        "packed_over_padded_cpu": ratio("cpu", "padded", "packed"),
        "packed_over_hf_cpu": ratio("cpu", "hf", "packed"),
    }


def main() -> None:
    """Parses, measures, reports."""
    parser = argparse.ArgumentParser(description="Time an SFT update three ways.")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a batch")
    parser.add_argument("--tokens_per_row", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=64, help="samples to pack from")
    parser.add_argument("--max_pixels", type=int, default=HUB_PIXELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="kept with the figures")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    for found in measure(args):
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name in found["seconds"]:
        print(
            f"{name:6}  {found['tokens_per_s'][name]:7.1f} tokens/s  "
            f"{found['loss_tokens_per_s'][name]:7.1f} loss tokens/s  "
            f"padding {found['padding'][name]:.1%}"
        )
    print(
        f"packed: {found['packed_over_padded']:.2f}x padded rows of ours, "
        f"{found['packed_over_hf']:.2f}x HF padded; by processor time "
        f"{found['packed_over_padded_cpu']:.2f}x and {found['packed_over_hf_cpu']:.2f}x"
    )


if __name__ == "__main__":
    main()
