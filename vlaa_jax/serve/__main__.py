"""``python -m vlaa_jax.serve``."""

import sys

from vlaa_jax.serve.cli import main

if __name__ == "__main__":
    sys.exit(main())
