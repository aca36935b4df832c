"""Chunked log-probabilities: against NumPy in float64, against plain autodiff, and on a mesh."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from vlaa_jax.algos import logprobs

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


def naive(hidden, kernel, targets, temperature, allowed):
    """The same with all logits at once, for plain autodiff."""
    logits = jnp.where(allowed, hidden @ kernel / temperature, -1e9)
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, 1)


# ------------------------------------------------------------------- worked by hand


def test_by_hand():
    # D = 1, hidden 1, kernel [0, ln 3]: probabilities 1/4 and 3/4.
    # Entropy: ln 4 / 4 + 3/4 ln(4/3) = 0.562335.
    lp, entropy = logprobs.token_logprobs(
        jnp.ones((2, 1)), jnp.asarray([[0.0, jnp.log(3.0)]]), jnp.asarray([0, 1])
    )
    np.testing.assert_allclose(lp, np.log([0.25, 0.75]), rtol=1e-6)
    np.testing.assert_allclose(entropy, 0.562335, rtol=1e-5)


def test_temperature_by_hand():
    # Temperature 1/2 doubles the logits: odds 1 to 9.
    lp, _ = logprobs.token_logprobs(
        jnp.ones((1, 1)), jnp.asarray([[0.0, jnp.log(3.0)]]), jnp.asarray([1]), temperature=0.5
    )
    np.testing.assert_allclose(lp, np.log([0.9]), rtol=1e-6)


def test_forbidden_ids_by_hand():
    # Three equal logits, one forbidden: 1/2 each for the rest, entropy ln 2.
    lp, entropy = logprobs.token_logprobs(
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

    value, grads = jax.value_and_grad(total, (0, 1))(jnp.ones((1, 2)), jnp.ones((2, 3)))
    assert float(value) == 0.0
    for g in grads:
        np.testing.assert_array_equal(g, 0.0)


def test_masked_logits_is_the_same_distribution_for_the_sampler():
    logits = jnp.asarray(HIDDEN @ KERNEL)
    drawn_from = jax.nn.log_softmax(
        logprobs.masked_logits(logits, temperature=TEMPERATURE, allowed_V=jnp.asarray(ALLOWED))
    )
    lp, _ = logprobs.token_logprobs(
        HIDDEN, KERNEL, TARGETS, temperature=TEMPERATURE, allowed_V=jnp.asarray(ALLOWED)
    )
    np.testing.assert_allclose(drawn_from[np.arange(N), TARGETS], lp, atol=1e-5)
    np.testing.assert_array_equal(np.exp(drawn_from)[:, ~ALLOWED], 0.0)


# ------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("chunk", [1, 8, 1000, None])
def test_values_against_the_oracle(chunk):
    run = jax.jit(partial(logprobs.token_logprobs, temperature=TEMPERATURE, chunk=chunk))
    got = run(HIDDEN, KERNEL, TARGETS, allowed_V=ALLOWED)
    want = oracle(HIDDEN, KERNEL, TARGETS, TEMPERATURE, ALLOWED)
    assert [x.shape for x in got] == [(N,), (N,)]
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)


def test_without_jit_it_is_the_same():
    arguments = dict(temperature=TEMPERATURE, allowed_V=jnp.asarray(ALLOWED), chunk=8)
    got = logprobs.token_logprobs(
        jnp.asarray(HIDDEN), jnp.asarray(KERNEL), jnp.asarray(TARGETS), **arguments
    )
    want = oracle(HIDDEN, KERNEL, TARGETS, TEMPERATURE, ALLOWED)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def gradients(function, entropy_weight):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=N), jnp.float32)

    def total(hidden, kernel):
        lp, entropy = function(hidden, kernel)
        return jnp.sum(weights * lp) + entropy_weight * jnp.sum(jnp.sin(weights) * entropy)

    return jax.jit(jax.grad(total, (0, 1)))(HIDDEN, KERNEL)


@cache
def plain_gradients(entropy_weight):
    plain = partial(naive, targets=TARGETS, temperature=TEMPERATURE, allowed=ALLOWED)
    return gradients(plain, entropy_weight)


@pytest.mark.parametrize(
    ("chunk", "row_shards", "entropy_gradient"),
    [(1, 1, True), (8, 1, False), (8, 4, True), (None, 1, True)],
)
def test_gradients_against_plain_autodiff(chunk, row_shards, entropy_gradient):
    ours = partial(
        logprobs.token_logprobs,
        targets_N=jnp.asarray(TARGETS),
        temperature=TEMPERATURE,
        allowed_V=jnp.asarray(ALLOWED),
        chunk=chunk,
        row_shards=row_shards,
        entropy_gradient=entropy_gradient,
    )
    got = gradients(ours, 1.0)
    want = plain_gradients(1.0 if entropy_gradient else 0.0)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_gradients_against_finite_differences():
    hidden, kernel, targets, allowed = (x[:5] if len(x) == N else x for x in make_case())

    def total(hidden, kernel):
        lp, entropy = logprobs.token_logprobs(
            hidden, kernel, targets, allowed_V=allowed, chunk=2, entropy_gradient=True
        )
        return jnp.sum(lp) + 0.5 * jnp.sum(entropy)

    check_grads(jax.jit(total), (hidden, kernel), 1, modes=["rev"], eps=1e-2, atol=2e-2, rtol=2e-2)


def test_temperature_may_be_traced():
    run = jax.jit(lambda t: logprobs.token_logprobs(HIDDEN, KERNEL, TARGETS, temperature=t)[0])
    want = oracle(HIDDEN, KERNEL, TARGETS, 1.3, np.ones(V, bool))[0]
    np.testing.assert_allclose(run(1.3), want, rtol=1e-5, atol=1e-5)


def test_huge_logits_do_not_overflow():
    lp, entropy = logprobs.token_logprobs(
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
            jnp.ones((n, 1), jnp.bfloat16), w, jnp.zeros(n, jnp.int32), chunk=chunk
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
        lp, entropy = logprobs.token_logprobs(h, w, TARGETS, allowed_V=ALLOWED, chunk=8)
        return jnp.sum(lp), (lp, entropy)

    grads, got = jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, kernel)
    assert all(x.dtype == jnp.float32 for x in got)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    plain = jax.jit(jax.grad(lambda h, w: jnp.sum(naive(h, w, TARGETS, 1.0, ALLOWED)[0]), (0, 1)))(
        jnp.float32(hidden), jnp.float32(kernel)
    )
    for g, w in zip(grads, plain, strict=True):
        assert g.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(g), w, rtol=2e-2, atol=4e-2)


def test_target_outside_the_vocabulary_is_finite():
    lp, _ = logprobs.token_logprobs(HIDDEN[:2], KERNEL, jnp.asarray([-100, V + 5]))
    assert np.isfinite(lp).all()


def test_no_rows_at_all():
    lp, entropy = logprobs.token_logprobs(jnp.zeros((0, D)), KERNEL, jnp.zeros(0, jnp.int32))
    assert lp.shape == entropy.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk"),
        ({"targets_N": jnp.zeros(3, jnp.int32)}, r"\[N, D\]"),
        ({"kernel_DV": KERNEL.T}, r"\[N, D\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"hidden_ND": HIDDEN, "kernel_DV": KERNEL, "targets_N": TARGETS} | change
    with pytest.raises(ValueError, match=message):
        logprobs.token_logprobs(**arguments)


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
        return jnp.sum(logprobs.token_logprobs(h, w, targets, chunk=chunk)[0])

    plain = lambda h, w: jnp.sum(naive(h, w, targets, 1.0, True)[0])  # noqa: E731
    size = lambda f: largest_array(jax.make_jaxpr(jax.grad(f, (0, 1)))(hidden, kernel).jaxpr)  # noqa: E731
    assert size(plain) == n * V
    assert size(total) <= max(n * D, chunk * V)


def test_frozen_kernel_costs_no_kernel_gradient():
    # Forward, recomputed forward, gradient of hidden; a fourth product would be the kernel's.
    def total(h):
        return jnp.sum(logprobs.token_logprobs(h, KERNEL, TARGETS, chunk=8)[0])

    text = jax.jit(jax.grad(total)).lower(HIDDEN).compile().as_text()
    assert not re.search(rf"f32\[(1,)?{D},{V}\]\S* (dot|add|while)\(", text)


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
        return logprobs.token_logprobs(h, w, t, chunk=64, row_shards=row_shards)[0]

    forward = jax.jit(partial(run, row_shards=8)).lower(*arguments).compile()
    assert collectives(forward.as_text()) == []
    np.testing.assert_allclose(
        forward(*arguments), run(hidden, kernel, targets, 1), rtol=1e-5, atol=1e-5
    )

    def backward(row_shards):
        total = lambda *a: jnp.sum(run(*a, row_shards))  # noqa: E731
        return jax.jit(jax.grad(total, (0, 1))).lower(*arguments).compile()

    compiled = backward(8)
    # One reduction of the kernel's gradient, after the loop over chunks and not inside it.
    assert collectives(compiled.as_text()) == [("entry", "all-reduce")]
    assert collectives(backward(1).as_text()) == [("inner", "all-reduce")]
    want = jax.grad(lambda h, w: jnp.sum(run(h, w, targets, 1)), (0, 1))(hidden, kernel)
    for g, w in zip(compiled(*arguments), want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
