"""Command line: ``python -m converters hf-to-jax | jax-to-hf | verify``."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from vlaa_jax.schema import UserError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 (mendable or unequal), 130 (interrupt)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was written is not used, run the command again", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m converters",
        description="Hugging Face checkpoints of Qwen2-VL and Qwen2.5-VL to ours and back.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    to_jax = commands.add_parser("hf-to-jax", help="HF directory or hub id to our checkpoint")
    to_jax.add_argument("source", metavar="HF_DIR", help="HF directory or hub id")
    to_jax.add_argument("target", metavar="OUT_DIR")
    to_jax.add_argument("--revision", help="branch, tag or commit of a hub id")
    to_jax.set_defaults(run=_hf_to_jax)

    to_hf = commands.add_parser("jax-to-hf", help="our checkpoint or training run to HF")
    to_hf.add_argument("source", metavar="CKPT_DIR", help="checkpoint, RUN or RUN/checkpoints/N")
    to_hf.add_argument("target", metavar="OUT_DIR")
    to_hf.add_argument(
        "--layout",
        choices=("old", "new", "mixed", "source"),
        help="spelling of the tensor names (default: old, which every reader takes)",
    )
    to_hf.add_argument("--max-shard-size", type=_size, metavar="SIZE", help="default: 5GB")
    to_hf.add_argument(
        "--adapter",
        action="store_true",
        help="write a LoRA run as a PEFT adapter directory, as stored, instead of merging it",
    )
    to_hf.set_defaults(run=_jax_to_hf)

    for command in (to_jax, to_hf):
        command.add_argument(
            "--dtype",
            choices=("float32", "bfloat16", "float16"),
            help="default: as stored; for a training run as its source's config.json records",
        )
        command.add_argument("--overwrite", action="store_true", help="replace OUT_DIR")
        command.add_argument("--quiet", action="store_true", help="draw no progress bar")

    check = commands.add_parser("verify", help="there and back by bytes, logits by transformers")
    check.add_argument("source", metavar="DIR", help="HF directory or hub id, or a training run")
    check.add_argument("--scratch", metavar="DIR", help="where the two copies are written")
    check.add_argument("--seed", type=int, default=0)
    check.set_defaults(run=_verify)
    return parser


# Imported inside the commands: --help and wrong arguments answer without starting jax.
def _hf_to_jax(arguments: argparse.Namespace) -> int:
    from converters.hf_to_jax import convert
    from vlaa_jax.models.qwen_vl.weights import resolve

    target = convert(
        resolve(arguments.source, arguments.revision),
        arguments.target,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        show_progress=not arguments.quiet,
    )
    print(target)
    return 0


def _jax_to_hf(arguments: argparse.Namespace) -> int:
    from converters.adapter import export_adapter
    from converters.jax_to_hf import export

    of_weights = {
        "layout": arguments.layout,
        "dtype": arguments.dtype,
        "max_shard_bytes": arguments.max_shard_size,
    }
    given = {name: value for name, value in of_weights.items() if value is not None}
    if arguments.adapter:
        if given:
            raise UserError(
                "--layout, --dtype and --max-shard-size shape merged weights; an adapter is "
                "written as stored: leave them out, or leave out --adapter"
            )
        _say_step(arguments.source)
        print(export_adapter(arguments.source, arguments.target, overwrite=arguments.overwrite))
        return 0
    _say_step(arguments.source)
    target = export(
        arguments.source,
        arguments.target,
        overwrite=arguments.overwrite,
        show_progress=not arguments.quiet,
        **given,
    )
    print(target)
    return 0


def _say_step(source: str) -> None:
    """Which checkpoint of a run is taken; nothing for others."""
    from vlaa_jax.models.qwen_vl.weights import step_of

    step = step_of(Path(source))
    if step is not None:
        print(f"taking checkpoint {step.name} of {step.parent.parent}", file=sys.stderr)


def _verify_run(source: Path) -> int:
    """Holds every checkpoint of a run against the digests that were written with it."""
    from vlaa_jax.train.checkpoint import problem
    from vlaa_jax.train.claim import steps_of

    own = source.parent.name == "checkpoints"
    folder = source.parent if own else source / "checkpoints"
    steps = [int(source.name)] if own else steps_of(folder)
    found = {step: problem(folder / str(step)) for step in sorted(steps)}
    for step, reason in found.items():
        print(f"checkpoint {step}: {'sound' if reason is None else f'damaged, {reason}'}")
    print("FAILED" if any(found.values()) else "passed")
    return 1 if any(found.values()) else 0


def _verify(arguments: argparse.Namespace) -> int:
    from vlaa_jax.models.qwen_vl.weights import existing, step_of

    source = existing(arguments.source)  # before the seconds that jax and torch take to load
    if step_of(source) is not None:
        return _verify_run(source)
    from converters.verify import TOLERANCE, verify

    report = verify(source, scratch=arguments.scratch, seed=arguments.seed)
    print(f"{report.tensors} tensors there and back, byte for byte")
    print(
        f"logits: max relative error {report.max_relative_error:.2e} (limit {TOLERANCE:.0e}), "
        f"same first token at {100 * report.same_argmax_frac:.1f} % of positions"
    )
    print("passed" if report.passed else "FAILED")
    return 0 if report.passed else 1


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?I?B?)", text.strip().upper())
    if not match or match[2] not in _UNITS or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 5GB")
    return int(match[1]) * _UNITS[match[2]]
