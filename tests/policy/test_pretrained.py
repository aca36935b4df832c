"""The sampler on the embedded checkpoint: with images, and deaf to generation_config.json."""

import shutil
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.checked import Usable, load_checked
from vlaa_jax.policy.distribution import Distribution
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.prompts import Collator, Encoder
from vlaa_jax.policy.usable import heldout_prompts
from vlaa_jax.rollout.engine import Decoding, Engine
from vlaa_jax.rollout.sampling import Sampling
from vlaa_jax.settings.shared import ModelSettings, PromptSettings

TINY = Path(str(resources.files("vlaa_jax") / "assets" / "tiny"))
DATA = PromptSettings(max_prompt_tokens=200, vision_rows_per_bin=2, vision_bins_per_shard=4)
PROMPTS, GROUPS, LIMIT, TEMPERATURE = 4, 3, 24, 0.9


@pytest.fixture(scope="module")
def place():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), n_train=10, n_heldout=5, n_sft=1)


def sample(directory, place, paths):
    """Completions of the first prompts by a checkpoint, and what made them."""
    checkpoint = open_pretrained(
        ModelSettings(checkpoint=str(directory), dtype="float32", unroll=0), DATA, place
    )
    encoder = Encoder(checkpoint, DATA)
    usable, _ = load_checked(paths.grpo, paths.images, encoder)
    prompts = heldout_prompts(Usable(usable[:PROMPTS], usable.images), encoder)
    assert all(prompt.encoded.grids for prompt in prompts)
    collate = Collator(checkpoint, DATA, place)
    inputs, _ = collate(prompts)
    params = checkpoint.load_params(0)
    engine = Engine(
        checkpoint.graphdef,
        Decoding(GROUPS, LIMIT, burst=8),
        sampling=Sampling(TEMPERATURE),
        eos_id=checkpoint.chat.end_of_turn_id,
        allowed_V=checkpoint.allowed_V,
    )
    keys = jax.random.split(jax.random.key(0), PROMPTS)
    length = collate.prompt_bucket(prompts)
    rollout = engine.generate(params, [inputs], keys, prefix_length=length)
    return checkpoint, params, inputs, rollout


@pytest.fixture(scope="module")
def sampled(place, records):
    return sample(TINY, place, records)


def test_with_images_the_sampler_says_what_the_trainer_computes(sampled):
    checkpoint, params, inputs, rollout = sampled
    policy = Distribution(checkpoint.graphdef, TEMPERATURE, 0, 1)
    tokens = jnp.asarray(rollout.tokens_PGT)
    want, _ = jax.jit(policy.completion_logprobs)(
        params, inputs, tokens, jnp.asarray(checkpoint.allowed_V)
    )
    gap = np.where(rollout.mask_PGT, rollout.logprobs_PGT - np.asarray(want), 0)
    # As parity with transformers is measured: against the largest value.
    assert np.abs(gap).max() <= 1e-5 * np.abs(rollout.logprobs_PGT).max()
    assert rollout.mask_PGT.sum() > PROMPTS * GROUPS * 4


def test_no_generation_config_is_inherited(sampled, place, records, tmp_path):
    """The embedded one asks for top-k 1, other ends, and a repetition penalty."""
    assert '"top_k": 1,' in (TINY / "generation_config.json").read_text()
    bare = tmp_path / "bare"
    shutil.copytree(TINY, bare)
    (bare / "generation_config.json").unlink()
    with_it, without = sampled[3], sample(bare, place, records)[3]
    np.testing.assert_array_equal(with_it.tokens_PGT, without.tokens_PGT)
    # Top-k 1 would have made the completions of a prompt alike.
    assert any(len(np.unique(group, axis=0)) > 1 for group in with_it.tokens_PGT)
