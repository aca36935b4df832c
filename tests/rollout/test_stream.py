"""Requests that come and go get what the engine would have given each of them alone."""

from functools import partial

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
from vlaa_jax.rollout.stream import Stream, Wanted, rungs
from vlaa_jax.rollout.weights import sampling_mesh

EOS, LIMIT, LONGEST = 7, 20, 16
ALLOWED = np.arange(VOCAB) < 30
WANTED = [
    Wanted(Sampling(1.3), LIMIT, (EOS,), 0, completions=2),
    Wanted(Sampling(greedy=True), 9, (EOS,), 1),
    Wanted(Sampling(0.8, top_k=5), LIMIT, (3, EOS), 2, completions=3),
    Wanted(Sampling(1.0, top_p=0.7), 13, (), 3),
    Wanted(Sampling(1.6, min_p=0.1), 1, (EOS, 11, 12), 2**31 + 5),
    Wanted(Sampling(0.9, top_k=9, top_p=0.8, min_p=0.02), LIMIT, (EOS,), 5, completions=2),
    Wanted(Sampling(2.0), 17, (EOS,), 6),
]
LENGTHS = [6, 3, 16, 1, 4, 9, 2]


@pytest.fixture(scope="module")
def setup():
    graphdef, _ = split_model(CONFIG)
    return graphdef, jax.tree.map(lambda a: a * 4, init_params(CONFIG, 0))


def prompt(place):
    """The prompt of a place, padded to 8 or 16."""
    length = LENGTHS[place]
    padded = 8 if length <= 8 else LONGEST
    rng = np.random.default_rng(place)
    ids = rng.integers(0, 30, (1, padded)).astype(np.int32)
    positions = np.broadcast_to(np.arange(padded)[None, :, None], (1, padded, 3)).astype(np.int32)
    unit = np.full((1, padded), -1)
    return PromptInputs(ids, positions, np.array([length], np.int32), unit, None)


def together(prompts):
    """Several prompts as one batch."""
    longest = max(p.ids_PT.shape[1] for p in prompts)

    def pad(a):
        if a.ndim == 1:
            return a
        return np.pad(a, [(0, 0), (0, longest - a.shape[1]), *[(0, 0)] * (a.ndim - 2)])

    fields = zip(*(p[:4] for p in prompts), strict=True)
    return PromptInputs(*(np.concatenate([pad(a) for a in field]) for field in fields), None)


@pytest.fixture(scope="module")
def alone(setup):
    """Tokens and log-probabilities of each request by the engine, compiled for its settings."""
    graphdef, params = setup
    found = []
    for place, wanted in enumerate(WANTED):
        engine = Engine(
            graphdef,
            Decoding(wanted.completions, wanted.limit),
            sampling=wanted.sampling,
            eos_id=wanted.stop_ids or [-1],
            allowed_V=ALLOWED,
        )
        key = jax.random.key(wanted.seed)[None]
        one = engine.generate(params, [prompt(place)], key, prefix_length=LONGEST)
        cut = [
            (one.tokens_PGT[0, g, :n], one.logprobs_PGT[0, g, :n], one.truncated_PG[0, g])
            for g, n in enumerate(one.length_PG[0])
        ]
        found.append(cut)
    return found


def stream(graphdef, params, **options):
    given = {"slots": 4, "rows": 2, "burst": 3, **options}
    sizes = {"max_prompt": LONGEST, "max_new_tokens": LIMIT}
    return Stream(graphdef, params, allowed_V=ALLOWED, **sizes, **given)


def run(stream, places, put=lambda p: p, wanted=WANTED, most=1, later=(), sizes=None):
    """Seats requests as there is room; what is said of each completion, by (place, choice).

    Who comes `later` does so when a third of the limit is over. `sizes` takes in the slots.
    """
    waiting, tickets, said, coming = list(places), {}, {}, {LIMIT // 3: later}
    bursts = 0
    while waiting or stream.growing:
        waiting += coming.pop(bursts, ())
        while shards := stream.places([wanted[place].completions for place in waiting], most):
            here = [[] for _ in range(stream.shards)]
            for shard in shards:
                here[shard].append(waiting.pop(0))
            seated = [place for own in here for place in [*own, *[None] * (most - len(own))]]
            any_ = next(place for place in seated if place is not None)
            batch = together([prompt(any_ if place is None else place) for place in seated])
            asked = [None if place is None else wanted[place] for place in seated]
            got = stream.seat(stream.prefill(put(batch)), asked)
            tickets.update(zip(got, seated, strict=True))
        for news in stream.step():
            said.setdefault((tickets[news.ticket], news.choice), []).append(news)
        bursts += 1
        if sizes is not None:
            sizes.append(stream._buffers.ids_PG.shape[0])
    assert not coming or not later
    return said


def check(said, alone, places):
    assert set(said) == {(p, g) for p in places for g in range(WANTED[p].completions)}
    for (place, choice), news in said.items():
        tokens, logprobs, truncated = alone[place][choice]
        np.testing.assert_array_equal(np.concatenate([n.tokens_T for n in news]), tokens)
        got = np.concatenate([n.logprobs_T for n in news])
        np.testing.assert_allclose(got, logprobs, atol=1e-5)
        assert [n.ended for n in news[:-1]] == [""] * (len(news) - 1)
        assert news[-1].ended == ("length" if truncated else "stop")


@pytest.mark.parametrize("options", [{}, {"rows": 1, "slots": 3, "burst": 7}, {"rows": 4}], ids=str)
def test_mixed_requests_get_what_each_gets_alone_and_compile_nothing_new(setup, alone, options):
    made = stream(*setup, **options)
    everyone = range(len(WANTED))
    check(run(made, everyone), alone, everyone)
    check(run(made, everyone, most=3), alone, everyone)
    before = made.compile_count
    others = [w._replace(seed=w.seed + 1, limit=w.limit - w.limit // 3) for w in WANTED]
    others = [w._replace(sampling=Sampling(1.1, 3 + i, 0.9)) for i, w in enumerate(others)]
    run(made, reversed(everyone), wanted=others)
    check(run(made, everyone), alone, everyone)
    check(run(made, reversed(everyone), most=3), alone, everyone)
    assert made.compile_count == before


def on_a_mesh(setup, shape, **options):
    """A stream whose weights and buffers lie on a mesh, and what puts a batch there."""
    _, params = setup
    mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    graphdef, _ = split_model(CONFIG, Compute(data_shards=data_shards(mesh)))
    params = jax.device_put(params, tree_shardings(params, PARAM_AXES, layout(CONFIG, mesh)))
    made = stream(graphdef, params, mesh=sampling_mesh(mesh), **options)
    return made, partial(jax.device_put, device=batch_sharding(mesh))


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 2)], ids=str)
def test_on_a_mesh_too(setup, alone, shape):
    made, put = on_a_mesh(setup, shape, slots=8)
    everyone = range(len(WANTED))
    check(run(made, everyone, put), alone, everyone)
    check(run(made, everyone, put, most=2), alone, everyone)


def test_a_request_that_is_dropped_frees_its_slots_and_changes_nobody(setup, alone):
    made = stream(*setup, slots=4, rows=1)
    endless = Wanted(Sampling(1.0), LIMIT, (), 9, completions=3)
    (gone,) = made.seat(made.prefill(prompt(0)), [endless])
    (kept,) = made.seat(made.prefill(prompt(3)), [WANTED[3]])
    assert made.places([1]) == []
    said = made.step()
    assert {news.ticket for news in said} == {gone, kept}
    made.drop(gone, 1)
    assert made.places([1, 1]) == made.places([1], most=2) == [0]
    assert made.places([2]) == []
    made.drop(gone)
    assert made.places([3]) == [0]
    while made.growing:
        said += made.step()
    assert not [news for news in said[4:] if news.ticket == gone]
    tokens = np.concatenate([news.tokens_T for news in said if news.ticket == kept])
    np.testing.assert_array_equal(tokens, alone[3][0][0])


def test_the_likeliest_tokens_are_the_trainers(setup):
    graphdef, params = setup
    made = stream(graphdef, params)
    wanted = Wanted(Sampling(1.3, top_k=4), LIMIT, (), 3, likeliest=True)
    quiet = wanted._replace(likeliest=False)
    made.seat(made.prefill(prompt(0)), [wanted])
    made.seat(made.prefill(prompt(1)), [quiet])
    said = []
    while made.growing:
        said += made.step()
    assert all(news.likeliest is None for news in said if news.ticket == 2)
    mine = [news for news in said if news.ticket == 1]
    tokens_T, logprobs_T = (np.concatenate([n[i] for n in mine]) for i in (2, 3))
    ids_TK, best_TK = (np.concatenate([n.likeliest[i] for n in mine]) for i in (0, 1))
    model = nnx.merge(graphdef, params)
    hidden_TD = model.hidden_groups(prompt(0), completion_inputs(prompt(0), tokens_T[None, None]))
    for k in range(-1, ids_TK.shape[1]):
        chosen, got = (tokens_T, logprobs_T) if k < 0 else (ids_TK[:, k], best_TK[:, k])
        want, _ = token_logprobs(
            hidden_TD[0, 0], model.head_kernel_DV, chosen, temperature=1.3, allowed_V=ALLOWED
        )
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert (np.diff(best_TK, axis=1) <= 0).all()


def test_buffers_grow_with_who_is_there_and_shrink_when_they_are_gone(setup, alone):
    made = stream(*setup)
    made._prefixes = (8, 16)
    run(made, [1])
    small = made._buffers.prefix.k_LPKSH.shape[3]
    check(run(made, [2]), alone, [2])
    large = made._buffers.prefix.k_LPKSH.shape[3]
    for _ in range(18):
        check(run(made, [1]), alone, [1])
    assert (small, large, made._buffers.prefix.k_LPKSH.shape[3]) == (8, 16, 8)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1)], ids=str)
def test_slots_come_and_go_with_who_is_seated(setup, alone, shape):
    """Who goes on keeps his tokens when others leave and he moves, and when more come."""
    shards = shape[0]
    made, put = on_a_mesh(setup, shape, slots=16 * shards, rows=1, burst=1)
    sizes = []
    # The last to sit down is not the first to leave: he moves to the front.
    check(run(made, [4, 3, 1, 2, 0, 5, 6], put, sizes=sizes), alone, range(7))
    assert sizes[0] == 16 * shards and sizes[-1] == 4 * shards
    sizes.clear()
    check(run(made, [6, 0], put, later=[5, 2, 3, 1, 4], sizes=sizes), alone, range(7))
    assert (sizes[0], max(sizes), sizes[-1]) == (4 * shards, 16 * shards, 4 * shards)


def test_rungs():
    assert rungs(2048, 64, 4) == (128, 512, 2048)
    assert rungs(100, 64, 2) == (100,)
    assert rungs(128, 64, 2) == (64, 128)
