"""One offline page of a few samples with what every step made of them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from vlaa_jax import disk
from vlaa_jax.data.images.files import resolve_inside
from vlaa_jax.endpoint import image_data_url
from vlaa_jax.pipeline.sample import Outcome, Sample

PAGE = "preview.html"
_MAX_IMAGE_BYTES = 4 << 20


def spread(
    samples: Iterable[tuple[int, Sample]], total: int, count: int
) -> Iterator[tuple[int, Sample]]:
    """``count`` of the samples, evenly over all sources."""
    chosen = {index * total // count for index in range(min(count, total))}
    return (entry for entry in samples if entry[0] in chosen)


def write_preview(outcomes: Iterable[Outcome], image_root: Path, path: Path, note: str) -> None:
    """Write the page; everything that came from outside is escaped, and nothing is fetched."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True)
    )
    cards = [_card(outcome, image_root) for outcome in outcomes]
    page = environment.get_template("preview.html.jinja").render(cards=cards, note=note)
    disk.write_text(path, page)


def _card(outcome: Outcome, image_root: Path) -> dict[str, Any]:
    sample = outcome.sample
    file = resolve_inside(image_root, sample.image)
    small = file.stat().st_size <= _MAX_IMAGE_BYTES
    rewritten = sample.trace if sample.thought and sample.trace != sample.distilled else ""
    return {
        "sample": sample,
        "image": image_data_url(file) if small else "",
        "state": outcome.state,
        "step": outcome.step,
        "reason": outcome.reason,
        "parts": [
            ("question", sample.question),
            ("known from the source", sample.context),
            (f"caption ({sample.caption_model})", sample.caption),
            ("trace", sample.distilled),
            ("trace after rewriting", rewritten),
            ("verdict", sample.verdict),
            ("difficulty", ", ".join(f"{k} {v:g}" for k, v in sample.difficulty.items())),
            ("why it was left out", outcome.detail),
        ],
    }
