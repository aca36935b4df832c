"""Weights & Biases gets what metrics.jsonl gets; tried offline with the real package."""

import pytest

from vlaa_jax.train.trackers import Wandb

wandb = pytest.importorskip("wandb")


def test_an_offline_run_is_written_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (0, 1):
        tracker = Wandb(tmp_path, "vlaa", {"seed": 0})
        tracker.write(step, {"reward/mean": 0.5})
        tracker.close()
    (identity,) = (tmp_path / "wandb_id").read_text().split()
    files = list(tmp_path.rglob("*.wandb"))
    assert files and all(identity in file.name for file in files)
    assert any(b"reward/mean" in file.read_bytes() for file in files)
