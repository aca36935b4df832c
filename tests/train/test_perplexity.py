"""Ranking by perplexity: equal to transformers', resumable, and in the released form."""

import json
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from configs import perplexity as config
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.schema import UserError
from vlaa_jax.settle import settle
from vlaa_jax.train.perplexity import as_released, run

TINY = Path(str(resources.files("vlaa_jax") / "assets" / "tiny"))
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty records, some of text alone."""
    paths = write_dataset(tmp_path_factory.mktemp("data"), n_train=1, n_heldout=1, n_sft=20)
    lines = [json.loads(line) for line in paths.sft.read_text().splitlines()]
    for line in lines[::6]:
        line["image"] = None
    file = paths.root / "some.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file, paths.images


def settings(data, **run):
    values = config.get_config("tiny").to_dict()
    values["data"] |= {"records": str(data[0]), "image_root": str(data[1])}
    values["data"] |= {"rows": 8, "tokens_per_row": 256}
    values["run"] |= {"top": (5, 20), **run}
    return settle(values)


@pytest.fixture(scope="module")
def ranked(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run(settings(data), workdir, QUIET)
    return workdir


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_equal_to_transformers(data, ranked):
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        TINY, dtype=torch.float32
    )
    chat, processor = Chat.from_dir(TINY), ImageProcessor.from_dir(TINY)
    found = {line["id"]: line for line in lines_of(ranked / "perplexity.jsonl")}
    prompt = config.get_config("tiny").data.system_prompt
    images = RecordFile(*data[:2]).images
    records = load_records(data[0], kind="sft")
    assert any(not record.images for record in records)
    for record in records:
        one = Preprocessor(chat, processor, prompt).encode(record, images(record), with_answer=True)
        ids = torch.tensor(one.ids_T).long()[None]
        inputs = {"input_ids": ids, "mm_token_type_ids": (ids == chat.image_token_id).long()}
        if one.grids:
            inputs["pixel_values"] = torch.tensor(processor.normalize(np.concatenate(one.patches)))
            inputs["image_grid_thw"] = torch.tensor(one.grids)
        labels = torch.where(torch.tensor(one.loss_mask_T)[None], ids, -100)
        with torch.no_grad():
            loss = model(**inputs, labels=labels).loss.item()
        assert found[record.id]["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
        assert found[record.id]["tokens"] == one.loss_mask_T.sum()


def test_the_top_is_a_file_in_the_released_form(data, ranked):
    values = [line["perplexity"] for line in lines_of(ranked / "perplexity.jsonl")]
    assert values == sorted(values, reverse=True)
    top = load_records(ranked / "top-5.json", kind="sft")
    order = [line["id"] for line in lines_of(ranked / "perplexity.jsonl")]
    assert [record.id for record in top] == order[:5]
    originals = {record.id: record for record in load_records(data[0], kind="sft")}
    for record in load_records(ranked / "top-20.json", kind="sft"):
        assert as_released(record) == as_released(originals[record.id])
        assert record.source == originals[record.id].source
    assert (ranked / "distribution.png").read_bytes().startswith(b"\x89PNG")


def test_a_cut_run_goes_on_and_gives_the_same(data, ranked, tmp_path):
    whole = (ranked / "measured-0.jsonl").read_bytes()
    (tmp_path / "measured-0.jsonl").write_bytes(whole[: len(whole) // 2])
    run(settings(data), tmp_path, QUIET)
    before = {line["id"]: line for line in lines_of(ranked / "perplexity.jsonl")}
    after = lines_of(tmp_path / "perplexity.jsonl")
    assert len(after) == len(before) == 20
    for line in after:
        assert line["perplexity"] == pytest.approx(before[line["id"]]["perplexity"], rel=1e-5)


def test_other_records_under_the_same_path_are_noticed(data, ranked, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(ranked, workdir)
    before = data[0].read_text()
    try:
        data[0].write_text(before.replace("<think> ", "<think> Well, ", 1))
        with pytest.raises(UserError, match="others than when measuring began"):
            run(settings(data), workdir, QUIET)
    finally:
        data[0].write_text(before)


def test_two_models_count_alike(data, ranked, tmp_path):
    copy = tmp_path / "copy"
    copy.symlink_to(TINY)
    values = settings(data)
    twice = settle({**_plain(values), "models": ("embedded", str(copy))})
    done = run(twice, tmp_path / "run", QUIET)
    assert done.figures["records"] == 20
    assert all(len(line["by_model"]) == 2 for line in lines_of(tmp_path / "run/perplexity.jsonl"))
    assert (tmp_path / "run/measured-1.jsonl").exists()


def _plain(values):
    from vlaa_jax.train.claim import plain

    return plain(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ()}, "models: name at least one"),
        ({"models": ("embedded", "embedded")}, "names a checkpoint twice"),
        ({"model": {"checkpoint": "embedded"}}, "model.checkpoint"),
    ],
)
def test_settings_that_say_nothing_are_refused(data, change, words):
    with pytest.raises(UserError, match=words):
        settle({**_plain(settings(data)), **change})


def test_more_than_there_are_cannot_be_chosen(data, tmp_path):
    with pytest.raises(UserError, match=r"run.top: 21 are asked for, but 20"):
        run(settings(data, top=(21,)), tmp_path, QUIET)
