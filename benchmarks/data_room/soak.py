"""Memory, threads and processes of a long pass over a data set."""

import argparse
import os
import subprocess
import threading
import time
from pathlib import Path

from data_room.samples import checkpoint
from vlaa_jax.data.builds.build import BuildSettings, build
from vlaa_jax.data.loaders.rows import Samples, row_budget, row_loader
from vlaa_jax.data.rows.packing import PackBudget
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.synthetic.dataset import write_dataset


def soak(args: argparse.Namespace, root: Path) -> dict:
    hf_dir = checkpoint(root / "hf", 36 * 28 * 28)
    paths = write_dataset(root / "d", n_train=5, n_heldout=5, n_sft=1000)
    build(
        open_source(paths.sft, paths.images, kind="sft"), root / "b", hf_dir, BuildSettings("sft")
    )
    records = BuiltRecords(root / "b")
    samples = Samples(records, records.images, Preprocessor.from_dir(hf_dir))
    budget = row_budget(samples, PackBudget(512, 4))
    before = {t.name for t in threading.enumerate()}
    seen, marks, start = 0, [], time.perf_counter()
    with row_loader(samples, budget, threads=2) as loader:
        for batch in loader:
            seen += int(batch.segment_ids_BT.max(-1).sum())
            if seen >= (len(marks) + 1) * args.samples // 10:
                marks.append(rss())
            if seen >= args.samples:
                break
    seconds = time.perf_counter() - start
    left = sorted({t.name for t in threading.enumerate()} - before)
    processes = child_processes()
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


def rss() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def child_processes() -> list[str]:
    """A line of ps for each child of this process, ps itself left out."""
    children = subprocess.run(
        ["ps", "--no-headers", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return [line for line in children.stdout.splitlines() if "ps" not in line.split()]
