"""Every knob of the mixed reward, checked at the door."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vlaa_jax.rewards.open_ended import (
    AnswerScorer,
    OpenEndedScorer,
    ReferenceScorer,
    TextSimilarityScorer,
)
from vlaa_jax.schema import BOX_SPACES, UserError

OPEN_ENDED_BACKENDS = ("none", "score_endpoint", "chat_judge", "reward_head", "text_similarity")


@dataclass(frozen=True)
class RewardSettings:
    """Settings of ``MixedReward``; options are off, and open-ended answers have no score.

    Raises:
        UserError: a value is out of range; the message names ``rewards.<field>``.
    """

    open_ended: str = "none"
    """Where S comes from: one of OPEN_ENDED_BACKENDS. With ``none`` an open-ended answer is a
    failure, since nothing replaces a reward model without having been chosen."""
    beta: float = 0.2
    """Smoothing of the open-ended reward, per point of S."""
    endpoint_url: str = ""
    """Base URL of the score endpoint or chat judge."""
    endpoint_model: str = ""
    """Model name sent to the endpoint; a chat judge needs one."""
    endpoint_key_env: str = "VLAA_REWARD_API_KEY"
    """Environment variable with the bearer token; unset means no token is sent."""
    endpoint_concurrency: int = 8
    """Requests in flight at once."""
    endpoint_timeout_s: float = 60.0
    """Deadline of one request in seconds, from its turn among the concurrent ones on: retries,
    pauses and, for a batch that is asked in parts, all parts are within it."""
    endpoint_retries: int = 3
    """Further tries after a failure that may pass: overload, server error, lost connection."""
    endpoint_backoff_s: float = 0.5
    """First pause before a retry in seconds; doubles each time."""
    endpoint_batch: int = 8
    """Answers per request to a score endpoint."""
    endpoint_images: bool = True
    """Send the images along with question and answer."""
    endpoint_max_tokens: int = 64
    """Limit of a chat judge's reply in tokens; judges that think aloud first need more."""
    head_checkpoint: str = ""
    """Model of the in-process reward head: an HF directory, one of our checkpoints, or a hub id."""
    head_file: str = ""
    """Safetensors file with the head's weight."""
    head_batch: int = 8
    """Answers the reward head scores at once."""
    head_max_pixels: int = 0
    """Most pixels of an image the reward head sees; 0: its checkpoint's own limit."""
    head_max_tokens: int = 4096
    """Longest conversation the reward head scores, images included; a longer one is a failure."""
    cache_entries: int = 100_000
    """Scores remembered by content hash."""
    math_workers: int = 2
    """Processes for symbolic mathematics."""
    math_timeout_s: float = 5.0
    """Seconds a comparison may take before its process is killed."""
    answer_box_space: str | None = None
    """Coordinate space the model answers in; None means that of the gold box."""
    max_failed_frac: float = 0.1
    """Share of failed scores in a batch above which the run stops."""
    format_weight: float = 0.0
    """Share of the reward given to a strict think/answer structure; 0 is the paper's setting."""
    overlong_weight: float = 0.0
    """Weight of the soft overlong penalty."""
    overlong_buffer: int = 256
    """Tokens before the limit over which the overlong penalty grows from 0 to 1."""
    repetition_weight: float = 0.0
    """Weight of the n-gram repetition penalty."""
    repetition_ngram: int = 20
    """Tokens per n-gram of the repetition penalty."""

    def __post_init__(self) -> None:
        _one_of("open_ended", self.open_ended, OPEN_ENDED_BACKENDS)
        if self.answer_box_space is not None:
            _one_of("answer_box_space", self.answer_box_space, BOX_SPACES)
        for name in ("beta", "endpoint_timeout_s", "math_timeout_s"):
            _check(name, getattr(self, name), lambda v: v > 0, "above 0")
        for name in (
            "math_workers",
            "endpoint_concurrency",
            "endpoint_batch",
            "endpoint_max_tokens",
            "head_batch",
            "head_max_tokens",
            "repetition_ngram",
            "overlong_buffer",
        ):
            _check(name, getattr(self, name), lambda v: v >= 1, "at least 1")
        for name in (
            "endpoint_retries",
            "endpoint_backoff_s",
            "head_max_pixels",
            "cache_entries",
            "overlong_weight",
            "repetition_weight",
        ):
            _check(name, getattr(self, name), lambda v: v >= 0, "at least 0")
        for name in ("max_failed_frac", "format_weight"):
            _check(name, getattr(self, name), lambda v: 0 <= v <= 1, "within 0..1")

    def make_open_ended(self) -> OpenEndedScorer | None:
        """The open-ended backend these settings describe; None for ``none``.

        Raises:
            UserError: the backend needs something that is not set.
        """
        if self.open_ended == "none":
            return None
        if self.open_ended == "text_similarity":
            return TextSimilarityScorer()
        if self.open_ended == "reward_head":
            raise UserError(
                "rewards.open_ended is 'reward_head': only a training run loads one; choose "
                + ", ".join(
                    name for name in OPEN_ENDED_BACKENDS if name not in ("none", "reward_head")
                )
            )
        # Imported here: an HTTP client takes longer to import than all rules together.
        from vlaa_jax.endpoint import EndpointSettings
        from vlaa_jax.rewards.chat_judge import ChatJudge
        from vlaa_jax.rewards.score_endpoint import ScoreEndpoint

        if not self.endpoint_url:
            raise UserError(f"rewards.open_ended is {self.open_ended!r}: set rewards.endpoint_url")
        endpoint = EndpointSettings(
            self.endpoint_url,
            model=self.endpoint_model,
            key_env=self.endpoint_key_env,
            concurrency=self.endpoint_concurrency,
            timeout_s=self.endpoint_timeout_s,
            retries=self.endpoint_retries,
            backoff_s=self.endpoint_backoff_s,
        )
        scorer: AnswerScorer
        if self.open_ended == "chat_judge":
            if not self.endpoint_model:
                raise UserError("rewards.open_ended is 'chat_judge': set rewards.endpoint_model")
            scorer = ChatJudge(
                endpoint, send_images=self.endpoint_images, max_tokens=self.endpoint_max_tokens
            )
        else:
            scorer = ScoreEndpoint(
                endpoint, batch=self.endpoint_batch, send_images=self.endpoint_images
            )
        return ReferenceScorer(scorer, self.cache_entries)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"rewards.{name} is {value!r}: use one of {', '.join(allowed)}")


def _check(name: str, value: float, good: Callable[[float], bool], wording: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"rewards.{name} is {value!r}: use a finite number")
    if not good(value):
        raise UserError(f"rewards.{name} is {value!r}: it must be {wording}")
