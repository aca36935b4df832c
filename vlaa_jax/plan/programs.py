"""The compiled programs of a GRPO step, with the shapes of their arguments and how often each runs.

They are the run's own functions, put together as train/grpo.py does it, on shapes alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlaa_jax.models.qwen_vl import lora
from vlaa_jax.models.qwen_vl.axes import layout
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, split_model
from vlaa_jax.models.qwen_vl.trees import merge, partition
from vlaa_jax.models.qwen_vl.vision import ROW_PATCHES, PixelNorm, VisionInputs
from vlaa_jax.parallel.mesh import BATCH_AXES, batch_sharding, data_shards, replicated
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.plan.shapes import Shapes
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import place_params
from vlaa_jax.rollout import generate
from vlaa_jax.rollout.engine import Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.weights import places_for, rollout_dtypes
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.train.grpo_loss import Context, GroupBatch, grpo_loss
from vlaa_jax.train.optimizer import make_optimizer
from vlaa_jax.train.state import abstract_state
from vlaa_jax.train.update import Update


class Program(NamedTuple):
    """One compiled function of a step.

    Attributes:
        name: what it is called in reports.
        jitted: the function.
        args: shapes with places.
        runs: how often a step runs it, at the longest lengths.
        beside: bytes of a device that live beside it and are not among its arguments.
    """

    name: str
    jitted: Callable[..., Any]
    args: tuple
    runs: int
    beside: int


class Parts(NamedTuple):
    """What all programs are made from."""

    settings: GrpoSettings
    config: QwenVLConfig
    shapes: Shapes
    mesh: Mesh
    distribution: Distribution
    engine: Engine
    params: Any
    state: Any
    frozen: Any
    reference: Any
    weights: Any
    update: Update


def bytes_on_device(tree: Any) -> int:
    """Bytes that arrays of these shapes and places take on one device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def make_parts(settings: GrpoSettings, config: QwenVLConfig, shapes: Shapes, mesh: Mesh) -> Parts:
    """Model, state and programs of a run on shapes."""
    model, rollout = settings.model, settings.rollout
    where = layout(config, mesh)
    compute = Compute(
        dtype=model.dtype,
        remat=model.remat,
        unroll=model.unroll or True,
        data_shards=data_shards(mesh),
        layout=where,
        pixels=PixelNorm(1 / 255, (0.5,) * 3, (0.5,) * 3, config.vision.temporal_patch_size),
    )
    base, _ = split_model(config, compute)
    graphdef, abstract = split_model(config, compute, model.lora)
    params = place_params(abstract, model, where)
    adapters = bool(model.lora.rank)
    trainable, frozen = partition(params, model.freeze, adapters_only=adapters)
    optimizer, _ = make_optimizer(settings.optimizer, 1)
    state = abstract_state(trainable, optimizer, replicated(mesh))
    distribution = Distribution(
        graphdef,
        temperature=rollout.temperature,
        chunk=settings.algo.logprob_chunk,
        row_shards=data_shards(mesh),
        base_graphdef=base if adapters else None,
    )
    engine = Engine(
        graphdef,
        completions=rollout.completions,
        max_new_tokens=rollout.max_new_tokens,
        sampling=Sampling(rollout.temperature, rollout.top_k, rollout.top_p, rollout.min_p),
        eos_id=0,
        allowed_V=np.ones(config.text.vocab_size, bool),
        slots=shapes.slots,
        burst=rollout.burst,
        mesh=mesh,
    )
    reference = _reference(settings, trainable, frozen)
    weights = _retyped(params, rollout_dtypes(params, model.dtype), layout(config, mesh, "sample"))
    loss = partial(grpo_loss, distribution, settings.algo, rollout.max_new_tokens)
    update = Update(loss, optimizer, state)
    return Parts(
        settings,
        config,
        shapes,
        mesh,
        distribution,
        engine,
        params,
        state,
        frozen,
        reference,
        weights,
        update,
    )


def _reference(settings: GrpoSettings, trainable: Any, frozen: Any) -> Any:
    if not settings.algo.kl_coef:
        return {}
    if settings.model.lora.rank:
        return lora.without_adapters(frozen)
    dtypes = rollout_dtypes(trainable, jnp.dtype(settings.model.dtype))
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


def programs(parts: Parts) -> list[Program]:
    """The programs of a step, in the order in which they run."""
    settings, shapes = parts.settings, parts.shapes
    prompts = settings.rollout.prompts
    kept = bytes_on_device((parts.state, parts.frozen))
    if parts.reference and not settings.model.lora.rank:  # with adapters the base is the reference
        kept += bytes_on_device(parts.reference) - bytes_on_device(parts.frozen)
    buffers = _buffers(parts)
    waves = -(-prompts // shapes.slots)
    bursts = waves * -(-settings.rollout.max_new_tokens // shapes.burst)
    micros = prompts // shapes.micro
    passes = (settings.algo.updates_per_step > 1) + bool(settings.algo.kl_coef)
    params, state = bytes_on_device(parts.params), bytes_on_device(parts.state)
    return [
        _casting(parts, kept),
        Program(
            "prefill",
            parts.engine._prefill,
            (parts.weights, prompt_shapes(parts, shapes.prefill)),
            prompts // shapes.prefill,
            kept + bytes_on_device(buffers),
        ),
        Program(
            "burst",
            parts.engine._burst,
            (parts.weights, buffers, _allowed(parts)),
            bursts,
            # A program is given what it uses; the vision tower waits for the next prefill.
            kept + bytes_on_device(parts.weights["vision"]),
        ),
        _score(parts, micros * passes, kept - params),
        Program(
            "gradients",
            parts.update.accumulate,
            (parts.state.trainable, parts.state.trainable, parts.frozen, *_batch(parts)),
            micros,
            kept - params,
        ),
        Program(
            "apply",
            parts.update.apply,
            (parts.state, parts.state.trainable),
            settings.algo.updates_per_step,
            kept - state,
        ),
    ]


def _shape(parts: Parts, shape: tuple[int, ...], dtype: Any, *, cut: bool = True) -> Any:
    place = batch_sharding(parts.mesh) if cut else replicated(parts.mesh)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)


def prompt_shapes(parts: Parts, count: int) -> PromptInputs:
    """Prompts of the longest bucket, each with an image that fills its bin."""
    shapes, one = parts.shapes, partial(_shape, parts)
    length, rows = shapes.prompt, shapes.rows
    vision = VisionInputs(
        one((count, rows, ROW_PATCHES, shapes.patch), np.uint8),
        one((count, rows, ROW_PATCHES, 2), np.int32),
        one((count, rows, ROW_PATCHES), np.int32),
        one((count, rows * ROW_PATCHES), np.int32),
    )
    return PromptInputs(
        one((count, length), np.int32),
        one((count, length, 3), np.int32),
        one((count,), np.int32),
        one((count, length), np.int32),
        vision if rows else None,
    )


def _allowed(parts: Parts) -> Any:
    return _shape(parts, (parts.config.text.vocab_size,), bool, cut=False)


def _batch(parts: Parts) -> tuple[GroupBatch, Context]:
    count, one = parts.shapes.micro, partial(_shape, parts)
    groups = (count, parts.settings.rollout.completions)
    tokens = (*groups, parts.shapes.answer)
    scalar = one((), np.float32, cut=False)
    logprobs = [one(tokens, np.float32)] * 3
    batch = GroupBatch(
        prompt_shapes(parts, count),
        one(tokens, np.int32),
        one(tokens, bool),
        one(groups, np.float32),
        *logprobs,
    )
    return batch, Context(scalar, scalar, scalar, _allowed(parts))


def _score(parts: Parts, runs: int, beside: int) -> Program:
    def score(params: Any, prompt: PromptInputs, tokens_PGT: Any, allowed_V: Any) -> Any:
        return parts.distribution.completion_logprobs(params, prompt, tokens_PGT, allowed_V)[0]

    batch, context = _batch(parts)
    args = (parts.params, batch.prompt, batch.tokens_PGT, context.allowed_V)
    return Program("score", jax.jit(score), args, runs, beside)


def _buffers(parts: Parts) -> generate.Buffers:
    """Decoding buffers of a full set of slots, with the completions' longest past."""
    shapes = parts.shapes
    prompt = prompt_shapes(parts, shapes.prefill)
    part = jax.eval_shape(parts.engine._prefill, parts.weights, prompt)
    keys = jax.ShapeDtypeStruct((shapes.prefill,), jax.random.key(0).dtype)
    make = partial(
        generate.empty_buffers,
        slots=shapes.slots,
        completions=parts.settings.rollout.completions,
        prefix=shapes.prompt,
        length=shapes.past,
    )
    where = Layout(parts.mesh, "sample")

    def place(leaf: Any) -> Any:
        cache = len(leaf.shape) > 2
        spec = PartitionSpec(BATCH_AXES)
        if cache:
            names = (None, "batch", "heads", *(None,) * (len(leaf.shape) - 3))
            spec = where.spec(leaf.shape, names)
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(parts.mesh, spec)
        )

    return jax.tree.map(place, jax.eval_shape(make, part, keys))


def _casting(parts: Parts, kept: int) -> Program:
    """The weights of the rollout: array by array, so the largest one alone is compiled."""
    pairs = list(zip(jax.tree.leaves(parts.params), jax.tree.leaves(parts.weights), strict=True))
    leaf, want = max(pairs, key=lambda pair: bytes_on_device(pair[1]))
    cast = jax.jit(lambda a: a.astype(want.dtype), out_shardings=want.sharding)
    others = bytes_on_device(parts.weights) - bytes_on_device(want)
    return Program("weights", cast, (leaf,), 1, kept - bytes_on_device(leaf) + others)
