"""What the machine can do, and how long it takes."""

import ctypes
import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, and what it gave."""
    start = time.perf_counter()
    out = run()
    return time.perf_counter() - start, out


def release_memory() -> None:
    """Gives freed memory back to the system, so that no contender pays for the one before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak_flops() -> float:
    """Fastest float32 matrix product of a few, in torch and in jax, FLOP/s."""
    product = jax.jit(jnp.matmul)
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (2048, 384, 3072)):
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        x, y = jnp.asarray(a), jnp.asarray(b)
        runs = (
            partial(lambda x, y: product(x, y).block_until_ready(), x, y),
            partial(torch.matmul, torch.tensor(a), torch.tensor(b)),
        )
        for run in runs:
            run()
            best = max(best, *(2 * m * k * n / seconds(run)[0] for _ in range(8)))
    return best
