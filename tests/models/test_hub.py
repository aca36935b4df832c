"""Of a checkpoint on the hub, the small files come first, and weights when they are wanted."""

import subprocess
import sys
import textwrap
from importlib import resources
from pathlib import Path

from hub_server import environment_of, hub_of

ROOT = Path(__file__).parents[2]
REPO = "someone/tiny"


def test_weights_are_fetched_when_they_are_wanted_and_not_before(tmp_path):
    script = """
        import sys
        from vlaa_jax.models.qwen_vl import weights
        from vlaa_jax.policy.reading import Reading
        from vlaa_jax.settings.shared import DataSettings

        reading = Reading.of(sys.argv[1], DataSettings())
        held = {path.name for path in reading.sidecars.iterdir()}
        print("model.safetensors" in held, reading.config.family)
        whole = weights.resolve(sys.argv[1])
        print(whole == reading.sidecars, (whole / "model.safetensors").stat().st_size)
    """
    tiny = Path(str(resources.files("vlaa_jax") / "assets" / "tiny"))
    with hub_of(REPO) as hub:
        hub.files |= {p.name: p.read_bytes() for p in tiny.iterdir() if p.suffix != ".safetensors"}
        hub.files |= {"model.safetensors": b"some weights", "old.bin": b"a pickle"}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), REPO],
            **{"env": environment_of(hub, tmp_path), "cwd": ROOT},
            **{"capture_output": True, "text": True, "timeout": 120},
        )
        assert done.stdout.splitlines() == ["False qwen2_5_vl", "True 12"], done.stderr
        assert hub.asked.count("model.safetensors") == 1
        assert "old.bin" not in hub.asked
