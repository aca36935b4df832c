"""Step 2: what the image shows, in words that a reasoning model without eyes can work from."""

from dataclasses import replace

from vlaa_jax.pipeline.contract import Ask, Step
from vlaa_jax.pipeline.prompts import fill, load_prompt
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.pipeline.sources import SOURCES
from vlaa_jax.pipeline.steps.replies import problem_of
from vlaa_jax.settings.pipeline import CaptionSettings

NAME = "caption"


def make_caption(settings: CaptionSettings) -> Step:
    """The step, with its prompt loaded."""
    prompt = load_prompt(NAME, settings.prompt)
    context_prompt = load_prompt("caption_context", "", ("context",))

    async def caption(sample: Sample, ask: Ask) -> Sample | Drop:
        """Ask for a caption, unless the source brings one or wants none."""
        if sample.caption or not (sample.wants_trace and SOURCES[sample.source].wants_caption):
            return sample
        shown = fill(context_prompt, context=sample.context) if sample.context else ""
        request = Request(
            NAME,
            sample.id,
            fill(prompt, context=shown),
            image=sample.image,
            digest=sample.digest,
        )
        reply = await ask(request)
        if problem := problem_of(replace(reply, reasoning="")):  # a thought is no caption
            return Drop(NAME, problem)
        return replace(sample, caption=reply.text.strip(), caption_model=settings.model.model)

    return caption
