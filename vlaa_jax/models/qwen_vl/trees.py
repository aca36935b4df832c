"""Nested dicts of parameters: which part of the model a leaf belongs to, and cutting by part."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = Mapping[str, Any]


def is_adapter(path: str) -> bool:
    """Whether the leaf at a dotted path belongs to a LoRA branch."""
    return ".lora." in path


def part_of(path: str) -> str:
    """Which part of the model a parameter belongs to: one of settings.shared.FREEZABLE."""
    if path.startswith("vision.merger."):
        return "merger"
    if path.startswith("vision."):
        return "vision"
    if path.startswith(("text.embed_tokens.", "lm_head.")):
        return "embeddings"
    return "language"


def partition(params: Tree, freeze: tuple[str, ...], *, adapters_only: bool) -> tuple[Tree, Tree]:
    """Splits a nested dict into what trains and what does not.

    Args:
        params: all parameters.
        freeze: parts that do not train.
        adapters_only: train LoRA parameters alone.

    Returns:
        (trainable, frozen); `merge` puts them together again.
    """

    def trains(path: str) -> bool:
        return part_of(path) not in freeze and is_adapter(path) == adapters_only

    return select(params, trains), select(params, lambda path: not trains(path))


def select(tree: Tree, wanted: Callable[[str], bool], prefix: str = "") -> dict[str, Any]:
    """The leaves whose dotted paths are wanted; what holds none is left out."""
    chosen: dict[str, Any] = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            if below := select(node, wanted, f"{prefix}{name}."):
                chosen[name] = below
        elif wanted(prefix + name):
            chosen[name] = node
    return chosen


def merge(a: Tree, b: Tree) -> dict[str, Any]:
    """Union of two nested dicts that share no leaf."""
    out = dict(a)
    for name, node in b.items():
        out[name] = merge(out[name], node) if name in out else node
    return out
