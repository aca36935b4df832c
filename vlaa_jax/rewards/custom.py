"""A reward of one's own: a function in a local file that scores records of the type "custom".

    # my_reward.py
    def score(batch):
        return [float(row["answer"] == row["gt"]) for row in batch]

    --config.rewards.custom=my_reward.py:score

The function gets a list of dicts (``answer``, ``gt``, ``response``, ``id``, ``question``,
``images``, ``image_size``, ``resized_size``, ``box_space``, and the further fields of the record)
and returns as many numbers in 0..1, or None where it cannot say. It runs in a process of its own
that is killed when it overruns; the file is named by the user, and nothing else is ever loaded.
"""

import ast
import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vlaa_jax.foreign import read_bytes
from vlaa_jax.rewards.pool import KillablePool, Outcome
from vlaa_jax.rewards.verifier import Finish, Item, Missing, Setup, Verdict, Verifier
from vlaa_jax.schema import UserError

MEMORY_MB = 1 << 20
"""Address space of the function's process: it may load a model of its own."""
MAX_FILE_BYTES = 1 << 20


class CustomVerifier(Verifier):
    """Scores by a function of the user's.

    Args:
        path: ``FILE.py:function``.
        timeout_s: seconds that a batch may take.
        batch: most answers handed over at once.

    Raises:
        UserError: there is no such file, or no such function in it.
    """

    def __init__(self, path: str, timeout_s: float, batch: int) -> None:
        self._batch = batch
        self._name = path.rpartition(":")[2]
        self._pool = KillablePool(
            _checked(path), workers=1, timeout_s=timeout_s, patience=1, memory_mb=MEMORY_MB
        )

    def start(self) -> None:
        """Begin importing the file."""
        self._pool.start()

    def begin(self, items: Sequence[Item]) -> Finish:
        """Hand the answers over in batches."""
        batches = [items[i : i + self._batch] for i in range(0, len(items), self._batch)]
        waiting: list[tuple[int, Future[Outcome]]] = [
            (len(batch), self._pool.submit([_row(item) for item in batch])) for batch in batches
        ]
        return lambda: [v for n, future in waiting for v in self._verdicts(n, future.result())]

    def close(self) -> None:
        """End the process."""
        self._pool.close()

    def _verdicts(self, count: int, outcome: Outcome) -> list[Verdict]:
        said, problem = outcome.value, outcome.error
        if problem is None and (not isinstance(said, list) or len(said) != count):
            got = f"{len(said)} scores" if isinstance(said, list) else type(said).__name__
            problem = f"{count} answers were sent, {got} came back"
        if problem is not None:
            return [Verdict(error=f"{self._name}: {problem}")] * count
        return [self._verdict(score) for score in said]

    def _verdict(self, score: Any) -> Verdict:
        if score is None:
            return Verdict(error=f"{self._name}: no score")
        if type(score) not in (int, float) or not 0 <= score <= 1:
            return Verdict(error=f"{self._name}: {str(score)[:40]!r} is not a number from 0 to 1")
        return Verdict(float(score))


def _checked(path: str) -> str:
    """The task for the pool, once the file has such a function; it is not run here."""
    file, _, name = path.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"rewards.custom is {path!r}: use FILE.py:function")
    place = Path(file).expanduser()
    try:
        tree = ast.parse(read_bytes(place, MAX_FILE_BYTES), filename=file)
    except OSError as error:
        raise UserError(f"rewards.custom: {file}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"rewards.custom: {file} is not Python: {error}") from None
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if name not in functions:
        known = ", ".join(functions) or "none"
        raise UserError(f"rewards.custom: {file} has no function {name!r} (functions: {known})")
    return f"{place.resolve()}:{name}"


def _row(item: Item) -> dict[str, Any]:
    row = dataclasses.asdict(item.request)
    return {**row.pop("extra"), **row, "answer": item.answer}


def make(setup: Setup) -> Verifier:
    """The verifier of one's own; errors as of ``CustomVerifier``."""
    settings = setup.settings
    if not settings.custom:
        return Missing("no reward of one's own: set rewards.custom=FILE.py:function")
    return CustomVerifier(settings.custom, settings.custom_timeout_s, settings.custom_batch)
