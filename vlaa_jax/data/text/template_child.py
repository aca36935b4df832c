"""Renders a chat template where it can do no harm: run as a program, by ``template.try_out``.

Reads ``{"template": ..., "conversations": [...]}`` from standard input and writes one word, and a
reason after it, to standard output. Memory and processor time are limited before the template is
looked at. Imports nothing of this package, so that it starts in a tenth of a second.
"""

import json
import resource
import sys
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CPU_S = 2
MAX_MEMORY_BYTES = 1 << 30
MAX_CHARS = 1 << 20


class Generation(Extension):
    """The ``{% generation %}`` block of transformers, which prints what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> Environment:
    """As transformers sets up templates, as far as length and time depend on it."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    found.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    found.globals["raise_exception"] = _raise
    found.globals["strftime_now"] = lambda form: "2026-01-01"
    return found


def _raise(message: str) -> None:
    raise TemplateError(message)


def _render(request: dict[str, Any]) -> str:
    template = _environment().from_string(request["template"])
    for conversation in request["conversations"]:
        chars = 0
        for piece in template.generate(**conversation):
            chars += len(piece)
            if chars > MAX_CHARS:
                return f"long it writes more than {MAX_CHARS:,} characters for one question"
    return "fine"


def main() -> None:
    """Judge the template on standard input."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    try:
        said = _render(json.load(sys.stdin))
    except MemoryError:
        said = "memory it takes more than 1 GiB"
    except Exception as error:
        said = f"failed {type(error).__name__}: {error}"
    sys.stdout.write(said[:300])


if __name__ == "__main__":
    main()
