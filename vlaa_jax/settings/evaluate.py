"""Everything an evaluation needs, checked."""

from dataclasses import dataclass, field

from vlaa_jax.schema import UserError
from vlaa_jax.settings.fields import (
    ADDRESS,
    VARIABLE,
    Group,
    above,
    at_least,
    at_most,
    one_of,
    setting,
    within,
)
from vlaa_jax.settings.shared import DTYPES, MeshSettings, ModelSettings, PromptSettings

EMBEDDED = "embedded"
LEADERBOARD = ("mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista")
"""Names of the six; ``vlaa_jax.evaluate.benchmarks`` has the table of all."""
PROFILES = ("2025-04", "2025-04-lossless", "2026-08", "2026-08-lossless")


def _check_names(setting: str, names: tuple[str, ...]) -> None:
    if not names:
        raise UserError(f"{setting}: name at least one benchmark")
    if len(set(names)) < len(names):
        raise UserError(f"{setting}: names a benchmark twice")


@dataclass(frozen=True)
class QuestionSettings(Group, name="data"):
    """Which questions."""

    root: str = ""
    """Directory with the public tables (DATASET.tsv) or folders of the originals (DATASET/), or
    "embedded" (a miniature of each, drawn by code)."""
    benchmarks: tuple[str, ...] = LEADERBOARD
    """Names of benchmarks."""
    limit: int = setting(0, at_least(0))
    """Only so many questions of each; 0 takes all. Such a score is of a part, and says so."""
    check_digest: bool = True
    """Whether tables must be the public ones to the byte."""

    def check(self) -> None:
        """Something is evaluated, once."""
        _check_names("data.benchmarks", self.benchmarks)


@dataclass(frozen=True)
class EvaluatedModelSettings(Group, name="model"):
    """Which checkpoint the project's engine decodes with, and how."""

    checkpoint: str = ""
    """HF directory, one of our checkpoints or run directories (adapters are merged when read), a
    hub id, or "embedded" (the tiny default)."""
    dtype: str = setting("bfloat16", one_of(*DTYPES))
    """Dtype of weights and activations: float32 or bfloat16."""
    unroll: int = setting(1, at_least(0))
    """Unroll factor of the layer scans; 0 unrolls fully."""

    def shared(self) -> ModelSettings:
        """As the rooms below know it; nothing is trained."""
        return ModelSettings(
            checkpoint=self.checkpoint,
            dtype=self.dtype,
            unroll=self.unroll,
        )


@dataclass(frozen=True)
class GenerationSettings(Group, name="generation"):
    """Where outputs come from, and how they are decoded."""

    source: str = setting("engine", one_of("engine", "server", "file"))
    """"engine" is this project's own, "server" an OpenAI-compatible one, "file" what is there."""
    files: str = ""
    """With "file": folder that holds DATASET.xlsx, .tsv, .json or .jsonl, also MODEL_DATASET.*."""
    url: str = setting("", ADDRESS)
    """With "server": its base URL."""
    model: str = ""
    """With "server": the model's name there."""
    key_env: str = setting("", VARIABLE)
    """With "server": environment variable with the bearer token."""
    concurrency: int = setting(16, at_least(1), harmless=True)
    """With "server": requests in flight at once."""
    timeout_s: float = setting(600.0, above(0), harmless=True)
    """With "server": deadline of a request in seconds."""
    system_prompt: str = ""
    """Empty leaves the system turn to the chat template."""
    new_tokens: int = setting(2048, at_least(1))
    """Longest output."""
    temperature: float = setting(0.0, within(0, 2))
    """0 is greedy."""
    top_p: float = setting(1.0, above(0), at_most(1))
    """Mass of the likeliest tokens that are drawn from."""
    top_k: int = setting(0, at_least(0))
    """Number of likeliest tokens that are drawn from; 0 keeps all. Not sent to a server."""
    min_pixels: int = setting(0, at_least(0))
    """Area smaller images are enlarged to; 0 takes the checkpoint's. A server has its own."""
    max_pixels: int = setting(0, at_least(0))
    """Area larger images are shrunk to; 0 takes the checkpoint's. A server has its own."""
    max_prompt_tokens: int = setting(32_768, at_least(1))
    """Longest prompt, image tokens included; a longer one stops the run."""
    samples: int = setting(1, at_least(1))
    """Outputs for each question."""
    batch: int = setting(16, at_least(1), harmless=True)
    """Questions decoded at once by the engine."""
    seed: int = setting(0, within(0, 2**32 - 1))
    """Of sampling; the same row and sample are drawn alike however a run is cut."""

    def check(self) -> None:
        """A source has what it needs, and samples differ."""
        if self.source == "server" and not (self.url and self.model):
            raise UserError("generation.url and generation.model: a server needs both")
        if self.source == "file" and not self.files:
            raise UserError("generation.files: name the folder of prediction files")
        if self.source != "file" and self.samples > 1 and self.temperature == 0:
            raise UserError("generation.samples: greedy samples are all alike; set a temperature")
        if self.max_pixels and self.min_pixels > self.max_pixels:
            raise UserError("generation.min_pixels: is above generation.max_pixels")


@dataclass(frozen=True)
class JudgeSettings(Group, name="judge"):
    """Who reads the answers that rules cannot read."""

    url: str = setting("", ADDRESS, harmless=True)
    """Base URL of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1; empty: recorded
    replies only, if there are any."""
    model: str = setting("gpt-4o-mini-2024-07-18", harmless=True)
    """Model asked for, and part of the key of every recorded reply. The default is the
    leaderboard's."""
    key_env: str = setting("OPENAI_API_KEY", VARIABLE, harmless=True)
    """Environment variable with the bearer token."""
    temperature: float = setting(0.0, within(0, 2), harmless=True)
    """Where a benchmark does not say."""
    repeat: int = setting(0, at_least(0), harmless=True)
    """Another number asks for replies of their own, to see how far the judge agrees with itself."""
    replies: str = setting("", harmless=True)
    """File of recorded replies to read and add to; empty: judge.jsonl in the working directory."""
    rules_only: bool = setting(False, harmless=True)
    """Score without a judge what rules can decide; gives a sub-score, never a headline."""
    max_failed: float = setting(0.02, within(0, 1), harmless=True)
    """Share of outputs whose judge may fail before there is no headline."""
    concurrency: int = setting(8, at_least(1), harmless=True)
    """Requests in flight at once."""
    timeout_s: float = setting(60.0, above(0), harmless=True)
    """Deadline of a request in seconds, retries included."""
    retries: int = setting(3, at_least(0), harmless=True)
    """Further tries of a request after a failure that may pass."""


@dataclass(frozen=True)
class ScoringSettings(Group, name="scoring"):
    """How outputs are scored and compared."""

    profile: str = setting("2026-08", one_of(*PROFILES))
    """Reading of the rules: 2025-04 as in the paper, 2026-08 current."""
    both: bool = True
    """Score without think text, too."""
    baseline: str = ""
    """Working directory of an evaluation to compare with, question by question."""


@dataclass(frozen=True)
class TrainingBenchmarkSettings(Group, name="benchmarks"):
    """Benchmarks that are run on a policy while it trains; they change no number of the training.

    Images and the system prompt are the training's, decoding is greedy.
    """

    root: str = setting("", harmless=True)
    """Directory with the public tables or folders of the originals; empty: no benchmarks."""
    names: tuple[str, ...] = setting(LEADERBOARD, harmless=True)
    """Names of benchmarks."""
    limit: int = setting(64, at_least(0), harmless=True)
    """Only so many questions of each; 0 takes all."""
    check_digest: bool = setting(True, harmless=True)
    """Whether tables must be the public ones to the byte."""
    new_tokens: int = setting(800, at_least(1), harmless=True)
    """Longest output."""
    batch: int = setting(16, at_least(1), harmless=True)
    """Questions decoded at once."""

    def check(self) -> None:
        """Something is measured, once."""
        _check_names("benchmarks.names", self.names)

    def evaluation(self, data: PromptSettings, judge: JudgeSettings) -> "EvaluateSettings":
        """As an evaluation of its own would be told.

        Args:
            data: of the training: its system prompt; pixels are those of the opened checkpoint.
            judge: of the training.
        """
        return EvaluateSettings(
            data=QuestionSettings(self.root, self.names, self.limit, self.check_digest),
            generation=GenerationSettings(
                system_prompt=data.system_prompt,
                new_tokens=self.new_tokens,
                batch=self.batch,
            ),
            judge=judge,
        )


@dataclass(frozen=True)
class EvaluateRunSettings(Group, name="run"):
    """What a run writes and shows."""

    name: str = ""
    """Of the run in tables; empty: the checkpoint's or the server's model."""
    predictions: str = setting("tsv", one_of("tsv", "xlsx", "json", "jsonl"), harmless=True)
    """Kind of the prediction files, which VLMEvalKit scores (but jsonl)."""
    wrong_shown: int = setting(40, at_least(0), harmless=True)
    """Wrong answers of each benchmark on the page, with their images."""
    compilation_cache: str = setting("~/.cache/vlaa_jax/xla", harmless=True)
    """Folder of the persistent compilation cache; empty turns it off."""


@dataclass(frozen=True)
class EvaluateSettings(Group):
    """Everything an evaluation needs."""

    task: str = setting("evaluate", one_of("evaluate"))
    data: QuestionSettings = field(default_factory=QuestionSettings)
    model: EvaluatedModelSettings = field(default_factory=EvaluatedModelSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    run: EvaluateRunSettings = field(default_factory=EvaluateRunSettings)

    @property
    def name(self) -> str:
        """Of the run in tables."""
        generation = self.generation
        of_source = {"engine": self.model.checkpoint, "server": generation.model}
        name = self.run.name or of_source.get(generation.source, generation.files)
        return f"{name} (first {self.data.limit} of each)" if self.data.limit else name
