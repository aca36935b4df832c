"""The pipeline against stubs that behave like a busy provider.

    python benchmarks/pipeline.py throughput [--records 20000]   # wall time, CPU, RSS, kills
    python benchmarks/pipeline.py runners                        # 2,000 records, asyncio and Beam
    python benchmarks/pipeline.py crowd                          # a server that allows 16 at once

Prints one JSON object per part; ``--out FILE`` writes it too.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pipeline_room import crowd, runners, stub, throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    for module in (throughput, crowd, runners, stub):
        verb = verbs.add_parser(module.__name__.rpartition(".")[2], help=module.__doc__)
        module.add_arguments(verb)
        verb.add_argument("--out", type=Path)
        verb.set_defaults(run=module.run)
    args = parser.parse_args()
    found = args.run(args)
    if found is not None:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
        found = {"commit": commit.stdout.strip(), "command": " ".join(sys.argv), **found}
        text = json.dumps(found, indent=1)
        print(text)
        if args.out:
            args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
