"""What a check found, gathered by kind: how many of each, and the first by its place."""

import re
from collections import Counter

from vlaa_jax.data.records.reject import Reject

MAX_KINDS = 200
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d,.]*")
_REST = ("", "of further kinds")


class Findings:
    """Counts rejects that differ only in names and numbers as one kind."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], Reject] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, reject: Reject) -> None:
        """Count one."""
        kind = reject.field, _PARTICULAR.sub("#", reject.reason[:300])
        if kind not in self._first and len(self._first) >= MAX_KINDS:
            kind = _REST
        self._first.setdefault(kind, reject)
        self._counts[kind] += 1

    def __len__(self) -> int:
        return len(self._first)

    def total(self) -> int:
        """How many there are of all kinds."""
        return self._counts.total()

    def first(self) -> str:
        """The first by its place, and how many others there are, by field; one line."""
        first = min(self._first.values(), key=lambda reject: reject.index)
        if self.total() == 1:
            return str(first)
        fields: Counter[str] = Counter()
        for (field, _), count in self._counts.items():
            fields[field or "form"] += count
        counts = ", ".join(f"{field} {count:,}" for field, count in fields.most_common())
        return f"{first}; {self.total():,} records cannot be used (by field: {counts})"

    def lines(self) -> list[str]:
        """A line for each kind, the most frequent first: its first place, and how many."""
        found = []
        for kind, count in self._counts.most_common():
            more = f" ({count:,} like this)" if count > 1 else ""
            found.append(f"{self._first[kind]}{more}")
        return found
