"""Speed, padding, memory and full-size behaviour of the data room, on this machine.

    python benchmarks/data.py throughput          # beside torch DataLoader + HF processing
    python benchmarks/data.py padding             # token and patch padding on a mix of image sizes
    python benchmarks/data.py soak                # 50,000 samples: memory and threads
    python benchmarks/data.py fullsize            # check and build of 126,413 + 25,195 records

What each of them does is told at the head of its module in ``data_room``.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

from data_room.fullsize import fullsize
from data_room.padding import padding
from data_room.soak import soak
from data_room.throughput import throughput


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for function, samples in ((throughput, 512), (padding, 4000), (soak, 50_000), (fullsize, 0)):
        verb = verbs.add_parser(function.__name__)
        verb.set_defaults(run=function)
        verb.add_argument("--samples", type=int, default=samples)
        verb.add_argument("--workers", type=int, default=2)
        verb.add_argument("--rounds", type=int, default=5)
        verb.add_argument("--rows", type=int, default=8, help="rows of 2048 tokens in a batch")
        verb.add_argument("--batch", type=int, default=16, help="samples in a padded batch")
        verb.add_argument("--share", type=float, default=1.0, help="share of the full size")
        verb.add_argument("--folder", help="keep the emulated files here, use them again")
        verb.add_argument("--kinds", default="sft,grpo", help="of the emulated files")
        verb.add_argument("--verbs", default="check,build", help="run on the emulated files")
        verb.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = args.run(args, Path(folder))
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
