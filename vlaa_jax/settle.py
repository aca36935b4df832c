"""Settings settled at the door: a config file's mapping becomes one task's checked settings.

Below this line nobody asks for a key with a default.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settings.perplexity import PerplexitySettings
from vlaa_jax.settings.pipeline import PipelineSettings
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.settings.study import HeldoutSettings, StudySettings

SETTINGS: dict[str, type] = {
    "evaluate": EvaluateSettings,
    "grpo": GrpoSettings,
    "heldout": HeldoutSettings,
    "perplexity": PerplexitySettings,
    "pipeline": PipelineSettings,
    "sft": SftSettings,
    "study": StudySettings,
}
"""The settings of each task, by the config's ``task``."""


def with_installed_config(argv: Sequence[str]) -> list[str]:
    """A command line whose ``--config=configs/grpo.py:tiny`` is found wherever it is given.

    What there is below the current directory comes first, then the copy that was installed beside
    this package.
    """
    words = list(argv)
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name not in ("-config", "--config"):
            continue
        if equals:
            words[place] = f"{name}={_installed(value)}"
        elif place + 1 < len(words):
            words[place + 1] = _installed(words[place + 1])
    return words


def _installed(config: str) -> str:
    path, colon, variant = config.partition(":")
    beside = Path(__file__).parents[1] / path  # an absolute path stays what it is
    return f"{beside}{colon}{variant}" if beside.is_file() and not Path(path).is_file() else config


def settle(config: Mapping[str, Any]) -> Any:
    """Turns a plain mapping (``ConfigDict.to_dict()``) into the settings of its task.

    Raises:
        UserError: unknown task or key, wrong type, value out of range, or fields that do not fit
            together.
    """
    task = config.get("task")
    if task not in SETTINGS:
        raise UserError(f"task: {task!r} is not one of {', '.join(SETTINGS)}")
    return build(SETTINGS[task], config)
