"""M-RoPE positions against hand-worked numbers and transformers (images)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.data.text.positions import mrope_positions

IMG, VID, VS, VE = 50, 51, 52, 53
IDS = {"image_token_id": IMG, "video_token_id": VID}


def test_worked_example():
    ids = [1, 2, 3, VS, *[IMG] * 6, VE, 4, 5]
    positions, delta = mrope_positions(ids, [(1, 4, 6)], **IDS)
    assert positions.dtype == np.int32
    assert positions.T.tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9],
    ]
    assert delta == -3


def test_text_alone_counts_up():
    positions, delta = mrope_positions([7, 8, 9], [], **IDS)
    assert positions.tolist() == [[0] * 3, [1] * 3, [2] * 3] and delta == 0
    empty, delta = mrope_positions([], [], **IDS)
    assert empty.shape == (0, 3) and delta == 0


@pytest.mark.parametrize(
    ("second_per_grid", "time", "next_text"),
    [
        (1.0, [0, 2, 4, 6, 8], 11),
        (0.5, [0, 1, 2, 3, 4], 7),
        (0.75, [0, 1, 3, 4, 6], 9),
        (2.0, [0, 4, 8, 12, 16], 19),
        (0.1, [0, 0, 0, 0, 0], 4),
    ],
)
def test_video_time_is_cut_last_and_text_follows_the_largest(second_per_grid, time, next_text):
    """Grid (5, 4, 4), two text tokens before: starts at 2; 2 tokens a second as released."""
    ids = [1, VS, *[VID] * 20, VE]
    positions, _ = mrope_positions(
        ids, [(5, 4, 4)], tokens_per_second=2.0, second_per_grid=second_per_grid, **IDS
    )
    video = positions[2:22].reshape(5, 4, 3)
    assert (video[..., 0] - 2).tolist() == [[t] * 4 for t in time]
    assert (video[..., 1] - 2).tolist() == [[0, 0, 1, 1]] * 5
    assert (video[..., 2] - 2).tolist() == [[0, 1, 0, 1]] * 5
    assert positions[22].tolist() == [next_text] * 3


def test_qwen2_vl_video_has_no_time_scale_and_videos_have_their_own_intervals():
    ids = [VS, *[VID] * 3, VE, VS, *[VID] * 3, VE, VS, IMG, VE]
    grids = [(3, 2, 2), (3, 2, 2), (1, 2, 2)]
    plain, _ = mrope_positions(ids, grids, **IDS)
    assert plain[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    timed, _ = mrope_positions(ids, grids, second_per_grid=[2.0, 0.5], tokens_per_second=2, **IDS)
    assert timed[:, 0].tolist() == [0, 1, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]


@pytest.fixture(scope="module")
def hf_model():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "rope_parameters": {"rope_theta": 1e6, "mrope_section": [1, 1, 2], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": 16, "tokens_per_second": 2},
        image_token_id=IMG,
        video_token_id=VID,
    )
    return Qwen2_5_VLModel(config)


sides = st.integers(1, 9).map(lambda n: 2 * n)
samples = st.lists(st.tuples(st.integers(0, 5), sides, sides), max_size=4)


@settings(max_examples=60, deadline=None)
@given(samples, st.integers(1, 6))
def test_images_equal_transformers(hf_model, images, tail):
    import torch

    ids, grids = [], []
    for text, h, w in images:
        ids += [1] * text + [VS] + [IMG] * (h * w // 4) + [VE]
        grids.append((1, h, w))
    ids += [2] * tail
    ours, delta = mrope_positions(ids, grids, tokens_per_second=2.0, **IDS)
    token_ids = torch.tensor([ids])
    theirs, their_delta = hf_model.get_rope_index(
        token_ids,
        (token_ids == IMG).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
        attention_mask=torch.ones_like(token_ids),
    )
    np.testing.assert_array_equal(ours.T, theirs[:, 0].numpy())
    assert delta == int(their_delta)


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([IMG] * 5, [(1, 4, 4)], "5 image placeholders in the text, 4 in the grids"),
        ([IMG, 1, IMG, IMG, IMG], [(1, 4, 4)], "not consecutive"),
        ([IMG] * 8, [(2, 4, 4)], "one frame"),
    ],
)
def test_placeholders_must_match_the_grids(ids, grids, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(ids, grids, **IDS)
