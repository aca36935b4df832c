"""``python -m vlaa_jax.evaluate``."""

import sys

from vlaa_jax.evaluate.cli import main

if __name__ == "__main__":
    sys.exit(main())
