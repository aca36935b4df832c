"""One table between Hugging Face tensor names and our parameter tree, with its inverse.

Each row of the table says: this leaf of ours is that tensor of theirs, turned by a transform that
loses nothing. Import, export, shape checks, parameter counts and partial reads all use it.

Transforms only move numbers: a torch ``Linear`` weight [out, in] is our kernel [in, out]; the patch
``Conv3d`` weight [W, C, T, H, W'] is the kernel [C*T*H*W', W] of the same product on flattened
patches; layers are stacked on a leading axis.

Weight files come in three spellings (``Layout``): the Hub and most readers use ``old``,
transformers >= 4.52 may write ``new``, and 5.4.0 to 5.5.4 wrote ``mixed``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.schema import UserError

Shape = tuple[int, ...]
Path = tuple[str, ...]
Index = tuple[slice, ...]


class Layout(StrEnum):
    """Spelling of the tensor names in a weight file."""

    OLD = "old"
    """``visual.*``, ``model.layers.*``, ``lm_head.weight``."""
    NEW = "new"
    """``model.visual.*``, ``model.language_model.*``, ``lm_head.weight``."""
    MIXED = "mixed"
    """``model.visual.*``, ``model.layers.*``, ``lm_head.weight``."""


class Transform(StrEnum):
    """How one tensor of theirs becomes (one layer of) a leaf of ours. All are their own record."""

    SAME = "same"
    TRANSPOSE = "transpose"
    """[out, in] -> [in, out]."""
    CONV = "conv"
    """[out, *window] -> [prod(window), out]."""

    def our_shape(self, shape: Shape) -> Shape:
        """Shape of ours for a shape of theirs."""
        if self is Transform.SAME:
            return shape
        return (int(np.prod(shape[1:])), shape[0])

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """A view of theirs in our shape."""
        if self is Transform.SAME:
            return theirs
        return theirs.reshape(theirs.shape[0], -1).T

    def to_theirs(self, ours: np.ndarray, shape: Shape) -> np.ndarray:
        """The inverse, for their whole shape: a view of ours, or a copy where it must be."""
        if self is Transform.SAME:
            return ours
        return ours.T.reshape(shape)


@dataclass(frozen=True)
class Key:
    """One row of the table: a leaf of ours and the tensor or, over layers, tensors of theirs."""

    path: Path
    """Place in our nested dict."""
    hf_name: str
    """Old-layout name; ``{}`` stands for the layer number where the leaf is stacked."""
    hf_shape: Shape
    """Shape of one of their tensors."""
    transform: Transform = Transform.SAME
    layers: int | None = None
    """How many tensors are stacked on our leading axis; None for a leaf of one tensor."""

    @property
    def name(self) -> str:
        """The path joined by dots, as error messages and file names have it."""
        return ".".join(self.path)

    @property
    def layer_shape(self) -> Shape:
        """Our shape without the layer axis."""
        return self.transform.our_shape(self.hf_shape)

    @property
    def shape(self) -> Shape:
        """Our shape, layer axis included."""
        return self.layer_shape if self.layers is None else (self.layers, *self.layer_shape)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return int(np.prod(self.shape, dtype=np.int64))

    def hf_names(self, layout: Layout = Layout.OLD) -> tuple[str, ...]:
        """Names of their tensors, by layer."""
        if self.layers is None:
            return (rename(self.hf_name, layout),)
        return tuple(rename(self.hf_name.format(n), layout) for n in range(self.layers))


def canonical(name: str) -> str:
    """The old-layout name of a tensor named in any layout."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name


def rename(old_name: str, layout: Layout) -> str:
    """The name in ``layout`` of a tensor given by its old-layout name."""
    if layout is not Layout.OLD and old_name.startswith("visual."):
        return "model." + old_name
    if layout is Layout.NEW and old_name.startswith("model."):
        return "model.language_model." + old_name.removeprefix("model.")
    return old_name


def detect_layout(names: Iterable[str]) -> Layout:
    """The layout of a weight file. Names that fit no layout are left to ``match_tensors``."""
    names = list(names)
    if any(name.startswith("model.language_model.") for name in names):
        return Layout.NEW
    return Layout.MIXED if any(n.startswith("model.visual.") for n in names) else Layout.OLD


def key_table(config: QwenVLConfig) -> tuple[Key, ...]:
    """The whole table for one configuration, in the order of their files."""
    return (*_vision_keys(config), *_text_keys(config))


def param_shapes(config: QwenVLConfig) -> dict[str, Any]:
    """Our parameter tree as a nested dict whose leaves are shapes."""
    return nest({key.path: key.shape for key in key_table(config)})


def hf_shapes(config: QwenVLConfig, layout: Layout = Layout.OLD) -> dict[str, Shape]:
    """Name to shape of every tensor a weight file of this configuration holds."""
    return {name: key.hf_shape for key in key_table(config) for name in key.hf_names(layout)}


def nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """Nested dict of a flat one whose keys are paths."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


def flatten(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of a nested dict, depth first; the inverse of ``nest``."""
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from flatten(node, (*prefix, str(name)))
        else:
            yield (*prefix, str(name)), node


def match_tensors(config: QwenVLConfig, found: Mapping[str, Shape], where: str) -> dict[str, str]:
    """Pairs the tensors of a weight file with the table.

    Args:
      config: the model.
      found: name to shape of every tensor in the file, in any layout.
      where: the file or directory, for the error message.

    Returns:
      Old-layout name to the file's name. A redundant ``lm_head.weight`` of a tied model is not
      in it (the caller compares it with the embedding).

    Raises:
      UserError: naming every tensor that is missing, unexpected or of another shape.
    """
    expected = hf_shapes(config)
    names: dict[str, str] = {}
    problems = []
    for name, shape in found.items():
        old = canonical(name)
        if old == LM_HEAD and config.tie_word_embeddings:
            continue
        if old not in expected:
            problems.append(f"unexpected: {name} {list(shape)}")
        elif old in names:
            problems.append(f"twice, in two layouts: {names[old]} and {name}")
        elif tuple(shape) != expected[old]:
            problems.append(f"wrong shape: {name} is {list(shape)}, not {list(expected[old])}")
        names.setdefault(old, name)
    layout = detect_layout(found)
    problems += [
        f"missing: {rename(old, layout)} {list(shape)}"
        for old, shape in expected.items()
        if old not in names
    ]
    if problems:
        raise UserError(
            f"{where}: {len(problems)} tensors do not fit its config.json:\n  "
            + "\n  ".join(sorted(problems))
        )
    return names


LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def _linear(
    path: Path, hf_name: str, sizes: tuple[int, int], *, bias: bool, layers: int | None = None
) -> Iterator[Key]:
    inputs, outputs = sizes
    yield Key(
        (*path, "kernel"), f"{hf_name}.weight", (outputs, inputs), Transform.TRANSPOSE, layers
    )
    if bias:
        yield Key((*path, "bias"), f"{hf_name}.bias", (outputs,), layers=layers)


def _norm(
    path: Path, hf_name: str, width: int, *, bias: bool, layers: int | None = None
) -> Iterator[Key]:
    yield Key((*path, "scale"), f"{hf_name}.weight", (width,), layers=layers)
    if bias:
        yield Key((*path, "bias"), f"{hf_name}.bias", (width,), layers=layers)


def _vision_keys(config: QwenVLConfig) -> Iterator[Key]:
    vision = config.vision
    width, mlp, depth = vision.width, vision.intermediate, vision.depth
    layer_norm = config.family == "qwen2_vl"
    yield Key(
        ("vision", "patch_embed", "kernel"),
        "visual.patch_embed.proj.weight",
        (width, vision.in_channels, vision.temporal_patch_size) + 2 * (vision.patch_size,),
        Transform.CONV,
    )
    blocks, theirs = ("vision", "blocks"), "visual.blocks.{}"
    for norm in ("norm1", "norm2"):
        yield from _norm((*blocks, norm), f"{theirs}.{norm}", width, bias=layer_norm, layers=depth)
    products = {("attn", "qkv"): (width, 3 * width), ("attn", "proj"): (width, width)}
    if config.family == "qwen2_vl":
        products |= {("mlp", "fc1"): (width, mlp), ("mlp", "fc2"): (mlp, width)}
    else:
        products |= {
            ("mlp", "gate_proj"): (width, mlp),
            ("mlp", "up_proj"): (width, mlp),
            ("mlp", "down_proj"): (mlp, width),
        }
    for path, sizes in products.items():
        hf_name = ".".join((theirs, *path))
        yield from _linear((*blocks, *path), hf_name, sizes, bias=True, layers=depth)
    merged = width * vision.merge_size**2
    merger, theirs = ("vision", "merger"), "visual.merger"
    yield from _norm((*merger, "ln_q"), f"{theirs}.ln_q", width, bias=layer_norm)
    yield from _linear((*merger, "mlp_0"), f"{theirs}.mlp.0", (merged, merged), bias=True)
    yield from _linear((*merger, "mlp_2"), f"{theirs}.mlp.2", (merged, vision.out_size), bias=True)


def _text_keys(config: QwenVLConfig) -> Iterator[Key]:
    text = config.text
    width, mlp, depth = text.width, text.intermediate, text.layers
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    yield Key(("text", "embed_tokens", "embedding"), EMBEDDING, (text.vocab_size, width))
    layers, theirs = ("text", "layers"), "model.layers.{}"
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield from _norm((*layers, norm), f"{theirs}.{norm}", width, bias=False, layers=depth)
    products = {
        ("self_attn", "q_proj"): (width, queries),
        ("self_attn", "k_proj"): (width, keys),
        ("self_attn", "v_proj"): (width, keys),
        ("self_attn", "o_proj"): (queries, width),
        ("mlp", "gate_proj"): (width, mlp),
        ("mlp", "up_proj"): (width, mlp),
        ("mlp", "down_proj"): (mlp, width),
    }
    for path, sizes in products.items():
        bias = path[1] in ("q_proj", "k_proj", "v_proj")
        hf_name = ".".join((theirs, *path))
        yield from _linear((*layers, *path), hf_name, sizes, bias=bias, layers=depth)
    yield from _norm(("text", "norm"), "model.norm", width, bias=False)
    if not config.tie_word_embeddings:
        yield from _linear(("lm_head",), "lm_head", (width, text.vocab_size), bias=False)
