"""Outputs from an OpenAI-compatible server."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vlaa_jax.endpoint import Endpoint, EndpointError, EndpointSettings, data_url
from vlaa_jax.evaluate.generate import Done, Generated, Job, by_question, seed_of
from vlaa_jax.foreign import without_surrogates
from vlaa_jax.schema import UserError
from vlaa_jax.settings.evaluate import GenerationSettings

_HOPELESS = 5
"""Failures in a row, beyond what is in flight, after which the server is given up."""


class Served:
    """Sends each question with its images as one chat request.

    Args:
        settings: server, model and decoding.
        say: told of each question that the server does not answer.
    """

    def __init__(self, settings: GenerationSettings, say: Callable[[str], object] = print) -> None:
        self._settings, self._say = settings, say
        self._failed_in_a_row = 0

    def check(self, jobs: Sequence[Job]) -> None:
        """See that every image is of a kind that can be sent."""
        for same in by_question(jobs):
            for image in same[0].images():
                data_url(image, same[0].name)

    async def generate(self, jobs: Sequence[Job], done: Done) -> None:
        """Answer all jobs, but for those that the server refuses: they stay without an output.

        Raises:
            UserError: the server answers nothing any more, or an image is of a kind that cannot be
                sent.
        """
        client = EndpointSettings(
            url=self._settings.url,
            model=self._settings.model,
            key_env=self._settings.key_env,
            concurrency=self._settings.concurrency,
            timeout_s=self._settings.timeout_s,
        )
        queue = iter(jobs)
        try:
            async with Endpoint(client) as endpoint, asyncio.TaskGroup() as group:
                for _ in range(min(self._settings.concurrency, len(jobs))):
                    group.create_task(self._work(endpoint, queue, done))
        except* UserError as errors:
            raise errors.exceptions[0] from None

    async def _work(self, endpoint: Endpoint, queue: Iterator[Job], done: Done) -> None:
        for job in queue:
            try:
                reply = await endpoint.chat(
                    self._messages(job),
                    max_tokens=self._settings.new_tokens,
                    temperature=self._settings.temperature,
                    top_p=self._settings.top_p,
                    seed=seed_of(job, self._settings.seed),
                )
            except EndpointError as error:
                self._failed_in_a_row += 1
                why = f"generation.url: {job.name}: {error}"
                if self._failed_in_a_row >= self._settings.concurrency + _HOPELESS:
                    raise UserError(why) from None
                self._say(why)
                continue
            self._failed_in_a_row = 0
            tokens = reply.completion_tokens or None
            done(job, Generated(without_surrogates(reply.text), reply.finish_reason, tokens))

    def _messages(self, job: Job) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(image, job.name)}}
            for image in job.images()
        ]
        system = self._settings.system_prompt
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": [*parts, {"type": "text", "text": job.prompt}]}]

    def describe(self) -> Mapping[str, Any]:
        """What decides the outputs, as far as this side knows it."""
        settings = self._settings
        return {
            "source": "server",
            "model": settings.model,
            "system_prompt": settings.system_prompt,
            "new_tokens": settings.new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed,
            "pixels": "the server's",
        }
