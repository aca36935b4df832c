"""What of an output is scored, and where in it an extracted answer stands."""

import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def scored_text(output: str) -> str:
    """The content of the only closed answer pair; the whole output where there is none or several.

    So it is with VLAA-Thinker's entry in VLMEvalKit; think text is cut by no other rule.
    """
    found = _ANSWER.findall(output)
    return found[0].strip() if len(found) == 1 else output


def without_thinking(output: str) -> str:
    """The output without its think blocks, for the score that does not read them."""
    return _THINK.sub("", output).strip()


def find_span(text: str, extracted: str | None) -> tuple[int, int] | None:
    """Where in a text the extracted answer was last said; None where it was not said so."""
    wanted = (extracted or "").strip()
    if not wanted:
        return None
    if len(wanted) == 1 and wanted.isalnum():
        places = [match.start() for match in re.finditer(rf"\b{re.escape(wanted)}\b", text)]
        place = places[-1] if places else -1
    else:
        place = text.rfind(wanted)
    return (place, place + len(wanted)) if place >= 0 else None
