"""Answers made to hang a computer-algebra system, among ordinary ones."""

from pathlib import Path

from vlaa_jax.rewards.mixed import MixedReward, RewardSettings
from vlaa_jax.schema import ScoreRequest

LARGE = [
    "9^{9^{9}}",
    "7^{7^{7^{7}}}",
    "123456789!",
    "\\binom{10^{9}}{4\\cdot10^{8}}",
    "\\sin(9^{9^{9}})",
    "(" * 60 + "3" + ")" * 60,
    "(" * 400 + "3" + ")" * 400,
    "3^{10^{11}}",
    "2" + "^{2" * 100 + "}" * 100,
    "\\sqrt{" * 120 + "2" + "}" * 120,
    "-" * 900 + "1",
    "1+" * 450 + "1",
]
"""Bounded before they are computed: wrong, and at once."""
HANGS = [
    "\\sum_{k=1}^{10^{9}} \\frac{1}{k^{2}}",
    "\\prod_{k=1}^{10^{8}} k",
    "\\int_0^{9^{9^{9}}} x^{9^{9^9}} dx",
    "\\sum_{k=1}^{9^{9^9}} k^k",
]


def test_hangs_fail_with_a_reason_the_rest_is_scored_and_nothing_is_left():
    ordinary = [(f"{n}x+{n + 1}", f"{n + 1}+{n}x", 1.0) for n in range(2, 14)]
    ordinary += [(f"{n}x+{n + 1}", f"{n + 2}+{n}x", 0.0) for n in range(2, 14)]
    rows = []
    for index, row in enumerate(ordinary):
        rows.append(row)
        if index % 2 == 0:
            rows.append(("y^2-1", f"${LARGE[index // 2]}$", 0.0))
        if index % 6 == 0:
            rows.append(("y^2-1", f"${HANGS[index // 6]}$", None))
    requests = [ScoreRequest("math", g, f"<answer>{a}</answer>") for g, a, _ in rows]
    # Long enough for an ordinary comparison on a busy machine.
    with MixedReward(RewardSettings(math_timeout_s=2.0, math_workers=4)) as mixed:
        scores = mixed.score(requests)
        workers = [w.process.pid for w in mixed._verifiers["math"]._pool.workers]
    for (gold, answer, expected), score in zip(rows, scores, strict=True):
        if expected is None:
            assert score.failed, answer
            assert "timed out" in score.error or "MemoryError" in score.error
        else:
            assert score.reward == expected, (gold, answer, score)
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
