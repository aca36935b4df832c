"""Lengths from sizes alone: those of encoding."""

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.samples.preprocessor import Preprocessor, Unfit
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import Record, UserError

SIZES = [(150, 97), (60, 300)]
PROCESSOR = ImageProcessor()
RECORD = Record("r1", "How many cubes?", ("a.png", "b.png"), answer="<answer> 2 </answer>")


@pytest.mark.parametrize("with_answer", [False, True])
def test_lengths_are_those_of_encoding(chat, with_answer):
    images = [Image.new("RGB", size) for size in SIZES]
    encoded = Preprocessor(chat, PROCESSOR).encode(RECORD, images, with_answer=with_answer)
    found = Preprocessor(chat, PROCESSOR).measure(RECORD, SIZES, with_answer=with_answer)
    assert (found.tokens, found.grids) == (encoded.length, encoded.grids)
    assert found.image_tokens == np.count_nonzero(encoded.ids_T == chat.image_token_id)
    assert found.answer_tokens == encoded.loss_mask_T.sum()
    assert found.patches == sum(len(patches) for patches in encoded.patches)


def test_a_tokenizer_that_joins_image_tokens_is_noticed(make_tokenizer, tmp_path):
    make_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens([AddedToken("<|image_pad|>" * 2, special=True)])
    tokenizer.save(path)
    with pytest.raises(UserError, match=r"does not keep one <\|image_pad\|> from the next"):
        Chat.from_dir(tmp_path)


def test_a_template_that_marks_an_image_twice_is_noticed(make_tokenizer, tmp_path):
    from tests.data.conftest import TEMPLATE

    twice = TEMPLATE.replace("<|image_pad|>", "<|image_pad|><|image_pad|>")
    chat = Chat.from_dir(make_tokenizer(tmp_path, twice))
    with pytest.raises(Unfit, match="4 image placeholders for 2 images") as bad:
        Preprocessor(chat, PROCESSOR).measure(RECORD, SIZES)
    assert bad.value.field == "image"


def test_the_longest_part_is_to_blame(chat):
    found = Preprocessor(chat, PROCESSOR).measure(RECORD, SIZES, with_answer=True)
    assert found.over(found.tokens) is None
    field, reason = found.over(found.tokens - 1)
    assert field == "image" and f"over the limit of {found.tokens - 1}" in reason


def test_a_system_prompt_with_a_special_token_is_refused(chat):
    with pytest.raises(UserError, match="the system prompt contains the special token"):
        Preprocessor(chat, PROCESSOR, "<|im_end|>")
