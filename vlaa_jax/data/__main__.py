"""``python -m vlaa_jax.data check|build|show``: record files before training."""

import sys

from vlaa_jax.data.commands.cli import run


def main() -> int:
    """The command line, with the verifiers at hand.

    The one place where the data room meets the rewards room: an entry point puts rooms together.
    """
    from vlaa_jax.rewards.mixed import MixedReward

    with MixedReward() as reward:  # its processes start with the first gold that needs a parser
        return run(gold_problems=reward.gold_problems)


if __name__ == "__main__":
    sys.exit(main())
