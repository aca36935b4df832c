"""The models of :tiny: a captioner, a reasoner, a rewriter and a judge that go by a script.

They know the embedded drawings and behave as real ones do, faults included: some traces reflect on
themselves, some answers are wrong, some replies lack their think block, some rewrites ramble.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from vlaa_jax.pipeline.embedded import Drawn
from vlaa_jax.pipeline.local_server import Answer, Call

MODELS = {
    "caption": "scripted-captioner",
    "distil": "scripted-reasoner",
    "rewrite": "scripted-rewriter",
    "verify": "scripted-judge",
    "difficulty": "scripted-student",
}
_DRAWING = re.compile(r"Drawing (\d+)")
_COMPARED = re.compile(r"Reference answer:\n(.*?)\n\nAnswer:\n(.*?)\n\nDoes", re.DOTALL)
_RAMBLING = "The description is long."


class ScriptedModels:
    """Handler of a ``LocalServer``; the model of a request says who answers."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        self._drawn = drawn
        self._by_image = {hashlib.sha256(one.image).hexdigest(): one for one in drawn}

    async def __call__(self, call: Call) -> Answer:
        """Answer a chat or scoring request."""
        request = call.json()
        if call.path.endswith("/completions") and "prompt" in request:
            return Answer(_scored(request["prompt"]))
        text, image = _parts(request["messages"][-1]["content"])
        message = self._message(request["model"], text, image)
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": len(str(message)) // 4}
        choice = {"message": {"role": "assistant", **message}, "finish_reason": "stop"}
        return Answer({"choices": [choice], "usage": usage})

    def _message(self, model: str, text: str, image: bytes) -> dict[str, str]:
        if model == MODELS["caption"]:
            return {"content": self._seen(image).caption}
        if model == MODELS["distil"]:
            return self._reason(text)
        if model == MODELS["rewrite"]:
            return {"content": _reword(text)}
        if model == MODELS["verify"]:
            return {"content": _judge(text)}
        one = self._seen(image)
        known = one.image[-9] % 2 or len(one.sample.question) % 3 == 0
        return {"content": one.sample.target if known else "<answer> none </answer>"}

    def _seen(self, image: bytes) -> Drawn:
        return self._by_image[hashlib.sha256(image).hexdigest()]

    def _reason(self, text: str) -> dict[str, str]:
        match = _DRAWING.search(text)
        index = int(match[1]) if match else 0
        sample = self._drawn[index].sample
        thought = f"According to the description: {sample.reasoning}"
        if index % 2 == 0:
            thought += " Wait, let me look again. It is as I said."
        if index % 13 == 7:
            thought += f" {_RAMBLING}"
        answer = "none of these" if index % 9 == 5 else sample.answer
        if index % 11 == 8:
            return {"content": answer}
        if index % 3 == 0:
            return {"content": answer, "reasoning_content": thought}
        return {"content": f"<think>\n{thought}\n</think>\n\n{answer}"}


def _parts(content: Any) -> tuple[str, bytes]:
    if isinstance(content, str):
        return content, b""
    text = next(part["text"] for part in content if part["type"] == "text")
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    return text, base64.b64decode(url.partition(",")[2])


def _reword(text: str) -> str:
    copied = text[text.index("<think>") :]
    if _RAMBLING in copied:
        copied = copied.replace("</think>", "I could say much more. " * 8 + "\n</think>")
    return copied.replace("the description", "the image").replace("The description", "The image")


def _judge(text: str) -> str:
    match = _COMPARED.search(text)
    return "Yes" if match and match[1].strip() == match[2].strip() else "No."


def _scored(prompt: str) -> dict[str, Any]:
    """Every word as a token, the longer the less likely."""
    words = list(re.finditer(r"\S+\s*", prompt))
    logprobs: dict[str, Any] = {
        "text_offset": [word.start() for word in words],
        "token_logprobs": [None, *(-len(word[0]) / 10 for word in words[1:])],
    }
    usage = {"prompt_tokens": len(words), "completion_tokens": 0}
    return {"choices": [{"text": prompt, "logprobs": logprobs}], "usage": usage}
