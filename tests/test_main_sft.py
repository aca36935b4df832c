"""The second task through the real command: it learns, resumes exactly, and GRPO starts from it."""

import json

import pytest

from test_main import assert_refused, command, metrics, run, started
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.report.record import RunRecord

SMALL = [
    "--config.data.tokens_per_row=256",
    "--config.data.rows=4",
    "--config.data.micro_rows=2",
    "--config.rollout.prompts=5",
    "--config.rollout.max_new_tokens=8",
    "--config.run.eval_completions=1",
    "--config.run.save_every=1",
    "--config.run.steps=5",
    "--config.run.eval_every=1",
]


ANSWER = "<think> I look at the picture, and then I count. </think> <answer> seven </answer>"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Records whose answers the model does not give yet, and held-out questions."""
    paths = write_dataset(tmp_path_factory.mktemp("data"), n_train=1, n_heldout=5, n_sft=60)
    lines = [json.loads(line) for line in paths.sft.read_text().splitlines()]
    changed = paths.root / "sft.jsonl"
    changed.write_text("".join(json.dumps({**line, "answer": ANSWER}) + "\n" for line in lines))
    return [
        f"--config.data.records={changed}",
        f"--config.data.validation={changed}",
        f"--config.data.image_root={paths.images}",
        f"--config.data.heldout={paths.heldout}",
    ]


def sft(workdir, cache, data, *options):
    words = command(workdir, cache, *options)
    start = words[: words.index("--config=configs/grpo.py:tiny")]
    rest = [f"--config.run.compilation_cache={cache}", f"--workdir={workdir}", *options]
    return [*start, "--config=configs/sft.py:tiny", *SMALL, *data, *rest]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("sft")
    done = run(sft(base / "run", base / "cache", data))
    assert done.returncode == 0, done.stderr
    return base, done


def test_a_run_learns_and_reports(whole):
    base, done = whole
    lines = metrics(base / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["validation/loss"] < 0.8 * lines[0]["validation/loss"]
    assert f"report  {base / 'run' / 'report.html'}" in done.stdout
    assert RunRecord(base / "run").steps("heldout") == [0, 1, 2, 3, 4, 5]
    assert "held-out reward" in done.stdout
    kept = json.loads((base / "run" / "heldout.json").read_text())
    assert set(kept) == {"before", "after", "constant"}


def test_a_killed_run_ends_like_an_undisturbed_one(whole, data, tmp_path):
    base, _ = whole
    args = sft(tmp_path / "run", base / "cache", data)
    process = started(args, "step    3/")  # so that the save after the first step has ended
    process.kill()
    process.wait()
    resumed = run(args)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step" in resumed.stdout
    assert metrics(tmp_path / "run") == metrics(base / "run")


def test_grpo_starts_from_its_directory(whole, tmp_path):
    base, _ = whole
    options = [f"--config.model.checkpoint={base / 'run'}", "--config.run.steps=1"]
    done = run(command(tmp_path / "run", base / "cache", *options))
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[0]["policy/kl"] <= 1e-9
    before = json.loads((tmp_path / "run" / "heldout.json").read_text())["before"]
    assert before["heldout/mean"] == before["heldout/mean"]  # a number


def test_rows_that_cannot_be_dealt_get_one_line(data, tmp_path):
    option = ["--config.data.rows=3", "--config.data.micro_rows=2"]
    assert_refused(
        run(sft(tmp_path / "run", tmp_path / "cache", data, *option)), "data.micro_rows=2"
    )


def test_a_record_longer_than_a_row_gets_one_line(data, tmp_path):
    option = ["--config.data.tokens_per_row=48"]
    done = run(sft(tmp_path / "run", tmp_path / "cache", data, *option))
    assert_refused(done, "limit of 48 (data.tokens_per_row)", "data.bad_records=skip")
