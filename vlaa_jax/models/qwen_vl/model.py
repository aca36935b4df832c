"""Qwen2-VL / Qwen2.5-VL as one nnx module with one entry point per layout.

Layouts (all share the same layers, see text.py):

    hidden_rows     [B, T]             packed or padded rows: SFT, evaluation, parity tests
    hidden_groups   [P, Tp] + [P,G,Tc] prompts with G completions each, the prompt computed once
    prefill, decode [P, Tp], [P, G]    the same operation with a cache: sampling

Parameters are float32 or bfloat16 and are cast to the activation dtype where they are used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from vlaa_jax.models.qwen_vl.attend import DENSE, Backend, attend
from vlaa_jax.models.qwen_vl.attention import (
    CAUSAL,
    OwnKeys,
    Pattern,
    prefix_suffix_attention,
)
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES
from vlaa_jax.models.qwen_vl.cache import BurstCache, PrefixCache, SuffixCache
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.layers import KernelPlace, Linear, rounded, unstack
from vlaa_jax.models.qwen_vl.lora import add_branches
from vlaa_jax.models.qwen_vl.text import Attend, Embedding, SelfAttention, TextModel
from vlaa_jax.models.qwen_vl.vision import PatchEmbed, PixelNorm, VisionInputs, VisionTower
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.settings.shared import LoraSettings

Array = jax.Array
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Compute:
    """How, not what, to compute. Static under jit.

    Attributes:
        dtype: activation dtype, "float32" or "bfloat16".
        remat: what the backward pass keeps of a layer; a key of layers.REMAT_POLICIES.
        unroll: unroll factor of the layer scans; True unrolls fully (faster on CPU).
        data_shards: number of data shards; rows and vision bins are dealt to them in order, and a
            row's `unit_src` counts from its own shard's first unit.
        layout: where parameters and activations lie (axes.layout); None leaves it to the compiler.
        pixels: how patches that come as bytes are normalised.
        attention: the form that computes attention over streams.
        exact: precision of products in the exact mode, where activations are float32 and matrices
            are read rounded to bfloat16, straight through to the masters; None: plain.
    """

    dtype: str = "float32"
    remat: str = "none"
    unroll: int | bool = 1
    data_shards: int = 1
    layout: Layout | None = None
    pixels: PixelNorm | None = None
    attention: Backend = DENSE
    exact: jax.lax.Precision | None = None


class PromptInputs(NamedTuple):
    """Prompts on the device, right padded.

    Attributes:
        ids_PT: int token ids, image placeholders expanded.
        positions_PT3: int M-RoPE positions.
        length_P: int real lengths.
        unit_src_PT: int index of the merged unit behind a placeholder, -1 elsewhere.
        vision: the image buffer, or None for text alone.
    """

    ids_PT: Array
    positions_PT3: Array
    length_P: Array
    unit_src_PT: Array
    vision: VisionInputs | None


class RowInputs(NamedTuple):
    """Packed or padded rows on the device.

    Attributes:
        ids_BT: int token ids.
        positions_BT3: int M-RoPE positions, from 0 in every sample.
        segment_ids_BT: int sample number within the row; 0 is padding.
        unit_src_BT: int index of the merged unit behind a placeholder, -1 elsewhere.
        vision: the image buffer, or None for text alone.
    """

    ids_BT: Array
    positions_BT3: Array
    segment_ids_BT: Array
    unit_src_BT: Array
    vision: VisionInputs | None


class QwenVL(nnx.Module):
    """Vision tower, decoder and head (HF Qwen2VL / Qwen2_5_VLForConditionalGeneration)."""

    def __init__(
        self, config: QwenVLConfig, *, compute: Compute | None = None, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        self.compute = compute or Compute()
        gated = config.family == "qwen2_5_vl"
        self.vision = VisionTower(config.vision, gated=gated, rngs=rngs)
        self.text = TextModel(config.text, rngs=rngs)
        width, vocab = config.text.width, config.text.vocab_size
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(width, vocab, bias=False, rngs=rngs)
        self.lay_out(self.compute.layout)

    def lay_out(self, layout: Layout | None) -> "QwenVL":
        """Gives every part its place on a mesh; a model may be laid out anew.

        Returns:
            The model itself.
        """
        if layout is not None and layout.mesh.size == 1:
            layout = None  # exactly the program that knows no mesh
        self.compute = replace(self.compute, layout=layout)
        exact = self.compute.exact
        for path, module in nnx.iter_modules(self):
            if isinstance(module, Linear | PatchEmbed):
                *_, inputs, outputs = PARAM_AXES[".".join(map(str, (*path, "kernel")))]
                plain = layout is None and exact is None
                module.place = None if plain else KernelPlace(layout, (inputs, outputs), exact)
            elif isinstance(module, Embedding | SelfAttention):
                module.layout = layout
            if isinstance(module, Embedding):
                module.rounds = exact is not None
        return self

    @property
    def dtype(self) -> jnp.dtype:
        """Activation dtype."""
        return jnp.dtype(self.compute.dtype)

    @property
    def matrix_dtype(self) -> jnp.dtype:
        """What products read of their matrices: nothing is lost where these are kept in it."""
        return self.dtype if self.compute.exact is None else jnp.dtype(jnp.bfloat16)

    @property
    def head_kernel_DV(self) -> Array:
        """Output projection [D, V]: the head's own, or the transposed embedding when tied."""
        if self.lm_head is None:
            kernel_DV = self.text.embed_tokens.embedding[...].T
        else:
            kernel_DV = self.lm_head.kernel[...]
        return kernel_DV if self.compute.exact is None else rounded(kernel_DV)

    def encode_images(self, vision: VisionInputs) -> Array:
        """Visual tokens in buffer order, [S * R * 16, D]."""
        compute = self.compute
        if vision.patches_SR64C.dtype == jnp.uint8:
            if compute.pixels is None:
                raise ValueError(
                    "patches are bytes, and Compute.pixels does not say how to read them"
                )
            vision = vision._replace(patches_SR64C=compute.pixels(vision.patches_SR64C))
        form = compute.attention._replace(layout=compute.layout, heads=None)
        return self.vision(
            vision,
            dtype=self.dtype,
            remat=compute.remat,
            unroll=compute.unroll,
            attend=partial(attend, backend=form),
        )

    def embed(self, ids_BT: Array, unit_src_BT: Array, units_UD: Array | None) -> Array:
        """Token embeddings with image units put at their placeholders, [B, T, D]."""
        x_BTD = self.text.embed_tokens(ids_BT, self.dtype)
        if units_UD is None:
            return x_BTD
        compute = self.compute
        shards = compute.data_shards
        width = units_UD.shape[-1]
        src = unit_src_BT.reshape(shards, -1, 1)
        units = units_UD.reshape(shards, -1, width)
        # A gather batched over shards: no row ever reads another shard's images.
        images = jnp.take_along_axis(units, jnp.maximum(src, 0), axis=1)
        x_BTD = jnp.where(unit_src_BT[..., None] >= 0, images.reshape(x_BTD.shape), x_BTD)
        return (
            x_BTD if compute.layout is None else compute.layout.pin(x_BTD, "batch", None, "embed")
        )

    def hidden_rows(self, rows: RowInputs) -> Array:
        """Hidden states after the final norm of packed or padded rows, [B, T, D]."""
        units = None if rows.vision is None else self.encode_images(rows.vision)
        x_BTD = self.embed(rows.ids_BT, rows.unit_src_BT, units)
        attend = self._attend(rows.ids_BT.shape[0], rows.segment_ids_BT, CAUSAL)
        hidden, _ = self._run(x_BTD.reshape(-1, x_BTD.shape[-1]), rows.positions_BT3, attend)
        return hidden.reshape(x_BTD.shape)

    def hidden_groups(self, prompt: PromptInputs, inputs_PGT: Array) -> Array:
        """Hidden states of G completions per prompt, each prompt computed once.

        Args:
            prompt: the prompts.
            inputs_PGT: completion *inputs*: the prompt's last token, then the completion without
                its last token (`completion_inputs` builds them). Padding on the right is harmless.

        Returns:
            [P, G, T, D]; entry t predicts completion token t.
        """
        prompts, groups, length = inputs_PGT.shape
        prefix_length = prompt.ids_PT.shape[1]
        units = None if prompt.vision is None else self.encode_images(prompt.vision)
        x_prefix = self.embed(prompt.ids_PT, prompt.unit_src_PT, units)
        x_suffix = self.text.embed_tokens(inputs_PGT.reshape(prompts, -1), self.dtype)
        x_PMD = jnp.concatenate([x_prefix, x_suffix], axis=1)
        positions = _group_positions(prompt, groups, length)
        # A completion begins with the prompt's last token, so the prompt ends before it.
        real_PS = jnp.arange(prefix_length) < prompt.length_P[:, None] - 1
        ones_PM = jnp.ones((prompts, groups * length), jnp.int32)
        segments_PM = jnp.concatenate([real_PS.astype(jnp.int32), ones_PM], axis=1)
        pattern = Pattern(prompt=prefix_length, groups=groups)
        attend = self._attend(prompts, segments_PM, pattern)
        hidden, _ = self._run(x_PMD.reshape(-1, x_PMD.shape[-1]), positions, attend)
        hidden = hidden.reshape(x_PMD.shape)[:, prefix_length:]
        return hidden.reshape(prompts, groups, length, -1)

    def prefill(self, prompt: PromptInputs) -> PrefixCache:
        """Computes the keys and values of the prompts, once per group."""
        units = None if prompt.vision is None else self.encode_images(prompt.vision)
        x_PTD = self.embed(prompt.ids_PT, prompt.unit_src_PT, units)
        prompts = prompt.ids_PT.shape[0]
        within = self._attend(prompts, None, CAUSAL)

        def attend(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, Any]:
            mixed, _ = within(q, k, v, None)
            return mixed, tuple(rearrange(a, "(p s) k h -> p k s h", p=prompts) for a in (k, v))

        x_ND = x_PTD.reshape(-1, x_PTD.shape[-1])
        _, (k_LPKSH, v_LPKSH) = self._run(x_ND, prompt.positions_PT3, attend)
        last_id, last_position = _last_token(prompt)
        return PrefixCache(k_LPKSH, v_LPKSH, prompt.length_P - 1, last_id, last_position)

    def decode(
        self,
        prefix: PrefixCache,
        past: SuffixCache,
        burst: BurstCache,
        ids_PG: Array,
        layers: list[nnx.Module] | None = None,
    ) -> tuple[Array, BurstCache]:
        """Feeds one token to every completion.

        Args:
            prefix: the prompts' cache.
            past: the completions' cache up to this burst.
            burst: the completions' cache of this burst.
            ids_PG: input token of each completion (the prompt's last token at step 0).
            layers: the decoder's layers one by one, if the three caches are lists by layer too;
                see `by_layer`.

        Returns:
            Hidden states after the final norm [P, G, D] and the advanced burst.
        """
        prompts, groups = ids_PG.shape
        prefix_mask_PS = _positions(prefix.k_LPKSH) < prefix.length_P[:, None]
        past_mask_PTU = (_positions(past.k_LPKGUH) < past.step_P[:, None])[:, None]
        burst_mask_PTU = (_positions(burst.k_LPKGCH) < burst.written)[None, None]
        itself_PTU = jnp.ones((1, 1, 1), bool)
        positions_P = prefix.last_position_P + past.step_P + burst.written
        positions = jnp.broadcast_to(positions_P[:, None, None], (prompts, groups, 3))

        def attend(q: Array, k: Array, v: Array, cached: Any) -> tuple[Array, Any]:
            k_pre, v_pre, k_past, v_past, k_burst, v_burst = cached
            q = rearrange(q, "(p g) n h -> p g 1 n h", g=groups)
            k, v = (rearrange(a, "(p g) k h -> p k g h", g=groups) for a in (k, v))
            # The new key is a part of its own: written into the cache first, the whole cache of
            # the layer would be copied for it.
            own = [
                OwnKeys(k_past, v_past, past_mask_PTU),
                OwnKeys(k_burst, v_burst, burst_mask_PTU),
                OwnKeys(k[:, :, :, None], v[:, :, :, None], itself_PTU),
            ]
            own = [part for part in own if part.k_PKGUH.shape[3]]
            out = prefix_suffix_attention(q, k_pre, v_pre, prefix_mask_PS, own)
            return out.reshape(prompts * groups, -1), (k, v)

        caches = (*prefix[:2], *past[:2], *burst[:2])
        x_ND = self.text.embed_tokens(ids_PG.reshape(-1), self.dtype)
        xs = list(zip(*caches, strict=True)) if layers else caches
        hidden, ys = self._run(x_ND, positions, attend, xs, layers)
        k_new, v_new = map(list, zip(*ys, strict=True)) if layers else ys
        return hidden.reshape(prompts, groups, -1), burst.write(k_new, v_new)

    def by_layer(self, *caches: Any) -> tuple[list[nnx.Module] | None, *tuple[Any, ...]]:
        """Layers and caches for a loop of `decode`: taken apart where the layers are unrolled.

        Args:
            caches: prefix, suffix or burst caches.

        Returns:
            The layers (None where the stack is scanned) and the caches. Slices of a stack, weights
            or cache, would be copied for every token.
        """
        if self.compute.unroll is not True:
            return None, *caches
        return unstack(self.text.layers), *map(_unstacked, caches)

    def _attend(self, streams: int, segments: Array | None, pattern: Pattern) -> Attend:
        """Attention within so many streams of equal length, for flattened tokens."""
        form = self.compute.attention._replace(layout=self.compute.layout)

        def within(q: Array, k: Array, v: Array, _: Any) -> tuple[Array, None]:
            q, k, v = (a.reshape(streams, -1, *a.shape[1:]) for a in (q, k, v))
            out = attend(q, k, v, segments, pattern, form)
            return out.reshape(streams * out.shape[1], -1), None

        return within

    def _run(
        self,
        x_ND: Array,
        positions: Array,
        attend: Any,
        xs: Any = None,
        layers: list[nnx.Module] | None = None,
    ) -> tuple[Array, Any]:
        compute = self.compute
        return self.text(
            x_ND,
            positions.reshape(-1, 3),
            attend,
            xs=xs,
            layers=layers,
            remat=compute.remat,
            unroll=compute.unroll,
        )


def _unstacked(cache: Any) -> Any:
    """A prefix, suffix or burst cache with a list of arrays by layer instead of a stack."""
    k, v, *rest = cache
    return type(cache)(*([a[i] for i in range(a.shape[0])] for a in (k, v)), *rest)


def _positions(cache: Any) -> Array:
    """0, 1, ... over the positions of a cache, stacked or by layer."""
    first = cache[0] if isinstance(cache, list) else cache
    return jnp.arange(first.shape[-2])


def _last_token(prompt: PromptInputs) -> tuple[Array, Array]:
    """Id and position of each prompt's last token, [P] each."""
    last = jnp.maximum(prompt.length_P - 1, 0)[:, None]
    ids_P = jnp.take_along_axis(prompt.ids_PT, last, axis=1)[:, 0]
    positions_P = jnp.take_along_axis(prompt.positions_PT3[..., 0], last, axis=1)[:, 0]
    return ids_P, positions_P


def _group_positions(prompt: PromptInputs, groups: int, length: int) -> Array:
    """Positions [P, Tp + G*Tc, 3] of the prompt stream followed by its completions."""
    prompts = prompt.ids_PT.shape[0]
    _, last_position_P = _last_token(prompt)
    own = last_position_P[:, None, None] + jnp.arange(length)
    own = jnp.broadcast_to(own, (prompts, groups, length)).reshape(prompts, -1, 1)
    return jnp.concatenate([prompt.positions_PT3, jnp.broadcast_to(own, (*own.shape[:2], 3))], 1)


def completion_inputs(prompt: PromptInputs, completions_PGT: Array) -> Array:
    """Inputs that predict the given completions: shifted right behind the prompt's last token."""
    last_id_P, _ = _last_token(prompt)
    shape = (*completions_PGT.shape[:2], 1)
    first = jnp.broadcast_to(last_id_P[:, None, None], shape).astype(completions_PGT.dtype)
    return jnp.concatenate([first, completions_PGT[..., :-1]], axis=-1)


def split_model(
    config: QwenVLConfig, compute: Compute | None = None, lora: LoraSettings | None = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Structure and abstract parameters of a model, without computing anything.

    Args:
        config: the model.
        compute: how to compute.
        lora: low-rank branches to add; None or rank 0 for none.

    Returns:
        The graph definition, and a nested dict of jax.ShapeDtypeStruct (float32). Join them, or
        any like tree of arrays, with ``nnx.merge(graphdef, params)``.

    Raises:
        UserError: `lora` names linear maps that the model does not have.
    """

    def build() -> QwenVL:
        model = QwenVL(config, compute=compute, rngs=nnx.Rngs(0))
        if lora is not None and lora.rank:
            add_branches(model, lora, nnx.Rngs(0))
        return model

    graphdef, state = nnx.split(nnx.eval_shape(build))
    return graphdef, nnx.to_pure_dict(state)


def init_params(config: QwenVLConfig, seed: int) -> dict[str, Any]:
    """Random float32 parameters (normal, standard deviation 0.02; norms 1, biases 0)."""
    return nnx.to_pure_dict(nnx.state(QwenVL(config, rngs=nnx.Rngs(seed))))
