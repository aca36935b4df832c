"""A reward server for `rewards.open_ended = "score_endpoint"`, around any Hugging Face scorer.

    pip install torch transformers pillow
    python docs/reward_server.py --model some/reward-model --port 8000
    python docs/reward_server.py --model internlm/internlm-xcomposer2d5-7b-reward --kind ixc
    python docs/reward_server.py --kind length          # no model: for trying the wiring

`--kind sequence` takes a model with a sequence-classification head and one logit; the question is
the user's turn, the answer the assistant's, and images are ignored. `--kind ixc` calls the
`get_score` method that InternLM-XComposer2.5-Reward brings as remote code (licence "other": read it
first; it is downloaded and run, which the rest of this project never does). One item is scored at a
time in either kind, so a long text cannot change another's score through padding.

The contract is in docs/rewards.md. Every item gets a finite score or an error of its own.
"""

import argparse
import base64
import hashlib
import json
import math
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Scorer = Callable[[str, str, list[bytes]], float]
"""(question, answer, images) -> score."""

MAX_BODY = 256 * 2**20
REMEMBERED = 1_000
"""Requests whose results are kept, so that a retry is not scored twice; some kilobytes each."""


def make_sequence_scorer(name: str, device: str) -> Scorer:
    """A scorer from a sequence-classification checkpoint with a single logit."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, torch_dtype="auto")
    model = model.to(device).eval()
    if model.config.num_labels != 1:
        raise SystemExit(f"{name} has {model.config.num_labels} labels; a scorer has one")

    def score(question: str, answer: str, images: list[bytes]) -> float:
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            batch = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            batch = tokenizer(question, answer, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            return float(model(**batch.to(device)).logits[0, 0])

    return score


def make_ixc_scorer(name: str, device: str) -> Scorer:
    """InternLM-XComposer2.5-Reward, as its model card calls it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    half = torch.float16
    model = AutoModel.from_pretrained(name, torch_dtype=half, trust_remote_code=True)
    model = model.to(device).eval()
    model.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)

    def score(question: str, answer: str, images: list[bytes]) -> float:
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for index, data in enumerate(images):
                path = Path(folder) / f"{index}.img"
                path.write_bytes(data)
                paths.append(str(path))
            with torch.autocast(device_type=device, dtype=half):
                return float(model.get_score(turns, paths, hd_num=9))

    return score


def make_length_scorer(name: str, device: str) -> Scorer:
    """Words of the answer: no quality at all, but known in advance."""
    return lambda question, answer, images: float(len(answer.split()))


def score_items(items: list[dict[str, Any]], scorer: Scorer) -> list[dict[str, Any]]:
    """One result per item: a finite score or the reason why there is none."""
    results = []
    for item in items:
        try:
            images = [base64.b64decode(url.partition(",")[2]) for url in item.get("images", [])]
            score = scorer(item["question"], item["answer"], images)
            if not math.isfinite(score):
                raise ValueError(f"the model's score is {score}")
            results.append({"id": item["id"], "score": score})
        except Exception as error:  # it goes back to the caller, item by item
            results.append({"id": item["id"], "error": f"{type(error).__name__}: {error}"[:200]})
    return results


class Memory:
    """Results of the last requests by their idempotency-key, for retries whose reply was lost.

    A key stands for one body; results with an error in them are not kept.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[tuple[str, bytes], list[dict[str, Any]]] = OrderedDict()

    def get(self, key: str | None, body: bytes) -> list[dict[str, Any]] | None:
        """What was answered to this request; None when it is new, forgotten or without a key."""
        if key is None:
            return None
        name = (key, hashlib.sha256(body).digest())
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def put(self, key: str | None, body: bytes, results: list[dict[str, Any]]) -> None:
        """Keep the results, and forget the least recently used beyond the set number."""
        if key is None or any("error" in result for result in results):
            return
        self._kept[key, hashlib.sha256(body).digest()] = results
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)


def make_handler(scorer: Scorer) -> type[BaseHTTPRequestHandler]:
    """A request handler that lets one request at a time use the model, and scores none twice."""
    device = threading.Lock()
    memory = Memory(REMEMBERED)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            if self.path.rstrip("/") != "/score" or not 0 < size <= MAX_BODY:
                self.answer(404 if size <= MAX_BODY else 413, {"error": "POST /score"})
                return
            body = self.rfile.read(size)
            try:
                items = json.loads(body)["items"]
                if len({item["id"] for item in items}) != len(items):
                    raise ValueError("ids must differ")
            except (ValueError, KeyError, TypeError) as error:
                self.answer(400, {"error": f"bad request: {error}"})
                return
            key = self.headers.get("idempotency-key")
            with device:  # a retry that comes while the first try still computes waits for it here
                results = memory.get(key, body)
                if results is None:
                    results = score_items(items, scorer)
                    memory.put(key, body, results)
            self.answer(200, {"results": results})

        def answer(self, status: int, reply: dict[str, Any]) -> None:
            data = json.dumps(reply, allow_nan=False).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def main() -> None:
    """Load the model, then serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="HF directory or hub id")
    parser.add_argument("--kind", choices=["sequence", "ixc", "length"], default="sequence")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--host", default="127.0.0.1", help="there is no authentication: mind it")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    make = {
        "sequence": make_sequence_scorer,
        "ixc": make_ixc_scorer,
        "length": make_length_scorer,
    }[options.kind]
    scorer = make(options.model, options.device)
    server = ThreadingHTTPServer((options.host, options.port), make_handler(scorer))
    print(f"listening on http://{options.host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
