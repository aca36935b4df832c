"""Everything that comes from a checkpoint: what reads records, and weights on the mesh."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vlaa_jax import disk
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.models.qwen_vl import lora, weights
from vlaa_jax.models.qwen_vl.attend import choose
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.model import Compute, split_model
from vlaa_jax.models.qwen_vl.trees import merge, part_of
from vlaa_jax.models.qwen_vl.vision import PixelNorm
from vlaa_jax.parallel.mesh import data_shards, platform_of
from vlaa_jax.parallel.sharding import Layout, dotted, tree_shardings
from vlaa_jax.policy.reading import Reading
from vlaa_jax.rollout.sampling import allowed_tokens
from vlaa_jax.rollout.weights import is_matrix
from vlaa_jax.settings.shared import DataSettings, ModelSettings

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Pretrained(Reading):
    """What a checkpoint brings; its weights are read by `load_params`."""

    path: Path
    graphdef: nnx.GraphDef
    base_graphdef: nnx.GraphDef
    """Structure without LoRA branches; the same as `graphdef` where there are none."""
    abstract: Mapping[str, Any]
    """Shapes, dtypes and shardings of the parameters, LoRA branches included."""
    allowed_V: np.ndarray

    def load_params(self, seed: int = 0) -> dict[str, Any]:
        """Reads the weights straight onto the mesh, each device its own slices.

        LoRA branches are new, drawn from `seed`: those of a trained run are read merged.
        """
        base = lora.without_adapters(self.abstract)
        params = weights.load_params(self.path, base)
        branches = lora.adapters_of(self.abstract)
        return merge(params, lora.init_branches(branches, seed)) if branches else params


def open_pretrained(
    model: ModelSettings,
    data: DataSettings,
    mesh: Mesh,
    *,
    trains: bool = True,
    reading: Reading | None = None,
) -> Pretrained:
    """Opens an HF directory, one of our checkpoints, a hub id, or the embedded default.

    Args:
        model: which checkpoint, and what of it trains.
        data: limits of image sizes.
        mesh: the device mesh.
        trains: whether anything trains at all.
        reading: its small files, where they are open already.

    Raises:
        UserError: there is nothing there, or it does not fit together.
    """
    reading = reading or Reading.of(model.checkpoint, data)
    config, chat, processor = reading.config, reading.chat, reading.processor
    compute = compute_of(model, config, mesh, pixel_norm(processor))
    base_graphdef, _ = split_model(config, compute)
    graphdef, shapes = split_model(config, compute, model.lora)
    return Pretrained(
        **vars(reading),
        path=weights.resolve(model.checkpoint),
        graphdef=graphdef,
        base_graphdef=base_graphdef,
        abstract=place_params(shapes, model, layout(config, mesh), trains=trains),
        allowed_V=allowed_tokens(config.text.vocab_size, chat.vocab_size, chat.structural_ids),
    )


def pixel_norm(processor: ImageProcessor) -> PixelNorm:
    """How the model normalises the bytes that a processor cuts into patches."""
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return PixelNorm(processor.rescale_factor, mean, std, processor.temporal_patch_size)


def compute_of(
    model: ModelSettings, config: QwenVLConfig, mesh: Mesh, pixels: PixelNorm
) -> Compute:
    """How a model computes on a mesh.

    Raises:
        UserError: the form of attention that is named does not run there.
    """
    platform = platform_of(mesh)
    # HIGH is three bfloat16 products on a TPU; on a GPU it would be TF32, which is not exact.
    high = jax.lax.Precision.HIGH if platform == "tpu" else jax.lax.Precision.HIGHEST
    return Compute(
        dtype=model.activations,
        remat=model.remat,
        unroll=model.unroll or True,
        data_shards=data_shards(mesh),
        layout=layout(config, mesh),
        pixels=pixels,
        attention=choose(model.attention, platform, exact=model.exact),
        exact=high if model.exact else None,
    )


def place_params(
    shapes: Mapping[str, Any], model: ModelSettings, where: Layout, *, trains: bool = True
) -> Any:
    """Shapes, dtypes and places of the parameters that training holds, like `shapes`."""
    shardings = tree_shardings(shapes, PARAM_AXES, where)

    def place(path: tuple, leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        # A matrix that never trains gains nothing from more digits than it is multiplied with;
        # one that trains needs them: at a rate of 1e-6 a bfloat16 weight hardly ever moves.
        name = dotted(path)
        adapts = bool(model.lora.rank) and not lora.is_adapter(name)
        still = not trains or adapts or part_of(name) in model.freeze
        dtype = model.matrices if still and is_matrix(name) else "float32"
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def copy_sidecars(source: Path, target: Path) -> None:
    """Copies every file of an HF directory that is not a weight, byte for byte."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES):
            disk.write_bytes(target / file.name, file.read_bytes())
