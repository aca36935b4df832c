"""From records to prompts on the device: loading, encoding, collating, placing on the mesh."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vlaa_jax.data.batches import PromptBatch, collate_prompts
from vlaa_jax.data.encode import Encoded, encode_prompt
from vlaa_jax.data.loader import ImageOpener, Loader, Order, opener, prompt_loader
from vlaa_jax.data.planner import ladder, unit_count
from vlaa_jax.data.records import Reject, load_records
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.parallel.mesh import batch_sharding, data_shards
from vlaa_jax.rewards.mixed import gold_problem
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings import DataSettings
from vlaa_jax.train.policy import Checkpoint


class Prompt(NamedTuple):
    """A record ready to be answered.

    Attributes:
        record: where it came from.
        encoded: ids, positions and patches.
        image_size: (width, height) of its first image in pixels, or None for text alone.
    """

    record: Record
    encoded: Encoded
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Encoder:
    """Encodes one record; called in the loader's threads."""

    checkpoint: Checkpoint
    data: DataSettings

    def __call__(self, record: Record, images: tuple[Image.Image, ...]) -> Prompt:
        """Tokens and patches of a record and its decoded images."""
        encoded = encode_prompt(
            record,
            images,
            self.checkpoint.chat,
            self.checkpoint.processor,
            system_prompt=self.data.system_prompt,
            max_tokens=self.data.max_prompt_tokens,
        )
        return Prompt(record, encoded, images[0].size if images else None)

    def check(self, record: Record, sizes: Sequence[tuple[int, int]]) -> None:
        """Refuses, without touching pixels, what encoding would refuse.

        Raises:
            UserError: special tokens in the text, a shape the processor refuses, or too long.
        """
        chat, processor = self.checkpoint.chat, self.checkpoint.processor
        ids = chat.prompt_ids(record.question, len(sizes), self.data.system_prompt, what="prompt")
        units = sum(unit_count(processor.grid(*size)) for size in sizes)
        length = len(ids) - len(sizes) + units
        if length > self.data.max_prompt_tokens:
            raise UserError(
                f"the prompt has {length} tokens, {units} of them visual, more than "
                f"data.max_prompt_tokens={self.data.max_prompt_tokens}"
            )


def load_checked(
    path: Path, image_root: Path, encoder: Encoder
) -> tuple[list[Record], list[Reject]]:
    """Reads a GRPO records file and sorts out, before the first step, what cannot be used.

    Golds are put to their verifier, images are decoded, and prompts are measured.

    Args:
        path: records file.
        image_root: folder the image paths are relative to.
        encoder: its settings say whether to stop at the first bad record or to skip it.

    Returns:
        Usable records, and the rejects with their reasons.

    Raises:
        UserError: a record is bad and data.bad_records is "stop", or none is left.
    """
    rejects: list[Reject] = []

    def refuse(reject: Reject) -> None:
        if encoder.data.bad_records == "stop":
            raise UserError(f"{path}: {reject} (data.bad_records=skip leaves such records out)")
        rejects.append(reject)

    records = load_records(path, kind="grpo", strict=False, on_reject=refuse)
    wanted = encoder.data.verifier_types
    numbered = [(i, r) for i, r in enumerate(records) if not wanted or r.verifier_type in wanted]
    images = opener(image_root)
    with ThreadPoolExecutor(max(encoder.data.workers, 1)) as pool:
        problems = pool.map(lambda pair: _problem(pair[1], images, encoder), numbered)
        usable = []
        for (index, record), problem in zip(numbered, problems, strict=True):
            if problem is None:
                usable.append(record)
            else:
                refuse(Reject(str(path), index, None, record.id, *problem))
    if not usable:
        kinds = f" of the types {', '.join(wanted)}" if wanted else ""
        raise UserError(f"{path}: no usable record{kinds} is left")
    return usable, rejects


def _problem(record: Record, images: ImageOpener, encoder: Encoder) -> tuple[str, str] | None:
    """Field and reason why a record cannot be used, or None."""
    reason = gold_problem(
        record.verifier_type or "",
        record.gt or "",
        question=record.question,
        box_space=record.box_space,
    )
    if reason:
        return "gt", reason
    try:
        sizes = [image.size for image in images(record)]
    except UserError as error:
        return "image", str(error)
    try:
        encoder.check(record, sizes)
    except UserError as error:
        return "question", str(error)
    return None


def training_loader(
    records: Sequence[Record], image_root: Path, encoder: Encoder, *, batch: int, seed: int
) -> Loader[list[Prompt]]:
    """Endless shuffled batches of prompts with exact state."""
    return prompt_loader(
        records,
        image_root,
        batch_size=batch,
        order=Order(seed=seed),
        threads=encoder.data.workers,
        process=encoder,
    )


def heldout_prompts(records: Sequence[Record], image_root: Path, encoder: Encoder) -> list[Prompt]:
    """All prompts of a held-out set, in file order."""
    with prompt_loader(
        records,
        image_root,
        batch_size=32,
        order=Order(shuffle=False, epochs=1),
        threads=encoder.data.workers,
        process=encoder,
    ) as loader:
        return [prompt for batch in loader for prompt in batch]


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
    """Pads prompts to shapes of the ladder and puts them on the mesh."""

    def __init__(self, checkpoint: Checkpoint, data: DataSettings, mesh: Mesh) -> None:
        self._checkpoint = checkpoint
        self._data = data
        self._shards = data_shards(mesh)
        self.sharding = batch_sharding(mesh)

    def __call__(self, prompts: Sequence[Prompt]) -> tuple[PromptInputs, PromptBatch]:
        """The prompts on the device, and the host batch they came from."""
        batch = collate_prompts(
            [p.encoded for p in prompts],
            self._shards,
            pad_id=self._checkpoint.chat.pad_id,
            min_tokens=self._data.min_prompt_bucket,
            min_prompts=len(prompts),
            window_units=self._checkpoint.window_units,
            rows_per_bin=self._data.vision_rows_per_bin or None,
            bins_per_shard=self._data.vision_bins_per_shard or None,
        )
        return jax.device_put(prompt_inputs(batch), self.sharding), batch

    def prompt_bucket(self, prompts: Sequence[Prompt]) -> int:
        """Positions that the longest of some prompts gets after padding."""
        longest = max(prompt.encoded.length for prompt in prompts)
        return ladder(longest, self._data.min_prompt_bucket)

    def put(self, array: np.ndarray) -> jax.Array:
        """An array with P first, split over the data shards."""
        return jax.device_put(array, self.sharding)
