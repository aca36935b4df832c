"""One offline page: the leaderboard's table, the benchmarks, wrong answers with their images."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from PIL import Image

from vlaa_jax.data.images.files import decode_image
from vlaa_jax.evaluate.questions import Questions
from vlaa_jax.evaluate.report.write import interval, table_rows, verdict_lines
from vlaa_jax.evaluate.results import Result
from vlaa_jax.evaluate.scoring_run import Scoring
from vlaa_jax.schema import UserError

_SHOWN_CHARS = 4_000
_THUMB = 360
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .6rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #8883 }
tr.ours { font-weight: 600 } .wrong { border: 1px solid #8885; padding: .8rem; margin: .8rem 0 }
.wrong img { max-width: 360px; float: right; margin-left: 1rem } .wrong::after { content: "";
display: block; clear: both } pre { white-space: pre-wrap; overflow-wrap: anywhere } mark {
background: #fd6 } .quiet { opacity: .75 } :root { color-scheme: light dark }
"""

Pair = tuple[Scoring, Questions]


def page(name: str, found: Sequence[Pair], provenance: Mapping[str, Any], wrong_shown: int) -> str:
    """The page as HTML without anything from outside.

    Args:
        name: of the run.
        found: benchmarks with their questions.
        provenance: what decided the numbers.
        wrong_shown: wrong answers of each benchmark.
    """
    results = [scoring.result for scoring, _ in found]
    parts = [f"<h1>{html.escape(name)}</h1>", _leaderboard(results, name)]
    for scoring, questions in found:
        parts += [_benchmark(scoring.result), *_wrong(scoring, questions, wrong_shown)]
    parts.append("<h2>Provenance</h2>" + _table([[k, str(v)] for k, v in provenance.items()]))
    head = f"<meta charset=utf-8><title>{html.escape(name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _leaderboard(results: Sequence[Result], name: str) -> str:
    rows = table_rows(results, name)
    note = "<p class=quiet>Rows above the last are as printed in the paper (arXiv 2504.11468).</p>"
    return _table(rows[1:], rows[0], ours=len(rows) - 2) + note


def _benchmark(result: Result) -> str:
    facts: list[list[str]] = [
        ["Score with 95 % interval", interval(result.estimate)],
        ["Counting all without a verdict as wrong", _number(result.as_original)],
        [
            "Decided by",
            ", ".join(f"{path} {count:,}" for path, count in result.counts.paths.items()),
        ],
        ["Score of what rules decided", _number(result.counts.by_rule)],
        ["Without think text, first sample", interval(result.without_think)],
        [
            "Cut at the limit of tokens",
            f"{result.counts.truncated:,}, right {result.counts.truncated_right:,}",
        ],
        ["No answer found", f"{result.counts.not_extracted:,}"],
        ["Changed by the original's storage", f"{result.counts.changed_by_storage:,}"],
        [
            "Characters, mean and median",
            " / ".join(f"{n:,.0f}" for n in result.counts.characters.values()),
        ],
        ["New tokens, mean", _number(result.counts.tokens)],
    ]
    facts += [[label, interval(value)] for label, value in result.others.items()]
    if result.spread:
        spread = f"{result.spread.deviation:.2f} over {result.spread.samples} samples"
        facts.append(["Standard deviation", spread])
        facts += [[f"pass@{k}", _number(value)] for k, value in result.pass_at.items()]
        facts.append(["Questions whose samples agree", _number(result.agreement)])
    if result.difference:
        p_value = f", p = {result.difference.p_value:.3g}"
        facts.append(["Against the baseline", interval(result.difference) + p_value])
    withheld = f"<p><b>No headline:</b> {html.escape(result.withheld)}</p>"
    title = f"<h2>{html.escape(result.benchmark.title)}</h2>"
    return title + (withheld if result.withheld else "") + _table(facts) + _breakdown(result)


def _breakdown(result: Result) -> str:
    header = list(dict.fromkeys(key for line in result.table for key in line))
    rows = [[_shown(line.get(key)) for key in header] for line in result.table]
    if len(rows) == 1:
        return _table([[key, cell] for key, cell in zip(header, rows[0], strict=True)])
    return _table(rows, header)


def _wrong(scoring: Scoring, questions: Questions, most: int) -> list[str]:
    wrong = (line for line in verdict_lines(scoring) if not line["hit"] and not line["sample"])
    return [
        _one_wrong(line, questions, scoring.places[line["index"]]) for line in islice(wrong, most)
    ]


def _one_wrong(line: Mapping[str, Any], questions: Questions, place: int) -> str:
    question = str(questions.rows[place].get("question"))
    facts = f"gold <b>{_escaped(line['gold'])}</b>, extracted <b>{_escaped(line['extracted'])}</b>"
    facts += f", {line['path']}" + (f": {_escaped(line['reason'])}" if line["reason"] else "")
    text = _marked(line["scored_text"], line["span"])
    return (
        f"<div class=wrong>{_thumbnails(questions, place)}<b>{_escaped(line['index'])}</b> {facts}"
        f"<pre class=quiet>{_escaped(question[:_SHOWN_CHARS])}</pre><pre>{text}</pre></div>"
    )


def _marked(text: str, span: Sequence[int] | None) -> str:
    if span is None:
        return _escaped(text[-_SHOWN_CHARS:])
    start, end = span
    first = max(0, start - _SHOWN_CHARS // 2)
    last = end + _SHOWN_CHARS // 2
    inside = f"<mark>{_escaped(text[start:end])}</mark>"
    return _escaped(text[first:start]) + inside + _escaped(text[end:last])


def _thumbnails(questions: Questions, place: int) -> str:
    try:
        decoded = [decode_image(data) for data in questions.images(place)]
    except UserError as error:
        return f"<span class=quiet>{_escaped(error)}</span>"
    return "".join(f'<img alt="" src="{_thumbnail(image)}">' for image in decoded)


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_THUMB, _THUMB))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), ours: int = -1) -> str:
    lines = ["<table>"]
    if header:
        lines.append("<tr>" + "".join(f"<th>{_escaped(cell)}</th>" for cell in header) + "</tr>")
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{_escaped(cell)}</td>" for cell in row)
        lines.append(f"<tr{' class=ours' if place == ours else ''}>{cells}</tr>")
    return "".join(lines) + "</table>"


def _escaped(value: object) -> str:
    return html.escape("–" if value is None else str(value))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "–" if value is None else str(value)
