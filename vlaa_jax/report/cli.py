"""Command line of the report."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vlaa_jax.foreign import local_path
from vlaa_jax.report.page import FILE, MAX_BYTES, render, write_report
from vlaa_jax.report.record import RunRecord
from vlaa_jax.report.serve import make_server
from vlaa_jax.schema import UserError

MAX_RUNS = 4
_LEAST_MB = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or serves the page; returns the exit status, 2 where it could not be made."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlaa_jax.report",
        description="One HTML page of a run, or of several overlaid; it needs no network.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"run directory, up to {MAX_RUNS}")
    parser.add_argument("--out", type=Path, help=f"file to write; default RUN/{FILE} of the first")
    parser.add_argument(
        "--max-mb", type=float, default=MAX_BYTES / 1e6, help="largest page, default %(default)g"
    )
    parser.add_argument("--images", type=Path, metavar="ROOT", help="image folder, if it has moved")
    parser.add_argument("--serve", action="store_true", help="show it, live, to this machine only")
    parser.add_argument("--port", type=int, default=8765, help="of --serve; 0: any free one")
    return parser


def _run(args: argparse.Namespace) -> int:
    if len(args.runs) > MAX_RUNS:
        raise UserError(f"{len(args.runs)} runs given; {MAX_RUNS} at most are told apart")
    if not _LEAST_MB <= args.max_mb <= 1000:
        raise UserError(f"--max-mb={args.max_mb:g}: choose from {_LEAST_MB:g} to 1000")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port={args.port}: choose from 0 to 65535")
    records = [RunRecord(run) for run in args.runs]
    root = local_path(args.images) if args.images else None
    make = partial(render, records, max_bytes=int(args.max_mb * 1e6), image_root=root)
    if args.serve:
        return _serve(records, partial(make, live=True), args.port)
    file = local_path(args.out) if args.out else records[0].path / FILE
    write_report(file, make())
    print(f"report  {file}  ({file.stat().st_size / 1e6:.1f} MB)")
    return 0


def _serve(records: Sequence[RunRecord], make: partial[bytes], port: int) -> int:
    with make_server(records, make, port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0
