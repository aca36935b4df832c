"""One drawn sample with everything that is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image

from vlaa_jax.schema import Record


@dataclass(frozen=True)
class SyntheticSample:
    """A drawn image, a question on it, the gold answer and a short reasoning that leads to it."""

    image: Image.Image
    question: str
    gt: str
    verifier_type: str
    reasoning: str
    answer: str
    """What belongs into the answer block; it always scores as well as the gold."""
    source: str
    family: str
    """Kind of drawing within the source; becomes part of the file name."""
    caption: str = ""
    box_space: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    """What was drawn, for tests."""

    @property
    def target(self) -> str:
        """The completion to imitate: think block and answer block."""
        return in_format(self.reasoning, self.answer)

    def record(self, record_id: str, image_path: str) -> Record:
        """The sample as a Record whose image lies at ``image_path``; ``answer`` is the target."""
        return Record(
            id=record_id,
            question=self.question,
            images=(image_path,),
            gt=self.gt,
            verifier_type=self.verifier_type,
            answer=self.target,
            source=self.source,
            caption=self.caption,
            box_space=self.box_space,
        )


def in_format(reasoning: str, answer: str) -> str:
    """A think block and an answer block."""
    return f"<think> {reasoning} </think> <answer> {answer} </answer>"
