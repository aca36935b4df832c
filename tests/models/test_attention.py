"""Every form of attention equals the dense one: values, and gradients of queries, keys, values."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.models.qwen_vl import attend, attention, blockwise, splash
from vlaa_jax.models.qwen_vl.attend import Backend, choose
from vlaa_jax.models.qwen_vl.attention import CAUSAL, FULL, Pattern
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.parallel.sharding import Layout
from vlaa_jax.plan import hlo
from vlaa_jax.schema import UserError

PROMPT, ANSWER = 40, 24


def groups(count, prompt=PROMPT, answer=ANSWER):
    """Prompts of unequal lengths with completions; weights leave out what nobody reads."""
    real_PS = np.arange(prompt) < np.array([[prompt - 11], [prompt - 1]])
    segments = np.concatenate([real_PS, np.ones((2, count * answer), bool)], axis=1)
    return Pattern(prompt=prompt, groups=count), segments.astype(np.int32), segments


def rows(length=90):
    """Packed samples with padding at the end of one row, and none in the other."""
    first = np.searchsorted([17, 18, 60], np.arange(length), side="right") + 1
    first[length - 9 :] = 0
    second = np.searchsorted([length - 33], np.arange(length), side="right") + 1
    segments = np.stack([first, second]).astype(np.int32)
    return CAUSAL, segments, segments > 0


def images(length=90):
    """Bins with several frames, and padding."""
    _, segments, real = rows(length)
    return FULL, segments, real


def prompts(length=50):
    return CAUSAL, None, np.ones((2, length), bool)


def draw(real, heads, kv_heads, head_dim, dtype=jnp.float32):
    rng = np.random.default_rng(3)
    shapes = ((*real.shape, n, head_dim) for n in (heads, kv_heads, kv_heads))
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    weight = rng.normal(size=q.shape) * real[..., None, None]
    return (q, k, v), jnp.asarray(weight, jnp.float32)


def value_and_grads(form, case, arrays, weight):
    pattern, segments, _ = case

    def total(q, k, v):
        out = form(q, k, v, None if segments is None else jnp.asarray(segments), pattern)
        return (out * weight).sum(), jnp.where(weight != 0, out, 0)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (_, out), grads = run(*arrays)
    return [np.asarray(a, np.float32) for a in (out, *grads)]


def errors(got, want):
    """Largest difference of result and gradients of q, k and v, over the largest value."""
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, want, strict=True)]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 16)
    monkeypatch.setattr(blockwise, "STEP", 8)


CASES = {
    "one completion": (groups(1), 4, 2, 16),
    "four completions": (groups(4), 8, 2, 16),
    "eight completions, four key heads": (groups(8), 8, 4, 16),
    "heads of 80": (groups(2), 4, 4, 80),
    "heads of 128": (groups(2), 4, 2, 128),
    "packed rows": (rows(), 4, 2, 16),
    "images": (images(), 4, 4, 80),
    "prompts alone": (prompts(), 4, 2, 16),
}


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_blockwise_equals_dense(small_tiles, name, skips):
    case, *sizes = CASES[name]
    arrays, weight = draw(case[2], *sizes)
    want = value_and_grads(attention.dense, case, arrays, weight)
    got = value_and_grads(partial(blockwise.attend, skips=skips), case, arrays, weight)
    assert max(errors(got, want)) <= 1e-5, errors(got, want)


def test_tiles_without_a_segment_in_common_are_left_out(small_tiles):
    """Four samples of 16 positions, each a tile: of the 16 tiles, the causal diagonal is left."""
    segments = np.repeat(np.arange(4), 16)[None].astype(np.int32)
    (q, k, v), _ = draw(segments > -1, 2, 2, 4)
    q = jnp.moveaxis(q, 2, 1)[:, :, None, None]
    part = blockwise.Part(*(jnp.moveaxis(a, 2, 1)[:, :, None] for a in (k, v)), segments, segments)
    for fixed, want in (
        (blockwise.Fixed(True, 64, True), 4),
        (blockwise.Fixed(True, 64, False), 10),
    ):
        tiling = blockwise._Tiling(fixed, q, part)
        assert tiling.run(lambda count, _: count + 1, jnp.int32(0), part) == want


SPLASH = {
    "four completions": (groups(4, 150, 40), 4, 2, 128),
    "eight completions, four key heads": (groups(8, 60, 30), 4, 4, 128),
    "packed rows": (rows(200), 4, 2, 128),
    "images": (images(200), 2, 2, 80),
    "prompts alone": (prompts(130), 2, 1, 128),
}


@pytest.mark.parametrize("name", SPLASH)
def test_splash_equals_dense(monkeypatch, name):
    monkeypatch.setattr(splash, "BLOCK", 128)
    case, *sizes = SPLASH[name]
    arrays, weight = draw(case[2], *sizes)
    want = value_and_grads(attention.dense, case, arrays, weight)
    got = value_and_grads(partial(splash.attend, interpret=True), case, arrays, weight)
    assert max(errors(got, want)) <= 1e-5, errors(got, want)


@pytest.mark.parametrize("name", ["blockwise", "splash"])
def test_in_bfloat16_no_form_is_further_from_float32_than_the_dense_one(small_tiles, name):
    form = {"blockwise": blockwise.attend, "splash": partial(splash.attend, interpret=True)}[name]
    case = groups(4, 60, 30)
    arrays, weight = draw(case[2], 4, 2, 128, jnp.bfloat16)
    exact = value_and_grads(attention.dense, case, [a.astype(jnp.float32) for a in arrays], weight)
    dense = errors(value_and_grads(attention.dense, case, arrays, weight), exact)
    got = errors(value_and_grads(form, case, arrays, weight), exact)
    assert max(dense) <= 0.02
    assert np.all(np.array(got) <= 2 * np.array(dense)), (got, dense)


def test_the_backend_is_chosen_by_platform_and_refused_where_it_does_not_run():
    assert choose("auto", "tpu").name == "splash"
    assert choose("auto", "tpu", exact=True).name == "blockwise"
    assert choose("auto", "cuda").name == choose("auto", "gpu").name == "blockwise"
    assert choose("dense", "tpu") == Backend("dense")
    for platform, exact in (("cpu", False), ("gpu", False), ("tpu", True)):
        with pytest.raises(UserError, match=r"model\.attention: splash"):
            choose("splash", platform, exact=exact)


def test_short_streams_keep_their_scores_and_long_ones_do_not(monkeypatch):
    took = []
    monkeypatch.setattr(blockwise, "attend", lambda q, *_, skips: took.append(1) or q)
    for length in (8, 9):
        (q, k, v), _ = draw(np.ones((1, length), bool), 2, 2, 4)
        attend.attend(q, k, v, None, CAUSAL, Backend("blockwise", dense_up_to=8))
    assert took == [1]


MESH = (2, 2, 2)


def on_a_mesh(form, case, arrays, weight):
    """The compiled gradients on eight devices, rows and heads cut, and their results."""
    pattern, segments, _ = case
    mesh = make_mesh(*MESH, devices=jax.devices())
    where = Layout(mesh, "train", {"heads": arrays[0].shape[2]})
    put = partial(
        jax.device_put, device=where.sharding((4, 1, 4, 1), ("batch", None, "heads", None))
    )
    ids = jax.device_put(segments, where.sharding((4, 1), ("batch", None)))

    def total(q, k, v, ids, weight):
        out = attend.attend(q, k, v, ids, pattern, form._replace(layout=where))
        return (out * weight).sum()

    run = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    given = (*map(put, arrays), ids, put(weight))
    return run.lower(*given).compile(), given


def twice(case):
    pattern, segments, real = case
    return pattern, np.concatenate([segments] * 2), np.concatenate([real] * 2)


SEQUENCES = {PROMPT + 4 * ANSWER, PROMPT, 4 * ANSWER, ANSWER}


def both_axes(text, kv_heads):
    """Shapes of a compiled program with queries on one axis and keys on another."""
    shared = 4 // (kv_heads // MESH[2])  # query heads may be folded into the queries
    lengths = {n * m for n in SEQUENCES for m in (1, shared, 4 * shared)}
    found = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    return [shape for shape in found if sum(size in lengths for size in shape) > 1]


@pytest.mark.parametrize("name", ["blockwise", "dense"])
def test_no_array_of_a_compiled_gradient_has_queries_and_keys(small_tiles, name):
    case = twice(groups(4))
    arrays, weight = draw(case[2], 8, 2, 11)
    compiled, given = on_a_mesh(Backend(name), case, arrays, weight)
    text = compiled.as_text()
    assert bool(both_axes(text, 2)) == (name == "dense"), both_axes(text, 2)
    if name == "dense":
        return
    sent = [c for c in hlo.KINDS if f" {c}" in text]
    assert not sent, "every device attends to its own rows and heads"
    want = value_and_grads(attention.dense, case, arrays, weight)[1:]
    got = [np.asarray(a) for a in compiled(*given)]
    assert max(errors(got, want)) <= 1e-5
