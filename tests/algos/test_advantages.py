"""Group advantages: numbers a human can redo, an oracle in plain loops, masks, and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlaa_jax.algos import advantages

NAN = float("nan")
GROUPWISE = [
    advantages.grpo_advantages,
    advantages.mean_only_advantages,
    advantages.leave_one_out_advantages,
]
ALL = [*GROUPWISE, advantages.batch_std_advantages]


@pytest.fixture(params=[False, True], ids=["plain", "jit"])
def variant(request):
    return jax.jit if request.param else lambda f: f


def rewards(*rows):
    return jnp.asarray(rows, jnp.float32)


compiled = {f: jax.jit(f) for f in ALL}


def run(function, table, mask=None):
    """Compiled once per function: the case lies on a [100, 7] canvas of absent completions."""
    table = np.asarray(table, np.float32)
    inside = np.s_[: table.shape[0], : table.shape[1]]
    canvas, slots = np.full((100, 7), np.nan, np.float32), np.zeros((100, 7), bool)
    canvas[inside], slots[inside] = table, True if mask is None else mask
    got = np.array(compiled[function](canvas, slots))
    assert got.dtype == np.float32
    advantages_inside = got[inside].copy()
    got[inside] = 0
    np.testing.assert_array_equal(got, 0.0)
    return advantages_inside


# ------------------------------------------------------------------- worked by hand
# All tables are [2, 3], so that the undecorated runs share their compiled operations.


def test_grpo_by_hand(variant):
    # [1 0 0]: mean 1/3, deviations 2/3 -1/3 -1/3, squares sum to 6/9, variance 3/9 (n - 1 = 2),
    # std 0.57735; advantages (2/3) / 0.57735 = 1.154701 and -0.577350.
    # [1 1 0]: the mirror image.
    got = variant(advantages.grpo_advantages)(rewards([1, 0, 0], [1, 1, 0]))
    want = [[1.154701, -0.577350, -0.577350], [0.577350, 0.577350, -1.154701]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_grpo_eps_is_added_to_the_deviation():
    # [0, 2e-9]: deviation 1e-9, std sqrt(2) * 1e-9; 1 / (sqrt(2) + 1) = 0.414214.
    table = rewards([0, 2e-9, NAN], [0, 0, 0])
    got = advantages.grpo_advantages(table)
    np.testing.assert_allclose(got[0], [-0.414214, 0.414214, 0], rtol=1e-5)
    no_eps = advantages.grpo_advantages(table, eps=0.0)
    np.testing.assert_allclose(no_eps[0], [-0.707107, 0.707107, 0], rtol=1e-5)
    np.testing.assert_array_equal(no_eps[1], 0.0)


def test_mean_only_by_hand(variant):
    got = variant(advantages.mean_only_advantages)(rewards([1, 0.5, 0], [0.75, 0, 0]))
    np.testing.assert_allclose(got, [[0.5, 0, -0.5], [0.5, -0.25, -0.25]])


def test_leave_one_out_by_hand(variant):
    # [1 0 0]: 1 - mean(0, 0) = 1; 0 - mean(1, 0) = -1/2. [1 0 -]: 1 - 0 and 0 - 1.
    got = variant(advantages.leave_one_out_advantages)(rewards([1, 0, 0], [1, 0, NAN]))
    np.testing.assert_allclose(got, [[1.0, -0.5, -0.5], [1, -1, 0]], rtol=1e-6)


def test_batch_std_by_hand(variant):
    # Rewards 1 0 .5 .5 .5 .5: batch mean .5, squares sum to .5, variance .5 / 5, std .316228;
    # first group +-.5 / .316228 = +-1.581139, second group constant, so 0.
    got = variant(advantages.batch_std_advantages)(rewards([1, 0, 0.5], [0.5, 0.5, 0.5]))
    np.testing.assert_allclose(got, [[1.581139, -1.581139, 0], [0, 0, 0]], rtol=1e-6)


# ------------------------------------------------------------------ edges and masks


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("size", [1, 7])
def test_all_equal_gives_exactly_zero(function, size):
    values = jnp.asarray([0.0, 0.9, 0.1, 1 / 3, 1.0], jnp.float32)
    got = run(function, np.tile(np.asarray(values)[:, None], (1, size)))
    np.testing.assert_array_equal(got, np.zeros((5, size)))


def test_a_plain_mean_would_not_give_zero():
    # The reason for the rule above: in float32 the mean of three times 0.9 is not 0.9.
    group = jnp.full(3, 0.9, jnp.float32)
    assert bool(jnp.any(group - jnp.sum(group) / 3 != 0))


@pytest.mark.parametrize("function", ALL)
def test_failed_and_absent_slots_get_zero_and_take_no_part(function):
    clean = run(function, rewards([1, 0], [0.2, 0.8]))
    dirty = rewards([NAN, 1, 77, 0], [0.2, jnp.inf, NAN, 0.8])
    mask = np.asarray([[0, 1, 0, 1], [1, 0, 0, 1]], bool)
    got = run(function, dirty, mask)
    np.testing.assert_array_equal(got[~mask], 0.0)
    np.testing.assert_allclose(got[mask].reshape(2, 2), clean, rtol=1e-6)


@pytest.mark.parametrize("function", ALL)
def test_nan_that_the_mask_forgot_counts_as_failed(function):
    table = rewards([1, 0, NAN], [0, 1, 1])
    honest = np.asarray([[1, 1, 0], [1, 1, 1]], bool)
    np.testing.assert_array_equal(run(function, table), run(function, table, honest))


@pytest.mark.parametrize("function", ALL)
def test_fewer_than_two_valid_gives_exactly_zero(function):
    table = rewards([0.7, NAN, NAN], [NAN, NAN, NAN], [0.7, 0.1, NAN])
    got = run(function, table)
    np.testing.assert_array_equal(got[:2], 0.0)
    assert (got[2, :2] != 0).all()


@pytest.mark.parametrize("function", ALL)
def test_nothing_valid_anywhere(function):
    np.testing.assert_array_equal(run(function, np.full((2, 3), NAN)), np.zeros((2, 3)))


@pytest.mark.parametrize("function", ALL)
def test_gradients_are_finite_and_zero_where_masked(function):
    table = rewards([1, 0, NAN, 0], [0.9, 0.9, 0.9, 0.9], [NAN, NAN, NAN, 1])
    weights = jnp.arange(12.0).reshape(3, 4)
    gradient = jax.jit(jax.grad(lambda r: jnp.sum(weights * function(r))))(table)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[np.isnan(table)], 0.0)
    assert np.abs(gradient[0]).max() > 0
    if function in GROUPWISE:  # constant and single groups are constants
        np.testing.assert_array_equal(gradient[1:], 0.0)


def test_gradient_of_grpo_in_closed_form():
    # A_i = d_i / s with s^2 = sum d^2 / (n - 1):
    # dA_i/dr_j = ([i = j] - 1/n) / s - d_i d_j / ((n - 1) s^3)
    r = np.asarray([0.1, 0.9, 0.4, 0.5])
    d = r - r.mean()
    s, n = r.std(ddof=1), 4
    want = (np.eye(n) - 1 / n) / s - np.outer(d, d) / ((n - 1) * s**3)
    got = jax.jit(jax.jacobian(lambda r: advantages.grpo_advantages(r[None])[0]))(jnp.float32(r))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", ALL)
def test_bad_shapes_are_named(function):
    with pytest.raises(ValueError, match=r"rewards_PG must be \[P, G\]"):
        function(jnp.zeros(3))
    with pytest.raises(ValueError, match="agree in shape"):
        function(jnp.zeros((2, 3)), jnp.ones((2, 2), bool))


# ------------------------------------------------------------------- oracle in loops


def oracle(name, table, mask):
    """The definitions, one group at a time, in float64."""
    out = np.zeros(table.shape)
    everything = table[mask]
    for p in range(len(table)):
        group = table[p][mask[p]]
        if len(group) < 2 or len(set(group.tolist())) == 1:
            continue
        for g in np.flatnonzero(mask[p]):
            r = table[p, g]
            if name == "leave_one_out_advantages":
                out[p, g] = r - (group.sum() - r) / (len(group) - 1)
            else:
                scale = {
                    "grpo_advantages": group.std(ddof=1) + 1e-9,
                    "mean_only_advantages": 1.0,
                    "batch_std_advantages": everything.std(ddof=1) + 1e-9,
                }[name]
                out[p, g] = (r - group.mean()) / scale
    return out


@pytest.mark.parametrize("function", ALL)
def test_against_the_oracle(function):
    rng = np.random.default_rng(0)
    table = rng.random((100, 6)).astype(np.float32)
    table[::2] = np.round(table[::2])  # half the groups are binary, some of them constant
    mask = rng.random((100, 6)) > 0.3
    want = oracle(function.__name__, table.astype(np.float64), mask)
    dirty = np.where(mask, table, np.float32("nan"))
    got = run(function, dirty, mask)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


# -------------------------------------------------------------------------- sharding


COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter")


def collectives(compiled_text):
    return {
        name
        for name in COLLECTIVES
        if f" {name}(" in compiled_text or f"{name}-start" in compiled_text
    }


@pytest.mark.parametrize("function", ALL)
def test_sharded_over_data_without_gathering(function):
    assert len(jax.devices()) >= 8
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))
    table = np.random.default_rng(0).random((16, 4)).astype(np.float32)
    table[3] = 0.5
    table[5, 1:] = np.nan
    mask = np.isfinite(table)
    placed = [jax.device_put(x, sharding) for x in (table, mask)]
    program = jax.jit(function).lower(*placed).compile()
    used = collectives(program.as_text())
    # Scalars of the whole batch need an all-reduce; nothing ever needs a gather.
    assert used == ({"all-reduce"} if function is advantages.batch_std_advantages else set())
    got = program(*placed)
    assert not got.sharding.is_fully_replicated
    np.testing.assert_allclose(got, run(function, table, mask), rtol=1e-6, atol=1e-7)
