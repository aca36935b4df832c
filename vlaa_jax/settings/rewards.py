"""Settings of the mixed reward."""

from dataclasses import dataclass

from vlaa_jax.schema import BOX_SPACES
from vlaa_jax.settings.fields import (
    ADDRESS,
    VARIABLE,
    Group,
    above,
    at_least,
    one_of,
    setting,
    within,
)

OPEN_ENDED_BACKENDS = ("none", "score_endpoint", "chat_judge", "reward_head", "text_similarity")

NATIVE = "native"
"""The box space of whatever family the checkpoint is of."""


@dataclass(frozen=True)
class RewardSettings(Group, name="rewards"):
    """Settings of ``MixedReward``; options are off, and open-ended answers have no score.

    Raises:
        UserError: a value is out of range; the message names ``rewards.<field>``.
    """

    open_ended: str = setting("none", one_of(*OPEN_ENDED_BACKENDS))
    """Where S comes from: one of OPEN_ENDED_BACKENDS. With ``none`` an open-ended answer is a
    failure, since nothing replaces a reward model without having been chosen."""
    beta: float = setting(0.2, above(0))
    """Smoothing of the open-ended reward, per point of S."""
    endpoint_url: str = setting("", ADDRESS, harmless=True)
    """Base URL of the score endpoint or chat judge."""
    endpoint_model: str = ""
    """Model name sent to the endpoint; a chat judge needs one."""
    endpoint_key_env: str = setting("VLAA_REWARD_API_KEY", VARIABLE, harmless=True)
    """Environment variable with the bearer token; unset means no token is sent."""
    endpoint_concurrency: int = setting(8, at_least(1), harmless=True)
    """Requests in flight at once."""
    endpoint_timeout_s: float = setting(60.0, above(0), harmless=True)
    """Deadline of one request in seconds, from its turn among the concurrent ones on: retries,
    pauses and, for a batch that is asked in parts, all parts are within it."""
    endpoint_retries: int = setting(3, at_least(0), harmless=True)
    """Further tries after a failure that may pass: overload, server error, lost connection."""
    endpoint_backoff_s: float = setting(0.5, at_least(0), harmless=True)
    """First pause before a retry in seconds; doubles each time."""
    endpoint_batch: int = setting(8, at_least(1), harmless=True)
    """Answers per request to a score endpoint."""
    endpoint_images: bool = True
    """Send the images along with question and answer."""
    endpoint_max_tokens: int = setting(64, at_least(1))
    """Limit of a chat judge's reply in tokens; judges that think aloud first need more."""
    head_checkpoint: str = setting("", path=True)
    """Model of the in-process reward head: an HF directory, one of our checkpoints, or a hub id."""
    head_file: str = setting("", path=True)
    """Safetensors file with the head's weight."""
    head_batch: int = setting(8, at_least(1), harmless=True)
    """Answers the reward head scores at once."""
    head_max_pixels: int = setting(0, at_least(0))
    """Most pixels of an image the reward head sees; 0: its checkpoint's own limit."""
    head_max_tokens: int = setting(4096, at_least(1))
    """Longest conversation the reward head scores, images included; a longer one is a failure."""
    cache_entries: int = setting(100_000, at_least(0), harmless=True)
    """Scores remembered by content hash."""
    math_workers: int = setting(2, at_least(1), harmless=True)
    """Processes for symbolic mathematics."""
    math_timeout_s: float = setting(5.0, above(0), harmless=True)
    """CPU seconds a comparison may take before its process is killed."""
    custom: str = ""
    """``FILE.py:function`` that scores records with the verifier type ``custom``."""
    custom_timeout_s: float = setting(60.0, above(0), harmless=True)
    """Seconds that a batch may take in ``custom`` before its process is killed."""
    custom_batch: int = setting(64, at_least(1))
    """Most answers handed to ``custom`` at once."""
    answer_box_space: str | None = setting(None, one_of(*BOX_SPACES, NATIVE))
    """Coordinate space the model answers in; None means that of the gold box, "native" the one in
    which the family of the checkpoint writes boxes by itself."""
    max_failed_frac: float = setting(0.1, within(0, 1), harmless=True)
    """Share of failed scores in a batch above which the run stops."""
    format_weight: float = setting(0.0, within(0, 1))
    """Share of the reward given to a strict think/answer structure; 0 is the paper's setting."""
    overlong_weight: float = setting(0.0, at_least(0))
    """Weight of the soft overlong penalty."""
    overlong_buffer: int = setting(256, at_least(1))
    """Tokens before the limit over which the overlong penalty grows from 0 to 1."""
    repetition_weight: float = setting(0.0, at_least(0))
    """Weight of the n-gram repetition penalty."""
    repetition_ngram: int = setting(20, at_least(1))
    """Tokens per n-gram of the repetition penalty."""
