"""The page as a file, the command line and the server: what fits, what is escaped, who may ask."""

import http.client
import json
import re
import threading

import numpy as np
import pytest

from fake_run import TINY, TOKENIZER, make_run
from vlaa_jax.report.cli import main
from vlaa_jax.report.contents import column, dump, run_contents, spread
from vlaa_jax.report.page import leave_report, render
from vlaa_jax.report.pieces import Pieces, covered
from vlaa_jax.report.record import RunRecord
from vlaa_jax.report.serve import make_server
from vlaa_jax.rewards.iou import Frame, boxes_on_image

HOSTILE = "</script><script>window.pwned=1</script><!--<img src=x onerror=window.pwned=1>"
TEXTS = [["<answer> 1 </answer>"], ["<answer> A </answer>"], ["x"], ["y"], ["z"]]
LATER = [["<answer> 2 </answer>"], ["<answer> D </answer>"], ["x"], ["y"], ["z"]]


def data_of(page):
    (found,) = re.findall(rb'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found)


def hostile(run):
    first = run.records[0]
    run.records[0] = first.__class__(
        HOSTILE, HOSTILE, (HOSTILE,), gt=HOSTILE, verifier_type=HOSTILE, box_space=HOSTILE
    )
    run.write(0, [[f"<answer>{HOSTILE}</answer>"], *TEXTS[1:]])
    run.write_metrics(**{"reward/mean": [0.1, 0.2], f"x/{HOSTILE}": [1.0, 2.0]})


def test_no_text_can_end_the_element_it_stands_in(run):
    hostile(run)
    page = render([RunRecord(run.path)])
    assert page.count(b"<script") == page.count(b"</script>") == 2
    assert page.count(b"<!--") == 0
    group = data_of(page)["runs"][0]["rollouts"][0]["groups"][0]
    assert group["question"] == group["id"] == group["gold"] == HOSTILE
    assert group["completions"][0]["extracted"] == HOSTILE


def test_a_lone_surrogate_and_line_separators_are_escaped(run):
    run.records[0] = run.records[0].__class__("\udc80\u2028", "?", (), "1", "digit")
    run.write(0, TEXTS)
    page = render([RunRecord(run.path)])
    page.decode("utf-8")
    assert "\u2028".encode() not in page
    assert data_of(page)["runs"][0]["rollouts"][0]["groups"][0]["id"] == "\udc80\u2028"


def test_the_page_names_nothing_outside_of_itself(run):
    run.write(0, TEXTS)
    page = render([RunRecord(run.path)]).decode()
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|<link|<iframe|innerHTML|insertAdjacent|\beval\b", page)
    assert "default-src 'none'" in page
    assert "connect-src 'none'" in page


@pytest.mark.parametrize(("most", "steps"), [(1_000_000, [0, 4, 7, 11]), (3_000_000, range(12))])
def test_a_page_keeps_to_its_size_and_says_what_it_left_out(run, most, steps):
    rng = np.random.default_rng(0)
    words = ["<answer> circle </answer>", "left", "<think>", "of", "red"]
    for step in range(12):
        texts = [[" ".join(rng.choice(words, 150)) for _ in range(4)] for _ in range(20)]
        run.write(step, texts, records=run.records * 4)
    page = render([RunRecord(run.path)], max_bytes=most)
    assert 0.5 * most < len(page) <= most
    only = data_of(page)["runs"][0]
    assert only["steps"] == 12
    assert [step["step"] for step in only["rollouts"]] == list(steps)
    for step in only["rollouts"]:
        kinds = [group["kind"] for group in step["groups"]]
        assert step["total"] == 20
        assert 0 < len(kinds) < 20
        assert len(set(kinds)) == min(5, len(kinds))


def test_steps_are_spread_from_first_to_last():
    assert spread(range(5), 9) == [0, 1, 2, 3, 4]
    assert spread(range(100), 4) == [0, 33, 66, 99]


def test_records_that_changed_sides_come_first(run):
    run.write_heldout(0, TEXTS)
    run.write_heldout(9, LATER)
    found = run_contents(RunRecord(run.path), 10**6)
    turned = {flip["id"]: (flip["before"], flip["after"]) for flip in found["flips"]}
    assert turned == {run.records[0].id: (1.0, 0.0), run.records[1].id: (0.0, 1.0)}
    assert [answers["step"] for answers in found["answers"]] == [0, 9]
    for answers in found["answers"]:
        assert [group["group"] for group in answers["groups"]] == [0, 1, 2, 3, 4]


def test_groups_that_were_paid_alike_are_marked(run):
    texts = [["<answer> 1 </answer>", "x"], *([["x", "y"]] * 4)]
    run.write(0, texts)
    groups = run_contents(RunRecord(run.path), 10**6)["rollouts"][0]["groups"]
    assert [group["flat"] for group in groups] == [False, True, True, True, True]


def test_an_image_that_cannot_be_read_is_left_out(run):
    run.write(0, TEXTS)
    (run.path / "data" / "images" / run.records[0].images[0]).write_bytes(b"<svg onload=alert(1)>")
    run.records[1] = run.records[1].__class__("up", "?", ("../../config.json",), "1", "digit")
    run.write(1, TEXTS)
    found = run_contents(RunRecord(run.path), 10**6)
    places = {group["id"]: group["images"] for group in found["rollouts"][1]["groups"]}
    unread = {name for name, images in places.items() if images == [None]}
    assert unread == {run.records[0].id, "up"}
    assert all(re.match("data:image/(png|jpeg);base64,", image) for image in found["images"])


@pytest.mark.parametrize(
    ("space", "box"),
    [
        ("normalized", "[0.25, 0.5, 0.75, 1.0]"),
        ("original_pixels", "[50, 50, 150, 100]"),
        ("resized_pixels", "[25, 20, 75, 40]"),
        ("normalized_square", "[0.25, 0.5, 0.75, 0.75]"),  # 200 x 100 in the middle of 200 x 200
    ],
)
def test_boxes_are_drawn_where_their_space_puts_them(space, box):
    sizes = {"image_size": (200, 100), "resized_size": (100, 40)}
    said, gold = boxes_on_image(box, "[0, 0, 1, 1]", Frame(space, **sizes))
    assert np.allclose(said, [[0.25, 0.5, 0.75, 1.0]])
    said, gold = boxes_on_image("none", box, Frame(space, **sizes))
    assert (said, np.allclose(gold, [[0.25, 0.5, 0.75, 1.0]])) == ([], True)


@pytest.mark.parametrize("text", ["", "a 🤔 b", "<answer>\n ä 漢字 </answer>", "🤔" * 9, "\ufffd?"])
def test_pieces_of_a_text_make_up_the_text(text):
    ids = [*TOKENIZER.encode(text).ids, TOKENIZER.token_to_id("<|im_end|>")]
    texts, special = Pieces(TINY / "tokenizer.json")(ids, TOKENIZER.decode(ids))
    assert len(texts) == len(ids)
    assert texts[-1] == "<|im_end|>"
    assert special == [False] * (len(ids) - 1) + [True]
    assert "".join(texts[:-1]) == text


def test_the_answers_tokens_are_those_that_overlap_it():
    assert covered(["<a>", " ", "1", "2", " </a>"], [False] * 5, (4, 6)) == [2, 4]
    assert covered(["<a> 1", "2 </a>"], [False] * 2, (4, 6)) == [0, 2]
    assert covered(["", "1", "!!"], [False, False, True], (0, 1)) == [1, 2]
    assert covered(["x"], [False], None) is None


def test_unknown_ids_and_texts_of_another_tokenizer_have_no_pieces(tmp_path):
    pieces = Pieces(TINY / "tokenizer.json")
    for ids in ([-1], [2**31 - 1]):
        assert pieces(ids, "") is None
    assert pieces(TOKENIZER.encode("a").ids, "b") is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Pieces(tmp_path / "tokenizer.json")([1], "a") is None


def test_columns_are_short_and_hold_no_number_that_json_has_not():
    assert column(np.array([1.0, 1.0])) == 1.0
    assert column(np.array([np.nan, -np.inf, 1.23456e-7])) == [None, None, 1.235e-7]
    assert json.loads(dump({"a": "</&>\u2028"})) == {"a": "</&>\u2028"}


def test_the_end_of_a_run_is_no_place_to_fail(run, tmp_path):
    assert leave_report(tmp_path / "none").startswith("no report: ")
    run.write(0, TEXTS)
    (run.path / "rollouts" / "000000.npz").write_bytes(b"no")
    line = leave_report(run.path)
    assert line.startswith("no report: ")
    assert "000000.npz" in line
    (run.path / "rollouts" / "000000.npz").unlink()
    assert leave_report(run.path) == f"report  {run.path / 'report.html'}"


def test_the_command_writes_two_runs_into_one_page(run, tmp_path, capsys):
    other = make_run(tmp_path / "other", lr=5e-4)
    for one in (run, other):
        one.write(0, TEXTS)
        one.write_metrics(**{"reward/mean": [0.0, 0.5]})
    out = tmp_path / "both.html"
    assert main([str(run.path), str(other.path), f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    left, right = data_of(out.read_bytes())["runs"]
    differing = {k for k, v in left["settings"].items() if right["settings"][k] != v}
    assert differing == {"optimizer.lr"}
    assert left["metrics"]["reward/mean"] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["{tmp}"], "no run directory"),
        (["{run}"] * 5, "4 at most"),
        (["{run}", "--max-mb=0"], "--max-mb"),
        (["{run}", "--serve", "--port=99999"], "--port"),
        (
            ["{run}", "--out={tmp}/no/such/page.html"],
            "No such file or directory; the page is not written",
        ),
    ],
)
def test_what_cannot_be_done_gets_one_line(run, tmp_path, capsys, args, words):
    assert main([arg.format(run=run.path, tmp=tmp_path) for arg in args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.fixture
def server(run):
    run.write(0, TEXTS)
    record = RunRecord(run.path)
    with make_server([record], lambda: render([record], live=True)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def ask(server, path="/", host=None):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_a_live_run_is_shown_as_it_is_now(run, server):
    assert server.server_address[0] == "127.0.0.1"
    status, page = ask(server)
    assert (status, len(data_of(page)["runs"][0]["rollouts"])) == (200, 1)
    assert b"connect-src 'self'" in page
    before = ask(server, "/state")
    run.write(1, TEXTS)
    assert ask(server, "/state") != before
    assert len(data_of(ask(server)[1])["runs"][0]["rollouts"]) == 2


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost"])
def test_other_names_of_this_machine_are_refused(server, host):
    assert ask(server, host=host)[0] == 403


@pytest.mark.parametrize("path", ["/../config.json", "/config.json", "//etc/passwd", "/?x"])
def test_the_server_has_no_files(server, path):
    assert ask(server, path)[0] == 404


def test_a_damaged_run_is_told_and_the_server_stays(run, server):
    (run.path / "rollouts" / "000000.npz").write_bytes(b"no")
    (run.path / "metrics.jsonl").write_text("")
    assert ask(server)[0] == 503
    run.write(0, TEXTS)
    assert ask(server)[0] == 200
