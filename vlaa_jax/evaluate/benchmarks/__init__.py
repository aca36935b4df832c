"""The table of benchmarks: a file each. A further one is a file and a row here."""

from vlaa_jax.evaluate.benchmarks import (
    dynamath,
    logicvista,
    mathverse,
    mathvision,
    mathvista,
    wemath,
)
from vlaa_jax.evaluate.nouns import Benchmark
from vlaa_jax.schema import UserError

LEADERBOARD = (
    mathvista.BENCHMARK,
    mathvision.BENCHMARK,
    mathverse.BENCHMARK,
    dynamath.BENCHMARK,
    wemath.BENCHMARK,
    logicvista.BENCHMARK,
)
"""The six columns, in order; the leaderboard's average is their plain mean."""

BENCHMARKS = {benchmark.name: benchmark for benchmark in (*LEADERBOARD, mathvision.MINI)}


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UserError: there is none.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
