"""Outputs from this project's engine on the mesh: weights, tokenizer and sampler, no trainer."""

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh

from vlaa_jax import digests
from vlaa_jax.data.images.files import decode_image, in_memory, inspect
from vlaa_jax.data.images.planner import ladder
from vlaa_jax.evaluate.generate import Done, Generated, Job, by_question, seed_of
from vlaa_jax.models.qwen_vl.weights import step_of
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.prompts import Collator, Encoder, Prompt
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.stream import TOGETHER, News, Stream, Wanted
from vlaa_jax.rollout.weights import sampling_mesh
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.shared import PromptSettings

_BATCHES_READ = 8
"""Batches whose images are read and sorted by length together."""
_BURST = 16
"""Tokens between two looks for outputs that have ended."""
_READERS = 2

Asked = tuple[list[Job], Prompt]
"""The jobs of one question and its prompt."""


class OwnEngine:
    """Decodes questions, those of one length about the same time.

    Weights are read onto the mesh at the first question, so that a run with nothing left to do
    never reads them; a trainer gives its own with ``use``.

    Args:
        settings: checkpoint, mesh and decoding.
        opened: the checkpoint and the mesh where a trainer has them already. Otherwise every host
            has the whole model on its own devices and answers questions of its own.
        tensor: parts that a trainer's weights are cut into while sampling; 0 takes the mesh's.

    Raises:
        UserError: the checkpoint cannot be used.
    """

    def __init__(
        self,
        settings: EvaluateSettings,
        opened: tuple[Pretrained, Mesh] | None = None,
        tensor: int = 0,
    ) -> None:
        generation = settings.generation
        self._settings = generation
        self._model = settings.model
        data = PromptSettings(
            system_prompt=generation.system_prompt,
            min_pixels=generation.min_pixels,
            max_pixels=generation.max_pixels,
            max_prompt_tokens=generation.max_prompt_tokens,
        )
        self._pretrained, self._mesh = opened or _opened(settings, data)
        self._encode = Encoder(self._pretrained, data, generation.new_tokens)
        self._collator = Collator(self._pretrained, data, self._mesh)
        self._stream = Stream(
            self._pretrained.graphdef,
            None,
            slots=generation.batch,
            rows=generation.samples,
            max_prompt=ladder(generation.max_prompt_tokens, data.min_prompt_bucket),
            max_new_tokens=generation.new_tokens,
            burst=_BURST,
            allowed_V=self._pretrained.allowed_V,
            mesh=sampling_mesh(self._mesh, tensor) if tensor else self._mesh,
        )
        self._sampling, self._stop_ids = _sampling(settings), self._pretrained.chat.stop_ids
        self._together = min(TOGETHER, self._stream.per_shard)
        self._params: Mapping[str, Any] | None = None

    def use(self, params: Mapping[str, Any]) -> None:
        """Decode with these parameters from now on."""
        self._params = params

    def check(self, jobs: Sequence[Job]) -> None:
        """Measure every prompt, from its text and the headers of its images.

        Raises:
            UserError: a prompt is too long, an image is damaged or of a shape that the checkpoint
                does not take, or a text holds its special tokens.
        """
        judge = self._encode.judge(None)
        for job, *_ in by_question(jobs):
            facts = [inspect(in_memory(data, job.name), job.name, whole=False)
                     for data in job.images()]  # fmt: skip
            (verdict,) = judge([_record(job, len(facts))], [facts])
            for problem in verdict.problems:  # which names settings as a training has them
                reason = problem.reason.replace("data.", "generation.")
                raise UserError(f"{job.name}: {reason}")

    async def generate(self, jobs: Sequence[Job], done: Done) -> None:
        """Answer all jobs; all samples of a question are drawn together."""
        if jobs and self._params is None:
            self._params = self._pretrained.load_params()
        self._stream.use(self._params)
        try:
            self._answer(jobs, done)
        finally:
            self._stream.use(None)

    def _answer(self, jobs: Sequence[Job], done: Done) -> None:
        queue: deque[Asked] = deque()
        answering: dict[int, _Answering] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            windows, more = self._windows(pool, by_question(jobs)), True
            while more or queue or answering:
                while more and len(queue) < self._at_once:
                    window = next(windows, None)
                    more = window is not None
                    queue += window or ()
                self._seat(queue, answering)
                for news in self._stream.step():
                    self._tell(news, answering, done)

    @property
    def _at_once(self) -> int:
        """Questions that are prefilled together."""
        return self._together * self._stream.shards

    def _windows(self, pool: Executor, questions: list[list[Job]]) -> Iterator[list[Asked]]:
        """Questions with their prompts, sorted by length; the next ones are read meanwhile."""
        size = self._stream.per_shard * self._stream.shards * _BATCHES_READ
        read: list[tuple[list[list[Job]], Iterator[Prompt]]] = []
        for start in range(0, len(questions) + size, size):
            part = questions[start : start + size]
            read.append((part, pool.map(self._prompt, part)))
            if start:
                found = zip(*read.pop(0), strict=True)
                yield sorted(found, key=lambda asked: asked[1].encoded.length)

    def _prompt(self, jobs: Sequence[Job]) -> Prompt:
        job = jobs[0]
        images = tuple(decode_image(data, job.name) for data in job.images())
        return self._encode(_record(job, len(images)), images)

    def _seat(self, queue: deque[Asked], answering: "dict[int, _Answering]") -> None:
        """Seats questions as long as there is room for as many as are prefilled together."""
        stream = self._stream
        while queue:
            wanted = min(len(queue), self._at_once)
            shards = stream.places([self._settings.samples] * wanted, self._together)
            if len(shards) < wanted:
                return
            here: list[list[Asked | None]] = [[] for _ in range(stream.shards)]
            for shard in shards:
                here[shard].append(queue.popleft())
            seats = [one for own in here for one in (*own, *[None] * (self._together - len(own)))]
            some = next(one for one in seats if one is not None)
            part = stream.prefill(self._collator([(one or some)[1] for one in seats])[0])
            tickets = stream.seat(
                part, [None if one is None else self._wanted(one) for one in seats]
            )
            answering.update(
                (ticket, _Answering(one[0], [[] for _ in range(self._settings.samples)]))
                for ticket, one in zip(tickets, seats, strict=True)
                if one is not None
            )

    def _wanted(self, asked: Asked) -> Wanted:
        first = dataclasses.replace(asked[0][0], sample=0)
        settings = self._settings
        return Wanted(
            self._sampling,
            settings.new_tokens,
            self._stop_ids,
            seed_of(first, settings.seed),
            completions=settings.samples,
        )

    def _tell(self, news: News, answering: "dict[int, _Answering]", done: Done) -> None:
        """Books tokens, and tells of an output that has ended."""
        question = answering[news.ticket]
        tokens = question.tokens[news.choice]
        tokens += news.tokens_T.tolist()
        if not news.ended:
            return
        question.left -= 1
        if not question.left:
            del answering[news.ticket]
        for job in question.jobs:
            if job.sample == news.choice:
                text = self._pretrained.chat.decode(tokens)
                done(job, Generated(text, news.ended, len(tokens)))

    def describe(self) -> Mapping[str, Any]:
        """What decides the outputs."""
        settings, processor = self._settings, self._pretrained.processor
        return {
            "source": "engine",
            "model": str(self._model.checkpoint),
            "directory": self._pretrained.path.name,  # of a run its step, of a hub id the commit
            "weights": digests.of_weights(self._pretrained.path),
            "dtype": self._model.dtype,
            "system_prompt": settings.system_prompt,
            "new_tokens": settings.new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "seed": settings.seed,
            "samples": settings.samples,
            "min_pixels": processor.min_pixels,
            "max_pixels": processor.max_pixels,
        }


@dataclasses.dataclass
class _Answering:
    """A question in hand: who asked, and the tokens of each sample so far."""

    jobs: list[Job]
    tokens: list[list[int]]
    left: int = 0

    def __post_init__(self) -> None:
        self.left = len(self.tokens)


def _record(job: Job, images: int) -> Record:
    names = tuple(f"{job.index}-{place}" for place in range(images))
    return Record(job.name, job.prompt, names)


def _opened(settings: EvaluateSettings, data: PromptSettings) -> tuple[Pretrained, Mesh]:
    mesh = make_mesh(**dataclasses.asdict(settings.mesh), devices=jax.local_devices())
    pretrained = open_pretrained(settings.model.shared(), data, mesh, trains=False)
    # Of a run that still trains, the step that is newest now is read, and told.
    step = step_of(pretrained.path)
    return dataclasses.replace(pretrained, path=step or pretrained.path), mesh


def _sampling(settings: EvaluateSettings) -> Sampling:
    generation = settings.generation
    if generation.temperature == 0:
        return Sampling(greedy=True)
    return Sampling(generation.temperature, generation.top_k, generation.top_p)
