"""Settings of the pipeline task: a group per step, a served model in each step that asks one."""

from dataclasses import dataclass, field

from vlaa_jax.schema import UserError

GAPS = ("length", "edit")
VERIFY = ("judge", "verifier", "auto")
RULES = ("aha", "pass_rate", "perplexity")
TRANSPORTS = ("live", "batch")
RUNNERS = ("asyncio", "beam")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


@dataclass(frozen=True)
class ServedModel:
    """A model behind an OpenAI-compatible endpoint: how it is asked, how fast, at what price."""

    url: str = ""
    """Base URL, e.g. ``https://api.openai.com/v1``; "embedded" is the scripted local server."""
    model: str = ""
    key_env: str = ""
    """Environment variable that holds the key; empty sends none."""
    tag: str = ""
    """Becomes part of what a recorded reply is found by: change it when another model is served
    under the same name."""
    temperature: float | None = None
    """None leaves it to the server."""
    top_p: float | None = None
    max_tokens: int = 1024
    concurrency: int = 32
    """Most calls in flight; the pacing finds what the server bears below it."""
    start_concurrency: int = 8
    requests_per_minute: float = 0.0
    """0: no limit known."""
    tokens_per_minute: float = 0.0
    """Prompt and completion together; 0: no limit known."""
    timeout_s: float = 120.0
    """Of one try."""
    deadline_s: float = 1800.0
    """Of a call with all its tries and pauses, from its first turn on."""
    retries: int = 5
    """Further tries after a failure that may pass; an overloaded server is asked until the
    deadline."""
    backoff_s: float = 0.5
    price_prompt: float = 0.0
    """US dollars per million prompt tokens."""
    price_completion: float = 0.0
    image_tokens: int = 1000
    """Prompt tokens that an image is taken to cost, in estimates before the call."""
    expected_tokens: int = 0
    """Completion tokens that a dry run reckons with until replies are recorded; 0: half of
    max_tokens."""
    transport: str = "live"
    """"live", or "batch": the provider's batch API."""
    batch_requests: int = 1000
    """Requests in one file of the batch API."""
    batch_poll_s: float = 30.0

    def __post_init__(self) -> None:
        name = f"model {self.model!r}"
        _require(self.transport in TRANSPORTS, f"{name}: transport is one of {TRANSPORTS}")
        for field_name in ("max_tokens", "concurrency", "start_concurrency", "batch_requests"):
            value = getattr(self, field_name)
            _require(value >= 1, f"{name}: {field_name} is {value}: it must be at least 1")
        for field_name in ("requests_per_minute", "tokens_per_minute", "retries", "backoff_s"):
            value = getattr(self, field_name)
            _require(value >= 0, f"{name}: {field_name} is {value}: it must not be negative")
        for field_name in ("price_prompt", "price_completion", "image_tokens", "expected_tokens"):
            value = getattr(self, field_name)
            _require(value >= 0, f"{name}: {field_name} is {value}: it must not be negative")
        for field_name in ("timeout_s", "deadline_s", "batch_poll_s"):
            value = getattr(self, field_name)
            _require(value > 0, f"{name}: {field_name} is {value}: it must be above 0")


@dataclass(frozen=True)
class CollectSettings:
    """Step 1: which sources, from where, how many."""

    sources: str = ""
    """``NAME=FOLDER,NAME=FOLDER``: unpacked downloads, see docs/pipeline.md; "embedded" draws."""
    limits: str = ""
    """``NAME=COUNT,...``: samples taken of a source at random; without a row all of them."""
    unique_images: bool = True
    """Take an image (by its bytes) once, whatever the source and question."""
    embedded: int = 60
    """Samples that "embedded" draws."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.embedded >= 1, "collect.embedded must be at least 1")


@dataclass(frozen=True)
class CaptionSettings:
    """Step 2: a factual caption by a model that sees the image."""

    model: ServedModel = field(default_factory=ServedModel)
    prompt: str = ""
    """Text file to use instead of the one in ``prompts/``."""


@dataclass(frozen=True)
class DistilSettings:
    """Step 3: a trace by a reasoning model that reads the caption."""

    model: ServedModel = field(default_factory=ServedModel)
    prompt: str = ""


@dataclass(frozen=True)
class RewriteSettings:
    """Step 4: what gives the caption away is reworded, and traces that changed too much go."""

    model: ServedModel = field(default_factory=ServedModel)
    prompt: str = ""
    gap: str = "length"
    """What is held against ``max_gap``: "length", the difference of the two counts of words, or
    "edit", the words that were put in, taken out or exchanged."""
    max_gap: int = 15
    """Words."""

    def __post_init__(self) -> None:
        _require(self.gap in GAPS, f"rewrite.gap is {self.gap!r}: it must be one of {GAPS}")
        _require(self.max_gap >= 0, "rewrite.max_gap must not be negative")


@dataclass(frozen=True)
class VerifySettings:
    """Step 5: only traces whose answer is right go on."""

    model: ServedModel = field(default_factory=ServedModel)
    prompt: str = ""
    how: str = "judge"
    """"judge" asks the model; "verifier" scores with the project's own where the gold can be
    checked by rule and asks the model elsewhere; "auto" lets the verifier accept, and asks the
    model about what it does not accept."""

    def __post_init__(self) -> None:
        _require(self.how in VERIFY, f"verify.how is {self.how!r}: it must be one of {VERIFY}")


@dataclass(frozen=True)
class SplitSettings:
    """Step 6: which samples are imitated and which are explored."""

    rule: str = "aha"
    """"aha": traces with one of the paper's cues go to RL. "pass_rate" and "perplexity": samples
    between ``low`` and ``high`` go to RL."""
    low: float = 0.0
    high: float = 1.0
    rl_caps: str = ""
    """``NAME=COUNT,...``: RL samples of a source at most; without a row all that qualify."""
    aha_cap: int = 0
    """Most samples of the aha-SFT file; 0: all."""
    seed: int = 0
    model: ServedModel = field(default_factory=ServedModel)
    """Measures pass rate or perplexity."""
    samples: int = 8
    """Answers from which a pass rate is taken."""
    prompt: str = ""
    """System prompt file of the pass rate."""

    def __post_init__(self) -> None:
        _require(self.rule in RULES, f"split.rule is {self.rule!r}: it must be one of {RULES}")
        _require(self.samples >= 1, "split.samples must be at least 1")
        _require(self.aha_cap >= 0, "split.aha_cap must not be negative")
        _require(self.low <= self.high, "split.low must not be above split.high")


@dataclass(frozen=True)
class PipelineRunSettings:
    """How the run goes."""

    runner: str = "asyncio"
    beam_options: str = ""
    """Pipeline options of Apache Beam, as on its command line; empty runs on this machine."""
    in_flight: int = 0
    """Samples on their way at once; 0: twice the concurrency of all models."""
    max_cost: float = 0.0
    """US dollars of the whole work directory, earlier runs included; 0: no cap."""
    dry_run: bool = False
    """Estimate calls, tokens and cost, and ask nothing."""
    preview: int = 0
    """Run this many samples through all steps, write preview.html and stop; 0: all samples."""
    max_failed: int = 20
    """Calls that may fail in a row before the run stops; in the asyncio runner also the number of
    calls after which an endpoint is given a rest when most of them fail."""

    def __post_init__(self) -> None:
        _require(self.runner in RUNNERS, f"run.runner is {self.runner!r}: one of {RUNNERS}")
        for name in ("in_flight", "max_cost", "preview"):
            value = getattr(self, name)
            _require(value >= 0, f"run.{name} is {value}: it must not be negative")
        _require(self.max_failed >= 1, "run.max_failed must be at least 1")


@dataclass(frozen=True)
class PipelineSettings:
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
