"""The in-process reward head as the rewards room sees it: texts and images in, numbers out."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from vlaa_jax.data.images.files import decode_image
from vlaa_jax.data.images.planner import ladder
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.rows.batches import BatchLayout, collate_rows
from vlaa_jax.data.samples.preprocessor import Encoded, Preprocessor
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.foreign import MAX_IMAGE_BYTES, read_bytes
from vlaa_jax.models.qwen_vl import weights
from vlaa_jax.models.qwen_vl.hf_config import read_config
from vlaa_jax.models.qwen_vl.model import RowInputs
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.models.reward_head.head import ScalarHead, load_scalar_head
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.mesh import data_shards
from vlaa_jax.policy.checked import HEAD, headless
from vlaa_jax.policy.pretrained import pixel_norm
from vlaa_jax.policy.reading import config_of
from vlaa_jax.rewards.mixed import MixedReward
from vlaa_jax.rewards.open_ended import AnswerItem, AnswerScorer, Judged
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings.rewards import RewardSettings


class InProcessRewardHead(AnswerScorer):
    """Scores texts by a scalar head on one of our own models, in this process.

    A text is scored as a finished conversation: images and question of the user, the answer of the
    assistant, its end-of-turn token pooled. Batches are dealt to the mesh in one jitted call each.

    Args:
        checkpoint: model of the head: an HF directory, one of our checkpoints, or a hub id.
        head_file: safetensors file of the head; see ``load_scalar_head``.
        mesh: the trainer's device mesh.
        dtype: of parameters and activations.
        batch: sequences per call; rounded up to the data shards.
        max_pixels: most pixels of an image; None: the checkpoint's own limit.
        max_tokens: longest conversation; a longer one has no score.

    Raises:
        UserError: checkpoint or head cannot be read, or they do not fit each other.
    """

    name = "reward_head"
    uses_devices = True

    def __init__(
        self,
        checkpoint: str | Path,
        head_file: str | Path,
        mesh: Mesh,
        *,
        dtype: str = "float32",
        batch: int = 8,
        max_pixels: int | None = None,
        max_tokens: int = 4_096,
    ) -> None:
        self.identity = f"head {checkpoint} {head_file} {dtype} {max_pixels} {max_tokens}"
        path = weights.resolve(str(checkpoint))
        if not path.exists():
            raise UserError(f"reward head: {checkpoint} does not exist and is no hub id")
        sidecars = weights.sidecar_dir(path)
        self._chat = Chat.from_dir(sidecars)
        self._processor = ImageProcessor.from_dir(sidecars, max_pixels=max_pixels)
        self._head: ScalarHead = load_scalar_head(
            path, head_file, mesh, dtype=dtype, pixels=pixel_norm(self._processor)
        )
        vision = read_config(sidecars).vision
        self._window_units = vision.window_size // (vision.patch_size * vision.merge_size)
        self._shards = data_shards(mesh)
        self._batch = -(-batch // self._shards) * self._shards
        self._max_tokens = max_tokens
        self._lock = threading.Lock()

    def score_answers(self, items: Sequence[AnswerItem]) -> list[Judged]:
        """One score per item, in order, or why it cannot be encoded.

        Deterministic, and independent of the batch an item comes in up to float rounding.
        """
        judged = [Judged(error="not scored")] * len(items)
        encoded: list[tuple[int, Encoded]] = []
        for index, item in enumerate(items):
            try:
                encoded.append((index, self._encode(item)))
            except (UserError, OSError, ValueError) as error:
                judged[index] = Judged(error=" ".join(str(error).split())[:300])
        encoded.sort(key=lambda pair: pair[1].length)  # like lengths together: less padding
        for start in range(0, len(encoded), self._batch):
            part = encoded[start : start + self._batch]
            for (index, _), value in zip(part, self._score([e for _, e in part]), strict=True):
                judged[index] = Judged(value)
        return judged

    def _encode(self, item: AnswerItem) -> Encoded:
        images = [
            decode_image(read_bytes(Path(path), MAX_IMAGE_BYTES), path) for path in item.images
        ]
        record = Record("reward head", item.question, item.images, answer=item.answer)
        return Preprocessor(self._chat, self._processor).encode(
            record, images, max_tokens=self._max_tokens, with_answer=True
        )

    def _score(self, sequences: list[Encoded]) -> list[float]:
        rows = [[sequence] for sequence in sequences]
        rows += [[] for _ in range(-len(rows) % self._batch)]
        batch = collate_rows(
            rows,
            BatchLayout(self._shards, pad_id=self._chat.pad_id, window_units=self._window_units),
            tokens_per_row=ladder(max(s.length for s in sequences), 64),
        )
        text: list[Any] = [
            batch.ids_BT,
            batch.positions_BT3,
            batch.segment_ids_BT,
            batch.unit_src_BT,
        ]
        buffer: list[Any] = list(batch.vision)
        has_images = any(sequence.grids for sequence in sequences)
        text.append(VisionInputs(*buffer) if has_images else None)
        inputs = RowInputs(*text)
        with self._lock:  # scoring threads take turns on the devices
            return [float(score) for score in self._head.score(inputs)[: len(sequences)]]


def head_scorer(settings: RewardSettings, mesh: Mesh, dtype: str) -> InProcessRewardHead:
    """The open-ended scorer around the reward head that the settings name.

    Args:
        settings: with ``head_checkpoint``, ``head_file`` and the other ``head_`` fields.
        mesh: the trainer's device mesh.
        dtype: of the head's model.

    Raises:
        UserError: checkpoint or head is not named, or cannot be read.
    """
    for name in ("head_checkpoint", "head_file"):
        if not getattr(settings, name):
            raise UserError(f"rewards.open_ended is 'reward_head': set rewards.{name}")
    return InProcessRewardHead(
        settings.head_checkpoint,
        settings.head_file,
        mesh,
        dtype=dtype,
        batch=settings.head_batch,
        max_pixels=settings.head_max_pixels or None,
        max_tokens=settings.head_max_tokens,
    )


def mixed_reward(settings: RewardSettings, mesh: Mesh, dtype: str, checkpoint: str) -> MixedReward:
    """The mixed reward, with the in-process head where the settings choose it.

    Args:
        settings: of the reward.
        mesh: the head lies on it.
        dtype: of the head's activations.
        checkpoint: whose answers are scored; its family says what "native" boxes are.

    Raises:
        UserError: the head or the checkpoint cannot be used.
    """
    return with_head(headless(settings, config_of(checkpoint).family), settings, mesh, dtype)


def with_head(reward: MixedReward, settings: RewardSettings, mesh: Mesh, dtype: str) -> MixedReward:
    """A `headless` reward, or in its place one with the head where the settings choose it.

    Raises:
        UserError: the head cannot be used.
    """
    if settings.open_ended != HEAD:
        return reward
    if hosts.count() > 1:
        raise UserError(
            "rewards.open_ended: reward_head works on one host; serve the head and name the "
            "server instead"
        )
    reward.close()
    whole = dataclasses.replace(reward.settings, open_ended=HEAD)
    return MixedReward(whole, head_scorer(settings, mesh, dtype))
