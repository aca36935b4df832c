"""Which checkpoints stay, and that they come back bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore

from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.schema import Record, UserError
from vlaa_jax.train import checkpoint
from vlaa_jax.train.checkpoint import Checkpoints, Progress
from vlaa_jax.train.state import abstract_state, new_state


@pytest.fixture
def place():
    return replicated(make_mesh(devices=jax.devices()[:1]))


def save(checkpoints, place, step, score=None, **told):
    trainable = {"w": jax.device_put(jnp.full(3, float(step)), place)}
    state = new_state(trainable, optax.adam(0.1), place)
    frozen = {"table": jax.device_put(jnp.arange(2.0), place)}
    checkpoints.save(state, frozen, Progress(step, {"at": step}, {"kl_coef": 0.5}, **told), score)


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def test_the_newest_and_the_best_stay(tmp_path, place):
    checkpoints = Checkpoints(tmp_path, 2)
    for step, score in [(1, 0.2), (2, 0.6), (3, float("nan")), (4, 0.5), (5, None), (6, 0.4)]:
        save(checkpoints, place, step, score)
    checkpoints.close()
    assert steps_in(tmp_path) == [2, 5, 6]

    again = Checkpoints(tmp_path, 2)
    assert (again.latest, again.best) == (6, 2)
    assert again.best_score == pytest.approx(0.6)
    save(again, place, 7, 0.7)
    again.close()
    assert steps_in(tmp_path) == [6, 7]


def test_no_stored_piece_is_larger_than_a_chunk(tmp_path, place, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 4096)
    checkpoints = Checkpoints(tmp_path, 1)
    params = {"stack": jax.device_put(jnp.ones((6, 32, 40)), place)}
    checkpoints.save(new_state(params, optax.adam(0.1), place), {}, Progress(1, {}))
    checkpoints.close()
    store = {"driver": "ocdbt", "base": (tmp_path / "1/params").as_uri() + "/", "path": "stack/"}
    array = tensorstore.open({"driver": "zarr", "kvstore": store}).result()
    assert array.shape == (6, 32, 40)
    assert np.prod(array.chunk_layout.read_chunk.shape) * 4 <= 4096


def test_what_comes_back_is_what_was_saved(tmp_path, place):
    checkpoints = Checkpoints(tmp_path, 1)
    save(checkpoints, place, 3)
    checkpoints.close()
    again = Checkpoints(tmp_path, 1)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)
    frozen = {"table": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=place)}
    abstract = abstract_state({"w": shape}, optax.adam(0.1), place)
    state, frozen, progress = again.restore(abstract, frozen)
    again.close()
    np.testing.assert_array_equal(state.trainable["w"], np.full(3, 3.0))
    np.testing.assert_array_equal(frozen["table"], np.arange(2.0))
    assert progress == Progress(3, {"at": 3}, {"kl_coef": 0.5})
    assert int(state.updates) == 0


def restored(directory, place):
    again = Checkpoints(directory, 1)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)
    frozen = {"table": jax.ShapeDtypeStruct((2,), jnp.float32, sharding=place)}
    _, _, progress = again.restore(abstract_state({"w": shape}, optax.adam(0.1), place), frozen)
    again.close()
    return progress


def test_a_run_goes_on_with_its_records_and_no_others(tmp_path, place):
    records = [Record(f"r{i}", "q", ("a/x.png",), gt=str(i)) for i in range(4)]
    begun = Progress(0, {}, {"kl_coef": 0.5}).with_records(records)
    checkpoints = Checkpoints(tmp_path, 1)
    save(checkpoints, place, 3, records=begun.records, records_sha256=begun.records_sha256)
    checkpoints.close()
    found = restored(tmp_path, place)
    assert found == begun._replace(step=3, loader={"at": 3}) == found.with_records(records)
    words = r"others than when this run was interrupted \(4 then, 3 now\): restore the file or"
    with pytest.raises(UserError, match=words):
        found.with_records(records[1:])
    with pytest.raises(UserError, match="4 then, 4 now"):
        found.with_records(records[::-1])
