"""A few answers to held-out records, with their images, for whoever watches a run."""

from pathlib import Path

import numpy as np

from vlaa_jax.data.images.files import open_image
from vlaa_jax.policy.groups import Groups
from vlaa_jax.schema import Score, UserError
from vlaa_jax.train.board import Shown

MOST = 8
"""Records that are shown, the same ones every time: the first of each verifier type by turns."""
SIDE = 384
"""Pixels of the longer side of a shown image."""


def samples(groups: Groups, images: Path | None) -> list[Shown]:
    """The first answers to some records.

    Args:
        groups: held-out records with their answers.
        images: image folder; None where records bring their own, which are not shown.
    """
    each = groups.rollout.length_PG.shape[1]
    return [
        (f"heldout/{p}", _image(groups, p, images), _words(groups, p, groups.scores[p * each]))
        for p in _by_turns([prompt.record.verifier_type or "" for prompt in groups.prompts])
    ]


def _by_turns(kinds: list[str]) -> list[int]:
    seen: dict[str, int] = {}
    turns = []
    for place, kind in enumerate(kinds):
        seen[kind] = seen.get(kind, -1) + 1
        turns.append((seen[kind], place))
    return sorted(place for _, place in sorted(turns)[:MOST])


def _image(groups: Groups, p: int, images: Path | None) -> np.ndarray | None:
    names = groups.prompts[p].record.images
    try:
        image = open_image(images, names[0]) if names and images else None
    except UserError:  # of a build, which brings its own
        return None
    if image is None:
        return None
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image.convert("RGB"))


def _words(groups: Groups, p: int, score: Score) -> str:
    record = groups.prompts[p].record
    paid = "the scorer failed" if score.failed else f"{score.reward:.3f}"
    raw = score.parts.get("raw", score.reward)
    return (
        f"**{record.verifier_type}**, record {record.id}\n\n"
        f"{_block(record.question)}\n\nanswer\n\n{_block(groups.texts[p][0])}\n\n"
        f"extracted {_block(score.extracted or 'nothing')}\n\ngold {_block(record.gt or '')}\n\n"
        f"reward paid {paid}, raw {raw:.3f}"
    )


def _block(text: str) -> str:
    """The text as it is, whatever marks it holds."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "
