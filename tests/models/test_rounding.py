"""bfloat16 at the rounding points of transformers, operation by operation, on the CPU.

Every operation gets the same bfloat16 inputs in both libraries. Compared are the share of results
that are equal bit for bit and the largest distance in units in the last place (ulps: steps between
neighbouring bfloat16 numbers). ``python tests/models/test_rounding.py`` prints the table.

Element-wise operations and norms have one right answer and must hit it. Matrix products accumulate
in float32 in an order that each library chooses, so a sum close to the middle between two bfloat16
numbers may round either way. Attention deviates on purpose: transformers' eager path rounds scores
to bfloat16 before the softmax; here they stay in float32, as in its fused paths.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.activations import QuickGELUActivation
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from vlaa_jax.models.qwen_vl import attention, layers, rope
from vlaa_jax.models.qwen_vl.config import VisionConfig
from vlaa_jax.models.qwen_vl.vision import PatchEmbed, PatchMerger

BF16 = jnp.bfloat16
N, D, F, HEADS, KV, H = 128, 256, 384, 8, 2, 32


def draw(seed, *shape, scale=1.0):
    """The same bfloat16 numbers for both libraries."""
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return values.astype(ml_dtypes.bfloat16)


def to_torch(array):
    return torch.tensor(array.astype(np.float32)).to(torch.bfloat16)


def linear_pair(seed, inputs, outputs):
    """A torch Linear and our Linear with the same weights."""
    weight, bias = draw(seed, outputs, inputs, scale=inputs**-0.5), draw(seed + 1, outputs)
    theirs = torch.nn.Linear(inputs, outputs, dtype=torch.bfloat16)
    theirs.weight.data, theirs.bias.data = to_torch(weight), to_torch(bias)
    ours = layers.Linear(inputs, outputs, bias=True, rngs=nnx.Rngs(0))
    ours.kernel = nnx.Param(jnp.asarray(weight.T))
    ours.bias = nnx.Param(jnp.asarray(bias))
    return ours, theirs


def rms_norm():
    x, weight = draw(0, N, D), 1 + draw(1, D, scale=0.2)
    theirs = hf.Qwen2_5_VLRMSNorm(D, 1e-6).to(torch.bfloat16)
    theirs.weight.data = to_torch(weight)
    ours = layers.RMSNorm(D, eps=1e-6)
    ours.scale = nnx.Param(jnp.asarray(weight))
    return ours(jnp.asarray(x)), theirs(to_torch(x))


def layer_norm():
    x, weight, bias = draw(0, N, D), 1 + draw(1, D, scale=0.2), draw(2, D)
    theirs = torch.nn.LayerNorm(D, eps=1e-6, dtype=torch.bfloat16)
    theirs.weight.data, theirs.bias.data = to_torch(weight), to_torch(bias)
    ours = layers.LayerNorm(D, eps=1e-6)
    ours.scale, ours.bias = nnx.Param(jnp.asarray(weight)), nnx.Param(jnp.asarray(bias))
    return ours(jnp.asarray(x)), theirs(to_torch(x))


def silu():
    x = draw(0, N, D, scale=3)
    return layers.silu(jnp.asarray(x)), torch.nn.functional.silu(to_torch(x))


def swiglu_gate():
    gate, up = draw(0, N, F, scale=2), draw(1, N, F)
    ours = layers.silu(jnp.asarray(gate)) * jnp.asarray(up)
    return ours, torch.nn.functional.silu(to_torch(gate)) * to_torch(up)


def quick_gelu():
    x = draw(0, N, D, scale=3)
    return layers.quick_gelu(jnp.asarray(x)), QuickGELUActivation()(to_torch(x))


def merger_gelu():
    # Below -3 the values are tiny and depend on how erf is written.
    x = np.maximum(draw(0, N, D, scale=2), ml_dtypes.bfloat16(-3))
    return layers.gelu(jnp.asarray(x)), torch.nn.GELU()(to_torch(x))


POSITIONS = np.random.default_rng(9).integers(0, 3000, (N, 3))
SECTIONS = (4, 6, 6)


def hf_text_tables(dtype):
    config = Qwen2_5_VLTextConfig(
        hidden_size=HEADS * H,
        num_attention_heads=HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [*SECTIONS]},
    )
    module = hf.Qwen2_5_VLRotaryEmbedding(config)
    return module(torch.zeros(1, dtype=dtype), torch.tensor(POSITIONS.T[:, None]))


def our_text_tables():
    return rope.text_tables(jnp.asarray(POSITIONS), head_dim=H, theta=1e6, sections=SECTIONS)


def text_rotary_table():
    return our_text_tables()[0].astype(BF16), hf_text_tables(torch.bfloat16)[0][0]


def text_rotary():
    q = draw(0, N, HEADS, H)
    tables = hf_text_tables(torch.bfloat16)
    theirs, _ = hf.apply_rotary_pos_emb(*[to_torch(q)[None]] * 2, *tables, unsqueeze_dim=2)
    # Tables of theirs: what is tested here is the rotation.
    cos, sin = (jnp.asarray(t[0].float().numpy()).astype(BF16) for t in tables)
    return rope.rotate(jnp.asarray(q), cos, sin), theirs[0]


def vision_rotary():
    q = draw(0, N, HEADS, H)
    pos_hw = POSITIONS[:, :2] % 250
    inv_freq = 10000.0 ** (-torch.arange(0, H // 2, 2).float() / (H // 2))
    angles = (torch.tensor(pos_hw)[..., None].float() * inv_freq).flatten(1)
    angles = torch.cat([angles, angles], -1)
    theirs, _ = hf.apply_rotary_pos_emb_vision(*[to_torch(q)] * 2, angles.cos(), angles.sin())
    return rope.rotate(jnp.asarray(q), *rope.vision_tables(jnp.asarray(pos_hw), head_dim=H)), theirs


def linear():
    ours, theirs = linear_pair(1, D, F)
    x = draw(0, N, D)
    return ours(jnp.asarray(x)), theirs(to_torch(x))


def patch_embed():
    config = VisionConfig(1, 64, 2, 96, 64)
    weight = draw(1, 64, 3, 2, 14, 14, scale=1176**-0.5)
    theirs = hf.Qwen2_5_VisionPatchEmbed(embed_dim=64).to(torch.bfloat16)
    theirs.proj.weight.data = to_torch(weight)
    ours = PatchEmbed(config, rngs=nnx.Rngs(0))
    ours.kernel = nnx.Param(jnp.asarray(weight.reshape(64, -1).T))
    x = draw(0, N, 1176)
    return ours(jnp.asarray(x)), theirs(to_torch(x))


def merger():
    config = VisionConfig(1, 64, 2, 96, out_size=96)
    theirs = hf.Qwen2_5_VLPatchMerger(96, 64).to(torch.bfloat16)
    ours = PatchMerger(config, gated=True, rngs=nnx.Rngs(0))
    (ours.mlp_0, first), (ours.mlp_2, last) = linear_pair(1, 256, 256), linear_pair(3, 256, 96)
    theirs.mlp[0], theirs.mlp[2] = first, last
    x = draw(0, N, 64)
    return ours(jnp.asarray(x)), theirs(to_torch(x))


def gated_mlp():
    ours = layers.GatedMlp(D, F, bias=True, stack=(), rngs=nnx.Rngs(0))
    pairs = [linear_pair(1, D, F), linear_pair(3, D, F), linear_pair(5, F, D)]
    (ours.gate_proj, gate), (ours.up_proj, up), (ours.down_proj, down) = pairs
    x = draw(0, N, D)
    t = to_torch(x)
    return ours(jnp.asarray(x)), down(torch.nn.functional.silu(gate(t)) * up(t))


def softmax_weights():
    """Softmax in float32 of the same float32 scores, rounded to bfloat16."""
    scores = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32) * 4
    ours = jax.nn.softmax(jnp.asarray(scores), axis=-1).astype(BF16)
    return ours, torch.nn.functional.softmax(torch.tensor(scores), -1).to(torch.bfloat16)


def qkv():
    return draw(0, N, HEADS, H), draw(1, N, KV, H), draw(2, N, KV, H)


def our_attention():
    mask = jnp.tril(jnp.ones((1, N, N), bool))
    return attention.masked_attention(*(jnp.asarray(a)[None] for a in qkv()), mask)[0]


def hf_attention(*, fused, dtype=torch.bfloat16):
    q, k, v = (to_torch(a).to(dtype)[None].transpose(1, 2) for a in qkv())
    mask = torch.full((N, N), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    if fused:
        k, v = (hf.repeat_kv(a, HEADS // KV) for a in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2)[0]
    module = torch.nn.Module().eval()
    module.num_key_value_groups = HEADS // KV
    return hf.eager_attention_forward(module, q, k, v, mask, H**-0.5)[0][0]


def attention_fused():
    return our_attention(), hf_attention(fused=True)


def attention_eager():
    return our_attention(), hf_attention(fused=False)


class Limit(NamedTuple):
    """Least share of equal results, and the largest distance where they differ."""

    share: float
    ulps: int


EXACT = Limit(1.0, 0)
LAST_BIT = Limit(0.999, 1)
LIMITS = {
    rms_norm: LAST_BIT,
    layer_norm: LAST_BIT,
    silu: EXACT,
    swiglu_gate: EXACT,
    quick_gelu: EXACT,
    merger_gelu: EXACT,
    text_rotary_table: LAST_BIT,
    text_rotary: EXACT,
    vision_rotary: LAST_BIT,
    softmax_weights: LAST_BIT,
    # The order of a float32 sum is each library's own, and differs between kinds of CPU.
    linear: Limit(0.99, 1),
    patch_embed: Limit(0.99, 1),
    gated_mlp: Limit(0.95, 4),
    merger: Limit(0.95, 4),
}
ATTENTION = (attention_fused, attention_eager)


class Figures(NamedTuple):
    """How two arrays of bfloat16 compare."""

    equal: float
    ulps: int
    of_scale: float
    """Largest difference over the largest magnitude."""


def compare(pair):
    assert pair[0].dtype == BF16 and pair[1].dtype == torch.bfloat16
    ours = np.asarray(pair[0]).astype(np.float32)
    theirs = pair[1].detach().float().numpy()

    def order(x):
        """Consecutive integers for consecutive bfloat16 numbers; both zeros are 0."""
        bits = x.astype(ml_dtypes.bfloat16).view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    steps = np.abs(order(ours) - order(theirs))
    scale = np.abs(ours - theirs).max() / np.abs(theirs).max()
    return Figures(float((steps == 0).mean()), int(steps.max()), float(scale))


@pytest.mark.parametrize("operation", LIMITS, ids=lambda f: f.__name__)
def test_operation_rounds_where_transformers_rounds(operation):
    figures, limit = compare(operation()), LIMITS[operation]
    assert figures.equal >= limit.share and figures.ulps <= limit.ulps, figures


def rms_errors():
    """Root-mean-square distance from float64 attention: ours, transformers' eager and fused."""
    exact = hf_attention(fused=False, dtype=torch.float64)
    ours = torch.tensor(np.asarray(our_attention()).astype(np.float32))
    eager, fused = hf_attention(fused=False), hf_attention(fused=True)
    return [float((a.double() - exact).square().mean().sqrt()) for a in (ours, eager, fused)]


def test_attention_is_nearer_to_the_truth_than_eager_attention():
    ours, eager, fused = rms_errors()
    assert ours < 0.8 * eager and ours < 1.5 * fused
    # Values near zero make ulps meaningless here; a bfloat16 step at the top is 2^-8 of it.
    assert all(compare(operation()).of_scale < 2**-6 for operation in ATTENTION)


def main():
    print(f"{'operation':<20} {'equal':>10} {'max ulps':>9} {'max / scale':>12}")
    for operation in (*LIMITS, *ATTENTION):
        equal, ulps, of_scale = compare(operation())
        steps = "-" if operation in ATTENTION else ulps
        print(f"{operation.__name__:<20} {equal:>10.4%} {steps:>9} {of_scale:>12.1e}")
    names = ("ours", "transformers eager", "transformers fused")
    errors = ", ".join(f"{n} {e:.2e}" for n, e in zip(names, rms_errors(), strict=True))
    print(f"attention, rms error against float64: {errors}")


if __name__ == "__main__":
    sys.exit(main())
