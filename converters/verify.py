"""Proof for one checkpoint: converted and back byte for byte, and logits equal to transformers'.

The comparison runs in float32 on the CPU over generated images of ragged sizes and random text,
with transformers' eager attention as the oracle. torch is needed here and nowhere else.
"""

import gc
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from PIL import Image

from converters import hf_to_jax, jax_to_hf
from vlaa_jax.data.images.planner import gather_patches, plan_vision
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import ARCHITECTURES, read_config
from vlaa_jax.models.qwen_vl.hf_keys import LM_HEAD, canonical
from vlaa_jax.models.qwen_vl.model import RowInputs, split_model
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.models.qwen_vl.weights import existing, load_params
from vlaa_jax.schema import Grid, UserError

TOLERANCE = 1e-5
"""Largest difference of logits over the largest logit; float32 reorderings stay near 1e-6."""
_IMAGE_SIZES = (((140, 84), (252, 336)), ((420, 56),), ())
"""Width and height in pixels of the images of each sample: ragged, a strip, text alone."""


@dataclass(frozen=True)
class Report:
    """What ``verify`` found."""

    tensors: int
    """Tensors that came back byte for byte."""
    max_relative_error: float
    """max |ours - theirs| / max |theirs| over the logits of all samples."""
    same_argmax_frac: float
    """Share of positions where both rank the same token first."""

    @property
    def passed(self) -> bool:
        """Whether the logits agree within the tolerance."""
        return self.max_relative_error <= TOLERANCE


@dataclass(frozen=True)
class Sample:
    """One generated prompt: its ids, and per image the patches and their grid."""

    ids_T: NDArray[np.int32]
    patches: tuple[NDArray[np.float32], ...]
    grids: tuple[Grid, ...]


def verify(source: str | Path, *, scratch: str | Path | None = None, seed: int = 0) -> Report:
    """Converts an HF directory there and back, and compares logits with transformers.

    Args:
      source: HF directory or hub id.
      scratch: where to put the two converted copies; by default the system's temporary place.
      seed: of the generated images and text.

    Raises:
      UserError: torch or a usable transformers is missing, the source is broken, or a tensor did
        not come back byte for byte.
    """
    directory = existing(source)
    config = read_config(directory)
    oracle_class = _oracle_class(config.family)
    if scratch is not None and not Path(scratch).is_dir():
        raise UserError(f"--scratch {scratch} is no directory")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="verify-") as place:
        converted = hf_to_jax.convert(directory, Path(place) / "jax")
        exported = jax_to_hf.export(converted, Path(place) / "hf")
        tensors = _check_bytes(directory, exported, tied=config.tie_word_embeddings)
        samples = list(_draw_samples(directory, config, seed))
        theirs = _oracle_logits(oracle_class, directory, config, samples)
        gc.collect()
        ours = _our_logits(converted, config, samples)
    # np.max, not max: a NaN anywhere must come out as NaN, which no limit passes.
    largest = float(np.max([np.abs(a).max() for a in theirs]))
    difference = float(np.max([np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)]))
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)]
    return Report(tensors, difference / largest, float(np.concatenate(same).mean()))


def _oracle_class(family: str) -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError:
        raise UserError(
            "verify compares with transformers on torch, which is not installed: "
            "pip install 'vlaa_jax[test]'"
        ) from None
    refuse_wrong_oracle(transformers.__version__)
    return getattr(transformers, ARCHITECTURES[family])


def refuse_wrong_oracle(version: str) -> None:
    """Raises UserError for the transformers releases that place images wrongly."""
    if (5, 3) <= tuple(int(part) for part in version.split(".")[:2]) <= (5, 5):
        raise UserError(
            f"transformers {version} computes wrong image positions "
            "(huggingface/transformers#45325); install 5.6 or newer"
        )


def _check_bytes(source: Path, exported: Path, *, tied: bool) -> int:
    before, after = (_digests(directory) for directory in (source, exported))
    if tied:
        before.pop(LM_HEAD, None)  # redundant there, and left out on purpose
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if changed:
        raise UserError(f"{source}: tensors changed on the way there and back: {changed}")
    return len(after)


def _digests(directory: Path) -> dict[str, str]:
    reader = SafetensorsReader(directory)
    digests = {}
    for name, info in reader.tensors.items():
        digest = hashlib.sha256(f"{info.dtype} {info.shape}".encode())
        digest.update(reader.view(name).reshape(-1).view(np.uint8).data)
        digests[canonical(name)] = digest.hexdigest()
    return digests


def _draw_samples(directory: Path, config: QwenVLConfig, seed: int) -> Iterator[Sample]:
    rng = np.random.default_rng(seed)
    processor = ImageProcessor()
    if any((directory / f"{name}rocessor_config.json").exists() for name in ("p", "prep")):
        processor = ImageProcessor.from_dir(directory)
    unit = config.vision.merge_size**2
    special = {config.image_token_id, config.video_token_id}
    special |= {config.vision_start_token_id, config.vision_end_token_id}
    if max(special) >= config.text.vocab_size:
        raise UserError(
            f"{directory / 'config.json'}: token id {max(special)} lies outside of vocab_size "
            f"{config.text.vocab_size}"
        )
    words = np.array([i for i in range(config.text.vocab_size) if i not in special], np.int32)
    for sizes in _IMAGE_SIZES:
        drawn = [processor.patches(_draw_image(rng, *size)) for size in sizes]
        ids = [rng.choice(words, 9)]
        for _, (t, h, w) in drawn:
            ids += [
                np.array([config.vision_start_token_id]),
                np.full(t * h * w // unit, config.image_token_id),
                np.array([config.vision_end_token_id]),
                rng.choice(words, 7),
            ]
        patches, grids = tuple(p for p, _ in drawn), tuple(g for _, g in drawn)
        yield Sample(np.concatenate(ids).astype(np.int32), patches, grids)


def _draw_image(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A gradient with noise: smooth and sharp content at once."""
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    noisy = ramp * rng.uniform(0.3, 1, 3) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _oracle_logits(
    oracle_class: Any, directory: Path, config: QwenVLConfig, samples: list[Sample]
) -> list[NDArray[np.float32]]:
    import torch

    model = oracle_class.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    logits = []
    for sample in samples:
        ids = torch.tensor(sample.ids_T[None].astype(np.int64))
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            # Without these transformers 5 silently numbers positions as plain text.
            "mm_token_type_ids": (ids == config.image_token_id).long(),
        }
        if sample.grids:
            inputs["pixel_values"] = torch.tensor(np.concatenate(sample.patches))
            inputs["image_grid_thw"] = torch.tensor(sample.grids)
        with torch.no_grad():
            logits.append(model(**inputs, use_cache=False).logits[0].float().numpy())
    return logits


def _our_logits(
    checkpoint: Path, config: QwenVLConfig, samples: list[Sample]
) -> list[NDArray[np.float32]]:
    cpu = jax.devices("cpu")[0]
    graphdef, _ = split_model(config)
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        params = jax.device_put(load_params(checkpoint, dtype=np.float32), cpu)
        return [
            np.asarray(_forward(graphdef, params, _rows(config, sample))[0]) for sample in samples
        ]


@partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, params: dict[str, Any], rows: RowInputs) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return model.hidden_rows(rows) @ model.head_kernel_DV


def _rows(config: QwenVLConfig, sample: Sample) -> RowInputs:
    """The sample as one unpadded row."""
    vision = config.vision
    positions_T3, _ = mrope_positions(
        sample.ids_T,
        sample.grids,
        image_token_id=config.image_token_id,
        merge_size=vision.merge_size,
    )
    unit_src_T = np.full(sample.ids_T.shape, -1, np.int32)
    buffer = None
    if sample.grids:
        windows = vision.window_size // (vision.patch_size * vision.merge_size)
        plan = plan_vision([sample.grids], window_units=windows)
        patches = gather_patches(plan, [list(sample.patches)])
        arrays = (patches, plan.pos_hw_SR642, plan.win_id_SR64, plan.seg_id_SQ)
        buffer = VisionInputs(*map(jnp.asarray, arrays))
        unit_src_T[sample.ids_T == config.image_token_id] = np.concatenate(plan.units[0])
    return RowInputs(
        jnp.asarray(sample.ids_T)[None],
        jnp.asarray(positions_T3)[None],
        jnp.ones((1, len(sample.ids_T)), jnp.int32),
        jnp.asarray(unit_src_T)[None],
        buffer,
    )
