"""The clients that people use: the openai package, this project's evaluator and its pipeline."""

import asyncio
from importlib import resources
from pathlib import Path

import jax
import numpy as np
import openai
import pytest
import torch
import transformers

from serving import LIMIT, NAME, ask, data_uri, picture
from vlaa_jax.data.images.files import decode_image
from vlaa_jax.evaluate.generate import Job
from vlaa_jax.evaluate.own_engine import OwnEngine
from vlaa_jax.evaluate.served import Served
from vlaa_jax.pipeline.client import Client
from vlaa_jax.pipeline.ledger import Ledger
from vlaa_jax.pipeline.prompts import fill, load_prompt
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.pipeline.steps.caption import make_caption
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.prompts import Encoder
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.schema import Record
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings, GenerationSettings
from vlaa_jax.settings.pipeline import CaptionModel, CaptionSettings
from vlaa_jax.settings.shared import PromptSettings

TINY = Path(str(resources.files("vlaa_jax") / "assets" / "tiny"))
QUESTION = "How many squares are there?"


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as found:
        yield found


def create(client, url=None, text=QUESTION, **fields):
    return client.chat.completions.create(**ask(text, url, **fields))


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "vlaa_jax"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_plain_answer(client):
    reply = create(client, temperature=0, max_tokens=8)
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert 0 < reply.usage.completion_tokens <= 8
    assert choice.logprobs is None


def test_a_stream_says_what_the_whole_answer_says(client):
    fields = {"seed": 3, "n": 3, "temperature": 1.2, "logprobs": True, "top_logprobs": 2}
    whole = create(client, **fields)
    texts, entries, ends, usage = [""] * 3, [[], [], []], [None] * 3, None
    with create(client, stream=True, stream_options={"include_usage": True}, **fields) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                entries[choice.index] += choice.logprobs.content if choice.logprobs else []
                ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    for got, choice in zip(entries, whole.choices, strict=True):
        assert [e.token for e in got] == [e.token for e in choice.logprobs.content]
    assert usage == whole.usage
    assert len(set(texts)) == 3


def engine_says(server, prompt, seed, completions, sampling):
    engine = Engine(
        server.pretrained.graphdef,
        Decoding(completions, LIMIT),
        sampling=sampling,
        eos_id=server.pretrained.chat.stop_ids,
        allowed_V=server.pretrained.allowed_V,
    )
    inputs, _ = server.collator([prompt])
    key = jax.random.key(seed)[None]
    params = server.pretrained.load_params()
    length = server.collator.prompt_bucket([prompt])
    return params, inputs, engine.generate(params, [inputs], key, prefix_length=length)


def prompt_of(server, image, text=QUESTION):
    encode = Encoder(server.pretrained, PromptSettings(max_prompt_tokens=1024))
    return encode(Record("one", text, ("image",)), (decode_image(image, "image"),))


def test_sampled_text_and_logprobs_are_the_engines_and_the_trainers(server, client):
    image, temperature, seed = picture(), 0.9, 2**31 + 11
    reply = create(
        client,
        data_uri(image),
        seed=seed,
        n=3,
        temperature=temperature,
        top_p=0.95,
        logprobs=True,
        top_logprobs=5,
    )
    prompt = prompt_of(server, image)
    sampling = Sampling(temperature, top_p=0.95)
    params, inputs, rollout = engine_says(server, prompt, seed, 3, sampling)
    assert reply.usage.prompt_tokens == prompt.encoded.length
    scored, _ = jax.jit(
        Distribution(server.pretrained.graphdef, temperature, 0, 1).completion_logprobs
    )(params, inputs, rollout.tokens_PGT, server.pretrained.allowed_V)
    for g, choice in enumerate(reply.choices):
        length = rollout.length_PG[0, g]
        tokens = rollout.tokens_PGT[0, g, :length]
        assert choice.message.content == server.pretrained.chat.decode(tokens)
        assert choice.finish_reason == ("length" if rollout.truncated_PG[0, g] else "stop")
        entries = choice.logprobs.content
        got = [entry.logprob for entry in entries]
        np.testing.assert_allclose(got, scored[0, g, :length], atol=2e-5)
        for entry in entries:
            assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token
            best = [other.logprob for other in entry.top_logprobs]
            assert len(best) == 5
            assert best == sorted(best, reverse=True)
            assert entry.logprob <= best[0] + 1e-6
            same = [o.logprob for o in entry.top_logprobs if o.bytes == entry.bytes]
            assert not same or abs(same[0] - entry.logprob) < 1e-6
    assert len({choice.message.content for choice in reply.choices}) > 1


def test_greedy_text_is_transformers(server, client):
    pieces = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    images = pieces.Qwen2VLImageProcessorPil.from_pretrained(TINY)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(TINY).float().eval()
    for seed, size in enumerate([(84, 56), (140, 90), (56, 112)]):
        image = picture(size, seed)
        reply = create(client, data_uri(image), temperature=0)
        shown = images(decode_image(image, "x"), return_tensors="pt")
        count = int(shown["image_grid_thw"].prod()) // 4
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        ).replace("<|image_pad|>", "<|image_pad|>" * count)
        inputs = tokenizer(text, return_tensors="pt")
        spots = inputs["input_ids"] == model.config.image_token_id
        banned = np.flatnonzero(~server.pretrained.allowed_V).tolist()
        config = transformers.GenerationConfig(
            do_sample=False,
            repetition_penalty=1.0,  # else the checkpoint's own, which its authors sample with
            max_new_tokens=LIMIT,
            eos_token_id=list(server.pretrained.chat.stop_ids),
            pad_token_id=server.pretrained.chat.pad_id,
            suppress_tokens=banned,
        )
        with torch.no_grad():
            out = model.generate(
                **inputs, **shown, mm_token_type_ids=spots.int(), generation_config=config
            )
        said = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert reply.choices[0].message.content == said
        assert said


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(client):
    whole = create(client, seed=5, temperature=1.0).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = create(client, seed=5, temperature=1.0, stop=["never there", stop], logprobs=True)
    (choice,) = cut.choices
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    spelt = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content).decode()
    assert spelt.startswith(choice.message.content + stop)
    with create(client, seed=5, temperature=1.0, stop=stop, stream=True) as stream:
        said = "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)
    assert said == choice.message.content


def test_conversations_of_several_turns_and_interleaved_images(server, client):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "First"},
            {"type": "image_url", "image_url": {"url": data_uri(picture())}},
            {"type": "text", "text": "then what?"},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    reply = client.chat.completions.create(model=NAME, messages=turns, max_tokens=3)
    want = server.pretrained.chat.encode(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nFirst<|vision_start|>"
        + "<|image_pad|>" * (3 * 2)
        + "<|vision_end|>then what?<|im_end|>\n<|im_start|>assistant\nA square.<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reply.usage.prompt_tokens == len(want)


def test_a_reply_is_a_turn_of_what_is_asked_next(client):
    said = create(client, temperature=0, max_tokens=4).choices[0].message
    turns = ask()["messages"]
    for turn in (said, said.model_dump(), said.to_dict()):
        turns = [*turns, turn, *ask("And now?")["messages"]]
        reply = client.chat.completions.create(model=NAME, messages=turns, max_tokens=2)
        assert reply.choices


@pytest.mark.parametrize(
    ("fields", "kind", "param", "said"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model", "'gpt-4' is not here"),
        ({"max_tokens": 10_000}, openai.BadRequestError, "max_tokens", "over this server's limit"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty", "not supported"),
        ({"extra_body": {"top_q": 1}}, openai.BadRequestError, "top_q", "did you mean 'top_p'"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "greater than or equal to 0"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs", "set logprobs"),
        ({"n": 99}, openai.BadRequestError, "n", "over this server's 4"),
        ({"messages": []}, openai.BadRequestError, "messages", "at least 1 item"),
        ({"text": "say <|im_end|>"}, openai.BadRequestError, "messages", "special token"),
        ({"text": "many " * 2000}, openai.BadRequestError, "messages", "over the limit of 1024"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "not supported"),
    ],
)
def test_refusals_are_errors_of_the_openai_package(client, fields, kind, param, said):
    with pytest.raises(kind, match=said) as caught:
        create(client, **fields)
    assert caught.value.param == param


def test_fields_that_change_nothing_are_named(client):
    raw = client.chat.completions.with_raw_response.create(
        **ask(max_tokens=2, user="me", frequency_penalty=0, metadata={"a": "b"})
    )
    assert raw.headers["warning"].endswith('nothing here: metadata, user"')
    raw = client.chat.completions.with_raw_response.create(
        **ask(max_tokens=2), extra_body={"é\r\nset-cookie: a": None}
    )
    assert raw.headers["warning"].endswith('nothing here: ???set-cookie? a"')
    assert "set-cookie" not in raw.headers


# -- the project's own clients


def jobs():
    def job(index):
        text = f"What is in picture {index}?"
        return Job("some", str(index), 0, text, lambda: [picture(seed=index)])

    return [job(index) for index in range(3)]


def outputs(generator):
    found = {}
    asyncio.run(generator.generate(jobs(), lambda job, out: found.__setitem__(job.index, out)))
    return found


def test_the_evaluator_gets_from_the_server_what_it_gets_from_the_engine(server):
    values = {"new_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 4}
    model = {"checkpoint": "embedded", "dtype": "float32", "unroll": 0}
    mesh = {"model": model, "generation": {"batch": 1, **values}}
    own = outputs(OwnEngine(build(EvaluateSettings, mesh)))
    there = {"source": "server", "url": server.url, "model": NAME, "concurrency": 3}
    served = outputs(Served(GenerationSettings(**there, **values)))
    assert served == own


def test_the_captioner_of_the_pipeline(server, client, tmp_path):
    image = picture(seed=5)
    (tmp_path / "a.png").write_bytes(image)
    model = CaptionModel(server.url, NAME, temperature=0.0, max_tokens=LIMIT)
    step = make_caption(CaptionSettings(model))
    sample = Sample("one", "vizwiz", QUESTION, "2", "digit", "a.png", "0" * 64)
    ledger = Ledger(tmp_path / "ledger.sqlite")

    async def run():
        async with Client({"caption": model}, tmp_path, ledger) as asks:
            return await step(sample, asks.ask)

    found = asyncio.run(run())
    ledger.close()
    text = fill(load_prompt("caption", ""), context="")
    (choice,) = create(client, data_uri(image), text, temperature=0).choices
    if choice.finish_reason == "length":
        assert found == Drop("caption", "reply cut at max_tokens")
    else:
        assert found.caption == choice.message.content.strip()
