"""Chat encoding against transformers' own template and tokenizer calls."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import UserError


@pytest.fixture(scope="module")
def hf(tokenizer_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir, local_files_only=True)


def test_golden_prompt(chat):
    """The published string for one image and no system message."""
    assert chat.render("Describe this image.", n_images=1) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Describe this image.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_images_come_first_and_the_system_prompt_replaces_the_default(chat):
    text = chat.render("Compare.", n_images=2, system_prompt="Think first.")
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == (
        "<|im_start|>system\nThink first.<|im_end|>\n"
        f"<|im_start|>user\n{image}{image}Compare.<|im_end|>\n<|im_start|>assistant\n"
    )


plain = st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda s: "<|" not in s)


def prompt_ids(chat, *asked):
    return chat.encode(chat.render(*asked))


def answer_ids(chat, question, answer, n_images=0):
    return chat.answer_ids(chat.render(question, n_images), answer, question, n_images)


@settings(max_examples=80, deadline=None)
@given(plain, plain, st.integers(0, 3))
@example("\n\n leading", "  ", 0)
@example("e\u0301 \U0001f914 42%", "", 1)
def test_prompt_ids_equal_transformers(chat, hf, question, system, n_images):
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    expected = hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = prompt_ids(chat, question, n_images, system)
    assert ids.dtype == np.int32
    assert ids.tolist() == expected


@settings(max_examples=80, deadline=None)
@given(plain, plain)
@example("q", "<think> a </think>\n\n<answer> 2 </answer>")
def test_answer_continues_the_prompt(chat, hf, question, answer):
    prompt, tail = prompt_ids(chat, question, 1), answer_ids(chat, question, answer, 1)
    assert tail[-1] == chat.end_of_turn_id
    assert np.count_nonzero(tail == chat.end_of_turn_id) == 1
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": answer},
    ]
    text = hf.apply_chat_template(messages, tokenize=False)
    ours = chat.decode(np.concatenate([prompt, tail]), skip_special_tokens=False)
    assert ours == unicodedata.normalize("NFC", text.removesuffix("\n"))
    if not answer[:1].isspace():  # else the newline before it may merge with it in one call
        whole = hf.apply_chat_template(messages, return_dict=False)
        assert [*prompt, *tail] == whole[: len(prompt) + len(tail)]


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|video_pad|>"])
def test_special_tokens_in_data_are_refused(chat, token):
    for call in (
        lambda: chat.check_text(f"what is {token} for?", "question"),
        lambda: answer_ids(chat, "q", f"a{token}", 1),
    ):
        with pytest.raises(UserError, match=r"(question|prompt|answer) contains the special token"):
            call()


def test_half_a_special_token_is_only_text(chat):
    ids = prompt_ids(chat, "a <|image_pad| > b <image> <|im_end", 1)
    assert np.count_nonzero(ids == chat.image_token_id) == 1


def test_broken_unicode_is_refused(chat):
    with pytest.raises(UserError, match="not valid Unicode"):
        chat.check_text("half a pair: \ud83e", "question")


def test_ids_and_decoding(chat, hf):
    assert chat.stop_ids == (
        hf.convert_tokens_to_ids("<|im_end|>"),
        hf.convert_tokens_to_ids("<|endoftext|>"),
    )
    assert chat.pad_id == hf.pad_token_id
    ids = answer_ids(chat, "q", "<answer> 42 </answer>")
    assert chat.decode(ids) == "<answer> 42 </answer>"
    assert chat.decode_batch([ids, ids[:0]]) == ["<answer> 42 </answer>", ""]


def test_limits_left_in_tokenizer_json_do_not_cut(make_tokenizer, tmp_path):
    """A tokenizer.json saved with truncation or padding would shorten prompts in silence."""
    from tokenizers import Tokenizer

    directory = make_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(directory / "tokenizer.json"))
    loaded = Chat.from_dir(directory)
    assert len(loaded.encode("word " * 50)) >= 50
    assert len(loaded.encode("a")) == 1


def test_template_may_stand_in_a_file_of_its_own(make_tokenizer, tmp_path, chat, tokenizer_dir):
    template = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())["chat_template"]
    directory = make_tokenizer(tmp_path, template=None)
    with pytest.raises(UserError, match="no chat template"):
        Chat.from_dir(directory)
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Chat.from_dir(directory).render("q", 1) == chat.render("q", 1)
    (directory / "chat_template.json").unlink()
    (directory / "chat_template.jinja").write_text(template)
    assert Chat.from_dir(directory).render("q", 1) == chat.render("q", 1)


def test_unusable_directories_are_refused_in_words(make_tokenizer, tmp_path):
    with pytest.raises(UserError, match="no such tokenizer directory"):
        Chat.from_dir(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        Chat.from_dir(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    directory = make_tokenizer(tmp_path / "other")
    (directory / "config.json").write_text(json.dumps({"image_token_id": 5}))
    with pytest.raises(UserError, match=r"config\.json says image_token_id 5"):
        Chat.from_dir(directory)


def test_templates_that_rewrite_the_answer_are_refused(make_tokenizer, tmp_path, tokenizer_dir):
    template = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())["chat_template"]
    trimmed = template.replace("{{- message.content -}}", "{{- message.content | trim -}}")
    assert trimmed != template
    directory = make_tokenizer(tmp_path, template=trimmed)
    with pytest.raises(UserError, match="does not continue the prompt"):
        answer_ids(Chat.from_dir(directory), "q", "  answer  ")


def test_remote_code_is_never_run(make_tokenizer, tmp_path):
    directory = make_tokenizer(
        tmp_path,
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
    )
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        Chat.from_dir(directory)
    assert not (tmp_path / "ran").exists()
