"""Speed beside torch DataLoader and HF processing, as many workers each.

The two sides alternate in one process; the ratio of each round, medians and the best round are
printed. The peer does what a PyTorch user does: worker processes that decode with PIL and call the
HF image processor and tokenizer on a batch, padded to its longest sample. (It is put together from
the parts of Qwen2_5_VLProcessor, which cannot be built itself without torchvision. The image
processor is the PIL one, whose pixels ours equal bit for bit; the "fast" one needs torchvision and
gives others.)
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_room.samples import HUB_PIXELS, checkpoint, write_records
from vlaa_jax.data.builds.build import BuildSettings, build
from vlaa_jax.data.loaders.loader import Order
from vlaa_jax.data.loaders.rows import Samples, row_budget, row_loader
from vlaa_jax.data.rows.packing import PackBudget
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.table import open_source


@dataclass(frozen=True)
class Side:
    """One of the two that are timed."""

    batches: Callable[[int], AbstractContextManager[Iterator]]
    """Opens the stream of a round, whose number seeds its order."""
    count: Callable[[Any], tuple[int, float, float]]
    """Samples, padded share of tokens and padded share of patches of a batch."""


def throughput(args: argparse.Namespace, root: Path) -> dict:
    hf_dir = checkpoint(root / "hf", HUB_PIXELS)
    file = write_records(root, args.samples // 2, [(640, 480)])
    ours, budget = our_side(args, file, root, hf_dir)
    sides = {"ours": ours, "torch": torch_side(args, file, root, hf_dir)}
    rounds: dict[str, list[dict]] = {name: [] for name in sides}
    for round_ in range(args.rounds):
        for name, side in sides.items():
            rounds[name].append(timed(side, round_, args.samples))
        speed, theirs = (rounds[name][-1]["speed"] for name in sides)
        print(
            f"round {round_ + 1}: ours {speed:.1f}, torch {theirs:.1f} samples/s, "
            f"ratio {speed / theirs:.2f}",
            flush=True,
        )
    result = {"budget": vars(budget), "workers": args.workers, "samples": args.samples}
    result |= {name: summary(name, found) for name, found in rounds.items()}
    return result | ratios(result["ours"], result["torch"], args.workers)


# ----------------------------------------------------------------------------------- the sides


def our_side(
    args: argparse.Namespace, file: Path, root: Path, hf_dir: Path
) -> tuple[Side, PackBudget]:
    """Packed rows of a built data set, and the budget of a batch."""
    build(open_source(file, root / "images", kind="sft"), root / "b", hf_dir, BuildSettings("sft"))
    records = BuiltRecords(root / "b")
    samples = Samples(records, records.images, Preprocessor.from_dir(hf_dir))
    budget = row_budget(samples, PackBudget(2048, args.rows))

    def batches(seed: int) -> AbstractContextManager[Iterator]:
        return row_loader(samples, budget, order=Order(seed=seed), threads=args.workers)

    def figures(b: Any) -> tuple[int, float, float]:
        empty = ((ids == 0).mean() for ids in (b.segment_ids_BT, b.vision.seg_id_SQ))
        return int(b.segment_ids_BT.max(-1).sum()), *map(float, empty)

    return Side(batches, figures), budget


def torch_side(args: argparse.Namespace, file: Path, root: Path, hf_dir: Path) -> Side:
    """Padded batches of a DataLoader over the same records."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    torch.set_num_threads(1)
    raw = [json.loads(line) for line in file.read_text().splitlines()]
    peer = Peer(raw, root / "images", hf_dir)
    loader = DataLoader(
        peer,  # type: ignore[arg-type]
        batch_size=args.batch,
        # Endless for our purpose: never run dry while the clock runs.
        sampler=RandomSampler(raw, replacement=True, num_samples=3 * args.samples),
        num_workers=args.workers,
        collate_fn=peer.collate,
    )
    return Side(
        lambda seed: torch_batches(loader),  # it shuffles anew by itself
        lambda b: (len(b["labels"]), 1 - float(b["attention_mask"].float().mean()), 0.0),
    )


class Peer:
    """torch.utils.data.Dataset and collate function with the HF parts."""

    def __init__(self, records: list[dict], root: Path, hf_dir: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.records, self.root = records, root
        self.tokenizer = AutoTokenizer.from_pretrained(hf_dir)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(hf_dir)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[dict, Image.Image]:
        record = self.records[index]
        return record, Image.open(self.root / record["image"]).convert("RGB")

    def collate(self, samples: list[tuple[dict, Image.Image]]) -> dict:
        pixels = self.images([image for _, image in samples], return_tensors="pt")
        texts, prompts = [], []
        for (record, _), grid in zip(samples, pixels["image_grid_thw"], strict=True):
            user = [{"type": "image"}, {"type": "text", "text": record["question"]}]
            messages = [{"role": "user", "content": user}]
            prompt = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            messages.append({"role": "assistant", "content": record["answer"]})
            full = self.tokenizer.apply_chat_template(messages, tokenize=False)
            pad = "<|image_pad|>" * int(grid.prod() // 4)
            texts.append(full.replace("<|image_pad|>", pad))
            prompts.append(len(self.tokenizer(prompt.replace("<|image_pad|>", pad)).input_ids))
        batch = self.tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch["input_ids"].clone()
        for row, length in enumerate(prompts):
            labels[row, :length] = -100
        labels[batch["attention_mask"] == 0] = -100
        return {**batch, **pixels, "labels": labels}


@contextmanager
def torch_batches(loader: Iterable) -> Iterator[Iterator]:
    """Batches of a DataLoader; its workers are gone at the end."""
    iterator = iter(loader)
    yield iterator
    iterator._shutdown_workers()  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------- the clock


def cpu_seconds() -> float:
    """CPU time of this process and of the worker processes it has now."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def timed(side: Side, round_: int, samples: int) -> dict:
    """Samples per second of a stream in full flow, its CPU time per sample, its mean padding.

    Both clocks start behind the second batch and stop while later ones are still being made.
    """
    seen, start, cpu = 0, 0.0, 0.0
    padding: list[tuple[float, float]] = []
    with side.batches(round_) as batches:
        for number, batch in enumerate(batches):
            n, *pad = side.count(batch)
            if number < 2:
                start, cpu = time.perf_counter(), cpu_seconds()
                continue
            seen += n
            padding.append((pad[0], pad[1]))
            if seen >= samples:
                break
        seconds, used = time.perf_counter() - start, cpu_seconds() - cpu
    return {
        "speed": seen / seconds,
        "cpu_ms": 1000 * used / seen,
        "token_padding": statistics.mean(tokens for tokens, _ in padding),
        "patch_padding": statistics.mean(patches for _, patches in padding),
    }


# --------------------------------------------------------------------------------- the figures


def summary(name: str, rounds: list[dict]) -> dict:
    """Medians and the best round of a side, printed."""
    speeds = [r["speed"] for r in rounds]
    medians = {
        key: statistics.median(r[key] for r in rounds)
        for key in ("cpu_ms", "token_padding", "patch_padding")
    }
    found = {"median": statistics.median(speeds), "best": max(speeds), **medians, "rounds": rounds}
    print(
        f"{name:6} median {found['median']:6.1f} samples/s, best {found['best']:6.1f}, "
        f"CPU {found['cpu_ms']:5.1f} ms a sample, padding {found['token_padding']:.1%} of tokens, "
        f"{found['patch_padding']:.1%} of patches"
    )
    return found


def ratios(ours: dict, theirs: dict, workers: int) -> dict:
    """How many times better ours is: by round, in median speed and in CPU time, printed."""
    pairs = zip(ours["rounds"], theirs["rounds"], strict=True)
    found = {
        "ratio_rounds": [a["speed"] / b["speed"] for a, b in pairs],
        "ratio_median": ours["median"] / theirs["median"],
        "ratio_cpu_ms": theirs["cpu_ms"] / ours["cpu_ms"],
    }
    for key, name in (("ratio_median", "speed"), ("ratio_cpu_ms", "CPU time")):
        print(f"ours is {found[key]:.2f}x better in {name}, {workers} workers each")
    return found
