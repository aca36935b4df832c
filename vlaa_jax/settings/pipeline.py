"""Settings of the pipeline task: a group per step, a served model in each step that asks one."""

from dataclasses import dataclass, field

from vlaa_jax.schema import UserError
from vlaa_jax.settings.by_source import source_counts, source_folders
from vlaa_jax.settings.fields import (
    ADDRESS,
    VARIABLE,
    Group,
    above,
    at_least,
    one_of,
    reads_as,
    setting,
)

GAPS = ("length", "edit")
VERIFY = ("judge", "verifier", "auto")
RULES = ("aha", "pass_rate", "perplexity")
TRANSPORTS = ("live", "batch")
RUNNERS = ("asyncio", "beam")


@dataclass(frozen=True)
class ServedModel(Group, name="model"):
    """A model behind an OpenAI-compatible endpoint: how it is asked, how fast, at what price."""

    url: str = setting("", ADDRESS)
    """Base URL, e.g. ``https://api.openai.com/v1``; "embedded" is the scripted local server."""
    model: str = ""
    key_env: str = setting("", VARIABLE)
    """Environment variable that holds the key; empty sends none."""
    tag: str = ""
    """Becomes part of what a recorded reply is found by: change it when another model is served
    under the same name."""
    temperature: float | None = setting(None, at_least(0))
    """None leaves it to the server."""
    top_p: float | None = setting(None, above(0))
    max_tokens: int = setting(1024, at_least(1))
    concurrency: int = setting(32, at_least(1))
    """Most calls in flight; the pacing finds what the server bears below it."""
    start_concurrency: int = setting(8, at_least(1))
    requests_per_minute: float = setting(0.0, at_least(0))
    """0: no limit known."""
    tokens_per_minute: float = setting(0.0, at_least(0))
    """Prompt and completion together; 0: no limit known."""
    timeout_s: float = setting(120.0, above(0))
    """Of one try."""
    deadline_s: float = setting(1800.0, above(0))
    """Of a call with all its tries and pauses, from its first turn on."""
    retries: int = setting(5, at_least(0))
    """Further tries after a failure that may pass; an overloaded server is asked until the
    deadline."""
    backoff_s: float = setting(0.5, at_least(0))
    price_prompt: float = setting(0.0, at_least(0))
    """US dollars per million prompt tokens."""
    price_completion: float = setting(0.0, at_least(0))
    image_tokens: int = setting(1000, at_least(0))
    """Prompt tokens that an image is taken to cost, in estimates before the call."""
    expected_tokens: int = setting(0, at_least(0))
    """Completion tokens that a dry run reckons with until replies are recorded; 0: half of
    max_tokens."""
    transport: str = setting("live", one_of(*TRANSPORTS))
    """"live", or "batch": the provider's batch API."""
    batch_requests: int = setting(1000, at_least(1))
    """Requests in one file of the batch API."""
    batch_poll_s: float = setting(30.0, above(0))


@dataclass(frozen=True)
class CollectSettings(Group, name="collect"):
    """Step 1: which sources, from where, how many."""

    sources: str = setting("", reads_as(source_folders))
    """``NAME=FOLDER,NAME=FOLDER``: unpacked downloads, see docs/pipeline.md; "embedded" draws."""
    limits: str = setting("", reads_as(source_counts))
    """``NAME=COUNT,...``: samples taken of a source at random; without a row all of them."""
    unique_images: bool = True
    """Take an image (by its bytes) once, whatever the source and question."""
    embedded: int = setting(60, at_least(1))
    """Samples that "embedded" draws."""
    seed: int = 0


@dataclass(frozen=True)
class CaptionModel(ServedModel, name="caption.model"):
    """The model of this step."""


@dataclass(frozen=True)
class CaptionSettings(Group, name="caption"):
    """Step 2: a factual caption by a model that sees the image."""

    model: CaptionModel = field(default_factory=CaptionModel)
    prompt: str = ""
    """Text file to use instead of the one in ``prompts/``."""


@dataclass(frozen=True)
class DistilModel(ServedModel, name="distil.model"):
    """The model of this step."""


@dataclass(frozen=True)
class DistilSettings(Group, name="distil"):
    """Step 3: a trace by a reasoning model that reads the caption."""

    model: DistilModel = field(default_factory=DistilModel)
    prompt: str = ""


@dataclass(frozen=True)
class RewriteModel(ServedModel, name="rewrite.model"):
    """The model of this step."""


@dataclass(frozen=True)
class RewriteSettings(Group, name="rewrite"):
    """Step 4: what gives the caption away is reworded, and traces that changed too much go."""

    model: RewriteModel = field(default_factory=RewriteModel)
    prompt: str = ""
    gap: str = setting("length", one_of(*GAPS))
    """What is held against ``max_gap``: "length", the difference of the two counts of words, or
    "edit", the words that were put in, taken out or exchanged."""
    max_gap: int = setting(15, at_least(0))
    """Words."""


@dataclass(frozen=True)
class VerifyModel(ServedModel, name="verify.model"):
    """The model of this step."""


@dataclass(frozen=True)
class VerifySettings(Group, name="verify"):
    """Step 5: only traces whose answer is right go on."""

    model: VerifyModel = field(default_factory=VerifyModel)
    prompt: str = ""
    how: str = setting("judge", one_of(*VERIFY))
    """"judge" asks the model; "verifier" scores with the project's own where the gold can be
    checked by rule and asks the model elsewhere; "auto" lets the verifier accept, and asks the
    model about what it does not accept."""


@dataclass(frozen=True)
class SplitModel(ServedModel, name="split.model"):
    """The model of this step."""


@dataclass(frozen=True)
class SplitSettings(Group, name="split"):
    """Step 6: which samples are imitated and which are explored."""

    rule: str = setting("aha", one_of(*RULES))
    """"aha": traces with one of the paper's cues go to RL. "pass_rate" and "perplexity": samples
    between ``low`` and ``high`` go to RL."""
    low: float = 0.0
    high: float = 1.0
    rl_caps: str = setting("", reads_as(source_counts))
    """``NAME=COUNT,...``: RL samples of a source at most; without a row all that qualify."""
    aha_cap: int = setting(0, at_least(0))
    """Most samples of the aha-SFT file; 0: all."""
    seed: int = 0
    model: SplitModel = field(default_factory=SplitModel)
    """Measures pass rate or perplexity."""
    samples: int = setting(8, at_least(1))
    """Answers from which a pass rate is taken."""
    prompt: str = ""
    """System prompt file of the pass rate."""

    def check(self) -> None:
        """The band is one, and what it is about is measured."""
        if self.low > self.high:
            raise UserError(f"split.low: {self.low:g} is above split.high, {self.high:g}")


@dataclass(frozen=True)
class PipelineRunSettings(Group, name="run"):
    """How the run goes."""

    runner: str = setting("asyncio", one_of(*RUNNERS))
    beam_options: str = ""
    """Pipeline options of Apache Beam, as on its command line; empty runs on this machine."""
    in_flight: int = setting(0, at_least(0))
    """Samples on their way at once; 0: twice the concurrency of all models."""
    max_cost: float = setting(0.0, at_least(0))
    """US dollars of the whole work directory, earlier runs included; 0: no cap."""
    dry_run: bool = False
    """Estimate calls, tokens and cost, and ask nothing."""
    preview: int = setting(0, at_least(0))
    """Run this many samples through all steps, write preview.html and stop; 0: all samples."""
    max_failed: int = setting(20, at_least(1))
    """Samples that may fail in a row before the run stops; also the number of latest calls of an
    endpoint of which most must fail before it is left alone for a while."""
    rest_s: float = setting(5.0, above(0))
    """How long a failing endpoint is left alone at first, in seconds; doubles twice, then the run
    stops."""


@dataclass(frozen=True)
class PipelineSettings(Group):
    """Everything of a pipeline run."""

    task: str = "pipeline"
    collect: CollectSettings = field(default_factory=CollectSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    distil: DistilSettings = field(default_factory=DistilSettings)
    rewrite: RewriteSettings = field(default_factory=RewriteSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    run: PipelineRunSettings = field(default_factory=PipelineRunSettings)

    def models(self) -> dict[str, ServedModel]:
        """The served model of each step that asks one."""
        asked = {
            "caption": self.caption.model,
            "distil": self.distil.model,
            "rewrite": self.rewrite.model,
            "verify": self.verify.model,
        }
        return asked if self.split.rule == "aha" else {**asked, "difficulty": self.split.model}

    @property
    def in_flight(self) -> int:
        """Samples on their way at once: enough that no model waits for another."""
        places = {(model.url, model.model): model.concurrency for model in self.models().values()}
        return self.run.in_flight or 2 * sum(places.values())
