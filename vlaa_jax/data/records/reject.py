"""Why a record cannot be used: what is raised, and what is listed."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reject:
    """One record that was refused, and why."""

    file: str
    index: int
    """Position in the file from 0."""
    line: int | None
    """Line number from 1 in JSON Lines; None in an array."""
    id: str
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line is not None else f"record {self.index}"
        name = f" (id {self.id!r})" if self.id else ""
        field = f"field '{self.field}': " if self.field else ""
        return f"{self.file}: {place}{name}: {field}{self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """The reject as one JSON object of a rejects file."""
        return asdict(self)


class Refusal(Exception):
    """A record cannot be used: which field, and why."""

    def __init__(self, field: str, reason: str, record_id: str = "") -> None:
        super().__init__(reason)
        self.field, self.reason, self.record_id = field, reason, record_id
