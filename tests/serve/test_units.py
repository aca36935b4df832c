"""Parts of the server that need no server: text from tokens, options, reading a request."""

import json
from importlib import resources

import numpy as np
import pytest

from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import UserError
from vlaa_jax.serve.cli import read_settings
from vlaa_jax.serve.errors import Refusal
from vlaa_jax.serve.request import NEUTRAL, read_request
from vlaa_jax.serve.text import Vocabulary, Writer
from vlaa_jax.settings.serve import ServerSettings

TURNS = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def chat():
    return Chat.from_dir(str(resources.files("vlaa_jax") / "assets" / "tiny"))


def test_text_in_pieces_is_the_text_of_the_whole(chat):
    """Tokens at random, most of which are parts of characters."""
    vocabulary, rng = Vocabulary(chat), np.random.default_rng(0)
    usable = [i for i in range(chat.vocab_size) if i not in chat.structural_ids]
    for _ in range(300):
        ids = rng.choice(usable, rng.integers(1, 40)).tolist()
        writer, said = Writer(vocabulary), ""
        for start in range(0, len(ids), 3):
            said += writer.add(ids[start : start + 3])[0]
        assert said + writer.end() == chat.decode(ids)


@pytest.mark.parametrize("text", ["héllo wörld", "数字 42 🙂 done", "a\n\n  b\t<think> c </think>"])
def test_characters_come_whole(chat, text):
    writer, pieces = Writer(Vocabulary(chat)), []
    for token in chat.encode(text).tolist():
        pieces.append(writer.add([token])[0])
    assert "".join(pieces) + writer.end() == text
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("stops", "want"),
    [
        (["lo w"], "hel"),
        (["world", "o w"], "hell"),
        (["o", "hello"], ""),
        (["worlds", "ld!"], "hello world"),
        (["aab"], "hello world"),
        (["ld"], "hello wor"),
    ],
)
def test_stop_texts(chat, stops, want):
    ids = chat.encode("hello world").tolist()
    for size in (1, 2, 50):
        writer, said, counted = Writer(Vocabulary(chat), stops), "", 0
        for start in range(0, len(ids), size):
            if not writer.stopped:
                text, count = writer.add(ids[start : start + size])
                said, counted = said + text, counted + count
        said += "" if writer.stopped else writer.end()
        assert said == want
        assert writer.stopped == (want != "hello world")
        assert writer.stopped or counted == len(ids)


def request(**fields):
    return json.dumps({"model": "m", "messages": TURNS, **fields}).encode()


def test_null_means_not_given():
    nulls = dict.fromkeys(("temperature", "stop", "seed", "top_logprobs", "logit_bias", "user"))
    read, unread = read_request(request(**nulls))
    assert (read.temperature, read.stops, read.seed, unread) == (1.0, (), None, [])


def test_a_null_that_nobody_knows_is_named():
    turns = [
        {**TURNS[0], "weight": None, "content": [{"type": "text", "text": "x", "cache": None}]}
    ]
    _, unread = read_request(request(messages=turns, foo=None, user="me"))
    assert set(unread) == {"foo", "messages[0].weight", "messages[0].content[0].cache", "user"}


def test_a_turn_may_hold_what_replies_hold_besides_their_text():
    besides = {"refusal": None, "annotations": [], "audio": None, "tool_calls": []}
    turns = [*TURNS, {"role": "assistant", "content": "x", **besides}, *TURNS]
    read, unread = read_request(request(messages=turns))
    assert (read.messages[1].content, unread) == ("x", [])
    turns[1]["tool_calls"] = [{"id": "1"}]
    with pytest.raises(Refusal, match=r"^messages\[1\]\.tool_calls: .* is not supported"):
        read_request(request(messages=turns))


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_field_that_is_not_supported_may_have_the_value_that_changes_nothing(name):
    read_request(request(**{name: NEUTRAL[name][0]}))
    with pytest.raises(Refusal, match=f"^{name}: .* is not supported"):
        read_request(request(**{name: "something else"}))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b'"' + b"x" * 50, "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 80 + b"1" + b"}" * 80, "nested too deeply"),
        (b'{"model": "m", "model": "n"}', "comes twice"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "^the body: holds an integer of"),
        (b'{"temperature": NaN}', "not a finite number"),
        (request(temperature="hot"), "temperature: .*valid number"),
        (request(n=True), "n: .*valid integer"),
        (request(n=1.5), "n: .*valid integer"),
        (request(seed=2**63), "seed: .*less than"),
        (request(top_k=2**31), "top_k: .*less than"),
        (request(stop_token_ids=[2**31]), r"stop_token_ids\[0\]: .*less than"),
        (request(stop_token_ids=[-1]), r"stop_token_ids\[0\]: .*greater than"),
        (request(temperature=1e-30), "temperature: 1e-30 is too small; 0 is greedy"),
        (request(top_p=1e-300), "top_p: .*greater than or equal to 0.000001"),
        (request(messages=TURNS * 1001), "messages: .*at most 1000"),
        (request(**{"\ud800": 1}), r"\\ud800: unknown field"),
        (request(stop=[""]), "stop: give texts"),
        (request(stop=["a"] * 17), "stop: .*at most 16"),
        (request(max_tokens=3, max_completion_tokens=4), "^max_tokens: is not max_completion"),
        (request(messages=[{"role": "tool", "content": "x"}]), r"messages\[0\]\.role: "),
        (request(messages=[{"role": "user", "content": [{"type": "audio"}]}]), r"content\[0\]"),
        (request(messages=[{"role": "user", "content": None}]), r"messages\[0\]\.content: "),
        (request(messages=[{"role": "assistant", "content": "x"}]), "last turn must be the user"),
        (request(messages=[*TURNS, {"role": "system", "content": "x"}, *TURNS]), "only come first"),
        (request(messages=[{**TURNS[0], "weight": 1}]), r"messages\[0\]\.weight: unknown field"),
        (request(stream_options={"include_usage": True}), "for streams alone"),
        (request(**{"\x1b[31m": 1}), r"\\x1b\[31m: unknown field"),
    ],
)
def test_bad_requests_are_refused_in_one_line(body, said):
    with pytest.raises(Refusal, match=said) as caught:
        read_request(body)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    json.dumps(caught.value.body(), ensure_ascii=False).encode()


def test_options_are_the_settings():
    settings = read_settings(
        [
            *("some/where", "--slots=8", "--model.dtype=float32", "--mesh.tensor=2"),
            *("--image_domains=a.org, b.org:8080", "--max_body_mb", "2.5"),
        ]
    )
    assert settings.server.slots == 8
    assert settings.server.image_domains == ("a.org", "b.org:8080")
    assert settings.server.max_body_mb == 2.5
    assert (settings.model.checkpoint, settings.model.dtype) == ("some/where", "float32")
    assert settings.mesh.tensor == 2


def test_help_says_what_each_setting_is(capsys):
    with pytest.raises(SystemExit):
        read_settings(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Tokens decoded between two looks for new requests" in said
    assert "--model.dtype" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"slots": 0}, "slots: 0 is too small"),
        ({"image_domains": ("http://a.org",)}, "image_domains: 'http://a.org' is no host"),
        ({"key_env": "sk-12"}, "key_env: give the name"),
        ({"min_pixels": 9, "max_pixels": 4}, "min_pixels: is above max_pixels"),
    ],
)
def test_bad_settings_are_named(values, said):
    with pytest.raises(UserError, match=said):
        ServerSettings(**values)


def test_who_is_local():
    hosts = ("127.0.0.1", "localhost", "::1", "127.9.9.9", "0.0.0.0", "example.org", "::")
    assert [ServerSettings(host=host).is_local for host in hosts] == [True] * 4 + [False] * 3
