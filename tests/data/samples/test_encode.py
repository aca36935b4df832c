"""Whole samples: equal to transformers' processor, masks on the answer only, refusals by name."""

import numpy as np
import pytest
from PIL import Image

from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.schema import Record, UserError

SIZES = [(150, 97), (60, 300)]
PROCESSOR = ImageProcessor()


def record(**fields):
    base = {"id": "r1", "question": "How many cubes?", "images": ("a.png", "b.png")}
    return Record(**{**base, "answer": "<think> t </think>\n<answer> 2 </answer>", **fields})


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.fixture(scope="module")
def hf_processor(tokenizer_dir):
    """Qwen2.5-VL's processor without its video half, which needs torchvision."""
    from transformers import AutoTokenizer
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )
    from transformers.processing_utils import ProcessorMixin

    class ImagesOnly(Qwen2_5_VLProcessor):
        def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        @property
        def model_input_names(self):
            return ["input_ids", "attention_mask", "pixel_values", "image_grid_thw"]

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True)
    return ImagesOnly(Qwen2VLImageProcessorPil(), tokenizer)


def test_prompt_equals_transformers_processor(chat, images, hf_processor):
    ours = Preprocessor(chat, PROCESSOR).encode(record(), images)
    text = chat.render("How many cubes?", n_images=2)
    theirs = hf_processor(text=[text], images=images, return_tensors="np")
    assert ours.ids_T.tolist() == theirs["input_ids"][0].tolist()
    patches = PROCESSOR.normalize(np.concatenate(ours.patches))
    np.testing.assert_array_equal(patches, theirs["pixel_values"])
    assert list(ours.grids) == [tuple(g) for g in theirs["image_grid_thw"].tolist()]
    assert ours.n_image_tokens == np.count_nonzero(ours.ids_T == chat.image_token_id)
    np.testing.assert_array_equal(ours.image_mask_T, ours.ids_T == chat.image_token_id)
    assert not ours.loss_mask_T.any()
    assert ours.length == len(ours.ids_T) == len(ours.positions_T3)


def test_sft_is_the_prompt_and_a_masked_answer(chat, images):
    prompt = Preprocessor(chat, PROCESSOR).encode(record(), images)
    sft = Preprocessor(chat, PROCESSOR).encode(record(), images, with_answer=True)
    n = prompt.length
    np.testing.assert_array_equal(sft.ids_T[:n], prompt.ids_T)
    np.testing.assert_array_equal(sft.positions_T3[:n], prompt.positions_T3)
    assert not sft.loss_mask_T[:n].any() and sft.loss_mask_T[n:].all()
    assert chat.decode(sft.ids_T[sft.loss_mask_T]) == record().answer
    assert sft.ids_T[-1] == chat.end_of_turn_id
    assert sft.rope_delta == prompt.rope_delta, "an answer of text keeps the offset"


def test_rope_delta_is_the_offset_of_the_next_token(chat, images):
    prompt = Preprocessor(chat, PROCESSOR).encode(record(), images)
    sft = Preprocessor(chat, PROCESSOR).encode(record(), images, with_answer=True)
    expected = np.arange(prompt.length, sft.length) + prompt.rope_delta
    np.testing.assert_array_equal(sft.positions_T3[prompt.length :], expected[:, None] + [0] * 3)


def test_text_only(chat):
    sample = Preprocessor(chat, PROCESSOR).encode(record(images=()), [])
    assert sample.patches == () and sample.grids == () and sample.rope_delta == 0


@pytest.mark.parametrize(
    ("fields", "count", "message"),
    [
        ({"question": "see <|image_pad|>"}, 2, "record 'r1': the text contains the special token"),
        ({"answer": "x<|im_end|>"}, 2, "record 'r1': answer contains the special token"),
        ({"answer": None}, 2, "record 'r1': no answer to learn from"),
        ({}, 1, "record 'r1': names 2 images, 1 were given"),
    ],
)
def test_refusals_name_the_record(chat, images, fields, count, message):
    with pytest.raises(UserError, match=message):
        Preprocessor(chat, PROCESSOR).encode(record(**fields), images[:count], with_answer=True)


def test_narrow_images_are_refused_by_name(chat):
    narrow = Image.new("RGB", (1, 300))
    with pytest.raises(UserError, match=r"record 'r1': image 'a\.png': .*1x300.*too narrow"):
        Preprocessor(chat, PROCESSOR).encode(record(images=("a.png",)), [narrow])


def test_over_long_samples_are_refused_not_cut(chat, images):
    n = Preprocessor(chat, PROCESSOR).encode(record(), images).length
    assert Preprocessor(chat, PROCESSOR).encode(record(), images, max_tokens=n).length == n
    message = rf"record 'r1': {n} tokens \(37 of images\) are over the limit of {n - 1}"
    with pytest.raises(UserError, match=message):
        Preprocessor(chat, PROCESSOR).encode(record(), images, max_tokens=n - 1)
