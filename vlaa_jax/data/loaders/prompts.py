"""Loaders over Grain: seeded, host-sliced, decoded in threads, and exactly resumable.

The order of steps is: records -> (per source) seed, shuffle, repeat -> mix by weight -> places of
this host -> to iterator -> decode and process in threads -> batch. Grain turns into an iterator
once, behind the mix, so the number of thread pools does not grow with the number of sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grain
from PIL import Image

from vlaa_jax.data.loaders.loader import Loader
from vlaa_jax.data.loaders.order import Order, ordered
from vlaa_jax.data.sources.source import ImageOpener
from vlaa_jax.schema import Record


def _pair(record: Record, images: tuple[Image.Image, ...]) -> Any:
    return record, images


def prompt_loader(
    records: Sequence[Record],
    images: ImageOpener,
    *,
    batch_size: int,
    order: Order | None = None,
    threads: int = 2,
    process: Callable[[Record, tuple[Image.Image, ...]], Any] = _pair,
) -> Loader[Any]:
    """Batches of prompts for GRPO or evaluation: lists of (Record, images) unless told otherwise.

    Args:
      records: a list of records, a RecordFile or BuiltRecords.
      images: from a record to its images (``Source.images``).
      batch_size: records per batch on this host; the last of finite epochs may be shorter.
      order: seed, shuffle, epochs, mixing, places of this host.
      threads: threads that decode; 0 decodes in the caller's thread. The output does not depend
        on it.
      process: called in the threads with record and images; its result takes the pair's place.

    Raises:
      UserError: at once when there are no records; while iterating when an image is missing,
        broken or outside the root.
    """
    stream = ordered(records, order or Order()).map(_Load(images, process))
    dataset = stream.to_iter_dataset(_read_options(threads, batch_size))
    return Loader(dataset.batch(batch_size, drop_remainder=False, batch_fn=list))


def _read_options(threads: int, batch_size: int) -> grain.ReadOptions:
    """Read at most two batches ahead: decoded images are large."""
    if threads <= 0:
        return grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, min(64, 2 * batch_size))
    )


@dataclass(frozen=True)
class _Load:
    images: ImageOpener
    process: Callable[[Record, tuple[Image.Image, ...]], Any]

    def __call__(self, record: Record) -> Any:
        return self.process(record, self.images(record))
