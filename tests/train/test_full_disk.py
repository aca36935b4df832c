"""A checkpoint that the disk does not take: told, cleared away, and the older one goes on."""

import time

import jax
import numpy as np
import optax
import pytest

from full_disks import mounted, resize
from vlaa_jax import disk
from vlaa_jax.parallel.mesh import make_mesh, replicated
from vlaa_jax.schema import UserError
from vlaa_jax.train.checkpoint import Checkpoints, Progress
from vlaa_jax.train.metrics import MetricsWriter
from vlaa_jax.train.state import new_state


def save(checkpoints, step):
    place = replicated(make_mesh(devices=jax.devices()[:1]))
    noise = np.random.default_rng(step).normal(size=(12, 200, 40)).astype(np.float32)
    params = {f"w{n}": jax.device_put(part, place) for n, part in enumerate(noise)}
    state = new_state(params, optax.adam(0.1), place)
    checkpoints.save(state, {}, Progress(step, {"at": step}))


def until_full(checkpoints):
    for step in range(1, 10):
        save(checkpoints, step)
        while checkpoints._manager.is_saving_in_progress():
            time.sleep(0.02)
        checkpoints.check()


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path, capfd):
    with mounted(tmp_path / "disk", 700) as place:
        checkpoints = Checkpoints(place / "checkpoints", 1)
        full = pytest.raises(UserError, match=r"No space left on device; free some space; then")
        with full, disk.refusals(place, "then"):
            until_full(checkpoints)
        checkpoints.close()
        assert [path.name for path in (place / "checkpoints").iterdir()] == ["1"]
        assert "Traceback" not in capfd.readouterr().err
        resize(place, 2000)
        again = Checkpoints(place / "checkpoints", 1)
        assert again.latest == 1
        save(again, 2)
        again.close()
        assert [path.name for path in (place / "checkpoints").iterdir()] == ["2"]


def test_what_a_kill_has_left_is_cleared_away(tmp_path):
    left = tmp_path / "3.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "d").write_bytes(bytes(1000))
    Checkpoints(tmp_path, 1).close()
    assert not list(tmp_path.iterdir())


def test_metrics_stay_whole_lines(small_disk):
    writer = MetricsWriter(small_disk, 0)
    with pytest.raises(OSError, match="No space left"):
        for step in range(10_000):
            writer.write(step, {"loss": 1.0, "other": float(step)})
    lines = (small_disk / "metrics.jsonl").read_text()
    assert lines.endswith("}\n")
    with pytest.raises(OSError, match="No space left"):
        writer.close()
