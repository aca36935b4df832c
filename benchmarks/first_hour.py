"""The first hour of a new user, as commands and what they say: writes docs/first_hour.md.

    python benchmarks/first_hour.py [--out=docs/first_hour.md]

Sixty photo-like JPEGs are drawn by code in a folder of their own, and everything after that is run
there as a user would: records checked, trained with adapters on two pretended devices, interrupted,
resumed, exported, loaded in transformers; conversations and a Parquet file learnt from as they
are; a reward of one's own; and what is said, and how soon, when something is wrong.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parent.parent
FLAGS = "--xla_force_host_platform_device_count=2"
BUDGET = (
    "--config.data.max_prompt_tokens=128 --config.data.max_pixels=42336 "
    "--config.data.vision_rows_per_bin=4"
)
SHORT = (
    "--config.rollout.prompts=8 --config.rollout.completions=4 --config.run.steps=6 "
    "--config.run.save_every=2 --config.run.eval_completions=1"
)
DATA = (
    "--config.data.records=photos.jsonl --config.data.image_root=photos "
    "--config.data.heldout=heldout.jsonl"
)
TINY = "python -m vlaa_jax.main --config=configs/grpo.py:tiny,lora"
GRPO = f"{TINY} {DATA} {BUDGET} {SHORT}"
SFT = GRPO.replace("grpo.py", "sft.py").replace("photos.jsonl", "talks.json")


def photo(number):
    """A landscape with balloons, by day or at night: (image, balloons, is it day)."""
    rng = np.random.default_rng(number)
    day, balloons = bool(rng.integers(2)), int(rng.integers(1, 6))
    width, height = 1280, 960
    horizon = int(height * rng.uniform(0.5, 0.75))
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = np.array([90, 150, 230] if day else [8, 10, 35]) + 60 * rows * (1 if day else 0.3)
    ground = np.array([70, 110, 50] if day else [15, 22, 12])
    pixels = np.where(np.arange(height)[:, None, None] < horizon, sky, ground)
    pixels = np.broadcast_to(pixels, (height, width, 3)).astype(np.float32)
    for scale in (8, 32, 128):  # texture at several scales, as leaves and clouds have
        small = rng.normal(0, 14 if day else 6, (height // scale + 1, width // scale + 1))
        texture = Image.fromarray(small.astype(np.float32)).resize((width, height), Image.BICUBIC)
        pixels = pixels + np.asarray(texture)[:, :, None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for place in rng.permutation(6)[:balloons]:
        x, y = 110 + 200 * int(place), int(rng.uniform(100, horizon - 150))
        r = int(rng.uniform(50, 85))
        draw.ellipse((x - r, y - r, x + r, y + 1.2 * r), fill=tuple(rng.integers(120, 255, 3)))
        draw.line((x, y + 1.2 * r, x, y + 1.8 * r), fill=(60, 40, 30), width=4)
    image = image.filter(ImageFilter.GaussianBlur(1.2))
    noise = rng.normal(0, 4, (height, width, 3))
    return (
        Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)),
        balloons,
        day,
    )


def write_photos(folder):
    """Sixty photos with records for GRPO, conversations, and records for a reward of one's own."""
    (folder / "photos").mkdir()
    grpo, talks, own = [], [], []
    for number in range(60):
        image, balloons, day = photo(number)
        name = f"IMG_{number:04d}.jpg"
        image.save(folder / "photos" / name, quality=88)
        count = {"question": "How many balloons are there?", "gt": balloons}
        when = {
            "question": "When was it taken?\nA: by day\nB: at night",
            "gt": "A" if day else "B",
        }
        asked = (
            {**count, "verifier_type": "digit"} if number % 2 else {**when, "verifier_type": "mcq"}
        )
        grpo.append({"id": f"photo-{number}", "image": name, **asked})
        own.append(
            {**grpo[-1], "verifier_type": "custom", "question": count["question"], "gt": balloons}
        )
        said = f"There are {balloons} balloons, {'by day' if day else 'at night'}."
        turns = [("human", "<image>\nWhat is in the photo?"), ("gpt", said)]
        talks.append(
            {
                "id": f"talk-{number}",
                "image": name,
                "conversations": [{"from": who, "value": text} for who, text in turns],
            }
        )
    for name, records in (("photos", grpo[:48]), ("heldout", grpo[48:]), ("own", own[:48])):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "talks.json").write_text(json.dumps(talks, indent=1))
    write_parquet(folder, own)


def write_parquet(folder, records):
    """The form in which Hugging Face data sets are saved: encoded images in the rows."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "name": record["id"],
            "image": {"bytes": (folder / "photos" / record["image"]).read_bytes(), "path": None},
            "asked": record["question"],
            "count": record["gt"],
        }
        for record in records
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "photos.parquet")


class Page:
    """Runs commands and writes down what they say."""

    def __init__(self, folder):
        self.folder, self.parts, self.odd = folder, [], []
        self.env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def say(self, text):
        self.parts.append(text.strip() + "\n")

    def file(self, name, text):
        (self.folder / name).write_text(text)
        self.parts.append(f"`{name}`:\n\n```{name.rpartition('.')[2]}\n{text.strip()}\n```\n")

    def run(self, words, *, after=None, status=0):
        """A command and its output; `after`: Ctrl-C once a line holds these words."""
        began = time.monotonic()
        process = subprocess.Popen(
            f"exec {words}" if after else words, shell=True, cwd=self.folder, env=self.env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if after and after in line:
                lines.append("^C")
                process.send_signal(signal.SIGINT)
                after = None
        found = process.wait()
        seconds = time.monotonic() - began
        if found != status:
            self.odd.append((words, found, lines))
        shown = words.replace(" --config", " \\\n    --config")
        said = "\n".join(lines)
        self.parts.append(f"```\n$ {shown}\n{said}\n```\n\n({seconds:.0f} s)\n")
        return lines, seconds


def columns_of_run(option):
    """The option of `data check` as a setting of a run."""
    return f"--config.data.columns='{option.partition('=')[2]}'"


def errors(page):
    """What is said when something is wrong, and after how long."""
    folder = page.folder
    records = [json.loads(line) for line in (folder / "photos.jsonl").read_text().splitlines()]

    def variant(name, **change):
        lines = [{**record, **(change if n == 7 else {})} for n, record in enumerate(records)]
        lines = [{k: v for k, v in line.items() if v is not ...} for line in lines]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return f"--config.data.records={name}"

    talks = json.loads((folder / "talks.json").read_text())
    talks[7]["image"] = "IMG_9999.jpg"
    (folder / "talks-lost.json").write_text(json.dumps(talks))
    cases = [
        (
            "held-out records, but no others named",
            GRPO.replace("--config.data.records=photos.jsonl ", ""),
        ),
        ("an image that is not there", f"{GRPO} {variant('lost.jsonl', image='IMG_9999.jpg')}"),
        ("a gold that is none", f"{GRPO} {variant('gold.jsonl', gt='many')}"),
        ("a field that is missing", f"{GRPO} {variant('field.jsonl', question=...)}"),
        (
            "a link in place of a path",
            f"{GRPO} {variant('url.jsonl', image='https://x.org/a.jpg')}",
        ),
        ("conversations without golds", f"{GRPO} --config.data.records=talks.json"),
        ("SFT: a photo that is not there", f"{SFT} --config.data.records=talks-lost.json"),
        ("SFT: an answer that is missing", f"{SFT} --config.data.records=photos.jsonl"),
        ("SFT: held-out golds that are none", f"{SFT} --config.data.heldout=gold.jsonl"),
        ("SFT: no room for a record", f"{SFT} --config.data.tokens_per_row=64"),
        ("embedded records, no room", f"{TINY} --config.data.max_prompt_tokens=60"),
        ("no room for the prompt", f"{GRPO} --config.data.max_prompt_tokens=60"),
        ("no room for a photo", f"{GRPO} --config.data.vision_rows_per_bin=1"),
        ("a mistyped setting", f"{GRPO} --config.optimizer.learning_rate=1e-5"),
        ("a model that is not there", f"{GRPO} --config.model.checkpoint=models/qwen"),
        ("another setting on resume", f"{GRPO} --workdir=runs/photos --config.optimizer.lr=0.1"),
        ("a directory that cannot be", f"{GRPO} --workdir=photos.jsonl/run"),
    ]
    rows = []
    for what, words in cases:
        words = words if "--workdir" in words else f"{words} --workdir=runs/wrong"
        began = time.monotonic()
        done = subprocess.run(
            words, shell=True, cwd=folder, env=page.env, text=True, capture_output=True
        )
        said = done.stderr.strip().splitlines()
        if done.returncode != 1 or len(said) != 1:
            page.odd.append((words, done.returncode, said))
        line = said[-1].replace("|", "\\|")
        rows.append(f"| {what} | {time.monotonic() - began:.1f} | `{line}` |")
    page.say("| what is wrong | s | what is said |\n| --- | --- | --- |\n" + "\n".join(rows))


REWARD = '''
"""A reward of one's own: full marks for the count, half for one beside it."""

import re


def score(batch):
    rewards = []
    for one in batch:
        found = re.search(r"\\d+", one["answer"] or "")
        if found is None:
            rewards.append(0.0)
        else:
            rewards.append({0: 1.0, 1: 0.5}.get(abs(int(found[0]) - int(one["gt"])), 0.0))
    return rewards
'''
LOAD = """
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

Model = AutoModelForImageTextToText
merged = Model.from_pretrained("merged", dtype=torch.float32)
base = Model.from_pretrained("base", dtype=torch.float32)
adapter = PeftModel.from_pretrained(base, "adapter")

images = AutoImageProcessor.from_pretrained("merged", backend="pil")
seen = images(Image.open("photos/IMG_0001.jpg"), return_tensors="pt")
tokenizer = AutoTokenizer.from_pretrained("merged")
question = {"type": "text", "text": "How many balloons are there?"}
talk = [{"role": "user", "content": [{"type": "image"}, question]}]
text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
places = int(seen["image_grid_thw"].prod()) // 4
text = text.replace("<|image_pad|>", "<|image_pad|>" * places)
ids = tokenizer(text, return_tensors="pt")["input_ids"]
types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
with torch.no_grad():
    one, other = (
        model(input_ids=ids, mm_token_type_ids=types, **seen).logits for model in (merged, adapter)
    )
print(f"{ids.shape[1]} tokens, {places} of the image;", end=" ")
print(f"logits differ by {float((one - other).abs().max()):.1e} of {float(one.abs().max()):.1f}")
"""


def record(page):
    """The whole hour."""
    page.say(
        "# The first hour\n\nSixty photos of one's own, from records to a model that transformers "
        "loads, on a laptop CPU that pretends to be two devices. Written by "
        "`python benchmarks/first_hour.py`, which draws the photos (1280 x 960, JPEG) and runs "
        "every command; times are those of two cores with an empty compile cache, on a machine "
        f"with a load of {os.getloadavg()[2]:.1f} from other work when this began. The model "
        "is the 1.2-million-parameter one in the package: it shows the way, it learns nothing of "
        "photos in six steps. For a real one put `:3b` in place of `:tiny` and leave the three "
        "`data.` limits out.\n\n## The photos and their records"
    )
    first = (page.folder / "photos.jsonl").read_text().splitlines()[:2]
    page.say("`photos/` holds IMG_0000.jpg to IMG_0059.jpg, `photos.jsonl` 48 records such as")
    page.say("```\n" + "\n".join(first) + "\n```\n\nand `heldout.jsonl` twelve more.")
    page.say("What a run has to have room for, where photos count no more than 50,176 pixels:")
    page.run(
        "python -m vlaa_jax.data check photos.jsonl heldout.jsonl --images=photos "
        "--checkpoint=embedded --max-pixels=50176"
    )
    page.say("## Train with adapters, interrupt, resume")
    page.say(f"Two pretended devices: `export XLA_FLAGS={FLAGS}`.")
    page.env["XLA_FLAGS"] = FLAGS
    page.run(f"{GRPO} --workdir=runs/photos", after="step    3/6", status=130)
    page.run(f"{GRPO} --workdir=runs/photos")
    page.say("## Export, and load it in transformers")
    page.run("python -m converters jax-to-hf --adapter --quiet runs/photos adapter")
    page.run("python -m converters jax-to-hf --quiet runs/photos merged")
    page.say("The base beside the adapter is the one in the package; as a directory:")
    page.run("python -m converters hf-to-jax --quiet embedded base-jax")
    page.run("python -m converters jax-to-hf --quiet base-jax base")
    page.file("load.py", LOAD)
    page.run("python load.py 2> /dev/null")
    page.say(
        "The merged weights are rounded to the dtype that `config.json` records; `--dtype float32` "
        "leaves them as trained."
    )
    page.say("## Conversations, as they are")
    page.run("python -m vlaa_jax.data check talks.json --images=photos --checkpoint=embedded")
    page.run(f"{SFT} --workdir=runs/talks")
    page.say("## A Parquet file with the images inside, as data sets are saved")
    columns = "--columns=id=name,question=asked,gt=count,verifier_type:=digit"
    page.run(f"python -m vlaa_jax.data check photos.parquet {columns}")
    page.say("A run reads it in place; there is no folder of images to name.")
    parquet = GRPO.replace(DATA, f"--config.data.records=photos.parquet {columns_of_run(columns)}")
    page.run(f"{parquet} --workdir=runs/parquet")
    page.say("## A reward of one's own")
    page.file("reward.py", REWARD)
    own = GRPO.replace("photos.jsonl", "own.jsonl").replace(
        " --config.data.heldout=heldout.jsonl", ""
    )
    page.run(f"{own} --config.rewards.custom=reward.py:score --workdir=runs/own")
    page.say("## When something is wrong\n\nSeconds until the command has ended with its line.")
    errors(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "first_hour.md")
    parser.add_argument("--keep", type=Path, help="folder to work in; a new one is removed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "photos").exists():
            write_photos(folder)
        page = Page(folder)
        page.env["HOME"] = str(folder)  # an empty compile cache
        try:
            record(page)
        finally:
            text = "\n".join(page.parts).replace(str(ROOT), "PACKAGE")
            args.out.write_text(text.replace(str(folder), "~"))
        for odd in page.odd:
            print("UNEXPECTED", *odd, sep="\n")
        sys.exit(bool(page.odd))


if __name__ == "__main__":
    main()
