"""The reference server in docs/ speaks the contract that the client expects."""

import importlib.util
import json
import math
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.schema import ScoreRequest

SCRIPT = Path(__file__).parents[2] / "docs" / "reward_server.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reward_server", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(script):
    servers = []

    def start(scorer):
        server = ThreadingHTTPServer(("127.0.0.1", 0), script.make_handler(scorer))
        server.RequestHandlerClass.log_message = lambda *args: None
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_client_and_reference_server_agree(script, serve):
    url = serve(script.make_length_scorer("", ""))
    answers = ["one", "one two", "one two three four five six"]
    requests = [ScoreRequest("open_ended", "a b", f"<answer>{a}</answer>") for a in answers]
    settings = RewardSettings(open_ended="score_endpoint", endpoint_url=url)
    with MixedReward(settings) as mixed:
        rewards = [score.reward for score in mixed.score(requests)]
    assert rewards == pytest.approx([0.0, 0.0, 1 - math.exp(-0.2 * (6 - 2))])


def test_an_item_that_breaks_the_model_fails_alone(serve):
    def touchy(question, answer, images):
        if answer == "nan":
            return float("nan")
        if answer == "raise":
            raise RuntimeError("out of memory")
        return 3.0

    requests = [
        ScoreRequest("open_ended", "gold", f"<answer>{a}</answer>") for a in ("x", "nan", "raise")
    ]
    settings = RewardSettings(open_ended="score_endpoint", endpoint_url=serve(touchy))
    with MixedReward(settings) as mixed:
        scores = mixed.score(requests)
    assert [score.failed for score in scores] == [False, True, True]
    assert "out of memory" in scores[2].error


def test_a_retry_is_answered_from_memory(serve):
    calls = []
    url = serve(lambda question, answer, images: calls.append(answer) or float(len(calls)))
    body = {"items": [{"id": "0", "question": "q", "answer": "a"}]}

    def ask(key, said=body):
        headers = {"idempotency-key": key} if key else {}
        return httpx.post(url + "/score", json=said, headers=headers).json()["results"][0]

    first = ask("one")
    assert ask("one") == first == {"id": "0", "score": 1.0}
    assert len(calls) == 1
    assert ask("two")["score"] == 2.0
    assert ask(None)["score"] == 3.0
    assert ask(None)["score"] == 4.0  # without a key nothing is remembered
    other = {"items": [{"id": "0", "question": "q", "answer": "b"}]}
    assert ask("one", other)["score"] == 5.0  # a key stands for one body only


def test_replies_are_remembered_up_to_a_number(script):
    memory = script.Memory(2)
    for key in ("a", "b", "a", "c"):
        if memory.get(key, b"x") is None:
            memory.put(key, b"x", [{"id": key}])
    assert memory.get("b", b"x") is None  # "a" was used after it
    assert memory.get("a", b"x") == [{"id": "a"}]
    assert memory.get("c", b"x") == [{"id": "c"}]


def test_an_error_is_not_remembered(serve):
    calls = []

    def flaky(question, answer, images):
        calls.append(answer)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return 1.0

    url = serve(flaky)
    body = {"items": [{"id": "0", "question": "q", "answer": "a"}]}
    said = [
        httpx.post(url + "/score", json=body, headers={"idempotency-key": "k"}).json()
        for _ in range(2)
    ]
    assert "out of memory" in said[0]["results"][0]["error"]
    assert said[1]["results"][0]["score"] == 1.0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/score", b"{", 400),
        ("/score", b"{}", 400),
        ("/score", b'{"items": [{"id": "a"}, {"id": "a"}]}', 400),
        ("/other", b"{}", 404),
        ("/score", b"", 404),
    ],
)
def test_a_bad_request_is_told_so(script, serve, path, body, status):
    url = serve(script.make_length_scorer("", ""))
    assert httpx.post(url + path, content=body).status_code == status


def test_images_arrive_as_bytes(serve, tmp_path):
    seen = []
    url = serve(lambda question, answer, images: seen.append(images) or 1.0)
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNGxyz")
    request = ScoreRequest("open_ended", "g", "<answer>a</answer>", images=(str(image),))
    with MixedReward(RewardSettings(open_ended="score_endpoint", endpoint_url=url)) as mixed:
        mixed.score([request])
    assert seen[0] == [b"\x89PNGxyz"]
    assert json.loads(json.dumps(len(seen))) == 2


@pytest.mark.slow  # imports torch and transformers
def test_a_classifier_of_transformers_is_a_scorer(script, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "it", "a", "red", "car"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=1,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    score = script.make_sequence_scorer(str(tmp_path), "cpu")
    first, second = score("what is it", "a red car", []), score("what is it", "a car", [])
    assert math.isfinite(first)
    assert first != second
    assert score("what is it", "a red car", []) == first
