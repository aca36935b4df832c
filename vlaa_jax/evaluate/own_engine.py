"""Outputs from this project's engine on the mesh: weights, tokenizer and sampler, no trainer."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vlaa_jax import digests
from vlaa_jax.data.images.files import decode_image, in_memory, inspect
from vlaa_jax.evaluate.generate import Done, Generated, Job, by_question, seed_of
from vlaa_jax.models.qwen_vl.model import PromptInputs
from vlaa_jax.models.qwen_vl.weights import step_of
from vlaa_jax.parallel.mesh import data_shards, make_mesh
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.prompts import Collator, Encoder, Prompt
from vlaa_jax.rollout.engine import Engine, Rollout
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.weights import sampling_mesh
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.shared import PromptSettings

_BATCHES_READ = 8
"""Batches whose images are read and sorted by length together."""
_BURST = 64
"""Tokens between two looks for outputs that have ended."""
_READERS = 2

Asked = tuple[list[Job], Prompt]
"""The jobs of one question and its prompt."""


class OwnEngine:
    """Decodes questions in batches of prompts of one padded length.

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
        shards = data_shards(self._mesh)
        self._batch = -(-generation.batch // shards) * shards
        self._engine = Engine(
            self._pretrained.graphdef,
            completions=generation.samples,
            max_new_tokens=generation.new_tokens,
            sampling=_sampling(settings),
            eos_id=self._pretrained.chat.stop_ids,
            allowed_V=self._pretrained.allowed_V,
            slots=self._batch,
            burst=_BURST,
            mesh=sampling_mesh(self._mesh, tensor) if tensor else self._mesh,
        )
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
        waiting = iter(by_question(jobs))
        with ThreadPoolExecutor(_READERS) as pool:
            while some := list(islice(waiting, self._batch * _BATCHES_READ)):
                asked = list(zip(some, pool.map(self._prompt, some), strict=True))
                for same in self._by_length(asked):
                    self._decode(same, done)

    def _prompt(self, jobs: Sequence[Job]) -> Prompt:
        job = jobs[0]
        images = tuple(decode_image(data, job.name) for data in job.images())
        return self._encode(_record(job, len(images)), images)

    def _by_length(self, asked: Sequence[Asked]) -> Iterator[list[Asked]]:
        """Questions of one padded length together, in their order."""
        lengths: dict[int, list[Asked]] = {}
        for one in asked:
            lengths.setdefault(self._collator.prompt_bucket([one[1]]), []).append(one)
        for length in sorted(lengths):
            yield lengths[length]

    def _decode(self, asked: Sequence[Asked], done: Done) -> None:
        prompts = [prompt for _, prompt in asked]
        seeds = [seed_of(dataclasses.replace(jobs[0], sample=0), self._settings.seed)
                 for jobs, _ in asked]  # fmt: skip

        def finished(places: list[int], rollout: Rollout) -> None:
            for row, place in enumerate(places):
                self._tell(asked[place][0], rollout, row, done)

        self._engine.generate(
            self._params or {},
            self._parts(prompts),
            jax.vmap(jax.random.key)(np.array(seeds, np.uint32)),
            prefix_length=self._collator.prompt_bucket(prompts),
            on_finished=finished,
        )

    def _parts(self, prompts: Sequence[Prompt]) -> Iterator[PromptInputs]:
        for start in range(0, len(prompts), self._batch):
            part = list(prompts[start : start + self._batch])
            yield self._collator((part * self._batch)[: self._batch])[0]

    def _tell(self, jobs: Sequence[Job], rollout: Rollout, row: int, done: Done) -> None:
        lengths_G = rollout.length_PG[row]
        tokens = [rollout.tokens_PGT[row, g, : lengths_G[g]] for g in range(len(lengths_G))]
        texts = self._pretrained.chat.decode_batch([ids.tolist() for ids in tokens])
        for job in jobs:
            cut = bool(rollout.truncated_PG[row, job.sample])
            reason = "length" if cut else "stop"
            done(job, Generated(texts[job.sample], reason, int(lengths_G[job.sample])))

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
