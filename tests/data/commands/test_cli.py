"""``python -m vlaa_jax.data``: exit codes, one clear line for what the user can mend."""

import json
import subprocess
import sys

import pytest

from converters.tiny_tokenizer import tiny_config, write_sidecars
from one_image import image_size
from vlaa_jax.data.commands.cli import kind_of, run
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.sources.built import BuiltRecords
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.synthetic.dataset import write_dataset


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), n_train=15, n_heldout=5, n_sft=10)


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("hf")
    (out / "config.json").write_text(json.dumps(tiny_config(write_sidecars(out))))
    return out


def test_check_says_clean_or_not(paths, tmp_path, capsys):
    assert run(["check", str(paths.grpo), str(paths.sft), "--images", str(paths.images)]) == 0
    out = capsys.readouterr().out
    assert out.count("total") == 2 and "25,195" in out and "126,413" in out
    raw = json.loads(paths.grpo.read_text())
    (tmp_path / "bad.json").write_text(
        json.dumps([*raw, {**raw[0], "id": "x", "image": "a/b.png"}])
    )
    rejects = tmp_path / "rejects.jsonl"
    args = ["check", str(tmp_path / "bad.json"), "--images", str(paths.images), "--quick"]
    assert run([*args, "--rejects", str(rejects)]) == 1
    assert "record 15 (id 'x'): field 'image'" in capsys.readouterr().out
    assert [json.loads(line)["index"] for line in rejects.read_text().splitlines()] == [15]


def test_build_and_show(paths, hf_dir, tmp_path, capsys):
    common = ["--images", str(paths.images), "--checkpoint", str(hf_dir)]
    out = ["--out", str(tmp_path / "b")]
    assert run(["build", str(paths.sft), *common, *out, "--quiet"]) == 0
    assert "10 of 10 records kept (sft)" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "c")]
    assert run(["build", str(paths.sft), *common, *out, "--max-tokens", "80"]) == 1
    assert "over the limit of 80" in capsys.readouterr().out
    assert run(["show", str(paths.grpo), "0", *common], gold_problems=lambda rs: ["odd"]) == 0
    shown = capsys.readouterr().out
    assert "planner   1 bin(s) of 4 rows" in shown and "gold check: odd" in shown


def test_show_holds_a_gold_against_the_image_as_the_checkpoint_reads_it(paths, hf_dir, capsys):
    def sizes(requests):
        return [f"{r.image_size} {r.resized_size}" for r in requests]

    argv = ["show", str(paths.grpo), "0", "--images", str(paths.images)]
    width, height = image_size(paths.images, load_records(paths.grpo)[0].images[0])
    processor = ImageProcessor.from_dir(hf_dir, 56 * 56, 28 * 28 * 6)
    limits = ["--min-pixels", str(56 * 56), "--max-pixels", str(28 * 28 * 6)]
    for more, resized in (
        ([], None),
        (["--checkpoint", str(hf_dir), *limits], processor.resized(width, height)),
    ):
        assert run([*argv, *more], gold_problems=sizes) == 0
        assert f"gold check: {(width, height)} {resized}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["check", "{tmp}/none.json", "--images", "{images}"],
        ["check", "{grpo}", "--images", "{tmp}/nowhere"],
        ["show", "{grpo}", "no-such-id"],
        ["build", "{grpo}", "--images", "{images}", "--out", "{tmp}/o", "--checkpoint", "{tmp}"],
        ["build", "{grpo}", "--images", "{images}", "--out", "{grpo}", "--checkpoint", "{hf}"],
        ["show", "{grpo}", "0", "--system-prompt", "@{tmp}/none", "--images", "{images}"],
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(paths, hf_dir, tmp_path, capsys, argv):
    places = {"tmp": tmp_path, "images": paths.images, "grpo": paths.grpo, "hf": hf_dir}
    assert run([part.format(**places) for part in argv]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")


def test_box_spaces_are_given_by_source(paths, hf_dir, tmp_path, capsys):
    raw = [r for r in json.loads(paths.grpo.read_text()) if r["verifier_type"] == "iou"][:1]
    raw[0] |= {"image": "vg/VG_100K/1.png", "meta": {}}
    raw[0].pop("box_space", None)
    (tmp_path / "r.json").write_text(json.dumps(raw))
    for option, shown in (
        (["VG=normalized_square", "coco=normalized"], "normalized_square"),
        (["original_pixels"], "original_pixels"),
        (["coco=original_pixels"], "normalized"),
        ([], "normalized"),
    ):
        boxes = [part for value in option for part in ("--box-space", value)]
        assert run(["show", str(tmp_path / "r.json"), "#0", *boxes]) == 0
        assert f"verifier  iou ({shown})" in capsys.readouterr().out


def test_a_box_space_of_a_source_that_is_not_there_is_told(paths, capsys):
    argv = ["check", str(paths.grpo), "--images", str(paths.images), "--quiet"]
    assert run([*argv, "--box-space", "nosuch=normalized"]) == 1
    assert "names sources that are not there: nosuch" in capsys.readouterr().out


def test_a_file_of_something_else_says_so(tmp_path, capsys):
    (tmp_path / "r.json").write_text('[{"name": "a"}]')
    assert run(["check", str(tmp_path / "r.json"), "--images", str(tmp_path)]) == 2
    assert "is it a file of records?" in capsys.readouterr().err


@pytest.mark.parametrize("boxes", ["square", "vg=square", "vg=", "normalized,vg=normalized"])
def test_what_is_no_box_space_is_named(paths, capsys, boxes):
    argv = ["check", str(paths.grpo), "--images", str(paths.images), "--box-space", boxes]
    assert run(argv) == 2
    assert "--box-space" in capsys.readouterr().err


def test_the_module_refuses_golds_that_no_parser_reads(paths, hf_dir, tmp_path):
    raw = json.loads(paths.grpo.read_text())[:1]
    raw[0] |= {"verifier_type": "math", "gt": r"\frac{1}{"}
    (tmp_path / "r.json").write_text(json.dumps(raw))
    common = [str(tmp_path / "r.json"), "--images", str(paths.images)]
    build = ["--checkpoint", str(hf_dir), "--out", str(tmp_path / "b")]
    for argv in (["check", *common], ["build", *common, *build]):
        command = [sys.executable, "-m", "vlaa_jax.data", *argv]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "field 'gt'" in done.stdout and "cannot parse the gold" in done.stdout


def test_kind_is_told_by_the_first_usable_record(paths):
    assert kind_of(RecordFile(paths.grpo)) == "grpo" and kind_of(RecordFile(paths.sft)) == "sft"


def test_the_module_runs_and_knows_the_verifiers(paths):
    argv = [sys.executable, "-m", "vlaa_jax.data", "show", str(paths.heldout), "0"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "gold check: fine" in done.stdout


def test_paths_may_begin_at_the_home_folder(paths, hf_dir, tmp_path, monkeypatch, capsys):
    """``--images=~/x`` reaches a program as it stands: no shell replaces it there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").symlink_to(paths.grpo.parent)
    (tmp_path / "hf").symlink_to(hf_dir)
    file, images = f"~/data/{paths.grpo.name}", f"--images=~/data/{paths.images.name}"
    assert run(["check", file, images, "--rejects=~/rejects", "--quiet"]) == 0
    assert (tmp_path / "rejects").exists()
    common = [file, images, "--checkpoint=~/hf"]
    assert run(["build", *common, "--out=~/built", "--quiet"]) == 0
    assert len(BuiltRecords("~/built")) == len(load_records(paths.grpo))
    (tmp_path / "prompt").write_text("Think first.\n")
    argv = ["show", file, "0", images, "--checkpoint=~/hf", "--system-prompt=@~/prompt"]
    assert run(argv) == 0
    assert "planner" in capsys.readouterr().out


def test_pointers_of_git_lfs_are_named_as_such(paths, tmp_path, capsys):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "grpo.json").write_text(pointer)
    images = ["--images", str(tmp_path)]
    assert run(["check", str(tmp_path / "grpo.json"), *images]) == 2
    assert "grpo.json is a git-lfs pointer" in capsys.readouterr().err
    (tmp_path / "a.png").write_text(pointer)
    record = {**json.loads(paths.grpo.read_text())[0], "image": "a.png"}
    (tmp_path / "one.json").write_text(json.dumps([record]))
    assert run(["check", str(tmp_path / "one.json"), *images, "--quiet"]) == 1
    assert "image 'a.png' is a git-lfs pointer" in capsys.readouterr().out


def test_the_embedded_checkpoint_goes_by_its_name(paths, tmp_path, capsys):
    common = [str(paths.grpo), "--images", str(paths.images), "--checkpoint=embedded"]
    assert run(["build", *common, "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert run(["show", common[0], "0", *common[1:]]) == 0
    assert "planner" in capsys.readouterr().out
