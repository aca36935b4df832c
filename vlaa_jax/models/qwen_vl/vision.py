"""The vision tower over one padded, window-major buffer of patches.

The host planner has already put the patches of a window next to each other: a row holds 64 patches
(one full window or several partial ones), a bin holds R rows. A windowed block is then a dense
64 x 64 attention with an equality mask on ``win_id``, a full block is attention inside a frame
(``seg_id``) over a bin, and the merger reads groups of four neighbouring patches. HF's window
permutation, its inverse and the masked scatter have no counterpart here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.models.qwen_vl import rope
from vlaa_jax.models.qwen_vl.attention import FULL, Pattern, masked_attention
from vlaa_jax.models.qwen_vl.config import VisionConfig
from vlaa_jax.models.qwen_vl.layers import (
    GatedMlp,
    KernelPlace,
    LayerNorm,
    Linear,
    QuickGeluMlp,
    RMSNorm,
    gelu,
    matmul,
    scan_layers,
)

Array = jax.Array
QKV = tuple[Array, Array, Array]
AttendStreams = Callable[[Array, Array, Array, Array | None, Pattern], Array]
"""``attend(q_BMNH, k_BMNH, v_BMNH, segments_BM, pattern)``, see attend.py."""

NORM_EPS = 1e-6  # fixed in HF's tower, not part of the configuration
ROW_PATCHES = 64


class PixelNorm(NamedTuple):
    """How bytes become the tower's input: (value * rescale - mean) / std, by channel.

    Attributes:
        rescale: 1 / 255 for the released models.
        mean: of red, green and blue.
        std: of red, green and blue.
        frames: how often a still image is repeated along time.
    """

    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int

    def __call__(self, pixels: Array) -> Array:
        """Bytes [..., 3 * H * W] to float32 [..., 3 * frames * H * W], as HF's processor does."""
        lead = pixels.shape[:-1]
        planes = pixels.astype(jnp.float32).reshape(*lead, len(self.mean), 1, -1)
        mean, std = (jnp.array(a, jnp.float32)[:, None, None] for a in (self.mean, self.std))
        planes = (planes * jnp.float32(self.rescale) - mean) / std
        shape = (*planes.shape[:-2], self.frames, planes.shape[-1])
        return jnp.broadcast_to(planes, shape).reshape(*lead, -1)


class VisionInputs(NamedTuple):
    """The planner's buffer on the device.

    Attributes:
        patches_SR64C: pixels of each patch, flattened (C, T, H, W); S bins of R rows. Normalised
            floats, or bytes of one frame, an eighth of the size, which the model normalises.
        pos_hw_SR642: int row and column on the frame's patch grid.
        win_id_SR64: int window number, equal inside a window; 0 is padding.
        seg_id_SQ: int frame number over Q = R * 64 patches of a bin; 0 is padding.
    """

    patches_SR64C: Array
    pos_hw_SR642: Array
    win_id_SR64: Array
    seg_id_SQ: Array


class VisionAttention(nnx.Module):
    """Self-attention with fused qkv, split in the order q, k, v."""

    def __init__(self, config: VisionConfig, *, stack: tuple[int, ...], rngs: nnx.Rngs) -> None:
        width = config.width
        self.qkv = Linear(width, 3 * width, bias=True, stack=stack, rngs=rngs)
        self.proj = Linear(width, width, bias=True, stack=stack, rngs=rngs)
        self.heads = config.heads

    def project(self, x_ND: Array, cos_NH: Array, sin_NH: Array) -> tuple[Array, Array, Array]:
        """Rotated queries and keys, and values: three arrays [N, heads, H]."""
        qkv = self.qkv(x_ND).reshape(x_ND.shape[0], 3, self.heads, -1)
        q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
        return rope.rotate(q, cos_NH, sin_NH), rope.rotate(k, cos_NH, sin_NH), v


class VisionBlock(nnx.Module):
    """Pre-norm transformer block of either family."""

    def __init__(
        self, config: VisionConfig, *, gated: bool, stack: tuple[int, ...], rngs: nnx.Rngs
    ) -> None:
        norm = RMSNorm if gated else LayerNorm
        self.norm1 = norm(config.width, eps=NORM_EPS, stack=stack)
        self.norm2 = norm(config.width, eps=NORM_EPS, stack=stack)
        self.attn = VisionAttention(config, stack=stack, rngs=rngs)
        if gated:
            self.mlp: GatedMlp | QuickGeluMlp = GatedMlp(
                config.width, config.intermediate, bias=True, stack=stack, rngs=rngs
            )
        else:
            self.mlp = QuickGeluMlp(config.width, config.intermediate, stack=stack, rngs=rngs)


class PatchMerger(nnx.Module):
    """Joins four neighbouring patches into one visual token of the decoder's width."""

    def __init__(self, config: VisionConfig, *, gated: bool, rngs: nnx.Rngs) -> None:
        self.group = config.merge_size**2
        wide = config.width * self.group
        norm = RMSNorm if gated else LayerNorm
        self.ln_q = norm(config.width, eps=NORM_EPS)
        self.mlp_0 = Linear(wide, wide, bias=True, rngs=rngs)
        self.mlp_2 = Linear(wide, config.out_size, bias=True, rngs=rngs)

    def __call__(self, x_ND: Array) -> Array:
        """Maps N patches [N, W] to N/4 units [N/4, D]."""
        wide = self.ln_q(x_ND).reshape(x_ND.shape[0] // self.group, -1)
        return self.mlp_2(gelu(self.mlp_0(wide)))


class PatchEmbed(nnx.Module):
    """HF's Conv3d with kernel = stride, written as one product; no bias."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs) -> None:
        shape = (config.patch_dim, config.width)
        self.kernel = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.place: KernelPlace | None = nnx.static(None)

    def __call__(self, patches_NC: Array) -> Array:
        """Maps [N, C] to [N, W]."""
        return matmul(patches_NC, self.kernel[...], self.place).astype(patches_NC.dtype)


class VisionTower(nnx.Module):
    """Qwen2-VL (all blocks full) or Qwen2.5-VL (mostly windowed) vision transformer."""

    def __init__(self, config: VisionConfig, *, gated: bool, rngs: nnx.Rngs) -> None:
        self.config = config
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.blocks = VisionBlock(config, gated=gated, stack=(config.depth,), rngs=rngs)
        self.merger = PatchMerger(config, gated=gated, rngs=rngs)

    def __call__(
        self,
        inputs: VisionInputs,
        *,
        dtype: jnp.dtype,
        remat: str,
        unroll: int | bool,
        attend: AttendStreams,
    ) -> Array:
        """Encodes a buffer.

        Args:
            inputs: the planner's arrays.
            dtype: activation dtype.
            remat: rematerialisation policy of the blocks (a key of layers.REMAT_POLICIES).
            unroll: unroll factor of the scan over blocks.
            attend: attention within streams, for full blocks.

        Returns:
            Merged units [S * R * 16, D] in buffer order; rows of padding hold finite noise.
        """
        bins, rows = inputs.patches_SR64C.shape[:2]
        tokens = bins * rows * ROW_PATCHES
        head_dim = self.config.width // self.config.heads
        cos, sin = rope.vision_tables(inputs.pos_hw_SR642.reshape(tokens, 2), head_dim=head_dim)
        x_ND = self.patch_embed(inputs.patches_SR64C.astype(dtype).reshape(tokens, -1))
        kind = _attention_kinds(self.config)

        def body(block: VisionBlock, x_ND: Array, is_full: Array) -> tuple[Array, None]:
            qkv = block.attn.project(block.norm1(x_ND), cos, sin)
            if kind == "full":
                mixed = _attend_frames(qkv, inputs, attend)
            elif kind == "windowed":
                mixed = _attend_windows(qkv, inputs)
            else:
                mixed = jax.lax.cond(
                    is_full,
                    lambda: _attend_frames(qkv, inputs, attend),
                    lambda: _attend_windows(qkv, inputs),
                )
            x_ND = x_ND + block.attn.proj(mixed)
            return x_ND + block.mlp(block.norm2(x_ND)), None

        is_full = jnp.array([i in self.config.full_blocks for i in range(self.config.depth)])
        x_ND, _ = scan_layers(self.blocks, body, x_ND, is_full, remat=remat, unroll=unroll)
        return self.merger(x_ND)


def _attention_kinds(config: VisionConfig) -> str:
    full = set(config.full_blocks) & set(range(config.depth))
    if len(full) == config.depth:
        return "full"
    return "mixed" if full else "windowed"


def _attend_windows(qkv: QKV, inputs: VisionInputs) -> Array:
    """Attention inside windows: dense over rows of 64 patches, masked by window number."""

    # Scores are recomputed in the backward pass, so that the branch not taken by `lax.cond`
    # leaves no score-sized residual behind.
    @jax.checkpoint
    def run(q: Array, k: Array, v: Array) -> Array:
        win_id = inputs.win_id_SR64.reshape(-1, ROW_PATCHES)
        mask = win_id[:, :, None] == win_id[:, None, :]
        shape = (win_id.shape[0], ROW_PATCHES, *q.shape[1:])
        out = masked_attention(q.reshape(shape), k.reshape(shape), v.reshape(shape), mask)
        return out.reshape(q.shape[0], -1)

    return run(*qkv)


def _attend_frames(qkv: QKV, inputs: VisionInputs, attend: AttendStreams) -> Array:
    """Attention inside frames: over a bin, by frame number."""

    @jax.checkpoint
    def run(q: Array, k: Array, v: Array) -> Array:
        seg_id = inputs.seg_id_SQ
        shape = (*seg_id.shape, *q.shape[1:])
        out = attend(q.reshape(shape), k.reshape(shape), v.reshape(shape), seg_id, FULL)
        return out.reshape(q.shape[0], -1)

    return run(*qkv)
