"""The open-ended backend that settings describe."""

from vlaa_jax.rewards.open_ended import (
    AnswerScorer,
    OpenEndedScorer,
    ReferenceScorer,
    TextSimilarityScorer,
)
from vlaa_jax.schema import UserError
from vlaa_jax.settings.rewards import OPEN_ENDED_BACKENDS, RewardSettings


def make_open_ended(settings: RewardSettings) -> OpenEndedScorer | None:
    """The open-ended backend these settings describe; None for ``none``.

    Raises:
        UserError: the backend needs something that is not set.
    """
    if settings.open_ended == "none":
        return None
    if settings.open_ended == "text_similarity":
        return TextSimilarityScorer()
    if settings.open_ended == "reward_head":
        raise UserError(
            "rewards.open_ended is 'reward_head': only a training run loads one; choose "
            + ", ".join(name for name in OPEN_ENDED_BACKENDS if name not in ("none", "reward_head"))
        )
    # Imported here: an HTTP client takes longer to import than all rules together.
    from vlaa_jax.endpoint import EndpointSettings
    from vlaa_jax.rewards.chat_judge import ChatJudge
    from vlaa_jax.rewards.score_endpoint import ScoreEndpoint

    if not settings.endpoint_url:
        raise UserError(f"rewards.open_ended is {settings.open_ended!r}: set rewards.endpoint_url")
    endpoint = EndpointSettings(
        settings.endpoint_url,
        model=settings.endpoint_model,
        key_env=settings.endpoint_key_env,
        concurrency=settings.endpoint_concurrency,
        timeout_s=settings.endpoint_timeout_s,
        retries=settings.endpoint_retries,
        backoff_s=settings.endpoint_backoff_s,
    )
    scorer: AnswerScorer
    if settings.open_ended == "chat_judge":
        if not settings.endpoint_model:
            raise UserError("rewards.open_ended is 'chat_judge': set rewards.endpoint_model")
        scorer = ChatJudge(
            endpoint, send_images=settings.endpoint_images, max_tokens=settings.endpoint_max_tokens
        )
    else:
        scorer = ScoreEndpoint(
            endpoint, batch=settings.endpoint_batch, send_images=settings.endpoint_images
        )
    return ReferenceScorer(scorer, settings.cache_entries)
