"""What a small run's programs send over a v5e mesh, compiled ahead of time: counted, so it stays.

The CPU's compiler shows no reduce-scatter and gathers bfloat16 as float32. libtpu is in the test
extra; nothing here needs a TPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.plan.formulas import sizes_of

ROOT = Path(__file__).parents[2]
MIB = 2**20
LAYERS, WIDTH, HEADS = 3, 256, 4
HF = {
    "model_type": "qwen2_5_vl",
    "hidden_size": WIDTH,
    "intermediate_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "tie_word_embeddings": True,
    "image_token_id": 2000,
    "video_token_id": 2001,
    "vision_start_token_id": 2002,
    "vision_end_token_id": 2003,
    "eos_token_id": 2047,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 128,
        "num_heads": 2,
        "intermediate_size": 256,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
        "window_size": 112,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    },
}
RUN = {
    "data.max_prompt_tokens": 128,
    "data.min_prompt_bucket": 128,
    "data.vision_rows_per_bin": 4,
    "rollout.max_new_tokens": 64,
    "rollout.burst": 16,
    "rollout.batch_prompts": 16,
    "rollout.prefill_prompts": 8,
    "algo.micro_prompts": 8,
}
CONFIG = parse_config(HF)


def plan(folder, **mesh):
    """Figures of the command's JSON file, and its exit code."""
    model, out = folder / "model", folder / "plan.json"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(HF))
    options = RUN | {f"mesh.{name}": size for name, size in mesh.items()}
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    # Neither the fake CPU devices nor the few optimisations of the other tests.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vlaa_jax.plan", "--config=configs/grpo.py"),
            *("--topology=v5e:2x4", f"--config.model.checkpoint={model}", f"--json={out}"),
            *("--cache=", *flags),  # compiled anew
        ],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def sent(figures, program, *kinds):
    """Bytes a device sends in one run of a program, by collectives whose name holds all words."""
    found = figures["programs"][program]["sent_mib"]
    return MIB * sum(
        size * (LAYERS if f"x{LAYERS}" in name else 2 if "x2" in name else 1)
        for name, size in found.items()
        if not kinds or any(kind in name for kind in kinds)
    )


@pytest.fixture(scope="module")
def cut_by_fsdp(tmp_path_factory):
    return plan(tmp_path_factory.mktemp("fsdp"), fsdp=8)


def test_decoding_gathers_no_weight(cut_by_fsdp):
    layer = sizes_of(CONFIG).layer * 2
    assert sent(cut_by_fsdp, "burst") < 0.02 * layer, cut_by_fsdp["programs"]["burst"]
    kinds = cut_by_fsdp["programs"]["burst"]["sent_mib"]
    assert not [kind for kind in kinds if "x3" in kind], "something crosses the mesh in every layer"


def test_a_pass_gathers_parameters_twice_and_reduces_gradients_once(cut_by_fsdp):
    sizes = sizes_of(CONFIG)
    floor = {"gather": 2 * 2 * sizes.total, "reduce": 4 * sizes.total}
    gathered = sent(cut_by_fsdp, "gradients", "all-gather")
    reduced = sent(cut_by_fsdp, "gradients", "reduce", "to-all", "permute")
    assert 0.7 * floor["gather"] < gathered <= 1.1 * floor["gather"]
    # What a product is cut up for travels in rings; the embedding's slices change places instead.
    assert 0.7 * floor["reduce"] < reduced <= 1.3 * floor["reduce"]
    assert gathered + reduced <= 1.3 * sum(floor.values())
    # The head and its gradient cross once: chunks of logits are a loop of their own.
    layers = sent(cut_by_fsdp, "gradients", f"x{LAYERS}") / LAYERS
    assert layers <= 1.1 * (2 * 2 + 4) * sizes.layer


def test_scoring_gathers_parameters_once(cut_by_fsdp):
    floor = 2 * sizes_of(CONFIG).total
    assert 0.7 * floor < sent(cut_by_fsdp, "score", "all-gather") <= 1.1 * floor
    assert sent(cut_by_fsdp, "score") <= 1.3 * floor


def test_tensor_parallel_decoding_sends_sums_alone(tmp_path):
    figures = plan(tmp_path, fsdp=4, tensor=2)
    rows = RUN["rollout.batch_prompts"] * 4 / 4  # completions of a data shard
    sums = 2 * LAYERS * rows * WIDTH * 4 * 2  # two a layer, float32, a ring sends each twice
    assert sent(figures, "burst", "all-reduce") <= 1.5 * sums
    assert sent(figures, "burst", "all-gather", "to-all", "permute") <= 0.1 * sums
