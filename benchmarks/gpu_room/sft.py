"""A supervised update on full rows."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.sft import get_config as sft_config
from gpu_room.scale import Figures, Scale, memory, one_device, sample, settings_of, timed
from vlaa_jax.data.rows.batches import BatchLayout, collate_rows
from vlaa_jax.models.qwen_vl.flops import row_flops, vision_flops
from vlaa_jax.models.qwen_vl.model import init_params
from vlaa_jax.models.qwen_vl.trees import partition
from vlaa_jax.parallel.mesh import replicated
from vlaa_jax.plan.check import chip_here
from vlaa_jax.plan.programs import _distribution, make_model
from vlaa_jax.policy.rows import row_targets
from vlaa_jax.train.sft_loss import sft_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update


def batches(size: Scale, data: Any) -> Iterator[Any]:
    """Micro-batches of rows full of samples of 1,024 tokens with an image each."""
    rng, count = np.random.default_rng(0), per_row(data)
    for _ in range(data.rows // data.rows_at_once):
        rows = [
            [
                sample(size.config, data.tokens_per_row // count, size.side, rng)
                for _ in range(count)
            ]
            for _ in range(data.rows_at_once)
        ]
        bins = data.rows_at_once * count
        layout = BatchLayout(rows_per_bin=data.vision_rows_per_bin, bins_per_shard=bins)
        batch = collate_rows(rows, layout, tokens_per_row=data.tokens_per_row)
        yield jax.device_put(row_targets(batch, vision=True))


def per_row(data: Any) -> int:
    """Samples of a row."""
    return max(int(data.tokens_per_row) // 1024, 1)


def sft(size: Scale) -> Iterator[Figures]:
    """A supervised update on full rows, timed twice after it is compiled."""
    settings, config = settings_of(sft_config, size.sft, size.options), size.config
    mesh, data = one_device(), settings.data
    model = make_model(settings, config, mesh)
    distribution = _distribution(model, settings, 1.0, settings.logprob_chunk)
    own = Update(partial(sft_loss, distribution), model.optimizer, model.state)
    abstract = model.params
    params = jax.tree.map(
        lambda leaf, at: jax.device_put(leaf.astype(at.dtype), at.sharding),
        init_params(config, 0),
        abstract,
    )
    trainable, frozen = partition(params, settings.model.freeze, adapters_only=False)
    state = new_state(trainable, model.optimizer, replicated(mesh))
    del params, trainable
    micros = list(batches(size, data))
    targets = jnp.float32(data.rows * data.tokens_per_row)

    def update(state: Any) -> tuple[Any, Any]:
        grads = own.zeros(state.trainable)
        for micro in micros:
            grads, (loss, _) = own.accumulate(grads, state.trainable, frozen, micro, targets)
        return own.apply(state, grads)[0], loss

    compiling, (state, _) = timed(lambda: update(state))
    yield {"compiling_step_s": compiling}
    seconds, (state, loss) = timed(lambda: update(state))
    count = data.rows * per_row(data)
    length = data.tokens_per_row // per_row(data)
    grid = (1, size.side // 14, size.side // 14)
    flops = 3 * row_flops(config, [length] * count, [])
    flops += count * vision_flops(config.vision, grid)  # the tower is frozen
    chip = chip_here(jax.devices()[0])
    yield {
        "compiling_step_s": compiling,
        "step_s": seconds,
        "tokens_per_s": data.rows * data.tokens_per_row / seconds,
        "flop_per_s": flops / seconds,
        "mfu": flops / seconds / chip.peak if chip else None,
        "loss": float(loss),
        **memory(),
    }
