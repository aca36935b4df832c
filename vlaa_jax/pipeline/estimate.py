"""What a run would ask and cost, before anything is asked.

Samples go through the steps with the ledger alone. Where a sample first needs an answer that is not
there, its remaining steps are reckoned with: by the means of what is recorded already, for example
from a preview, and by the settings' expectations where nothing is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vlaa_jax.pipeline.contract import Step
from vlaa_jax.pipeline.ledger import Ledger, Reply
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.sample import Drop, Sample
from vlaa_jax.settings.pipeline import PipelineSettings, ServedModel

_TEMPLATE_TOKENS = 300
"""Prompt tokens of a step about whose input nothing is known yet, beside the answer before it."""


@dataclass(frozen=True)
class StepEstimate:
    """What one step would still ask."""

    calls: float
    prompt_tokens: float
    completion_tokens: float
    cost: float
    """US dollars."""
    measured: bool
    """Whether recorded replies were there to go by."""


class _WouldAsk(Exception):
    """A request that the ledger cannot answer."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


async def estimate(
    samples: Iterable[tuple[int, Sample]],
    steps: Mapping[str, Step],
    ledger: Ledger,
    settings: PipelineSettings,
) -> dict[str, StepEstimate]:
    """What a run of these samples would still ask, per step. Asks nothing."""
    models = settings.models()

    async def ask(request: Request) -> Reply:
        known = ledger.get(request.key(models[request.step]))
        if known is None:
            raise _WouldAsk(request)
        return known

    missing: Counter[str] = Counter()
    prompt_tokens: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for _, sample in samples:
        for name, step in steps.items():
            try:
                result = await step(sample, ask)
            except _WouldAsk as would:
                missing[name] += 1
                prompt_tokens[name] += would.request.prompt_tokens(models[name])
                break
            if isinstance(result, Drop):
                dropped[name] += 1
                break
            passed[name] += result != sample  # only what the step has worked on tells its rate
            sample = result
    share = {n: passed[n] / (passed[n] + dropped[n]) if passed[n] else 1.0 for n in steps}
    return _reckon(missing, prompt_tokens, share, ledger, models, settings.split.samples)


def _reckon(
    missing: Counter[str],
    prompt_tokens: Counter[str],
    share: Mapping[str, float],
    ledger: Ledger,
    models: Mapping[str, ServedModel],
    answers: int,
) -> dict[str, StepEstimate]:
    found = {}
    costs = ledger.costs()
    arriving = before = 0.0  # samples from the step before, and the length of its answers
    for name, model in models.items():
        known = costs.get(name)
        per_sample = answers if name == "difficulty" else 1
        own = missing[name]
        calls = (own + arriving) * per_sample
        if known is not None and known.calls:
            prompt = known.prompt_tokens / known.calls
            completion = known.completion_tokens / known.calls
        else:
            unseen = before + _TEMPLATE_TOKENS
            prompt = prompt_tokens[name] / own if own else unseen
            completion = model.expected_tokens or model.max_tokens / 2
        dollars = (prompt * model.price_prompt + completion * model.price_completion) / 1e6
        measured = bool(known and known.calls)
        found[name] = StepEstimate(
            calls, calls * prompt, calls * completion, calls * dollars, measured
        )
        arriving, before = (own + arriving) * share[name], completion
    return found
