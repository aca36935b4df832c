import json
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vlaa_jax.models.qwen_vl import sources, weights
from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen_vl.hf_config import to_hf
from vlaa_jax.models.qwen_vl.hf_keys import Layout, flatten, hf_shapes, key_table, nest
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader, SafetensorsWriter
from vlaa_jax.schema import UserError

BF16 = np.dtype(ml_dtypes.bfloat16)
TEXT = TextConfig(96, 32, 40, 3, 4, 2, 8, mrope_section=(1, 1, 2))
CONFIGS = {
    "2.5, untied": QwenVLConfig(
        "qwen2_5_vl", TEXT, VisionConfig(3, 16, 2, 20, 32, full_blocks=(1,))
    ),
    "2, tied": QwenVLConfig(
        "qwen2_vl",
        TEXT,
        VisionConfig(2, 16, 2, 24, 32, window_size=0, full_blocks=(0, 1), tokens_per_second=1.0),
        tie_word_embeddings=True,
    ),
}


def write_hf(directory, config, *, layout=Layout.OLD, dtype=BF16, seed=0, shards=1):
    """A random HF directory written by the safetensors library; gives name -> array."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(size=shape).astype(dtype)
        for name, shape in hf_shapes(config, layout).items()
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf(config, dtype.name)))
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = "model.safetensors"
        if shards > 1:
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard::shards]
        safetensors.numpy.save_file({n: tensors[n] for n in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.mark.parametrize(("layout", "shards"), [("old", 1), ("new", 3), ("mixed", 2)])
def test_host_load_by_hand(tmp_path, config, layout, shards):
    tensors = write_hf(tmp_path, config, layout=Layout(layout), shards=shards)
    params = weights.load_params(tmp_path)
    visual = "visual" if layout == "old" else "model.visual"
    text = "model.language_model" if layout == "new" else "model"
    layers = params["text"]["layers"]
    for n in range(3):
        theirs = tensors[f"{text}.layers.{n}.self_attn.k_proj.weight"]
        np.testing.assert_array_equal(layers["self_attn"]["k_proj"]["kernel"][n], theirs.T)
        bias = tensors[f"{text}.layers.{n}.self_attn.k_proj.bias"]
        np.testing.assert_array_equal(layers["self_attn"]["k_proj"]["bias"][n], bias)
    conv = tensors[f"{visual}.patch_embed.proj.weight"]
    np.testing.assert_array_equal(params["vision"]["patch_embed"]["kernel"], conv.reshape(16, -1).T)
    embedding = tensors[f"{text}.embed_tokens.weight"]
    np.testing.assert_array_equal(params["text"]["embed_tokens"]["embedding"], embedding)
    if not config.tie_word_embeddings:
        head = tensors["lm_head.weight"]
        np.testing.assert_array_equal(params["lm_head"]["kernel"], head.T)
    assert all(leaf.dtype == BF16 for _, leaf in flatten(params))


def test_host_load_casts(tmp_path, config):
    write_hf(tmp_path, config)
    stored, cast = weights.load_params(tmp_path), weights.load_params(tmp_path, dtype=np.float32)
    for (path, a), (_, b) in zip(flatten(stored), flatten(cast), strict=True):
        assert b.dtype == np.float32, path
        np.testing.assert_array_equal(a.astype(np.float32), b)


def orbax_run(root, params, config, step=7):
    """A training run as the trainer lays it out: OCDBT, float32, sidecars beside."""
    directory = root / "run"
    (directory / "hf").mkdir(parents=True)
    (directory / "hf" / "config.json").write_text(json.dumps(to_hf(config)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "checkpoints" / str(step) / "params", params)
    return directory


@pytest.fixture(params=["hf", "run"])
def checkpoint(request, tmp_path, config):
    write_hf(tmp_path / "hf", config, dtype=np.dtype(np.float32))
    if request.param == "hf":
        return tmp_path / "hf"
    return orbax_run(tmp_path, weights.load_params(tmp_path / "hf"), config)


def test_slices_are_slices_of_the_whole(checkpoint):
    source = weights.open_params(checkpoint)
    rng = np.random.default_rng(0)
    for key in key_table(source.config):
        whole = source.read(key)
        assert whole.shape == key.shape
        index = tuple(slice(*sorted(rng.integers(0, size + 1, 2))) for size in key.shape)
        np.testing.assert_array_equal(source.read(key, index), whole[index])
        np.testing.assert_array_equal(source.read(key, index[:1]), whole[index[:1]])


def test_straight_onto_a_mesh(checkpoint):
    host = weights.load_params(checkpoint)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))

    def abstract(path, leaf):
        axes = [None] * leaf.ndim
        for axis, name in ((-1, "tensor"), (-2, "fsdp")):
            if leaf.ndim >= -axis and leaf.shape[axis] % 2 == 0:
                axes[axis] = name
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, BF16, sharding=sharding)

    wanted = {path: abstract(path, leaf) for path, leaf in flatten(host)}
    placed = dict(flatten(weights.load_params(checkpoint, nest(wanted))))
    assert placed.keys() == wanted.keys()
    for path, leaf in flatten(host):
        assert placed[path].sharding == wanted[path].sharding
        np.testing.assert_array_equal(np.asarray(placed[path]), leaf.astype(BF16))


def test_a_process_reads_only_the_slices_of_its_devices(tmp_path, config, monkeypatch):
    write_hf(tmp_path, config)
    host = weights.load_params(tmp_path)
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    leaf = host["text"]["layers"]["mlp"]["up_proj"]["kernel"]
    wanted = nest(
        {
            ("text", "layers", "mlp", "up_proj", "kernel"): jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            )
        }
    )
    seen = []
    read = sources.HFSource.read
    monkeypatch.setattr(
        sources.HFSource, "read", lambda *args: seen.append(read(*args)) or seen[-1]
    )
    placed = weights.load_params(tmp_path, wanted)
    np.testing.assert_array_equal(
        np.asarray(placed["text"]["layers"]["mlp"]["up_proj"]["kernel"]), leaf
    )
    assert [part.shape for part in seen] == [(3, 8, 40)] * 4


def test_a_tree_that_does_not_fit_is_told(tmp_path, config):
    write_hf(tmp_path, config)
    wrong = {
        "text": {"norm": {"scale": jax.ShapeDtypeStruct((33,), BF16)}},
        "other": jax.ShapeDtypeStruct((1,), BF16),
    }
    with pytest.raises(UserError) as caught:
        weights.load_params(tmp_path, wrong)
    assert "text.norm.scale is [32], not [33]" in str(caught.value)
    assert "has no other" in str(caught.value)


def test_newest_step_and_any_step_of_a_run(tmp_path):
    config = CONFIGS["2, tied"]
    write_hf(tmp_path / "hf", config, dtype=np.dtype(np.float32))
    params = weights.load_params(tmp_path / "hf")
    run = orbax_run(tmp_path, params, config, step=9)
    older = jax.tree.map(lambda x: x + 1, params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(run / "checkpoints" / "8" / "params", older)
    (run / "checkpoints" / "10.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    scale = params["text"]["norm"]["scale"]
    for path, expected in ((run, scale), (run / "checkpoints" / "8", scale + 1)):
        loaded = weights.load_params(path)["text"]["norm"]["scale"]
        np.testing.assert_array_equal(loaded, expected)
        assert weights.load_config(path) == config
        assert weights.sidecar_dir(path) == run / "hf"


def test_a_run_without_a_finished_step(tmp_path):
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        weights.open_params(tmp_path)


def test_misfit_of_a_run_lists_every_array(tmp_path):
    config = CONFIGS["2.5, untied"]
    write_hf(tmp_path / "hf", config, dtype=np.dtype(np.float32))
    params = weights.load_params(tmp_path / "hf")
    del params["lm_head"]
    params["text"]["norm"] = {"scale": np.zeros((5,), np.float32), "offset": np.zeros(2)}
    with pytest.raises(UserError) as caught:
        weights.open_params(orbax_run(tmp_path, params, config))
    text = str(caught.value)
    assert "missing: lm_head.kernel [32, 96]" in text
    assert "unexpected: text.norm.offset" in text
    assert "wrong shape: text.norm.scale is [5], not [32]" in text


def test_redundant_head_of_a_tied_model(tmp_path):
    config = CONFIGS["2, tied"]
    tensors = write_hf(tmp_path, config)
    head = tensors["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    assert "lm_head" not in weights.load_params(tmp_path)
    head[5, 5] += 1
    safetensors.numpy.save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="set tie_word_embeddings to false"):
        weights.open_params(tmp_path)


def test_layers_of_different_dtypes(tmp_path):
    tensors = write_hf(tmp_path, CONFIGS["2, tied"])
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight is float32"):
        weights.open_params(tmp_path)


def cut_off(directory):
    file = directory / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def lose_shard(directory):
    (directory / "model-00001-of-00002.safetensors").unlink()


def break_header(directory):
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 100)


def list_for_header(directory):
    (directory / "model-00001-of-00002.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")


def escape(directory):
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))


def lose_index(directory):
    (directory / "model.safetensors.index.json").unlink()


def promise_more(directory):
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "is cut off: .* ends at byte"),
        (lose_shard, "model-00001-of-00002.safetensors does not exist"),
        (break_header, "cut off in its header"),
        (list_for_header, "its header is no JSON object"),
        (escape, "not the name of a file beside it"),
        (lose_index, "holds neither model.safetensors nor"),
        (promise_more, "lists tensors that its shards do not hold: extra.weight"),
    ],
)
def test_damaged_weight_files(tmp_path, damage, message):
    write_hf(tmp_path, CONFIGS["2, tied"], shards=2)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        weights.open_params(tmp_path)


def test_the_tie_is_blamed_on_the_key_that_makes_it(tmp_path):
    config = CONFIGS["2, tied"]
    tensors = write_hf(tmp_path, config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    raw = to_hf(config)
    raw["text_config"] = {"tie_word_embeddings": raw.pop("tie_word_embeddings")}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"set text_config\.tie_word_embeddings to false"):
        weights.open_params(tmp_path)


def test_a_path_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_hf(tmp_path / "hf", CONFIGS["2, tied"])
    assert weights.resolve("~/hf") == tmp_path / "hf" == weights.sidecar_dir("~/hf")
    assert weights.open_params("~/hf").sidecars == tmp_path / "hf"
    with pytest.raises(UserError, match=f"{tmp_path}/gone is not a directory"):
        weights.open_params("~/gone")


def test_an_index_of_an_earlier_save_never_brings_its_weights_back(tmp_path):
    """Two sets are refused by both names; without old shards the single file is read, as by HF."""
    config = CONFIGS["2, tied"]
    write_hf(tmp_path, config, shards=2, seed=1)
    newer = write_hf(tmp_path, config, seed=2)
    both = r"model\.safetensors, and model\.safetensors\.index\.json with model-00001-of-00002"
    with pytest.raises(UserError, match=both):
        weights.open_params(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json with model-00002-of-00002"):
        weights.open_params(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"index\.json is ignored: of its shards none is there"):
        reader = SafetensorsReader(tmp_path)
    name = "model.norm.weight"
    np.testing.assert_array_equal(reader.view(name), newer[name])


def test_an_index_of_the_single_file_itself_is_no_second_set(tmp_path, recwarn):
    tensors = write_hf(tmp_path, CONFIGS["2, tied"])
    content = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    assert set(SafetensorsReader(tmp_path).tensors) == set(tensors) and not recwarn


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_to_weights_that_are_gone_is_said_to_be_one(tmp_path, name):
    write_hf(tmp_path, CONFIGS["2, tied"])
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is a link to .*gone, which does not exist"):
        weights.open_params(tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    tensors = write_hf(tmp_path, CONFIGS["2, tied"])
    tensors["model.norm.weight"] = np.zeros(32, np.int8)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight has dtype I8"):
        weights.open_params(tmp_path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        weights.open_params(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        weights.open_params(tmp_path)


def test_hub_id_offline(monkeypatch, tmp_path):
    # tests/conftest.py sets HF_HUB_OFFLINE.
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match="could not be fetched from the hub"):
        weights.resolve("nobody/no-such-model")
    assert weights.resolve(tmp_path) == tmp_path


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6),
    limit=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_writer_is_read_by_the_library_and_by_us(tmp_path_factory, sizes, limit, seed):
    rng = np.random.default_rng(seed)
    dtypes = [np.dtype(np.float32), BF16, np.dtype(np.float16), np.dtype(np.float64)]
    arrays = {
        f"t{i}": rng.normal(size=shape).astype(dtypes[rng.integers(4)])
        for i, shape in enumerate(sizes)
    }
    directory = tmp_path_factory.mktemp("writer")
    specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    with SafetensorsWriter(directory, specs, max_shard_bytes=limit) as writer:
        for name in rng.permutation(list(arrays)):
            array = arrays[name]
            cut = array.shape[0] // 2 if array.ndim else 0
            if cut:
                writer.write(name, array[cut:], first_row=cut)
                writer.write(name, array[:cut])
            else:
                writer.write(name, array)
    theirs = {}
    for file in directory.glob("*.safetensors"):
        theirs |= safetensors.numpy.load_file(file)
        with safetensors.safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
    reader = SafetensorsReader(directory)
    assert set(theirs) == set(arrays) == set(reader.tensors)
    for name, array in arrays.items():
        for other in (theirs[name], reader.view(name)):
            assert other.dtype == array.dtype
            np.testing.assert_array_equal(other, array)
    index = directory / "model.safetensors.index.json"
    if index.exists():
        total = json.loads(index.read_text())["metadata"]["total_size"]
        assert total == sum(array.nbytes for array in arrays.values())
    shutil.rmtree(directory)


def test_writer_refuses_to_finish_early_and_to_take_what_was_not_planned(tmp_path):
    writer = SafetensorsWriter(tmp_path, {"a": (BF16, (4, 2)), "b": (BF16, (1,))})
    with pytest.raises(ValueError, match="rows 3"):
        writer.write("a", np.zeros((2, 2), BF16), first_row=3)
    with pytest.raises(ValueError, match="float32"):
        writer.write("a", np.zeros((4, 2), np.float32))
    writer.write("a", np.zeros((4, 2), BF16))
    with pytest.raises(ValueError, match=r"not \(wholly\) written: \['b'\]"):
        writer.close()


@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    cast=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_copy_tiled_is_a_copy(rows, columns, cast):
    source = np.random.default_rng(0).normal(size=(columns, rows)).astype(np.float32)
    target = np.empty((rows, columns), BF16 if cast else np.float32)
    sources.copy_tiled(target, source.T)
    np.testing.assert_array_equal(target, source.T.astype(target.dtype))
