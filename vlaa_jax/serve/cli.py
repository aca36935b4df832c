"""Command line of the server."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlaa_jax.schema import UserError
from vlaa_jax.serve.access import Access
from vlaa_jax.serve.options import add_options, given
from vlaa_jax.settings.evaluate import EvaluatedModelSettings
from vlaa_jax.settings.serve import ServerSettings, ServeSettings
from vlaa_jax.settings.shared import MeshSettings

_BACKLOG = 1024
_LAST_WORDS_S = 10
"""For the burst in hand to end and refusals to be sent, once patience is over."""
GROUPS = {"": ServerSettings, "model": EvaluatedModelSettings, "mesh": MeshSettings}


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is told to end; returns the exit status."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return serve(read_settings(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def read_settings(argv: Sequence[str] | None) -> ServeSettings:
    """The settings that a command line gives."""
    parser = argparse.ArgumentParser(
        prog="python -m vlaa_jax.serve",
        description="An OpenAI-compatible server of a checkpoint or of a run's newest one.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="HF directory, checkpoint, run directory, or hub id")
    add_options(parser, GROUPS)
    args = parser.parse_args(argv)
    model = {**given(args, "model", EvaluatedModelSettings), "checkpoint": args.checkpoint}
    return ServeSettings(
        EvaluatedModelSettings(**model),
        MeshSettings(**given(args, "mesh", MeshSettings)),
        ServerSettings(**given(args, "", ServerSettings)),
    )


def serve(settings: ServeSettings) -> int:
    """Opens the checkpoint and answers requests."""
    try:
        import uvicorn

        from vlaa_jax.serve.app import Served, make_app
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install 'vlaa_jax[serve]'") from None
    from vlaa_jax.serve.opened import keep_compiled, open_checkpoint, open_model, warm_up

    server = settings.server
    Access(server)
    # Taken before anything dear is loaded; nobody is let in before the weights are here.
    with _bound(server.host, server.port) as listening:
        keep_compiled(server.compilation_cache)
        pretrained, stream, collator = open_model(open_checkpoint(settings), server)
        warm_up(pretrained, stream, collator)
        failed: list[Exception] = []

        def died(error: Exception) -> None:
            failed.append(error)
            traceback.print_exception(error)
            uvicorn_server.should_exit = True

        path = Path(settings.model.checkpoint)
        name = server.name or path.name or path.resolve().name
        served = Served(server, name, pretrained, stream, collator, died)
        config = uvicorn.Config(
            make_app(served),
            log_level="warning",
            lifespan="on",
            limit_concurrency=4 * server.max_requests,
            timeout_graceful_shutdown=int(server.patience_s) + _LAST_WORDS_S,
        )

        class Server(uvicorn.Server):
            """Refuses in the clients' form what is unfinished, before uvicorn cancels it."""

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                loop = asyncio.get_running_loop()
                # Whoever asks twice does not wait.
                loop.add_signal_handler(signal.SIGINT, served.leave)
                loop.add_signal_handler(signal.SIGTERM, served.leave)
                loop.call_later(server.patience_s, served.leave)
                await super().shutdown(sockets)

        uvicorn_server = Server(config)
        listening.listen(_BACKLOG)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{name}  http://{shown}:{port}/v1  (Ctrl-C ends it)", flush=True)
        # uvicorn raises what it caught once more, when everything has been closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        uvicorn_server.run([listening])
    if failed:
        print(f"error: decoding failed: {failed[0]}", file=sys.stderr)
    return 1 if failed else 0


def _leave(*_: Any) -> None:
    """The server has ended by then."""


def _bound(host: str, port: int) -> socket.socket:
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise UserError(f"--host={host} --port={port}: cannot be listened on: {error}") from None
    return place
