"""The embedded sources: drawn images in the public forms of the real sources, a few of each.

So that the tiny run goes through the same adapters as the real data.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_jax.data.synthetic.dataset import samples
from vlaa_jax.data.synthetic.sample import SyntheticSample

SOURCES = ("clevr_math", "geoqa170k", "math_puma", "arxivqa", "allava_laion", "coco", "vg")
_SOURCE_OF = {"synthesis": "math_puma"}


@dataclass(frozen=True)
class Drawn:
    """A drawn sample, where it went, and what a captioner would say of it."""

    source: str
    sample: SyntheticSample
    caption: str
    image: bytes


def draw(count: int, seed: int) -> list[Drawn]:
    """Draw samples; the same count and seed give the same ones."""
    from io import BytesIO

    drawn = []
    for index, sample in enumerate(samples("pipeline", count, seed)):
        buffer = BytesIO()
        sample.image.save(buffer, "PNG", compress_level=1)
        source = _SOURCE_OF.get(sample.source, sample.source)
        caption = sample.caption or f"Drawing {index} of simple shapes. {sample.reasoning}"
        if source == "allava_laion":
            caption = f"Drawing {index}. {sample.gt}"
        drawn.append(Drawn(source, sample, caption, buffer.getvalue()))
    return drawn


def write_sources(root: Path, drawn: list[Drawn]) -> str:
    """Write the folders of all sources; returns the ``collect.sources`` that reads them."""
    by_source: dict[str, list[tuple[int, Drawn]]] = {}
    for index, one in enumerate(drawn):
        by_source.setdefault(one.source, []).append((index, one))
    for source, found in by_source.items():
        folder = root / source
        rows: dict[str, list[dict[str, Any]]] = {}
        for index, one in found:
            image, lines = _FORMS[source](index, one)
            path = folder / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(one.image)
            for name, row in lines.items():
                rows.setdefault(name, []).append(row)
        for name, lines_ in rows.items():
            text = "\n".join(json.dumps(row, ensure_ascii=False) for row in lines_)
            (folder / name).write_text(text + "\n", encoding="utf-8")
    return ",".join(f"{source}={root / source}" for source in by_source)


_Form = Callable[[int, Drawn], tuple[str, dict[str, dict[str, Any]]]]


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def _conversation(index: int, one: Drawn) -> tuple[str, dict[str, dict[str, Any]]]:
    name = f"{one.sample.family}_{index:06d}"
    image = f"images/{name}.png"
    answer = f"Answer: {one.sample.gt}" if one.source == "geoqa170k" else one.sample.gt
    talk = _talk(one.sample.question, answer)
    return image, {"train.jsonl": {"id": name, "image": image, "conversations": talk}}


def _puma(index: int, one: Drawn) -> tuple[str, dict[str, dict[str, Any]]]:
    image = f"images/{one.sample.family}_{index:06d}.png"
    solution = f"{one.sample.reasoning}\n†Answer: {one.sample.gt}"
    textual = f"{one.caption}\n{one.sample.question}"
    row = {"image_url": "", "instruction": textual, "output": solution}
    other = {"image_url_2": image, "instruction_2": one.sample.question, "output_2": solution}
    return image, {"train.json": row | other}


def _arxivqa(index: int, one: Drawn) -> tuple[str, dict[str, dict[str, Any]]]:
    image = f"images/{index:06d}.png"
    question, *options = one.sample.question.replace("\nChoices:", "").split("\n")
    lettered = [f"{option[0]}) {option[2:].strip()}" for option in options]
    row = {"id": f"arxiv-{index}", "image": image, "question": question, "options": lettered}
    return image, {"arxivqa.jsonl": {**row, "label": one.sample.gt, "rationale": ""}}


def _allava(index: int, one: Drawn) -> tuple[str, dict[str, dict[str, Any]]]:
    image = f"allava_laion/images/{index}.png"
    talk, told = _talk(one.sample.question, one.sample.gt), _talk("Describe it.", one.caption)
    url = "https://example.org/"
    inst = {"id": f"allava_laion_inst_{index}", "image": f"/{image}", "conversations": talk}
    cap = {"id": f"allava_laion_cap_{index}", "image": image, "conversations": told}
    return image, {
        "ALLaVA-Instruct-LAION-4V.json": {**inst, "url": url},
        "ALLaVA-Caption-LAION-4V.json": {**cap, "url": url},
    }


def _cot(index: int, one: Drawn) -> tuple[str, dict[str, dict[str, Any]]]:
    folder = "coco/train2017" if one.source == "coco" else "vg/VG_100K"
    image = f"{folder}/{index:06d}.png"
    parts = {"SUMMARY": "I look for it.", "CAPTION": one.caption, "REASONING": one.sample.reasoning}
    parts["CONCLUSION"] = one.sample.answer
    text = "\n\n".join(f"<{name}> {part} </{name}>" for name, part in parts.items())
    talk = _talk(one.sample.question, text)
    return image, {"train.jsonl": {"id": str(index), "image": image, "conversations": talk}}


_FORMS: dict[str, _Form] = {
    "clevr_math": _conversation,
    "geoqa170k": _conversation,
    "math_puma": _puma,
    "arxivqa": _arxivqa,
    "allava_laion": _allava,
    "coco": _cot,
    "vg": _cot,
}
