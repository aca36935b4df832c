"""The page: one HTML file with its data, its script and its style, that loads nothing.

Texts of models and data sets reach it as JSON in a script element that no text can end (`dump`),
and the script puts them on the page as text, never as markup. A policy in the head backs this up:
only the script with the digest given there may run, and nothing may be fetched.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vlaa_jax import disk
from vlaa_jax.report.contents import dump, run_contents
from vlaa_jax.report.record import RunRecord
from vlaa_jax.schema import printable

MAX_BYTES = 20_000_000
"""Of a page."""
FILE = "report.html"
_SCRIPTS = ("elements.js", "charts.js", "sample.js", "rollouts.js", "main.js")
_SPARE = 20_000
"""For commas, brackets and the head."""


def render(
    records: Sequence[RunRecord],
    *,
    max_bytes: int = MAX_BYTES,
    image_root: Path | None = None,
    live: bool = False,
) -> bytes:
    """The page of one run or several, overlaid.

    Args:
        records: the runs.
        max_bytes: of the page; what does not fit is sampled.
        image_root: folder of the images; None takes the one each run was given.
        live: the page asks its own server whether there is something new.

    Raises:
        UserError: a file of a run is damaged.
    """
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    style = _asset("report.css")
    left = max_bytes - len(script) - len(style) - _SPARE
    runs = [run_contents(record, left // len(records), image_root) for record in records]
    title = html.escape(printable(", ".join(record.name for record in records)))
    data = dump({"live": live, "runs": runs})
    connect = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_digest(script)}'; "
        f"style-src '{_digest(style)}'; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f'<style>{style}</style></head><body><div id="page"></div>'
        f'<script type="application/json" id="data">{data}</script>'
        f"<script>{script}</script></body></html>\n"
    )
    # A lone surrogate of a record has no bytes in UTF-8, but it has an escape in JSON.
    return page.encode("utf-8", "backslashreplace")


def write_report(path: Path, page: bytes) -> None:
    """Writes a page in one piece.

    Raises:
        UserError: it cannot be written.
    """
    with disk.refusals(path, "the page is not written"):
        disk.write_bytes(path, page)


def leave_report(workdir: Path) -> str:
    """Writes WORKDIR/report.html and says where; whatever hinders it is said, and no failure."""
    file = workdir / FILE
    try:
        write_report(file, render([RunRecord(workdir)]))
    except Exception as error:  # a run that trained for days does not end with a traceback
        reason = printable(" ".join(str(error).split())[:300]) or type(error).__name__
        return f"no report: {reason} (python -m vlaa_jax.report {workdir} tries again)"
    return f"report  {file}"


def _asset(name: str) -> str:
    return (files("vlaa_jax.report") / "assets" / name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
