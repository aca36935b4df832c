"""Held-out answers as a page: image, question, gold, and what the policy said for how much."""

import base64
import html
import mimetypes
from collections.abc import Sequence
from pathlib import Path

from vlaa_jax.data.images import resolve_inside
from vlaa_jax.policy.groups import Groups

LARGEST_IMAGE = 2_000_000
"""Bytes; larger files are named, not shown, so that a page stays a page."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
article { display: flex; gap: 1.5em; border-top: 1px solid #ccc; padding: 1em 0; }
img { width: 240px; height: auto; align-self: flex-start; image-rendering: pixelated; }
pre { white-space: pre-wrap; margin: .3em 0; padding: .4em .6em; background: #f4f4f4; }
.paid { border-left: 4px solid #2a9d4a; } .unpaid { border-left: 4px solid #c33; }
.failed { border-left: 4px solid #999; }
"""


def write_gallery(
    path: Path, title: str, groups: Groups, image_root: Path, *, per_type: int = 3
) -> None:
    """Writes an HTML page with the first records of every verifier type.

    Args:
        path: the page.
        title: its heading.
        groups: held-out prompts, completions and scores.
        image_root: folder of the images; they are put into the page.
        per_type: records of each verifier type.
    """
    seen: dict[str, int] = {}
    articles = []
    for p, prompt in enumerate(groups.prompts):
        kind = prompt.record.verifier_type or ""
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= per_type:
            articles.append(_article(groups, p, image_root))
    page = (
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(articles)}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _article(groups: Groups, p: int, image_root: Path) -> str:
    record, count = groups.prompts[p].record, groups.rollout.length_PG.shape[1]
    answers = []
    for text, score in zip(groups.texts[p], groups.scores[p * count :][:count], strict=True):
        paid = "failed" if score.failed else "paid" if score.reward > 0 else "unpaid"
        amount = "failed" if score.failed else f"{score.reward:.2f}"
        answers.append(f"<pre class='{paid}'>{amount}  {html.escape(text)}</pre>")
    heading = f"{record.verifier_type} &middot; {html.escape(str(record.id))}"
    return (
        f"<article><div>{_images(record.images, image_root)}</div><div><b>{heading}</b>"
        f"<pre>{html.escape(record.question)}</pre>"
        f"gold: <code>{html.escape(record.gt or '')}</code>{''.join(answers)}</div></article>"
    )


def _images(names: Sequence[str], image_root: Path) -> str:
    shown = []
    for name in names:
        file = resolve_inside(image_root, name)
        kind = mimetypes.guess_type(name)[0] or "image/png"
        if file.stat().st_size > LARGEST_IMAGE:
            shown.append(f"<code>{html.escape(name)}</code>")
            continue
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        shown.append(f"<img alt='{html.escape(name, quote=True)}' src='data:{kind};base64,{data}'>")
    return "".join(shown)
