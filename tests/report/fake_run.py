"""Run directories as a run leaves them: the real writer, images and tokenizer, no model."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer

import vlaa_jax
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.policy.groups import Groups
from vlaa_jax.rewards.extract import extract_answer
from vlaa_jax.rewards.iou import score_iou
from vlaa_jax.rollout.engine import Rollout
from vlaa_jax.schema import Record, Score
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.train.claim import plain
from vlaa_jax.train.rollout_log import RolloutLog, TokenFigures

TINY = Path(vlaa_jax.__file__).parent / "assets" / "tiny"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
END = TOKENIZER.token_to_id("<|im_end|>")


def scored(record, text):
    answer = extract_answer(text).answer
    reward = 0.0
    if answer is not None and record.verifier_type == "iou":
        reward = score_iou(answer, record.gt)
    elif answer is not None:
        reward = float(answer == record.gt)
    parts = {"raw": reward, "format": float(answer is not None)}
    return Score(reward, record.verifier_type, answer, parts)


def make_groups(records, texts, seed=0):
    """Groups of these completions, with made-up log-probabilities."""
    rng = np.random.default_rng(seed)
    ids = [[[*TOKENIZER.encode(t).ids, END] for t in group] for group in texts]
    length_PG = np.array([[len(row) for row in group] for group in ids])
    shape = (*length_PG.shape, int(length_PG.max()) + 3)
    tokens_PGT = np.zeros(shape, np.int32)
    for p, g in np.ndindex(length_PG.shape):
        tokens_PGT[p, g, : length_PG[p, g]] = ids[p][g]
    mask_PGT = np.arange(shape[2]) < length_PG[..., None]
    logprobs = -rng.exponential(1.0, shape).astype(np.float32)
    rollout = Rollout(tokens_PGT, logprobs, mask_PGT, length_PG, np.zeros_like(mask_PGT[..., 0]))
    prompts = [SimpleNamespace(record=record) for record in records]
    scores = [scored(r, t) for r, group in zip(records, texts, strict=True) for t in group]
    return Groups(prompts, rollout, texts, scores)


def make_figures(groups, order=None, old=True, seed=1):
    """Numbers of a trainer that sees the groups in `order`, and the true ones by group."""
    rng = np.random.default_rng(seed)
    sampler = groups.rollout.logprobs_PGT
    order = np.arange(len(sampler)) if order is None else np.asarray(order)
    true = {
        "trainer": sampler + rng.normal(0, 0.1, sampler.shape).astype(np.float32),
        "old": sampler + rng.normal(0, 0.01, sampler.shape).astype(np.float32),
        "reference": sampler + rng.normal(0, 0.2, sampler.shape).astype(np.float32),
        "entropy": rng.exponential(1.0, sampler.shape).astype(np.float32),
        "mask": groups.rollout.mask_PGT & (rng.random(sampler.shape) < 0.9),
    }
    dealt = {name: array[order] for name, array in true.items()}
    halves = np.array_split(np.arange(len(order)), 2)
    figures = TokenFigures(
        order,
        dealt["mask"],
        [dealt["trainer"][half] for half in halves],
        [dealt["entropy"][half] for half in halves],
        dealt["old"] if old else None,
        dealt["reference"],
    )
    return figures, true


def advantages(groups):
    raw = groups.raw_PG
    return raw - raw.mean(axis=1, keepdims=True)


@dataclasses.dataclass
class FakeRun:
    """A run directory in the making."""

    path: Path
    records: list[Record]

    def write(self, step, texts, records=None, **options):
        groups = make_groups(records or self.records, texts, seed=step)
        figures, _ = make_figures(groups, **options)
        with_log(self.path, lambda log: log.write(step, groups, advantages(groups), figures))

    def write_heldout(self, step, texts):
        groups = make_groups(self.records, texts, seed=step)
        with_log(self.path, lambda log: log.write_heldout(step, groups))

    def write_metrics(self, **columns):
        lines = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        lines = [{"step": n, **line} for n, line in enumerate(lines)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (self.path / "metrics.jsonl").write_text(text)


def with_log(path, act):
    told = []
    log = RolloutLog(path, told.append)
    act(log)
    log.close()
    assert told == []


def make_run(path, records=None, lr=1e-3):
    """An empty run on embedded data, five records of five kinds."""
    data = write_dataset(path / "data", n_train=5, n_heldout=1, n_sft=1)
    (path / "hf").mkdir()
    for file in TINY.glob("*.json"):
        shutil.copy(file, path / "hf")
    settings = GrpoSettings()
    settings = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, records="embedded"),
        optimizer=dataclasses.replace(settings.optimizer, lr=lr, min_lr=0.0),
    )
    (path / "config.json").write_text(json.dumps(plain(settings)))
    return FakeRun(path, records or read_records(data.grpo))


def read_records(file):
    found = []
    for item in json.loads(file.read_text()):
        image = item["image"] if isinstance(item["image"], str) else item["image"][0]
        kind = item["verifier_type"]
        gold = str(item["gt"])
        found.append(Record(str(item["id"]), item["question"], (image.lstrip("/"),), gold, kind))
    return found
