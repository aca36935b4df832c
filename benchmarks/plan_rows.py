"""The rows of docs/planning.md: recorded plans beside formulas, and rows by formulas alone.

    python benchmarks/plan_rows.py

A plan is recorded with ``python -m vlaa_jax.plan --json=benchmarks/results/plans/NAME.json``. The
formulas are those of ``--quick`` for the same settings: what they say over what the compiler said.
Rows by formulas take the mesh and batch sizes that ``--search --quick`` finds, in seconds each.
"""

import json
from pathlib import Path
from typing import Any

from configs.grpo import get_config
from configs.sft import get_config as sft_config
from vlaa_jax.plan.__main__ import model_config, read_settings
from vlaa_jax.plan.chips import GIB, chip_of
from vlaa_jax.plan.plan import Plan, cut_of, quick_plan
from vlaa_jax.plan.search import ranked
from vlaa_jax.plan.topology import device_count

PLANS = Path(__file__).parent / "results" / "plans"
SEARCHED = [
    *((size, topology) for size in ("3B", "7B") for topology in ("v5e:16x16", "v5p:8x8x8")),
    *((size, "v6e:8x8") for size in ("3B", "7B")),
    *((size, topology) for size in ("32B", "72B") for topology in ("v5p:4x8x8", "v5p:8x8x16")),
]


def settings_of(found: dict[str, Any]) -> Any:
    """Settings of a recorded plan."""
    make = {"grpo": get_config, "sft": sft_config}[found["task"]]
    config, at_once = make("").to_dict(), found["at_once"]
    config["model"]["checkpoint"] = found["model"]
    config["mesh"] |= dict(zip(("data", "fsdp", "tensor"), found["mesh"], strict=True))
    if found["task"] == "sft":
        config["data"] |= at_once
    else:
        config["rollout"] |= {n: at_once[n] for n in ("batch_prompts", "prefill_prompts")}
        config["rollout"]["tensor"] = at_once["rollout_tensor"]
        config["algo"]["micro_prompts"] = at_once["micro_prompts"]
    return read_settings(config)


def size_of(model: str) -> str:
    """3B of Qwen/Qwen2.5-VL-3B-Instruct."""
    return model.removesuffix("-Instruct").rpartition("-")[2]


def recorded(found: dict[str, Any]) -> str:
    """One compiled row, with the formulas' error."""
    settings, rows = settings_of(found), found["programs"]
    cut = cut_of(settings, device_count(found["topology"]))
    quick = quick_plan(settings, model_config(found["model"]), chip_of(found["topology"]), cut)
    ratios = {row.name: row.bytes / GIB / rows[row.name]["gib"] for row in quick.rows}
    worst = max(ratios, key=lambda name: abs(ratios[name] - 1) * (name in ("gradients", "burst")))
    cells = [
        f"{found['task']} {size_of(found['model'])}",
        found["topology"],
        " x ".join(map(str, found["mesh"])),
        ", ".join(map(str, found["at_once"].values())),
        *(f"{row['gib']:.1f}" for row in rows.values()),
        f"{'yes' if found['fits'] else 'no'}, {found['peak_gib']} of {found['memory_gib']}",
        f"{quick.peak / GIB:.1f} ({quick.peak / GIB / found['peak_gib'] - 1:+.0%}; "
        f"{worst} {ratios[worst] - 1:+.0%})",
        f"{sum(row['compile_s'] for row in rows.values()):.0f} s",
        f"{found['step_s']:.0f} s",
        f"{found['run_h']:.1f} h" if found["run_h"] else "",
        f"{found['update_mfu']:.0%}",
        found["limit"],
    ]
    return f"| {' | '.join(cells)} |"


def searched(size: str, topology: str) -> str:
    """The best row by formulas."""
    model = f"Qwen/Qwen2.5-VL-{size}-Instruct"
    config = get_config("").to_dict()
    config["model"]["checkpoint"] = model
    settings, chip = read_settings(config), chip_of(topology)
    found = ranked(settings, model_config(model), chip, device_count(topology))
    if not found:
        return f"| {size} | {topology} | no mesh that it can be dealt to | | | | | |"
    own, plan = found[0]
    rollout = own.rollout
    sizes = f"{rollout.batch_prompts}, {rollout.at_once}, {own.micro_prompts}"
    sizes += f", {rollout.tensor or own.mesh.tensor}"
    return f"| {size} | {topology} | {' x '.join(map(str, plan.cut))} | {sizes} | {_cells(plan)} |"


def _cells(plan: Plan) -> str:
    room = f"{plan.peak / GIB:.1f} of {plan.chip.memory / GIB:.2f}"
    hours = f"{plan.seconds * 49 / 3600:.1f} h"
    return f"yes, {room} | {plan.seconds:.0f} s | {hours} | {plan.limit}"


def main() -> None:
    """Prints both tables."""
    for path in sorted(PLANS.glob("*.json")):
        print(recorded(json.loads(path.read_text())))
    for size, topology in SEARCHED:
        print(searched(size, topology), flush=True)


if __name__ == "__main__":
    main()
