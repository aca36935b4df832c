"""What the model makes of packed rows from the loader equals what it makes of each sample alone."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tiny_tokenizer import tiny_config, write_sidecars
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.loaders.rows import Samples, row_loader
from vlaa_jax.data.rows.batches import BatchLayout, collate_rows
from vlaa_jax.data.rows.packing import PackBudget
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.models.qwen_vl.hf_config import parse_config
from vlaa_jax.models.qwen_vl.model import Compute, RowInputs, init_params, split_model
from vlaa_jax.models.qwen_vl.vision import VisionInputs
from vlaa_jax.policy.pretrained import pixel_norm


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    paths = write_dataset(root, n_train=5, n_heldout=5, n_sft=12)
    (root / "hf").mkdir()
    small = {"vision_depth": 2, "full_blocks": (1,), "vision_width": 64, "vision_intermediate": 64}
    small |= {"text_layers": 2, "text_width": 64, "text_heads": 2, "text_intermediate": 64}
    hf = tiny_config(write_sidecars(root / "hf"), **small)
    (root / "hf/config.json").write_text(json.dumps(hf))
    return paths, root / "hf", parse_config(hf)


@partial(jax.jit, static_argnums=0)
def loss_and_logprobs(graphdef, params, batch):
    """Sum of the targets' log-probabilities, and each of them at its target's place."""

    def of(params):
        model = nnx.merge(graphdef, params)
        vision = VisionInputs(*batch.vision)
        rows = RowInputs(
            batch.ids_BT, batch.positions_BT3, batch.segment_ids_BT, batch.unit_src_BT, vision
        )
        hidden = model.hidden_rows(rows)[:, :-1]
        logits = jnp.einsum("btd,dv->btv", hidden, model.head_kernel_DV, precision="highest")
        targets = batch.ids_BT[:, 1:, None]
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets, -1)[..., 0]
        logprobs = jnp.where(batch.loss_mask_BT[:, 1:], logprobs, 0.0)
        return logprobs.sum(), logprobs

    with jax.default_matmul_precision("highest"):
        (_, logprobs), grads = jax.value_and_grad(of, has_aux=True)(params)
    return logprobs, grads


def test_packed_logprobs_and_gradients_equal_unpacked_ones(world):
    paths, hf_dir, config = world
    chat, processor = Chat.from_dir(hf_dir), ImageProcessor.from_dir(hf_dir)
    budget = PackBudget(256, 1, n_shards=2, rows_per_bin=8, bins_per_shard=2)
    records = load_records(paths.sft, kind="sft")
    images = RecordFile(paths.sft, paths.images).images
    samples = Samples(records, images, Preprocessor(chat, processor))
    with row_loader(samples, budget) as loader:
        batch = next(loader)
    assert batch.segment_ids_BT.max() > 1
    params = init_params(config, 0)
    graph, _ = split_model(config, Compute(data_shards=2, pixels=pixel_norm(processor)))
    packed, packed_grads = loss_and_logprobs(graph, params, batch)

    encoded = [
        Preprocessor(chat, processor).encode(r, images(r), with_answer=True) for r in records
    ]
    by_ids = {tuple(e.ids_T): e for e in encoded}
    total = jax.tree.map(np.zeros_like, packed_grads)
    samples = 0
    for row, (ids, segments) in enumerate(zip(batch.ids_BT, batch.segment_ids_BT, strict=True)):
        for segment in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == segment)
            one = by_ids[tuple(ids[places])]
            # The only sample of a batch, always in the first row: the same shapes, compiled once.
            alone = collate_rows(
                [[one], []],
                BatchLayout(2, pad_id=chat.pad_id, rows_per_bin=8, bins_per_shard=2),
                tokens_per_row=256,
            )
            logprobs, grads = loss_and_logprobs(graph, params, alone)
            here = np.asarray(packed)[row, places[0] : places[0] + len(places) - 1]
            there = np.asarray(logprobs)[0, : len(places) - 1]
            assert np.count_nonzero(there) == one.loss_mask_T.sum()
            np.testing.assert_allclose(here, there, rtol=1e-5, atol=0)
            total = jax.tree.map(np.add, total, grads)
            samples += 1
    assert samples >= 4
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(packed_grads),
        jax.tree_util.tree_leaves_with_path(total),
        strict=True,
    ):
        scale = float(np.abs(b).max())
        assert scale > 0, jax.tree_util.keystr(path)
        error = float(np.abs(np.asarray(a) - np.asarray(b)).max()) / scale
        assert error < 1e-5, (jax.tree_util.keystr(path), error)
