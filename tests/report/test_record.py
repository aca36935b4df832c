"""The record of rollouts: what is read is what was written, and damage is told in one line."""

import io
import json
import zipfile

import numpy as np
import pytest

from fake_run import advantages, make_figures, make_groups
from vlaa_jax.report import shards
from vlaa_jax.report.record import RunRecord
from vlaa_jax.report.shards import read_shard
from vlaa_jax.schema import UserError
from vlaa_jax.train.rollout_log import RolloutLog

TEXTS = [
    ["<think> one </think> <answer> 1 </answer>", "<answer>\n 2\n</answer>"],
    ["D", "<answer>D</answer> und noch 🤔"],
    ["", "<answer> $y = 2x + 2$ </answer>"],
    ["<answer> [0.60, 0.43, 0.99, 0.73] </answer>", "<think> a"],
    ["<answer> a <answer>", "nothing"],
]


@pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]])
def test_every_column_comes_back_at_its_own_completion(run, order):
    groups = make_groups(run.records, TEXTS)
    figures, true = make_figures(groups, order)
    log = RolloutLog(run.path, print)
    log.write(7, groups, advantages(groups), figures)
    log.close()
    found = RunRecord(run.path).read("rollouts", 7)
    rollout = groups.rollout
    for n, (p, g) in enumerate(np.ndindex(rollout.length_PG.shape)):
        got, real = found[n].tokens, np.s_[p, g, : rollout.length_PG[p, g]]
        assert (found[n].group, found[n].completion) == (p, TEXTS[p][g])
        np.testing.assert_array_equal(got["tokens"], rollout.tokens_PGT[real])
        np.testing.assert_array_equal(got["mask"], true["mask"][real])
        np.testing.assert_array_equal(got["sampler"], rollout.logprobs_PGT[real])
        np.testing.assert_allclose(got["entropy"], true["entropy"][real], rtol=1e-3, atol=1e-6)
        for name in ("trainer", "old", "reference"):
            # Half precision of the gap, and the rounding of the sum.
            np.testing.assert_allclose(got[name], true[name][real], atol=5e-4)
        ratio = np.exp(true["trainer"] - true["old"])[real]
        np.testing.assert_allclose(got["ratio"], ratio, rtol=1e-3)
        gap = (true["old"] - rollout.logprobs_PGT)[real]
        np.testing.assert_allclose(got["gap"], gap, rtol=1e-3, atol=1e-6)
        assert found[n].advantage == advantages(groups)[p, g]


def test_with_one_update_the_ratio_is_one_and_the_gap_the_trainers(run):
    run.write(0, TEXTS, old=False)
    got = RunRecord(run.path).read("rollouts", 0)[0].tokens
    assert (got["ratio"] == 1).all()
    np.testing.assert_allclose(got["gap"], got["trainer"] - got["sampler"], atol=1e-6)
    assert "old" not in got


def test_the_answer_is_marked_where_it_stands(run):
    run.write(0, TEXTS)
    for completion in RunRecord(run.path).read("rollouts", 0):
        cut = None if completion.span is None else completion.completion[slice(*completion.span)]
        assert cut == completion.extracted
        assert (completion.reason is None) == (completion.extracted is not None)


def test_a_token_takes_few_bytes(run):
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(["red", "circle", "left", "of"], 300)) for _ in range(10)]
    run.write(0, [words[:2], *[[w, w] for w in words[2:6]]], old=False)
    (line,) = (run.path / "rollouts" / "index.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["bytes"] / entry["tokens"] < 14


def test_an_index_that_was_cut_off_goes_on(run):
    run.write(0, TEXTS)
    index = run.path / "rollouts" / "index.jsonl"
    index.write_bytes(index.read_bytes() + b'{"step": 1, "comp')
    run.write(2, TEXTS)
    assert RunRecord(run.path).steps() == [0, 2]


def test_a_run_from_before_there_were_shards_is_read(run):
    run.write(3, TEXTS)
    for name in ("index.jsonl", "000003.npz"):
        (run.path / "rollouts" / name).unlink()
    record = RunRecord(run.path)
    assert record.steps() == [3]
    assert record.read("rollouts", 3)[0].tokens == {}


def test_a_record_that_cannot_be_written_is_told_and_ends_nothing(run):
    (run.path / "rollouts").write_text("in the way")
    told = []
    log = RolloutLog(run.path, told.append)
    groups = make_groups(run.records, TEXTS)
    for step in range(4):
        log.write(step, groups, advantages(groups), make_figures(groups)[0])
    log.close()
    assert len(told) == 4
    assert all("could not be written" in line for line in told)


def test_a_lone_surrogate_of_a_record_is_kept(run):
    run.records[0] = run.records[0].__class__(**{**vars(run.records[0]), "gt": "\udc80"})
    run.write(0, TEXTS)
    assert RunRecord(run.path).read("rollouts", 0)[0].gt == "\udc80"


def test_a_folder_that_is_no_run_gets_one_line(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        RunRecord(tmp_path)


def read(run):
    """Reads a step, whatever its files hold; anything but a UserError is a defect."""
    try:
        return RunRecord(run.path).read("rollouts", 0)
    except UserError as error:
        assert "\n" not in str(error)
        assert "000000" in str(error)
        return None


@pytest.mark.parametrize("suffix", ["npz", "jsonl"])
def test_damaged_files_are_refused_or_read_but_never_crash(run, suffix):
    run.write(0, TEXTS)
    file = run.path / "rollouts" / f"000000.{suffix}"
    whole, rng, refused = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(data)))
            kind = rng.integers(3)
            if kind == 0:
                data[start] = int(rng.integers(256))
            elif kind == 1:
                del data[start : start + int(rng.integers(1, 50))]
            else:
                data[start:start] = rng.bytes(int(rng.integers(1, 9)))
        file.write_bytes(bytes(data))
        found = read(run)
        refused += found is None
        for completion in found or []:
            assert len({len(column) for column in completion.tokens.values()}) == 1
    assert refused > 200


def header(shape, descr="<i4"):
    stream = io.BytesIO()
    form = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, form)
    return stream.getvalue()


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def pickled():
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([Trap()], object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    "member",
    [
        header((10**12,)) + b"\0" * 64,  # would be four terabytes
        header((-1,)) + b"\0" * 4,
        header((2, 2)) + b"\0" * 16,
        header((4,), "<f8") + b"\0" * 32,
        header((0,), "|O"),
        pickled(),
        b"",
        b"\x93NUMPY\x03\x00",
    ],
)
def test_a_hostile_array_is_refused_before_it_is_made(run, member):
    run.write(0, TEXTS)
    file = run.path / "rollouts" / "000000.npz"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members | {"tokens.npy": member}).items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match=r"000000\.npz: no shard of rollouts"):
        read_shard(file)


def test_an_archive_that_unpacks_to_too_much_is_refused(run, monkeypatch):
    run.write(0, TEXTS)
    file = run.path / "rollouts" / "000000.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokens.npy", header((250_000,)) + bytes(1_000_000))
    assert file.stat().st_size < 10_000
    monkeypatch.setattr(shards, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        read_shard(file)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"reward": "high"}, "reward"),
        ({"span": [1]}, "span"),
        ({"images": [3]}, "images"),
        ({"parts": {"raw": None}}, "parts"),
        ({"group": -1}, "group"),
        ({"truncated": 1}, "truncated"),
        ({"completion": None}, "completion"),
    ],
)
def test_a_line_with_a_value_of_another_kind_is_named(run, change, word):
    run.write(0, TEXTS)
    file = run.path / "rollouts" / "000000.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **change})
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.raises(UserError, match=rf"line 3: {word}"):
        RunRecord(run.path).read("rollouts", 0)
