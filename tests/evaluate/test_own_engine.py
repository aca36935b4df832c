"""Outputs from the project's engine: the embedded checkpoint on the miniature."""

import asyncio
import io
import shutil
from importlib import resources
from pathlib import Path

import jax
import pytest
from PIL import Image

from vlaa_jax.evaluate.benchmarks import benchmark_named
from vlaa_jax.evaluate.generate import Job, jobs_of
from vlaa_jax.evaluate.miniature.tables import write_tables
from vlaa_jax.evaluate.own_engine import OwnEngine
from vlaa_jax.evaluate.questions import open_questions
from vlaa_jax.parallel.mesh import make_mesh
from vlaa_jax.policy.pretrained import open_pretrained
from vlaa_jax.schema import UserError
from vlaa_jax.settings.build import build
from vlaa_jax.settings.evaluate import EvaluateSettings
from vlaa_jax.settings.shared import ModelSettings, PromptSettings


def _engine(**generation):
    values = {"new_tokens": 8, "batch": 2, "system_prompt": "Answer.", **generation}
    model = {"checkpoint": "embedded", "dtype": "float32"}
    return OwnEngine(build(EvaluateSettings, {"generation": values, "model": model}))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Of four questions of one padded length, so that little is compiled."""
    root: Path = tmp_path_factory.mktemp("questions")
    write_tables(root)
    benchmark = benchmark_named("mathvista")
    questions = open_questions(benchmark, root, check_digest=False)

    def of(samples):
        found = jobs_of(benchmark, questions, samples)
        return [job for job in found if int(job.index) % 2 == 0]

    return of


def _texts(engine, wanted):
    found = {}
    asyncio.run(engine.generate(wanted, lambda job, out: found.__setitem__(job.name, out)))
    return found


def test_greedy_outputs_do_not_depend_on_their_neighbours(jobs):
    engine, wanted = _engine(), jobs(1)
    whole = _texts(engine, wanted)
    assert set(whole) == {job.name for job in wanted}
    part = _texts(engine, wanted[1:4])
    assert part == {job.name: whole[job.name] for job in wanted[1:4]}
    assert all(out.tokens == 8 for out in whole.values() if out.finish_reason == "length")
    assert all(out.tokens <= 8 for out in whole.values())


def test_samples_differ_and_are_drawn_alike_by_a_run_that_was_cut(jobs):
    engine, wanted = _engine(samples=3, temperature=1.0), jobs(3)
    whole = _texts(engine, wanted)
    assert len({out.text for out in whole.values()}) > 6
    rest = [job for job in wanted if job.index == "2" and job.sample > 0]
    assert _texts(engine, rest) == {job.name: whole[job.name] for job in rest}


def test_a_trainer_s_weights_are_cut_for_sampling_as_its_rollouts_are():
    mesh = make_mesh(fsdp=2)
    model = ModelSettings(checkpoint="embedded", dtype="float32")
    pretrained = open_pretrained(model, PromptSettings(), mesh)
    params = pretrained.load_params()
    for tensor, cut in ((0, False), (2, True)):
        engine = OwnEngine(build(EvaluateSettings, {}), (pretrained, mesh), tensor)
        engine._stream.use(params)
        laid_out = jax.tree.leaves(engine._stream._params)
        assert any("tensor" in str(leaf.sharding.spec) for leaf in laid_out) is cut


def _asking(prompt, image, index="7"):
    return Job("mathvista", index, 0, prompt, lambda: [image])


def _png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("prompt", "image", "why"),
    [
        ("many words " * 300, _png(28, 28), "mathvista 7.*over the limit of 200 .generation"),
        ("Look <|im_end|>", _png(28, 28), "mathvista 7.*special token"),
        ("Why?", b"GIF", "mathvista 7.*not an image"),
        ("Why?", _png(2, 900), "mathvista 7.*too narrow"),
    ],
    ids=("long", "special token", "no image", "narrow"),
)
def test_what_cannot_be_asked_is_refused_before_weights_are_read(prompt, image, why):
    engine = _engine(max_prompt_tokens=200)
    engine.check([_asking("How many?", _png(56, 56))])
    with pytest.raises(UserError, match=why):
        engine.check([_asking("How many?", _png(56, 56), "6"), _asking(prompt, image)])


def test_questions_leave_room_for_the_output():
    few, many = (_asking("many words " * n, _png(28, 28), str(n)) for n in (1, 60))
    engine = _engine(new_tokens=4000)
    engine.check([few])
    with pytest.raises(UserError, match=r"over the limit of 96 \(the model's max_pos"):
        engine.check([few, many])
    with pytest.raises(UserError, match="4096 new tokens leave no room"):
        _engine(new_tokens=4096)


def test_a_run_that_still_trains_is_evaluated_at_the_step_that_was_there(tmp_path):
    tiny = Path(str(resources.files("vlaa_jax") / "assets" / "tiny"))
    shutil.copytree(tiny, tmp_path / "hf")
    steps = tmp_path / "checkpoints"
    for step in ("9", "10"):
        (steps / step / "params").mkdir(parents=True)
        (steps / step / "digests.json").write_text(f'{{"of": {step}}}')
    model = {"checkpoint": str(tmp_path), "dtype": "float32"}
    settings = build(EvaluateSettings, {"model": model})
    then = OwnEngine(settings).describe()
    assert then["directory"] == "10"
    (steps / "11").mkdir()
    (steps / "11" / "digests.json").write_text("{}")
    now = OwnEngine(settings).describe()
    assert now["directory"] == "11" and now["weights"] != then["weights"]
