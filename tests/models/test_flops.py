"""Counted FLOPs beside what XLA counts in the compiled program."""

import jax
import numpy as np
from flax import nnx

from vlaa_jax.data.rows.batches import BatchLayout, collate_prompts
from vlaa_jax.data.samples.preprocessor import Encoded
from vlaa_jax.data.text.positions import mrope_positions
from vlaa_jax.models.qwen_vl.config import QwenVLConfig, TextConfig, VisionConfig
from vlaa_jax.models.qwen_vl.flops import group_flops
from vlaa_jax.models.qwen_vl.model import Compute, PromptInputs, completion_inputs, split_model
from vlaa_jax.models.qwen_vl.vision import VisionInputs

IMAGE, START, END = 500, 501, 502
CONFIG = QwenVLConfig(
    family="qwen2_5_vl",
    text=TextConfig(512, 256, 512, 3, 4, 2, 64, 1e-6, 1e6, (8, 12, 12)),
    vision=VisionConfig(3, 128, 2, 256, 256, full_blocks=(1,)),
    tie_word_embeddings=True,
    image_token_id=IMAGE,
    video_token_id=503,
    vision_start_token_id=START,
    vision_end_token_id=END,
    eos_token_id=511,
    pad_token_id=0,
)


def test_counts_agree_with_the_compiled_program_where_nothing_is_padding():
    # 8 x 8 patches are a window and a row of the buffer; 32 tokens are a rung of the ladder.
    grid, prompts, groups, new = (1, 8, 8), 2, 4, 32
    ids = np.array([*range(1, 15), START, *[IMAGE] * 16, END], np.int32)
    positions, delta = mrope_positions(
        ids, [grid], image_token_id=IMAGE, video_token_id=503, tokens_per_second=2.0
    )
    patches = np.ones((64, 1176), np.float32)
    nothing = np.zeros(len(ids), bool)
    sample = Encoded(ids, nothing, positions, delta, (patches,), (grid,), 16, ids == IMAGE)
    batch = collate_prompts([sample] * prompts, BatchLayout(pad_id=0, rows_per_bin=1), min_tokens=8)
    assert batch.length_P.sum() == batch.ids_PT.size and batch.vision.seg_id_SQ.all()
    prompt = PromptInputs(
        batch.ids_PT,
        batch.positions_PT3,
        batch.length_P,
        batch.unit_src_PT,
        VisionInputs(*batch.vision),
    )
    graphdef, shapes = split_model(CONFIG, Compute(unroll=True))

    def forward(params, prompt, tokens):
        model = nnx.merge(graphdef, params)
        hidden = model.hidden_groups(prompt, completion_inputs(prompt, tokens))
        return hidden @ model.head_kernel_DV

    tokens = np.ones((prompts, groups, new), np.int32)
    cost = jax.jit(forward).lower(shapes, prompt, tokens).compile().cost_analysis()
    counted = group_flops(
        CONFIG, [len(ids)] * prompts, [[new] * groups] * prompts, [grid] * prompts
    )
    # XLA also counts norms and softmax, and attends to masked keys.
    assert 1.0 <= cost["flops"] / counted <= 1.15
