"""Counting hits by group, as the printed tables do."""

from collections.abc import Callable, Iterable, Sequence

from vlaa_jax.data.records.literals import parse_literal
from vlaa_jax.evaluate.nouns import Line, Row, RowError, Scored, Unit
from vlaa_jax.evaluate.scoring.options import lettered
from vlaa_jax.evaluate.scoring.storage import Cell, as_text


def accuracy_lines(
    scored: Sequence[Scored],
    groups: Callable[[Row], Iterable[str]],
    heading: str,
    *,
    prefetched: bool = True,
) -> list[Line]:
    """A line for all rows and one for each group, in order of appearance.

    Args:
        scored: rows with their verdicts.
        groups: of a row; a group that is named twice counts twice.
        heading: of the first column.
        prefetched: whether to count what rules decided.
    """
    counts: dict[str, list[int]] = {}
    for one in scored:
        for group in ("Overall", *groups(one.row)):
            total = counts.setdefault(group, [0, 0, 0])
            total[0] += 1
            total[1] += one.verdict.path == "rule"
            total[2] += one.verdict.hit
    lines = []
    for group, (rows, by_rule, hits) in counts.items():
        line: Line = {heading: group, "tot": rows}
        if prefetched:
            line |= {"prefetch": by_rule, "hit": hits, "prefetch_rate": by_rule / rows * 100}
        lines.append(line | {"hit": hits, "acc": hits / rows * 100})
    return lines


def row_units(scored: Sequence[Scored]) -> list[Unit]:
    """Every row for itself."""
    keys = [as_text(one.row["index"]) for one in scored]
    return [
        Unit(key, float(one.verdict.hit), key, one.verdict.known)
        for key, one in zip(keys, scored, strict=True)
    ]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None


def listed(cell: Cell) -> list[str]:
    """The texts of a cell that holds a Python list; what is no list is its only element."""
    text = as_text(cell)
    try:
        value = parse_literal(text)
    except ValueError:
        return [text]
    return [str(item) for item in value] if isinstance(value, list | tuple) else [text]


def listed_options(row: Row) -> dict[str, str]:
    """The options in the column ``choices`` by letter; none for a free-form question.

    Raises:
        RowError: the column holds no list.
    """
    try:
        value = parse_literal(as_text(row["choices"]))
    except ValueError:
        value = None
    if not isinstance(value, list | tuple):
        raise RowError("choices is no list")
    return lettered([str(item) for item in value])
