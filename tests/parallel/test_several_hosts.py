"""Several processes make the run that one makes; what happens to one of them, all get to know."""

import json
import signal
import time

import pytest

from hosts_case import SILENCE_S, Hosts, metrics, worst_difference
from misbehaving_server import MisbehavingServer
from vlaa_jax.data.synthetic.dataset import write_dataset

TOLERANCE = 1e-5
SFT = [
    "--config=configs/sft.py:tiny",
    "--config.model.dtype=float32",
    "--config.data.tokens_per_row=256",
    "--config.data.rows=8",
    "--config.data.micro_rows=4",
    "--config.run.save_every=1",
    "--config.run.steps=4",
    "--config.run.eval_every=0",
]
GRPO = [
    "--config=configs/grpo.py:tiny",
    "--config.model.dtype=float32",
    "--config.rollout.prompts=8",
    "--config.rollout.completions=2",
    "--config.rollout.max_new_tokens=16",
    "--config.rollout.burst=8",
    "--config.run.save_every=1",
    "--config.run.steps=4",
    "--config.run.eval_every=0",
    "--config.run.eval_completions=1",
    # Prompts move between hosts from rollout to update, and groups are drawn anew.
    "--config.rollout.batch_prompts=8",
    "--config.rollout.prefill_prompts=4",
    "--config.algo.updates_per_rollout=2",
    "--config.algo.micro_prompts=4",
    "--config.algo.dynamic_sampling=1",
    "--config.algo.entropy_coef=0.01",
    "--config.data.embedded_train=40",
    "--config.data.embedded_heldout=5",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def sft(base):
    paths = write_dataset(base / "data", n_train=1, n_heldout=1, n_sft=60)
    return [
        *SFT,
        f"--config.data.records={paths.sft}",
        f"--config.data.validation={paths.sft}",
        f"--config.data.image_root={paths.images}",
    ]


def run(base, name, count, devices, words):
    hosts = Hosts(count, devices, base / name, base / "cache", words)
    codes = hosts.end()
    assert codes == [0] * count, hosts.said()
    return base / name


@pytest.fixture(scope="module")
def alone(base, sft):
    """One process with four devices."""
    return run(base, "alone", 1, 4, sft)


def test_two_hosts_learn_what_one_learns_though_one_of_them_lags(base, sft, alone):
    hosts = Hosts(2, 2, base / "two", base / "cache", sft)
    hosts.until("step    1/")
    hosts.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(3)
    hosts.processes[1].send_signal(signal.SIGCONT)
    assert hosts.end() == [0, 0], hosts.said()
    assert worst_difference(alone, base / "two") <= TOLERANCE
    assert "validation/loss" in metrics(alone)[-1]


def test_a_signal_to_one_of_four_makes_all_leave_and_two_go_on(base, sft, alone):
    hosts = Hosts(4, 1, base / "four", base / "cache", sft)
    hosts.until("step    1/")
    hosts.processes[3].send_signal(signal.SIGTERM)
    assert hosts.end() == [130] * 4, hosts.said()
    left = [line for lines in hosts.lines for line in lines if "host 3: SIGTERM" in line]
    assert len(left) == 4 and len(set(left)) == 1
    done = len(metrics(base / "four"))
    saved = max(int(p.name) for p in (base / "four/checkpoints").iterdir() if p.name.isdigit())
    assert 1 <= done == saved < 4
    # Other processes and another mesh: parameters that were on every device are now cut.
    run(base, "four", 2, 2, [*sft, "--config.mesh.fsdp=4"])
    assert worst_difference(alone, base / "four") <= TOLERANCE


@pytest.mark.parametrize("killed", [0, 1])
def test_hosts_stop_when_one_is_killed_and_the_run_goes_on_alone(base, sft, alone, killed):
    workdir = base / f"killed-{killed}"
    hosts = Hosts(2, 2, workdir, base / "cache", sft)
    hosts.until("step    1/")
    hosts.processes[killed].kill()
    codes = hosts.end(timeout=SILENCE_S + 120)
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] not in (0, None)
    # Who loses the coordinating host 0 is ended by the runtime; a line says what that means.
    words = "host 1 (" if killed else "host 0"
    said = [line for line in hosts.lines[1 - killed] if line.startswith("vlaa_jax: ")]
    assert any(words in line for line in said), hosts.said()
    run(base, workdir.name, 1, 4, sft)
    assert worst_difference(alone, workdir) <= TOLERANCE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config.data.records=nowhere.json", "nowhere.json: does not exist"),
        ("--config.seed=1", "host 1 was started with other settings than host 0 (seed)"),
    ],
)
def test_a_host_that_cannot_go_on_says_why_to_all(base, sft, words, said):
    hosts = Hosts(2, 1, base / "differ", base / "cache", sft, [words])
    assert hosts.end() == [1, 1], hosts.said()
    for lines in hosts.lines:
        own = [line for line in lines if line.startswith("vlaa_jax: ")]
        assert len(own) == 1 and said in own[0], hosts.said()


@pytest.mark.slow
def test_four_hosts_roll_out_score_and_update_as_one_does(base):
    alone = run(base, "grpo-one", 1, 4, GRPO)
    shared = run(base, "grpo-four", 4, 1, GRPO)
    assert worst_difference(alone, shared) <= TOLERANCE
    for step in range(4):
        name = f"rollouts/{step:06d}.jsonl"
        a, b = (
            [json.loads(x) for x in (d / name).read_text().splitlines()] for d in (alone, shared)
        )
        told = ("id", "completion", "reward", "length")
        assert [[x[k] for k in told] for x in a] == [[x[k] for k in told] for x in b]
    assert not list((shared / "rollouts").glob("*.host*"))
    kept = [json.loads((d / "heldout.json").read_text()) for d in (alone, shared)]
    assert kept[0] == kept[1]


def by_length(request):
    items = request["items"]
    return {"results": [{"id": x["id"], "score": len(x["answer"]) % 7 - 3.0} for x in items]}


def slowly(request):
    time.sleep(2)
    return by_length(request)


@pytest.mark.slow
def test_a_host_whose_scorer_is_slow_changes_nothing(base):
    words = [*GRPO, "--config.run.steps=2", "--config.rollout.max_new_tokens=40",
             "--config.rewards.open_ended=score_endpoint",
             "--config.data.verifier_types=('open_ended',)"]  # fmt: skip
    with MisbehavingServer(by_length) as fast, MisbehavingServer(slowly) as slow:
        quick, dull = (f"--config.rewards.endpoint_url={one.url}" for one in (fast, slow))
        one = run(base, "scored-alone", 1, 2, [*words, quick])
        hosts = Hosts(2, 1, base / "scored", base / "cache", [*words, quick], [dull])
        assert hosts.end() == [0, 0], hosts.said()
        assert slow.requests and fast.requests
    assert worst_difference(one, base / "scored") <= TOLERANCE
