"""The command line of the rewards: JSON lines in, one JSON line out for each, in the same order."""

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from vlaa_jax import disk
from vlaa_jax.foreign import parse_json
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rewards.verifier import reason
from vlaa_jax.schema import BOX_SPACES, VERIFIER_TYPES, Score, ScoreRequest, UserError, gold_text
from vlaa_jax.settings.rewards import OPEN_ENDED_BACKENDS, RewardSettings

FIELDS = {field.name for field in dataclasses.fields(ScoreRequest)} - {"extra"}
"""Of an input object; others reach a reward of one's own, and are named at the end elsewhere."""
MAX_LINE_BYTES = 64 << 20
MAX_SIDE = 10**6
"""Pixels; no image is wider or higher."""
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = f"""\
Score model outputs. Each input line is a JSON object with verifier_type
({", ".join(VERIFIER_TYPES)}), gt and response (the whole output, think block included),
and optionally id, question, image_size [w, h], resized_size [w, h], box_space and images
[path, ...]. Each output line has id, reward (a number, or null where it could not be scored),
parts, extracted, verifier_type and error. A summary goes to stderr. Exit code: 0 all scored, 1 some
line could not be read or scored, 2 usage.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(_parser().parse_args(argv))  # of the settings those that were given
    file, batch = options.pop("file"), options.pop("batch")
    name = "standard input" if file == "-" else file
    table = _Table()
    try:
        settings = RewardSettings(**options)
        with (
            disk.refusals(Path("standard output"), "run the command again"),
            _opened(file) as stream,
            MixedReward(settings) as mixed,
        ):
            for lines in read_batches(stream.fileno(), batch):
                for output, score in score_lines(lines, mixed, name, table.ignored):
                    sys.stdout.write(json.dumps(output, allow_nan=False) + "\n")
                    table.add(score)
                sys.stdout.flush()
        code = EXIT_FAILED if table.failed else EXIT_OK
    except UserError as error:
        disk.end_output()
        print(f"error: {_as_flags(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        disk.end_output()  # the reader has gone
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    print(table.text(options.get("open_ended", RewardSettings.open_ended)), file=sys.stderr)
    return code


def read_batches(descriptor: int, limit: int) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines as they arrive, so that a slow producer is answered at once.

    Yields the complete lines that one read brought, at most ``limit`` at a time, without blanks.
    """
    number, partial = 0, bytearray()
    while True:
        piece = os.read(descriptor, 1 << 18)
        head, newline, tail = piece.rpartition(b"\n")
        if piece and not newline:
            if len(partial) <= MAX_LINE_BYTES:  # beyond, it is refused whatever follows
                partial += piece
            continue
        lines = bytes(partial + head).split(b"\n")
        partial = bytearray(tail)
        numbered = [(number + i, line) for i, line in enumerate(lines, 1) if line.strip()]
        number += len(lines)
        for start in range(0, len(numbered), limit):
            yield numbered[start : start + limit]
        if not piece:
            return


def score_lines(
    lines: Sequence[tuple[int, bytes]],
    mixed: MixedReward,
    name: str = "standard input",
    ignored: Counter[str] | None = None,
) -> list[tuple[dict[str, Any], Score]]:
    """Output objects with their scores, in order; that of an unreadable line is a failed one.

    ``name`` is the file's, for messages; ``ignored`` counts the fields that nobody reads.
    """
    read: list[tuple[Any, ScoreRequest | Score]] = []
    for number, line in lines:
        row: dict[str, Any] = {}
        try:
            row = read_object(line)
            read.append((row.get("id"), read_request(row)))
            if ignored is not None and row["verifier_type"] != "custom":
                ignored.update(row.keys() - FIELDS)
        except Exception as error:  # whatever is in a line, the others get their answers
            identity, kind = (row.get(field) for field in ("id", "verifier_type"))
            problem = f"{name} line {number}: {reason(error)}"
            failed = Score(math.nan, kind if kind in VERIFIER_TYPES else "", error=problem)
            read.append((identity if isinstance(identity, (str, int)) else None, failed))
    scores = iter(mixed.score([said for _, said in read if isinstance(said, ScoreRequest)]))
    told = [(i, said if isinstance(said, Score) else next(scores)) for i, said in read]
    return [(output_line(identity, score), score) for identity, score in told]


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line; ValueError where it holds something else."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
    # Broken UTF-8 in one line must not end the run; sampled text has it now and then.
    row = parse_json(line.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff"))
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def read_request(row: dict[str, Any]) -> ScoreRequest:
    """The request in an input object; ValueError says which field is wrong."""
    for field in _REQUIRED:
        if field not in row:
            present = ", ".join(map(repr, list(row)[:12])) or "none"
            raise ValueError(f"field {field!r} is missing (fields here: {present})")
    for field, (is_right, problem) in _FIELD_CHECKS.items():
        value = row.get(field)
        if (value is not None or field in _REQUIRED) and not is_right(value):
            raise ValueError(f"field {field!r} {problem.format(type(value).__name__)}")
    sizes = (row.get("image_size"), row.get("resized_size"))
    image_size, resized_size = (size and (int(size[0]), int(size[1])) for size in sizes)
    try:
        gold = gold_text(row["gt"])
    except ValueError as error:
        raise ValueError(f"field 'gt': {error}") from None
    return ScoreRequest(
        verifier_type=row["verifier_type"],
        gt=gold,
        response=row["response"],
        id="" if row.get("id") is None else str(row["id"]),
        question=row.get("question") or "",
        image_size=image_size,
        resized_size=resized_size,
        box_space=row.get("box_space"),
        images=tuple(row.get("images") or ()),
        extra={name: value for name, value in row.items() if name not in FIELDS},
    )


def output_line(identity: Any, score: Score) -> dict[str, Any]:
    """A score as the object that is written; NaN becomes null."""
    return {
        "id": identity,
        "reward": _finite(score.reward),
        "parts": {name: _finite(value) for name, value in score.parts.items()},
        "extracted": score.extracted,
        "verifier_type": score.verifier_type or None,
        "error": score.error and _as_flags(score.error),
    }


def _as_flags(message: str) -> str:
    """Settings named as the flags of this command."""
    return re.sub(r"\brewards\.([a-z_]+)", lambda m: "--" + m[1].replace("_", "-"), message)


class _Table:
    """Counts per verifier type, for stderr."""

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {}
        self.ignored: Counter[str] = Counter()

    @property
    def failed(self) -> bool:
        return any(failed for _, _, failed, _ in self._rows.values())

    def add(self, score: Score) -> None:
        raw = 0.0 if score.failed else score.parts["raw"]
        counted = (1, score.extracted is not None, score.failed, raw)
        row = self._rows.setdefault(score.verifier_type or "(unreadable)", [0.0] * 4)
        row[:] = map(sum, zip(row, counted, strict=True))

    def text(self, backend: str) -> str:
        lines = [f"{'verifier':14} {'lines':>8} {'extracted':>10} {'failed':>8} {'mean':>8}"]
        for name, (count, extracted, failed, total) in sorted(self._rows.items()):
            mean = f"{total / (count - failed):8.4f}" if count > failed else f"{'-':>8}"
            lines.append(f"{name:14} {count:8.0f} {extracted:10.0f} {failed:8.0f} {mean}")
        if "open_ended" in self._rows:
            said = f"were scored by {backend}"
            if backend == "none":
                said = "have no score: choose --open-ended (see docs/rewards.md)"
            lines.append(f"open-ended answers {said}")
        for field, count in self.ignored.most_common():
            near = difflib.get_close_matches(field, FIELDS, 1, 0.7)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"field {field!r} was ignored on {count} lines{hint}")
        return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlaa_jax.rewards",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("file", help="JSON lines; - reads standard input")
    add("--batch", type=_positive, default=256, help="most lines scored together (default 256)")
    add(
        "--open-ended",
        choices=[b for b in OPEN_ENDED_BACKENDS if b != "reward_head"],
        help="what scores open-ended answers (default none: they get null; text_similarity is "
        "offline and no reward model)",
    )
    add("--endpoint-url", help="base URL of the score endpoint or chat judge")
    add("--endpoint-model", help="model name to send to it")
    add("--endpoint-key-env", help="environment variable with its token")
    add("--endpoint-timeout-s", type=float, help="deadline of one item in seconds")
    add("--beta", type=float, help="smoothing of the open-ended reward")
    add("--math-workers", type=int, help="processes for mathematics")
    add("--math-timeout-s", type=float, help="CPU seconds one comparison may take")
    add("--custom", metavar="FILE.py:FUNCTION", help="scores lines of the verifier type custom")
    add("--answer-box-space", choices=BOX_SPACES, help="space the model's boxes are in")
    add("--format-weight", type=float, help="share of the reward for strict structure")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _opened(name: str) -> FileIO:
    """A file to read, or standard input for ``-``."""
    try:
        at = sys.stdin.fileno() if name == "-" else name
        return open(at, "rb", buffering=0, closefd=name != "-")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None


def _is_size(value: Any) -> bool:
    sides: list[Any] = value if isinstance(value, list) and len(value) == 2 else [None]
    return all(type(side) in (int, float) and 1 <= side <= MAX_SIDE for side in sides)


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(path, str) for path in value)


_REQUIRED = ("verifier_type", "gt", "response")
_TEXT = (lambda value: isinstance(value, str), "must be text, is {}")
_SIZE = (_is_size, f"must be [width, height], from 1 to {MAX_SIDE:,} each")
_FIELD_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (lambda value: isinstance(value, (str, int)), "must be text or a whole number"),
    "box_space": (lambda value: value in BOX_SPACES, f"must be one of {', '.join(BOX_SPACES)}"),
    "image_size": _SIZE,
    "resized_size": _SIZE,
    "images": (_are_paths, "must be a list of paths"),
    "verifier_type": _TEXT,
    "response": _TEXT,
    "question": _TEXT,
}
"""What is right in a field, and how it is said that something is not; {} is the type of that."""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
