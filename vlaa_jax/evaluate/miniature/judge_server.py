"""A judge that goes by a script, behind a real HTTP server with the OpenAI chat interface.

It reads what the templates of ``prompts/`` put in front of it and copies out the last letter,
number or word that fits, so the same prompt always gets the same reply.
"""

import re

from vlaa_jax.pipeline.local_server import Answer, Call

_LETTERS = re.compile(r"\b[A-D]\b")
_WORDS = re.compile(r"-?\d+(?:[./]\d+)?|\b[A-Z]\b")


def scripted_reply(prompt: str) -> str:
    """What the script says to a prompt of ours."""
    if prompt.startswith("Two answers to one"):
        gold, answer = _after(prompt, "Reference:"), _after(prompt, "Model:")
        return "1" if gold == answer else "0"
    if prompt.startswith("You turn a long answer"):
        return _last(_after(prompt, "Long answer:", "\n\nWrite"), "none")
    if prompt.startswith("Below is what a model"):
        return _last(_after(prompt, "Model:", "\nAnswer:"), "null")
    said = _after(prompt, "Reply:", "\nFinal answer:", "\nLetter")
    if prompt.startswith(("Which option", "A question has")):
        letters = _LETTERS.findall(said)
        return letters[-1] if letters else "Z"
    return _last(said, "None")


def _after(prompt: str, start: str, *ends: str) -> str:
    """What follows the last start, up to the first of the ends."""
    text = prompt[prompt.rindex(start) + len(start) :]
    for end in ends or ("\n",):
        text = text.split(end)[0]
    return text.strip()


def _last(text: str, otherwise: str) -> str:
    found = _WORDS.findall(text)
    return found[-1] if found else otherwise


async def answer(call: Call) -> Answer:
    """The script's reply; the handler of a ``LocalServer``."""
    reply = scripted_reply(str(call.json()["messages"][-1]["content"]))
    choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
    return Answer({"choices": [choice], "usage": {}})
