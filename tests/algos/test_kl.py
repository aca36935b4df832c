"""KL estimators against exact expectations over a small vocabulary; the controller by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.algos import kl

ESTIMATORS = [kl.k1, kl.k2, kl.k3]


def value_and_slope(estimator, logprobs, ref_logprobs, mask=None):
    """Per token, and the gradient of its sum with respect to the policy's log-probabilities."""
    n = len(logprobs)
    case = np.full((2, 8), np.nan, np.float32)  # one shape, so one compilation per estimator
    case[0, :n], case[1, :n] = logprobs, ref_logprobs
    slots = np.zeros(8, bool)
    slots[:n] = True if mask is None else mask
    return [np.asarray(x)[:n] for x in _compiled(estimator, *case, slots)]


@partial(jax.jit, static_argnums=0)
def _compiled(estimator, logprobs, ref_logprobs, mask):

    def total(x):
        value = estimator(x, ref_logprobs, mask)
        return jnp.sum(value), value

    slope, value = jax.grad(total, has_aux=True)(logprobs)
    return value, slope


@pytest.fixture(params=[False, True], ids=["plain", "jit"])
def variant(request):
    return jax.jit if request.param else lambda f: f


@pytest.mark.parametrize(
    ("estimator", "want"),
    # pi = 1/2, pi_ref = 1/4: x = ln 2 = 0.693147; x^2 / 2 = 0.240227; 1/2 - 1 + ln 2 = 0.193147.
    [(kl.k1, 0.693147), (kl.k2, 0.240227), (kl.k3, 0.193147)],
)
def test_by_hand(estimator, want, variant):
    got = variant(estimator)(jnp.log(jnp.asarray([0.5])), jnp.log(jnp.asarray([0.25])))
    np.testing.assert_allclose(got, [want], rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "slope"),
    # d/dx: 1, x, 1 - exp(-x).
    [(kl.k1, 1.0), (kl.k2, 0.7), (kl.k3, 1 - np.exp(-0.7))],
)
def test_slopes(estimator, slope):
    _, got = value_and_slope(estimator, jnp.asarray([-1.0]), jnp.asarray([-1.7]))
    np.testing.assert_allclose(got, [slope], rtol=1e-5)


LOGITS = jnp.asarray([0.3, -0.5, 1.1, 0.0])
REF = jax.nn.log_softmax(jnp.asarray([0.0, 0.4, 0.5, -0.3]))


def exact(p, q):
    return jnp.sum(jnp.exp(p) * (p - q))


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_value_is_unbiased(estimator):
    logprobs = jax.nn.log_softmax(LOGITS)
    mean = jnp.sum(jnp.exp(logprobs) * value_and_slope(estimator, logprobs, REF)[0])
    np.testing.assert_allclose(mean, exact(logprobs, REF), rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [
        (kl.k1, lambda p: 0.0 * jnp.sum(p)),  # nothing: the score function averages to zero
        (kl.k2, lambda p: exact(p, REF)),  # KL(pi || pi_ref)
        (kl.k3, lambda p: exact(REF, p)),  # KL(pi_ref || pi)
    ],
)
def test_whose_gradient_it_follows_on_policy(estimator, divergence):
    # Tokens are drawn from pi, and the draw itself is not differentiated: the weights are constant.
    weights = jax.nn.softmax(LOGITS)

    @jax.jit
    def both(z):
        ours = jax.grad(lambda z: jnp.sum(weights * estimator(jax.nn.log_softmax(z), REF)))(z)
        return ours, jax.grad(lambda z: divergence(jax.nn.log_softmax(z)))(z)

    got, want = both(LOGITS)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_k3_keeps_its_digits_near_zero():
    # x = 1e-4: x^2 / 2 = 5e-9, a tenth of what float32 resolves beside 1.
    got = kl.k3(jnp.asarray([-1e-4]), jnp.asarray([-2e-4]))
    np.testing.assert_allclose(got, [5e-9], rtol=1e-2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masked_garbage_is_exactly_zero(estimator):
    garbage = [-jnp.inf, jnp.inf, jnp.nan, 1e30]
    logprobs = jnp.asarray([-1.0, *garbage])
    ref = jnp.asarray([-1.5, -jnp.inf, 0.0, 1.0, -1e30])
    mask = jnp.asarray([True] + [False] * 4)
    value, slope = value_and_slope(estimator, logprobs, ref, mask)
    np.testing.assert_array_equal(value[1:], 0.0)
    np.testing.assert_array_equal(slope[1:], 0.0)
    assert value[0] != 0 and np.isfinite(slope[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("other", [-300.0, 300.0, -np.inf])
def test_extreme_ratios_are_clamped_with_gradient_zero(estimator, other):
    logprobs, ref = jnp.asarray([-1.0]), jnp.asarray([other], jnp.float32)
    value, slope = value_and_slope(estimator, logprobs, ref)
    assert abs(float(value[0])) <= 10.0
    np.testing.assert_array_equal(slope, 0.0)


def test_clamps_can_be_switched_off():
    got = kl.k3(jnp.asarray([-6.0]), jnp.asarray([-1.0]), max_log_ratio=None, max_value=None)
    np.testing.assert_allclose(got, [np.exp(5) - 1 - 5], rtol=1e-6)
    assert float(kl.k3(jnp.asarray([-6.0]), jnp.asarray([-1.0]))[0]) == 10.0


def test_kl_in_the_reward_by_hand():
    # Two completions of 2 and 1 tokens: 1 - 0.1 * (0.5 + 1.5) = 0.8; 0 - 0.1 * 2 = -0.2.
    got = kl.kl_penalised_rewards(
        jnp.asarray([[1.0, 0.0, jnp.nan]]),
        jnp.asarray([[[0.5, 1.5], [2.0, jnp.nan], [1.0, 1.0]]]),
        jnp.asarray([[[True, True], [True, False], [True, True]]]),
        coef=0.1,
    )
    np.testing.assert_allclose(got[0, :2], [0.8, -0.2], rtol=1e-6)
    assert np.isnan(got[0, 2])  # a failed score stays failed


@pytest.mark.parametrize(
    ("kl_mean", "factor"),
    # 2048 sequences of a horizon of 10000: a share of 0.2048 of the error, which is held to 0.2.
    [
        (1e-3, 1 + 0.2 * 0.2048),  # twice the target: error 1, held to 0.2; 4.1 % up
        (5.5e-4, 1 + 0.1 * 0.2048),  # 10 % above the target
        (5e-4, 1.0),
        (0.0, 1 - 0.2 * 0.2048),
        (-1.0, 1 - 0.2 * 0.2048),  # k1 can be negative
        (np.nan, 1.0),
        (np.inf, 1.0),
    ],
)
def test_controller_by_hand(kl_mean, factor, variant):
    state = kl.kl_controller(1e-3, target=5e-4, horizon=10_000)  # the paper's KL2
    got = variant(kl.adaptive_kl)(state, kl_mean, 2048)
    np.testing.assert_allclose(got.coef, 1e-3 * factor, rtol=1e-6)
    assert got.target == state.target and got.horizon == state.horizon


def test_controller_follows_the_reference_recurrence():
    rng = np.random.default_rng(0)
    state, coef = kl.kl_controller(1e-2, target=5e-3), 1e-2
    step = jax.jit(kl.adaptive_kl)
    for measured in rng.exponential(5e-3, 100):
        state = step(state, measured, 2048)
        coef *= 1 + min(max(measured / 5e-3 - 1, -0.2), 0.2) * 2048 / 10_000
    np.testing.assert_allclose(state.coef, coef, rtol=1e-4)


def test_controller_never_changes_sign_however_many_sequences():
    state = kl.adaptive_kl(kl.kl_controller(1.0, target=1.0, horizon=10.0), 0.0, 1_000_000)
    np.testing.assert_allclose(state.coef, 0.8, rtol=1e-6)


@pytest.mark.parametrize("bad", [{"coef": -1.0}, {"target": 0.0}, {"horizon": 0.0}])
def test_controller_refuses_nonsense(bad):
    with pytest.raises(ValueError, match="coef >= 0"):
        kl.kl_controller(**({"coef": 0.1, "target": 1.0, "horizon": 1.0} | bad))
