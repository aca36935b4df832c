"""VLAA-Thinking as a TFDS data set, built and read without TensorFlow.

    import tensorflow_datasets as tfds
    from vlaa_jax.data.builds import tfds_builder  # registers "vlaa_thinking"

    builder = tfds.builder("vlaa_thinking/grpo", data_dir=OUT, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=FOLDER_WITH_THE_RELEASED_FILES))
    records = TfdsRecords(builder.data_path)  # training takes it as data.records

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
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from vlaa_jax.data.builds.build import checkpoint_digests
from vlaa_jax.data.judging.judge import Examined, GoldProblems, Judge, Limits, examine
from vlaa_jax.data.samples.preprocessor import Preprocessor
from vlaa_jax.data.sources.source import TEXTS, Reject, plain_space
from vlaa_jax.data.sources.table import open_source
from vlaa_jax.data.sources.tfds_set import PREPARED, TfdsRecords
from vlaa_jax.foreign import local_path, read_object
from vlaa_jax.schema import UserError

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
_BARE = {
    "box_space": "without saying which space boxes are in",
    "golds_checked": "without a check of its golds",
    "max_tokens": "without measuring its records",
    "system_prompt": "without a system prompt",
    "checkpoint": "without measuring its records",
}
"""What a set is that was prepared without something that is asked for now."""


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
        self._box_space = box_space or "normalized"
        self._asked: dict[str, Any] = {
            **({"box_space": plain_space(box_space)} if box_space else {}),
            **({"golds_checked": True} if gold_problems is not None else {}),
        }
        reader = None
        if checkpoint is not None:
            reader = Preprocessor.from_dir(checkpoint, system_prompt=system_prompt)
            self._asked |= {
                "max_tokens": max_tokens,
                "system_prompt": system_prompt,
                "checkpoint": checkpoint_digests(local_path(checkpoint)),
            }
        self._judge = Judge(gold_problems, reader, Limits(max_tokens), self._kind)
        self._refuse_other_settings()
        self.rejects: list[Reject] = []
        """Records that the last build left out."""

    def _refuse_other_settings(self) -> None:
        # TFDS opens what is prepared already without asking how that was done.
        folder = Path(self.data_path)
        if not folder.is_dir() or not self._asked:
            return
        try:
            kept = read_object(folder / PREPARED)
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
        texts = {name: tfds.features.Text() for name in TEXTS}
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
        judged_by = {**self._asked, "box_space": plain_space(self._box_space)}
        file = Path(self.data_path) / PREPARED
        file.write_text(json.dumps(judged_by) + "\n", encoding="utf-8")
        return splits

    def _generate_examples(  # type: ignore[override]
        self, path: Path, image_root: Path, listing: Path
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        left_out: list[Reject] = []
        kept = 0
        source = open_source(path, image_root, kind=self._kind, box_space=self._box_space)
        for one in examine(source, self._judge, whole=True, keep=True, workers=1):
            left_out += one.rejects[:1]
            if one.record is not None and not one.rejects:
                kept += 1
                yield one.record.id, _example(one)
        source.close()
        self.rejects += left_out
        if not kept:
            first = f"; the first problem: {left_out[0]}" if left_out else ""
            raise UserError(f"{path}: no usable record{first}")
        listing.write_text("".join(r.as_line() for r in left_out), encoding="utf-8")
        for reason, count in Counter(reject.field for reject in left_out).most_common():
            logging.warning("%s: left out %d records for their %s", path, count, reason or "form")
        for reject in left_out[:10]:
            logging.warning("%s", reject)


def _example(one: Examined) -> dict[str, Any]:
    record: Any = one.record
    return {
        **{name: getattr(record, name) or "" for name in TEXTS},
        "meta": json.dumps(dict(record.meta), ensure_ascii=False),
        "image_paths": list(record.images),
        "images": [fact.data for fact in one.facts],
    }


__all__ = ["TfdsRecords", "VlaaThinking"]
