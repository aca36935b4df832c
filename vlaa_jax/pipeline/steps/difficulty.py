"""How hard a sample is for a served model: the share of right answers, or the perplexity of ours.

Alternatives to the paper's cues for choosing what to explore and what to imitate.
"""

import asyncio
import math
from dataclasses import replace

from vlaa_jax.pipeline.contract import Ask, Scorer, Step
from vlaa_jax.pipeline.prompts import load_prompt
from vlaa_jax.pipeline.request import SCORE, Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.settings.pipeline import SplitSettings

NAME = "difficulty"


def make_difficulty(settings: SplitSettings, scorer: Scorer) -> Step:
    """The step that the split's rule needs."""
    system = load_prompt("pass_rate", settings.prompt)

    async def pass_rate(sample: Sample, ask: Ask) -> Sample | Drop:
        """``pass_rate``: the mean reward of several answers of a model that sees the image."""

        async def attempt(salt: int) -> float:
            text = sample.question
            shown = {"image": sample.image, "digest": sample.digest}
            reply = await ask(Request(NAME, sample.id, text, system=system, salt=salt, **shown))
            return await scorer(sample, reply.text)

        tries = (attempt(salt) for salt in range(settings.samples))
        rewards = await asyncio.gather(*tries, return_exceptions=True)  # all are paid for
        scored = []
        for reward in rewards:
            if isinstance(reward, BaseException):
                raise reward
            if not math.isnan(reward):
                scored.append(reward)
        found = {"pass_rate_n": float(len(scored))}
        if scored:
            found["pass_rate"] = sum(scored) / len(scored)
        return replace(sample, difficulty=found)

    async def perplexity(sample: Sample, ask: Ask) -> Sample | Drop:
        """``perplexity`` of the target after the question, by a model that reads text only."""
        if not sample.thought:
            return sample
        prefix = f"{sample.question}\n\n"
        reply = await ask(Request(NAME, sample.id, sample.target, path=SCORE, prefix=prefix))
        if reply.value is None:
            return Drop(NAME, "perplexity missing")
        return replace(sample, difficulty={"perplexity": math.exp(min(reply.value, 700.0))})

    async def nothing(sample: Sample, ask: Ask) -> Sample | Drop:
        """The paper's rule looks at the trace alone."""
        return sample

    return {"pass_rate": pass_rate, "perplexity": perplexity, "aha": nothing}[settings.rule]
