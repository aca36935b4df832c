"""The files beside the weights of the embedded checkpoint: tokenizer, chat template, processor.

They have the names and keys of the Qwen2.5-VL files on the Hugging Face hub, so that
the embedded run reads them by the same code as a released checkpoint. Only the vocabulary is small:
a byte-level BPE trained on the embedded data's own texts, with the 22 added tokens behind it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from vlaa_jax.data.synthetic import TASKS, draw_sample
from vlaa_jax.schema import UserError

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Added behind the special ones, but ordinary text to ``skip_special_tokens``."""

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokenisation of Qwen2 (transformers' Qwen2Tokenizer): every digit is a token of its own."""

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Gives the text that the template of Qwen2-VL and Qwen2.5-VL gives."""

_PER_TASK = 300


@dataclass(frozen=True)
class TokenIds:
    """Ids that ``config.json`` has to name."""

    vocab_size: int
    """Number of tokens, added ones included."""
    pad: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int


def write_sidecars(
    out_dir: str | os.PathLike[str],
    *,
    base_vocab: int = 618,
    min_pixels: int = 56 * 56,
    max_pixels: int = 36 * 28 * 28,
    system_prompt: str = "",
) -> TokenIds:
    """Write tokenizer, chat template, processor and generation settings into an HF directory.

    The same arguments give the same bytes.

    Args:
      out_dir: created when missing.
      base_vocab: size of the BPE vocabulary before the 22 added tokens, at least 256.
      min_pixels: lower limit of an image's area after resizing.
      max_pixels: upper limit of an image's area after resizing.
      system_prompt: text that the vocabulary should cover cheaply besides the embedded data.

    Raises:
      UserError: ``out_dir`` cannot be written.
    """
    tokenizer = train_tokenizer(base_vocab, system_prompt)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(out / "tokenizer.json"))
        tokenizer.model.save(str(out))
        _write_json(out / "tokenizer_config.json", _tokenizer_config(tokenizer))
        _write_json(out / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
        _write_json(out / "preprocessor_config.json", _processor(min_pixels, max_pixels))
        ids = token_ids(tokenizer)
        _write_json(out / "generation_config.json", _generation(ids))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    return ids


def train_tokenizer(base_vocab: int, system_prompt: str = "") -> Tokenizer:
    """Train the BPE on the texts of the embedded data and append the 22 added tokens."""
    if base_vocab < 256:
        raise ValueError(f"base_vocab {base_vocab} cannot hold the 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=base_vocab,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(system_prompt), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED_TOKENS])
    return tokenizer


def _texts(system_prompt: str) -> Iterator[str]:
    for task in TASKS:
        rng = np.random.default_rng([0, *task.encode()])
        for _ in range(_PER_TASK):
            sample = draw_sample(task, rng)
            yield sample.question
            yield sample.target
            yield "assistant\n"
    for _ in range(_PER_TASK):
        yield from ("system\n", "user\n", system_prompt, "You are a helpful assistant.")


def token_ids(tokenizer: Tokenizer) -> TokenIds:
    """The ids of the tokens that a configuration names."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    return TokenIds(
        vocab_size=len(vocabulary),
        pad=ids["<|endoftext|>"],
        im_start=ids["<|im_start|>"],
        im_end=ids["<|im_end|>"],
        vision_start=ids["<|vision_start|>"],
        vision_end=ids["<|vision_end|>"],
        image_pad=ids["<|image_pad|>"],
        video_pad=ids["<|video_pad|>"],
    )


def tiny_config(
    ids: TokenIds,
    *,
    vision_depth: int = 4,
    vision_width: int = 96,
    vision_heads: int = 4,
    vision_intermediate: int = 256,
    full_blocks: tuple[int, ...] = (1, 3),
    window_size: int = 112,
    text_width: int = 128,
    text_intermediate: int = 384,
    text_layers: int = 4,
    text_heads: int = 4,
    text_kv_heads: int = 2,
    mrope_section: tuple[int, int, int] = (4, 6, 6),
) -> dict[str, Any]:
    """``config.json`` of the embedded checkpoint: flat, as Qwen2.5-VL has it on the hub.

    The vocabulary is padded to a multiple of 64. ``mrope_section`` must add up to half the head
    size, ``text_width / text_heads / 2``.
    """
    if 2 * sum(mrope_section) * text_heads != text_width:
        raise ValueError(
            f"mrope_section {mrope_section} must add up to {text_width}/{text_heads}/2"
        )
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids.pad,
        "eos_token_id": ids.im_end,
        "vision_start_token_id": ids.vision_start,
        "vision_end_token_id": ids.vision_end,
        "vision_token_id": ids.image_pad - 1,
        "image_token_id": ids.image_pad,
        "video_token_id": ids.video_pad,
        "hidden_act": "silu",
        "hidden_size": text_width,
        "initializer_range": 0.02,
        "intermediate_size": text_intermediate,
        "max_position_embeddings": 4096,
        "max_window_layers": text_layers,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": text_heads,
        "num_hidden_layers": text_layers,
        "num_key_value_heads": text_kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision_depth,
            "hidden_act": "silu",
            "hidden_size": vision_width,
            "intermediate_size": vision_intermediate,
            "num_heads": vision_heads,
            "in_chans": 3,
            "out_hidden_size": text_width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": window_size,
            "fullatt_block_indexes": list(full_blocks),
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(mrope_section)},
        "vocab_size": -(-ids.vocab_size // 64) * 64,
    }


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in SPECIAL_TOKENS + ADDED_TOKENS
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _processor(min_pixels: int, max_pixels: int) -> dict[str, Any]:
    return {
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _generation(ids: TokenIds) -> dict[str, Any]:
    """As on the hub, where top_k 1 would make all completions of a group equal if inherited."""
    return {
        "bos_token_id": ids.pad,
        "pad_token_id": ids.pad,
        "do_sample": True,
        "eos_token_id": [ids.im_end, ids.pad],
        "repetition_penalty": 1.05,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.001,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
