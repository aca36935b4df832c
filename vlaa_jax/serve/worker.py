"""The thread that decodes: seats whoever waits, steps, and tells each request what is new."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from vlaa_jax.policy.prompts import Collator, Prompt
from vlaa_jax.rollout.stream import TOGETHER, News, Stream, Wanted
from vlaa_jax.schema import UserError
from vlaa_jax.serve.errors import Refusal


@dataclass(eq=False)
class Job:
    """A request in hand."""

    prompt: Prompt
    wanted: Wanted
    news: asyncio.Queue[News | Refusal] = field(default_factory=asyncio.Queue)
    ticket: int = 0
    """0 while it waits."""
    growing: set[int] = field(default_factory=set)
    """Its completions that are being decoded."""


class Worker:
    """Decodes jobs in a thread of its own; the other methods are for the event loop.

    Args:
        stream: decodes; nobody else may use it.
        collator: puts prompts on the mesh.
        loop: where news are delivered.
        died: called once, on the loop, if decoding fails for good.
    """

    def __init__(
        self,
        stream: Stream,
        collator: Collator,
        loop: asyncio.AbstractEventLoop,
        died: Callable[[Exception], None],
    ) -> None:
        self.stream, self._collator = stream, collator
        self._loop, self._died = loop, died
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._unwanted: list[tuple[Job, int | None]] = []
        self._seated: dict[int, Job] = {}
        self._open = True
        self._at_once = TOGETHER * stream.shards
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still decoded."""
        return self._open and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs without a place."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Hand in a job; its news come through its queue, or one refusal."""
        with self._changed:
            if not self.alive:
                raise Refusal("the server is ending", status=503)
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job, choice: int | None = None) -> None:
        """Stop a job, or one of its completions; for one that has ended nothing happens."""
        with self._changed:
            self._unwanted.append((job, choice))
            self._changed.notify()

    def leave(self) -> None:
        """Take no more jobs, and refuse those in hand as soon as the burst is over."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def close(self) -> None:
        """End the thread, whatever is in hand."""
        self.leave()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._something_to_do():
                self._forget_unwanted()
                while self._seat_some():
                    pass
                if self.stream.growing:
                    self._tell(self.stream.step())
            self._refuse_all(Refusal("the server is ending", status=503))
        except Exception as error:  # whatever it is, nobody may wait for ever
            self._give_up(error)

    def _something_to_do(self) -> bool:
        """Waits for a job; False when it is time to go."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._open or self._waiting or self._unwanted or self.stream.growing
            )
            return self._open

    def _forget_unwanted(self) -> None:
        with self._changed:
            unwanted, self._unwanted = self._unwanted, []
            for job, choice in unwanted:
                if choice is None and job in self._waiting:
                    self._waiting.remove(job)
        for job, choice in unwanted:
            if job.ticket in self._seated:
                self.stream.drop(job.ticket, choice)
                job.growing -= job.growing if choice is None else {choice}
                self._let_go(job)

    def _seat_some(self) -> bool:
        """Seats some of those who wait, in the order they came; False where none has room.

        They are prefilled alone or `TOGETHER`: two sizes, so that who waits changes little of
        what is compiled; padding four to three costs less than three alone.
        """
        with self._changed:
            counts = [job.wanted.completions for job in islice(self._waiting, self._at_once)]
            shards = self.stream.places(counts, TOGETHER)
            most = TOGETHER if len(shards) > self.stream.shards * TOGETHER // 2 else 1
            if most == 1:
                shards = self.stream.places(counts)
            here: list[list[Job]] = [[] for _ in range(self.stream.shards)]
            for shard in shards:
                here[shard].append(self._waiting.popleft())
        if shards:
            self._seat([[*jobs, *[None] * (most - len(jobs))] for jobs in here])
        return bool(shards)

    def _seat(self, here: list[list[Job | None]]) -> None:
        """Seats jobs by data shard; None is padding."""
        places = [job for jobs in here for job in jobs]
        jobs = [job for job in places if job is not None]
        try:
            prompts = [(job or jobs[0]).prompt for job in places]
            part = self.stream.prefill(self._collator(prompts)[0])
        except Exception as error:  # of these prompts alone: the buffers are as they were
            status = 400 if isinstance(error, UserError) else 500
            said = str(error).splitlines() or [type(error).__name__]
            self._deliver([(job, _failed(said[0], status)) for job in jobs])
            return
        try:
            tickets = self.stream.seat(
                part, [None if job is None else job.wanted for job in places]
            )
        except Exception:  # the buffers are lost; these are neither waiting nor seated
            self._deliver([(job, _failed("decoding failed", 500)) for job in jobs])
            raise
        for job, ticket in zip(places, tickets, strict=True):
            if job is not None:
                job.ticket, job.growing = ticket, set(range(job.wanted.completions))
                self._seated[ticket] = job

    def _tell(self, news: Sequence[News]) -> None:
        told = []
        for one in news:
            job = self._seated[one.ticket]
            told.append((job, one))
            if one.ended:
                job.growing.discard(one.choice)
                self._let_go(job)
        if told:
            self._deliver(told)

    def _let_go(self, job: Job) -> None:
        if not job.growing:
            del self._seated[job.ticket]

    def _deliver(self, told: Sequence[tuple[Job, News | Refusal]]) -> None:
        def put() -> None:
            for job, one in told:
                job.news.put_nowait(one)

        self._loop.call_soon_threadsafe(put)

    def _refuse_all(self, refusal: Refusal) -> None:
        """Of jobs in hand, when there will be no more news."""
        with self._changed:
            everyone = [*self._waiting, *self._seated.values()]
            self._waiting.clear()
        for ticket in self._seated:
            self.stream.drop(ticket)
        self._deliver([(job, refusal) for job in everyone])

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._open = False
        self._refuse_all(_failed("decoding failed", 500))
        self._loop.call_soon_threadsafe(self._died, error)


def _failed(reason: str, status: int) -> Refusal:
    return Refusal(f"the answer could not be computed: {reason}"[:300], status=status)
