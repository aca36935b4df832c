"""A checkpoint made ready to decode requests."""

import dataclasses
import os
from itertools import chain, permutations, product
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from vlaa_jax.data.images.planner import ladder
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.prompts import Collator, Prompt
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.rollout.stream import PATIENCE, TOGETHER, Stream, Wanted
from vlaa_jax.schema import Record, UserError
from vlaa_jax.settings.serve import ServerSettings, ServeSettings
from vlaa_jax.settings.shared import PromptSettings


class Opened(NamedTuple):
    """A checkpoint on a mesh, without its weights."""

    pretrained: Pretrained
    data: PromptSettings
    mesh: Mesh


def open_checkpoint(settings: ServeSettings, mesh: Mesh | None = None) -> Opened:
    """Everything of a checkpoint but its weights.

    Args:
        settings: checkpoint, mesh and limits.
        mesh: instead of one of all devices.

    Raises:
        UserError: the checkpoint cannot be used, or this is one of several processes.
    """
    if jax.process_count() > 1:
        raise UserError("a server runs in one process; start one on each host")
    server = settings.server
    data = PromptSettings(
        min_pixels=server.min_pixels,
        max_pixels=server.max_pixels,
        max_prompt_tokens=server.max_prompt_tokens,
    )
    mesh = mesh or make_mesh(**dataclasses.asdict(settings.mesh))
    pretrained = open_pretrained(settings.model.shared(), data, mesh, trains=False)
    return Opened(pretrained, data, mesh)


def open_model(opened: Opened, server: ServerSettings) -> tuple[Pretrained, Stream, Collator]:
    """Reads the weights onto the mesh."""
    pretrained, data, mesh = opened
    stream = Stream(
        pretrained.graphdef,
        pretrained.load_params(),
        slots=server.slots,
        rows=server.rows,
        max_prompt=ladder(server.max_prompt_tokens, data.min_prompt_bucket),
        max_new_tokens=server.max_new_tokens,
        burst=server.burst,
        allowed_V=pretrained.allowed_V,
        mesh=mesh,
    )
    return pretrained, stream, Collator(pretrained, data, mesh)


def warm_up(pretrained: Pretrained, stream: Stream, collator: Collator) -> None:
    """Compiles what short texts are answered by, by few and by many slots.

    Longer prompts and images compile when they first come.
    """
    record = Record("warm-up", "Hello", ())
    encoded = Preprocessor(pretrained.chat, pretrained.processor).encode(record, ())

    def answer(together: int, slots: int) -> None:
        seats = together * stream.shards
        part = stream.prefill(collator([Prompt(record, encoded, None)] * seats)[0])
        greedy = Wanted(Sampling(greedy=True), 1, (), 0, slots * stream.rows)
        stream.seat(part, [greedy, *[None] * (seats - 1)])
        while stream.growing:
            stream.step()

    few = stream.per_shard <= TOGETHER // 2  # who would be prefilled together has no room
    for slots, together in product(stream.widths, (1,) if few else (1, TOGETHER)):
        answer(together, slots)
    # From each number of slots to each other, to fewer only after a while.
    for slots in chain.from_iterable(permutations(stream.widths, 2)):
        for _ in range(int(PATIENCE[0]) + 1):
            answer(1, slots)


def keep_compiled(folder: str) -> None:
    """Programs compiled by one process are found by the next."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
