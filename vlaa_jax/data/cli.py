"""Command line of the data room: check, build, show."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TextIO

from vlaa_jax import disk
from vlaa_jax.data.build import BuildSettings, build, iter_rejects
from vlaa_jax.data.check import check_file, inspect_image
from vlaa_jax.data.fetch import REPOSITORY, fetch
from vlaa_jax.data.golds import GoldProblems, Resized, bad_golds
from vlaa_jax.data.images import ImageProcessor
from vlaa_jax.data.records import KINDS, RecordFile, Reject
from vlaa_jax.data.show import describe, find_record
from vlaa_jax.foreign import local_path, read_text
from vlaa_jax.schema import BOX_SPACES, Record, UserError
from vlaa_jax.settings import by_source

_EXAMPLES_SHOWN = 10


def run(argv: Sequence[str] | None = None, gold_problems: GoldProblems | None = None) -> int:
    """Run one verb; returns the exit status.

    0: all is well. 1: the work was done and something was refused. 2: it could not be done. 130:
    interrupted.

    Args:
      argv: arguments; None takes the process's.
      gold_problems: says what is wrong with golds (the rewards room knows); None skips the check.
    """
    args = _parser().parse_args(argv)
    try:
        with disk.refusals(Path("the disk"), "what is whole is kept, the same command goes on"):
            return int(args.verb(args, gold_problems))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    except KeyboardInterrupt:
        print("interrupted (a build goes on where it was)", file=sys.stderr)
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vlaa_jax.data", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    get = verbs.add_parser("fetch", help="download the released records and images; resumes")
    get.set_defaults(verb=_fetch)
    get.add_argument("--out", required=True, metavar="DIR", help="images go into DIR/images")
    get.add_argument("--repository", default=REPOSITORY, help="data set on the hub")
    get.add_argument("--revision", help="branch, tag or commit")
    get.add_argument("--records-only", action="store_true", help="leave out 26 GB of images")

    check = verbs.add_parser("check", help="look for bad records, images and golds")
    check.set_defaults(verb=_check)
    check.add_argument("files", nargs="+", metavar="FILE", help="JSON array or JSON Lines")
    _common(check)
    check.add_argument("--rejects", help="write every problem to this file, one JSON object a line")
    check.add_argument("--quick", action="store_true", help="only see whether images are there")

    make = verbs.add_parser("build", help="write ArrayRecord shards; goes on if interrupted")
    make.set_defaults(verb=_build)
    make.add_argument("file", metavar="FILE", help="JSON array or JSON Lines")
    make.add_argument("--out", required=True, help="new folder, or one with an unfinished build")
    _common(make)
    _model(make, required=True)
    make.add_argument("--max-tokens", type=int, default=2048, help="reject longer samples")
    make.add_argument(
        "--on-duplicate", choices=("reject", "rename"), default="reject", help="repeated ids"
    )
    make.add_argument("--shard-records", type=int, default=4096)
    make.add_argument("--shard-images", type=int, default=1024)

    show = verbs.add_parser("show", help="print one record")
    show.set_defaults(verb=_show)
    show.add_argument("file", metavar="FILE", help="JSON array or JSON Lines")
    show.add_argument("which", metavar="WHICH", help="id, position from 0, or #POSITION")
    show.add_argument("--images", help="image root")
    _boxes(show)
    _model(show, required=False)
    show.add_argument("--window-units", type=int, default=4, help="4: Qwen2.5-VL, 0: Qwen2-VL")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, help="image root")
    _boxes(parser)
    parser.add_argument(
        "--kind", choices=("auto", *KINDS), default="auto", help="auto looks at the first record"
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _checkpoint(value: str) -> str:
    return str(resources.files("vlaa_jax") / "assets" / "tiny") if value == "embedded" else value


def _boxes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--box-space",
        action="append",
        default=[],
        metavar="SOURCE=SPACE",
        help=f"space of boxes that do not name their own: {', '.join(BOX_SPACES)}; one SPACE for "
        "all, or one for each source (repeat it)",
    )


def _model(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--checkpoint",
        required=required,
        type=_checkpoint,
        help='HF directory, for the lengths, or "embedded" (the one of :tiny)',
    )
    parser.add_argument("--min-pixels", type=int, default=0, help="0: the checkpoint's")
    parser.add_argument("--max-pixels", type=int, default=0, help="0: the checkpoint's")
    parser.add_argument("--system-prompt", default="", help="text, or @FILE")


def kind_of(path: str | Path) -> str:
    """What a file is for: "grpo" if its first usable record has a verifier type, else "sft"."""
    file = RecordFile(path)
    first: Reject | None = None
    for index in range(min(len(file), 100)):
        result = file.read(index)
        if not isinstance(result, Reject):
            return "sft" if result.verifier_type is None else "grpo"
        first = first or result
    why = f"; the first: {first}" if first else ""
    raise UserError(
        f"{path}: none of the first records can be used{why} (is it a file of records? --kind=grpo "
        "or --kind=sft lists every problem)"
    )


def _guessed(kind: str) -> str:
    other, has = ("sft", "a") if kind == "grpo" else ("grpo", "no")
    return (
        f"read as {kind}, a guess: the first usable record has {has} verifier_type "
        f"(--kind={other} if that is wrong)"
    )


def _check(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    clean = True
    rejects = _open(args.rejects) if args.rejects else None
    try:
        for path in args.files:
            kind = kind_of(path) if args.kind == "auto" else args.kind
            report = check_file(
                path,
                args.images,
                kind=kind,
                gold_problems=gold_problems,
                box_space=_box_space(args),
                decode=not args.quick,
                workers=args.workers,
                on_reject=lambda reject: _list(reject, rejects),
                max_rejects=0,  # they are shown by kind
                show_progress=not args.quiet,
            )
            print("\n".join([report.table(), *report.mode_lines()]))
            if args.kind == "auto":
                print(f"  {_guessed(kind)}")
            lines = [*report.findings.lines(), *(f"note: {r}" for r in report.remarks.lines())]
            print("".join(f"  {line}\n" for line in lines), end="")
            if report.problems > len(report.findings) and rejects is None:
                print(f"  {report.problems:,} problems in all; list them with --rejects FILE")
            unknown = _unknown_sources(_box_space(args), report.rows)
            if unknown:
                print(f"  --box-space names sources that are not there: {', '.join(unknown)}")
            clean = clean and report.clean and not unknown
    finally:
        if rejects is not None:
            rejects.close()
    return 0 if clean else 1


def _unknown_sources(spaces: str | dict[str, str], sources: Iterable[str]) -> list[str]:
    """Sources that were given a space and have no record; a misspelt one would change nothing."""
    known = {source.casefold() for source in sources}
    return [] if isinstance(spaces, str) else [s for s in spaces if s.casefold() not in known]


def _open(path: str) -> TextIO:
    try:
        return local_path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _list(reject: Reject, file: TextIO | None) -> None:
    if file is not None:
        file.write(json.dumps(reject.as_dict(), ensure_ascii=False) + "\n")


def _build(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    kind = kind_of(args.file) if args.kind == "auto" else args.kind
    settings = BuildSettings(
        kind=kind,
        max_tokens=args.max_tokens,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        system_prompt=_prompt(args.system_prompt),
        on_duplicate=args.on_duplicate,
        box_space=_box_space(args),
        shard_records=args.shard_records,
        shard_images=args.shard_images,
    )
    manifest = build(
        args.file,
        args.images,
        args.out,
        args.checkpoint,
        settings,
        gold_problems=gold_problems,
        workers=args.workers,
        show_progress=not args.quiet,
    )
    print(f"{args.out}: {manifest['kept']:,} of {manifest['read']:,} records kept ({kind})")
    if args.kind == "auto":
        print(f"  {_guessed(kind)}")
    for source, counts in manifest["sources"].items():
        kept = counts.get("records", 0)
        mean = counts.get("tokens", 0) / kept if kept else 0.0
        print(
            f"  {source}: {kept:,} kept, {counts.get('rejected', 0):,} rejected, "
            f"{mean:,.0f} tokens a sample"
        )
    for reject, _ in zip(iter_rejects(args.out), range(_EXAMPLES_SHOWN), strict=False):
        print(f"  {reject}")
    if manifest["rejected"]:
        print(f"  {manifest['rejected']:,} rejected in all, listed in {args.out}/rejects.jsonl")
        print("  refused images are looked at again by the same command; for anything else that")
        print("  changed, give another --out or delete this one")
    return 1 if manifest["rejected"] else 0


def _fetch(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    found = fetch(
        args.out,
        repository=args.repository,
        revision=args.revision,
        images=not args.records_only,
    )
    for file in found.records:
        print(f"records  {file}")
    print(f"images   {found.images}")
    for folder, url in found.missing.items():
        print(f"missing  {found.images / folder}: unpack {url} there")
    return 0


def _show(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    record = find_record(RecordFile(args.file, box_space=_box_space(args)), args.which)
    text = describe(
        record,
        args.images,
        args.checkpoint,
        min_pixels=args.min_pixels or None,
        max_pixels=args.max_pixels or None,
        window_units=args.window_units,
        system_prompt=_prompt(args.system_prompt),
    )
    print(text)
    if gold_problems is not None and record.verifier_type and record.gt is not None:
        sizes = [_first_size(record, args.images)]
        problem = bad_golds([record], sizes, gold_problems, resized=_resized(args))[0]
        print(f"\ngold check: {problem or 'fine'}")
    return 0


def _resized(args: argparse.Namespace) -> Resized | None:
    if args.checkpoint is None:
        return None
    limits = args.min_pixels or None, args.max_pixels or None
    return ImageProcessor.from_dir(args.checkpoint, *limits).resized


def _first_size(record: Record, image_root: str | None) -> tuple[int, int] | None:
    if image_root is None or not record.images:
        return None
    facts = inspect_image(image_root, record.images[0])
    return facts.size if facts.status == "found" else None


def _box_space(args: argparse.Namespace) -> str | dict[str, str]:
    try:
        return by_source.box_spaces(",".join(args.box_space))
    except ValueError as error:
        raise UserError(f"--box-space: {error}") from error


def _prompt(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return read_text(local_path(value[1:])).rstrip("\n")
    except FileNotFoundError:
        raise UserError(f"--system-prompt {value}: does not exist") from None
