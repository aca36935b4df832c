"""The supervised loss and its gradients, against transformers and against other layouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import hf_oracle
from hf_oracle import make, our_rows, relative_error, sample
from vlaa_jax.models.qwen_vl import lora
from vlaa_jax.models.qwen_vl.model import Compute, split_model
from vlaa_jax.models.qwen_vl.trees import merge, partition
from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.rows import RowTargets
from vlaa_jax.settings.shared import LoraSettings, OptimizerSettings
from vlaa_jax.train.optimizer import make_optimizer
from vlaa_jax.train.sft_loss import sft_loss
from vlaa_jax.train.state import new_state
from vlaa_jax.train.update import Update

ANSWER = 6
"""Tokens at the end of each sample that are learnt."""
STEPS = 20


def samples(seed, count=6):
    """Texts with an image, with none and with two."""
    rng = np.random.default_rng(seed)
    shapes = [[4, (1, 4, 4), 9], [14], [3, (1, 4, 8), 5, (1, 4, 4), 7]]
    return [sample(rng, shapes[i % len(shapes)]) for i in range(count)]


def packed(config, rows, **options):
    """Rows of samples, the last tokens of each to be predicted."""
    inputs = our_rows(config, rows, **options)
    if not np.any(inputs.vision.seg_id_SQ):
        inputs = inputs._replace(vision=None)
    predicts = np.zeros(inputs.ids_BT.shape, bool)
    for r, row in enumerate(rows):
        end = 0
        for one in row:
            end += len(one.ids_T)
            predicts[r, end - ANSWER - 1 : end - 1] = True
    return RowTargets(inputs, predicts)


def total(batch):
    return jnp.float32(batch.predicts_BT.sum())


def loss_of(config, **compute):
    graphdef, _ = split_model(config, Compute(**compute))
    return partial(sft_loss, Distribution(graphdef, 1.0, 0, 1))


def gradients(loss, params, batch, over=None, frozen=None):
    """Share of the loss and gradients, at full precision."""
    with jax.default_matmul_precision("highest"):
        update = Update(loss, make_optimizer(OptimizerSettings(), 1)[0])
        grads, (share, report) = update.gradients(params, frozen or {}, batch, over or total(batch))
    return float(share), grads, report


def assert_same(ours, theirs, most):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        assert np.abs(np.asarray(b)).max() > 0, jax.tree_util.keystr(path)
        assert relative_error(a, b) < most, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("family", "frozen"), [("qwen2_5_vl", ("vision",)), ("qwen2_vl", ())])
def test_twenty_updates_equal_those_of_a_torch_loop(family, frozen):
    """Losses before each of 20 updates on packed rows against padded batches in transformers."""
    oracle = make(family, tied=True)
    settings = OptimizerSettings(lr=2e-3, min_lr=2e-4, warmup_frac=0.1, weight_decay=0.01)
    optimizer, schedule = make_optimizer(settings, STEPS)
    everywhere = replicated(make_mesh(devices=jax.devices()[:1]))
    params = jax.device_put(oracle.params, everywhere)
    trainable, kept = partition(params, frozen, adapters_only=False)
    update = Update(loss_of(oracle.config), optimizer)
    state = new_state(trainable, optimizer, everywhere)

    for name, value in oracle.model.named_parameters():
        value.requires_grad_(not (frozen and "visual" in name and "merger" not in name))
    learnt = [p for p in oracle.model.parameters() if p.requires_grad]
    theirs = torch.optim.AdamW(
        learnt, betas=(settings.b1, settings.b2), eps=settings.eps, weight_decay=0.01
    )
    for step in range(STEPS):
        found = samples(step)
        batch = packed(oracle.config, [found[:3], found[3:]], length=96)
        with jax.default_matmul_precision("highest"):
            grads, (ours, _) = update.gradients(state.trainable, kept, batch, total(batch))
            state, norm = update.apply(state, grads)
        loss, their_norm = torch_step(oracle.model, theirs, learnt, found, float(schedule(step)))
        assert float(ours) == pytest.approx(loss, rel=1e-4), step
        assert float(norm) == pytest.approx(their_norm, rel=1e-3), step


def torch_step(model, optimizer, learnt, found, rate):
    """One step on a padded batch: loss per target token, and the gradient's norm."""
    inputs = hf_oracle.hf_inputs(found)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, one in enumerate(found):
        end = len(one.ids_T)
        labels[row, end - ANSWER : end] = inputs["input_ids"][row, end - ANSWER : end]
    logits = model(**inputs).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(learnt, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss.item(), norm.item()


def test_packed_rows_give_the_loss_and_gradients_of_padded_ones():
    oracle = make("qwen2_5_vl", tied=False)
    found = samples(0)
    loss = loss_of(oracle.config)
    ours, grads, report = gradients(
        loss, oracle.params, packed(oracle.config, [found[:3], found[3:]], noise=3.0)
    )
    alone = packed(oracle.config, [[one] for one in found])
    theirs, their_grads, _ = gradients(loss, oracle.params, alone)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert int(report.tokens) == ANSWER * len(found)
    assert_same(grads, their_grads, 1e-5)


def test_text_alone_needs_no_image():
    """No vision buffer at all, and the same loss and gradients as beside an empty one."""
    oracle = make("qwen2_5_vl", tied=True)
    found = [one for seed in range(3) for one in samples(seed) if not one.grids]
    batch = packed(oracle.config, [found[:3], found[3:]])
    assert batch.rows.vision is None
    loss = loss_of(oracle.config)
    ours, grads, _ = gradients(loss, oracle.params, batch)
    dummy = batch._replace(rows=our_rows(oracle.config, [found[:3], found[3:]]))
    theirs, their_grads, _ = gradients(loss, oracle.params, dummy)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert_same(grads["text"], their_grads["text"], 1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads["vision"])) == 0.0


def test_micro_batches_add_up_whatever_they_hold():
    """Rows with many and with few targets, split unevenly, over the targets of the whole."""
    oracle = make("qwen2_5_vl", tied=True)
    found = samples(1, 9)
    rows = [found[:4], found[4:5], found[5:6], found[6:]]
    loss = loss_of(oracle.config)
    whole = packed(oracle.config, rows, length=128)
    want, want_grads, _ = gradients(loss, oracle.params, whole)
    got, got_grads = 0.0, jax.tree.map(np.zeros_like, want_grads)
    for part in (rows[:2], rows[2:]):
        piece = packed(oracle.config, part, length=128)
        share, grads, _ = gradients(loss, oracle.params, piece, total(whole))
        got, got_grads = got + share, jax.tree.map(np.add, got_grads, grads)
    assert got == pytest.approx(want, rel=1e-6)
    assert_same(got_grads, want_grads, 1e-5)


def test_adapters_learn_and_nothing_else_does():
    """At the start a branch adds nothing: the loss is the base's, and B alone has a gradient; both
    equal on packed and padded rows."""
    oracle = make("qwen2_5_vl", tied=True)
    settings = LoraSettings(rank=2, alpha=4.0)
    graphdef, shapes = split_model(oracle.config, Compute(), settings)
    loss = partial(sft_loss, Distribution(graphdef, 1.0, 0, 1))
    branches = lora.init_branches(
        jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_one_device()),
            lora.adapters_of(shapes),
        ),
        0,
    )
    params = merge(oracle.params, branches)
    trainable, frozen = partition(params, (), adapters_only=True)
    found = samples(2)
    batch = packed(oracle.config, [found[:3], found[3:]])
    share, grads, _ = gradients(loss, trainable, batch, frozen=frozen)
    base, _, _ = gradients(loss_of(oracle.config), oracle.params, batch)
    assert share == pytest.approx(base, rel=1e-6)
    assert {name for name in grads} == {"text"}
    alone = packed(oracle.config, [[one] for one in found])
    _, padded, _ = gradients(loss, trainable, alone, frozen=frozen)
    moved = 0
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(padded), strict=True
    ):
        assert lora.is_adapter(".".join(key.key for key in path))
        if np.abs(b).max() > 0:
            moved += 1
            assert relative_error(a, b) < 1e-5
    assert moved == len(jax.tree.leaves(grads)) // 2


def _one_device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
