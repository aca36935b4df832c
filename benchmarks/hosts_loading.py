"""What two hosts read and hold when they load a checkpoint together: bytes and resident memory.

    python benchmarks/hosts_loading.py --gib=7.5 [--out=benchmarks/results/hosts_loading.json]

Writes a checkpoint of the 3B model's shapes with as many layers as give the wished size, then loads
it in two processes, parameters cut over both (mesh.fsdp=2), in the dtype of the checkpoint. Bytes
are those of the slices that a process takes out of the mapped files.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from vlaa_jax.models.qwen_vl.hf_config import read_config

ROOT = Path(__file__).parent.parent
GIB = 2**30


def write_checkpoint(directory, gib):
    """An HF directory of random bfloat16 tensors; returns its bytes."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from vlaa_jax.models.qwen_vl import hf_keys

    source = ROOT / "vlaa_jax" / "assets" / "tiny" / "config.json"
    config = json.loads(source.read_text())
    text = config.get("text_config", config)
    text |= {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151936,
        "num_hidden_layers": 36,
    }
    sections = [16, 24, 24]
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(text.get(name), dict):
            text[name] = {**text[name], "mrope_section": sections}
    config["vision_config"]["out_hidden_size"] = 2048
    (directory / "config.json").write_text(json.dumps(config))
    parsed = read_config(directory)
    per_layer = 2 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    head = 2 * 2048 * 151936
    text["num_hidden_layers"] = max(round((gib * GIB - head) / per_layer), 1)
    (directory / "config.json").write_text(json.dumps(config))
    parsed = read_config(directory)
    rng, total, index, shard, size = np.random.default_rng(0), 0, {}, {}, 0
    block = rng.standard_normal(2**20, np.float32).astype(ml_dtypes.bfloat16)

    def flush():
        nonlocal shard, size
        name = f"model-{len(set(index.values())):05d}.safetensors"
        save_file(shard, str(directory / name))
        index.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for name, shape in hf_keys.hf_shapes(parsed).items():
        shard[name] = np.resize(block, shape)
        size, total = size + shard[name].nbytes, total + shard[name].nbytes
        if size > GIB:
            flush()
    flush()
    listing = {"metadata": {"total_size": total}, "weight_map": index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(listing))
    return total


def counted(source):
    """Counts the bytes of the slices that a source of parameters is asked for."""
    taken, read = [], source.read

    def counting(self, *args):
        part = read(self, *args)
        taken.append(part.nbytes)
        return part

    source.read = counting
    return taken


def load(directory, port, number):
    """One of the two processes: prints what it read and held."""
    import jax

    from vlaa_jax.models.qwen_vl import weights
    from vlaa_jax.parallel.start import Where, start

    start(Where(coordinator=f"127.0.0.1:{port}", count=2, index=number), os.environ)
    from vlaa_jax.models.qwen_vl.axes import PARAM_AXES, layout
    from vlaa_jax.models.qwen_vl.model import Compute, split_model
    from vlaa_jax.models.qwen_vl.sources import HFSource
    from vlaa_jax.parallel import hosts
    from vlaa_jax.parallel.mesh import make_mesh
    from vlaa_jax.parallel.sharding import tree_shardings

    config, mesh = read_config(directory), make_mesh(fsdp=2)
    where = layout(config, mesh)
    _, shapes = split_model(config, Compute(dtype="bfloat16", layout=where))
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, "bfloat16", sharding=place),
        shapes,
        tree_shardings(shapes, PARAM_AXES, where),
    )
    taken = counted(HFSource)
    with hosts.ending_together():
        params = weights.load_params(directory, abstract)
    own = sum(s.data.nbytes for a in jax.tree.leaves(params) for s in a.addressable_shards)
    found = {
        "read": sum(taken),
        "share": own,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=7.5)
    parser.add_argument("--out")
    parser.add_argument("--child", nargs=3)
    args = parser.parse_args()
    if args.child:
        load(Path(args.child[0]), *args.child[1:2], int(args.child[2]))
        return
    with tempfile.TemporaryDirectory() as folder, socket.socket() as one:
        total = write_checkpoint(Path(folder), args.gib)
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
        one.close()
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", folder, port, str(k)],
                env=env,
                stdout=subprocess.PIPE,
                text=True,
            )
            for k in range(2)
        ]
        told = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    gib = [{k: round(v / GIB, 3) for k, v in one.items()} for one in told]
    result = {"checkpoint_gib": round(total / GIB, 3), "hosts": gib}
    result["read_over_checkpoint"] = round(sum(one["read"] for one in told) / total, 3)
    result["rss_over_share_gib"] = [round(one["peak_rss"] - one["share"], 3) for one in gib]
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
