"""Values, differences and controls by hand, and the page that shows them."""

import csv
from collections import Counter

import pytest

from vlaa_jax.evaluate.nouns import Unit
from vlaa_jax.evaluate.report.paper import COLUMNS, ROWS
from vlaa_jax.settings.study import StudySettings
from vlaa_jax.study.analysis import analyse, heldout_controls, length_matched
from vlaa_jax.study.grid import Cell
from vlaa_jax.study.heldout import in_format
from vlaa_jax.study.paper import ARMS, AVERAGES, paper_arm
from vlaa_jax.study.read import Found, count_cues
from vlaa_jax.study.report import write_report

SETTINGS = StudySettings(
    models={"3b": "x"},
    seeds=(0, 1),
    arms=("base", "grpo"),
    stages={"grpo": {"config": "c.py"}},
    evaluations={"heldout": {"config": "h.py"}},
)


def units(values):
    return [Unit(str(i), value, str(i)) for i, value in enumerate(values)]


def line(length, reward, *, extracted="a", truncated=False, id="r", sample=0, free=0.0):
    return {
        **{"id": id, "sample": sample, "verifier_type": "digit", "length": length},
        **{"reward": reward, "free_reward": free, "extracted": extracted, "truncated": truncated},
    }


def study():
    cells = {}
    for seed in (0, 1):
        for arm, digit, mcq in (("base", (0, 0, 1, 1), (0, 1)), ("grpo", (0, 1, 1, 1), (1, 1))):
            if arm == "grpo" and seed == 1:
                digit = (1, 1, 1, 1)
            cell = Cell("3b", seed, arm)
            found = Found(cell, {"heldout": {"digit": units(digit), "mcq": units(mcq)}})
            found.outputs["heldout"] = [line(10 * (i + 1), float(v)) for i, v in enumerate(digit)]
            if arm == "grpo":
                found = Found(
                    cell,
                    found.units,
                    found.outputs,
                    curves={"reward/mean": [0.1, 0.2 + seed]},
                    cues=Counter({"wait": 2}),
                    rollouts=8,
                )
            cells[cell] = found
    return cells


def test_values_over_seeds_and_differences_paired_by_question():
    base, grpo = analyse(study(), SETTINGS)
    digit = grpo.values["heldout", "digit"]
    assert digit.per_seed == {0: 75.0, 1: 100.0}
    assert digit.mean.value == 87.5
    # Two seeds: t(0.975, 1) = 12.706, standard error 12.5; cut to [0, 100].
    assert (digit.mean.low, digit.mean.high) == (0.0, 100.0)
    assert digit.difference.value == 37.5 and digit.difference.pairs == 8
    # Clusters by question: sums over seeds 1, 2, 0, 0 around 0.375 * 2.
    error = (4 / 3 * (0.25**2 + 1.25**2 + 2 * 0.75**2)) ** 0.5 / 8
    assert digit.difference.high - digit.difference.value == pytest.approx(3.182446 * 100 * error)
    assert digit.over_seeds.value == 37.5 and digit.over_seeds.pairs == 2
    assert digit.relative == pytest.approx(75.0)
    mean = grpo.values["heldout", "mean"]
    assert mean.per_seed == {0: 87.5, 1: 100.0}  # the two columns count alike
    assert mean.difference.value == pytest.approx(93.75 - 50)
    assert base.values["heldout", "digit"].difference is None
    assert grpo.cues["wait"] == 4 and grpo.rollouts == 16


def test_truncated_and_unextracted_outputs_are_counted_apart_from_wrong_ones():
    lines = [
        line(5, 1.0, sample=0, free=1.0),
        line(9, 0.0, sample=1, free=0.0),
        line(20, 0.0, extracted=None, truncated=True, sample=2, free=0.0),
        line(6, 0.0, extracted=None, sample=3, free=1.0),
    ]
    found = heldout_controls(lines, [])
    shares = found.right, found.wrong, found.truncated, found.not_extracted
    assert shares == (25.0, 25.0, 25.0, 25.0)
    assert found.without_format == 50.0 and found.length == 10.0 and found.matched is None
    assert found.pass_at == {1: 25.0, 2: pytest.approx(50.0), 4: 100.0}


def test_at_equal_lengths_an_arm_that_is_only_shorter_is_no_better():
    # Reward depends on length alone; one arm is short, the other long.
    short = [line(1, 1.0)] * 4 + [line(20, 0.0)]
    long = [line(1, 1.0)] + [line(20, 0.0)] * 4
    assert length_matched(short, long) == 0.0  # plainly they differ by 60 points
    better = [{**one, "reward": 1.0} for one in long]
    assert length_matched(better, short) == 50.0  # one pair of each length
    assert length_matched([line(1, 1.0)], [line(50, 0.0)]) is None


def test_an_answer_without_the_format_is_put_into_it():
    kept = "<think> </think> <answer> 3 </answer>"
    for text in ("2 red, 1 blue. The answer is 3", "<think> 1, 2, 3 </think> 3.", kept, "3"):
        assert in_format(text) == kept
    assert in_format("<think> one <answer> 3") == kept


def test_cues_are_counted_as_in_the_paper(tmp_path):
    (tmp_path / "000000.jsonl").write_text(
        '{"completion": "Wait, wait. Alternatively"}\n{"completion": "against"}\n{"completion'
    )
    cues, count = count_cues(tmp_path)
    assert (count, cues["wait"], cues["alternatively"], cues["again"]) == (2, 1, 1, 1)


def test_the_papers_arms_agree_with_what_it_prints():
    for arm in ARMS:
        if arm.arm == "base":
            assert any(row.cells == arm.cells for row in ROWS)
    for (model, name), average in AVERAGES.items():
        if arm := paper_arm(model, name):
            assert arm.average == pytest.approx(average, abs=0.06)
    for name, printed in (("sft-25k", 32.2), ("sft-126k", 47.0)):
        pairs = [
            (ours, base)
            for model in ("2vl-2b", "2vl-7b", "3b", "7b")
            for ours, base in zip(
                paper_arm(model, name).cells, paper_arm(model, "base").cells, strict=True
            )
        ]
        drops = [100 * (1 - ours / base) for ours, base in pairs]
        assert sum(drops) / len(drops) == pytest.approx(printed, abs=0.3)


def test_the_report_stands_alone_and_escapes_what_it_shows(tmp_path):
    arms = analyse(study(), SETTINGS)
    write_report(arms, {"runs/x": "exit status 1: <script>"}, SETTINGS, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "") and "data:image/png;base64," in page
    rows = list(csv.DictReader((tmp_path / "values.csv").open()))
    one = next(r for r in rows if (r["arm"], r["column"]) == ("grpo", "digit"))
    assert float(one["value"]) == 87.5 and float(one["difference"]) == 37.5
    for name in ("controls.csv", "cues.csv", "report.json", "heldout.png", "curves.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_paper_numbers_stand_beside_ours():
    cells = {}
    for arm in ("base", "grpo"):
        columns = {name: units((0, 1)) for name in COLUMNS}
        cells[Cell("3b", 0, arm)] = Found(Cell("3b", 0, arm), {"benchmarks": columns})
    from vlaa_jax.study.report import paper_rows

    rows = list(paper_rows(analyse(cells, SETTINGS)))
    assert rows[0][:4] == ["3b", "base", "ours, benchmarks", "50.0"]
    assert rows[1][:4] == ["3b", "base", "paper, Table 4", "61.2"]
