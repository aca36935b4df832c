"""What a run says on the terminal."""

from collections.abc import Mapping

from rich.table import Table

from vlaa_jax.schema import VERIFIER_TYPES


def heldout_table(kept: Mapping[str, Mapping[str, float]]) -> Table:
    """Held-out rewards before and after, beside the best constant answers."""
    table = Table(title="held-out reward")
    for column in ("verifier", "constant answer", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "verifier" else "right")
    before, after = kept.get("before", {}), kept.get("after", {})
    constant = kept.get("constant", {})
    names = {key.removeprefix("heldout/") for key in after}
    kinds = sorted(names & set(VERIFIER_TYPES))
    for part in (kinds, ["mean"], sorted(names - {*kinds, "mean"})):
        for name in part:
            old, new = before.get(f"heldout/{name}", float("nan")), after[f"heldout/{name}"]
            bar = f"{constant[name]:.3f}" if name in constant else ""
            table.add_row(name, bar, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        table.add_section()
    return table


def minutes(seconds: float) -> str:
    """``3m05s``."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}m{rest:02d}s"
