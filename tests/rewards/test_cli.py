import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlaa_jax.data.records.parse import Parser
from vlaa_jax.rewards import cli
from vlaa_jax.rewards.cli import FIELDS, read_batches, read_object, read_request, score_lines

COMMAND = [sys.executable, "-m", "vlaa_jax.rewards"]


def run(argument, *options, stdin=b""):
    return subprocess.run([*COMMAND, argument, *options], input=stdin, capture_output=True)


def line(verifier_type="digit", gt="4", answer="4", **fields):
    response = f"<think>t</think><answer>{answer}</answer>"
    return json.dumps({"verifier_type": verifier_type, "gt": gt, "response": response, **fields})


def rows(done):
    return [json.loads(text) for text in done.stdout.splitlines()]


def test_each_line_gets_one_line_in_order(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [
        line(id="a"),
        line(answer="5", id="b"),
        line("mcq", "B", "30°", id=3, question="How large?\nA: 27°\nB: 30°"),
        line("iou", [100, 50, 300, 150], "[100, 50, 300, 150]", image_size=[400, 200],
             box_space="original_pixels"),
        line("math", "2\\sqrt{5}", "\\sqrt{20}"),
        line("open_ended", "a red car", "a red car"),
        line("digit", 4),
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    done = run(str(path), "--open-ended", "text_similarity")
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in rows(done)] == ["a", "b", 3, None, None, None, None]
    assert [round(row["reward"], 1) for row in rows(done)] == [1, 0, 1, 1, 1, 0.9, 1]
    assert list(rows(done)[0]) == ["id", "reward", "parts", "extracted", "verifier_type", "error"]
    assert rows(done)[0]["parts"] == {"raw": 1.0, "format": 1.0}
    assert rows(done)[1]["extracted"] == "5"
    table = done.stderr.decode()
    assert all(name in table for name in ("digit", "mcq", "math", "iou", "open_ended", "mean"))


def test_open_ended_answers_get_null_until_a_backend_is_chosen():
    done = run("-", stdin=line("open_ended", "a red car", "a red car").encode())
    (row,) = rows(done)
    assert row["reward"] is None
    assert row["error"] == "no open-ended backend: choose --open-ended"
    assert done.returncode == 1
    assert "choose --open-ended" in done.stderr.decode()


BAD_LINES = [
    ("nonsense", "not JSON", None),
    ("[1]", "not a JSON object", None),
    ("NaN", "NaN", None),
    ('{"id": "x"}', "'verifier_type' is missing", "x"),
    ('{"id": "x", "verifier_type": "digit", "gt": "4"}', "'response' is missing", "x"),
    ('{"verifier_type": "digit", "gt": "4", "response": 4}', "'response' must be text", None),
    ('{"verifier_type": "digit", "gt": null, "response": "4"}', "'gt'", None),
    ('{"verifier_type": "iou", "gt": NaN, "response": "4"}', "NaN", None),
    (line("iou", [0, 0, 1, 1], image_size=[0, 5]), "'image_size'", None),
    (line("iou", [0, 0, 1, 1], image_size=[10**400, 10]), "digits", None),
    (line("iou", [0, 0, 1, 1], image_size=[10**18, 10]), "'image_size'", None),
    (line("iou", [0, 0, 1, 1], resized_size=[10, 1e300]), "'resized_size'", None),
    (line("iou", [0, 0, 1, 1], image_size=[0.5, 10]), "'image_size'", None),
    (line("iou", [0, 0, 1, 1])[:-1] + ', "image_size": [1e999, 10]}', "too large", None),
    (line("iou", [[[[True]]]]), "'gt'", None),
    (line("digit", {}), "'gt'", None),
    (line("iou", [0, 0, 1, 1], box_space="inches"), "'box_space'", None),
    (line("iou", [0, 0, 1, 1], box_space=[1]), "'box_space'", None),
    (line(id=[1]), "'id'", None),
    (line(images="a.png"), "'images'", None),
    ("[" * 100_000, "nested too deeply", None),
]


@pytest.mark.filterwarnings("ignore")
def test_a_bad_line_is_answered_and_the_rest_go_on(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([text for text, _, _ in BAD_LINES] + [line(id="last")]))
    done = run(str(path))
    assert done.returncode == 1
    answers = rows(done)
    assert len(answers) == len(BAD_LINES) + 1
    for number, ((_, message, identity), row) in enumerate(
        zip(BAD_LINES, answers, strict=False), 1
    ):
        assert row["reward"] is None
        assert f"line {number}: " in row["error"]
        assert message in row["error"], row
        assert row["id"] == identity
    assert answers[-1]["reward"] == 1.0


def test_what_cannot_be_scored_is_null_and_exit_code_one():
    text = "\n".join([line("digit", "many"), line("poetry", "x"), line(), ""])
    done = run("-", stdin=text.encode())
    assert [row["reward"] for row in rows(done)] == [None, None, 1.0]
    assert [bool(row["error"]) for row in rows(done)] == [True, True, False]
    assert rows(done)[0]["parts"]["raw"] is None
    assert done.returncode == 1


def test_fields_that_nobody_reads_are_named_at_the_end():
    text = "\n".join([line(image="a.png", source="vg"), line(answer_box_space="normalized")])
    done = run("-", stdin=text.encode())
    assert done.returncode == 0
    table = done.stderr.decode()
    assert "field 'image' was ignored on 1 lines; did you mean 'images'?" in table
    assert "field 'source' was ignored on 1 lines\n" in table
    assert "field 'answer_box_space' was ignored on 1 lines; did you mean 'box_space'?" in table


def test_an_unreadable_line_counts_in_the_row_of_its_verifier():
    done = run("-", stdin=line("iou", [0, 0, 1, 1], box_space="inches").encode())
    (row,) = rows(done)
    assert row["verifier_type"] == "iou"
    assert row["error"].startswith("standard input line 1: field 'box_space' must be")
    assert "(unreadable)" not in done.stderr.decode()


def test_odd_bytes_and_blank_lines_are_survived():
    body = b"\xef\xbb\xbf" + line(id="bom").encode() + b"\r\n\n  \n"
    body += line(id="bytes", answer="X").encode().replace(b"X", b"\xff\xfe") + b"\n"
    body += line(id="surrogate", answer="\ud800 4").encode() + b"\n"
    body += line(id="separator", answer="4\u2028").encode()
    done = run("-", stdin=body)
    assert [row["id"] for row in rows(done)] == ["bom", "bytes", "surrogate", "separator"]
    assert [row["reward"] for row in rows(done)] == [1.0, 0.0, 1.0, 1.0]


def test_the_answer_comes_before_the_next_line_is_sent():
    with subprocess.Popen([*COMMAND, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:  # fmt: skip
        for name in ("a", "b", "c"):
            child.stdin.write(line(id=name).encode() + b"\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["id"] == name
        child.stdin.close()
        assert child.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/file.jsonl"], "No such file"),
        (["/"], "Is a directory"),
        (["-", "--math-workers", "0"], "--math-workers"),
        (["-", "--open-ended", "score_endpoint"], "set --endpoint-url"),
        (["-", "--beta", "x"], "invalid float"),
        ([], "required"),
    ],
)
def test_a_usage_error_is_one_clear_line_and_exit_code_two(arguments, message):
    done = subprocess.run(COMMAND + arguments, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_an_empty_input_is_fine():
    done = run("-")
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_reader_that_leaves_ends_it_quietly():
    body = "\n".join(line(id=str(i)) for i in range(20_000)).encode()
    with subprocess.Popen([*COMMAND, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:  # fmt: skip
        child.stdout.close()
        try:
            child.stdin.write(body)
            child.stdin.close()
        except BrokenPipeError:
            pass
        child.stdin = None
        assert b"Traceback" not in child.stderr.read()
        child.wait(timeout=20)


def test_an_interrupt_leaves_no_process(tmp_path):
    path = tmp_path / "in.jsonl"
    # Different golds, since equal pairs are compared once: both workers must be at work.
    lines = [line("math", f"x+{n}", "$\\sum_{k=1}^{9^{9^9}} k^k$") for n in range(20)]
    path.write_text("\n".join(lines))
    child = subprocess.Popen(
        [*COMMAND, str(path), "--math-timeout-s", "600"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: len(descendants(child.pid)) == 2, 60)
        family = descendants(child.pid)
        os.killpg(child.pid, signal.SIGINT)  # what a terminal's Ctrl-C does
        errors = child.communicate(timeout=30)[1]
        assert wait_until(lambda: not any(map(alive, family)), 20)
        assert child.returncode == 130
        assert b"Traceback" not in errors
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stderr.close()


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid):
    found = []
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            direct = [int(text) for text in children.read().split()]
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                direct += [int(text) for text in children.read().split()]
    except OSError:
        return found
    for child in set(direct):
        found += [child, *descendants(child)]
    return found


@pytest.mark.parametrize(
    "gold",
    [
        [[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]],
        {"bbox_2d": [0.1, 0.1, 0.5, 0.5], "label": "cup"},
        [{"bbox_2d": [0.1, 0.1, 0.5, 0.5]}],
        "[0.1, 0.1, 0.5, 0.5]",
        0.5,
    ],
)
def test_the_command_and_the_records_read_golds_alike(gold):
    row = read_object(line("math" if gold == 0.5 else "iou", gold).encode())
    said = read_request(row).gt
    assert Parser()({**row, "question": "q", "image": "a.png"}, "x").gt == said


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["digit", "iou", "math", "mcq", "[0,0,1,1]", "<answer>4</answer>", 10**30]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside),
    max_leaves=6,
)  # fmt: skip
objects = st.fixed_dictionaries({}, optional={name: values for name in sorted(FIELDS)})


@settings(max_examples=500, deadline=None, database=None)
@given(objects, st.binary(max_size=20))
def test_whatever_is_in_a_line_each_gets_its_answer(mixed, row, junk):
    good = {"verifier_type": "digit", "gt": 4, "response": "<answer>4</answer>", "id": "good"}
    text = json.dumps(row).encode()
    lines = [text, json.dumps({**good, **row}).encode(), junk, text[:-1] + junk]
    outputs = score_lines([*enumerate([*lines, json.dumps(good).encode()], 1)], mixed)
    assert len(outputs) == 5
    for output, _ in outputs:
        json.dumps(output, allow_nan=False)
        assert (output["reward"] is None) == (output["error"] is not None)
    assert outputs[-1][0]["reward"] == 1.0


def test_a_line_without_end_is_refused_in_bounded_memory(monkeypatch, mixed):
    monkeypatch.setattr(cli, "MAX_LINE_BYTES", 1 << 20)
    reader, writer = os.pipe()
    body = b'{"id": "' + b"x" * (5 << 20) + b'"}\n' + line(id="next").encode()

    def write():
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(body)

    thread = threading.Thread(target=write)
    thread.start()
    batches = [batch for batch in read_batches(reader, limit=3) if batch]
    thread.join()
    os.close(reader)
    numbered = [pair for batch in batches for pair in batch]
    assert len(numbered[0][1]) < 2 << 20
    (long, _), (after, _) = score_lines(numbered, mixed)
    assert "line 1: longer than" in long["error"]
    assert (after["id"], after["reward"]) == ("next", 1.0)


def test_batches_follow_the_reads(tmp_path):
    reader, writer = os.pipe()
    batches = read_batches(reader, limit=3)
    os.write(writer, b"1\n2\n\n4\n5\n6\npart")
    assert next(batches) == [(1, b"1"), (2, b"2"), (4, b"4")]
    assert next(batches) == [(5, b"5"), (6, b"6")]
    os.write(writer, b"ial\n8")
    assert next(batches) == [(7, b"partial")]
    os.close(writer)
    assert list(batches) == [[(8, b"8")]]
    os.close(reader)
