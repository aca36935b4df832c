"""The engine's completions: log-probabilities, ends, limits, seeds."""

from contextlib import contextmanager

import jax
import numpy as np
import pytest
from flax import nnx

from update_case import CONFIG, VOCAB
from vlaa_jax.algos.logprobs import token_logprobs
from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
from vlaa_jax.models.qwen_vl.model import (
    Compute,
    PromptInputs,
    completion_inputs,
    init_params,
    split_model,
)
from vlaa_jax.parallel.mesh import batch_sharding, data_shards, make_mesh
from vlaa_jax.parallel.sharding import tree_shardings
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.weights import sampling_mesh

EOS, TEMPERATURE, LIMIT = 7, 1.3, 20
ALLOWED = np.arange(VOCAB) < 30


@pytest.fixture(scope="module")
def setup():
    graphdef, _ = split_model(CONFIG)
    params = jax.tree.map(lambda a: a * 4, init_params(CONFIG, 0))  # far from uniform
    engine = engine_of(graphdef)
    return graphdef, params, engine


@contextmanager
def compilations():
    """Collects the seconds of every compilation inside."""
    seconds = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run(engine, params, prompt, keys, *, part=None, **options):
    """All prompts at once, or `part` at a time, the last part filled up with repeats."""
    count = len(prompt.length_P)
    part = part or count

    def parts():
        for start in range(0, count, part):
            index = np.minimum(np.arange(start, start + part), count - 1)
            yield PromptInputs(*(a if a is None else a[index] for a in prompt))

    length = prompt.ids_PT.shape[1]
    return engine.generate(params, parts(), keys, prefix_length=length, **options)


def prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    ids = rng.integers(0, 30, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1])[None, :, None], (*shape, 3)).astype(np.int32)
    return PromptInputs(ids, positions, np.array(lengths, np.int32), np.full(shape, -1), None)


def test_log_probabilities_are_the_trainers(setup):
    graphdef, params, engine = setup
    prompt = prompts([6, 3, 9, 1])
    rollout = run(engine, params, prompt, jax.random.split(jax.random.key(0), 4))
    model = nnx.merge(graphdef, params)
    tokens = rollout.tokens_PGT
    hidden = model.hidden_groups(prompt, completion_inputs(prompt, tokens))
    want, _ = token_logprobs(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_kernel_DV,
        tokens.reshape(-1),
        temperature=TEMPERATURE,
        allowed_V=ALLOWED,
    )
    gap = np.where(rollout.mask_PGT, rollout.logprobs_PGT - want.reshape(tokens.shape), 0)
    assert np.abs(gap).max() <= 1e-5


def test_completions_end_at_the_end_token_or_the_limit(setup):
    _, params, engine = setup
    rollout = run(engine, params, prompts([6, 3, 9]), jax.random.split(jax.random.key(1), 3))
    tokens, lengths = np.asarray(rollout.tokens_PGT), np.asarray(rollout.length_PG)
    ended = 0
    for p in range(3):
        for g in range(5):
            text = tokens[p, g, : lengths[p, g]]
            assert ALLOWED[text].all()
            assert EOS not in text[:-1]
            assert (tokens[p, g, lengths[p, g] :] == 0).all()
            if rollout.truncated_PG[p, g]:
                assert lengths[p, g] == LIMIT
                assert text[-1] != EOS
            else:
                assert text[-1] == EOS
                ended += 1
    assert 0 < ended < 15, "the case should hold both kinds"


def test_a_completion_depends_on_its_key_alone(setup):
    _, params, engine = setup
    keys = jax.random.split(jax.random.key(2), 3)
    together = run(engine, params, prompts([6, 3, 9]), keys)
    order = np.array([2, 0, 1])
    shuffled = prompts([6, 3, 9])
    shuffled = PromptInputs(*(a if a is None else a[order] for a in shuffled))
    moved = run(engine, params, shuffled, keys[order])
    length = min(together.tokens_PGT.shape[-1], moved.tokens_PGT.shape[-1])
    np.testing.assert_array_equal(
        np.asarray(moved.tokens_PGT)[..., :length],
        np.asarray(together.tokens_PGT)[order][..., :length],
    )
    again = run(engine, params, prompts([6, 3, 9]), keys)
    np.testing.assert_array_equal(again.tokens_PGT, together.tokens_PGT)
    assert len({tuple(row) for row in np.asarray(together.tokens_PGT)[0].tolist()}) > 1


def test_same_shapes_compile_once(setup):
    _, params, engine = setup
    before = engine.compile_count
    counts = []
    for seed in range(3):
        run(engine, params, prompts([4, 8], seed), jax.random.split(jax.random.key(seed), 2))
        counts.append(engine.compile_count)
    assert counts[0] > before
    assert counts[0] == counts[2]


def engine_of(graphdef, slots=0, burst=0, mesh=None):
    return Engine(
        graphdef,
        Decoding(5, LIMIT, slots, burst, min_bucket=8),
        sampling=Sampling(TEMPERATURE),
        eos_id=EOS,
        allowed_V=ALLOWED,
        mesh=mesh,
    )


@pytest.mark.parametrize(
    ("slots", "part", "burst", "unroll"),
    [
        (0, 11, 3, 1),
        (4, 2, 3, True),
        (4, 4, 7, 1),
        (2, 1, 1, 2),
        (3, 3, 20, True),
        (10, 10, 20, True),  # the last prompt shrinks buffers that have no past
        (6, 3, 2, True),
    ],
)
def test_refill_and_smaller_buffers_change_no_completion(setup, slots, part, burst, unroll):
    _, params, engine = setup
    graphdef, _ = split_model(CONFIG, Compute(unroll=unroll))
    prompt = prompts([6, 3, 9, 1, 4, 4, 7, 2, 8, 5, 3])
    keys = jax.random.split(jax.random.key(3), 11)
    want = run(engine, params, prompt, keys)
    lengths = want.length_PG.max(axis=1)
    assert lengths.min() < lengths.max(), "the case should free some slots before others"
    engine, told = engine_of(graphdef, slots=slots, burst=burst), {}

    def note(places, rollout):
        for place, tokens in zip(places, rollout.tokens_PGT, strict=True):
            assert place not in told
            told[place] = tokens

    got = run(engine, params, prompt, keys, part=part, on_finished=note)
    assert sorted(told) == list(range(11))
    for place, tokens in told.items():
        np.testing.assert_array_equal(tokens, want.tokens_PGT[place, :, : tokens.shape[-1]])
        assert not want.tokens_PGT[place, :, tokens.shape[-1] :].any()
    np.testing.assert_array_equal(got.tokens_PGT, want.tokens_PGT)
    np.testing.assert_array_equal(got.length_PG, want.length_PG)
    np.testing.assert_array_equal(got.truncated_PG, want.truncated_PG)
    np.testing.assert_allclose(got.logprobs_PGT, want.logprobs_PGT, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "tensor", "unroll"),
    [
        ((4, 1, 1), 0, True),
        ((8, 1, 1), 0, 1),
        ((1, 8, 1), 0, 1),
        ((1, 4, 2), 0, 1),  # one key head: repeated
        ((2, 2, 2), 0, 1),
        ((1, 4, 1), 2, 1),  # cut for decoding alone
    ],
    ids=str,
)
def test_the_buffers_on_a_mesh_give_the_same_completions(setup, shape, tensor, unroll):
    _, params, engine = setup
    prompt = prompts([6, 3, 9, 1, 4, 4, 7, 2, 8, 5, 3, 6, 4, 2, 5, 9])
    keys = jax.random.split(jax.random.key(4), 16)
    want = run(engine, params, prompt, keys)
    mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    graphdef, _ = split_model(CONFIG, Compute(data_shards=data_shards(mesh), unroll=unroll))
    places = tree_shardings(params, PARAM_AXES, layout(CONFIG, mesh))
    params = jax.device_put(params, places)
    small = engine_of(graphdef, slots=8, burst=3, mesh=sampling_mesh(mesh, tensor))
    prompt = jax.device_put(prompt, batch_sharding(mesh))
    got = run(small, small.weights(params), prompt, keys, part=8)
    np.testing.assert_array_equal(got.tokens_PGT, want.tokens_PGT)
    np.testing.assert_allclose(got.logprobs_PGT, want.logprobs_PGT, atol=1e-5)
    with compilations() as compiled:
        run(small, params, prompt, keys, part=8)
    assert not compiled, "places drift: a program is compiled twice"


def test_any_of_several_tokens_ends_a_completion(setup):
    graphdef, params, _ = setup
    decoding, sampling = Decoding(5, LIMIT, min_bucket=LIMIT), Sampling(TEMPERATURE)
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = {}
    for stops in (EOS, {EOS}, (11, EOS)):
        engine = Engine(graphdef, decoding, sampling=sampling, eos_id=stops, allowed_V=ALLOWED)
        rollout = run(engine, params, prompts([6, 3, 9]), keys)
        tokens[str(stops)] = rollout.tokens_PGT
        for row, length in zip(
            rollout.tokens_PGT.reshape(15, -1), rollout.length_PG.reshape(-1), strict=True
        ):
            assert not np.isin(row[: length - 1], stops if stops != EOS else [EOS]).any()
            assert not row[length:].any()
    one, same, two = tokens.values()
    np.testing.assert_array_equal(one, same)
    assert (two[..., :-1] == 11).any(), "the case should end somewhere with the second token"
    kept = np.cumprod(np.roll(two == 11, 1, axis=-1) == 0, axis=-1).astype(bool)
    kept[..., 0] = True
    np.testing.assert_array_equal(two[kept & (two > 0)], one[kept & (two > 0)])
