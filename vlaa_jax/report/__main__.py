"""``python -m vlaa_jax.report``."""

import sys

from vlaa_jax.report.cli import main

if __name__ == "__main__":
    sys.exit(main())
