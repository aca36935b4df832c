"""The record that travels through the steps, and the ways in which it can leave them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = ("collect", "caption", "distil", "rewrite", "verify", "difficulty", "split")
"""In order; ``difficulty`` is part of the split and asks only where the split wants to know."""


@dataclass(frozen=True)
class Sample:
    """One question on one image, with what the steps have added to it so far."""

    id: str
    source: str
    """Row of ``sources.SOURCES``."""
    question: str
    gt: str
    verifier_type: str
    """One of ``schema.VERIFIER_TYPES``."""
    image: str
    """POSIX path below the image root."""
    digest: str
    """SHA-256 of the encoded image, hexadecimal."""
    license: str = ""
    origin: str = ""
    """Where it was found: ``FILE#ROW``."""
    context: str = ""
    """What the source says of the image in words: a scene, the textual form of a problem."""
    caption: str = ""
    caption_model: str = ""
    distilled: str = ""
    """Trace as the reasoning model gave it: think block, then the answer."""
    thought: str = ""
    answer: str = ""
    verdict: str = ""
    """Who accepted the answer: ``judge``, ``verifier`` or ``source``."""
    box_space: str | None = None
    uses: tuple[str, ...] = ("sft", "rl")
    """Which of the two it may become."""
    difficulty: Mapping[str, float] = field(default_factory=dict)
    """``pass_rate`` and ``pass_rate_n``, or ``perplexity``."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trace(self) -> str:
        """Think block and the answer as the rewriting model reads them."""
        return f"<think>\n{self.thought}\n</think>\n\n{self.answer}"

    @property
    def target(self) -> str:
        """The completion to imitate: think block and answer block."""
        return f"<think> {self.thought} </think> <answer> {self.answer} </answer>"

    def to_json(self) -> str:
        """One line without a line end; ``from_json`` reads it back."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> "Sample":
        """The sample of a line that ``to_json`` wrote."""
        return cls.from_values(json.loads(line))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Sample":
        """The sample of its fields as JSON holds them."""
        return cls(**{**values, "uses": tuple(values["uses"])})

    @property
    def wants_trace(self) -> bool:
        """Whether it is to be imitated at all; what is only explored needs no trace."""
        return "sft" in self.uses


@dataclass(frozen=True)
class Drop:
    """A sample that a step does not let through."""

    step: str
    reason: str
    """A short phrase that is the same for all drops of its kind; tables count it."""
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a sample came out of the steps."""

    position: int
    """Place of the sample in the collected file, from 0."""
    state: str
    """``kept``, ``dropped`` by a step, or ``failed``: a call gave no answer."""
    sample: Sample
    """As far as it came."""
    step: str = ""
    """Where it ended, unless it was kept."""
    reason: str = ""
    detail: str = ""

    def to_json(self) -> str:
        """One line without a line end; ``from_json`` reads it back."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> "Outcome":
        """The outcome of a line that ``to_json`` wrote."""
        values = json.loads(line)
        return cls(**{**values, "sample": Sample.from_values(values["sample"])})
