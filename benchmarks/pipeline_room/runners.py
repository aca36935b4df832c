"""The same records through the asyncio runner and through Apache Beam: the same files?"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from pipeline_room.throughput import Stub, file_digests, settings_of, write_source
from vlaa_jax.pipeline.run import run as run_pipeline


def add_arguments(parser) -> None:
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--scale", type=float, default=0.2, help="of the stub's latencies")


def run(args) -> dict:
    import apache_beam

    found = {"records": args.records, "apache_beam": apache_beam.__version__}
    outputs = {}
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_source(root / "source", args.records)
        for name in ("asyncio", "beam"):
            with Stub(scale=args.scale) as stub:
                settings = settings_of(stub.url, root / "source", args.concurrency)
                settings = replace(settings, run=replace(settings.run, runner=name))
                began = time.monotonic()
                run_pipeline(settings, root / name, Console(quiet=True))
                found[name] = {"wall_s": round(time.monotonic() - began, 1), **stub.stats()}
            outputs[name] = file_digests(root / name)
    return {**found, "identical_files": outputs["asyncio"] == outputs["beam"], "sha256": outputs}
