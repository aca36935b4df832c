"""Fields of records from the Hugging Face hub as the columns of the public tables."""

from collections.abc import Sequence
from typing import Any

from vlaa_jax.foreign import without_surrogates


def as_column(value: Any) -> str | None:
    """A field as text; None where it is missing or empty."""
    if value is None or value == "":
        return None
    return without_surrogates(str(value))


def choice_letter(choices: Sequence[Any], answer: Any) -> str | None:
    """The letter of the choice that is the answer; None where none is."""
    texts = [str(choice) for choice in choices]
    return chr(ord("A") + texts.index(str(answer))) if str(answer) in texts else None


def with_choices(question: str, choices: Sequence[str]) -> str:
    """The question with its lettered choices below it."""
    lines = [f"({chr(ord('A') + place)}) {choice}" for place, choice in enumerate(choices)]
    return "\n".join([question, "Choices:", *lines]) if lines else question
