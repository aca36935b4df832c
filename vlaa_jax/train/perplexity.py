"""The paper's choice of SFT records: those whose answers surprise some models most.

The perplexity of an answer is exp of the mean negative log-probability of its tokens and its
end-of-turn token, given image and question: what SFT would learn from. Where several models are
named, a record counts by the mean of its perplexities (arXiv 2504.11468, section 3.1).
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.data.loaders.loader import records_digest
from vlaa_jax.data.records.parse import as_released
from vlaa_jax.data.rows.batches import RowBatch
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.foreign import parse_json, read_object
from vlaa_jax.parallel.mesh import data_shards, make_mesh
from vlaa_jax.policy.checked import RowCheck, Usable, load_checked
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import Pretrained, open_pretrained
from vlaa_jax.policy.rows import RowSource
from vlaa_jax.schema import Record, Summary, UserError
from vlaa_jax.settings.perplexity import PerplexitySettings
from vlaa_jax.train.claim import check_files, check_settings, lock, plain
from vlaa_jax.train.console import minutes
from vlaa_jax.train.histogram import write_histogram
from vlaa_jax.train.inputs import inputs
from vlaa_jax.train.opening import image_root

RANKING = "perplexity.jsonl"


@dataclass(frozen=True)
class Ranked:
    """A record with its perplexity under each model."""

    record: Record
    by_model: tuple[float, ...]
    tokens: int
    """Targets, under the first model's tokenizer."""

    @property
    def perplexity(self) -> float:
        """The mean over models."""
        return float(np.mean(self.by_model))


def run(settings: PerplexitySettings, workdir: Path, console: Console) -> Summary:
    """Measures all answers, from wherever the directory stands, ranks them and writes the top.

    Raises:
        UserError: the directory, a checkpoint or the data cannot be used, or there are fewer
            records than run.top asks for.
    """
    check_files(settings.data)
    if jax.process_count() > 1:
        raise UserError("perplexity runs on one host; all its devices are used")
    release = lock(workdir)
    try:
        check_settings(workdir, settings)
        mesh = make_mesh(**asdict(settings.mesh))
        measured: list[dict[str, Measured]] = []
        records: dict[str, Record] = {}
        for number, checkpoint in enumerate(settings.models):
            usable, found = _under_model(settings, checkpoint, number, mesh, workdir, console)
            known = {record.id: record for record in usable}
            # What one model's rows cannot hold is ranked by none.
            records = known if not number else {k: records[k] for k in records if k in known}
            measured.append(found)
        ranked = ranking(records.values(), measured)
        _check_top(settings.run.top, len(ranked))
        _write(ranked, settings, workdir)
        return _say(ranked, settings, workdir, console)
    finally:
        release()


# -- one model


@dataclass(frozen=True)
class Measured:
    """Negative log-probability of an answer in nats, and its targets."""

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(self.nats / self.tokens)


def _under_model(
    settings: PerplexitySettings,
    checkpoint: str,
    number: int,
    mesh: Mesh,
    workdir: Path,
    console: Console,
) -> tuple[Usable, dict[str, Measured]]:
    model = replace(settings.model, checkpoint=checkpoint)
    pretrained = open_pretrained(model, settings.data, mesh, trains=False)
    usable = _usable(settings, pretrained, workdir, console)
    if not number:
        _check_top(settings.run.top, len(usable))
        disk.write_json(workdir / "config.json", plain(settings))
    path = workdir / f"measured-{number}.jsonl"
    _same_inputs(workdir / f"inputs-{number}.json", pretrained, usable, settings)
    done = read_measured(path)
    left = Usable((record for record in usable if record.id not in done), usable.images)
    if done:
        console.print(f"{checkpoint}: {len(done):,} of {len(usable):,} records are measured")
    if left:
        rows = RowSource(left, left.images, pretrained, settings.data, mesh, seed=0)
        distribution = Distribution(
            pretrained.graphdef, 1.0, settings.logprob_chunk, data_shards(mesh)
        )
        _measure(rows, distribution, pretrained, len(left), path, done, console)
    return usable, done


def _same_inputs(
    path: Path, pretrained: Pretrained, usable: Usable, settings: PerplexitySettings
) -> None:
    """Notes what is measured and by what, or looks whether it is still the same."""
    images = image_root(settings.data)
    now = {**inputs(pretrained.path, images, usable, ()), "records": records_digest(usable)}
    if path.exists() and read_object(path) != now:
        raise UserError(
            f"{path.parent}: the records, the images or the weights are others than when "
            "measuring began; bring them back, or start in another workdir"
        )
    disk.write_json(path, now)


def _usable(
    settings: PerplexitySettings, pretrained: Pretrained, workdir: Path, console: Console
) -> Usable:
    data = settings.data
    path, images = Path(data.records), image_root(data)
    if data.records == "embedded":
        paths = write_dataset(workdir / "data", n_train=1, n_heldout=1, n_sft=data.embedded_train)
        path, images = paths.sft, paths.images
    found, rejects = load_checked(path, images, RowCheck(pretrained, data))
    if rejects:
        listing = workdir / f"rejects-{path.stem}.txt"
        disk.write_text(listing, "".join(f"{reject}\n" for reject in rejects))
        console.print(f"{path}: {len(rejects)} records left out (reasons in {listing})")
    return found


def _measure(
    rows: RowSource,
    distribution: Distribution,
    pretrained: Pretrained,
    count: int,
    path: Path,
    done: dict[str, Measured],
    console: Console,
) -> None:
    """Adds the records of `rows` to `done` and to the file, batch by batch."""
    logprobs = jax.jit(lambda params, rows: distribution.row_logprobs(params, rows)[0])
    params = pretrained.load_params()
    began, before, said = time.monotonic(), len(done), 0.0
    pending: tuple[list[list[Record]], RowBatch, jax.Array] | None = None
    with path.open("ab", buffering=0) as file:

        def finish(of: tuple[list[list[Record]], RowBatch, jax.Array]) -> None:
            new = dict(answers(*of[:2], np.asarray(of[2])))
            lines = ({"id": name, "nats": m.nats, "tokens": m.tokens} for name, m in new.items())
            disk.append(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
            done.update(new)

        for records, batch in rows.numbered():
            placed = next(rows.put([batch]))
            now = records, batch, logprobs(params, placed.rows)
            if pending is not None:
                finish(pending)  # while the devices are at the next
            pending = now
            seconds, made = time.monotonic() - began, len(done) - before
            if made and seconds - said > 10:
                said, left = seconds, seconds / made * (count - made)
                console.print(f"{made:,} of {count:,} records, left {minutes(left)}")
        if pending is not None:
            finish(pending)
    seconds = time.monotonic() - began
    console.print(f"{count:,} records in {seconds:.1f} s, {count / seconds:.1f} records/s")


def answers(
    records: Sequence[Sequence[Record]], batch: RowBatch, logprobs_BT: np.ndarray
) -> Iterator[tuple[str, Measured]]:
    """Id and measure of every record of a batch.

    Args:
        records: of each row, in the order of their segments.
        batch: the rows.
        logprobs_BT: entry t is of the token at t + 1.
    """
    for b, row in enumerate(records):
        targets_T = batch.loss_mask_BT[b, 1:]
        segments_N = batch.segment_ids_BT[b, 1:][targets_T]
        found_N = logprobs_BT[b, :-1][targets_T].astype(np.float64)
        nats = np.bincount(segments_N, -found_N, len(row) + 1)
        tokens = np.bincount(segments_N, minlength=len(row) + 1)
        for segment, record in enumerate(row, 1):
            yield record.id, Measured(float(nats[segment]), int(tokens[segment]))


def read_measured(path: Path) -> dict[str, Measured]:
    """What an earlier run measured; a line that was cut off is taken out of the file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return {}
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        disk.write_bytes(path, whole + b"\n" if whole else b"")
    found = {}
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            values = parse_json(line)
            found[str(values["id"])] = Measured(float(values["nats"]), int(values["tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: line {number} holds no measurement ({error})") from error
    return found


# -- all models


def ranking(records: Any, measured: Sequence[dict[str, Measured]]) -> list[Ranked]:
    """Records by mean perplexity, highest first; equal ones by id."""
    ranked = [
        Ranked(
            record,
            tuple(found[record.id].perplexity for found in measured),
            measured[0][record.id].tokens,
        )
        for record in records
    ]
    return sorted(ranked, key=lambda one: (-one.perplexity, one.record.id))


def _check_top(top: Sequence[int], count: int) -> None:
    if too_many := [number for number in top if number > count]:
        raise UserError(f"run.top: {too_many[0]:,} are asked for, but {count:,} records are usable")


def _write(ranked: Sequence[Ranked], settings: PerplexitySettings, workdir: Path) -> None:
    lines = (
        {
            "id": one.record.id,
            "perplexity": one.perplexity,
            "by_model": dict(zip(settings.models, one.by_model, strict=True)),
            "tokens": one.tokens,
        }
        for one in ranked
    )
    _write_lines(workdir / RANKING, lines)
    for number in settings.run.top:
        chosen = (as_released(one.record) for one in ranked[:number])
        _write_lines(workdir / f"top-{number}.json", chosen)


def _write_lines(path: Path, values: Iterator[dict[str, Any]]) -> None:
    with disk.writing(path) as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _say(
    ranked: Sequence[Ranked], settings: PerplexitySettings, workdir: Path, console: Console
) -> Summary:
    cuts = {number: ranked[number - 1].perplexity for number in settings.run.top}
    series = {
        name: [one.by_model[place] for one in ranked] for place, name in enumerate(settings.models)
    }
    if write_histogram(workdir / "distribution.png", series, cuts) is None:
        console.print("no distribution.png: matplotlib is not installed (the extra plots)")
    values = [one.perplexity for one in ranked]
    for number, cut in cuts.items():
        console.print(f"top-{number}.json: perplexity {cut:.3f} and above")
    figures = {"records": float(len(ranked)), "perplexity/median": float(np.median(values))}
    console.print(
        f"median perplexity {figures['perplexity/median']:.3f}; all in {workdir / RANKING}"
    )
    return Summary(workdir, figures)
