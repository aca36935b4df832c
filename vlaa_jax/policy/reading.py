"""What reads records as a checkpoint will: its tokenizer, image processor and configuration.

No jax here: records are judged before it is imported and before weights are opened or fetched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.models.qwen_vl import weights
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import read_config
from vlaa_jax.schema import UserError
from vlaa_jax.settings.shared import DataSettings


@dataclass(frozen=True)
class Reading:
    """The small files of a checkpoint."""

    sidecars: Path
    """Their directory."""
    config: QwenVLConfig
    chat: Chat
    processor: ImageProcessor

    @classmethod
    def of(cls, checkpoint: str, data: DataSettings) -> Self:
        """Reads them, from an HF directory, one of our checkpoints, a hub id, or the embedded one.

        Args:
            checkpoint: which one.
            data: limits of image sizes.

        Raises:
            UserError: there is nothing there, or it does not fit together.
        """
        sidecars = sidecars_of(checkpoint)
        limits = data.min_pixels or None, data.max_pixels or None
        return cls(
            sidecars,
            read_config(sidecars),
            chat=Chat.from_dir(sidecars),
            processor=ImageProcessor.from_dir(sidecars, *limits),
        )

    @property
    def window_units(self) -> int:
        """Merge units along a window's side; 0 for a tower without windows."""
        vision = self.config.vision
        return vision.window_size // (vision.patch_size * vision.merge_size)

    def preprocessor(self, data: DataSettings) -> Preprocessor:
        """What stands between records and the model, with the run's system prompt."""
        return Preprocessor(self.chat, self.processor, data.system_prompt)


def sidecars_of(checkpoint: str) -> Path:
    """Directory of a checkpoint's small files; of the hub, only these are fetched.

    Raises:
        UserError: no checkpoint is named, or there is none.
    """
    if not checkpoint:
        raise UserError(
            "model.checkpoint is not set: give an HF directory, a converted checkpoint or a hub id "
            "with --config.model.checkpoint=..., or use a :tiny config"
        )
    path = weights.sidecar_dir(checkpoint)
    if not path.exists():
        raise UserError(f"model.checkpoint: {checkpoint} does not exist and is no hub id")
    return path


def config_of(checkpoint: str) -> QwenVLConfig:
    """The model configuration of a checkpoint; nothing large is read."""
    return read_config(sidecars_of(checkpoint))
