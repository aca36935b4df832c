import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_keys import (
    Layout,
    Transform,
    canonical,
    detect_layout,
    flatten,
    hf_shapes,
    key_table,
    match_tensors,
    nest,
    param_shapes,
    rename,
)
from vlaa_jax.models.qwen_vl.model import split_model
from vlaa_jax.schema import UserError

# Total, tensors in the file, vision, merger, decoder with embeddings, head. Totals of 3B, 7B, 32B
# and the three Qwen2-VL are those of the public index files; the rest follows from the classes.
COUNTS = {
    "Qwen2.5-VL-3B": (3_754_622_976, 824, 668_684_288, 36_708_608, 3_085_938_688, 0),
    "Qwen2.5-VL-7B": (8_292_166_656, 729, 676_550_144, 44_574_464, 7_070_619_136, 544_997_376),
    "Qwen2.5-VL-32B": (33_452_718_336, 1161, 688_841_984, 52_440_320, 31_985_308_672, 778_567_680),
    "Qwen2.5-VL-72B": (73_410_777_344, 1353, 704_573_696, 68_172_032, 71_460_495_360,
                       1_245_708_288),
    "Qwen2-VL-2B": (2_208_985_600, 729, 665_271_296, 34_087_936, 1_543_714_304, 0),
    "Qwen2-VL-7B": (8_291_375_616, 730, 675_759_104, 44_575_744, 7_070_619_136, 544_997_376),
    "Qwen2-VL-72B": (73_405_560_320, 1354, 699_356_672, 68_173_312, 71_460_495_360,
                     1_245_708_288),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_totals_and_tensor_counts(name):
    config = QwenVLConfig.RELEASED[name]
    model = {path: leaf.shape for path, leaf in flatten(split_model(config)[1])}
    assert model == {path: tuple(shape) for path, shape in flatten(param_shapes(config))}
    sizes = {path: int(np.prod(shape)) for path, shape in model.items()}

    def part(*prefix):
        return sum(n for path, n in sizes.items() if path[: len(prefix)] == prefix)

    counts = (
        part(),
        len(hf_shapes(config)),
        part("vision"),
        part("vision", "merger"),
        part("text"),
        part("lm_head"),
    )
    assert counts == COUNTS[name]


def test_shapes_of_the_3b_tree():
    shapes = param_shapes(QwenVLConfig.RELEASED["Qwen2.5-VL-3B"])
    assert "lm_head" not in shapes
    assert shapes["text"]["embed_tokens"]["embedding"] == (151936, 2048)
    assert shapes["text"]["layers"]["self_attn"]["k_proj"] == {
        "kernel": (36, 2048, 256),
        "bias": (36, 256),
    }
    assert shapes["text"]["layers"]["mlp"]["down_proj"] == {"kernel": (36, 11008, 2048)}
    assert shapes["vision"]["patch_embed"]["kernel"] == (1176, 1280)
    assert shapes["vision"]["blocks"]["attn"]["qkv"]["kernel"] == (32, 1280, 3840)
    assert shapes["vision"]["merger"]["mlp_2"] == {"kernel": (5120, 2048), "bias": (2048,)}
    assert set(shapes["vision"]["blocks"]["norm1"]) == {"scale"}


def test_names_of_the_three_layouts():
    names = ("visual.blocks.0.norm1.weight", "model.layers.3.mlp.up_proj.weight", "lm_head.weight")
    assert [rename(n, Layout.OLD) for n in names] == list(names)
    assert [rename(n, Layout.NEW) for n in names] == [
        "model.visual.blocks.0.norm1.weight",
        "model.language_model.layers.3.mlp.up_proj.weight",
        "lm_head.weight",
    ]
    assert [rename(n, Layout.MIXED) for n in names] == [
        "model.visual.blocks.0.norm1.weight",
        "model.layers.3.mlp.up_proj.weight",
        "lm_head.weight",
    ]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", ["Qwen2-VL-2B", "Qwen2.5-VL-7B"])
def test_every_name_has_an_inverse_in_every_layout(name, layout):
    config = QwenVLConfig.RELEASED[name]
    old = list(hf_shapes(config))
    renamed = [rename(n, layout) for n in old]
    assert [canonical(n) for n in renamed] == old
    assert detect_layout(renamed) is layout
    assert len(match_tensors(config, hf_shapes(config, layout), "x")) == len(old)


@given(
    transform=st.sampled_from(Transform),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple),
)
def test_transforms_invert(transform, shape):
    if transform is Transform.TRANSPOSE:
        shape = shape[:2]
    theirs = np.arange(np.prod(shape)).reshape(shape)
    ours = transform.to_ours(theirs)
    assert ours.shape == transform.our_shape(shape)
    np.testing.assert_array_equal(transform.to_theirs(ours, shape), theirs)


def test_conv_is_the_product_on_flattened_patches():
    rng = np.random.default_rng(0)
    weight, patch = rng.normal(size=(4, 3, 2, 5, 5)), rng.normal(size=(3, 2, 5, 5))
    by_hand = [(weight[out] * patch).sum() for out in range(4)]
    np.testing.assert_allclose(patch.reshape(-1) @ Transform.CONV.to_ours(weight), by_hand)


def test_nest_and_flatten_invert():
    flat = {("a", "b"): 1, ("a", "c", "d"): 2, ("e",): 3}
    assert nest(flat) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert dict(flatten(nest(flat))) == flat


def test_table_paths_are_unique():
    for config in QwenVLConfig.RELEASED.values():
        paths = [key.path for key in key_table(config)]
        assert len(set(paths)) == len(paths)


def test_every_misfit_is_listed_at_once():
    config = QwenVLConfig.RELEASED["Qwen2-VL-2B"]
    found = hf_shapes(config, Layout.NEW)
    lost = ["model.visual.blocks.7.attn.qkv.bias", "model.language_model.norm.weight"]
    for name in lost:
        del found[name]
    found["model.language_model.layers.0.mlp.up_proj.weight"] = (1, 2)
    found["model.visual.extra"] = (3,)
    found["model.embed_tokens.weight"] = (151936, 1536)
    with pytest.raises(UserError) as caught:
        match_tensors(config, found, "some/dir")
    text = str(caught.value)
    assert text.startswith("some/dir: 5 tensors do not fit its config.json")
    assert "missing: model.visual.blocks.7.attn.qkv.bias [3840]" in text
    assert "missing: model.language_model.norm.weight [1536]" in text
    assert "model.language_model.layers.0.mlp.up_proj.weight is [1, 2], not [8960, 1536]" in text
    assert "unexpected: model.visual.extra [3]" in text
    assert "model.language_model.embed_tokens.weight and model.embed_tokens.weight" in text


def test_a_tied_model_may_carry_its_head_and_an_untied_must():
    tied = QwenVLConfig.RELEASED["Qwen2-VL-2B"]
    head = {"lm_head.weight": (151936, 1536)}
    assert "lm_head.weight" not in match_tensors(tied, hf_shapes(tied) | head, "x")
    untied = dataclasses.replace(tied, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"missing: lm_head\.weight \[151936, 1536\]"):
        match_tensors(untied, hf_shapes(tied), "x")
