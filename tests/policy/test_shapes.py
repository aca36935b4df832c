"""Shapes come from the ladder: images and texts of many sizes share few compiled programs."""

import jax
import numpy as np
from PIL import Image

from vlaa_jax.data.images.planner import ladder
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.policy.prompts import Collator, Prompt
from vlaa_jax.schema import Record
from vlaa_jax.settings.shared import ModelSettings, PromptSettings

DATA = PromptSettings(max_prompt_tokens=256, min_prompt_bucket=64, vision_rows_per_bin=4)
PROMPTS = 4


def rungs(least, most):
    return {ladder(n, least) for n in range(least, most + 1)}


def test_varied_prompts_compile_no_more_programs_than_the_ladder_has_entries():
    rng = np.random.default_rng(0)
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoint = open_pretrained(ModelSettings(checkpoint="embedded"), DATA, mesh)
    collate = Collator(checkpoint, DATA, mesh)
    count = jax.jit(lambda inputs: sum(leaf.size for leaf in jax.tree.leaves(inputs)))

    def draw():
        width, height = (int(28 * rng.integers(2, 9)) for _ in range(2))
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
        words = "red circles " * int(rng.integers(1, 50))
        record = Record("x", words, ("x.png",), gt="1", verifier_type="digit")
        encoded = Preprocessor(checkpoint.chat, checkpoint.processor).encode(record, [image])
        return Prompt(record, encoded, image.size)

    longest, bins, drawn = 0, 0, set()
    for _ in range(60):
        prompts = [draw() for _ in range(PROMPTS)]
        inputs, batch = collate(prompts)
        count(inputs)
        longest = max(longest, *(prompt.encoded.length for prompt in prompts))
        bins = max(bins, batch.vision.patches_SR64C.shape[0])
        drawn.add(tuple(prompt.image_size for prompt in prompts))
    entries = len(rungs(64, longest)) * len(rungs(1, bins))
    assert len(drawn) > 50
    assert 1 < count._cache_size() <= entries < 16
