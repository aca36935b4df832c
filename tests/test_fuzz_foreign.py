"""Mutated files of every kind that we read: refused in one line or used, in time and memory.

VLAA_FOREIGN_CASES mutations over all kinds (default 4,000; 100,000 is what a release wants).
"""

import copy
import io
import json
import os
import random
import resource
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from one_image import image_size, inspect_image
from test_config import RAW_2VL_2B, RAW_3B
from vlaa_jax.data.images.files import open_image
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.records.literals import parse_literal
from vlaa_jax.data.sources.record_file import RecordFile
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.models.qwen_vl.hf_config import read_config, to_hf
from vlaa_jax.models.qwen_vl.safetensors_io import SafetensorsReader
from vlaa_jax.schema import Record, UserError

CASES = int(os.environ.get("VLAA_FOREIGN_CASES", "4000"))
MAX_S = 2.0
MAX_BYTES = 1 << 30
ODD = [
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-308, 2**31, 2**53, 2**63, 2**64, 2**70,
    10**40, float("nan"), float("inf"), "", "x", "14", "\x00", "\ud800", "\x1b[2J", "é" * 300, [],
    {}, [[]], [None], {"": {}}, [0, 8], [8, 0], [-1, 1], [2**62, 4], "F32", "F64", "BF16", "I8",
]  # fmt: skip


def mutated_value(value, rng):
    """A copy of a JSON value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        holder, key = rng.choice(places)
        how = rng.random()
        if how < 0.15:
            del holder[key]
        elif how < 0.3 and isinstance(holder, dict):
            holder[rng.choice(["x", "", "\x1b", *holder])] = holder.pop(key)
        elif how < 0.4:
            for _ in range(rng.choice([3, 60, 200])):
                holder[key] = rng.choice([[holder[key]], {"a": holder[key]}])
        elif how < 0.6 and type(holder[key]) is int:
            holder[key] += rng.choice([-8, -4, -1, 1, 4, 8, 2**32, 2**62, 10**9])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))  # later rounds change it
    return value


def _places(value):
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])


def mutated_bytes(data, rng):
    """The bytes with some of them changed, left out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(max(1, len(data)))
        how = rng.random()
        if how < 0.5 and data:
            data[at] = rng.choice([0, 255, rng.randrange(256), data[at] ^ 1 << rng.randrange(8)])
        elif how < 0.65:
            del data[at : at + rng.choice([1, 4, 100])]
        elif how < 0.8:
            data[at:at] = data[at : at + rng.choice([1, 8, 64])]
        elif how < 0.9:
            data[at:at] = rng.choice(
                [b"[", b'"', b"\\", b"{" * 500, b"\xff\xff\xff\xff", b"1" * 50]
            )
        else:
            del data[at:]
    return bytes(data)


def mutated_json(value, rng):
    """JSON text of a mutated value, or mutated JSON text."""
    if rng.random() < 0.3:
        return mutated_bytes(json.dumps(value).encode(), rng)
    return json.dumps(mutated_value(value, rng)).encode()


def headers(root):
    spec = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
        "c": {"dtype": "F64", "shape": [0], "data_offsets": [24, 24]},
    }
    file = root / "model.safetensors"

    def case(rng):
        text = mutated_json(spec, rng)
        size = rng.choice([len(text)] * 8 + [0, 2**63, len(text) + 1, max(0, len(text) - 1)])
        file.write_bytes(size.to_bytes(8, "little") + text + bytes(rng.choice([24] * 9 + [0, 999])))
        reader = SafetensorsReader(root)
        for name in reader.tensors:
            reader.view(name).sum(dtype=np.float64)

    return case


def indexes(root):
    head = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (root / "m.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "m.safetensors"}}

    def case(rng):
        (root / "model.safetensors.index.json").write_bytes(mutated_json(index, rng))
        SafetensorsReader(root)

    return case


def configs(root):
    raw = [RAW_3B, RAW_2VL_2B, {**RAW_3B, "text_config": {**RAW_3B}, "vision_config": {}}]

    def case(rng):
        (root / "config.json").write_bytes(mutated_json(rng.choice(raw), rng))
        config = read_config(root)
        assert config.text.layers <= 512 and config.vision.depth <= 512
        to_hf(config)

    return case


def processors(root):
    config = {
        **{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
        **{"temporal_patch_size": 2, "image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]},
        **{"rescale_factor": 1 / 255, "resample": 3, "do_resize": True},
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
    }
    image = Image.new("RGB", (60, 40), "red")

    def case(rng):
        (root / "preprocessor_config.json").write_bytes(mutated_json(config, rng))
        processor = ImageProcessor.from_dir(root, max_pixels=50_000 if rng.random() < 0.9 else None)
        if processor.min_pixels < 10_000 and processor.patch_size < 40:
            patches, _ = processor.patches(image)
            assert np.isfinite(patches).all()

    return case


def records(root):
    record = {
        **{"id": "a", "image": "clevr/a.png", "question": "How many?\n<image>", "gt": "4"},
        **{"verifier_type": "digit", "answer": "<answer>4</answer>", "caption": "c"},
        "meta": {"box_space": "normalized", "x": [1, {"y": 2}]},
    }
    said = {**record, "image": ["a/b.png", "/c.png"], "gt": [1, 2, 3], "meta": "{'a': [1, None]}"}
    file = root / "records.json"

    def case(rng):
        parts = [mutated_json(rng.choice([record, said]), rng) for _ in range(4)]
        lines = rng.random() < 0.5
        text = b"\n".join(parts) if lines else b"[" + b",".join(parts) + b"]"
        file.write_bytes(mutated_bytes(text, rng) if rng.random() < 0.3 else text)
        found = RecordFile(file, kind=rng.choice([None, "grpo", "sft"]))
        for index in range(len(found)):
            str(found.read(index)).encode()
        found.close()

    return case


def read_all(file, root, **how):
    with closing(open_source(file, root, **how)) as found:
        for index in range(len(found)):
            record = found.read(index)
            str(record).encode()
            if isinstance(record, Record):
                try:
                    found.images(record)
                except UserError as error:
                    assert "\n" not in str(error)


def conversations(root):
    turns = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A cat."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": "So."},
    ]
    talk = {"id": "a", "image": "a.png", "conversations": turns[:2]}
    other = {"id": 1, "images": ["a.png"], "messages": turns[2:]}
    file = root / "talks.json"

    def case(rng):
        parts = [json.dumps(talk).encode()]
        parts += [mutated_json(rng.choice([talk, other]), rng) for _ in range(3)]
        text = b"[" + b",".join(parts) + b"]" if rng.random() < 0.5 else b"\n".join(parts)
        file.write_bytes(mutated_bytes(text, rng) if rng.random() < 0.3 else text)
        read_all(file, root)

    return case


def parquets(root):
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": "a.png"}
    row = {"id": "a", "image": image, "question": "q", "gt": "3", "verifier_type": "digit"}
    encoded = []
    for codec in ("none", "snappy", "zstd"):
        buffer = io.BytesIO()
        table = pyarrow.Table.from_pylist([{**row, "id": str(n)} for n in range(5)])
        pyarrow.parquet.write_table(table, buffer, compression=codec, row_group_size=2)
        encoded.append(buffer.getvalue())
    file = root / "a.parquet"

    def case(rng):
        file.write_bytes(mutated_bytes(rng.choice(encoded), rng))
        read_all(file, root)

    return case


def metas(root):
    said = (
        b"{'ds_answer': \"<think> it's 3 </think> 3\", 'ppl': nan, 'url': None, 'n': -1, "
        b"'t': (1, 2), 'deep': [{'a': [1.5e-3, True]}, r'\\d', b'x'], 'c': 1+2j, 'u': '\\u00e9'}"
    )

    def case(rng):
        try:
            parse_literal(mutated_bytes(said, rng).decode(errors="surrogateescape"))
        except ValueError as error:  # which the readers of records turn into a reject
            raise UserError(str(error)) from None

    return case


def images(root):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    kinds = {
        **{kind: {} for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM")},
        "TIFF": {"compression": "tiff_lzw"},
    }
    encoded = []
    for kind, options in kinds.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        encoded.append(buffer.getvalue())
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 65535, (24, 32)).astype(np.uint16)).save(buffer, kind)
        encoded.append(buffer.getvalue())

    def case(rng):
        (root / "a.img").write_bytes(mutated_bytes(rng.choice(encoded), rng))
        inspect_image(root, "a.img")
        for read in (image_size, open_image):
            try:
                read(root, "a.img")
            except UserError as error:
                assert "\n" not in str(error)

    return case


KINDS = {
    f.__name__: f
    for f in (
        *(headers, indexes, configs, processors, records, conversations, parquets, metas, images),
    )
}


@pytest.fixture
def bounded_memory():
    """Whoever takes 1 GiB more than there is now gets a MemoryError, which no case may raise."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is damaged
@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_file_is_used_or_refused_in_one_line(kind, tmp_path):
    case = KINDS[kind](Path(tmp_path))
    used = 0
    for seed in range(CASES // len(KINDS)):
        start = os.times().user
        try:
            case(random.Random(f"{kind} {seed}"))
            used += 1
        except UserError as error:
            assert str(error).replace("\n", "").isprintable(), seed
        except Exception as error:
            raise AssertionError(f"case {seed} of {kind}") from error
        assert os.times().user - start < MAX_S, seed
    assert used  # the mutations reach past the first check
