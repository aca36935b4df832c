"""A step's work by formulas: products, bytes of memory and of collectives, bytes a device holds.

Sizes are those of one device. Products are counted as the programs do them at their padded shapes,
masked scores and recomputation included; `useful` counts real work alone, for utilisation. Bytes
read and written are a floor with one addition: attention holds its scores in float32, and they
cross the memory once per elementwise pass over them.
"""

from typing import NamedTuple

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.flops import group_flops, text_flops, vision_flops
from vlaa_jax.plan.shapes import Shapes
from vlaa_jax.settings.grpo import GrpoSettings

SCORE_PASSES = {"forward": 6, "backward": 12}
"""Times that float32 scores cross the memory: product, mask, maximum, exponent, sum, product."""
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
        vision: of the tower and merger.
    """

    layer: int
    layers: int
    embedding: int
    head: int
    vision: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.layers + self.embedding + self.head + self.vision


def sizes_of(config: QwenVLConfig) -> Sizes:
    """Counts from the shapes of the matrices; biases and norms are left out (under 0.1 %)."""
    text, vision = config.text, config.vision
    inner = text.head_dim * (text.heads + text.kv_heads)
    layer = 2 * text.width * inner + 3 * text.width * text.intermediate
    table = text.vocab_size * text.width
    mlp = (3 if vision.window_size else 2) * vision.width * vision.intermediate
    merged = vision.width * vision.merge_size**2
    tower = vision.depth * (4 * vision.width**2 + mlp) + merged * (merged + vision.out_size)
    own_head = 0 if config.tie_word_embeddings else table
    return Sizes(layer, text.layers * layer, table, own_head, tower)


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


class Formulas:
    """Work and memory of the programs of a GRPO step.

    Args:
        settings: of the run.
        config: the model.
        shapes: static sizes.
        cut: the mesh.
    """

    def __init__(
        self, settings: GrpoSettings, config: QwenVLConfig, shapes: Shapes, cut: Cut
    ) -> None:
        self.settings, self.config, self.shapes, self.cut = settings, config, shapes, cut
        self.sizes = sizes_of(config)
        self._item = 2 if settings.model.dtype == "bfloat16" else 4
        self._master = 4
        self._groups = settings.rollout.completions

    # -- work -------------------------------------------------------------------------------

    def prefill(self) -> Work:
        """Prefixes of a part of the prompts."""
        return self._pass(self.shapes.prefill, 0, backward=False, weights_cut=False)

    def score(self) -> Work:
        """Log-probabilities of a micro-batch."""
        return self._pass(self.shapes.micro, self.shapes.answer, backward=False)

    def gradients(self) -> Work:
        """Gradients of a micro-batch, added to those before."""
        return self._pass(self.shapes.micro, self.shapes.answer, backward=True)

    def token(self, past: float) -> Work:
        """One token of every completion in the slots, `past` tokens after their first."""
        text, cut = self.config.text, self.cut
        prompts = self.shapes.slots / cut.shards
        rows = prompts * self._groups
        active = (self.sizes.layers + self.sizes.embedding + self.sizes.head) / cut.tensor
        products = 2 * rows * (active - (0 if self.sizes.head == 0 else self.sizes.embedding))
        kv = 2 * text.layers * text.kv_heads * text.head_dim * self._item / cut.tensor
        held = self.shapes.prompt + self._groups * (self.shapes.past + self.shapes.burst)
        pairs = rows * (self.shapes.prompt + past)
        products += 4 * text.layers * text.heads * text.head_dim * pairs / cut.tensor
        read = active * self._item + prompts * held * kv + rows * text.vocab_size * 4 * 6
        sums = 0.0 if cut.tensor == 1 else 2 * text.layers * rows * text.width * 4 * 2
        return Work(products, products, read, sums)

    def apply(self) -> Work:
        """An optimizer update: parameters, two moments and a gradient, read or written."""
        own = self._trained / (self.cut.fsdp * self.cut.tensor)
        return Work(20 * own, 0, own * self._master * 7, 0)

    def weights(self) -> Work:
        """The cast and the layout for decoding."""
        whole = self.sizes.total * self._item / self.cut.tensor
        return Work(0, 0, 2 * whole, whole * (1 - 1 / self.cut.fsdp))

    def _pass(self, prompts: int, answer: int, *, backward: bool, weights_cut: bool = True) -> Work:
        text, cut, shapes = self.config.text, self.cut, self.shapes
        own = prompts / cut.shards
        answers = self._groups * answer
        tokens = own * (shapes.prompt + answers)
        pairs = own * (shapes.prompt**2 + answers * (shapes.prompt + answer))
        head = 2 * own * answers * text.width * text.vocab_size
        seen = text_flops(text, int(tokens), pairs) + head
        sight = own * self._image()
        remat = self.settings.model.remat == "full"
        times = (4 if remat else 3) if backward else 1
        flops = times * (seen / cut.tensor + sight)
        lengths, group = [shapes.prompt] * prompts, [answer] * self._groups * (answer > 0)
        useful = group_flops(self.config, lengths, [group] * prompts, [])
        useful = (3 if backward else 1) * (useful / cut.devices + sight / cut.tensor)
        scores = 4 * text.layers * text.heads / cut.tensor * pairs
        rows = tokens * self._item * text.layers
        width = text.width + (text.intermediate * 4 / 14) / cut.tensor
        kinds = ("forward", "backward") if backward else ("forward",)
        hbm = sum(scores * SCORE_PASSES[k] + rows * width * ROW_PASSES[k] for k in kinds)
        hbm += own * answers * text.vocab_size * 4 * (10 if backward else 4) / cut.tensor
        gathered = (self.sizes.total - self.sizes.embedding * (self.sizes.head > 0)) / cut.tensor
        hbm += gathered * self._item * (3 if backward else 1)
        sent = self._sums(tokens, backward)
        if weights_cut:
            sent += self._weights_sent(gathered, backward)
        return Work(flops, useful, hbm, sent)

    def _weights_sent(self, gathered: float, backward: bool) -> float:
        """Weights gathered in the activation dtype, once or twice, and gradients reduced once."""
        cut = self.cut
        part = 1 - 1 / cut.fsdp
        sent = gathered * self._item * part * (2 if backward else 1)
        if backward:
            sent += gathered * 4 * part  # reduced to where a parameter lies ...
            sent += 2 * gathered * 4 / cut.fsdp * (1 - 1 / cut.data)  # ... and over its copies
        return sent

    def _sums(self, tokens: float, backward: bool) -> float:
        """What tensor parallelism sums: two arrays a layer and pass, float32, each sent twice."""
        if self.cut.tensor == 1:
            return 0.0
        text = self.config.text
        return tokens * text.width * 4 * 2 * 2 * text.layers * (3 if backward else 1)

    def _image(self) -> float:
        """Vision products of one full bin."""
        patches, vision = self.shapes.rows * 64, self.config.vision
        side = int(patches**0.5)
        return vision_flops(vision, (1, side, patches // max(side, 1))) if patches else 0.0

    # -- memory -----------------------------------------------------------------------------

    @property
    def _trained(self) -> float:
        model = self.settings.model
        if not model.lora.rank:
            frozen = {"vision": self.sizes.vision, "embeddings": self.sizes.embedding}
            return self.sizes.total - sum(frozen.get(part, 0) for part in model.freeze)
        text, rank = self.config.text, model.lora.rank
        inner = text.head_dim * text.heads
        kv = text.head_dim * text.kv_heads
        sides = {"q_proj": inner, "k_proj": kv, "v_proj": kv, "o_proj": inner}
        sides |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), text.intermediate)
        return sum(rank * text.layers * (text.width + sides[m]) for m in model.lora.modules)

    def kept(self) -> float:
        """Bytes that lie on a device all the time: masters, moments, reference."""
        parts = self.cut.fsdp * self.cut.tensor
        if self.settings.model.lora.rank:
            return (self.sizes.total * self._item + 3 * self._trained * 4) / parts
        reference = self.sizes.total * self._item * bool(self.settings.algo.kl_coef)
        moments = 2 * self._trained * self._master
        return (self.sizes.total * self._master + moments + reference) / parts

    def decoding(self) -> float:
        """Bytes of a device while it decodes."""
        text, cut, shapes = self.config.text, self.cut, self.shapes
        kv_heads = max(text.kv_heads, cut.tensor) / cut.tensor
        held = shapes.prompt + self._groups * (shapes.past + shapes.burst)
        cache = 2 * text.layers * kv_heads * text.head_dim * self._item * held
        cache *= shapes.slots / cut.shards
        return self.kept() + self.sizes.total * self._item / cut.tensor + cache

    def learning(self) -> float:
        """Bytes of a device during a gradient pass."""
        text, cut, shapes = self.config.text, self.cut, self.shapes
        parts = cut.fsdp * cut.tensor
        own = shapes.micro / cut.shards
        tokens = own * (shapes.prompt + self._groups * shapes.answer)
        sums = 2 * self._trained * self._master / parts  # the total and this micro-batch's
        carried = tokens * text.width * self._item * text.layers
        answers = self._groups * shapes.answer
        pairs = own * (shapes.prompt**2 + answers * (shapes.prompt + shapes.answer))
        scores = 2.5 * 4 * pairs * text.heads / cut.tensor
        hidden = tokens * self._item * (8 * text.width + 6 * text.intermediate / cut.tensor)
        head = self.sizes.embedding / cut.tensor * (self._item + 2 * 4)
        return self.kept() + sums + carried + max(scores + hidden, head)
