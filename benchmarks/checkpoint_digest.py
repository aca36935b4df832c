"""What the digests of a checkpoint cost, as a share of saving and restoring it.

    python benchmarks/checkpoint_digest.py [--gb=2] [--dir=DIR] [--repeats=3]
                                           [--out=benchmarks/results/checkpoint_digest_2cpu.json]

Parameters and AdamW's two moments of float32 noise, which does not compress, in leaves of 64 MB.
Wall and CPU seconds (of all threads) of saving with and without digests, of restoring, and of the
check that a run does when it opens its directory. The file cache holds what was just written, so
reading costs less than from a cold disk: the share of the digest is an upper bound.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
LEAF = 16 * 2**20


def timed(function):
    wall, cpu = time.monotonic(), time.process_time()
    result = function()
    return result, {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}


def state_of(gb, place):
    import jax
    import numpy as np
    import optax

    from vlaa_jax.train.state import new_state

    leaves = max(1, round(gb * 1e9 / (3 * 4 * LEAF)))
    rng = np.random.default_rng(0)

    def noise():
        return jax.device_put(rng.standard_normal(LEAF, np.float32).reshape(4096, -1), place)

    state = new_state({f"w{n}": noise() for n in range(leaves)}, optax.adam(0.1), place)
    moments = jax.tree.map(lambda a: noise() if a.size == LEAF else a, state.opt_state)
    return state._replace(opt_state=moments)


def once(state, place, folder):
    """One save with digests, the check, a restore, and the digests alone."""
    from vlaa_jax import digests
    from vlaa_jax.train import checkpoint
    from vlaa_jax.train.checkpoint import Checkpoints, Progress

    def save():
        checkpoints = Checkpoints(folder, 1)
        checkpoints.save(state, {}, Progress(1, {}))
        checkpoints.close()

    found = {}
    _, found["save"] = timed(save)
    step = folder / "1"
    size = sum(p.stat().st_size for p in step.rglob("*") if p.is_file())
    items = (checkpoint.PARAMS, checkpoint.OPTIMIZER, checkpoint.PROGRESS)
    _, found["digests_written"] = timed(lambda: [digests.write(step / item) for item in items])
    problem, found["check"] = timed(lambda: checkpoint.problem(step))
    assert problem is None, problem
    import jax
    import optax

    from vlaa_jax.train.state import abstract_state

    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state.trainable
    )
    abstract = abstract_state(shapes, optax.adam(0.1), place)

    def restore():
        checkpoints = Checkpoints(folder, 1)  # which checks the newest
        result = checkpoints.restore(abstract, {})
        jax.block_until_ready(result[0])
        checkpoints.close()

    _, found["restore"] = timed(restore)
    return size, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import jax

    from vlaa_jax.parallel.mesh import make_mesh, replicated

    place = replicated(make_mesh(devices=jax.devices()[:1]))
    state = state_of(args.gb, place)
    runs = []
    for _ in range(args.repeats):
        folder = Path(tempfile.mkdtemp(dir=args.dir))
        size, found = once(state, place, folder)
        shutil.rmtree(folder)
        runs.append(found)
        print(json.dumps(found), flush=True)

    def median(part, kind):
        return sorted(run[part][kind] for run in runs)[len(runs) // 2]

    share = {
        f"of_{whole}_{kind[:-2]}": round(median(part, kind) / median(whole, kind), 3)
        for whole, part in (("save", "digests_written"), ("restore", "check"))
        for kind in ("wall_s", "cpu_s")
    }
    result = {"bytes": size, "cpus": os.cpu_count(), "runs": runs, "share": share}
    print(json.dumps({"bytes": size, "share": share}))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
