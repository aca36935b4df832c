"""Lengths that the check of the records found are those that planning and packing go by."""

from dataclasses import replace

import jax
import pytest

from configs import sft
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.checked import RowCheck, load_checked
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.rows import RowSource
from vlaa_jax.settle import settle


def test_records_are_measured_once(tmp_path, monkeypatch):
    settings = settle(sft.get_config("tiny").to_dict())
    paths = write_dataset(tmp_path, n_train=1, n_heldout=1, n_sft=30)
    mesh = make_mesh(devices=jax.devices()[:1])
    pretrained = open_pretrained(settings.model, settings.data, mesh)
    data = replace(settings.data, rows=2)
    found, rejects = load_checked(paths.sft, paths.images, RowCheck(pretrained, data))
    assert len(found) == 30 and not rejects

    def again(*_args, **_options):
        raise AssertionError("measured again")

    monkeypatch.setattr(Preprocessor, "measure", again)
    unknown = [replace(record, lengths=None) for record in found]
    with pytest.raises(AssertionError, match="measured again"):
        RowSource(unknown, found.images, pretrained, data, mesh, seed=0)
    source = RowSource(found, found.images, pretrained, data, mesh, seed=0)
    assert source.updates_per_epoch() > 1
    rows = [row for records, _ in source.numbered() for row in records]
    assert sorted(r.id for row in rows for r in row) == sorted(r.id for r in found)
    with source.loader() as loader:
        assert next(loader).segment_ids_BT.max() > 1  # encoding finds the same lengths
