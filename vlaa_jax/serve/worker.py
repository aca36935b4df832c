"""The thread that decodes: seats whoever waits, steps, and tells each request what is new."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vlaa_jax.policy.prompts import Collator, Prompt
from vlaa_jax.rollout.stream import News, Stream, Wanted
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
        """Seats one job per data shard, in the order they came; False where none has room."""
        here: dict[int, Job] = {}
        with self._changed:
            while self._waiting:
                count = self._waiting[0].wanted.completions
                shard = self.stream.place(count, list(here))
                if shard is None:
                    break
                here[shard] = self._waiting.popleft()
        if here:
            self._seat(here)
        return bool(here)

    def _seat(self, here: dict[int, Job]) -> None:
        stand_in = next(iter(here.values()))
        shards = range(self.stream.shards)
        try:
            prompts = [here.get(shard, stand_in).prompt for shard in shards]
            part = self.stream.prefill(self._collator(prompts)[0])
        except Exception as error:  # of these prompts alone: the buffers are as they were
            status = 400 if isinstance(error, UserError) else 500
            said = str(error).splitlines() or [type(error).__name__]
            self._deliver([(job, _failed(said[0], status)) for job in here.values()])
            return
        wanted = [here[shard].wanted if shard in here else None for shard in shards]
        try:
            tickets = self.stream.seat(part, wanted)
        except Exception:  # the buffers are lost; these are neither waiting nor seated
            self._deliver([(job, _failed("decoding failed", 500)) for job in here.values()])
            raise
        for shard, ticket in enumerate(tickets):
            if shard in here:
                job = here[shard]
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
