"""Surrogates and aggregations: by hand, against loops in float64, under every mask and cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.algos import losses

DUAL = partial(losses.clipped_surrogate, clip=losses.Clip(0.2, 0.28), dual_clip=3.0)
WIDE_GSPO = partial(losses.gspo_surrogate, clip=losses.Clip(0.2, 0.28))
SURROGATES = {
    "clipped": losses.clipped_surrogate,
    "dual": DUAL,
    "gspo": WIDE_GSPO,
    "cispo": losses.cispo_surrogate,
}
by_name = pytest.mark.parametrize("name", SURROGATES)


@partial(jax.jit, static_argnums=0)
def compiled_value_and_slope(surrogate, logprobs, old, advantages, mask):
    def total(x):
        loss = surrogate(x, old, advantages, mask)
        return jnp.sum(loss), loss

    slope, loss = jax.grad(total, has_aux=True)(logprobs)
    return loss, slope


def value_and_slope(surrogate, logprobs, old, advantages, mask):
    """Per-token loss, and the gradient of its sum with respect to the log-probabilities.

    The case is laid on a canvas of NaN outside the mask: one compilation serves all cases, and
    each of them checks that nothing outside the mask is looked at.
    """
    rows, tokens = mask.shape

    def canvas(x, fill, *shape):
        out = np.full(shape, fill, bool if isinstance(fill, bool) else np.float32)
        out[tuple(slice(n) for n in x.shape)] = x
        return out

    outside = (canvas(x, np.nan, 10, 12) for x in (logprobs, old))
    loss, slope = compiled_value_and_slope(
        surrogate, *outside, canvas(advantages, np.nan, 10), canvas(mask, False, 10, 12)
    )
    inside = np.s_[:rows, :tokens]
    for x in (np.array(loss), np.array(slope)):
        x[inside] = 0
        np.testing.assert_array_equal(x, 0)
    return np.asarray(loss)[inside], np.asarray(slope)[inside]


def one_token(surrogate, ratio, advantage):
    old = np.asarray([[-2.0]])
    loss, slope = value_and_slope(
        surrogate, old + np.log(ratio), old, np.asarray([advantage]), np.ones((1, 1), bool)
    )
    return float(loss[0, 0]), float(slope[0, 0])


# ------------------------------------------------------------------- worked by hand


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    # clip to [0.8, 1.28]; loss -min(r A, clip(r) A); slope -r A where the clip is not the minimum.
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.28, 0.0),  # too likely already: clipped
        (1.5, -1.0, 1.5, 1.5),  # too likely and bad: pushed down
        (0.5, 1.0, -0.5, -0.5),  # too unlikely and good: pushed up
        (0.5, -1.0, 0.8, 0.0),  # too unlikely already: clipped
        (10.0, -1.0, 3.0, 0.0),  # dual clip: loss held at 3 |A|
        (10.0, 1.0, -1.28, 0.0),  # dual clip leaves positive advantages alone
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_by_hand(ratio, advantage, loss, slope):
    np.testing.assert_allclose(one_token(DUAL, ratio, advantage), (loss, slope), rtol=1e-5)


def test_without_dual_clip_the_bad_token_is_unbounded():
    np.testing.assert_allclose(one_token(losses.clipped_surrogate, 10.0, -1.0), (10, 10), rtol=1e-5)


def test_gspo_by_hand():
    # Log ratios 0.3 and -0.1: s = exp(0.1) = 1.105171 for both tokens; A = 2; not clipped.
    old = np.asarray([[-1.0, -2.0, 9.0]])
    logprobs = old + np.asarray([[0.3, -0.1, 5.0]])
    mask = np.asarray([[True, True, False]])
    loss, slope = value_and_slope(WIDE_GSPO, logprobs, old, np.asarray([2.0]), mask)
    np.testing.assert_allclose(loss, [[-2.210342, -2.210342, 0]], rtol=1e-6)
    np.testing.assert_allclose(slope, [[-2.210342, -2.210342, 0]], rtol=1e-6)
    # The paper's range clips it at 1.0004: no gradient at all.
    loss, slope = value_and_slope(losses.gspo_surrogate, logprobs, old, np.asarray([2.0]), mask)
    np.testing.assert_allclose(loss, [[-2.0008, -2.0008, 0]], rtol=1e-6)
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    # Weight clipped to [0, 5]; the gradient -w A never disappears.
    [(0.01, 1.0, 0.01), (2.0, 1.0, 2.0), (9.0, 1.0, 5.0), (9.0, -1.0, 5.0)],
)
def test_cispo_by_hand(ratio, advantage, weight):
    loss, slope = one_token(losses.cispo_surrogate, ratio, advantage)
    np.testing.assert_allclose(slope, -weight * advantage, rtol=1e-5)
    np.testing.assert_allclose(loss, -weight * advantage * (-2.0 + np.log(ratio)), rtol=1e-5)


def count_sequences(mask):
    return jnp.sum(jnp.any(mask, axis=-1))


def test_aggregations_by_hand():
    # Sequence one: 3 tokens of loss 1; sequence two: 1 token of loss 5; sequence three: none.
    loss = jnp.asarray([[1.0, 1, 1, 9], [5, 9, 9, 9], [9, 9, 9, 9]])
    mask = jnp.asarray([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)

    @jax.jit
    def run(loss, mask):
        tokens, sequences = losses.count_tokens(mask), count_sequences(mask)
        return (
            tokens,
            sequences,
            losses.token_mean(loss, mask, tokens),  # (3 + 5) / 4
            losses.sequence_mean(loss, mask, sequences),  # (1 + 5) / 2
            losses.constant_length(loss, mask, sequences, length=4),  # (3 + 5) / (2 * 4)
        )

    assert [float(x) for x in run(loss, mask)] == [4, 2, 2.0, 3.0, 1.0]


def test_cross_entropy_by_hand():
    logprobs = jnp.log(jnp.asarray([[0.5, 0.25, 0.9]]))
    mask = jnp.asarray([[True, True, False]])
    got = jax.jit(losses.masked_cross_entropy)(logprobs, mask, 2)
    np.testing.assert_allclose(got, 1.5 * np.log(2), rtol=1e-6)  # (ln 2 + ln 4) / 2


def test_truncated_importance_weights_by_hand():
    # Ratios 1.5, 0.5, 4 (capped at 2); the last is masked.
    sampler = np.asarray([[-3.0, -3.0, -3.0, -np.inf]])
    trainer = sampler + np.log([[1.5, 0.5, 4.0, 1.0]])
    mask = np.asarray([[True, True, True, False]])

    @jax.jit
    def run(x):
        weigh = partial(
            losses.truncated_importance_weights, sampler_logprobs=jnp.float32(sampler), mask=mask
        )
        return weigh(x), jax.grad(lambda x: jnp.sum(weigh(x)))(x)

    got, slope = run(jnp.float32(trainer))
    np.testing.assert_allclose(got, [[1.5, 0.5, 2.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(slope, 0.0)


def test_diagnostics_by_hand():
    # Ratios 1.5 (A > 0: clipped high), 1.5 (A < 0: not clipped), 0.5 (A < 0: clipped low), masked.
    ratio = jnp.asarray([[1.5, 9.0], [1.5, 9.0], [0.5, 9.0]])
    mask = jnp.asarray([[True, False]] * 3)
    old = jnp.full((3, 2), -1.0)
    measure = jax.jit(losses.ratio_diagnostics)
    got = measure(old + jnp.log(ratio), old, jnp.asarray([1.0, -1.0, -1.0]), mask)
    summary = losses.summarise_diagnostics(got)
    want = {"ratio": 3.5 / 3, "clip_frac": 2 / 3, "clip_frac_low": 1 / 3, "clip_frac_high": 1 / 3}
    # k3 of the old policy: r - 1 - ln r = 0.094535 twice and 0.193147.
    want |= {"approx_kl": (2 * 0.094535 + 0.193147) / 3, "ratio_max": 1.5}
    assert summary.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(summary[key], value, rtol=1e-4, err_msg=key)


def test_clip_frac_of_cispo_and_of_the_dual_clip_by_hand():
    # Ratios 8, 8, 0.5, 0.5 with advantages 1, -1, 1, -1.
    old = jnp.full((4, 1), -1.0)
    logprobs = old + jnp.log(jnp.asarray([[8.0], [8.0], [0.5], [0.5]]))
    advantages, mask = jnp.asarray([1.0, -1.0, 1.0, -1.0]), jnp.ones((4, 1), bool)

    def fracs(**options):
        got = losses.ratio_diagnostics(logprobs, old, advantages, mask, **options)
        summary = losses.summarise_diagnostics(got)
        return [float(summary[f"clip_frac{end}"]) for end in ("", "_low", "_high")]

    assert fracs() == [0.5, 0.25, 0.25]
    assert fracs(dual_clip=3.0) == [0.75, 0.25, 0.5]
    assert fracs(clips_weights=True) == [1.0, 0.5, 0.5]
    assert fracs(clips_weights=True, clip=losses.CISPO_CLIP) == [0.5, 0.0, 0.5]


def test_sequence_diagnostics_by_hand():
    # Sequence ratios exp(0.1) with A > 0 (clipped) and exp(0) (not); a third without tokens.
    old = jnp.zeros((3, 2))
    logprobs = jnp.asarray([[0.3, -0.1], [0.5, -0.5], [7.0, 7.0]])
    mask = jnp.asarray([[True, True], [True, True], [False, False]])
    got = jax.jit(losses.sequence_ratio_diagnostics)(logprobs, old, jnp.ones(3), mask)
    summary = losses.summarise_diagnostics(got)
    np.testing.assert_allclose(summary["clip_frac"], 0.5)
    np.testing.assert_allclose(summary["ratio"], (np.exp(0.1) + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(summary["ratio_max"], np.exp(0.1), rtol=1e-6)


def test_logprob_gap_by_hand():
    trainer = jnp.asarray([[-1.0, -2.0, -3.0]])
    sampler = jnp.asarray([[-1.1, -2.9, -jnp.inf]])
    mask = jnp.asarray([[True, True, False]])
    summary = losses.summarise_diagnostics(jax.jit(losses.logprob_gap)(trainer, sampler, mask))
    np.testing.assert_allclose(summary["logprob_gap"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(summary["logprob_gap_max"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(summary["importance_capped_frac"], 0.5)  # exp(0.9) = 2.46 > 2


# ------------------------------------------------------------------------- oracles


def oracle(name, logprobs, old, advantages, mask):
    """Loss and slope per token, token by token, in float64, from the papers' formulas."""
    loss, slope = np.zeros(mask.shape), np.zeros(mask.shape)
    low, high = (0.2, 0.2) if name == "clipped" else (0.2, 0.28)
    for s in np.ndindex(mask.shape[:-1]):
        a, kept = advantages[s], np.flatnonzero(mask[s])
        for t in kept:
            if name == "gspo":
                r = np.exp((logprobs[s] - old[s])[kept].mean())
            else:
                r = np.exp(logprobs[s][t] - old[s][t])
            if name == "cispo":
                w = min(r, 5.0)
                loss[s][t], slope[s][t] = -w * a * logprobs[s][t], -w * a
                continue
            clipped = min(max(r, 1 - low), 1 + high)
            objective = min(r * a, clipped * a)
            moves = r * a <= clipped * a
            if name == "dual" and a < 0 and objective < 3.0 * a:
                objective, moves = 3.0 * a, False
            loss[s][t], slope[s][t] = -objective, -r * a * moves
    return loss, slope


def random_case(shape, seed=0):
    rng = np.random.default_rng(seed)
    old = np.log(rng.uniform(0.01, 1.0, shape))
    logprobs = old + rng.normal(0, 0.7, shape)
    lengths = rng.integers(0, shape[-1] + 1, shape[:-1])
    mask = np.arange(shape[-1]) < lengths[..., None]
    return logprobs, old, rng.normal(size=shape[:-1]), mask


@by_name
def test_against_the_oracle(name):
    case = random_case((10, 12))
    for got, want in zip(
        value_and_slope(SURROGATES[name], *case), oracle(name, *case), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


@by_name
def test_groups_of_prompts_are_rows_by_another_name_without_jit(name):
    logprobs, old, advantages, mask = random_case((2, 3, 4))
    got = SURROGATES[name](*(jnp.asarray(x) for x in (logprobs, old, advantages, mask)))
    want, _ = oracle(name, logprobs, old, advantages, mask)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_gspo_token_form_is_the_papers_objective():
    # (1/N) sum_i min(s_i A_i, clip(s_i) A_i) differentiated as it stands, without stop-gradients.
    logprobs, old, advantages, mask = map(jnp.asarray, random_case((4, 3, 8), seed=1))
    mask = mask.at[..., 0].set(True)

    def paper(x):
        log_s = jnp.sum(jnp.where(mask, x - old, 0), -1) / jnp.sum(mask, -1)
        s = jnp.exp(log_s)
        return -jnp.mean(jnp.minimum(s * advantages, jnp.clip(s, 0.8, 1.28) * advantages))

    def ours(x):
        return losses.sequence_mean(WIDE_GSPO(x, old, advantages, mask), mask, 12)

    for a, b in zip(
        jax.jit(jax.value_and_grad(ours))(logprobs),
        jax.jit(jax.value_and_grad(paper))(logprobs),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_advantages_per_token_are_taken_as_they_are():
    logprobs, old, advantages, mask = map(jnp.asarray, random_case((2, 3, 4)))
    tiled = jnp.repeat(advantages[..., None], 4, axis=-1)
    np.testing.assert_array_equal(
        losses.cispo_surrogate(logprobs, old, tiled, mask),
        losses.cispo_surrogate(logprobs, old, advantages, mask),
    )


# ----------------------------------------------------------------------------- edges


@by_name
def test_on_policy_all_slopes_are_plain_policy_gradients(name):
    logprobs, _, advantages, mask = random_case((4, 6))
    _, slope = value_and_slope(SURROGATES[name], logprobs, logprobs, advantages, mask)
    np.testing.assert_allclose(slope, np.where(mask, -advantages[:, None], 0), rtol=1e-6)


@by_name
def test_masked_garbage_leaves_no_trace(name):
    garbage = [-np.inf, np.inf, np.nan, 1e30]
    logprobs = np.asarray([[-1.0, -2.0, *garbage]])
    old = np.asarray([[-1.2, -1.9, *garbage[::-1]]])
    mask = np.asarray([[True] * 2 + [False] * 4])
    run = partial(value_and_slope, SURROGATES[name])
    dirty = run(logprobs, old, np.asarray([1.5]), mask)
    clean = run(logprobs[:, :2], old[:, :2], np.asarray([1.5]), mask[:, :2])
    for d, c in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(d[:, 2:], 0.0)
        np.testing.assert_array_equal(d[:, :2], c)
        assert (c != 0).any()


def test_nan_advantage_of_an_empty_completion_leaves_no_trace():
    mask = np.asarray([[True, True], [False, False]])
    zeros, advantages = np.zeros((2, 2)), np.asarray([1.0, np.nan])
    for x in value_and_slope(DUAL, zeros, zeros, advantages, mask):
        np.testing.assert_array_equal(x, [[-1, -1], [0, 0]])


@by_name
def test_empty_mask_gives_zero_loss_and_gradient(name):
    mask = jnp.zeros((2, 3), bool)

    def total(x):
        loss = SURROGATES[name](x, x - 1.0, jnp.ones(2), mask)
        none = losses.count_tokens(mask)
        return jnp.stack(
            [
                losses.token_mean(loss, mask, none),
                losses.sequence_mean(loss, mask, none),
                losses.constant_length(loss, mask, none, length=3),
            ]
        )

    value, slope = jax.jit(lambda x: (total(x), jax.jacrev(total)(x)))(jnp.full((2, 3), -1.0))
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(slope, 0.0)


@by_name
@pytest.mark.parametrize("old", [-500.0, -np.inf, 500.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_stay_finite(name, old, advantage):
    loss, slope = value_and_slope(
        SURROGATES[name],
        np.asarray([[-1.0, -1.0]]),
        np.asarray([[old, -1.0]]),
        np.asarray([advantage]),
        np.ones((1, 2), bool),
    )
    assert np.isfinite(loss).all() and np.isfinite(slope).all()


def test_bad_arguments_are_named():
    zeros, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match="dual_clip"):
        losses.clipped_surrogate(zeros, zeros, zeros, mask, dual_clip=1.0)
    with pytest.raises(ValueError, match="advantages"):
        losses.clipped_surrogate(zeros, zeros, jnp.zeros(3), mask)
    with pytest.raises(ValueError, match="agree in shape"):
        losses.clipped_surrogate(zeros, jnp.zeros((1, 3)), jnp.zeros(2), mask)


# ------------------------------------------------------------- cutting a mini-batch


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean", "constant_length"])
def test_micro_batches_add_up_exactly(name):
    logprobs, old, advantages, mask = map(jnp.asarray, random_case((6, 10), seed=3))
    aggregate, count = {
        "token_mean": (losses.token_mean, losses.count_tokens),
        "sequence_mean": (losses.sequence_mean, count_sequences),
        "constant_length": (partial(losses.constant_length, length=10), count_sequences),
    }[name]
    total = count(mask)

    def part(x, old, advantages, mask):
        return aggregate(DUAL(x, old, advantages, mask), mask, total)

    @jax.jit
    def run(*case):
        cut = [x.reshape(3, 2, *x.shape[1:]) for x in case]
        values, slopes = jax.lax.map(lambda c: jax.value_and_grad(part)(*c), cut)
        return (jnp.sum(values), slopes.reshape(6, 10)), jax.value_and_grad(part)(*case)

    parts, whole = run(logprobs, old, advantages, mask)
    assert np.abs(whole[1]).max() > 0
    for p, w in zip(parts, whole, strict=True):
        np.testing.assert_allclose(p, w, rtol=1e-5, atol=1e-8)


def test_averaging_per_micro_batch_would_differ():
    # 3 tokens of loss 1 and 1 token of loss 5: 2 over all tokens, (1 + 5) / 2 = 3 per micro-batch.
    loss, mask = jnp.asarray([[1.0, 1, 1], [5, 0, 0]]), jnp.asarray([[1, 1, 1], [1, 0, 0]], bool)
    halves = [losses.token_mean(loss[i], mask[i], losses.count_tokens(mask[i])) for i in (0, 1)]
    assert float(losses.token_mean(loss, mask, losses.count_tokens(mask))) == 2.0
    assert float(sum(halves)) / 2 == 3.0


def test_diagnostics_of_parts_merge_to_the_whole():
    case = list(map(jnp.asarray, random_case((6, 10), seed=4)))
    measure = jax.jit(losses.ratio_diagnostics)
    whole = measure(*case)
    merged = losses.merge_diagnostics(
        measure(*(x[:2] for x in case)), measure(*(x[2:] for x in case))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), merged, whole)
