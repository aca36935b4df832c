"""Small files in the public forms of the sources, and what is collected from them."""

import io
import json

import numpy as np
from PIL import Image

from vlaa_jax.pipeline.collect import collect, iter_samples
from vlaa_jax.settings.pipeline import CollectSettings


def picture(number, kind="PNG", size=(12, 10)):
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content).encode()
        path.write_bytes(content)
    return folder


def collected(tmp_path, name, files, **settings):
    """Samples and rejects of one source."""
    folder = put(tmp_path / "in" / name, files)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    found = collect(CollectSettings(f"{name}={folder}", **settings), work, work / "images")
    rejects = [json.loads(line) for line in found.rejects.read_text().splitlines()]
    samples = [sample for _, sample in iter_samples(found.samples)]
    assert found.originals[name] == len(samples) + len(rejects)
    return samples, {reject["origin"]: reject["reason"] for reject in rejects}


def talk(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def arxiv(count, **changes):
    rows = []
    for i in range(count):
        row = {
            "id": str(i),
            "image": f"{i}.png",
            "question": "?",
            "options": ["A) x", "B) y"],
            "label": "A",
        }
        rows.append(row | changes.get(str(i), {}))
    return {"arxivqa.jsonl": rows} | {f"images/{i}.png": picture(i) for i in range(count)}
