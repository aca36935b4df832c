"""Runs of the real command as several processes on this machine, each a host with its devices."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SILENCE_S = 20


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Hosts:
    """The processes of one run; their output is read as it comes.

    The last of them gets further `words_of_last`.
    """

    def __init__(self, count, devices, workdir, cache, words, words_of_last=()):
        port = free_port()
        flags = [
            f"--xla_force_host_platform_device_count={devices}",
            "--xla_backend_optimization_level=0",
        ]
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": " ".join(flags),
        }
        self.lines, self.processes, self._readers = [], [], []
        for number in range(count):
            where = []
            if count > 1:
                where = [
                    f"--coordinator=127.0.0.1:{port}",
                    f"--process_count={count}",
                    f"--process_id={number}",
                    f"--host_silence_s={SILENCE_S}",
                ]
            args = [
                *(sys.executable, "-m", "vlaa_jax.main", f"--workdir={workdir}", *words),
                *(f"--config.run.compilation_cache={cache}", *where),
                *(words_of_last if number == count - 1 else ()),
            ]
            process = subprocess.Popen(
                args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            self.processes.append(process)
            self.lines.append([])
            reader = threading.Thread(target=self._read, args=(number,), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, number):
        for line in self.processes[number].stdout:
            self.lines[number].append(line.rstrip("\n"))

    def until(self, words, timeout=300):
        """Waits for a line of host 0 that begins with words."""
        end = time.monotonic() + timeout
        while not any(line.startswith(words) for line in self.lines[0]):
            assert self.processes[0].poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.02)

    def end(self, timeout=300):
        """Exit codes, once all have ended."""
        until = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            for process in self.processes:
                with contextlib.suppress(OSError):
                    process.send_signal(signal.SIGKILL)
            raise AssertionError(self.said()) from None
        for reader in self._readers:
            reader.join(10)
        return [process.returncode for process in self.processes]

    def said(self, number=None):
        numbers = range(len(self.lines)) if number is None else [number]
        return "\n".join(f"{k}| {line}" for k in numbers for line in self.lines[k][-40:])


def metrics(workdir):
    """Metrics by step, without those that are times or depend on them."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    drop = ("time/", "compile/", "train/mfu")
    return [
        {k: v for k, v in line.items() if not k.startswith(drop) and not k.endswith("_per_s")}
        for line in lines
    ]


def worst_difference(a, b):
    """Largest difference of any metric of any step of two runs that report the same ones."""
    a, b = metrics(a), metrics(b)
    assert [set(line) for line in a] == [set(line) for line in b]
    pairs = [(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x]
    assert all((x is None) == (y is None) for x, y in pairs)
    return max(abs(x - y) for x, y in pairs if x is not None)
