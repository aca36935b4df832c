"""Answer perplexity of drawn records: our packed task against a transformers loop, and their gap.

    python benchmarks/perplexity.py --records 1000 --json benchmarks/results/perplexity_2cpu.json

Both sides start from record files and images, take the embedded checkpoint in float32, and are
timed from the first record to the last, without loading the model. Ours compiles in that time. The
peer pads batches of ``--batch`` samples that were encoded by our own data room, so its time holds
the same decoding. Needs torch and transformers (the test extra).
"""

import argparse
import json
import re
import tempfile
import time
from importlib import resources
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console

from configs import perplexity as config
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.record_file import RecordFile, load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.settle import settle
from vlaa_jax.train.perplexity import RANKING, run

TINY = Path(str(resources.files("vlaa_jax") / "assets" / "tiny"))


def ours(file: Path, images: Path, workdir: Path) -> tuple[dict[str, float], float]:
    """Perplexity by id, and records per second as the task says."""
    values = config.get_config("tiny").to_dict()
    values["data"] |= {"records": str(file), "image_root": str(images), "rows": 8}
    values["run"]["top"] = (1,)
    said = StringIO()
    run(settle(values), workdir, Console(file=said, width=200))
    lines = [json.loads(line) for line in (workdir / RANKING).read_text().splitlines()]
    [speed] = re.findall(r"([\d.,]+) records/s", said.getvalue())[-1:]
    return {line["id"]: line["perplexity"] for line in lines}, float(speed.replace(",", ""))


def theirs(file: Path, images: Path, batch: int) -> tuple[dict[str, float], float]:
    """The same by transformers, padded batches in file order."""
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        TINY, dtype=torch.float32
    ).eval()
    chat, processor = Chat.from_dir(TINY), ImageProcessor.from_dir(TINY)
    prompt, opener = config.get_config("tiny").data.system_prompt, RecordFile(file, images).images
    records, found = load_records(file, kind="sft"), {}
    began = time.perf_counter()
    for start in range(0, len(records), batch):
        part = records[start : start + batch]
        samples = [
            Preprocessor(chat, processor, prompt).encode(r, opener(r), with_answer=True)
            for r in part
        ]
        shape = (len(part), max(s.length for s in samples))
        ids, mask, learnt = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
        for row, s in enumerate(samples):
            ids[row, : s.length], mask[row, : s.length] = s.ids_T, 1
            learnt[row, : s.length] = s.loss_mask_T
        inputs = {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "mm_token_type_ids": torch.tensor((ids == chat.image_token_id).astype(int)),
            "pixel_values": torch.tensor(
                processor.normalize(np.concatenate([p for s in samples for p in s.patches]))
            ),
            "image_grid_thw": torch.tensor([g for s in samples for g in s.grids]),
        }
        with torch.no_grad():
            logprobs = torch.log_softmax(model(**inputs).logits[:, :-1], -1)
        targets = torch.tensor(ids[:, 1:, None])
        nats = -logprobs.gather(-1, targets)[..., 0].double().numpy()
        for row, record in enumerate(part):
            found[record.id] = float(np.exp(nats[row][learnt[row, 1:]].mean()))
    return found, len(records) / (time.perf_counter() - began)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description="Perplexity of drawn records, two ways.")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="kept with the figures")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        paths = write_dataset(root, n_train=1, n_heldout=1, n_sft=args.records)
        a, our_speed = ours(paths.sft, paths.images, Path(root) / "run")
        b, their_speed = theirs(paths.sft, paths.images, args.batch)
    if a.keys() != b.keys():
        raise SystemExit("the two sides did not measure the same records")
    gaps = [abs(a[key] / b[key] - 1) for key in a]
    found = {
        **{key: value for key, value in vars(args).items() if key != "json"},
        "largest_relative_gap": max(gaps),
        "records_per_s": {"ours": our_speed, "hf": their_speed},
    }
    print(json.dumps(found, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
