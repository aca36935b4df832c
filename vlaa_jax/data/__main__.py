"""``python -m vlaa_jax.data check|build|show``: record files before training."""

import sys

from vlaa_jax.data.cli import run
from vlaa_jax.schema import Record


def gold_problem(record: Record) -> str | None:
    """What the verifiers say is wrong with a record's gold.

    The one place where the data room meets the rewards room: an entry point puts rooms together.
    """
    from vlaa_jax.rewards.mixed import gold_problem as problem_of

    return problem_of(
        record.verifier_type or "",
        record.gt or "",
        question=record.question,
        box_space=record.box_space,
    )


if __name__ == "__main__":
    sys.exit(run(gold_problem=gold_problem))
