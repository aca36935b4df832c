"""The embedded checkpoint's sidecars, read by transformers as any user would."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from converters.tiny_tokenizer import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    tiny_config,
    train_tokenizer,
    write_sidecars,
)
from vlaa_jax.data.synthetic.dataset import samples
from vlaa_jax.schema import UserError

SYSTEM = "You are VL-Thinking🤔, a helpful assistant. <think> here </think> <answer> 1 </answer>"


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("hf")
    ids = write_sidecars(out, system_prompt=SYSTEM)
    (out / "config.json").write_text(json.dumps(tiny_config(ids)))
    return out


@pytest.fixture(scope="module")
def tokenizer(hf_dir):
    return AutoTokenizer.from_pretrained(hf_dir)


def test_files_are_those_of_the_hub(hf_dir):
    assert {p.name for p in hf_dir.iterdir()} == {
        "config.json",
        "chat_template.json",
        "generation_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }


def test_added_tokens_have_consecutive_ids_behind_the_vocabulary(tokenizer):
    first = tokenizer.vocab_size
    assert 500 <= first <= 618
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS + ADDED_TOKENS))
    assert ids == list(range(first, first + 22)) and len(tokenizer) == first + 22
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert set(tokenizer.all_special_ids) >= set(ids[:14])
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(ADDED_TOKENS)


def test_tags_and_digits(tokenizer):
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        ids = tokenizer.encode(tag)
        assert len(ids) <= 4 and not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag
    assert tokenizer.tokenize("0123456789") == list("0123456789")


def test_embedded_texts_are_short_and_come_back(tokenizer):
    for sample in samples("heldout", 100, 0):
        for text in (sample.question, sample.target):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert len(ids) <= 60


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=50))
def test_any_text_comes_back(text):
    import unicodedata

    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode())
    tokenizer = _cached()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def _cached(store=[]):  # noqa: B006
    if not store:
        store.append(train_tokenizer(300))
    return store[0]


def test_transformers_and_tokenizers_agree(hf_dir, tokenizer):
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(hf_dir / "tokenizer.json"))
    for text in (SYSTEM, "Ünïcode\r\n\n  x's  12 <|im_start|>user\n<tool_call>", "a\u0301 é 🤔"):
        assert raw.encode(text).ids == tokenizer.encode(text)


def test_chat_template_is_that_of_qwen(hf_dir, tokenizer):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]}
    text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Describe.<|im_end|>\n<|im_start|>assistant\n"
    )
    messages = [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "video"}, {"type": "image"}],
        },
        {"role": "assistant", "content": "A"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_vision_id=True)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n"
        "Picture 1: <|vision_start|><|image_pad|><|vision_end|>"
        "Video 1: <|vision_start|><|video_pad|><|vision_end|>"
        "Picture 2: <|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n"
    )
    template = json.loads((hf_dir / "chat_template.json").read_text())["chat_template"]
    assert template == tokenizer.chat_template


def test_transformers_reads_the_configuration(hf_dir, tokenizer):
    config = AutoConfig.from_pretrained(hf_dir)
    assert config.model_type == "qwen2_5_vl"
    text = config.get_text_config()
    assert (
        text.hidden_size == 128 and text.vocab_size % 64 == 0 and text.vocab_size >= len(tokenizer)
    )
    assert config.vision_config.fullatt_block_indexes == [1, 3]
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert text.vocab_size - len(tokenizer) < 64


def test_same_bytes_in_another_process(hf_dir, tmp_path):
    script = (
        "from converters.tiny_tokenizer import write_sidecars;"
        f"write_sidecars({str(tmp_path)!r}, system_prompt={SYSTEM!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=".")
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (hf_dir / path.name).read_bytes(), path.name


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="256"):
        train_tokenizer(100)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_sidecars(tmp_path / "file" / "x")
