"""What a text becomes in a spreadsheet and back, as in VLMEvalKit by default.

Predictions, extractions and gold columns all go through one there (pandas, xlsxwriter, openpyxl),
and some verdicts hang on it: empty texts and words for a missing value come back as missing, which
is then read as ``nan``.
"""

import re

from vlaa_jax.evaluate.scoring.profiles import Profile

Cell = str | int | None
"""A text; 0 in place of a formula; None where the cell came back missing."""

MAX_UNITS = 32_767
"""UTF-16 units of a cell; the rest is cut."""
MAX_ADDRESS = 2_079
"""A text that begins like an address and is longer is dropped."""

MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
"""What pandas reads as a missing value."""
_ADDRESS = re.compile(r"(?:ftp|http)s?://|(mailto:|internal:|external:)")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")


def stored(text: str | None, profile: Profile) -> Cell:
    """The cell that the scorer reads in place of a text; the text itself without a spreadsheet."""
    if not profile.spreadsheet or text is None:
        return text
    if profile.formulas and (text[:1] == "=" or (text[:2] == "{=" and text[-1] == "}")):
        return 0
    address = _ADDRESS.match(text)
    if address and len(text) > MAX_ADDRESS:
        return None
    if address and address[1]:
        text = text[address.end() :]
    if text in MISSING:
        return None
    return spreadsheet_safe(text)


def spreadsheet_safe(text: str) -> str:
    """A text as a cell can hold it: cut, and control characters spelled out."""
    return _CONTROL.sub(lambda match: f"_x{ord(match[0]):04X}_", _cut(text))


def as_text(cell: Cell) -> str:
    """The text that the original's rules see; a missing cell reads ``nan``."""
    return "nan" if cell is None else str(cell)


def _cut(text: str) -> str:
    if len(text) <= MAX_UNITS // 2:
        return text
    units = text.encode("utf-16-le", "surrogatepass")
    if len(units) <= 2 * MAX_UNITS:
        return text
    return units[: 2 * MAX_UNITS].decode("utf-16-le", "ignore")
