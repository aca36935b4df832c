"""Programs that were compiled before: found again by what they are, and never by half."""

import jax
import jax.numpy as jnp
import pytest

from vlaa_jax.plan.compiled import compile_program
from vlaa_jax.plan.known import Known, Said
from vlaa_jax.plan.programs import Program

SAID = Said(10, 20, 30, 1.5, "HloModule text\nsecond line")


def program(shape=(64, 64), name="product"):
    argument = jax.ShapeDtypeStruct(shape, jnp.float32)
    return Program(name, jax.jit(lambda a: a @ a.T + 1), (argument,), 100)


@pytest.mark.parametrize("stored", [True, False])
def test_an_equal_program_is_compiled_once(tmp_path, stored):
    known = Known("cpu", tmp_path if stored else None)
    first = compile_program(program(), known)
    if stored:
        known = Known("cpu", tmp_path)  # another process
    again = compile_program(program(name="another name"), known)
    assert (first.known, again.known) == (False, True)
    same = ("arguments", "temporaries", "peak", "collectives", "text", "seconds")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
    assert first.arguments == 64 * 64 * 4
    assert "HloModule" in first.text
    assert not compile_program(program((32, 64)), known).known


def test_other_devices_have_other_results(tmp_path):
    here = Known("v5e:4x4 (1, 16, 1)", tmp_path)
    here.keep(here.key("text"), SAID)
    assert here.find(here.key("text")) == SAID
    there = Known("v5e:4x4 (2, 8, 1)", tmp_path)
    assert there.find(there.key("text")) is None


@pytest.mark.parametrize("damage", ["json", "hlo.gz", "empty json", "half"])
def test_what_is_damaged_was_never_there(tmp_path, damage):
    known = Known("cpu", tmp_path)
    key = known.key("text")
    known.keep(key, SAID)
    figures, text = tmp_path / f"{key}.json", tmp_path / f"{key}.hlo.gz"
    if damage == "json":
        figures.unlink()
    elif damage == "hlo.gz":
        text.write_bytes(b"no gzip")
    elif damage == "empty json":
        figures.write_text("[]")
    else:
        text.write_bytes(text.read_bytes()[:-8])
    assert Known("cpu", tmp_path).find(key) is None


def test_a_refused_program_is_not_kept(tmp_path):
    known = Known("cpu", tmp_path)
    bad = Program("bad", jax.jit(lambda a: a @ a), (jax.ShapeDtypeStruct((2, 3), float),), 0)
    assert "dot_general" in compile_program(bad, known).error
    assert not list(tmp_path.iterdir())
