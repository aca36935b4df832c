"""What of an output is scored, and where in it an extracted answer stands."""

import re

_THINK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


def scored_text(output: str) -> str:
    """The content of the only closed answer pair; the whole output where there is none or several.

    So it is with VLAA-Thinker's entry in VLMEvalKit; think text is cut by no other rule.
    """
    rest = output.partition("<answer>")[2]  # no pattern: a thousand tags unclosed would take hours
    content, closed, after = rest.partition("</answer>")
    if not closed or "</answer>" in after.partition("<answer>")[2]:
        return output
    return content.strip()


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
