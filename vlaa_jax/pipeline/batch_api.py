"""Placeholder; the provider's batch API comes next."""

from pathlib import Path

from vlaa_jax.pipeline.ledger import Ledger, Reply
from vlaa_jax.pipeline.request import Request
from vlaa_jax.pipeline.settings import ServedModel
from vlaa_jax.schema import UserError


class BatchTransport:
    """Not built yet."""

    def __init__(self, model: ServedModel, ledger: Ledger) -> None:
        raise UserError("transport batch is not built yet")

    async def send(self, request: Request, key: bytes, root: Path) -> Reply:
        """Not built yet."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Not built yet."""
