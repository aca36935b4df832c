"""Settings settled at the door: a config file's mapping becomes one task's checked settings.

Below this line nobody asks for a key with a default.
"""

from collections.abc import Mapping
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
