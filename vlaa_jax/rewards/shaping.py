"""Optional terms added to the raw reward; all off by default, each logged on its own.

Group filtering and accuracy metrics look at the raw reward, never at these.
"""

from collections.abc import Hashable, Sequence


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """Soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), in tokens, floored at -1.

    0 up to ``max_length - buffer``, falling linearly to -1 at ``max_length`` and staying there.

    Raises:
        ValueError: the buffer is not within 1..max_length.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"overlong buffer {buffer} must be within 1..{max_length} tokens")
    return -min(1.0, max(0.0, (length - (max_length - buffer)) / buffer))


def repetition_penalty(tokens: Sequence[Hashable], ngram: int) -> float:
    """Minus the share of n-grams that repeat an earlier one (after arXiv 2502.03373), in [-1, 0].

    0.0 for texts shorter than two n-grams' worth of tokens can hold a repeat.
    """
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, got {ngram}")
    total = len(tokens) - ngram + 1
    if total <= 0:
        return 0.0
    distinct = len({tuple(tokens[i : i + ngram]) for i in range(total)})
    return distinct / total - 1.0
