"""Supervised fine-tuning on packed rows: batch, update, log, save."""

import dataclasses
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.rows.batches import RowBatch
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.flops import row_flops
from vlaa_jax.parallel import hosts
from vlaa_jax.parallel.mesh import data_shards, make_mesh
from vlaa_jax.parallel.peak import flop_metrics
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.rows import RowSource
from vlaa_jax.schema import Summary
from vlaa_jax.settings.sft import SftSettings
from vlaa_jax.train.console import header
from vlaa_jax.train.inputs import inputs, same_inputs
from vlaa_jax.train.learner import Learner, Outcome
from vlaa_jax.train.metrics import StepClock
from vlaa_jax.train.opening import Opened
from vlaa_jax.train.rundir import RunDir
from vlaa_jax.train.sft_data import open_data, open_validation
from vlaa_jax.train.sft_loss import sft_loss
from vlaa_jax.train.validation import Benchmarks, Validation

Metrics = dict[str, float]


def run(
    settings: SftSettings, found: Opened, console: Console, benchmarks: Benchmarks | None = None
) -> Summary:
    """Trains on answers in a run directory, from wherever that stands to the last step.

    Args:
        settings: of the run.
        found: its directory and its records.
        console: where people read along.
        benchmarks: what to measure beside the held-out questions, if anything.

    Raises:
        UserError: a checkpoint cannot be used, or rows or weights do not fit the mesh.
    """
    with RunDir(found.claim, console) as rundir:
        mesh = make_mesh(**dataclasses.asdict(settings.mesh))
        pretrained = open_pretrained(settings.model, settings.data, mesh, reading=found.reading)
        data = open_data(settings, found, pretrained, mesh)
        if not settings.run.steps:
            updates = round(settings.data.epochs * data.train.updates_per_epoch())
            rundir.set_steps(max(updates, 1))
        distribution = Distribution(
            pretrained.graphdef, 1.0, settings.logprob_chunk, data_shards(mesh)
        )
        learner = Learner(
            settings, pretrained, partial(sft_loss, distribution), updates=rundir.steps, mesh=mesh
        )
        progress = learner.load(rundir.checkpoints) or rundir.progress
        loader = rundir.closes(data.train.loader())
        watching = data.validation.records if data.validation else ()
        now = inputs(pretrained.path, data.images, data.records, watching)
        progress = same_inputs(data.resume(progress, loader), now)
        rundir.begin(progress, pretrained.sidecars)
        kinds, name = {"with answers": len(data.records)}, settings.model.checkpoint
        console.print(header(rundir.path, name, *learner.count(), kinds, mesh), highlight=False)
        watched = Watched(distribution, data.validation)
        measure = benchmarks(pretrained, mesh) if benchmarks else None
        validation = open_validation(settings, pretrained, found, mesh, rundir, measure)
        validation.measure(learner.params, "before")
        with rundir.saving(learner, updates_per_step=1):
            train(Parts(learner, loader, data.train, pretrained, mesh), rundir, watched, validation)
        after = validation.measure(learner.params, "after") | watched(learner)
        validation.summary()
        return rundir.summary(after)


class Parts(NamedTuple):
    """What a step is made of."""

    learner: Learner
    loader: Loader[RowBatch]
    rows: RowSource
    pretrained: Pretrained
    mesh: Mesh


def train(parts: Parts, rundir: RunDir, watched: "Watched", validation: Validation) -> None:
    """The loop, from wherever the run stands to its last step."""
    learner, loader, rows = parts.learner, parts.loader, parts.rows
    for step in range(rundir.progress.step, rundir.steps):
        clock = StepClock()
        batches = list(islice(loader, rows.batches_per_update))
        clock.lap("data")
        own = [rows.own(batch) for batch in batches]
        targets = sum(int(batch.loss_mask_BT[:, 1:].sum()) for batch in own)
        (total,) = hosts.total([targets], f"the data of step {step + 1}")
        outcome = learner.update(rows.put(batches), jnp.float32(total), count=len(batches))
        learner.stop_when_skipping()
        metrics = loss_metrics(outcome) | {"train/lr": learner.learning_rate}
        clock.lap("update")
        metrics |= batch_metrics(parts.pretrained.config, parts.mesh, own, clock)
        if rundir.evaluates(step):
            metrics |= watched(learner) | validation(learner.params, step + 1)
        rundir.report(step, metrics, clock, words(metrics))
        # Only now is the step done: whatever interrupts it before makes it be done again.
        position = rundir.progress._replace(step=step + 1, loader=loader.get_state())
        rundir.finish_step(position, learner)


class Watched:
    """The loss of records that are not trained on."""

    def __init__(self, distribution: Distribution, source: RowSource | None) -> None:
        self._source = source
        self._loss = jax.jit(
            lambda params, batch: sft_loss(distribution, params, batch, jnp.float32(1))[1]
        )

    def __call__(self, learner: Learner) -> Metrics:
        """``validation/loss`` per target token, or nothing where there are no such records."""
        if self._source is None:
            return {}
        with self._source.once() as loader:
            params = learner.params
            placed = (next(self._source.put([batch])) for batch in loader)
            found = [self._loss(params, batch) for batch in placed]
        tokens = sum(int(report.tokens) for report in found)
        return {"validation/loss": sum(float(report.loss) for report in found) / max(tokens, 1)}


def loss_metrics(outcome: Outcome) -> Metrics:
    """Loss, gradient and entropy of an update."""
    tokens = sum(int(report.tokens) for report in outcome.reports)
    entropy = sum(float(report.entropy) for report in outcome.reports)
    return {
        "train/loss": sum(float(share) for share in outcome.losses),
        "train/grad_norm": float(outcome.norm),
        "train/loss_tokens": float(tokens),
        "policy/entropy": entropy / max(tokens, 1),
    }


def batch_metrics(
    config: QwenVLConfig, mesh: Mesh, batches: list[RowBatch], clock: StepClock
) -> Metrics:
    """What the rows of all hosts held, how much was padding, and how fast they were learnt.

    Args:
        config: of the model.
        mesh: the device mesh.
        batches: what this host counts of the update.
        clock: of the step.
    """
    lengths = [n for batch in batches for n in _segment_lengths(batch.segment_ids_BT)]
    images = [n for batch in batches for n in _segment_lengths(batch.vision.seg_id_SQ)]
    patches = [(np.count_nonzero(b.vision.seg_id_SQ), b.vision.seg_id_SQ.size) for b in batches]
    samples, tokens, slots, targets, flops, *seen = hosts.total(
        [
            len(lengths),
            sum(lengths),
            sum(batch.ids_BT.size for batch in batches),
            sum(int(batch.loss_mask_BT.sum()) for batch in batches),
            3 * row_flops(config, lengths, images),
            *(int(count) for pair in patches for count in pair),
        ]
    )
    seconds = clock.seconds["update"]
    padding = [
        1.0 - real / size if real else 0.0 for real, size in zip(seen[::2], seen[1::2], strict=True)
    ]
    return {
        "data/samples": float(samples),
        "padding/text_frac": 1.0 - tokens / slots,
        "padding/vision_frac": float(np.mean(padding)),
        "train/tokens_per_s": tokens / seconds,
        "train/slots_per_s": slots / seconds,
        "train/loss_tokens_per_s": targets / seconds,
        **flop_metrics(flops / seconds, mesh),
    }


def _segment_lengths(segments: np.ndarray) -> list[int]:
    """Lengths of the numbered segments of each row; 0 is padding."""
    return [int(n) for row in segments for n in np.bincount(row.reshape(-1))[1:] if n]


def words(metrics: Metrics) -> list[str]:
    """What the terminal says of a step."""
    said = [f"loss {metrics['train/loss']:.4f}"]
    if "validation/loss" in metrics:
        said.append(f"validation {metrics['validation/loss']:.4f}")
    said.append(f"samples {metrics['data/samples']:.0f}")
    return [*said, f"{metrics['train/tokens_per_s']:.0f} tok/s"]
