"""The judge: a chat model behind an endpoint, whose replies are recorded and can be replayed.

A call that failed is counted and gives no reply; it is never recorded, so a later run asks again.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlaa_jax.endpoint import Endpoint, EndpointError, EndpointSettings
from vlaa_jax.evaluate.ledger import Ledger
from vlaa_jax.evaluate.nouns import Benchmark, Question
from vlaa_jax.foreign import without_surrogates
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import JudgeSettings

_HOPELESS = 5
"""Failures without any success after which an endpoint is given up."""


def replies_of(benchmarks: Sequence[Benchmark], settings: JudgeSettings, workdir: Path) -> Path:
    """The file of recorded replies of a run, there or not.

    Raises:
        UserError: a benchmark cannot be scored like this.
    """
    if not settings.replies:
        replies = workdir / "judge.jsonl"
    elif not (replies := Path(settings.replies).expanduser()).is_file() and not settings.url:
        raise UserError(f"judge.replies: {replies} is no file, and judge.url is not set")
    refuse_without_judge(benchmarks, settings, replies.is_file())
    return replies


def refuse_without_judge(
    benchmarks: Sequence[Benchmark], settings: JudgeSettings, recorded: bool
) -> None:
    """Say at the start that a benchmark cannot be scored without a judge.

    Args:
        benchmarks: to be scored.
        settings: of the judge.
        recorded: whether there are recorded replies.

    Raises:
        UserError: one of them needs a judge, and none is set.
    """
    if settings.url or recorded:
        return
    how = "set judge.url and judge.model, or judge.replies to recorded replies"
    for benchmark in benchmarks:
        if benchmark.judge == "always":
            raise UserError(f"{benchmark.title} needs a judge for every output: {how}")
        if benchmark.judge == "sometimes" and not settings.rules_only:
            raise UserError(
                f"{benchmark.title} needs a judge for some outputs: {how}; or set "
                "judge.rules_only=True for the sub-score of what rules decide"
            )


class RecordedJudge:
    """Answers from the record, else from the endpoint, and records what that says.

    Args:
        settings: model and endpoint.
        replies: file of the record.
        stops: whether an endpoint that never answers stops the run; else it is not asked again.

    Attributes:
        asked: calls made to the endpoint.
        replayed: replies that came from the record.
        failures: calls that gave no reply, by kind.
    """

    def __init__(self, settings: JudgeSettings, replies: Path, *, stops: bool = True) -> None:
        self._settings, self._stops = settings, stops
        self._ledger = Ledger(replies)
        self._known: dict[str, str] = {
            record["key"]: record["reply"]
            for record in self._ledger.records
            if isinstance(record.get("key"), str) and isinstance(record.get("reply"), str)
        }
        self._endpoint: Endpoint | None = None
        self._in_flight: dict[str, asyncio.Task[str | None]] = {}
        self.asked = self.replayed = self.answered = 0
        self.failures: Counter[str] = Counter()

    async def ask(self, question: Question) -> str | None:
        """The reply; None where the call failed or nothing is recorded.

        Raises:
            UserError: the endpoint has never answered, in some tries, and that stops the run.
        """
        key = self.key_of(question)
        if key in self._known:
            self.replayed += 1
            return self._known[key]
        if not self._settings.url or (self._hopeless and not self._stops):
            self.failures["not recorded"] += 1
            return None
        task = self._in_flight.get(key)
        if task is None:  # outputs that are the same ask once
            task = asyncio.create_task(self._call(question, key))
            self._in_flight[key] = task
            task.add_done_callback(lambda _: self._in_flight.pop(key, None))
        return await task

    @property
    def _hopeless(self) -> bool:
        return not self.answered and sum(self.failures.values()) >= _HOPELESS

    def calls(self) -> dict[str, Any]:
        """What was asked so far, for the record of the run."""
        return {
            "judge calls": self.asked,
            "judge replies from the record": self.replayed,
            "judge failures": dict(self.failures),
        }

    def key_of(self, question: Question) -> str:
        """What a recorded reply is found by: model, prompt, sampling and repeat."""
        prompt = hashlib.sha256(question.prompt.encode("utf-8", "replace")).hexdigest()
        parts = [
            self._settings.model,
            prompt,
            self._temperature(question),
            question.max_tokens,
            question.attempt,
            self._settings.repeat,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _temperature(self, question: Question) -> float:
        stated = question.temperature
        return self._settings.temperature if stated is None else stated

    async def _call(self, question: Question, key: str) -> str | None:
        if self._endpoint is None:
            self._endpoint = Endpoint(_client(self._settings))
        self.asked += 1
        try:
            reply = await self._endpoint.chat(
                [{"role": "user", "content": question.prompt}],
                temperature=self._temperature(question),
                max_tokens=question.max_tokens,
            )
        except EndpointError as error:
            self.failures[error.kind] += 1
            if self._hopeless and self._stops:
                raise UserError(f"judge.url {self._settings.url}: {error}") from None
            return None
        self.answered += 1
        text = self._known[key] = without_surrogates(reply.text)
        self._ledger.append(
            {
                "key": key,
                "model": self._settings.model,
                "stage": question.stage,
                "temperature": self._temperature(question),
                "attempt": question.attempt,
                "repeat": self._settings.repeat,
                "prompt": question.prompt,
                "reply": text,
            }
        )
        return text

    async def aclose(self) -> None:
        """Close the connections and let the record go."""
        if self._endpoint is not None:
            await self._endpoint.aclose()
        self._ledger.close()


def _client(settings: JudgeSettings) -> EndpointSettings:
    return EndpointSettings(
        url=settings.url,
        model=settings.model,
        key_env=settings.key_env,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        retries=settings.retries,
    )
