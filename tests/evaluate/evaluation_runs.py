"""Settings of small evaluations for tests, and the command that runs one."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings

# Without jax, which a run against a server does not need.
PROGRAM = """
import json, sys
from pathlib import Path
from rich.console import Console
from vlaa_jax.evaluate.run import run
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings
run(build(EvaluateSettings, json.loads(sys.argv[1])), Path(sys.argv[2]), Console())
assert not {"jax", "flax", "torch"} & set(sys.modules)
"""


def served(url: str, judge_url: str = "", **groups: dict[str, Any]) -> EvaluateSettings:
    """The miniature, with outputs from a server."""
    values: dict[str, Any] = {
        "data": {"root": "embedded"},
        "generation": {"source": "server", "url": url, "model": "stub", "concurrency": 4},
        "judge": {"url": judge_url, "model": "judge", "key_env": "", "retries": 0},
    }
    for name, change in groups.items():
        values[name] = {**values.get(name, {}), **change}
    return build(EvaluateSettings, values)


def command(settings: EvaluateSettings, workdir: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM, json.dumps(dataclasses.asdict(settings)), str(workdir)]
