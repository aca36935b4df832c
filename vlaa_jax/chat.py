"""One answer of a checkpoint: ``python -m vlaa_jax.chat CHECKPOINT --image FILE "question"``."""

import argparse
import dataclasses
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from vlaa_jax.schema import Record, UserError, printable
from vlaa_jax.settings.evaluate import EvaluatedModelSettings
from vlaa_jax.settings.serve import ServerSettings, ServeSettings
from vlaa_jax.settings.shared import MeshSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the answer as it is decoded; returns the exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    args = _parser().parse_args(argv)
    try:
        for text in answer(args):
            print(printable(text), end="", flush=True)
        print()
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vlaa_jax.chat",
        description="One answer of a checkpoint to a question, with or without images.",
    )
    parser.add_argument("checkpoint", help="HF directory, checkpoint, run directory, or hub id")
    parser.add_argument("question")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="may be given again"
    )
    parser.add_argument("--system", default="", help="system prompt; default: the template's")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--seed", type=int, help="of sampling; default: another each time")
    parser.add_argument("--max_new_tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16", help="float32 or bfloat16")
    return parser


def answer(args: argparse.Namespace) -> Iterator[str]:
    """The answer, piece by piece.

    Raises:
        UserError: an option, an image or the checkpoint cannot be used.
    """
    _check(args)
    server = ServerSettings(slots=1, max_new_tokens=args.max_new_tokens)
    images = [_read(path) for path in args.image]
    from vlaa_jax.data.images.files import decode_image
    from vlaa_jax.policy.prompts import Encoder
    from vlaa_jax.rollout.sampling import Sampling
    from vlaa_jax.rollout.stream import Wanted
    from vlaa_jax.serve.opened import keep_compiled, open_checkpoint, open_model
    from vlaa_jax.serve.text import Vocabulary, Writer

    decoded = tuple(decode_image(*one) for one in images)
    keep_compiled(server.compilation_cache)
    model = EvaluatedModelSettings(checkpoint=args.checkpoint, dtype=args.dtype)
    opened = open_checkpoint(ServeSettings(model, MeshSettings(), server))
    data = dataclasses.replace(opened.data, system_prompt=args.system)
    record = Record("question", args.question, tuple(args.image))
    prompt = Encoder(opened.pretrained, data, args.max_new_tokens)(record, decoded)
    pretrained, stream, collator = open_model(opened, server)
    greedy = args.temperature == 0
    sampling = Sampling(1.0 if greedy else args.temperature, args.top_k, args.top_p, greedy=greedy)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    wanted: list[Any] = [Wanted(sampling, args.max_new_tokens, pretrained.chat.stop_ids, seed)]
    part = stream.prefill(collator([prompt] * stream.shards)[0])
    stream.seat(part, wanted + [None] * (stream.shards - 1))
    writer = Writer(Vocabulary(pretrained.chat))
    while stream.growing:
        for news in stream.step():
            yield writer.add(news.tokens_T.tolist())[0]
    yield writer.end()


def _read(path: str) -> tuple[bytes, str]:
    from vlaa_jax.foreign import MAX_IMAGE_BYTES, local_path, read_bytes

    try:
        return read_bytes(local_path(path), MAX_IMAGE_BYTES), path
    except FileNotFoundError:
        raise UserError(f"--image: {path} does not exist") from None


def _check(args: argparse.Namespace) -> None:
    """What the model is not needed for.

    Raises:
        UserError: an option is out of range.
    """
    for name, fine, range_ in (
        ("temperature", args.temperature == 0 or 1e-6 <= args.temperature <= 2, "0, or up to 2"),
        ("top_p", 1e-6 <= args.top_p <= 1, "above 0 and up to 1"),
        ("top_k", 0 <= args.top_k < 2**31, "0 or more"),
        ("seed", args.seed is None or 0 <= args.seed < 2**64, "from 0 to below 2**64"),
    ):
        if not fine:
            raise UserError(f"--{name}={getattr(args, name)}: choose it {range_}")


if __name__ == "__main__":
    sys.exit(main())
