"""``python -m vlaa_jax.plan --config=configs/grpo.py:3b --topology=v5e:4x4 --config.mesh.fsdp=16``.

Says, without a device of that kind, whether a run fits there, what its programs send over the
mesh, and about how long it takes. Compiles every program of a step; ``--quick`` goes by formulas.
"""

import os
import re
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from vlaa_jax import disk
from vlaa_jax.models.qwen_vl.config import QwenVLConfig
from vlaa_jax.models.qwen_vl.hf_config import read_config
from vlaa_jax.plan.chips import GIB, chip_of
from vlaa_jax.plan.known import Known, compilers
from vlaa_jax.plan.plan import (
    Plan,
    compiled_plan,
    cut_of,
    quick_plan,
    smallest_change,
    with_more_slots,
)
from vlaa_jax.plan.report import as_json, print_plan, print_ranking
from vlaa_jax.plan.search import flags_of, ranked
from vlaa_jax.plan.topology import device_count, devices_of
from vlaa_jax.schema import UserError
from vlaa_jax.settings.grpo import GrpoSettings
from vlaa_jax.settle import settle, with_installed_config

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with a variant after ':'.")
TOPOLOGY = flags.DEFINE_string("topology", "", "Devices: v5e:4x4, v5p:2x2x2, v6e:2x4, h200:8 ...")
QUICK = flags.DEFINE_bool("quick", False, "Go by formulas alone.")
SEARCH = flags.DEFINE_bool("search", False, "Rank meshes by formulas, compile the best three.")
WRITE = flags.DEFINE_string("write", "", "With --search: a flag file for main's --flagfile.")
JSON = flags.DEFINE_string("json", "", "Write the figures there too.")
CACHE = flags.DEFINE_string(
    "cache", "~/.cache/vlaa_jax/plan", "Compiled programs are kept there; empty keeps none."
)
CHEAP = ("weights", "apply")
"""Programs that compile in seconds, and say first whether what is kept has room at all."""
CHECKPOINT = "Qwen/"
"""Owner of the released checkpoints, whose sizes are known without their files."""


def main(argv: Sequence[str]) -> None:
    """Plans a run; exits with 1 where it does not fit, with 2 where nothing can be planned."""
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options look like --config=FILE")
        if CONFIG.value is None or not TOPOLOGY.value:
            raise UserError("--config and --topology are needed, e.g. --topology=v5e:4x4")
        settings = read_settings(CONFIG.value.to_dict())
        plan = run(settings, model_config(settings.model.checkpoint), TOPOLOGY.value)
    except UserError as error:
        print(f"vlaa_jax.plan: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if plan.fits else 1)


def read_settings(config: dict[str, Any]) -> Any:
    """Settings of a run whose files need not be there yet."""
    if config.get("task") not in ("grpo", "sft"):
        raise UserError(f"task: {config.get('task')!r} cannot be planned; grpo and sft can")
    for group, name in (("data", "records"), ("data", "image_root"), ("rewards", "endpoint_url")):
        section = config.get(group, {})
        if not section.get(name) and section.get("records") != "embedded":
            section[name] = "http://later"
    return settle(config)


def model_config(checkpoint: str) -> QwenVLConfig:
    """Sizes of a checkpoint: a released one by its name, any other from its config.json.

    Raises:
        UserError: neither.
    """
    name = re.sub(r"-Instruct$", "", checkpoint.removeprefix(CHECKPOINT))
    if name in QwenVLConfig.RELEASED:
        return QwenVLConfig.RELEASED[name]
    if checkpoint == "embedded":
        return read_config(Path(__file__).parents[1] / "assets" / "tiny")
    if checkpoint and Path(checkpoint).is_dir():
        return read_config(Path(checkpoint))
    known = ", ".join(f"{CHECKPOINT}{name}" for name in QwenVLConfig.RELEASED)
    raise UserError(f"model.checkpoint: {checkpoint!r} is neither a directory nor one of {known}")


def run(settings: Any, config: QwenVLConfig, topology: str) -> Plan:
    """Plans, prints, and writes what was asked for."""
    began, console = time.monotonic(), Console()
    chip, devices = chip_of(topology), device_count(topology)
    if SEARCH.value:
        if not isinstance(settings, GrpoSettings):
            raise UserError("--search: only grpo is searched; say a mesh with --config.mesh")
        settings, plan = _search(settings, config, topology, console)
    elif QUICK.value:
        plan = quick_plan(settings, config, chip, cut_of(settings, devices))
    else:
        plan = _compile(settings, config, topology, console)
    print_plan(plan, settings, console)
    if hint := _hint(settings, config, topology, plan):
        console.print(hint, highlight=False, soft_wrap=True)
    seconds = time.monotonic() - began
    console.print(f"planned in {seconds:.0f} s", highlight=False)
    if JSON.value:
        figures = as_json(plan, settings, topology, seconds) | _cost()
        figures["compilers"] = compilers() if plan.compiled else {}
        disk.write_json(Path(JSON.value), figures)
    if SEARCH.value and WRITE.value:
        disk.write_text(Path(WRITE.value), "\n".join(flags_of(settings)) + "\n")
        console.print(f"written: --flagfile={WRITE.value}", highlight=False)
    return plan


def _cost() -> dict[str, float]:
    """What this process took: seconds of all its threads, and memory at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes
    return {"plan_cpu_s": round(time.process_time(), 1), "plan_gib": round(peak / 2**20, 2)}


def _compile(settings: Any, config: QwenVLConfig, topology: str, console: Console) -> Plan:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: an attached device stays free
    from vlaa_jax.parallel.mesh import make_mesh
    from vlaa_jax.plan.compiled import compile_program
    from vlaa_jax.plan.programs import programs_of

    cut = cut_of(settings, device_count(topology))
    mesh = make_mesh(*cut, devices=devices_of(topology))
    known = Known(f"{topology} {cut}", Path(CACHE.value).expanduser() if CACHE.value else None)
    programs, found = programs_of(settings, config, mesh), {}
    for program in sorted(programs, key=lambda program: program.name not in CHEAP):
        console.print(f"{program.name} ...", highlight=False, end=" ")
        found[program.name] = one = compile_program(program, known)
        console.print(_progress(one), highlight=False, soft_wrap=True)
    in_order = [found[program.name] for program in programs]
    return compiled_plan(settings, config, chip_of(topology), cut, in_order)


def _progress(one: Any) -> str:
    if one.error:
        return f"refused after {one.seconds:.0f} s"
    words = "known from before, compiled" if one.known else "compiled"
    text = f"text of {len(one.text) / 1e6:.1f} MB" if one.text else "text unreadable: by formulas"
    return (
        f"{one.total / GIB:.2f} GiB a device; {words} in {one.seconds:.0f} s, traced in "
        f"{one.traced:.0f} s, {text}"
    )


def _search(
    settings: Any, config: QwenVLConfig, topology: str, console: Console
) -> tuple[Any, Plan]:
    best = ranked(settings, config, chip_of(topology), device_count(topology))
    if not best:
        raise UserError(f"--search: by formulas no mesh of {topology} holds this run")
    print_ranking(best, console)
    if QUICK.value:
        return best[0]
    plans = [(own, _compile(own, config, topology, console)) for own, _ in best[:3]]
    return min(plans, key=lambda pair: (not pair[1].fits, pair[1].seconds))


def _hint(settings: Any, config: QwenVLConfig, topology: str, plan: Plan) -> str:
    """What would make a run fit, or what would make one that fits quicker; both by formulas."""
    chip, devices = chip_of(topology), device_count(topology)

    def quick(own: Any) -> Plan:
        return quick_plan(own, config, chip, cut_of(own, devices))

    known = bool(plan.peak) and not any(row.error for row in plan.rows)
    scale = plan.peak / quick(settings).peak if known else 1.0

    def fits(own: Any) -> bool:
        try:
            return scale * quick(own).peak <= chip.memory
        except UserError:
            return False

    if not plan.fits:
        change = smallest_change(settings, devices, fits)
        return f"smallest change that makes it fit (by formulas): {change}"
    more = [own for own in with_more_slots(settings) if fits(own)]
    if not more:
        return ""
    best = min(more, key=lambda own: quick(own).seconds)
    return (
        f"rollout.batch_prompts={best.rollout.batch_prompts} fits too (by formulas): a step of "
        f"{quick(best).seconds:.0f} s instead of {quick(settings).seconds:.0f}"
    )


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line; whatever is wrong becomes one line."""
    try:
        rest: list[str] = flags.FLAGS(with_installed_config(argv))
        if CONFIG.value is not None:
            CONFIG.value.to_dict()
        return rest
    except Exception as error:  # flags, and whatever a config file may raise
        words = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"vlaa_jax.plan: {words}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
