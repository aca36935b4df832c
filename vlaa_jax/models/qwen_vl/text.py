"""The decoder: one layer body for every layout.

A layer sees tokens flattened to [N, D] and an ``attend`` function. The layout (packed rows, prompt
with its G completions, one decoding step with a cache) lives in that function alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vlaa_jax.models.qwen_vl import rope
from vlaa_jax.models.qwen_vl.config import TextConfig
from vlaa_jax.models.qwen_vl.layers import GatedMlp, Linear, RMSNorm, rounded, scan_layers
from vlaa_jax.parallel.sharding import Layout

Array = jax.Array

Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""``attend(q_NNhH, k_NKH, v_NKH, x) -> (mixed [N, heads * H], y)``, x and y per layer."""


class Embedding(nnx.Module):
    """Token embedding table [V, D]."""

    def __init__(self, vocab: int, width: int, *, rngs: nnx.Rngs) -> None:
        shape = (vocab, width)
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.layout: Layout | None = nnx.static(None)
        self.rounds = False

    def __call__(self, ids: Array, dtype: jnp.dtype) -> Array:
        """Looks up integer ids of any shape; returns [..., D] in `dtype`.

        Every device looks its slice of the width up for all tokens, and the slices change places:
        the table is never gathered, and neither is its gradient.
        """
        layout, kernel = self.layout, self.embedding[...]
        if layout is None:
            return self._read(jnp.take(kernel, ids, axis=0), dtype)
        flat = layout.pin(ids.reshape(-1), "copies")
        slices_ND = self._read(jnp.take(kernel, flat, axis=0), dtype)
        x_ND = layout.pin(layout.pin(slices_ND, "copies", "embed"), "batch", "embed")
        return x_ND.reshape(*ids.shape, -1)

    def _read(self, rows: Array, dtype: jnp.dtype) -> Array:
        return (rounded(rows) if self.rounds else rows).astype(dtype)


class SelfAttention(nnx.Module):
    """Grouped-query projections: q, k, v with bias, o without."""

    def __init__(self, config: TextConfig, *, stack: tuple[int, ...], rngs: nnx.Rngs) -> None:
        width, head_dim = config.width, config.head_dim
        inner, kv_inner = config.heads * head_dim, config.kv_heads * head_dim
        self.q_proj = Linear(width, inner, bias=True, stack=stack, rngs=rngs)
        self.k_proj = Linear(width, kv_inner, bias=True, stack=stack, rngs=rngs)
        self.v_proj = Linear(width, kv_inner, bias=True, stack=stack, rngs=rngs)
        self.o_proj = Linear(inner, width, bias=False, stack=stack, rngs=rngs)
        self.head_dim = head_dim
        self.layout: Layout | None = nnx.static(None)

    def project(self, x_ND: Array, cos_NH: Array, sin_NH: Array) -> tuple[Array, Array, Array]:
        """Rotated queries [N, heads, H], rotated keys and values [N, K, H].

        Where the mesh cuts heads into more parts than there are key heads, these are repeated: K
        is then larger, and every part attends to its own.
        """
        count = x_ND.shape[0]
        q = self.q_proj(x_ND).reshape(count, -1, self.head_dim)
        k = self.k_proj(x_ND).reshape(count, -1, self.head_dim)
        v = self.v_proj(x_ND).reshape(count, -1, self.head_dim)
        q, k = rope.rotate(q, cos_NH, sin_NH), rope.rotate(k, cos_NH, sin_NH)
        if self.layout is None:
            return q, k, v
        copies = self.layout.copies_of("kv_heads", k.shape[1])
        if copies > 1 and q.shape[1] % (copies * k.shape[1]) == 0:
            k, v = jnp.repeat(k, copies, axis=1), jnp.repeat(v, copies, axis=1)
        # "heads" for keys too: repeated ones are as many as the mesh has parts.
        q, k, v = (self.layout.pin(a, "batch", "heads", None) for a in (q, k, v))
        return q, k, v


class DecoderLayer(nnx.Module):
    """Pre-norm Qwen2 decoder layer."""

    def __init__(self, config: TextConfig, *, stack: tuple[int, ...], rngs: nnx.Rngs) -> None:
        eps = config.rms_norm_eps
        self.input_layernorm = RMSNorm(config.width, eps=eps, stack=stack)
        self.post_attention_layernorm = RMSNorm(config.width, eps=eps, stack=stack)
        self.self_attn = SelfAttention(config, stack=stack, rngs=rngs)
        self.mlp = GatedMlp(config.width, config.intermediate, bias=False, stack=stack, rngs=rngs)

    def __call__(
        self, x_ND: Array, cos_NH: Array, sin_NH: Array, attend: Attend, x_layer: Any
    ) -> tuple[Array, Any]:
        """One layer on flattened tokens; returns [N, D] and what `attend` hands out."""
        q, k, v = self.self_attn.project(self.input_layernorm(x_ND), cos_NH, sin_NH)
        mixed, y_layer = attend(q, k, v, x_layer)
        x_ND = x_ND + self.self_attn.o_proj(mixed)
        return x_ND + self.mlp(self.post_attention_layernorm(x_ND)), y_layer


class TextModel(nnx.Module):
    """Embedding, stacked decoder layers and final norm."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.width, rngs=rngs)
        self.layers = DecoderLayer(config, stack=(config.layers,), rngs=rngs)
        self.norm = RMSNorm(config.width, eps=config.rms_norm_eps)

    def __call__(
        self,
        x_ND: Array,
        positions_N3: Array,
        attend: Attend,
        *,
        xs: Any = None,
        layers: list[nnx.Module] | None = None,
        remat: str,
        unroll: int | bool,
    ) -> tuple[Array, Any]:
        """Runs all layers.

        Args:
            x_ND: embedded tokens of any layout, flattened.
            positions_N3: M-RoPE positions of the same tokens.
            attend: the layout's attention.
            xs: per-layer input of `attend` (stacked on the layer axis), such as a cache.
            layers: the layers one by one (`layers.unstack`), with a list of `xs`.
            remat: rematerialisation policy of the layers.
            unroll: unroll factor of the scan over layers.

        Returns:
            Hidden states after the final norm [N, D], and the stacked outputs of `attend`.
        """
        cos, sin = rope.text_tables(
            positions_N3,
            head_dim=self.config.head_dim,
            theta=self.config.rope_theta,
            sections=self.config.mrope_section,
        )
        cos, sin = cos.astype(x_ND.dtype), sin.astype(x_ND.dtype)

        def body(layer: DecoderLayer, x_ND: Array, x_layer: Any) -> tuple[Array, Any]:
            return layer(x_ND, cos, sin, attend, x_layer)

        x_ND, ys = scan_layers(layers or self.layers, body, x_ND, xs, remat=remat, unroll=unroll)
        return self.norm(x_ND), ys
