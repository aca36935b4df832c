"""What holds without any other process: identity for one host, and who is asked to join whom."""

import zlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vlaa_jax.parallel import hosts, local
from vlaa_jax.parallel.mesh import AXES, batch_sharding, make_mesh
from vlaa_jax.parallel.start import Where, several, start
from vlaa_jax.schema import UserError


def test_one_host_talks_to_itself():
    assert hosts.gather({1: "x"}) == [{1: "x"}]  # as it is, not as JSON would give it
    assert hosts.total([1.5, 2]) == [1.5, 2]
    assert hosts.from_writer(lambda: 3, "") == hosts.after_writer(lambda: 3, "") == 3
    with pytest.raises(UserError, match="no"):
        hosts.from_writer(lambda: (_ for _ in ()).throw(UserError("no")), "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"coordinator": "a:1"}, "go together"),
        ({"coordinator": "a", "count": 2, "index": 0}, "ADDRESS:PORT"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "--process_id=2"),
        ({"silence_s": 1.0}, "--host_silence_s"),
        ({"wait_s": 5.0}, "--host_wait_s"),
    ],
)
def test_flags_that_do_not_fit_get_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        Where(**settings)


@pytest.mark.parametrize(
    ("environ", "more"),
    [
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_SKIP_MDS_QUERY": "1"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "TPU_SKIP_MDS_QUERY": "1"}, False),
        (
            {
                "SLURM_JOB_ID": "1",
                "SLURM_STEP_NODELIST": "n[1-2]",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_NTASKS": "4",
            },
            True,
        ),
    ],
)
def test_a_cluster_is_known_by_what_it_says(environ, more):
    assert several(environ) is more


def test_a_run_on_one_host_starts_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("must not be called")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    start(Where(), {"JAX_PLATFORMS": "cpu"})
    start(Where(mode="one"), {"TPU_WORKER_HOSTNAMES": "a,b"})
    assert hosts.count() == 1 and hosts.is_writer()


class Late:
    """A store in which a value is found at the third look."""

    def __init__(self):
        self.looks = 0

    def blocking_key_value_get_bytes(self, key, milliseconds):
        self.looks += 1
        if self.looks < 3:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return (1).to_bytes(4, "big") + zlib.compress(b"7")

    def key_value_delete(self, key):
        pass


def test_a_living_host_is_waited_for_to_a_limit_unless_hosts_work_apart(monkeypatch):
    watch = SimpleNamespace(trouble="", where=lambda host: "there")
    link = hosts._Link(Late(), index=1, count=2, wait_s=-1.0, watch=watch)
    monkeypatch.setattr(hosts, "_link", link)
    monkeypatch.setattr(hosts, "_put", lambda key, value: None)
    with pytest.raises(hosts.HostLost, match="has not come to the scores"):
        hosts.gather(1, "the scores")
    assert hosts.gather(1, "the scores", apart=True) == 7
    link.wanted = "SIGTERM"
    with pytest.raises(hosts.Leave, match="host 1: SIGTERM; leaving on the way to the scores"):
        hosts.gather(1, "the scores", apart=True)
    watch.trouble, link.wanted = "host 0 has left", ""
    for code, error in ((130, hosts.HostLeft), (1, hosts.HostLost)):
        watch.code = code
        with pytest.raises(UserError) as found:
            hosts.gather(1, "the scores", apart=True)
        assert found.type is error


class Device:
    """Enough of a device for plans."""

    def __init__(self, host):
        self.process_index = host


def fake_mesh(hosts_of_devices, shape):
    devices = np.array([Device(h) for h in hosts_of_devices], object).reshape(shape)
    return SimpleNamespace(devices=devices)


@pytest.mark.parametrize(
    ("of", "shape", "held", "first"),
    [
        ([0, 0, 1, 1], (4, 1, 1), [[0], [0], [1], [1]], [0, 0, 1, 1]),
        ([0, 0, 1, 1], (2, 1, 2), [[0], [1]], [0, 0, 1, 1]),
        ([0, 1, 0, 1], (2, 1, 2), [[0, 1], [0, 1]], [0, 0, 0, 0]),  # tensor across hosts
        ([0, 1, 0, 1], (2, 2, 1), [[0], [1], [0], [1]], [0, 1, 0, 1]),
    ],
)
def test_shards_belong_to_hosts_wherever_their_devices_are(monkeypatch, of, shape, held, first):
    mesh = fake_mesh(of, shape)
    monkeypatch.setattr(local, "data_shards", lambda m: shape[0] * shape[1])
    assert local.shard_hosts(mesh) == held
    assert local.owners(4, 4, mesh).tolist() == first
    monkeypatch.setattr(hosts, "_link", hosts._Link(count=2, index=1))
    assert local.local_shards(mesh) == [k for k, h in enumerate(held) if 1 in h]
    assert local.owned_shards(mesh) == [k for k, h in enumerate(held) if h[0] == 1]


def test_arrays_go_onto_the_mesh_and_come_back():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert mesh.axis_names == AXES
    array = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    for placed in (
        local.put_local({"a": array}, mesh)["a"],
        local.put_known(array, batch_sharding(mesh)),
    ):
        assert placed.sharding.is_equivalent_to(batch_sharding(mesh), 2)
        assert np.array_equal(local.fetch(placed), array)
    assert local.parts_of([1, 3], list(range(8)), 4) == [2, 3, 6, 7]


class InSlice:
    """A device that says which slice it is in."""

    def __init__(self, slice_index):
        self.slice_index = slice_index


def test_only_data_goes_across_slices(monkeypatch):
    monkeypatch.setattr("vlaa_jax.parallel.mesh.Mesh", lambda devices, axes: devices)
    mixed = [InSlice(k % 2) for k in range(8)]
    devices = make_mesh(fsdp=4, devices=mixed)
    assert devices.shape == (2, 4, 1)
    assert [{d.slice_index for d in part.flat} for part in devices] == [{0}, {1}]
    for sizes in ({"fsdp": 8}, {"slices": 3}):
        with pytest.raises(UserError, match="slices"):
            make_mesh(**sizes, devices=mixed)
