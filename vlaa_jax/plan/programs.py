"""The compiled programs of a step, with the shapes of their arguments.

They are the run's own functions, put together as train/grpo.py and train/sft.py do it, on shapes
alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlaa_jax.models.qwen_vl import lora
from vlaa_jax.models.qwen_vl.axes import layout
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.model import PromptInputs, RowInputs, split_model
from vlaa_jax.models.qwen_vl.trees import merge, partition
from vlaa_jax.models.qwen_vl.vision import ROW_PATCHES, PixelNorm, VisionInputs
from vlaa_jax.parallel.mesh import BATCH_AXES, batch_sharding, data_shards, replicated
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.plan.shapes import Shapes, bins_per_row, shapes_of
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import compute_of, place_params
from vlaa_jax.policy.rows import RowTargets
from vlaa_jax.rollout import generate
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.slots import MOST_HELD
from vlaa_jax.rollout.weights import places_for, rollout_dtypes, sampling_mesh
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.optimizer import make_optimizer
from vlaa_jax.train.sft_loss import sft_loss
from vlaa_jax.train.state import TrainState, abstract_state
from vlaa_jax.train.update import Update


class Program(NamedTuple):
    """One compiled function of a step.

    Attributes:
        name: what it is called in reports.
        jitted: the function.
        args: shapes with places.
        beside: bytes of a device that live beside it and are not among its arguments.
    """

    name: str
    jitted: Callable[..., Any]
    args: tuple
    beside: int


class Model(NamedTuple):
    """A model and what trains of it, on shapes."""

    config: QwenVLConfig
    mesh: Mesh
    graphdef: nnx.GraphDef
    base: nnx.GraphDef
    params: Any
    state: TrainState
    frozen: Any
    optimizer: optax.GradientTransformation


class Parts(NamedTuple):
    """What the programs of a GRPO step are made from."""

    settings: GrpoSettings
    shapes: Shapes
    model: Model
    distribution: Distribution
    engine: Engine
    sampling: Mesh
    reference: Any
    weights: Any
    update: Update


def bytes_on_device(tree: Any) -> int:
    """Bytes that arrays of these shapes and places take on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def make_model(settings: Any, config: QwenVLConfig, mesh: Mesh) -> Model:
    """Structure, parameters and training state of a task, on shapes."""
    model, where = settings.model, layout(config, mesh)
    pixels = PixelNorm(1 / 255, (0.5,) * 3, (0.5,) * 3, config.vision.temporal_patch_size)
    compute = compute_of(model, config, mesh, pixels)
    base, _ = split_model(config, compute)
    graphdef, abstract = split_model(config, compute, model.lora)
    params = place_params(abstract, model, where)
    adapters = bool(model.lora.rank)
    trainable, frozen = partition(params, model.freeze, adapters_only=adapters)
    optimizer, _ = make_optimizer(settings.optimizer, 2)
    state = abstract_state(trainable, optimizer, replicated(mesh))
    return Model(config, mesh, graphdef, base, params, state, frozen, optimizer)


def _distribution(model: Model, settings: Any, temperature: float, chunk: int) -> Distribution:
    base = model.base if settings.model.lora.rank else None
    return Distribution(model.graphdef, temperature, chunk, data_shards(model.mesh), base)


def make_parts(settings: GrpoSettings, config: QwenVLConfig, shapes: Shapes, mesh: Mesh) -> Parts:
    """Model, state and programs of a GRPO run on shapes."""
    model, rollout = make_model(settings, config, mesh), settings.rollout
    sampling = sampling_mesh(mesh, rollout.tensor) if rollout.tensor else mesh
    engine = Engine(
        model.graphdef,
        Decoding(
            rollout.completions, rollout.max_new_tokens, slots=shapes.slots, burst=rollout.burst
        ),
        sampling=Sampling(rollout.temperature, rollout.top_k, rollout.top_p, rollout.min_p),
        eos_id=0,
        allowed_V=np.ones(config.text.vocab_size, bool),
        mesh=sampling,
    )
    distribution = _distribution(model, settings, rollout.temperature, settings.algo.logprob_chunk)
    dtypes = rollout_dtypes(model.params, settings.model.matrices)
    weights = _retyped(model.params, dtypes, layout(config, sampling, "sample"))
    loss = partial(grpo_loss, distribution, settings.algo, rollout.max_new_tokens)
    update = Update(loss, model.optimizer, model.state)
    reference = _reference(settings, model.state.trainable, model.frozen)
    return Parts(
        settings, shapes, model, distribution, engine, sampling, reference, weights, update
    )


def _reference(settings: GrpoSettings, trainable: Any, frozen: Any) -> Any:
    if not settings.algo.kl_coef:
        return {}
    if settings.model.lora.rank:
        return lora.without_adapters(frozen)
    dtypes = rollout_dtypes(trainable, jnp.dtype(settings.model.matrices))
    start = jax.tree.map(
        lambda leaf, dtype: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        trainable,
        dtypes,
    )
    return merge(start, frozen)


def _retyped(params: Any, dtypes: Any, where: Layout) -> Any:
    return jax.tree.map(
        lambda leaf, dtype, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        params,
        dtypes,
        places_for(params, where),
    )


def programs_of(settings: Any, config: QwenVLConfig, mesh: Mesh) -> list[Program]:
    """The programs of a step of a task, in the order in which they run."""
    if isinstance(settings, SftSettings):
        return sft_programs(settings, config, mesh)
    return grpo_programs(make_parts(settings, config, shapes_of(settings, config), mesh))


def sft_programs(settings: SftSettings, config: QwenVLConfig, mesh: Mesh) -> list[Program]:
    """Of a supervised update."""
    model = make_model(settings, config, mesh)
    distribution = _distribution(model, settings, 1.0, settings.logprob_chunk)
    update = Update(partial(sft_loss, distribution), model.optimizer, model.state)
    data, one = settings.data, partial(_shape, mesh)
    rows, length = data.rows_at_once, data.tokens_per_row
    shape = Shapes.of_rows(data, config)
    tokens = (rows, length)
    inputs = RowInputs(
        one(tokens, np.int32),
        one((*tokens, 3), np.int32),
        one(tokens, np.int32),
        one(tokens, np.int32),
        _images(mesh, rows * bins_per_row(length), shape),
    )
    batch = RowTargets(inputs, one(tokens, bool))
    kept = bytes_on_device((model.state, model.frozen))
    return _learning(model, update, (batch, one((), np.float32, cut=False)), kept)


def grpo_programs(parts: Parts) -> list[Program]:
    """Of a GRPO step."""
    shapes, model = parts.shapes, parts.model
    kept = bytes_on_device((model.state, model.frozen))
    # With adapters the base is the reference.
    if parts.reference and not parts.settings.model.lora.rank:
        kept += bytes_on_device(parts.reference) - bytes_on_device(model.frozen)
    buffers = _buffers(parts)
    # Prefixes that wait for slots, as many as may.
    held = bytes_on_device(buffers.prefix) * shapes.prefill // shapes.slots
    # A program is given what it uses; the vision tower waits for the next prefill.
    idle = bytes_on_device(parts.weights["vision"])
    allowed = _allowed(model)
    prompts = prompt_shapes(model.mesh, shapes, shapes.prefill)
    return [
        _casting(parts, kept),
        Program(
            "prefill",
            parts.engine._prefill,
            (parts.weights, prompts),
            kept + bytes_on_device(buffers) + (MOST_HELD - 1) * held,
        ),
        Program(
            "burst",
            parts.engine._burst,
            (parts.weights, buffers, allowed),
            kept + idle + MOST_HELD * held,
        ),
        _score(parts, kept - bytes_on_device(model.params)),
        *_learning(model, parts.update, _batch(parts), kept),
    ]


def _learning(model: Model, update: Update, batch: tuple, kept: int) -> list[Program]:
    state, grads = model.state, model.state.trainable
    given = (grads, state.trainable, model.frozen, *batch)
    beside = kept - bytes_on_device((state.trainable, model.frozen))
    return [
        Program("gradients", update.accumulate, given, beside),
        Program("apply", update.apply, (state, grads), kept - bytes_on_device(state)),
    ]


def _shape(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *, cut: bool = True) -> Any:
    place = batch_sharding(mesh) if cut else replicated(mesh)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)


def _images(mesh: Mesh, bins: int, shapes: Shapes) -> VisionInputs | None:
    """Bins that are full of patches, as bytes."""
    rows, one = (bins, shapes.rows, ROW_PATCHES), partial(_shape, mesh)
    return VisionInputs(
        one((*rows, shapes.patch), np.uint8),
        one((*rows, 2), np.int32),
        one(rows, np.int32),
        one((bins, shapes.rows * ROW_PATCHES), np.int32),
    )


def prompt_shapes(mesh: Mesh, shapes: Shapes, count: int) -> PromptInputs:
    """Prompts of the longest bucket, each with an image that fills its bin."""
    tokens, one = (count, shapes.prompt), partial(_shape, mesh)
    return PromptInputs(
        one(tokens, np.int32),
        one((*tokens, 3), np.int32),
        one((count,), np.int32),
        one(tokens, np.int32),
        _images(mesh, count, shapes),
    )


def _allowed(model: Model) -> Any:
    return _shape(model.mesh, (model.config.text.vocab_size,), bool, cut=False)


def _batch(parts: Parts) -> tuple[GroupBatch, Context]:
    mesh, shapes = parts.model.mesh, parts.shapes
    one, count = partial(_shape, mesh), shapes.micro
    groups = (count, parts.settings.rollout.completions)
    tokens = (*groups, shapes.answer)
    batch = GroupBatch(
        prompt_shapes(mesh, shapes, count),
        one(tokens, np.int32),
        one(tokens, bool),
        one(groups, np.float32),
        *[one(tokens, np.float32)] * 3,
    )
    scalar = one((), np.float32, cut=False)
    return batch, Context(scalar, scalar, scalar, _allowed(parts.model))


def _score(parts: Parts, beside: int) -> Program:
    def score(params: Any, prompt: PromptInputs, tokens_PGT: Any, allowed_V: Any) -> Any:
        return parts.distribution.completion_logprobs(params, prompt, tokens_PGT, allowed_V)[0]

    batch, context = _batch(parts)
    args = (parts.model.params, batch.prompt, batch.tokens_PGT, context.allowed_V)
    return Program("score", jax.jit(score), args, beside)


def _buffers(parts: Parts) -> generate.Buffers:
    """Decoding buffers of a full set of slots, with the completions' longest past."""
    shapes, mesh = parts.shapes, parts.sampling
    prompt = prompt_shapes(parts.model.mesh, shapes, shapes.prefill)
    part = jax.eval_shape(parts.engine._prefill, parts.weights, prompt)
    keys = jax.ShapeDtypeStruct((shapes.prefill,), jax.random.key(0).dtype)
    make = partial(
        generate.empty_buffers,
        slots=shapes.slots,
        completions=parts.settings.rollout.completions,
        prefix=shapes.prompt,
        length=shapes.past,
    )
    where = Layout(mesh, "sample")

    def place(leaf: Any) -> Any:
        cache = len(leaf.shape) > 2
        spec = PartitionSpec(BATCH_AXES)
        if cache:
            names = (None, "batch", "heads", *(None,) * (len(leaf.shape) - 3))
            spec = where.spec(leaf.shape, names)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, jax.eval_shape(make, part, keys))


def _casting(parts: Parts, kept: int) -> Program:
    """The weights of the rollout: array by array, so the largest one alone is compiled."""
    pairs = list(
        zip(jax.tree.leaves(parts.model.params), jax.tree.leaves(parts.weights), strict=True)
    )
    leaf, want = max(pairs, key=lambda pair: bytes_on_device(pair[1]))
    cast = jax.jit(lambda a: a.astype(want.dtype), out_shardings=want.sharding)
    others = bytes_on_device(parts.weights) - bytes_on_device(want)
    return Program("weights", cast, (leaf,), kept - bytes_on_device(leaf) + others)
