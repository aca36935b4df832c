"""What is said while programs compile, and of a compile cache that is no use as it is."""

import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import pytest

from vlaa_jax.parallel import compiling
from vlaa_jax.parallel.compiling import Compilations, part


def test_programs_are_counted_and_timed():
    compilations = Compilations()
    jax.jit(lambda x: jnp.sin(x) * 41.5)(jnp.ones(3)).block_until_ready()
    compilations.close()
    assert compilations.count >= 1
    assert compilations.seconds > 0
    seen = compilations.count
    jax.jit(lambda x: jnp.sin(x) * 42.5)(jnp.ones(3)).block_until_ready()
    assert compilations.count == seen


def test_a_long_one_is_told_with_its_name_and_time(monkeypatch):
    monkeypatch.setattr(compiling, "FIRST_S", 0.0)
    said = []
    compilations = Compilations(said.append)
    event = "/jax/core/compile/backend_compile_duration"
    jax.monitoring.record_scalar(event, 0.0, fun_name="jit(prefill)")
    until = time.monotonic() + 100
    while not said and time.monotonic() < until:
        time.sleep(0.1)
    jax.monitoring.record_event_duration_secs(event, 1.5, fun_name="jit(prefill)")
    compilations.close()
    assert said[0].startswith("compiling: prompts for sampling, ")
    assert compilations.seconds == 1.5


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("jit(prefill)", "prompts for sampling"),
        ("jit_burst_", "sampling"),
        ("jit__apply", "the optimizer's update"),
        ("jit(_apply)", "the optimizer's update"),
        ("jit(other)", "the program other"),
        ("", "the program without a name"),
    ],
)
def test_names(program, name):
    assert part(program) == name


def compiles(cache, *, before=""):
    """A process that compiles one program with the cache; its words."""
    script = f"""
        import sys
        import jax, jax.numpy as jnp
        from vlaa_jax.parallel import compile_cache
        compile_cache.use({str(cache)!r}, lambda line: print(line, flush=True))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        {before}
        print(float(jax.jit(lambda x: jnp.sort(jnp.sin(x)).sum())(jnp.ones(64))))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_a_cache_cut_to_50_bytes_is_told_once_and_mended(tmp_path):
    sound = compiles(tmp_path)
    entries = sorted(tmp_path.glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:50])
    said = compiles(tmp_path)
    warning = f"warning: run.compilation_cache: {tmp_path} holds damaged entries: "
    assert [line.startswith(warning) for line in said] == [True, False]
    assert said[-1:] == sound
    assert sorted(tmp_path.glob("*-cache")) == entries
    assert all(entry.stat().st_size > 50 for entry in entries)
    assert compiles(tmp_path) == sound


def test_a_cache_that_cannot_be_used_is_told_and_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    said = compiles(tmp_path / "file")
    assert said[0].startswith(f"warning: run.compilation_cache: {tmp_path / 'file'} cannot be used")
    assert len(said) == 2


def test_a_cache_on_a_full_disk_is_told_once(small_disk):
    fill = f"open({str(small_disk / 'fill')!r}, 'wb').write(bytes(256 * 1024 - 4096 * 2))"
    said = compiles(small_disk, before=fill)
    assert [line for line in said if "No space left on device" in line] == said[:-1]
    assert len(said) == 2
