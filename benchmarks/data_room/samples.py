"""Words, pictures, records and a checkpoint of tiny tokenizer, to measure with."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from converters.tiny_tokenizer import tiny_config, write_sidecars

HUB_PIXELS = 1280 * 28 * 28
SENTENCE = "the red square is left of a blue circle and one line rises by two so we count again"
WORDS = SENTENCE.split()


def text(rng: np.random.Generator, low: int, high: int) -> str:
    """Some words; between ``low`` and ``high`` of them."""
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), int(rng.integers(low, high))))


def answer(rng: np.random.Generator) -> str:
    return f"<think> {text(rng, 60, 180)} </think> <answer> {text(rng, 1, 5)} </answer>"


def photo(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A smooth image with some noise, about as hard to decode as a photograph."""
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.int16)
    noisy = image + rng.integers(-12, 13, image.shape, dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def checkpoint(folder: Path, max_pixels: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_sidecars(folder, max_pixels=max_pixels)
    (folder / "config.json").write_text(json.dumps(tiny_config(ids)))
    return folder


def write_records(root: Path, count: int, sizes: list[tuple[int, int]]) -> Path:
    rng = np.random.default_rng(0)
    (root / "images/coco").mkdir(parents=True)
    with (root / "sft.json").open("w") as file:
        for i in range(count):
            name = f"coco/{i:06d}.jpg"
            photo(rng, sizes[i % len(sizes)]).save(root / "images" / name, quality=90)
            record = {
                "id": str(i),
                "image": name,
                "question": text(rng, 10, 40),
                "answer": answer(rng),
            }
            file.write(json.dumps(record) + "\n")
    return root / "sft.json"
