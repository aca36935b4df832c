"""Step 5: is the answer right? Asked of a judge, or of the project's own verifiers.

The answer is one thing everywhere: what stands behind the think block. It is what the judge sees,
what the verifier scores and what the answer block of the training target holds.
"""

import math
from dataclasses import replace

from vlaa_jax.pipeline.contract import Ask, Scorer, Step
from vlaa_jax.pipeline.prompts import fill, load_prompt
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.pipeline.steps.replies import problem_of, spoken
from vlaa_jax.settings.pipeline import VerifySettings

NAME = "verify"
RULED = frozenset(("digit", "mcq", "math"))
"""Verifier types whose golds rules can check; a box is right by degrees, so the judge is asked."""


def make_verify(settings: VerifySettings, scorer: Scorer) -> Step:
    """The step, with its prompt loaded."""
    prompt = load_prompt(NAME, settings.prompt, ("gold", "answer"))

    async def verify(sample: Sample, ask: Ask) -> Sample | Drop:
        """Let right answers through."""
        if not sample.distilled:
            return replace(sample, verdict="source")
        if settings.how != "judge" and sample.verifier_type in RULED:
            reward = await scorer(sample, sample.target)
            if reward >= 0.5:
                return replace(sample, verdict="verifier")
            if settings.how == "verifier" and not math.isnan(reward):
                return Drop(NAME, "answer wrong", sample.answer)
        text = fill(prompt, gold=sample.gt, answer=sample.answer)
        reply = await ask(Request(NAME, sample.id, text))
        if problem := problem_of(reply):
            return Drop(NAME, problem)
        said = read_verdict(spoken(reply.text))
        if said is None:
            return Drop(NAME, "verdict unclear", reply.text)
        return (
            replace(sample, verdict="judge") if said else Drop(NAME, "answer wrong", sample.answer)
        )

    return verify


def read_verdict(text: str) -> bool | None:
    """Yes or No as the only one of the two words in a reply; anything else is no verdict."""
    words = {word.strip("*_`\"'.,:;!?()[]").casefold() for word in text.split()}
    yes, no = "yes" in words, "no" in words
    return yes if yes != no else None
