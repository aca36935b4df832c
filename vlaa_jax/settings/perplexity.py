"""Settings of choosing records by the perplexity of their answers."""

from dataclasses import dataclass, field

from vlaa_jax.schema import UserError
from vlaa_jax.settings.fields import Group, at_least, one_of, setting
from vlaa_jax.settings.sft import RowSettings
from vlaa_jax.settings.shared import MeshSettings, ModelSettings


@dataclass(frozen=True)
class PerplexityRunSettings(Group, name="run"):
    """What a run writes."""

    top: tuple[int, ...] = setting((), at_least(1))
    """How many records of highest perplexity to write, a file for each number."""
    compilation_cache: str = setting("~/.cache/vlaa_jax/xla", harmless=True)
    """Folder of the persistent compilation cache; empty turns it off."""


@dataclass(frozen=True)
class PerplexitySettings(Group):
    """Everything a ranking by perplexity needs, checked."""

    task: str = setting("perplexity", one_of("perplexity"))
    models: tuple[str, ...] = ()
    """Checkpoints under which answers are measured; a record counts by the mean over them."""
    logprob_chunk: int = setting(0, at_least(0))
    """Tokens whose logits over the vocabulary exist at the same time; see the same of SFT."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """How to compute; its checkpoint is not used."""
    data: RowSettings = field(default_factory=RowSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: PerplexityRunSettings = field(default_factory=PerplexityRunSettings)

    def check(self) -> None:
        """There is something to measure by, each thing once."""
        if not self.models:
            raise UserError("models: name at least one checkpoint")
        if len(set(self.models)) < len(self.models):
            raise UserError("models: names a checkpoint twice")
        if self.model.checkpoint:
            raise UserError("model.checkpoint: name checkpoints in models")
        if self.data.micro_rows or self.data.source_weights:
            raise UserError("data.micro_rows and data.source_weights: every record comes once here")
