"""What a run says, and the files it leaves to be looked at."""

import io
import struct

import jax
import numpy as np
from PIL import Image
from rich.console import Console

from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.train.board import Board
from vlaa_jax.train.console import header, heldout_table, written
from vlaa_jax.train.plot import write_plot


def test_the_header_says_what_runs_where(tmp_path):
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:4])
    said = header(tmp_path, "some/model", 250, 1000, {"mcq": 2, "digit": 1500}, mesh)
    assert f"run        {tmp_path}" in said
    assert "some/model: 0.00 M parameters, 0.00 M (25.0%) train" in said
    assert "records    1,502: 1,500 digit, 2 mcq" in said
    assert "devices    4 x cpu, mesh data 2 x fsdp 2 x tensor 1" in said
    assert "all train" in header(tmp_path, "m", 5, 5, {"mcq": 1}, mesh)


def test_the_table_holds_answers_against_a_constant_one():
    kept = {
        "before": {"heldout/digit": 0.25, "heldout/mean": 0.25},
        "after": {"heldout/digit": 0.5, "heldout/mean": 0.5},
        "constant": {"digit": 0.375},
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(heldout_table(kept))
    row = next(line for line in console.file.getvalue().splitlines() if "digit" in line)
    assert [cell for cell in row.replace("│", " ").split()][1:] == [
        "0.375",
        "0.250",
        "0.500",
        "+0.250",
    ]


def test_everything_written_is_listed_with_the_command_that_shows_it(tmp_path):
    for name in ("metrics.jsonl", "report.html", "rejects-train.txt", "lock"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    lines = list(written(tmp_path))
    assert [line.split()[0] for line in lines] == [
        "metrics.jsonl",
        "report.html",
        "checkpoints/",
        "rejects-train.txt",
    ]
    assert lines[2].endswith(f"python -m converters jax-to-hf {tmp_path} OUT_DIR")


def test_curves_are_drawn_of_what_was_measured(tmp_path):
    rows = [{"step": s, "reward/mean": s / 10, "train/lr": 1e-3} for s in range(30)]
    rows[-1]["heldout/mean"] = 0.5
    path = write_plot(tmp_path, rows)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").tobytes())) > 10
    assert write_plot(tmp_path, []) is None


def events(folder):
    """The records of the event files: length, its check, data, its check (TFRecord)."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_gets_numbers_pictures_and_answers(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    board = Board(tmp_path / "tb", 3)
    board.scalars(3, {"reward/mean": 0.5, "train/loss": float("nan")})
    board.samples(4, [("heldout/0", picture, "**mcq**"), ("heldout/1", None, "text")])
    board.close()
    found = list(events(tmp_path / "tb"))
    assert found[1].session_log.status and found[1].step == 3  # what is older ends here
    values = {v.tag: v for event in found for v in event.summary.value}
    assert values["reward/mean"].simple_value == 0.5
    with Image.open(io.BytesIO(values["heldout/0/image"].image.encoded_image_string)) as image:
        assert image.size == (6, 4)
    assert values["heldout/1/answer/text_summary"].tensor.string_val == [b"text"]


def test_the_closing_table_shows_benchmarks_with_and_without_held_out_records():
    bench = {"benchmark/wemath": 12.5}
    alone = heldout_table(
        {"before": bench, "after": {"benchmark/wemath": 25.0, "benchmark/wemath_unknown_frac": 0.0}}
    )
    assert [list(column.cells) for column in alone.columns] == [
        *(["benchmark/wemath"], [""], ["12.500"], ["25.000"], ["+12.500"]),
    ]
    kept = {"before": {"heldout/mean": 0.5}, "after": {"heldout/mean": 0.75, **bench}}
    assert list(heldout_table(kept).columns[0].cells) == ["mean", "benchmark/wemath"]
