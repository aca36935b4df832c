"""Step 4: words that give the caption away become words about the image, and no others change."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from rapidfuzz.distance import Levenshtein

from vlaa_jax.pipeline.contract import Ask, Step
from vlaa_jax.pipeline.prompts import fill, load_prompt
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.pipeline.steps.replies import parse_trace, problem_of
from vlaa_jax.settings.pipeline import RewriteSettings

NAME = "rewrite"


def length_gap(before: str, after: str) -> int:
    """Difference of the counts of words: the paper's "more than 15 words difference", as read."""
    return abs(len(before.split()) - len(after.split()))


def edit_gap(before: str, after: str) -> int:
    """Words put in, taken out or exchanged."""
    return Levenshtein.distance(before.split(), after.split())


GAP: Mapping[str, Callable[[str, str], int]] = {"length": length_gap, "edit": edit_gap}


def make_rewrite(settings: RewriteSettings) -> Step:
    """The step, with its prompt loaded."""
    prompt = load_prompt(NAME, settings.prompt, ("text",))
    gap = GAP[settings.gap]

    async def rewrite(sample: Sample, ask: Ask) -> Sample | Drop:
        """Ask for the reworded trace, unless the source's own trace is taken as it is."""
        if not sample.distilled:
            return sample
        before = sample.trace
        reply = await ask(Request(NAME, sample.id, fill(prompt, text=before)))
        if problem := problem_of(reply):
            return Drop(NAME, problem)
        trace = parse_trace(reply.text)
        if isinstance(trace, str):
            return Drop(NAME, trace)
        done = replace(sample, thought=trace.thought, answer=trace.answer)
        if (words := gap(before, done.trace)) > settings.max_gap:
            return Drop(NAME, f"{settings.gap} gap over {settings.max_gap} words", f"{words} words")
        return done

    return rewrite
