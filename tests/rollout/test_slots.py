"""Bookkeeping of the decoding buffers, by hand."""

import numpy as np

from vlaa_jax.rollout.slots import NOWHERE, Results, Slots, layouts

EOS = 9


def seated(prompts=3, completions=4, limit=6):
    slots = Slots(1, prompts, completions, limit=limit, stop_ids=(EOS,))
    slots.seat(np.arange(prompts)[None])
    return slots, Results(prompts, completions, limit)


def burst(slots, rows):
    """Tokens of a burst: `rows` is {(slot, row): tokens}; everybody else says 1s."""
    steps = len(next(iter(rows.values())))
    tokens = np.ones((slots.shape[0], slots.shape[1], steps), int)
    for place, said in rows.items():
        tokens[place] = said
    return tokens, tokens / 10


def test_layouts_shrink_and_never_repeat():
    assert layouts(8, 4) == [(8, 4), (8, 2), (8, 1), (2, 1)]
    assert layouts(1, 2) == [(1, 2), (1, 1)]
    assert layouts(1, 1) == [(1, 1)]


def test_tokens_behind_an_end_and_beyond_the_limit_are_not_booked():
    slots, results = seated(prompts=1, completions=2, limit=5)
    slots.take_in(*burst(slots, {(0, 0): [4, EOS, 7]}), results)
    assert slots.alive_SPG.tolist() == [[[False, True]]]
    slots.take_in(*burst(slots, {(0, 1): [2, 3, 4]}), results)
    assert results.tokens_PGT.tolist() == [[[4, EOS, 0, 0, 0], [1, 1, 1, 2, 3]]]
    assert results.length_PG.tolist() == [[2, 5]]
    assert results.ended_PG.tolist() == [[True, False]]
    assert np.allclose(results.logprobs_PGT, results.tokens_PGT / 10)
    assert not slots.busy


def test_a_slot_is_free_when_its_last_completion_ends():
    slots, results = seated(prompts=2, completions=2)
    assert not slots.has_room
    slots.take_in(*burst(slots, {(1, 0): [EOS, 0]}), results)
    assert not slots.has_room
    assert slots.seat(np.array([[7]])).tolist() == [[NOWHERE]]
    slots.take_in(*burst(slots, {(1, 1): [5, EOS]}), results)
    assert slots.has_room
    assert slots.seat(np.array([[7, 8]])).tolist() == [[1, NOWHERE]]
    assert slots.prompt_SP.tolist() == [[0, 7]]
    assert slots.step_SP.tolist() == [[4, 0]]
    assert slots.longest == 4


def test_padding_needs_no_slot():
    slots = Slots(1, 2, 3, limit=4, stop_ids=(EOS,))
    assert slots.seat(np.array([[-1, 0]])).tolist() == [[NOWHERE, 0]]
    assert slots.alive_SPG.sum(-1).tolist() == [[3, 0]]


def test_shrinking_keeps_everybody_who_is_growing():
    slots, results = seated(prompts=3, completions=4)
    ends = {(p, g): [EOS] for p in range(3) for g in range(4)}
    for place in ((0, 1), (2, 0), (2, 3)):
        del ends[place]
    slots.take_in(*burst(slots, ends), results)
    move = slots.shrink()
    assert slots.shape == (3, 1)
    assert move.slot_SP.tolist() == [[0, 2, 2]]
    assert move.row_SPG.tolist() == [[[1], [0], [3]]]
    assert move.alive_SPG.all()
    slots.take_in(*burst(slots, {(0, 0): [5], (1, 0): [6], (2, 0): [7]}), results)
    grown = results.tokens_PGT[:, :, 1]
    assert (grown[0, 1], grown[2, 0], grown[2, 3]) == (5, 6, 7)
    assert grown.sum() == 18
    assert slots.shrink() is None


def test_shards_seat_their_own_prompts_and_wait_for_nobody():
    slots = Slots(2, 2, 2, limit=4, stop_ids=(EOS,))
    slots.seat(np.array([[0, 1], [2, 3]]))
    results = Results(4, 2, 4)
    tokens = np.ones((4, 2, 1), int)
    tokens[[1, 2]] = EOS  # a slot of either shard
    slots.take_in(tokens, tokens / 10, results)
    assert slots.seat(np.array([[4, 5], [-1, -1]])).tolist() == [[1, NOWHERE], [NOWHERE, NOWHERE]]
    assert slots.has_room  # the second shard still has
    assert slots.seat(np.array([[-1, 5], [6, 7]])).tolist() == [[NOWHERE, NOWHERE], [0, NOWHERE]]
    assert slots.prompt_SP.tolist() == [[0, 4], [6, 3]]
