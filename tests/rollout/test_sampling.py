"""The sampler draws from the exact softmax, and says the policy's log-probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.rollout.sampling import (
    RowSampling,
    Sampling,
    allowed_tokens,
    sample_rows,
    sample_tokens,
    truncate,
)

LOGITS = np.array([2.0, 1.0, 0.0, -1.0, 3.0, 0.5], np.float32)
ALLOWED = np.array([True, True, True, True, False, True])
DRAWS = 40_000


def draw(sampling, seed=0):
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    logits = jnp.broadcast_to(LOGITS, (DRAWS, len(LOGITS)))
    tokens, logprobs = jax.jit(sample_tokens, static_argnums=3)(logits, keys, ALLOWED, sampling)
    return np.asarray(tokens), np.asarray(logprobs)


def exact(temperature):
    scaled = np.where(ALLOWED, LOGITS / temperature, -np.inf).astype(np.float64)
    p = np.exp(scaled - scaled.max())
    return p / p.sum()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_frequencies_fit_the_softmax(temperature):
    tokens, logprobs = draw(Sampling(temperature))
    p = exact(temperature)
    counts = np.bincount(tokens, minlength=len(p))
    assert counts[4] == 0  # forbidden, although the likeliest
    expected = DRAWS * p[ALLOWED]
    chi_square = ((counts[ALLOWED] - expected) ** 2 / expected).sum()
    assert chi_square < 18.47  # 99.9 % quantile with 4 degrees of freedom
    np.testing.assert_allclose(logprobs, np.log(p[tokens]), rtol=1e-5)


def test_truncation_changes_the_draw_but_not_the_log_probability():
    p = exact(1.0)  # order: 0 (0.53), 1 (0.20), 5 (0.12), 2 (0.07), 3 (0.03)
    tokens, logprobs = draw(Sampling(top_k=2))
    assert set(tokens) == {0, 1}
    np.testing.assert_allclose(logprobs, np.log(p[tokens]), rtol=1e-5)
    share = (tokens == 0).mean()
    assert abs(share - p[0] / (p[0] + p[1])) < 0.01


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=3), {0, 1, 5}),
        (Sampling(top_p=0.5), {0}),  # 0 alone holds 0.53
        (Sampling(top_p=0.6), {0, 1}),
        (Sampling(min_p=0.3), {0, 1}),  # at least 0.3 * 0.53
        (Sampling(top_p=1e-6), {0}),  # the likeliest always stays
        (Sampling(), {0, 1, 2, 3, 5}),
    ],
)
def test_truncation_keeps_what_it_says(sampling, kept):
    logprobs = np.log(np.maximum(exact(1.0), 1e-300))[None].astype(np.float32)
    logprobs[0, 4] = -1e9
    left = np.asarray(truncate(jnp.asarray(logprobs), sampling))[0]
    assert {i for i in range(6) if np.isfinite(left[i]) and i != 4} == kept


def test_a_sample_does_not_depend_on_its_neighbours():
    keys = jax.random.split(jax.random.key(3), 8)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 50)), jnp.float32)
    together, _ = sample_tokens(logits, keys, None, Sampling())
    alone, _ = sample_tokens(logits[5:6], keys[5:6], None, Sampling())
    assert together[5] == alone[0]


def test_greedy_takes_the_likeliest_allowed():
    tokens, _ = draw(Sampling(greedy=True))
    assert set(tokens) == {0}


def test_allowed_tokens():
    allowed = allowed_tokens(8, 6, (1, 4, 99))
    assert allowed.tolist() == [True, False, True, True, False, True, False, False]


ROWS = [
    Sampling(),
    Sampling(0.7, top_k=3),
    Sampling(1.5, top_p=0.6),
    Sampling(1.0, min_p=0.2),
    Sampling(0.9, top_k=5, top_p=0.8, min_p=0.05),
    Sampling(2.0, greedy=True),
    Sampling(1.0, top_k=10_000),
]


def test_rows_with_settings_of_their_own_draw_what_they_draw_alone():
    rng = np.random.default_rng(0)
    count, vocab = len(ROWS) * 40, 50
    settings = [ROWS[i % len(ROWS)] for i in range(count)]
    logits = rng.normal(0, 2, (count, vocab)).astype(np.float32)
    logits[:, 7] = logits[:, 11]  # ties
    keys = jax.random.split(jax.random.key(5), count)
    allowed = np.arange(vocab) < 45
    mixed = jax.jit(sample_rows)
    tokens, logprobs = mixed(logits, keys, allowed, RowSampling.of(settings))
    for kind in ROWS:
        own = np.array([setting == kind for setting in settings])
        want, want_logprobs = sample_tokens(logits[own], keys[own], allowed, kind)
        np.testing.assert_array_equal(np.asarray(tokens)[own], want)
        np.testing.assert_allclose(np.asarray(logprobs)[own], want_logprobs, rtol=1e-5, atol=1e-6)
    assert len(set(np.asarray(tokens).tolist())) > 10
    mixed(logits, keys, allowed, RowSampling.of(settings[::-1]))
    assert mixed._cache_size() == 1, "other settings compile nothing"


def test_rows_without_truncation_draw_from_everything():
    keys = jax.random.split(jax.random.key(0), 4)
    logits = np.random.default_rng(1).normal(size=(4, 9)).astype(np.float32)
    rows = RowSampling.of([Sampling(1.2)] * 4)
    got, _ = sample_rows(logits, keys, None, rows)
    want, _ = sample_tokens(logits, keys, None, Sampling(1.2))
    np.testing.assert_array_equal(got, want)
