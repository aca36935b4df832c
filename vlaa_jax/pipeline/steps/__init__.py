"""Steps 2 to 5 and the difficulty: sample in, sample or drop out, nothing known of any engine."""

from vlaa_jax.pipeline.contract import Scorer, Step
from vlaa_jax.pipeline.steps.caption import make_caption
from vlaa_jax.pipeline.steps.difficulty import make_difficulty
from vlaa_jax.pipeline.steps.distil import make_distil
from vlaa_jax.pipeline.steps.rewrite import make_rewrite
from vlaa_jax.pipeline.steps.verify import make_verify
from vlaa_jax.settings.pipeline import PipelineSettings


def make_steps(settings: PipelineSettings, scorer: Scorer) -> dict[str, Step]:
    """The steps of a run by name, in order.

    Args:
        settings: prompts and options are read and checked here, once.
        scorer: rewards of answers, for the verify and difficulty steps.

    Raises:
        UserError: a prompt file cannot be used.
    """
    return {
        "caption": make_caption(settings.caption),
        "distil": make_distil(settings.distil),
        "rewrite": make_rewrite(settings.rewrite),
        "verify": make_verify(settings.verify, scorer),
        "difficulty": make_difficulty(settings.split, scorer),
    }
