"""Step 3: a reasoning model that reads the caption thinks and answers as if it saw the image."""

from dataclasses import replace

from vlaa_jax.pipeline.contract import Ask, Step
from vlaa_jax.pipeline.prompts import fill, load_prompt
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.pipeline.steps.replies import parse_trace, problem_of
from vlaa_jax.settings.pipeline import DistilSettings

NAME = "distil"


def make_distil(settings: DistilSettings) -> Step:
    """The step, with its prompt loaded."""
    prompt = load_prompt(NAME, settings.prompt, ("description", "question"))

    async def distil(sample: Sample, ask: Ask) -> Sample | Drop:
        """Ask for a trace, unless the source brings one."""
        if sample.thought or not sample.wants_trace:
            return sample
        description = "\n\n".join(part for part in (sample.caption, sample.context) if part)
        if not description:
            return Drop(NAME, "nothing is known of the image")
        text = fill(prompt, description=description, question=sample.question)
        reply = await ask(Request(NAME, sample.id, text))
        if problem := problem_of(reply):
            return Drop(NAME, problem)
        trace = parse_trace(reply.text, reply.reasoning)
        if isinstance(trace, str):
            return Drop(NAME, trace)
        done = replace(sample, thought=trace.thought, answer=trace.answer)
        return replace(done, distilled=done.trace)

    return distil
