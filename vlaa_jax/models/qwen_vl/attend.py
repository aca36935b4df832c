"""Attention over streams by a named backend: the one place that decides which form computes it.

    dense      all scores at once, in float32 (attention.py); the reference, and quickest when short
    blockwise  scores by tiles, plain XLA (blockwise.py)
    splash     a Pallas kernel for TPU (splash.py)

All of them take the same arrays and give the same values and gradients. The last two run inside
`shard_map`, each device on its own rows and heads.
"""

from functools import partial
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec

from vlaa_jax.models.qwen_vl import attention, blockwise, splash
from vlaa_jax.models.qwen_vl.attention import Pattern
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.schema import UserError

Array = jax.Array


class Backend(NamedTuple):
    """A form of attention. Static under jit.

    Attributes:
        name: dense, blockwise or splash.
        dense_up_to: longest stream whose scores are held all the same.
        skips: blockwise leaves out tiles without a segment in common, in loops of unknown length.
        interpret: splash on a device that is no TPU, slowly, for tests.
        layout: where rows and heads lie on a mesh; None leaves it to the compiler.
        heads: logical axis of the heads; None where they are never cut.
    """

    name: str = "dense"
    dense_up_to: int = 0
    skips: bool = False
    interpret: bool = False
    layout: Layout | None = None
    heads: str | None = "heads"


DENSE = Backend()
AUTO = {
    "cpu": Backend("blockwise", dense_up_to=1024, skips=True),
    "gpu": Backend("blockwise", dense_up_to=512),
    "tpu": Backend("splash", dense_up_to=512),
}
"""By platform: what "auto" takes."""


def choose(name: str, platform: str, *, exact: bool = False) -> Backend:
    """The backend that a setting means on some devices.

    Args:
        name: auto, dense, blockwise or splash.
        platform: of the devices: cpu, gpu or tpu.
        exact: products keep the digits of float32, which the TPU kernel's do not.

    Raises:
        UserError: it does not run there.
    """
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    if name == "splash" and (platform != "tpu" or exact):
        reason = "is not exact" if platform == "tpu" else f"is a kernel for TPU, not for {platform}"
        raise UserError(f"model.attention: splash {reason}; take auto or blockwise")
    if name != "auto":
        return Backend(name, skips=name == "blockwise" and platform == "cpu")
    found = AUTO.get(platform, AUTO["gpu"])
    return found._replace(name="blockwise") if exact and found.name == "splash" else found


def attend(
    q_BMNH: Array,
    k_BMKH: Array,
    v_BMKH: Array,
    segments_BM: Array | None,
    pattern: Pattern,
    backend: Backend,
) -> Array:
    """Attention within streams of M positions; see `attention.dense` for arguments and result."""
    arrays = (q_BMNH, k_BMKH, v_BMKH, *(() if segments_BM is None else (segments_BM,)))
    if backend.name == "dense" or q_BMNH.shape[1] <= backend.dense_up_to:
        return attention.dense(q_BMNH, k_BMKH, v_BMKH, segments_BM, pattern)

    def local(q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
        if backend.name == "splash":
            return splash.attend(q, k, v, segments, pattern, interpret=backend.interpret)
        return blockwise.attend(q, k, v, segments, pattern, skips=backend.skips)

    layout = backend.layout
    if layout is None or layout.mesh.size == 1:
        return local(*arrays)
    specs = _specs(layout, q_BMNH, k_BMKH, backend.heads)
    given = (specs, specs, specs, PartitionSpec(*specs[:1]))[: len(arrays)]
    # Kernels say nothing of how their results vary over the mesh, so nothing can be checked.
    on_each = partial(jax.shard_map, mesh=layout.mesh, out_specs=specs, check_vma=False)
    return on_each(local, in_specs=given)(*arrays)


def _specs(layout: Layout, q: Array, k: Array, heads: str | None) -> PartitionSpec:
    """Where queries and keys lie: heads are cut only if both kinds can be."""
    cut, other = (layout.spec(a.shape, ("batch", None, heads, None)) for a in (q, k))
    return cut if cut == other else PartitionSpec(*cut[:1])
