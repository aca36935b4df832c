"""An iterator of batches with exact state."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

import grain

from vlaa_jax.schema import UserError

T = TypeVar("T")


class Loader(Generic[T]):
    """An iterator of batches with exact state.

    ``get_state`` / ``set_state`` are JSON-able, and say where in the stream of these records the
    loader stands (``records_digest``); ``iterator`` is the Grain iterator itself, for
    ``grain.checkpoint.CheckpointSave`` in an Orbax composite. ``close`` stops the threads.
    """

    def __init__(self, dataset: grain.IterDataset, executors: Sequence[Executor] = ()) -> None:
        """Wrap a dataset; ``executors`` are shut down by ``close`` with Grain's own."""
        self.iterator: grain.DatasetIterator = iter(dataset)
        self._own_executors = tuple(executors)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return next(self.iterator)
        except UserError as error:
            # Grain writes below the message that it left its own frames out.
            raise UserError(str(error).split("\n", 1)[0]) from error

    def get_state(self) -> dict[str, Any]:
        """Position behind the last batch that was handed out."""
        return json.loads(json.dumps(self.iterator.get_state()))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a position; the next batch is the one that came after ``get_state``."""
        self.iterator.set_state(dict(state))

    def close(self) -> None:
        """Stop reading ahead and leave no thread behind."""
        executors = [*_executors(self.iterator), *self._own_executors]
        self.iterator.close()
        for executor in executors:  # Grain tells its threads to end, but does not wait for them
            executor.shutdown(wait=True)

    def __enter__(self) -> "Loader[T]":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _executors(iterator: Any) -> Iterator[Executor]:
    executor = getattr(iterator, "_executor", None)
    if isinstance(executor, Executor):
        yield executor
    for parent in getattr(iterator, "_parents", ()):
        yield from _executors(parent)
