"""Speed, padding, memory and full-size behaviour of the data room, on this machine.

    python benchmarks/data.py throughput          # beside torch DataLoader + HF processing
    python benchmarks/data.py padding             # token and patch padding on a mix of image sizes
    python benchmarks/data.py soak                # 50,000 samples: memory and threads
    python benchmarks/data.py fullsize            # check and build of 126,413 + 25,195 records

``throughput`` alternates the two sides in one process, as many workers each, and prints the ratio
of each round, medians and the best round. The peer does what a PyTorch user does: worker processes
that decode with PIL and call the HF image processor and tokenizer on a batch, padded to its longest
sample. (It is put together from the parts of Qwen2_5_VLProcessor, which cannot be built itself
without torchvision. The image processor is the PIL one, whose pixels ours equal bit for bit; the
"fast" one needs torchvision and gives others.)
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from vlaa_jax.data.build import BuildSettings, build
from vlaa_jax.data.built import BuiltRecords
from vlaa_jax.data.chat import Chat
from vlaa_jax.data.check import PUBLISHED
from vlaa_jax.data.images import ImageProcessor
from vlaa_jax.data.loader import Order
from vlaa_jax.data.packing import PackBudget, Packer, fit_budget
from vlaa_jax.data.row_loader import row_budget, row_loader
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.synthetic.tokenizer import tiny_config, write_sidecars

HUB_PIXELS = 1280 * 28 * 28
SIZE_MIX = (
    # (width, height), records of the source in the SFT file (arXiv 2504.11468, Table 1)
    ((480, 320), 5_923),  # CLEVR-Math
    ((448, 448), 19_258),  # Math PUMA
    ((800, 600), 34_604),  # ArxivQA
    ((1390, 2016), 4_897),  # DocVQA
    ((768, 1024), 4_266),  # VizWiz
    ((512, 512), 10_496),  # ALLaVA
    ((640, 480), 8_727),  # COCO
    ((500, 375), 38_242),  # VG
)
SENTENCE = "the red square is left of a blue circle and one line rises by two so we count again"
WORDS = SENTENCE.split()


def text(rng: np.random.Generator, low: int, high: int) -> str:
    """Some words; between ``low`` and ``high`` of them."""
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), int(rng.integers(low, high))))


def answer(rng: np.random.Generator) -> str:
    return f"<think> {text(rng, 60, 180)} </think> <answer> {text(rng, 1, 5)} </answer>"


def photo(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A smooth image with some noise, about as hard to decode as a photograph."""
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = image + rng.integers(-12, 13, image.shape, dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def checkpoint(folder: Path, max_pixels: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_sidecars(folder, max_pixels=max_pixels)
    (folder / "config.json").write_text(json.dumps(tiny_config(ids)))
    return folder


def write_records(root: Path, count: int, sizes: list[tuple[int, int]]) -> Path:
    rng = np.random.default_rng(0)
    (root / "images/coco").mkdir(parents=True)
    with (root / "sft.json").open("w") as file:
        for i in range(count):
            name = f"coco/{i:06d}.jpg"
            photo(rng, sizes[i % len(sizes)]).save(root / "images" / name, quality=90)
            record = {
                "id": str(i),
                "image": name,
                "question": text(rng, 10, 40),
                "answer": answer(rng),
            }
            file.write(json.dumps(record) + "\n")
    return root / "sft.json"


# --------------------------------------------------------------------------------- throughput


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


def cpu_seconds() -> float:
    """CPU time of this process and of the worker processes it has now."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def timed(
    make: Callable[[], AbstractContextManager[Iterator]], count: Callable, samples: int
) -> dict:
    """Samples per second of a stream in full flow, its CPU time per sample, its mean padding.

    ``count`` gives samples, padded share of tokens and padded share of patches of a batch. Both
    clocks start behind the second batch and stop while later ones are still being made.
    """
    seen, start, cpu = 0, 0.0, 0.0
    padding: list[tuple[float, float]] = []
    with make() as batches:
        for number, batch in enumerate(batches):
            n, *pad = count(batch)
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


@contextmanager
def torch_batches(loader: Iterable) -> Iterator[Iterator]:
    """Batches of a DataLoader; its workers are gone at the end."""
    iterator = iter(loader)
    yield iterator
    iterator._shutdown_workers()  # type: ignore[attr-defined]


def throughput(args: argparse.Namespace, root: Path) -> dict:
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    torch.set_num_threads(1)
    hf_dir = checkpoint(root / "hf", HUB_PIXELS)
    file = write_records(root, args.samples // 2, [(640, 480)])
    build(file, root / "images", root / "b", hf_dir, BuildSettings("sft"))
    records = BuiltRecords(root / "b")
    raw = [json.loads(line) for line in file.read_text().splitlines()]
    chat, processor = Chat.from_dir(hf_dir), ImageProcessor.from_dir(hf_dir)
    options = {"chat": chat, "processor": processor}
    budget = row_budget(
        records, records.images, **options, tokens_per_row=2048, rows_per_shard=args.rows
    )
    peer = Peer(raw, root / "images", hf_dir)
    torch_loader = DataLoader(
        peer,  # type: ignore[arg-type]
        batch_size=args.batch,
        # Endless for our purpose: never run dry while the clock runs.
        sampler=RandomSampler(raw, replacement=True, num_samples=3 * args.samples),
        num_workers=args.workers,
        collate_fn=peer.collate,
    )
    rounds: dict[str, list[dict]] = {"ours": [], "torch": []}
    for round_ in range(args.rounds):
        order = Order(seed=round_)
        rounds["ours"].append(
            timed(
                lambda order=order: row_loader(  # type: ignore[misc]
                    records,
                    records.images,
                    **options,
                    budget=budget,
                    order=order,
                    threads=args.workers,
                    processes=args.processes,
                ),
                lambda b: (
                    int(b.segment_ids_BT.max(-1).sum()),
                    b.padding_frac,
                    b.vision.padding_frac,
                ),
                args.samples,
            )
        )
        rounds["torch"].append(
            timed(
                lambda: torch_batches(torch_loader),
                lambda b: (len(b["labels"]), 1 - float(b["attention_mask"].float().mean()), 0.0),
                args.samples,
            )
        )
        ours, theirs = (rounds[side][-1]["speed"] for side in ("ours", "torch"))
        print(
            f"round {round_ + 1}: ours {ours:.1f}, torch {theirs:.1f} samples/s, "
            f"ratio {ours / theirs:.2f}",
            flush=True,
        )
    result: dict = {"budget": vars(budget), "workers": args.workers, "samples": args.samples}
    for side, found in rounds.items():
        speeds = [r["speed"] for r in found]
        result[side] = {
            "median": statistics.median(speeds),
            "best": max(speeds),
            "cpu_ms": statistics.median(r["cpu_ms"] for r in found),
            "token_padding": statistics.median(r["token_padding"] for r in found),
            "patch_padding": statistics.median(r["patch_padding"] for r in found),
            "rounds": found,
        }
        print(
            f"{side:6} median {result[side]['median']:6.1f} samples/s, best {max(speeds):6.1f}, "
            f"CPU {result[side]['cpu_ms']:5.1f} ms a sample, "
            f"padding {result[side]['token_padding']:.1%} of tokens, "
            f"{result[side]['patch_padding']:.1%} of patches"
        )
    pairs = zip(rounds["ours"], rounds["torch"], strict=True)
    result["ratio_rounds"] = [ours["speed"] / theirs["speed"] for ours, theirs in pairs]
    for key, name in (("median", "speed"), ("cpu_ms", "CPU time")):
        ratio = result["ours"][key] / result["torch"][key]
        result[f"ratio_{key}"] = ratio if key == "median" else 1 / ratio
        print(
            f"ours is {result[f'ratio_{key}']:.2f}x better in {name}, {args.workers} workers each"
        )
    return result


# ------------------------------------------------------------------------------------ padding


def padding(args: argparse.Namespace, root: Path) -> dict:
    """Needs sizes only, so it runs over many samples."""
    hf_dir = checkpoint(root / "hf", HUB_PIXELS)
    processor, chat = ImageProcessor.from_dir(hf_dir), Chat.from_dir(hf_dir)
    rng = np.random.default_rng(0)
    weights = np.array([n for _, n in SIZE_MIX]) / sum(n for _, n in SIZE_MIX)
    sizes = []
    for _ in range(args.samples):
        grid = processor.grid(*SIZE_MIX[rng.choice(len(SIZE_MIX), p=weights)][0])
        words = len(chat.encode(text(rng, 10, 40))) + len(chat.encode(answer(rng))) + 20
        sizes.append((words + grid[1] * grid[2] // 4, (grid,)))
    result: dict = {}
    for rows in (4, 8, 16):
        budget: PackBudget = fit_budget(sizes[:512], 2048, rows)
        packer: Packer[int] = Packer(budget)
        batches = [packer.add(i, n, grids) for i, (n, grids) in enumerate(sizes)]
        full = [b for b in batches if b is not None]
        tokens = 1 - sum(b.n_tokens for b in full) / len(full) / budget.tokens
        patches = 1 - sum(b.n_patches for b in full) / len(full) / budget.patches
        per_batch = sum(len(row) for b in full for row in b.rows) / len(full)
        n = max(1, round(per_batch))
        groups = [sizes[i : i + n] for i in range(0, len(sizes) - n, n)]
        kept = sum(t for group in groups for t, _ in group)
        plain = 1 - kept / sum(max(t for t, _ in group) * len(group) for group in groups)
        result[rows] = {
            "tokens": tokens,
            "patches": patches,
            "padded_tokens": plain,
            "samples_per_batch": per_batch,
            "budget": vars(budget),
        }
        print(
            f"{rows:2} rows of 2048, {budget.bins_per_shard} bins of {budget.rows_per_bin} rows: "
            f"padding {tokens:.1%} of tokens, {patches:.1%} of patches; padded batches of {n} "
            f"as HF collates: {plain:.1%} of tokens, no patches but a new shape each time"
        )
    return result


# --------------------------------------------------------------------------------------- soak


def rss() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(args: argparse.Namespace, root: Path) -> dict:
    hf_dir = checkpoint(root / "hf", 36 * 28 * 28)
    paths = write_dataset(root / "d", n_train=5, n_heldout=5, n_sft=1000)
    build(paths.sft, paths.images, root / "b", hf_dir, BuildSettings("sft"))
    records = BuiltRecords(root / "b")
    options = {"chat": Chat.from_dir(hf_dir), "processor": ImageProcessor.from_dir(hf_dir)}
    budget = row_budget(records, records.images, **options, tokens_per_row=512, rows_per_shard=4)
    before = {t.name for t in threading.enumerate()}
    seen, marks, start = 0, [], time.perf_counter()
    with row_loader(records, records.images, **options, budget=budget, threads=2) as loader:
        for batch in loader:
            seen += int(batch.segment_ids_BT.max(-1).sum())
            if seen >= (len(marks) + 1) * args.samples // 10:
                marks.append(rss())
            if seen >= args.samples:
                break
    seconds = time.perf_counter() - start
    left = sorted({t.name for t in threading.enumerate()} - before)
    children = subprocess.run(
        ["ps", "--no-headers", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    processes = [line for line in children.stdout.splitlines() if "ps" not in line.split()]
    growth = marks[-1] / marks[0] - 1
    print(
        f"{seen:,} samples in {seconds:.0f} s; RSS at each tenth (MiB): "
        f"{', '.join(f'{m / 2**20:.0f}' for m in marks)}; growth {growth:+.1%} from the first "
        f"tenth; threads left: {left or 'none'}; processes left: {processes or 'none'}"
    )
    return {
        "samples": seen,
        "seconds": seconds,
        "rss": marks,
        "growth": growth,
        "threads_left": left,
        "processes_left": processes,
    }


# ----------------------------------------------------------------------------------- fullsize


def emulate(root: Path, kind: str, counts: dict[str, int], share: float) -> Path:
    """A file of the released size and form; tiny images, 256 of them per folder."""
    rng = np.random.default_rng(0)
    path, partial = root / f"{kind}.json", root / f"{kind}.partial"
    filler = "x" * (int(623e6 / 126_413) if kind == "sft" else int(128e6 / 25_195))
    verifiers = {"clevr_math": "digit", "synthesis": "math", "coco": "iou", "vg": "iou"}
    golds = {"digit": 3, "iou": "[0.1, 0.2, 0.5, 0.6]", "mcq": "B"}
    buffer = io.BytesIO()
    n = 0
    with partial.open("w") as file:
        file.write("[\n" if kind == "grpo" else "")
        for source, count in counts.items():
            for i in range(int(count * share)):
                name = f"{source}/{kind}/{i // 256:04d}/{i:06d}.png"
                target = root / "images" / name
                if i % 256 == 0:
                    target.parent.mkdir(parents=True, exist_ok=True)
                buffer.seek(0)
                buffer.truncate()
                Image.new("RGB", (28 + i % 3 * 28, 28), (i % 256, i // 256, 0)).save(buffer, "PNG")
                target.write_bytes(buffer.getvalue())
                record = {
                    "id": f"{source}-{i}",
                    "image": name,
                    "question": text(rng, 10, 40),
                    "caption": text(rng, 40, 120),
                }
                if kind == "sft":
                    record["answer"] = answer(rng)
                else:
                    verifier = verifiers.get(
                        source, "mcq" if source in ("geoqa170k", "arxivqa") else "open_ended"
                    )
                    record["verifier_type"] = verifier
                    formula = f"$y = \\frac{{{i % 97 + 2}}}{{{i % 89 + 1}}}x - {i}$"
                    record["gt"] = golds.get(verifier, formula if verifier == "math" else "a text")
                    if verifier == "mcq":
                        record["question"] += "\nChoices:\nA: one\nB: two\nC: three\nD: four"
                size = len(json.dumps(record)) + 40
                record["meta"] = {"ds_answer": filler[size:]}
                comma = "," if kind == "grpo" and n else ""
                file.write(comma + json.dumps(record) + "\n")
                n += 1
        file.write("]\n" if kind == "grpo" else "")
    return partial.rename(path)


def fullsize(args: argparse.Namespace, root: Path) -> dict:
    root = Path(args.folder) if args.folder else root
    hf_dir = checkpoint(root / "hf", HUB_PIXELS)
    result: dict = {}
    for kind in args.kinds.split(","):
        path = root / f"{kind}.json"
        if not path.exists():
            emulate(root, kind, PUBLISHED[kind], args.share)
        print(f"{kind}: {path.stat().st_size / 1e6:,.0f} MB", flush=True)
        workers = ["--workers", str(args.workers)]
        common = [str(path), "--images", str(root / "images"), "--quiet", *workers]
        out = root / f"b-{kind}"
        verbs = {
            "check": ["check", *common],
            "build": ["build", *common, "--out", str(out), "--checkpoint", str(hf_dir)],
        }
        for verb in filter(None, args.verbs.split(",")):
            argv = verbs[verb]
            start = time.perf_counter()
            pid = os.spawnv(
                os.P_NOWAIT, sys.executable, [sys.executable, "-m", "vlaa_jax.data", *argv]
            )
            _, status, usage = os.wait4(pid, 0)
            seconds = time.perf_counter() - start
            peak = usage.ru_maxrss / 1024
            cpu = usage.ru_utime + usage.ru_stime
            result[f"{kind}_{verb}"] = {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "peak_mib": peak,
                "status": status >> 8,
            }
            print(
                f"{kind} {verb}: {seconds:.0f} s wall, {cpu:.0f} s CPU, peak RSS {peak:.0f} MiB, "
                f"status {status >> 8}",
                flush=True,
            )
        shutil.rmtree(out, ignore_errors=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for function, samples in ((throughput, 512), (padding, 4000), (soak, 50_000), (fullsize, 0)):
        verb = verbs.add_parser(function.__name__)
        verb.set_defaults(run=function)
        verb.add_argument("--samples", type=int, default=samples)
        verb.add_argument("--workers", type=int, default=2)
        verb.add_argument("--processes", type=int, default=0, help="of our loader, not threads")
        verb.add_argument("--rounds", type=int, default=5)
        verb.add_argument("--rows", type=int, default=8, help="rows of 2048 tokens in a batch")
        verb.add_argument("--batch", type=int, default=16, help="samples in a padded batch")
        verb.add_argument("--share", type=float, default=1.0, help="share of the full size")
        verb.add_argument("--folder", help="keep the emulated files here, use them again")
        verb.add_argument("--kinds", default="sft,grpo", help="of the emulated files")
        verb.add_argument("--verbs", default="check,build", help="run on the emulated files")
        verb.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = args.run(args, Path(folder))
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
