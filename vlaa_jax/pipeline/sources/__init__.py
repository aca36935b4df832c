"""The nine sources of VLAA-Thinking: one adapter and one row each.

An adapter takes a folder and yields, for each place of the source, a function that makes a Row of
it or raises Unusable; nothing is read of images until they are wanted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vlaa_jax.pipeline.sources.allava import allava_laion
from vlaa_jax.pipeline.sources.arxivqa import arxivqa
from vlaa_jax.pipeline.sources.docvqa import docvqa
from vlaa_jax.pipeline.sources.formats import Row
from vlaa_jax.pipeline.sources.llava_cot import llava_cot
from vlaa_jax.pipeline.sources.llava_onevision import clevr_math, geoqa170k
from vlaa_jax.pipeline.sources.math_puma import math_puma
from vlaa_jax.pipeline.sources.vizwiz import vizwiz

Adapter = Callable[[Path], Iterator[tuple[str, Callable[[], Row]]]]


@dataclass(frozen=True)
class Source:
    """One row of the table."""

    title: str
    adapter: Adapter
    folder: str
    """Folder of its images below the image root, as released; the source name of its records."""
    verifier_type: str
    license: str
    published: tuple[int | None, int | None, int | None, int | None]
    """The paper's counts: original, after the pipeline, SFT, RL."""
    wants_caption: bool = True
    """Whether step 2 asks for a caption where the row brings none."""
    uses: tuple[str, ...] = ("sft", "rl")


_COT = "Apache-2.0 (traces); images under the terms of"
SOURCES = {
    "clevr_math": Source(
        *("CLEVR-Math", clevr_math, "clevr_math", "digit", "CC-BY-4.0"),
        (35_000, 28_018, 5_923, 2_000),
    ),
    "geoqa170k": Source(
        *("GeoQA170K", geoqa170k, "geoqa170k", "mcq", "Apache-2.0 (LLaVA-OneVision-Data)"),
        (None, None, None, 6_499),
        wants_caption=False,  # captions of these drawings are made up too often: RL only
        uses=("rl",),
    ),
    "math_puma": Source(
        *("Math PUMA", math_puma, "synthesis", "math", "GPL-3.0"),
        (30_000, 26_672, 19_258, 6_696),
        wants_caption=False,
    ),
    "arxivqa": Source(
        *("ArxivQA", arxivqa, "arxivqa", "mcq", "CC-BY-SA-4.0"),
        (54_399, 51_348, 34_604, 1_000),
    ),
    "docvqa": Source(
        *("DocVQA", docvqa, "docvqa", "open_ended", "terms of docvqa.org and UCSF IDL"),
        (10_194, 8_206, 4_897, 1_000),
    ),
    "vizwiz": Source(
        *("VizWiz", vizwiz, "vizwiz", "open_ended", "CC-BY-4.0"),
        (20_523, 6_528, 4_266, 1_000),
    ),
    "allava_laion": Source(
        *("ALLaVA-LAION", allava_laion, "allava_laion", "open_ended"),
        "Apache-2.0 (texts); images belong to their owners",
        (47_066, 18_123, 10_496, 3_000),
    ),
    "coco": Source(
        *("LLaVA-CoT COCO", llava_cot("coco/"), "coco", "iou", f"{_COT} Flickr"),
        (3_000, 3_000, 8_727, 2_000),
        wants_caption=False,
    ),
    "vg": Source(
        *("LLaVA-CoT VG", llava_cot("vg/"), "vg", "iou", f"{_COT} CC-BY-4.0"),
        (3_000, 3_000, 38_242, 2_000),
        wants_caption=False,
    ),
}
