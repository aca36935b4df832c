"""Spellings of one text: typographic variants folded to ASCII, and wrappers taken off."""

import re

# Nothing else is folded: compatibility folding would turn a superscript two into a plain 2.
_FOLD = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-")
    | {"\u2014": " - ", "\u2015": " - ", "\u066b": ".", "。": ".", "、": ",", "∶": ":", "′": "'"}
    | {"【": "[", "】": "]", "〔": "[", "〕": "]", "《": '"', "》": '"', "「": '"', "」": '"'}
    | {"“": '"', "”": '"', "‘": "'", "’": "'", "⇒": "=", "＝": "="}
    | dict.fromkeys(
        [*range(0xD800, 0xE000), *range(0x200B, 0x2010), 0xFEFF, 0x2060, *map(ord, "✓✔✅☑")], ""
    )
    | dict.fromkeys("\u00a0\u2009\u202f\u2007\u3000\u2002\u2003", " ")
)
LATEX_SPACE = re.compile(r"\\(?:[,;:! ]|qquad\b|quad\b|hspace\{[^{}]*\})|(?<!\\)~")
_STYLE = re.compile(
    r"\\(?:boxed|fbox|text|textnormal|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|rm|bf|emph|mbox|underline)\s*\{([^{}]*)\}"
)
_STYLED = re.compile(r"\*\*([^*]*)\*\*|__([^_]*)__")
_MATHS = re.compile(r"(?<!\\)\$+([^$]+?)(?<!\\)\$+")
_TAG = re.compile(r"</?(?:b|i|em|strong|p|br|span|u)\s*/?>", re.IGNORECASE)
_LAST_CHARS = frozenset("$)]}*`\"'.")
_FINAL_POINT = re.compile(r"(?<=[$}\])*`\"'])\.$")
_WRAPPERS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"),
    ('"', '"'), ("'", "'"), ("\\boxed{", "}"), ("\\fbox{", "}"), ("\\text{", "}"),
    ("\\textbf{", "}"), ("\\underline{", "}"), ("\\mathrm{", "}"), ("\\mathbf{", "}"),
)  # fmt: skip


def fold(text: str) -> str:
    """Plain ASCII for full-width forms, Chinese stops and brackets, dashes, quotes and spaces."""
    return text if text.isascii() else text.translate(_FOLD)


def unwrap(text: str) -> str:
    r"""Text without what wraps all of it: ``$..$``, ``\(..\)``, ``\boxed{}``, ``**`` and such."""
    text = text.strip()
    if text[-1:] not in _LAST_CHARS or text[:1] in "[(":
        return text  # brackets belong to what they enclose
    previous = None
    while previous != text and text[-1:] in _LAST_CHARS:
        previous = text
        text = _FINAL_POINT.sub("", text.strip())
        for opening, closing in _WRAPPERS:
            if len(text) < len(opening) + len(closing) or not text.endswith(closing):
                continue
            inner = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and _is_whole(inner, opening, closing):
                text = inner.strip()
    return text


def plain(text: str) -> str:
    r"""Prose in one line: folded, unwrapped, without ``\text{}``, ``**``, ``$`` and TeX spaces."""
    text = unwrap(fold(text))
    if "\\" in text or "~" in text:
        text = LATEX_SPACE.sub(" ", text)
        text = _STYLE.sub(lambda match: match[1], text).replace("\\$", "$").replace("\\%", "%")
    text = text.replace("{,}", ",")
    if text.count("$") > 1:
        text = _MATHS.sub(lambda match: match[1], text)
    if "<" in text:
        text = _TAG.sub("", text)
    if "*" in text or "_" in text:
        text = _STYLED.sub(lambda match: match[1] or match[2] or "", text)
    return " ".join(text.split())


def brace_end(text: str, start: int) -> int:
    """Index of the brace that closes the one before ``start``; -1 where none does."""
    depth = 1
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return -1


def _is_whole(inner: str, opening: str, closing: str) -> bool:
    """Whether the wrapper around ``inner`` is one pair, not the ends of two."""
    if closing != "}":
        return closing not in inner and opening not in inner
    return brace_end(inner + "}", 0) == len(inner)
