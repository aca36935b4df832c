"""VLAA-Thinking as a TFDS data set, built and read without TensorFlow.

    import tensorflow_datasets as tfds
    from vlaa_jax.data.builds import tfds_builder  # registers "vlaa_thinking"

    builder = tfds.builder("vlaa_thinking/grpo", data_dir=OUT, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=FOLDER_WITH_THE_RELEASED_FILES))
    records = tfds_builder.TfdsRecords(tfds.data_source("vlaa_thinking/grpo", data_dir=OUT,
                                                        split="train"))

What cannot be used is left out and listed in ``rejects-SPLIT.jsonl`` beside the shards. Golds and
lengths are looked at where the builder is given something to judge them by (see ``VlaaThinking``).

Images are stored as they are on disk, as bytes of a plain object feature: TFDS's own Image feature
would need TensorFlow to encode an array. An image that several records share is stored with each of
them; ``python -m vlaa_jax.data build`` stores it once.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from vlaa_jax.data.builds.build import checkpoint_digests
from vlaa_jax.data.images.inspect import ImageFacts, inspect_image
from vlaa_jax.data.images.processor import ImageProcessor
from vlaa_jax.data.judging.golds import GoldProblems, bad_golds
from vlaa_jax.data.records.reject import Reject
from vlaa_jax.data.samples.measure import Unfit, measure, over_limit
from vlaa_jax.data.sources.record_file import RecordFile, iter_indexed
from vlaa_jax.data.sources.tfds_set import _TEXTS, TfdsRecords
from vlaa_jax.data.text.chat import Chat
from vlaa_jax.foreign import local_path, read_object
from vlaa_jax.schema import Record, UserError

FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "grpo": {
        "train": ("VLAA-Thinking-GRPO-25K.json", "train-grpo.json"),
        "heldout": ("VLAA-Thinking-GRPO-heldout.json",),
    },
    "sft": {"train": ("VLAA-Thinking-SFT-126K.json", "train-sft.json")},
}
"""File names looked for in the manual folder, per configuration and split; the first that is there.

``heldout`` is left out where there is no such file.
"""
IMAGE_FOLDER = "images"
SETTINGS_FILE = "prepared.json"
"""In the data set's folder: what its records were judged by."""
_BARE = {
    "box_space": "without saying which space boxes are in",
    "golds_checked": "without a check of its golds",
    "max_tokens": "without measuring its records",
    "system_prompt": "without a system prompt",
    "checkpoint": "without measuring its records",
}
"""What a set is that was prepared without something that is asked for now."""
_AT_ONCE = 64


def _plain_space(box_space: str | Mapping[str, str]) -> str | dict[str, str]:
    if isinstance(box_space, str):
        return box_space
    return {source.casefold(): space for source, space in sorted(box_space.items())}


class VlaaThinking(tfds.core.GeneratorBasedBuilder):
    """Builder of "vlaa_thinking/grpo" and "vlaa_thinking/sft"."""

    # TFDS 4.9.10 finds this by importlib_resources, a package that it does not declare.
    code_path: ClassVar[Any] = tfds.core.Path(__file__)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="grpo", description="Questions with golds and verifiers."),
        tfds.core.BuilderConfig(name="sft", description="Questions with reasoned answers."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put VLAA-Thinking-GRPO-25K.json and VLAA-Thinking-SFT-126K.json of the Hugging Face data "
        "set UCSC-VLAA/VLAA-Thinking into one folder, its unpacked images into images/ beside them."
    )

    def __init__(
        self,
        *,
        gold_problems: GoldProblems | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        max_tokens: int = 2048,
        system_prompt: str = "",
        box_space: str | Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Options as for every TFDS builder, and what records are judged by.

        Args:
          gold_problems: says what is wrong with golds, e.g. ``MixedReward.gold_problems``; None
            leaves golds unchecked.
          checkpoint: HF directory whose tokenizer and processor measure the records; None leaves
            them unmeasured.
          max_tokens: longer records are left out; prompts for grpo, prompt and answer for sft.
          system_prompt: that the records are measured with.
          box_space: space of iou boxes that do not name their own; see RecordFile. None means
            "normalized" when the data set is prepared, and whatever it has when it is opened.
          options: of every TFDS builder; the file format must be array_record.

        Raises:
          UserError: ``data_dir`` holds the data set prepared with another box space; or, where a
            checkpoint is given, unmeasured or with another one, limit or system prompt; or, where
            ``gold_problems`` is given, with golds unchecked.
        """
        options.setdefault("file_format", "array_record")
        super().__init__(**options)
        self._gold_problems, self._box_space = gold_problems, box_space or "normalized"
        self._asked: dict[str, Any] = {
            **({"box_space": _plain_space(box_space)} if box_space else {}),
            **({"golds_checked": True} if gold_problems is not None else {}),
        }
        self._ruler = None
        if checkpoint is not None:
            chat, processor = Chat.from_dir(checkpoint), ImageProcessor.from_dir(checkpoint)
            chat.check_text(system_prompt, "the system prompt")
            self._ruler = _Ruler(chat, processor, max_tokens, system_prompt)
            self._asked |= {
                "max_tokens": max_tokens,
                "system_prompt": system_prompt,
                "checkpoint": checkpoint_digests(local_path(checkpoint)),
            }
        self._refuse_other_settings()
        self.rejects: list[Reject] = []
        """Records that the last build left out."""

    def _refuse_other_settings(self) -> None:
        # TFDS opens what is prepared already without asking how that was done.
        folder = Path(self.data_path)
        if not folder.is_dir() or not self._asked:
            return
        try:
            kept = read_object(folder / SETTINGS_FILE)
        except FileNotFoundError:
            kept = {}
        for name, value in self._asked.items():
            if (was := kept.get(name)) == value:
                continue
            how = f"with {name}={was!r}, not {value!r}" if was else _BARE[name]
            how = "with another checkpoint" if was and name == "checkpoint" else how
            raise UserError(
                f"{self.data_path}: was prepared {how}; choose another data_dir or delete this one"
            )

    @property
    def _kind(self) -> str:
        return str(self.builder_config.name)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in _TEXTS}
        return tfds.core.DatasetInfo(
            builder=self,
            description="VLAA-Thinking (arXiv 2504.11468). Empty text stands for a missing field.",
            features=tfds.features.FeaturesDict(
                {
                    **texts,
                    "meta": tfds.features.Text(),
                    "image_paths": tfds.features.Sequence(tfds.features.Text()),
                    "images": tfds.features.Sequence(tfds.features.Scalar(np.object_)),
                }
            ),
            homepage="https://huggingface.co/datasets/UCSC-VLAA/VLAA-Thinking",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Any]]]:
        folder = Path(dl_manager.manual_dir)
        if not (folder / IMAGE_FOLDER).is_dir():
            raise UserError(f"{folder / IMAGE_FOLDER}: no such image folder")
        splits = {}
        for split, names in FILES[self._kind].items():
            found = [folder / name for name in names if (folder / name).is_file()]
            if found:
                listing = Path(self.data_path) / f"rejects-{split}.jsonl"
                splits[split] = self._generate_examples(found[0], folder / IMAGE_FOLDER, listing)
            elif split == "train":
                raise UserError(f"{folder}: holds none of {', '.join(names)}")
        self.rejects = []
        judged_by = {**self._asked, "box_space": _plain_space(self._box_space)}
        file = Path(self.data_path) / SETTINGS_FILE
        file.write_text(json.dumps(judged_by) + "\n", encoding="utf-8")
        return splits

    def _generate_examples(  # type: ignore[override]
        self, path: Path, image_root: Path, listing: Path
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        left_out: list[Reject] = []
        kept = 0
        file = RecordFile(path, kind=self._kind, box_space=self._box_space)
        found = iter_indexed(file, left_out.append)
        while batch := list(islice(found, _AT_ONCE)):
            for index, record, facts, problem in self._judged(batch, image_root):
                if problem is not None:
                    left_out.append(file.reject(index, *problem, record.id))
                    continue
                kept += 1
                yield record.id, _example(record, [fact.data for fact in facts])
        file.close()
        left_out.sort(key=lambda reject: reject.index)
        self.rejects += left_out
        if not kept:
            first = f"; the first problem: {left_out[0]}" if left_out else ""
            raise UserError(f"{path}: no usable record{first}")
        lines = (json.dumps(r.as_dict(), ensure_ascii=False) + "\n" for r in left_out)
        listing.write_text("".join(lines), encoding="utf-8")
        for reason, count in Counter(reject.field for reject in left_out).most_common():
            logging.warning("%s: left out %d records for their %s", path, count, reason or "form")
        for reject in left_out[:10]:
            logging.warning("%s", reject)

    def _judged(
        self, batch: list[tuple[int, Record]], image_root: Path
    ) -> Iterator[tuple[int, Record, list[ImageFacts], tuple[str, str] | None]]:
        """Records with their images, and (field, reason) of those that cannot be used."""
        facts = [
            [inspect_image(image_root, image, keep=True) for image in record.images]
            for _, record in batch
        ]
        sizes = [found[0].size if found[0].status == "found" else None for found in facts]
        resized = self._ruler.processor.resized if self._ruler is not None else None
        records = [record for _, record in batch]
        golds = bad_golds(records, sizes, self._gold_problems, resized=resized)
        for (index, record), found, gold in zip(batch, facts, golds, strict=True):
            reasons = [fact.reason for fact in found if fact.reason]
            problem = ("image", reasons[0]) if reasons else None
            if problem is None and gold is not None:
                problem = "gt", gold
            if problem is None and self._ruler is not None:
                problem = self._ruler.problem(record, [fact.size for fact in found], self._kind)
            yield index, record, found, problem


@dataclass(frozen=True)
class _Ruler:
    """Measures records and says what is wrong with their length or text."""

    chat: Chat
    processor: ImageProcessor
    max_tokens: int
    system_prompt: str

    def problem(
        self, record: Record, sizes: list[tuple[int, int]], kind: str
    ) -> tuple[str, str] | None:
        try:
            found = measure(
                record,
                sizes,
                self.chat,
                self.processor,
                system_prompt=self.system_prompt,
                with_answer=kind == "sft",
            )
        except Unfit as unfit:
            return unfit.field, unfit.reason
        return over_limit(found, self.max_tokens)


def _example(record: Record, images: list[bytes]) -> dict[str, Any]:
    texts = {name: getattr(record, name) or "" for name in _TEXTS}
    return {
        **texts,
        "meta": json.dumps(dict(record.meta), ensure_ascii=False),
        "image_paths": list(record.images),
        "images": images,
    }


__all__ = ["TfdsRecords", "VlaaThinking"]
