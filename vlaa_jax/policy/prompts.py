"""From a record to a prompt on the devices: encoding, collating, placing on the mesh."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vlaa_jax.data.images.planner import ladder, vision_shape
from vlaa_jax.data.rows.batches import BatchLayout, PromptBatch, collate_prompts
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.local import local_shards, parts_of, put_known, put_local
from vlaa_jax.parallel.mesh import batch_sharding, data_shards
from vlaa_jax.policy.checked import PromptCheck
from vlaa_jax.policy.pretrained import Pretrained
from vlaa_jax.schema import Record
from vlaa_jax.settings.shared import PromptSettings


class Prompt(NamedTuple):
    """A record ready to be answered.

    Attributes:
        record: where it came from.
        encoded: ids, positions and patches.
        image_size: (width, height) of its first image in pixels, or None for text alone.
        whole: False where another host has the tokens and patches; see ``spread``.
    """

    record: Record
    encoded: Encoded
    image_size: tuple[int, int] | None
    whole: bool = True


class Encoder(PromptCheck):
    """Encodes one record by the limits it is judged by; called in the loader's threads."""

    def __call__(self, record: Record, images: tuple[Image.Image, ...]) -> Prompt:
        """Tokens and pixels of a record and its decoded images."""
        limit, _ = self.limit
        encoded = self.reading.preprocessor(self.data).encode(record, images, max_tokens=limit)
        return Prompt(record, encoded, images[0].size if images else None)


def prompt_inputs(batch: PromptBatch) -> PromptInputs:
    """The model's view of a host batch."""
    host: Any = batch  # numpy arrays stand in for the device's
    return PromptInputs(
        host.ids_PT,
        host.positions_PT3,
        host.length_P,
        host.unit_src_PT,
        VisionInputs(*host.vision),
    )


class Collator:
    """Pads prompts to shapes of the ladder and puts them on the mesh.

    With several hosts, each lays out the prompts of its own data shards, in a shape that all know.

    Args:
        pretrained: tokenizer and image processor.
        data: sizes.
        mesh: the device mesh.
        read: makes prompts whole that are known in outline.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        data: PromptSettings,
        mesh: Mesh,
        read: Callable[[Sequence[Prompt]], list[Prompt]] = list,
    ) -> None:
        self._pretrained = pretrained
        self._data, self._read, self._mesh = data, read, mesh
        self._shards = data_shards(mesh)
        self._local = local_shards(mesh)
        self.sharding = batch_sharding(mesh)

    def __call__(
        self, prompts: Sequence[Prompt], tokens: int | None = None
    ) -> tuple[PromptInputs, PromptBatch]:
        """The prompts on the device, and the host batch they came from: this host's part of it.

        Args:
            prompts: the prompts.
            tokens: positions of each; None takes the ladder's that hold the longest.
        """
        bucket = self._data.min_prompt_bucket
        rows: int | None = self._data.vision_rows_per_bin or None
        bins: int | None = self._data.vision_bins_per_shard or None
        if hosts.count() > 1:
            bucket, (rows, bins) = self.prompt_bucket(prompts), self._common_shape(prompts)
            prompts = self._read(parts_of(self._local, prompts, self._shards))
        layout = BatchLayout(
            len(self._local),
            self._pretrained.chat.pad_id,
            self._pretrained.window_units,
            rows_per_bin=rows,
            bins_per_shard=bins,
        )
        batch = collate_prompts(
            [p.encoded for p in prompts],
            layout,
            tokens=tokens,
            min_tokens=bucket,
            min_prompts=len(prompts),
        )
        return put_local(prompt_inputs(batch), self._mesh), batch

    def _common_shape(self, prompts: Sequence[Prompt]) -> tuple[int, int]:
        """Vision rows and bins of a batch, which do not depend on what lies on which host."""
        part = len(prompts) // self._shards
        grids = [
            [grid for prompt in prompts[start : start + part] for grid in prompt.encoded.grids]
            for start in range(0, len(prompts), part)
        ]
        return vision_shape(
            grids,
            self._pretrained.window_units,
            self._data.vision_rows_per_bin or None,
            self._data.vision_bins_per_shard or None,
        )

    def prompt_bucket(self, prompts: Sequence[Prompt]) -> int:
        """Positions that the longest of some prompts gets after padding."""
        longest = max(prompt.encoded.length for prompt in prompts)
        return ladder(longest, self._data.min_prompt_bucket)

    def put(self, array: np.ndarray) -> jax.Array:
        """An array with P first, split over the data shards."""
        return put_known(array, self.sharding)


class Placed:
    """The prompts of a step on the devices: the same ones are put there once."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._found: dict[tuple[int | None, ...], tuple[PromptInputs, PromptBatch]] = {}

    def __call__(self, prompts: Sequence[Prompt], tokens: int | None = None) -> PromptInputs:
        """The prompts on the devices, each with so many positions."""
        key = (tokens, *(id(prompt) for prompt in prompts))
        if key not in self._found:
            self._found[key] = self._collator(prompts, tokens)
        return self._found[key][0]

    def put(self, array: np.ndarray) -> jax.Array:
        """An array with P first, split over the data shards."""
        return self._collator.put(array)

    def forget(self) -> None:
        """Gives up the last step's arrays."""
        self._found.clear()

    def padding(self) -> dict[str, float]:
        """Share of padding in the step's batches."""
        counts: list[float] = []
        for _, batch in self._found.values():
            patches = batch.vision.seg_id_SQ
            counts += [int(batch.length_P.sum()), batch.ids_PT.size]
            counts += [int(np.count_nonzero(patches)), patches.size]
        found = np.reshape(hosts.total(counts, "what was padded"), (-1, 2, 2))
        frac = 1.0 - found[..., 0] / found[..., 1]
        vision = np.where(found[:, 1, 0] > 0, frac[:, 1], 0.0)
        return {
            "padding/text_frac": float(np.mean(frac[:, 0])),
            "padding/vision_frac": float(np.mean(vision)),
        }
