"""The traces that the tiny study imitates are what they are said to be."""

from vlaa_jax.data.sources.record_file import load_records
from vlaa_jax.data.synthetic.dataset import write_dataset
from vlaa_jax.pipeline.split import has_aha
from vlaa_jax.rewards.extract import has_strict_structure
from vlaa_jax.study import drawn


def test_traces_are_longer_hesitate_and_are_wrong_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "TRAIN", 1)
    monkeypatch.setattr(drawn, "HELDOUT", 5)
    monkeypatch.setattr(drawn, "SFT", 100)
    drawn.write_drawn(tmp_path)
    base = load_records(write_dataset(tmp_path, n_train=1, n_heldout=5, n_sft=100).sft, kind="sft")
    clean, plain, aha = (
        load_records(tmp_path / name, kind="sft") for name in (drawn.CLEAN, drawn.PLAIN, drawn.AHA)
    )
    assert [r.answer for r in clean] == [r.answer for r in base]
    assert not any(has_aha(r.answer) for r in (*clean, *plain))
    assert all(has_aha(r.answer) for r in aha)
    for some in (plain, aha):
        assert all(has_strict_structure(r.answer) for r in some)
        thoughts = [[r.answer.split("</think>")[0] for r in each] for each in (some, base)]
        assert all(len(a) > 2 * len(b) - 9 for a, b in zip(*thoughts, strict=True))
        answers = [[r.answer.split("</think>")[1] for r in each] for each in (some, base)]
        wrong = sum(a != b for a, b in zip(*answers, strict=True))
        assert 5 <= wrong <= 30  # one in five, some of the stand-ins being right by chance
