"""What the tests of the pipeline share: settings, and readers of what a run left."""

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vlaa_jax.pipeline.run import run as run_task
from vlaa_jax.pipeline.scripted_models import MODELS
from vlaa_jax.settings.pipeline import CollectSettings, PipelineSettings


def settings_for(url, **model):
    """Settings of a run on 40 drawings whose models are all served at one place."""
    settings = PipelineSettings(collect=CollectSettings(sources="embedded", embedded=40))
    for group, step in (*((s, s) for s in MODELS if s != "difficulty"), ("split", "difficulty")):
        named = {"url": url, "model": MODELS[step], "backoff_s": 0.01, **model}
        asked = replace(getattr(settings, group).model, **named)
        settings = changed(settings, group, model=asked)
    return settings


def changed(settings, group, **values):
    """Settings with other values in one group."""
    return replace(settings, **{group: replace(getattr(settings, group), **values)})


def run(settings, workdir, console=None):
    """The task, without a word."""
    return run_task(settings, workdir, console or Console(quiet=True))


def lines(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def outputs(workdir: Path):
    """The bytes of every file that training or people read."""
    names = ("sft.jsonl", "aha_sft.jsonl", "grpo.jsonl", "rejects.jsonl", "failed.jsonl")
    return {name: (workdir / name).read_bytes() for name in names}
