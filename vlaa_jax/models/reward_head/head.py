"""Scores from the hidden state of a sequence's last token, as HF ``*ForSequenceClassification``.

score = w . h + b, where h is the state after the final norm of the last token that is not padding,
and w is ``score.weight`` [1, D]. One jitted program per shape, parameters placed like the policy's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vlaa_jax.models.qwen_vl import weights
from vlaa_jax.models.qwen_vl.attend import AUTO
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES
from vlaa_jax.models.qwen_vl.model import Compute, RowInputs, split_model
from vlaa_jax.models.qwen_vl.safetensors_io import TensorInfo, read_header
from vlaa_jax.models.qwen_vl.vision import PixelNorm
from vlaa_jax.parallel.mesh import batch_sharding, data_shards, replicated
from vlaa_jax.parallel.sharding import tree_shardings
from vlaa_jax.schema import UserError

WEIGHT_NAMES = ("score.weight", "v_head.weight", "weight")
"""Names a head's weight goes by: HF sequence classification, value heads, a bare linear layer."""


@dataclass(frozen=True)
class ScalarHead:
    """A model and its head on a mesh.

    Attributes:
        graphdef: structure of the model.
        params: its parameters, sharded as the policy's.
        kernel_D: float32 weight of the head, replicated.
        bias: of the head.
        mesh: where all of it lies.
    """

    graphdef: nnx.GraphDef
    params: Mapping[str, Any]
    kernel_D: jax.Array
    bias: float
    mesh: Mesh

    def score(self, rows: RowInputs) -> np.ndarray:
        """Scores of B rows with one sequence each, float32 [B]; B divides by the data shards.

        Args:
            rows: host or device arrays. A row's sequence is where its segment id is not 0; a row of
                padding alone scores something meaningless.
        """
        rows = jax.device_put(rows, batch_sharding(self.mesh))
        scores = _scores(self.graphdef, self.params, self.kernel_D, rows)
        return np.asarray(scores, np.float32) + np.float32(self.bias)


@partial(jax.jit, static_argnums=0)
def _scores(
    graphdef: nnx.GraphDef, params: Mapping[str, Any], kernel_D: jax.Array, rows: RowInputs
) -> jax.Array:
    model = nnx.merge(graphdef, params)
    hidden_BTD = model.hidden_rows(rows)
    places_T = jnp.arange(rows.segment_ids_BT.shape[1])
    last_B = jnp.max(jnp.where(rows.segment_ids_BT > 0, places_T, 0), axis=1)
    pooled_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    return jnp.dot(pooled_BD.astype(jnp.float32), kernel_D, precision="highest")


def load_scalar_head(
    checkpoint: str | Path,
    head_file: str | Path,
    mesh: Mesh,
    *,
    dtype: str = "float32",
    pixels: PixelNorm | None = None,
) -> ScalarHead:
    """Loads a policy model and a head for it.

    Args:
        checkpoint: an HF directory of a policy model, one of our checkpoints, or a hub id.
        head_file: safetensors file with ``score.weight`` [1, D] and, optionally, ``score.bias``.
        mesh: device mesh; parameters are placed by the policy's rules.
        dtype: of parameters and activations; the head itself is float32.
        pixels: how patches that come as bytes are normalised.

    Raises:
        UserError: one of the two cannot be read, or they do not fit each other.
    """
    path = weights.existing(checkpoint)
    config = weights.load_config(path)
    kernel_D, bias = read_head(Path(head_file), config.text.width)
    compute = Compute(
        dtype=dtype, data_shards=data_shards(mesh), pixels=pixels, attention=AUTO["cpu"]
    )
    graphdef, shapes = split_model(config, compute)
    shardings = tree_shardings(shapes, PARAM_AXES, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=place),
        shapes,
        shardings,
    )
    return ScalarHead(
        graphdef=graphdef,
        params=weights.load_params(path, abstract),
        kernel_D=jax.device_put(kernel_D, replicated(mesh)),
        bias=bias,
        mesh=mesh,
    )


def read_head(file: Path, width: int) -> tuple[np.ndarray, float]:
    """Weight float32 [D] and bias of a head file.

    Raises:
        UserError: no such file, no weight by one of WEIGHT_NAMES, more than one output, or a width
            other than the model's.
    """
    if not file.is_file():
        raise UserError(f"reward head: there is no file {file}")
    tensors = read_header(file)
    name = next((n for n in WEIGHT_NAMES if n in tensors), None)
    if name is None:
        raise UserError(
            f"reward head {file}: none of {', '.join(WEIGHT_NAMES)} among {', '.join(tensors)}"
        )
    if tensors[name].shape not in ((1, width), (width,)):
        raise UserError(
            f"reward head {file}: {name} has shape {tensors[name].shape}, the model needs "
            f"(1, {width}); heads with several outputs are no reward"
        )
    bias_name = name.removesuffix("weight") + "bias"
    bias = float(_read(tensors[bias_name]).reshape(-1)[0]) if bias_name in tensors else 0.0
    return _read(tensors[name]).reshape(width), bias


def _read(info: TensorInfo) -> np.ndarray:
    count = int(np.prod(info.shape, dtype=np.int64))
    flat = np.fromfile(info.file, info.dtype, count=count, offset=info.offset)
    return flat.reshape(info.shape).astype(np.float32)
