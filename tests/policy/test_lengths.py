"""Micro-batches of like lengths: everybody once, nobody cut, few shapes, less padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.policy.lengths import MicroBatch, Shape, micro_batches, micro_shapes


def test_six_shapes_by_hand():
    assert micro_shapes(2048, 1024, 128) == (
        Shape(512, 512),
        Shape(1024, 512),
        Shape(1024, 768),
        Shape(1024, 1024),
        Shape(2048, 768),
        Shape(2048, 1024),
    )
    assert micro_shapes(96, 48, 128) == (Shape(128, 128),)
    assert micro_shapes(8, 4) == tuple(
        Shape(*s) for s in ((2, 2), (4, 2), (4, 3), (4, 4), (8, 3), (8, 4))
    )


def test_a_deal_by_hand():
    prompt = np.array([8, 3, 7, 2, 8, 2, 2, 5])
    answer = np.array([4, 1, 3, 2, 1, 1, 2, 4])
    got = micro_batches(prompt, answer, micro_shapes(8, 4), 4, completions=2)
    # Alone they need (8, 4) (4, 2) (8, 3) (2, 2) (8, 3) (2, 2) (2, 2) (8, 4).
    assert [batch.index_P.tolist() for batch in got] == [[0, 7, 2, 4], [1, 3, 6, 5]]
    assert [batch.shape for batch in got] == [Shape(8, 4), Shape(4, 2)]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([(4, 3), (4, 4), (8, 2), (1, 5)]),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([1, 16, 128]),
    st.randoms(use_true_random=False),
)
def test_everybody_is_in_one_batch_and_fits_it(sizes, longest, limit, multiple, random):
    micro, batches = sizes
    count = micro * batches
    prompt = np.array([random.randint(1, longest) for _ in range(count)])
    answer = np.array([random.randint(0, limit) for _ in range(count)])
    shapes = micro_shapes(longest, limit, multiple)
    assert len(shapes) <= 6
    got = micro_batches(prompt, answer, shapes, micro, completions=3)
    assert sorted(np.concatenate([batch.index_P for batch in got])) == list(range(count))
    for batch in got:
        assert isinstance(batch, MicroBatch)
        assert batch.shape in shapes
        assert prompt[batch.index_P].max() <= batch.shape.prompt
        assert answer[batch.index_P].max() <= batch.shape.answer


def test_ordinary_lengths_are_padded_much_less_than_to_the_longest():
    rng = np.random.default_rng(0)
    prompt = np.minimum(rng.lognormal(6.2, 0.5, 64), 2048).astype(int)
    answer = np.minimum(rng.lognormal(5.5, 0.6, (64, 4)), 1024).astype(int)
    got = micro_batches(prompt, answer.max(1), micro_shapes(2048, 1024, 128), 16, completions=4)
    positions = sum(len(b.index_P) * (b.shape.prompt + 4 * b.shape.answer) for b in got)
    assert 1.3 * positions < 64 * (2048 + 4 * 1024)


@pytest.mark.parametrize(("micro", "longest"), [(3, 5), (4, 11)], ids=str)
def test_what_cannot_be_dealt_is_refused(micro, longest):
    lengths = np.full(8, longest)
    with pytest.raises(ValueError, match=r"not dealt|longer than"):
        micro_batches(lengths, lengths, micro_shapes(10, 10), micro, completions=2)
