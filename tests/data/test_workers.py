"""Loaders over processes: the same batches and states as with threads, and nothing left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vlaa_jax.data.build import BuildSettings, build
from vlaa_jax.data.built import BuiltRecords
from vlaa_jax.data.chat import Chat
from vlaa_jax.data.images import ImageProcessor
from vlaa_jax.data.loader import Order, prompt_loader
from vlaa_jax.data.packing import PackBudget
from vlaa_jax.data.row_loader import row_loader
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.synthetic.tokenizer import tiny_config, write_sidecars
from vlaa_jax.schema import UserError

BUDGET = PackBudget(tokens_per_row=256, rows_per_shard=2, rows_per_bin=8, bins_per_shard=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    paths = write_dataset(root, n_train=12, n_heldout=5, n_sft=24)
    (root / "hf").mkdir()
    (root / "hf/config.json").write_text(json.dumps(tiny_config(write_sidecars(root / "hf"))))
    build(paths.sft, paths.images, root / "b", root / "hf", BuildSettings("sft"))
    chat, processor = Chat.from_dir(root / "hf"), ImageProcessor.from_dir(root / "hf")
    return BuiltRecords(root / "b"), {"chat": chat, "processor": processor, "budget": BUDGET}


def brightness(record, images):
    return record.id, [int(np.asarray(image).sum()) for image in images]


def prompts(records, **options):
    order = Order(seed=4)
    return prompt_loader(
        records, records.images, batch_size=5, order=order, process=brightness, **options
    )


def test_prompts_and_states_are_those_of_threads(world):
    records, _ = world
    threads = threading.active_count()
    with prompts(records, threads=1) as plain, prompts(records, processes=2) as loader:
        assert len(multiprocessing.active_children()) == 0  # none before they are needed
        for _ in range(6):  # into the second epoch
            assert loader.get_state() == plain.get_state()
            state, batch = plain.get_state(), next(plain)
            assert next(loader) == batch
        assert len(multiprocessing.active_children()) == 2
        loader.set_state(state)
        assert next(loader) == batch
    assert not multiprocessing.active_children() and threading.active_count() <= threads


def test_rows_and_states_are_those_of_threads(world):
    records, options = world
    threads = threading.active_count()
    plain = row_loader(records, records.images, **options, threads=0, ahead=0)
    spread = row_loader(records, records.images, **options, processes=2)
    with plain, spread:
        for _ in range(4):
            a, b = next(plain), next(spread)
            assert plain.get_state() == spread.get_state()
            for x, y in zip([*a[:-1], *a.vision], [*b[:-1], *b.vision], strict=True):
                np.testing.assert_array_equal(x, y)
    assert not multiprocessing.active_children() and threading.active_count() <= threads


def fail(record, images):
    raise UserError(f"record {record.id!r}: is not liked")


def die(record, images):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "message"), [(fail, "^record '.*': is not liked$"), (die, "process .* died")]
)
def test_failures_come_as_one_line_and_leave_nothing(world, function, message):
    records, _ = world
    common = {"batch_size": 2, "processes": 1, "process": function}
    with prompt_loader(records, records.images, **common) as loader:
        with pytest.raises(UserError, match=message) as error:
            next(loader)
        assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, os, signal, sys
from vlaa_jax.data.built import BuiltRecords
from vlaa_jax.data.loader import prompt_loader
if __name__ == "__main__":
    records = BuiltRecords(sys.argv[1])
    loader = prompt_loader(records, records.images, batch_size=4, processes=2)
    next(loader)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_when_their_parent_is_killed(world, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(world[0].folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=environment, timeout=120
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(pids) == 2
    deadline = time.monotonic() + 20
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pids)


def alive(pids):
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            continue
        found += [pid] if state != "Z" else []
    return found
