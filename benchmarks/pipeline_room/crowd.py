"""A server that allows 16 requests at once and answers 429 beyond: where does the client settle?"""

from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline_room.throughput import Stub, _collect, start, write_source


def add_arguments(parser) -> None:
    parser.add_argument("--allowed", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--records", type=int, default=800)
    parser.add_argument("--scale", type=float, default=1.0, help="of the stub's latencies")


def run(args) -> dict:
    with TemporaryDirectory() as temporary, Stub(scale=args.scale, allowed=args.allowed) as stub:
        root = Path(temporary)
        write_source(root / "source", args.records)
        _collect(stub.url, root, root / "work", args.concurrency)
        child = start(stub.url, root / "source", root / "work", args.concurrency)
        child.communicate()
        stats = stub.stats()
        mean = stats["in_flight_second_half"]
        return {
            "allowed": args.allowed,
            "cap_of_the_client": args.concurrency,
            "mean_in_flight_second_half": round(mean, 2),
            "off_by": round(mean / args.allowed - 1, 3),
            "share_of_429": round(
                stats["statuses"].get("429", 0) / sum(stats["statuses"].values()), 3
            ),
            "stub": stats,
        }
