"""A step's work by formulas: products, bytes of memory and of collectives, bytes a device holds.

Sizes are those of one device. Products are counted as the programs do them at their padded shapes,
masked scores and recomputation included; `useful` counts real work alone, for utilisation. Bytes
read and written are a floor with one addition: what attention's scores cost, by its form.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import jax.numpy as jnp

from vlaa_jax.models.qwen_vl.blockwise import TILE
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.flops import text_flops, vision_flops

SCORE_BYTES = {
    "dense": {"forward": 24, "backward": 48},
    "blockwise": {"forward": 16, "backward": 42},
    "splash": {"forward": 1, "backward": 5},
}
"""Bytes that cross the memory for one query, key and head.

Dense: float32 scores, six times forward: product, mask, maximum, exponent, sum, product. Blockwise:
tiles cross it too, fewer times and half as wide once they are weights; backward with the scores
made again. Splash: keys and values (backward, queries and cotangents too) once per block of 512."""
ROW_PASSES = {"forward": 14, "backward": 30}
"""Times that an activation of the model's width crosses it in a layer, hiddens aside."""


class Work(NamedTuple):
    """What one run of a program does on one device.

    Attributes:
        flops: products as done.
        useful: products that a device without padding or recomputation would do.
        hbm: bytes read and written.
        sent: bytes it sends in collectives.
    """

    flops: float
    useful: float
    hbm: float
    sent: float


class Sizes(NamedTuple):
    """Parameters of a model, as counts.

    Attributes:
        layer: of one decoder layer.
        layers: of all decoder layers.
        embedding: of the embedding, which is the head where it is tied.
        head: of a head of its own, or 0.
        tower: of the vision tower.
        merger: of its merger.
    """

    layer: int
    layers: int
    embedding: int
    head: int
    tower: int
    merger: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.layers + self.embedding + self.head + self.tower + self.merger


def sizes_of(config: QwenVLConfig) -> Sizes:
    """Counts from the shapes of the matrices; biases and norms are left out (under 0.1 %)."""
    text, vision = config.text, config.vision
    inner = text.head_dim * (text.heads + text.kv_heads)
    layer = 2 * text.width * inner + 3 * text.width * text.intermediate
    table = text.vocab_size * text.width
    mlp = (3 if vision.window_size else 2) * vision.width * vision.intermediate
    merged = vision.width * vision.merge_size**2
    tower = vision.depth * (4 * vision.width**2 + mlp)
    merger = merged * (merged + vision.out_size)
    own_head = 0 if config.tie_word_embeddings else table
    return Sizes(layer, text.layers * layer, table, own_head, tower, merger)


class Cut(NamedTuple):
    """How a mesh divides the work: copies of parameters, parts of them, parts of heads."""

    data: int
    fsdp: int
    tensor: int

    @property
    def devices(self) -> int:
        """All devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def shards(self) -> int:
        """Parts that a batch is dealt into."""
        return self.data * self.fsdp

    def sampling(self, tensor: int) -> "Cut":
        """The same devices while they sample, with heads in `tensor` parts (0: as they are)."""
        parts = tensor or self.tensor
        return Cut(self.devices // parts, 1, parts)


class Batch(NamedTuple):
    """A micro-batch, or its share on one device.

    Attributes:
        tokens: positions that the decoder computes.
        pairs: of query and key, masked ones included.
        seen: of query and key, without those that causality hides.
        scored: positions whose logits are made.
        bins: vision bins.
        useful: products of a forward pass over its text without padding.
    """

    tokens: float
    pairs: float
    seen: float
    scored: float
    bins: float
    useful: float

    def over(self, parts: int) -> "Batch":
        """The share of each of some parts."""
        return Batch(*(figure / parts for figure in self))


class Formulas(ABC):
    """Work and memory of the programs of a step.

    Args:
        settings: of the run.
        config: the model.
        cut: the mesh.
        form: of attention; see models/qwen_vl/attend.py.
    """

    def __init__(self, settings: Any, config: QwenVLConfig, cut: Cut, form: str = "dense") -> None:
        self.settings, self.config, self.cut, self.form = settings, config, cut, form
        self.sizes = sizes_of(config)
        self._item = jnp.dtype(settings.model.activations).itemsize
        self._matrix = jnp.dtype(settings.model.matrices).itemsize
        self._master = 4

    @abstractmethod
    def works(self) -> dict[str, tuple[int, Work]]:
        """Runs in a step, and the work of one, by program; everything at its longest."""

    @abstractmethod
    def memory(self) -> dict[str, float]:
        """Bytes of a device while a program runs, for those that take more than what is kept."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of 64 patches in a vision bin."""

    @property
    def loop(self) -> int:
        """Turns of loops that do not say how many: tokens of a burst."""
        return 1

    @property
    def keeps_reference(self) -> bool:
        """Whether the weights that training started from are kept."""
        return False

    # -- work -------------------------------------------------------------------------------

    def apply(self) -> Work:
        """An optimizer update: parameters, two moments and a gradient, read or written."""
        own = self._trained / (self.cut.fsdp * self.cut.tensor)
        return Work(20 * own, 0, own * self._master * 7, 0)

    def passes(self, batch: Batch, *, backward: bool, sampling: Cut | None = None) -> Work:
        """A forward pass over a micro-batch, with or without its gradients; or one to sample."""
        text, cut = self.config.text, sampling or self.cut
        own = batch.over(cut.shards)
        kinds = ("forward", "backward") if backward else ("forward",)
        head = 2 * own.scored * text.width * text.vocab_size
        pairs = own.pairs if self.form == "dense" else own.seen
        seen = text_flops(text, int(own.tokens), pairs) + head
        sight = own.bins * self._image()
        again = self.settings.model.remat == "full"
        flops = ((4 if again else 3) if backward else 1) * (seen / cut.tensor + sight)
        useful = (3 if backward else 1) * (own.useful + sight) / cut.tensor
        scores, costs = text.layers * text.heads / cut.tensor * pairs, SCORE_BYTES[self.form]
        crossing = own.tokens * self._item * text.layers
        width = text.width + (text.intermediate * 4 / 14) / cut.tensor
        hbm = sum(scores * costs[k] + crossing * width * ROW_PASSES[k] for k in kinds)
        hbm += own.scored * text.vocab_size * 4 * (10 if backward else 4) / cut.tensor
        gathered = (self.sizes.total - self.sizes.embedding * (self.sizes.head > 0)) / cut.tensor
        hbm += gathered * self._matrix * (3 if backward else 1)
        sent = self._sums(own.tokens, cut, backward)
        sent += 0.0 if sampling else self._weights_sent(gathered, backward)
        return Work(flops, useful, hbm, sent)

    def _weights_sent(self, gathered: float, backward: bool) -> float:
        """Weights gathered in the activation dtype, once or twice, and gradients reduced once."""
        cut = self.cut
        part = 1 - 1 / cut.fsdp
        sent = gathered * self._matrix * part * (2 if backward else 1)
        if backward:
            sent += gathered * 4 * part  # reduced to where a parameter lies ...
            sent += 2 * gathered * 4 / cut.fsdp * (1 - 1 / cut.data)  # ... and over its copies
        return sent

    def _sums(self, tokens: float, cut: Cut, backward: bool) -> float:
        """What tensor parallelism sums: two arrays a layer and pass, float32, each sent twice."""
        if cut.tensor == 1:
            return 0.0
        text = self.config.text
        return tokens * text.width * 4 * 2 * 2 * text.layers * (3 if backward else 1)

    def _image(self) -> float:
        """Vision products of one full bin."""
        patches, vision = self.rows * 64, self.config.vision
        side = int(patches**0.5)
        return vision_flops(vision, (1, side, patches // max(side, 1))) if patches else 0.0

    # -- memory -----------------------------------------------------------------------------

    @property
    def _trained(self) -> float:
        model = self.settings.model
        if not model.lora.rank:
            sizes = self.sizes
            parts = {"vision": sizes.tower, "merger": sizes.merger, "language": sizes.layers}
            parts["embeddings"] = sizes.embedding + sizes.head
            return sum(size for part, size in parts.items() if part not in model.freeze)
        text, rank = self.config.text, model.lora.rank
        inner = text.head_dim * text.heads
        kv = text.head_dim * text.kv_heads
        sides = {"q_proj": inner, "k_proj": kv, "v_proj": kv, "o_proj": inner}
        sides |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), text.intermediate)
        return sum(rank * text.layers * (text.width + sides[m]) for m in model.lora.modules)

    def kept(self) -> float:
        """Bytes that lie on a device all the time: masters, moments, reference."""
        parts = self.cut.fsdp * self.cut.tensor
        still = 0 if self.settings.model.lora.rank else self._trained
        weights = self._trained * self._master + (self.sizes.total - still) * self._matrix
        reference = still * self._matrix * self.keeps_reference
        return (weights + 2 * self._trained * self._master + reference) / parts

    def learning(self, batch: Batch) -> float:
        """Bytes of a device during a gradient pass."""
        text, cut = self.config.text, self.cut
        own = batch.over(cut.shards)
        sums = 2 * self._trained * self._master / (cut.fsdp * cut.tensor)  # the total, and this one
        carried = own.tokens * text.width * self._item * text.layers
        held = {"dense": 2.5 * own.pairs * text.heads / cut.tensor, "blockwise": 4 * TILE}
        scores = 4 * held.get(self.form, 0)
        hidden = own.tokens * self._item * (8 * text.width + 6 * text.intermediate / cut.tensor)
        head = self.sizes.embedding / cut.tensor * (self._matrix + 2 * 4)
        return self.kept() + sums + carried + max(scores + hidden, head)
