"""Which option an answer chose, by rules alone; the matcher of VLMEvalKit at two dates.

First a letter that stands alone as a word, then the text of exactly one option.
"""

import re
from collections.abc import Mapping

from vlaa_jax.evaluate.scoring.profiles import Profile

FAILURE_TEXT = "Failed to obtain answer via API"
"""What the original stores where a call gave nothing; a text that holds it chose nothing."""
NO_OPTION = "Z"

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_BLANKED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_PHRASE = re.compile(r"answer\s+is\s+\**([a-d])\**", re.IGNORECASE)


def chosen_option(text: str, options: Mapping[str, str], profile: Profile) -> str | None:
    """The letter of the option that the text chose.

    Args:
        text: answer of the model or of the judge.
        options: letter to text.
        profile: whose matcher.

    Returns:
        A letter; ``Z`` where the text says that none fits; None where the rules cannot tell.
    """
    return _by_letter(text, options, profile) or _by_text(text, options, profile)


def lettered(texts: list[str]) -> dict[str, str]:
    """Options in order with the letters from A on."""
    return {chr(ord("A") + place): text for place, text in enumerate(texts[:26])}


def _by_letter(text: str, options: Mapping[str, str], profile: Profile) -> str | None:
    if FAILURE_TEXT in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_OPTION
    words = text.translate(_BLANKED).split()
    found = set(words).intersection(options)
    if len(found) == 1:
        (letter,) = found
        place = words.index(letter)
        if profile.letter_among_last is None or place >= len(words) - profile.letter_among_last:
            return letter
    elif not found and NO_OPTION in words:
        return NO_OPTION
    phrase = _PHRASE.search(text) if profile.answer_is_phrase else None
    return phrase[1].upper() if phrase and phrase[1].upper() in options else None


def _by_text(text: str, options: Mapping[str, str], profile: Profile) -> str | None:
    text = text.lower()
    letters = sum(len(option) for option in options.values())
    if profile.text_factor is not None and len(text) > profile.text_factor * letters:
        return None
    found = [letter for letter, option in options.items() if option.lower() in text]
    return found[0] if len(found) == 1 else None
