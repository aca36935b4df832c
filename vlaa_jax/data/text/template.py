"""Chat templates are programs that come with a checkpoint: tried out before they are trusted."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlaa_jax.data.text import template_child
from vlaa_jax.foreign import MAX_CONFIG_BYTES, read_object, read_text
from vlaa_jax.schema import UserError

MAX_OUTPUT_CHARS = template_child.MAX_CHARS
"""What a template may add to the texts it is given."""
_MAX_WALL_S = 20.0  # of a machine that is busy; the processor time is limited to 2 s
Messages = list[dict[str, Any]]


def messages(question: str, n_images: int, system_prompt: str) -> Messages:
    """A conversation up to the user's turn: images first, then the question."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(n_images)]
    content.append({"type": "text", "text": question})
    return [*system, {"role": "user", "content": content}]


def template_file(path: Path) -> str | None:
    """The template kept beside the tokenizer: chat_template.jinja, or .json in older releases."""
    with suppress(FileNotFoundError):
        return read_text(path / "chat_template.jinja")
    with suppress(FileNotFoundError):
        found = read_object(path / "chat_template.json").get("chat_template")
        return found if isinstance(found, str) else None
    return None


def try_out(template: Any, where: str) -> None:
    """Renders conversations of every form we ask for, in a process with limits.

    What fails there is only told where it ends the process: an error of the template itself is met
    again, and told, when it is used.

    Raises:
      UserError: it does not end within 2 s of processor time, takes more than 1 GiB, writes more
        than MAX_OUTPUT_CHARS characters, or is no text of a sensible length.
    """
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise UserError(f"{where}: the chat template must be a text, or one named default")
    if len(template) > MAX_CONFIG_BYTES:
        raise UserError(f"{where}: the chat template has {len(template):,} characters")
    if problem := _problem(template):
        raise UserError(f"{where}: the chat template cannot be used: {problem}")


@lru_cache(maxsize=16)
def _problem(template: str) -> str | None:
    conversations = []
    for system in ("", "Be brief."):
        for n_images in (0, 1, 2):
            asked = messages("How many?", n_images, system)
            told = [*asked, {"role": "assistant", "content": "<think> a </think> Two."}]
            conversations.append({"messages": asked, "add_generation_prompt": True})
            conversations.append({"messages": told, "add_generation_prompt": False})
    request = json.dumps({"template": template, "conversations": conversations})
    command = [sys.executable, "-I", os.path.abspath(template_child.__file__)]
    try:
        done = subprocess.run(
            command, input=request.encode(), capture_output=True, timeout=_MAX_WALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "it does not end"
    verdict, _, reason = done.stdout.decode(errors="replace").partition(" ")
    if done.returncode < 0:
        return "it takes more than 2 s of processor time"
    return reason if verdict in ("long", "memory") else None
