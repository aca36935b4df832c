"""Scoring profiles by date: what VLMEvalKit did with the same texts at two commits.

Between the two dates the six data files, the judge and the aggregation stayed the same; the option
matcher, the LaTeX reader, the place where free-form answers are compared and what its spreadsheets
do to a text did not.
"""

from dataclasses import dataclass, replace

from vlaa_jax.schema import UserError


@dataclass(frozen=True)
class Profile:
    """One reading of the rules."""

    name: str
    commit: str
    """Of VLMEvalKit, whose verdicts this profile gives."""
    letter_among_last: int | None
    """An option letter must be one of this many last words; None takes it from anywhere."""
    text_factor: int | None
    """Option texts are not sought in an answer longer than this many times all of them together."""
    answer_is_phrase: bool
    """Whether ``answer is X`` gives a letter of A to D where nothing else does."""
    latex: str
    """Dialect of ``latex.latex_value``."""
    free_form_by_rule: bool
    """MathVision: whether a free-form answer can be right without the judge."""
    missing_output_is_error: bool
    """DynaMath: an output that storage lost stops the original; here that row is an error."""
    formulas: bool
    """Whether storage takes a text that begins with ``=`` for a formula."""
    spreadsheet: bool = True
    """Whether texts go through what a spreadsheet does to them, as by default in the original."""

    def lossless(self) -> "Profile":
        """The same rules on the texts as they are, without the accidents of storage."""
        return replace(self, name=f"{self.name}-lossless", spreadsheet=False)


_PAPER = Profile(
    name="2025-04",
    commit="a20fe37c",
    letter_among_last=None,
    text_factor=None,
    answer_is_phrase=False,
    latex="2025-04",
    free_form_by_rule=False,
    missing_output_is_error=True,
    formulas=True,
)
_CURRENT = Profile(
    name="2026-08",
    commit="e8e78f05",
    letter_among_last=4,
    text_factor=2,
    answer_is_phrase=True,
    latex="2026-08",
    free_form_by_rule=True,
    missing_output_is_error=False,
    formulas=False,
)
PROFILES = {
    profile.name: profile for dated in (_PAPER, _CURRENT) for profile in (dated, dated.lossless())
}


def profile_named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        UserError: there is none.
    """
    if name not in PROFILES:
        raise UserError(f"profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
