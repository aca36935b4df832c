"""The nouns that rooms hand to each other, and the dimension key.

Dimension key (used as suffixes of array names, e.g. ``logits_BTV``):

    B rows   T tokens   P prompts   G completions per prompt   V vocabulary   D model width
    N query heads   K key/value heads   H head size   L layers
    S vision bins   R rows of 64 patches in a bin   C numbers in a flattened patch

Nothing here imports an array library other than numpy, so every room can import it cheaply.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

KINDS = ("grpo", "sft")
"""What records are read for: grpo needs ``verifier_type`` and ``gt``, sft needs ``answer``."""

VERIFIER_TYPES = ("digit", "mcq", "math", "iou", "open_ended", "custom")
"""The five verifiers of VLAA-Thinker (arXiv 2504.11468, section 4.1), and one's own.

The table of verifiers: each row names a module of ``vlaa_jax.rewards``."""

BOX_SPACES = (
    "normalized", "normalized_1000", "normalized_square", "resized_pixels", "original_pixels",
)  # fmt: skip
"""Coordinate spaces of a box [x1, y1, x2, y2].

``normalized``         fractions of the original width and height, 0..1
``normalized_1000``    thousandths of the original width and height, 0..1000 (Qwen2-VL's own)
``normalized_square``  fractions of the image padded to a centred square, 0..1
``resized_pixels``     pixels of the image as the model saw it after resizing
``original_pixels``    pixels of the original image
"""


Grid = tuple[int, int, int]
"""(frames, patch rows, patch columns) of an image or a video."""


def printable(text: str) -> str:
    """The text with what a terminal would obey or cannot show written as an escape.

    Control characters, marks that turn the writing direction and lone surrogates come out as
    ``\\x1b`` or ``\\u202e``; line ends and letters of any script stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


class UserError(Exception):
    """Something the user can mend. The message is one line that says what and where.

    The command line prints the message without a traceback and exits with a non-zero status. What
    the message repeats of a file cannot steer the terminal: see ``printable``.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class Lengths(NamedTuple):
    """What whoever measured a record knows of it, at the pixel limits it was measured with."""

    tokens: int
    """Of the prompt, or of prompt and answer where that is to be learnt."""
    image_sizes: tuple[tuple[int, int], ...]
    """(width, height) of each image."""


@dataclass(frozen=True)
class Record:
    """One sample of VLAA-Thinking (GRPO or SFT file)."""

    id: str
    question: str
    images: tuple[str, ...]
    """POSIX paths relative to the image root, without a leading slash; empty for text alone."""
    gt: str | None = None
    """Gold answer as text; None only where the SFT file lacks it."""
    verifier_type: str | None = None
    """One of VERIFIER_TYPES; None in SFT records."""
    answer: str | None = None
    """SFT target: think block and answer block. None in GRPO records."""
    source: str = ""
    """Data set the image came from: the first folder of the image path."""
    caption: str | None = None
    box_space: str | None = None
    """One of BOX_SPACES for iou records."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    place: int = field(default=-1, compare=False)
    """Position in the source that it was read from."""
    lengths: Lengths | None = field(default=None, compare=False)
    """None until it was measured."""


@dataclass(frozen=True)
class ScoreRequest:
    """One model output to be scored."""

    verifier_type: str
    gt: str
    response: str
    """The whole model output, think block included."""
    id: str = ""
    question: str = ""
    image_size: tuple[int, int] | None = None
    """(width, height) of the original image in pixels."""
    resized_size: tuple[int, int] | None = None
    """(width, height) of the image as the model saw it."""
    box_space: str | None = None
    images: tuple[str, ...] = ()
    """Readable paths of the images, for reward models that look at them."""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further fields of the record, for a verifier of one's own."""


@dataclass(frozen=True)
class Score:
    """What a verifier said of one output."""

    reward: float
    """In [0, 1]; NaN when the scorer itself failed, which is never the model's fault."""
    verifier_type: str
    extracted: str | None = None
    """The answer text that was scored; None when no valid answer was found (reward 0)."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named shares: always ``raw`` (unshaped reward) and ``format`` (1 if an answer was found)."""
    error: str | None = None
    """Why the scorer failed; set exactly when reward is NaN."""

    @property
    def failed(self) -> bool:
        """True when the scorer failed, as opposed to the answer being wrong."""
        return math.isnan(self.reward)


@dataclass(frozen=True)
class Summary:
    """What a task says when it has ended."""

    workdir: Path
    """Directory of what it wrote."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Its closing figures, by name."""


def gold_text(value: Any) -> str:
    """A gold as text: text as it is, a number, a list of numbers, boxes or ``bbox_2d`` objects.

    The one reader of golds, for records and for the rewards command alike.

    Raises:
        ValueError: says what the value is instead.
    """
    if isinstance(value, str):
        return value
    leaves = list(_leaves(value, 8))
    numbers = [leaf for leaf in leaves if type(leaf) in (int, float)]
    if not numbers or any(type(leaf) not in (int, float, str) for leaf in leaves):
        shown = str(value)[:60]
        raise ValueError(f"{shown!r} is neither text, a number, a list of numbers nor boxes")
    if not all(math.isfinite(number) for number in numbers if type(number) is float):
        raise ValueError(f"{str(value)[:60]!r} holds a number that is not finite")
    return json.dumps(value)


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """What is in lists and objects, to a depth; deeper ones as they are."""
    if not isinstance(value, (list, dict)) or not depth:
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from _leaves(item, depth - 1)
