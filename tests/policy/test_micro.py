"""Groups of like lengths are computed together, in few shapes, and nothing is lost by it."""

from types import SimpleNamespace

import numpy as np
import pytest

from vlaa_jax.policy.micro import MicroPlan


def prompt(length):
    return SimpleNamespace(encoded=SimpleNamespace(length=length))


@pytest.fixture
def step():
    """Lengths of 12 prompts and of two completions of each."""
    rng = np.random.default_rng(0)
    prompts = [prompt(int(n)) for n in rng.integers(3, 97, 12)]
    return prompts, rng.integers(1, 49, (12, 2))


def test_every_group_comes_once_in_the_update_it_was_dealt_to(step):
    prompts, length_PG = step
    plan = MicroPlan.of(6, 2, prompt=96, answer=48)
    updates = list(plan(prompts, length_PG))
    assert len(updates) == 2 and all(len(batches) == 3 for batches in updates)
    for number, batches in enumerate(updates):
        places = sorted(np.concatenate([micro.index_P for micro in batches]).tolist())
        assert places == list(range(6 * number, 6 * number + 6))


def test_every_group_fits_its_shape_and_there_are_few_of_them(step):
    prompts, length_PG = step
    plan = MicroPlan.of(6, 2, prompt=96, answer=48)
    shapes = set()
    for batches in plan(prompts, length_PG):
        for micro in batches:
            shapes.add(micro.shape)
            assert max(prompts[p].encoded.length for p in micro.index_P) <= micro.shape.prompt
            assert length_PG[micro.index_P].max() <= micro.shape.answer
    assert len(shapes) <= 6


@pytest.mark.parametrize("positions", [8, 48, 64])
def test_a_cut_keeps_what_is_real(step, positions):
    prompts, length_PG = step
    length_PG = np.minimum(length_PG, positions)
    real = np.arange(positions) < length_PG[..., None]
    tokens = np.where(real, 1 + np.arange(12 * 2 * positions).reshape(12, 2, positions), 0)
    for batches in MicroPlan.of(12, 3, prompt=96, answer=64)(prompts, length_PG):
        for micro in batches:
            own = micro.cut(tokens)
            assert own.shape == (3, 2, micro.shape.answer)
            for row, place in zip(own, micro.index_P, strict=True):
                kept = [line[line > 0].tolist() for line in row]
                assert kept == [line[line > 0].tolist() for line in tokens[place]]


def test_one_micro_batch_keeps_its_order_and_the_sizes_of_the_ladder(step):
    prompts, length_PG = step
    for batches in MicroPlan.of(4, 4, prompt=96, answer=48)(prompts, length_PG):
        (micro,) = batches
        assert micro.shape is None and micro.tokens is None
        assert np.all(np.diff(micro.index_P) == 1)
