"""A config is found wherever the command is given."""

from pathlib import Path

import pytest

from vlaa_jax.settle import with_installed_config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("flag", ["--config=", "-config=", "--config "])
def test_the_installed_config_is_found_from_elsewhere(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    words = ["main", *f"{flag}configs/grpo.py:tiny,lora".split(), "--workdir=configs/x"]
    found = with_installed_config(words)
    assert " ".join(found) == f"main {flag}{ROOT}/configs/grpo.py:tiny,lora --workdir=configs/x"


def test_what_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "grpo.py").write_text("")
    for words in (["--config=configs/grpo.py"], ["--config=no/such.py:x"], ["--config"]):
        assert with_installed_config(words) == words
