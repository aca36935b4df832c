"""A resumed run notices what was changed under the same path, and names it."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlaa_jax.schema import Record, UserError
from vlaa_jax.train.checkpoint import Progress
from vlaa_jax.train.inputs import inputs, same_inputs

RECORDS = [Record(str(i), "How many?", (f"{i}.png",), gt="1") for i in range(4)]
HELD = [Record("h", "How many?", ("3.png",), gt="2")]


@pytest.fixture
def files(tmp_path):
    weights, images = tmp_path / "weights", tmp_path / "images"
    weights.mkdir()
    images.mkdir()
    noise = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    save_file({"w": noise}, weights / "model.safetensors")
    for i in range(4):
        (images / f"{i}.png").write_bytes(b"x" * (100 + i))
    return weights, images, noise


def begun(weights, images):
    return same_inputs(Progress(3, {}), inputs(weights, images, RECORDS, HELD))


def test_nothing_changed(files):
    weights, images, _ = files
    progress = begun(weights, images)
    assert same_inputs(progress, inputs(weights, images, RECORDS, HELD)) == progress


def double_the_weights(weights, images, noise):
    save_file({"w": 2 * noise}, weights / "model.safetensors")  # header and size stay
    return RECORDS, HELD


def blank_an_image(weights, images, noise):
    (images / "2.png").write_bytes(b"")
    return RECORDS, HELD


def cut_the_heldout_file(weights, images, noise):
    return RECORDS, []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (double_the_weights, "model.checkpoint: the base weights"),
        (blank_an_image, "data.image_root: the images"),
        (cut_the_heldout_file, "data.heldout: the held-out records"),
    ],
)
def test_what_changed_is_named(files, change, named):
    weights, images, noise = files
    progress = begun(weights, images)
    records, held = change(weights, images, noise)
    with pytest.raises(UserError, match=named):
        same_inputs(progress, inputs(weights, images, records, held))


def test_a_run_that_is_trained_on_is_known_by_its_newest_weights(files, tmp_path):
    _, images, _ = files
    params = tmp_path / "run" / "checkpoints" / "2" / "params"
    params.mkdir(parents=True)
    (params.parent / "_CHECKPOINT_METADATA").write_text("{}")
    (params / "d").write_bytes(b"a" * 5000)
    progress = begun(tmp_path / "run", images)
    (params / "d").write_bytes(b"b" * 5000)
    with pytest.raises(UserError, match=r"model\.checkpoint: the base weights are others"):
        same_inputs(progress, inputs(tmp_path / "run", images, RECORDS, HELD))
