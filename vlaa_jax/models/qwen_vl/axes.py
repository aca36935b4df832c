"""Logical axes of every parameter: what each dimension *is*; parallel/ decides where it goes.

Activations use the same names, with "batch" for tokens: ("batch", "embed") is the residual stream,
("batch", "heads") what attention mixes, ("batch", "mlp") a feed-forward hidden, ("batch", "vocab")
logits.
"""

from jax.sharding import Mesh

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.parallel.sharding import Layout

_BASE_AXES: dict[str, tuple[str | None, ...]] = {
    "text.embed_tokens.embedding": ("vocab", "embed"),
    "text.layers.input_layernorm.scale": ("layers", None),
    "text.layers.post_attention_layernorm.scale": ("layers", None),
    "text.layers.self_attn.q_proj.kernel": ("layers", "embed", "heads"),
    "text.layers.self_attn.q_proj.bias": ("layers", "heads"),
    "text.layers.self_attn.k_proj.kernel": ("layers", "embed", "kv_heads"),
    "text.layers.self_attn.k_proj.bias": ("layers", "kv_heads"),
    "text.layers.self_attn.v_proj.kernel": ("layers", "embed", "kv_heads"),
    "text.layers.self_attn.v_proj.bias": ("layers", "kv_heads"),
    "text.layers.self_attn.o_proj.kernel": ("layers", "heads", "embed"),
    "text.layers.mlp.gate_proj.kernel": ("layers", "embed", "mlp"),
    "text.layers.mlp.up_proj.kernel": ("layers", "embed", "mlp"),
    "text.layers.mlp.down_proj.kernel": ("layers", "mlp", "embed"),
    "text.norm.scale": (None,),
    "lm_head.kernel": ("embed", "vocab"),
    "vision.patch_embed.kernel": (None, "vision_embed"),
    "vision.blocks.norm1.scale": ("layers", None),
    "vision.blocks.norm1.bias": ("layers", None),
    "vision.blocks.norm2.scale": ("layers", None),
    "vision.blocks.norm2.bias": ("layers", None),
    "vision.blocks.attn.qkv.kernel": ("layers", "vision_embed", "vision_qkv"),
    "vision.blocks.attn.qkv.bias": ("layers", None),
    "vision.blocks.attn.proj.kernel": ("layers", "vision_qkv", "vision_embed"),
    "vision.blocks.attn.proj.bias": ("layers", None),
    "vision.blocks.mlp.gate_proj.kernel": ("layers", "vision_embed", "vision_mlp"),
    "vision.blocks.mlp.gate_proj.bias": ("layers", "vision_mlp"),
    "vision.blocks.mlp.up_proj.kernel": ("layers", "vision_embed", "vision_mlp"),
    "vision.blocks.mlp.up_proj.bias": ("layers", "vision_mlp"),
    "vision.blocks.mlp.down_proj.kernel": ("layers", "vision_mlp", "vision_embed"),
    "vision.blocks.mlp.down_proj.bias": ("layers", None),
    "vision.blocks.mlp.fc1.kernel": ("layers", "vision_embed", "vision_mlp"),
    "vision.blocks.mlp.fc1.bias": ("layers", "vision_mlp"),
    "vision.blocks.mlp.fc2.kernel": ("layers", "vision_mlp", "vision_embed"),
    "vision.blocks.mlp.fc2.bias": ("layers", None),
    "vision.merger.ln_q.scale": (None,),
    "vision.merger.ln_q.bias": (None,),
    "vision.merger.mlp_0.kernel": ("vision_embed", "vision_mlp"),
    "vision.merger.mlp_0.bias": ("vision_mlp",),
    "vision.merger.mlp_2.kernel": ("vision_mlp", "embed"),
    "vision.merger.mlp_2.bias": (None,),
}

_BRANCH_AXES = {
    f"{name.removesuffix('.kernel')}.lora.{part}": axes
    for name, (*stack, inputs, outputs) in (
        item for item in _BASE_AXES.items() if item[0].endswith(".kernel")
    )
    for part, axes in (("a", (*stack, inputs, None)), ("b", (*stack, None, outputs)))
}
"""A low-rank branch lies like its kernel; its rank is never cut."""

PARAM_AXES: dict[str, tuple[str | None, ...]] = _BASE_AXES | _BRANCH_AXES
"""Dotted parameter path -> logical axis of each dimension (None: never sharded)."""


def layout(config: QwenVLConfig, mesh: Mesh, table: str = "train") -> Layout:
    """Where this model's parameters and activations lie; heads are never cut inside."""
    units = {"heads": config.text.heads, "kv_heads": config.text.kv_heads}
    return Layout(mesh, table, units)
