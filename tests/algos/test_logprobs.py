"""Chunked log-probabilities: by hand, against NumPy in float64, in bfloat16, and on a mesh."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlaa_jax.algos import logprobs
from vlaa_jax.algos.logprobs import Chunking

N, D, V = 37, 12, 61
TEMPERATURE = 0.8


def make_case(n=N, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, D)).astype(np.float32)
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    allowed = rng.random(V) > 0.2
    targets = rng.choice(np.flatnonzero(allowed), n)
    return hidden, kernel, targets, allowed


HIDDEN, KERNEL, TARGETS, ALLOWED = make_case()


def oracle(hidden, kernel, targets, temperature, allowed):
    """Log-probability and entropy row by row in float64; forbidden ids do not exist."""
    out = []
    ids = np.flatnonzero(allowed)
    for h, target in zip(np.float64(hidden), targets, strict=True):
        z = (h @ np.float64(kernel))[ids] / temperature
        log_p = z - z.max() - np.log(np.sum(np.exp(z - z.max())))
        out.append((log_p[ids.tolist().index(target)], -np.sum(np.exp(log_p) * log_p)))
    return np.asarray(out).T


def oracle_gradients(hidden, kernel, targets, temperature, allowed, lp_weight, entropy_weight):
    """Gradients of sum(lp_weight * logprob + entropy_weight * entropy), in closed form, float64.

    d logprob / d logit_v = [v = target] - p_v;   d entropy / d logit_v = -p_v (log p_v + H)
    """
    hidden, kernel = np.float64(hidden), np.float64(kernel)
    z = np.where(allowed, hidden @ kernel / temperature, -np.inf)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p_log_p = p * np.log(np.where(p > 0, p, 1))
    entropy = -p_log_p.sum(1, keepdims=True)
    onehot = np.arange(kernel.shape[1]) == np.asarray(targets)[:, None]
    g = lp_weight[:, None] * (onehot - p) - entropy_weight[:, None] * (p_log_p + p * entropy)
    return g @ kernel.T / temperature, hidden.T @ g / temperature


# ------------------------------------------------------------------- worked by hand

score = jax.jit(logprobs.token_logprobs)


def test_by_hand():
    # D = 1, hidden 1, kernel [0, ln 3]: probabilities 1/4 and 3/4.
    # Entropy: ln 4 / 4 + 3/4 ln(4/3) = 0.562335.
    lp, entropy = score(jnp.ones((2, 1)), jnp.asarray([[0.0, jnp.log(3.0)]]), jnp.asarray([0, 1]))
    np.testing.assert_allclose(lp, np.log([0.25, 0.75]), rtol=1e-6)
    np.testing.assert_allclose(entropy, 0.562335, rtol=1e-5)


def test_temperature_by_hand():
    # Temperature 1/2 doubles the logits: odds 1 to 9.
    lp, _ = score(
        jnp.ones((1, 1)), jnp.asarray([[0.0, jnp.log(3.0)]]), jnp.asarray([1]), temperature=0.5
    )
    np.testing.assert_allclose(lp, np.log([0.9]), rtol=1e-6)


def test_forbidden_ids_by_hand():
    # Three equal logits, one forbidden: 1/2 each for the rest, entropy ln 2.
    lp, entropy = score(
        jnp.ones((2, 1)),
        jnp.zeros((1, 3)),
        jnp.asarray([0, 1]),
        allowed_V=jnp.asarray([True, False, True]),
    )
    np.testing.assert_allclose(lp[0], np.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(entropy, np.log(2), rtol=1e-6)
    # A forbidden target is impossible, yet finite: padding rows may be multiplied by zero.
    assert np.isfinite(lp[1]) and np.exp(lp[1]) == 0.0


def test_single_allowed_id_has_entropy_zero_and_finite_gradients():
    allowed = jnp.asarray([False, True, False])

    def total(h, w):
        lp, entropy = logprobs.token_logprobs(
            h, w, jnp.asarray([1]), allowed_V=allowed, entropy_gradient=True
        )
        return jnp.sum(lp + entropy)

    value, grads = jax.jit(jax.value_and_grad(total, (0, 1)))(jnp.ones((1, 2)), jnp.ones((2, 3)))
    assert float(value) == 0.0
    for g in grads:
        np.testing.assert_array_equal(g, 0.0)


def test_masked_logits_is_the_same_distribution_for_the_sampler():
    settings = {"temperature": TEMPERATURE, "allowed_V": ALLOWED}

    @jax.jit
    def both(hidden, kernel):
        drawn_from = jax.nn.log_softmax(logprobs.masked_logits(hidden @ kernel, **settings))
        return drawn_from, logprobs.token_logprobs(hidden, kernel, TARGETS, **settings)[0]

    drawn_from, scored = both(HIDDEN, KERNEL)
    np.testing.assert_allclose(drawn_from[np.arange(N), TARGETS], scored, atol=1e-5)
    np.testing.assert_array_equal(np.exp(drawn_from)[:, ~ALLOWED], 0.0)


# ------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("chunk", [1, 8, 1000, None])
def test_values_against_the_oracle(chunk):
    run = jax.jit(
        partial(logprobs.token_logprobs, temperature=TEMPERATURE, chunking=Chunking(chunk))
    )
    got = run(HIDDEN, KERNEL, TARGETS, allowed_V=ALLOWED)
    want = oracle(HIDDEN, KERNEL, TARGETS, TEMPERATURE, ALLOWED)
    assert [x.shape for x in got] == [(N,), (N,)]
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)


def test_without_jit_it_is_the_same():
    arguments = dict(temperature=TEMPERATURE, allowed_V=jnp.asarray(ALLOWED), chunking=Chunking(8))
    got = logprobs.token_logprobs(
        jnp.asarray(HIDDEN), jnp.asarray(KERNEL), jnp.asarray(TARGETS), **arguments
    )
    want = oracle(HIDDEN, KERNEL, TARGETS, TEMPERATURE, ALLOWED)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


LP_WEIGHT, ENTROPY_WEIGHT = np.random.default_rng(1).normal(size=(2, N))


def test_the_closed_form_against_finite_differences():
    def total(hidden, kernel):
        lp, entropy = oracle(hidden, kernel, TARGETS, TEMPERATURE, ALLOWED)
        return np.sum(LP_WEIGHT * lp + ENTROPY_WEIGHT * entropy)

    case = [np.float64(HIDDEN), np.float64(KERNEL)]
    want = oracle_gradients(*case, TARGETS, TEMPERATURE, ALLOWED, LP_WEIGHT, ENTROPY_WEIGHT)
    rng = np.random.default_rng(2)
    for which in (0, 1):
        for _ in range(8):
            at = tuple(rng.integers(0, n) for n in case[which].shape)
            up, down = [x.copy() for x in case], [x.copy() for x in case]
            up[which][at] += 1e-5
            down[which][at] -= 1e-5
            slope = (total(*up) - total(*down)) / 2e-5
            np.testing.assert_allclose(want[which][at], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("chunk", "row_shards", "entropy_gradient"),
    [(1, 1, True), (8, 1, False), (8, 4, True), (None, 1, True)],
)
def test_gradients(chunk, row_shards, entropy_gradient):
    @jax.jit
    def run(hidden, kernel):
        def total(hidden, kernel):
            lp, entropy = logprobs.token_logprobs(
                hidden,
                kernel,
                jnp.asarray(TARGETS),
                temperature=TEMPERATURE,
                allowed_V=jnp.asarray(ALLOWED),
                chunking=Chunking(chunk, row_shards),
                entropy_gradient=entropy_gradient,
            )
            return jnp.sum(LP_WEIGHT * lp + ENTROPY_WEIGHT * entropy)

        return jax.grad(total, (0, 1))(hidden, kernel)

    weights = LP_WEIGHT, ENTROPY_WEIGHT * entropy_gradient
    want = oracle_gradients(HIDDEN, KERNEL, TARGETS, TEMPERATURE, ALLOWED, *weights)
    for g, w in zip(run(HIDDEN, KERNEL), want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=2e-5)


def test_temperature_may_be_traced():
    got, _ = score(HIDDEN, KERNEL, TARGETS, temperature=1.3)
    want, _ = oracle(HIDDEN, KERNEL, TARGETS, 1.3, np.ones(V, bool))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_huge_logits_do_not_overflow():
    lp, entropy = score(
        jnp.asarray([[1e4], [-1e4]]), jnp.asarray([[1.0, 0.0]]), jnp.asarray([0, 0])
    )
    np.testing.assert_allclose(lp, [0.0, -1e4])
    np.testing.assert_allclose(entropy, [0.0, 0.0])


@pytest.mark.parametrize("chunk", [1, 16])
def test_bfloat16_kernel_gradient_is_summed_in_float32(chunk):
    # Two equal logits: each row adds 1/2 to the slope of the target's column, 512 after 1024 rows.
    # A bfloat16 sum would stop at 128, where its spacing is 1.
    n = 1024

    def total(w):
        lp, _ = logprobs.token_logprobs(
            jnp.ones((n, 1), jnp.bfloat16), w, jnp.zeros(n, jnp.int32), chunking=Chunking(chunk)
        )
        return jnp.sum(lp)

    got = jax.jit(jax.grad(total))(jnp.zeros((1, 2), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(got), [[512.0, -512.0]])


def test_bfloat16_inputs_give_float32_log_probabilities():
    # The oracle gets the rounded inputs; products of bfloat16 are exact in float32.
    hidden, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (HIDDEN, KERNEL))
    want = oracle(np.float32(hidden), np.float32(kernel), TARGETS, 1.0, ALLOWED)

    def total(h, w):
        lp, entropy = logprobs.token_logprobs(
            h, w, TARGETS, allowed_V=ALLOWED, chunking=Chunking(8)
        )
        return jnp.sum(lp), (lp, entropy)

    grads, got = jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, kernel)
    assert all(x.dtype == jnp.float32 for x in got)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    plain = oracle_gradients(
        np.float32(hidden), np.float32(kernel), TARGETS, 1.0, ALLOWED, np.ones(N), np.zeros(N)
    )
    for g, w in zip(grads, plain, strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(g), w, rtol=2e-2, atol=4e-2)


def test_target_outside_the_vocabulary_is_finite():
    lp, _ = score(HIDDEN[:2], KERNEL, jnp.asarray([-100, V + 5]))
    assert np.isfinite(lp).all()


def test_no_rows_at_all():
    lp, entropy = score(jnp.zeros((0, D)), KERNEL, jnp.zeros(0, jnp.int32))
    assert lp.shape == entropy.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"targets_N": jnp.zeros(3, jnp.int32)}, r"\[N, D\]"),
        ({"kernel_DV": KERNEL.T}, r"\[N, D\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"hidden_ND": HIDDEN, "kernel_DV": KERNEL, "targets_N": TARGETS} | change
    with pytest.raises(ValueError, match=message):
        logprobs.token_logprobs(**arguments)


@pytest.mark.parametrize("sizes", [{"chunk": 0}, {"row_shards": 0}])
def test_bad_chunks_are_named(sizes):
    with pytest.raises(ValueError, match="chunk and row_shards must be at least 1"):
        Chunking(**sizes)


# -------------------------------------------------------------------- memory and mesh


def largest_array(jaxpr):
    """Elements of the largest array a jaxpr makes, inner jaxprs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if hasattr(v.aval, "size")]
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                sizes.append(largest_array(inner))
    return max(sizes)


def test_never_holds_the_logits_of_all_rows():
    n, chunk = 4096, 64
    hidden, kernel = jnp.zeros((n, D)), jnp.zeros((D, V))
    targets = jnp.zeros(n, jnp.int32)

    def total(h, w):
        return jnp.sum(logprobs.token_logprobs(h, w, targets, chunking=Chunking(chunk))[0])

    plain = lambda h, w: jnp.sum(jax.nn.log_softmax(h @ w)[:, 0])  # noqa: E731
    size = lambda f: largest_array(jax.make_jaxpr(jax.grad(f, (0, 1)))(hidden, kernel).jaxpr)  # noqa: E731
    assert size(plain) == n * V
    assert size(total) <= max(n * D, chunk * V)


def test_frozen_kernel_costs_no_kernel_gradient():
    # Products with a vocabulary: forward, forward again, hidden's gradient, kernel's gradient.
    def total(h, w):
        return jnp.sum(logprobs.token_logprobs(h, w, TARGETS, chunking=Chunking(8))[0])

    def products(which):
        text = jax.jit(jax.grad(total, which)).lower(HIDDEN, KERNEL).compile().as_text()
        return len(re.findall(r" dot\(", text))

    assert products((0, 1)) == 4
    assert products(0) == 3


def place(array, *axes):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))


def collectives(compiled_text):
    """(computation, collective) pairs of an optimised HLO module."""
    found, computation = [], ""
    for line in compiled_text.splitlines():
        if opened := re.match(r"(ENTRY )?%?[\w.\-]+ .*\{$", line):
            computation = "entry" if opened.group(1) else "inner"
        if used := re.search(
            r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(",
            line,
        ):
            found.append((computation, used.group(1)))
    return found


def test_rows_sharded_over_data_meet_once():
    hidden, kernel, targets, _ = make_case(256)
    arguments = place(hidden, "data"), place(kernel), place(targets, "data")

    def run(h, w, t, row_shards):
        return logprobs.token_logprobs(h, w, t, chunking=Chunking(64, row_shards))[0]

    forward = jax.jit(partial(run, row_shards=8)).lower(*arguments).compile()
    assert collectives(forward.as_text()) == []
    everything = np.ones(V, bool)
    want = oracle(hidden, kernel, targets, 1.0, everything)[0]
    np.testing.assert_allclose(forward(*arguments), want, rtol=1e-5, atol=1e-5)

    def backward(row_shards):
        total = lambda *a: jnp.sum(run(*a, row_shards))  # noqa: E731
        return jax.jit(jax.grad(total, (0, 1))).lower(*arguments).compile()

    compiled = backward(8)
    # One reduction of the kernel's gradient, after the loop over chunks and not inside it.
    assert collectives(compiled.as_text()) == [("entry", "all-reduce")]
    assert collectives(backward(1).as_text()) == [("inner", "all-reduce")]
    want = oracle_gradients(hidden, kernel, targets, 1.0, everything, np.ones(256), np.zeros(256))
    for g, w in zip(compiled(*arguments), want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
