"""``python -m vlaa_jax.rewards``: score model outputs from a JSONL file."""

import sys

from vlaa_jax.rewards.cli import main

if __name__ == "__main__":
    sys.exit(main())
