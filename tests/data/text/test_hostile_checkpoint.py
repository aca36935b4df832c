"""Tokenizer directories and processor files made to break the reader: one line each, in time."""

import json
import shutil
import time

import pytest

from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import UserError

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
PRINTS = "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"
DOUBLES = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"  # noqa: E501
TOO_LONG = r"(more than 2 s of processor time|it does not end)"  # on a busy machine the wall clock
FORKS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOP, TOO_LONG),
        (FORKS, TOO_LONG),
        (PRINTS, "writes more than 1,048,576 characters"),
        (DOUBLES, "more than 1 GiB"),
        ("{{ 'x' * 10**10 }}", "more than 1 GiB"),
        ("{{ 'x'.ljust(10**10) }}", "more than 1 GiB"),
        ("{% generation %}" + LOOP + "{% endgeneration %}", TOO_LONG),
    ],
)
def test_a_template_without_end_is_refused_while_loading(
    make_tokenizer, tmp_path, template, message
):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"the chat template cannot be used: .*{message}"):
        Chat.from_dir(make_tokenizer(tmp_path, template=template))
    assert time.monotonic() - start < 15.0  # 2 s of processor time on a busy machine


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no\\n\x1b[2J') }}",
        "{{ messages[7].content }}",
        "{% if %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_says_so_in_one_line(make_tokenizer, tmp_path, template):
    with pytest.raises(UserError, match="the chat template failed") as caught:
        Chat.from_dir(make_tokenizer(tmp_path, template=template)).prompt_ids("How many?", 1)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_template_that_grows_with_the_question_is_stopped(make_tokenizer, tmp_path):
    template = "{% for m in messages %}{{ m.content[-1].text * 9999 }}{% endfor %}"
    chat = Chat.from_dir(make_tokenizer(tmp_path, template=template))
    with pytest.raises(UserError, match=r"the chat template writes [\d,]+ characters"):
        chat.render("How many?" * 100)


@pytest.fixture
def directory(tokenizer_dir, tmp_path):
    return shutil.copytree(tokenizer_dir, tmp_path / "hf")


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "is not a JSON object"),
        ('{"a": 1e999}', "too large"),
        (" " * (5 << 20), "larger than"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-lfs pointer"),
    ],
)
def test_a_hostile_sidecar_is_refused_by_its_file(directory, name, text, message):
    (directory / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} .*{message}"):
        Chat.from_dir(directory)


def test_a_sidecar_that_is_a_link_to_nothing_is_an_error(directory):
    (directory / "special_tokens_map.json").symlink_to("gone")
    with pytest.raises(UserError, match=r"special_tokens_map\.json is a link to gone"):
        Chat.from_dir(directory)


@pytest.mark.parametrize(
    "damage", [lambda t: t[: len(t) // 2], lambda t: "{}", lambda t: "[" * 500]
)
def test_a_broken_tokenizer_is_one_line(directory, damage):
    file = directory / "tokenizer.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=r"cannot load the tokenizer|no token") as caught:
        Chat.from_dir(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_size": 0}, "patch_size must be a whole number from 1 to 128, not 0"),
        ({"patch_size": "14"}, "patch_size must be a whole number from 1 to 128, not '14'"),
        ({"merge_size": 10**6}, "merge_size must be"),
        ({"merge_size": 2.5}, "merge_size must be"),
        ({"temporal_patch_size": -1}, "temporal_patch_size must be"),
        ({"max_pixels": "100352"}, "max_pixels must be a whole number"),
        ({"max_pixels": 2**60}, "max_pixels must be a whole number"),
        ({"min_pixels": True}, "min_pixels must be a whole number"),
        ({"image_std": [1e-300] * 3}, "image_std must be numbers from 0.0001"),
        ({"image_std": [0, 1, 1]}, "image_std must be numbers"),
        ({"image_mean": [0.5] * 4}, "image_mean must be three numbers"),
        ({"image_mean": "0.5"}, "image_mean must be numbers"),
        ({"image_mean": []}, "image_mean must be three numbers"),
        ({"rescale_factor": [1]}, "rescale_factor must be one number"),
        ({"rescale_factor": 0}, "rescale_factor must be numbers"),
        ({"resample": 9}, "resample must be"),
        ({"do_normalize": "false"}, 'do_normalize="false" is not supported'),
        ({"size": 224}, "size is 224; it must hold shortest_edge and longest_edge"),
        ({"size": {"height": 224, "width": 224}}, "it must hold shortest_edge"),
        ({"size": {"longest_edge": 1000, "max_pixels": 2000}}, "two values for longest_edge and"),
        ({"size": {"longest_edge": [1000]}}, "max_pixels must be a whole number"),
    ],
)
def test_a_processor_field_that_makes_no_sense_is_named(tmp_path, config, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        ImageProcessor.from_dir(tmp_path)
    said = str(caught.value)
    assert message in said and said.startswith(f"{tmp_path}/preprocessor_config.json: ")


@pytest.mark.parametrize(
    "text", ['{"image_mean": [NaN, 1, 1]}', '{"max_pixels": 1, "max_pixels": 2}']
)
def test_a_processor_file_that_is_no_strict_json_is_refused(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        ImageProcessor.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("size", "limits"),
    [
        ({"min_pixels": 3136, "max_pixels": 100_352}, (3136, 100_352)),
        ({"max_pixels": 100_352}, (3136, 100_352)),
        ({"shortest_edge": 6272, "max_pixels": 100_352.0}, (6272, 100_352)),
        ({}, (3136, 1_003_520)),
    ],
)
def test_a_size_in_the_spelling_of_older_versions_is_followed(tmp_path, size, limits):
    """transformers 5.23 refuses these at the first image; below 4.49 it wrote them."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    processor = ImageProcessor.from_dir(tmp_path)
    assert (processor.min_pixels, processor.max_pixels) == limits


def test_a_processor_file_that_is_a_link_to_nothing_is_an_error(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "processor_config.json").symlink_to("gone")
    with pytest.raises(UserError, match=r"processor_config\.json is a link to gone"):
        ImageProcessor.from_dir(tmp_path)
