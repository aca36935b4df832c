"""Command line of the data room: fetch, check, build, convert, show."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.data.builds.build import BuildSettings, build, iter_rejects
from vlaa_jax.data.commands.convert import convert
from vlaa_jax.data.commands.fetch import REPOSITORY, fetch
from vlaa_jax.data.commands.show import describe, find_record
from vlaa_jax.data.judging.check import CheckReport, check
from vlaa_jax.data.judging.judge import GoldProblems, Judge, Limits
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.source import ParsedSource, Reject, Source
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.foreign import local_path, read_text
from vlaa_jax.schema import BOX_SPACES, KINDS, UserError
from vlaa_jax.settings import by_source

Verb = Callable[[argparse.Namespace, GoldProblems | None], int]


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

    def verb(name: str, does: Verb, about: str, *groups: Callable[..., None]) -> Any:
        found = verbs.add_parser(name, help=about)
        found.set_defaults(verb=does)
        for add in groups:
            add(found)
        return found

    get = verb("fetch", _fetch, "download the released records and images; resumes")
    get.add_argument("--out", required=True, metavar="DIR", help="images go into DIR/images")
    get.add_argument("--repository", default=REPOSITORY, help="data set on the hub")
    get.add_argument("--revision", help="branch, tag or commit")
    get.add_argument("--records-only", action="store_true", help="leave out 26 GB of images")

    about = "look for bad records, images and golds; with --checkpoint, for what does not fit"
    check = verb("check", _check, about, _form, _work, _model, _windows)
    check.add_argument("files", nargs="+", metavar="SOURCE", help=_FORMS)
    check.add_argument("--max-tokens", type=int, default=0, help="of a sample; 0: any number")
    check.add_argument("--vision-rows", type=int, default=0, help="of a vision bin; 0: any number")
    check.add_argument("--rejects", help="write every problem to this file, one JSON object a line")
    check.add_argument("--quick", action="store_true", help="headers of images, as training does")

    about = "write ArrayRecord shards; goes on if interrupted"
    make = verb("build", _build, about, _one, _form, _work, _model)
    make.add_argument("--out", required=True, help="new folder, or one with an unfinished build")
    make.add_argument("--max-tokens", type=int, default=2048, help="reject longer samples")
    make.add_argument(
        "--on-duplicate", choices=("reject", "rename"), default="reject", help="repeated ids"
    )
    make.add_argument("--shard-records", type=int, default=4096)
    make.add_argument("--shard-images", type=int, default=1024)

    about = "write records in the released form, and the images that a source brings"
    turn = verb("convert", _convert, about, _one, _form, _work)
    turn.add_argument("--out", required=True, metavar="FILE", help="JSON Lines; a new file")

    show = verb("show", _show, "print one record", _one, _form, _model, _windows)
    show.add_argument("which", metavar="WHICH", help="id, position from 0, or #POSITION")
    return parser


_FORMS = "record file, conversations, Parquet, or folder of a build or TFDS data set"


def _one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="SOURCE", help=_FORMS)


def _form(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", help="image root, where the source does not bring its images")
    parser.add_argument(
        "--columns",
        default="",
        metavar="FIELD=NAME,...",
        help="names of fields in the source; FIELD:=TEXT is a text that all records have",
    )
    parser.add_argument(
        "--box-space",
        action="append",
        default=[],
        metavar="SOURCE=SPACE",
        help=f"space of boxes that do not name their own: {', '.join(BOX_SPACES)}; one SPACE for "
        "all, or one for each source (repeat it)",
    )
    parser.add_argument(
        "--kind", choices=("auto", *KINDS), default="auto", help="auto looks at the first record"
    )


def _work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="threads that read images")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _checkpoint(value: str) -> str:
    return str(resources.files("vlaa_jax") / "assets" / "tiny") if value == "embedded" else value


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        help='HF directory, for the lengths, or "embedded" (the one of :tiny)',
    )
    parser.add_argument("--min-pixels", type=int, default=0, help="0: the checkpoint's")
    parser.add_argument("--max-pixels", type=int, default=0, help="0: the checkpoint's")
    parser.add_argument("--system-prompt", default="", help="text, or @FILE")


def _windows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window-units", type=int, default=4, help="4: Qwen2.5-VL, 0: Qwen2-VL")


def _opened(args: argparse.Namespace, path: str) -> tuple[Source, str | None]:
    """A source read as what it is for, and how that was found out, where it was guessed."""
    source, guess = _source(args, path, None if args.kind == "auto" else args.kind), None
    if isinstance(source, ParsedSource) and source.kind is None:
        source.read_as(kind_of(source))
        other, has = ("sft", "a") if source.kind == "grpo" else ("grpo", "no")
        guess = (
            f"read as {source.kind}, a guess: the first usable record has {has} verifier_type "
            f"(--kind={other} if that is wrong)"
        )
    if source.needs_root and args.images is None:
        raise UserError(f"{path}: its images lie in files; give their folder with --images DIR")
    return source, guess


def _source(args: argparse.Namespace, path: str, kind: str | None = None) -> Source:
    columns, boxes = _read("--columns", by_source.columns, args.columns), None
    if args.box_space:
        boxes = _read("--box-space", by_source.box_spaces, ",".join(args.box_space))
    return open_source(path, args.images, kind=kind, box_space=boxes, columns=columns)


def kind_of(source: Source) -> str:
    """What a source is for: "grpo" if its first usable record has a verifier type, else "sft"."""
    first: Reject | None = None
    for index in range(min(len(source), 100)):
        result = source.read(index)
        if not isinstance(result, Reject):
            return "sft" if result.verifier_type is None else "grpo"
        first = first or result
    why = f"; the first: {first}" if first else ""
    raise UserError(
        f"{source.path}: none of the first records can be used{why} (is it a file of records? "
        "--kind=grpo or --kind=sft lists every problem)"
    )


def _check(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    reader, clean = _preprocessor(args), True
    limits = Limits(args.max_tokens, "--max-tokens", args.vision_rows, args.window_units)
    with local_path(args.rejects or os.devnull).open("w", encoding="utf-8") as listing:
        for path in args.files:
            source, guess = _opened(args, path)
            report = check(
                source,
                Judge(gold_problems, reader, limits, source.kind),
                whole=not args.quick,
                workers=args.workers,
                on_reject=lambda reject: listing.write(reject.as_line()),
                show_progress=not args.quiet,
            )
            spaces = source.box_space if isinstance(source.box_space, Mapping) else {}
            known = {name.casefold() for name in report.rows}
            unknown = [s for s in spaces if s.casefold() not in known]  # misspelt ones do nothing
            print("\n".join(_lines(report, guess, unknown, listed=bool(args.rejects))))
            clean = clean and report.clean and not unknown
    return 0 if clean else 1


def _lines(
    report: CheckReport, guess: str | None, unknown: Sequence[str], *, listed: bool
) -> Iterator[str]:
    """What was found in one source."""
    yield report.table()
    yield from report.mode_lines()
    yield from [f"  {guess}"] if guess else []
    yield from (f"  {line}" for line in report.findings.lines())
    yield from (f"  note: {line}" for line in report.remarks.lines())
    if report.problems > len(report.findings) and not listed:
        yield f"  {report.problems:,} problems in all; list them with --rejects FILE"
    if unknown:
        yield f"  --box-space names sources that are not there: {', '.join(unknown)}"
    if flags := report.needs.flags(report.kind):
        yield "  all that can be used fits into: " + " ".join(flags)


def _build(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    if args.checkpoint is None:
        raise UserError("--checkpoint: a build needs one, for the lengths of its records")
    source, guess = _opened(args, args.file)
    limits = ("max_tokens", "min_pixels", "max_pixels")
    settings = BuildSettings(
        source.kind or "",
        system_prompt=_prompt(args.system_prompt),
        box_space=source.box_space or "normalized",
        columns=source.columns,
        **{n: getattr(args, n) for n in (*limits, "on_duplicate", "shard_records", "shard_images")},
    )
    manifest = build(
        source,
        args.out,
        args.checkpoint,
        settings,
        gold_problems=gold_problems,
        workers=args.workers,
        show_progress=not args.quiet,
    )
    kept, read = manifest["kept"], manifest["read"]
    print(f"{args.out}: {kept:,} of {read:,} records kept ({source.kind})")
    if guess:
        print(f"  {guess}")
    for name, counts in manifest["sources"].items():
        kept = counts.get("records", 0)
        mean = counts.get("tokens", 0) / kept if kept else 0.0
        print(
            f"  {name}: {kept:,} kept, {counts.get('rejected', 0):,} rejected, "
            f"{mean:,.0f} tokens a sample"
        )
    for reject in islice(iter_rejects(args.out), 10):
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


def _convert(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    source, guess = _opened(args, args.file)
    if args.images is None:
        raise UserError("--images: name the folder that images are written to")
    done = convert(
        source, local_path(args.out), local_path(args.images), show_progress=not args.quiet
    )
    print(f"{args.out}: {done.records:,} of {len(source):,} records written ({source.kind})")
    print(f"  {done.images:,} images written below {args.images}")
    print("".join(f"  {line}\n" for line in [*([guess] if guess else []), *done.left_out.lines()]))
    return 1 if len(done.left_out) else 0


def _show(args: argparse.Namespace, gold_problems: GoldProblems | None) -> int:
    source = _source(args, args.file)
    record, reader = find_record(source, args.which), _preprocessor(args)
    seen = args.images is not None or not source.needs_root
    facts = [source.look(record, n) for n in range(len(record.images))] if seen else None
    print(describe(record, facts, reader, args.window_units))
    if gold_problems is not None and record.verifier_type and record.gt is not None:
        verdict = Judge(gold_problems, reader)([record], [facts or ()])[0]
        found = [problem.reason for problem in verdict.problems if problem.field == "gt"]
        print(f"\ngold check: {'; '.join(found) or 'fine'}")
    return 0


def _preprocessor(args: argparse.Namespace) -> Preprocessor | None:
    prompt, limits = _prompt(args.system_prompt), (args.min_pixels, args.max_pixels)
    if args.checkpoint is None:
        return None
    return Preprocessor.from_dir(args.checkpoint, *limits, prompt)


def _read(flag: str, reads: Callable[[str], Any], text: str) -> Any:
    try:
        return reads(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error


def _prompt(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return read_text(local_path(value[1:])).rstrip("\n")
    except FileNotFoundError:
        raise UserError(f"--system-prompt {value}: does not exist") from None
