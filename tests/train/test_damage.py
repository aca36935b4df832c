"""A damaged checkpoint is never restored from, whatever was damaged, and is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.schema import UserError
from vlaa_jax.train.checkpoint import Checkpoints, Progress
from vlaa_jax.train.state import abstract_state, new_state


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints 1 and 2."""
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    checkpoints = Checkpoints(tmp_path, 5)
    for step in (1, 2):
        noise = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
        state = new_state({"w": jax.device_put(noise, place)}, optax.adam(0.1), place)
        checkpoints.save(state, {}, Progress(step, {"at": step}))
    checkpoints.close()
    return tmp_path


def files(directory):
    """All files but the marks that Orbax leaves when it has ended, which say nothing."""
    found = (p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)
    return sorted(path for path in found if path.name != "commit_success.txt")


def restored(directory):
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=place)
    checkpoints = Checkpoints(directory, 5, "older")
    try:
        shapes = abstract_state({"w": shape}, optax.adam(0.1), place)
        state, _, progress = checkpoints.restore(shapes, {})
        checkpoints.save(state, {}, progress._replace(step=progress.step + 1))
        return progress.step, checkpoints.put_aside
    finally:
        checkpoints.close()


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero_a_block(path):
    data = path.read_bytes()
    path.write_bytes(data[:8] + bytes(min(4096, len(data) - 8)) + data[8 + 4096 :])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = [flip_a_bit, zero_a_block, cut, lambda path: path.unlink(), lambda p: p.write_bytes(b"")]


@pytest.mark.parametrize("item", ["params", "optimizer", "progress"])
@pytest.mark.parametrize("damage", DAMAGE, ids=["bit", "block", "cut", "deleted", "empty"])
def test_every_kind_of_damage_stops_with_the_step_and_the_file(run, item, damage):
    for file in files(run / "2" / item):
        whole = file.read_bytes()
        damage(file)
        with pytest.raises(UserError, match=rf"/2: damaged, {item}/.*run\.damaged=older") as told:
            Checkpoints(run, 5)
        named = file.relative_to(run / "2").as_posix()
        assert named in str(told.value), told.value
        file.write_bytes(whole)
    Checkpoints(run, 5).close()


def test_a_missing_item_and_an_empty_step_are_damage(run):
    (run / "3").mkdir()
    with pytest.raises(UserError, match="/3: damaged, params is missing"):
        Checkpoints(run, 5)


def test_the_newest_sound_step_is_taken_where_that_is_allowed(run):
    flip_a_bit(max(files(run / "2" / "params"), key=lambda path: path.stat().st_size))
    step, aside = restored(run)
    assert (step, [number for number, _ in aside]) == (1, [2])
    assert (run / "2.damaged" / "params").is_dir()  # nothing is thrown away
    assert Checkpoints(run, 5).latest == 2  # and the step was done again


def test_a_checkpoint_that_a_kill_cut_short_has_no_final_name(run):
    (run / "3.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(run, 5).latest == 2
