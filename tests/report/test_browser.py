"""The page in a real browser: it works, it loads nothing, and texts on it do nothing."""

import shutil
import threading

import pytest
from PIL import Image

from fake_run import make_run
from vlaa_jax.report.page import render, write_report
from vlaa_jax.report.record import RunRecord
from vlaa_jax.report.serve import make_server
from vlaa_jax.schema import Record

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no chromium and chromedriver here (apt-get install chromium chromium-driver)",
)
TEXTS = [
    ["<think> one </think> <answer> 1 </answer>", "two", "<answer> 1 </answer> and on and on"],
    ["<answer> D </answer>", "<answer> A </answer>", "because"],
    ["x", "x", "x"],
    ["<answer> [0.50, 0.43, 0.99, 0.73] </answer>", "here", "there"],
    ["<answer> a red square </answer>", "a needle", "nothing"],
]
HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    '"><svg onload=window.pwned=1>javascript:window.pwned=1'
)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1500,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.implicitly_wait(5)
    yield driver
    driver.quit()


def opened(browser, file, *runs):
    write_report(file, render([RunRecord(run.path) for run in runs]))
    browser.get(file.as_uri())
    return browser


def css(browser, selector):
    return browser.find_elements("css selector", selector)


def one(browser, selector):
    return browser.find_element("css selector", selector)


def texts(browser, selector):
    return [element.text for element in css(browser, selector)]


def script(browser, code, *args):
    return browser.execute_script(f"return {code}", *args)


def set_value(browser, selector, value, event="input"):
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event(arguments[2]))",
        *(one(browser, selector), value, event),
    )


def choose(browser, label, value):
    set_value(browser, f"select[aria-label='{label}']", value, "change")


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """One run of three recorded steps, whose held-out answers changed."""
    run = make_run(tmp_path_factory.mktemp("page") / "tiny")
    for step in range(3):
        run.write(step, [[f"{text} s{step}" for text in group] for group in TEXTS])
    run.write_heldout(0, [["<answer> 1 </answer>"], ["<answer> A </answer>"], *([["x"]] * 3)])
    run.write_heldout(3, [["<answer> 2 </answer>"], ["<answer> D </answer>"], *([["x"]] * 3)])
    rewards = {"reward/mean": [0.1, 0.2, 0.4], "reward/iou": [0.0, 0.1, 0.2]}
    run.write_metrics(**rewards, **{"policy/kl": [0.0, 0.1, 0.1], "x/odd": [1.0, 2.0, 3.0]})
    return opened(browser, run.path / "report.html", run)


@pytest.fixture
def rollouts(page):
    page.execute_script("location.hash = ''")
    page.refresh()
    one(page, "#tab-rollouts").click()
    return page


def test_curves_are_drawn_and_numbers_shown_under_the_pointer(page):
    one(page, "#tab-overview").click()
    assert texts(page, "figcaption")[:2] == ["reward by verifier", "KL to the reference"]
    assert texts(page, "#overview > .charts figure:first-of-type .legend span") == ["iou", "mean"]
    assert len(css(page, "#overview > .charts figure:first-of-type path.curve")) == 2
    point_at(page, "figure svg")
    assert "step1" in one(page, "#tip").text.replace(" ", "")
    assert "0.2" in one(page, "#tip").text


def point_at(browser, selector):
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(one(browser, selector)).perform()


def test_the_slider_goes_through_the_steps(rollouts):
    assert one(rollouts, "#stepname").text == "0 (1 of 3 on the page, 3 recorded)"
    set_value(rollouts, "#step", 2)
    assert one(rollouts, "#stepname").text.startswith("2 (3 of 3")
    assert all("s2" in text for text in texts(rollouts, ".card .text"))


def test_siblings_stand_together_and_groups_without_spread_are_marked(rollouts):
    assert len(css(rollouts, ".group")) == 5
    assert [len(css(group, ".card")) for group in css(rollouts, ".group")] == [3] * 5
    (flat,) = [group for group in css(rollouts, ".group.flat") if "math" in group.text]
    assert "no spread" in flat.text


def cards(browser):
    return texts(browser, "#list > .card .text")


def test_filters_and_search_leave_what_fits(rollouts):
    tick_of(rollouts, "groups").click()
    assert len(cards(rollouts)) == 15
    choose(rollouts, "verifier", "mcq")
    assert len(cards(rollouts)) == 3
    set_value(rollouts, "input[aria-label='reward from']", "0.5")
    assert cards(rollouts) == ["<answer> D </answer> s0"]
    choose(rollouts, "verifier", "")
    set_value(rollouts, "input[aria-label='reward from']", "")
    set_value(rollouts, "input[aria-label=search]", "NEEDLE")
    assert cards(rollouts) == ["a needle s0"]
    set_value(rollouts, "input[aria-label=search]", "")
    tick_of(rollouts, "truncated").click()
    assert cards(rollouts) == []


def tick_of(browser, name):
    (found,) = [label for label in css(browser, ".controls label") if label.text.strip() == name]
    return found.find_element("css selector", "input")


@pytest.mark.parametrize("by", ["reward", "length", "advantage"])
def test_completions_are_sorted(rollouts, by):
    tick_of(rollouts, "groups").click()
    choose(rollouts, "sort", by)
    groups = script(rollouts, "DATA.runs[0].rollouts[0].groups")
    values = {c["text"]: c[by] for group in groups for c in group["completions"]}
    shown = [values[text] for text in cards(rollouts)]
    assert shown == sorted(shown, reverse=True)
    tick_of(rollouts, "highest first").click()
    shown = [values[text] for text in cards(rollouts)]
    assert shown == sorted(shown)


def test_a_sample_shows_image_boxes_tokens_answer_and_reward(rollouts):
    choose(rollouts, "verifier", "iou")
    css(rollouts, ".card")[0].click()
    assert script(rollouts, "document.querySelector('.image img').naturalWidth") > 0
    gold, said = one(rollouts, "rect.gold"), one(rollouts, "rect.predicted")
    box = [float(gold.get_attribute(name)) for name in ("x", "y", "width", "height")]
    assert box == pytest.approx([0.60, 0.43, 0.39, 0.30])
    assert float(said.get_attribute("x")) == 0.5
    image, drawn = one(rollouts, ".image img").rect, gold.rect
    assert drawn["x"] - image["x"] == pytest.approx(0.60 * image["width"], abs=3)
    answer = script(
        rollouts,
        "[...document.querySelectorAll('.tokens .answer')].map(s => s.textContent).join('')",
    )
    assert answer.strip() == "[0.50, 0.43, 0.99, 0.73]"
    facts = one(rollouts, ".facts").text
    assert "reward paid 0.7959" in facts
    assert "raw, before shaping" in facts
    assert "advantage 0.5306" in facts


def test_tokens_are_coloured_by_each_number_and_say_it_under_the_pointer(rollouts):
    completion = script(rollouts, "DATA.runs[0].rollouts[0].groups[0].completions[0]")
    for key in ("sampler", "entropy", "gap", "ratio"):
        choose(rollouts, "colour", key)
        painted = [
            span.value_of_css_property("background-color") for span in css(rollouts, ".tokens span")
        ]
        assert len(set(painted)) > 3
        assert len(css(rollouts, ".scale i")) == 9
        column = completion[key]
        largest = max(range(len(column)), key=lambda i: abs(column[i] - (key == "ratio")))
        alphas = [float(colour.split(",")[-1].strip(" )")) for colour in painted]
        assert alphas[largest] == max(alphas)
    point_at(rollouts, ".tokens span[data-i='1']")
    said = one(rollouts, "#tip").text
    for name in ("log-prob, sampler", "log-prob, trainer", "gap", "ratio", "entropy"):
        assert name in said
    assert f"{completion['entropy'][1]:.4g}" in said


def test_heldout_answers_stand_side_by_side_with_what_flipped(page):
    one(page, "#tab-heldout").click()
    options = texts(page, "select[aria-label=flips] option")
    assert options == ["all records", "wrong to right (1)", "right to wrong (1)"]
    assert len(css(page, "#records button")) == 5
    choose(page, "flips", "up")
    (record,) = texts(page, "#records button")
    assert "mcq" in record
    assert record.endswith("0 → 1")
    assert texts(page, ".pair h3") == ["after 0 steps", "after 3 steps"]
    assert ["A" in t for t in texts(page, ".pair .tokens")] == [True, False]


def test_two_runs_are_overlaid_and_their_settings_compared(browser, tmp_path):
    runs = [make_run(tmp_path / name, lr=lr) for name, lr in (("a", 1e-3), ("b", 2e-3))]
    for n, run in enumerate(runs):
        run.write_metrics(**{"policy/kl": [0.0, 0.1 + n]})
        run.write(0, [[f"{text} r{n}" for text in group] for group in TEXTS])
    opened(browser, tmp_path / "both.html", *runs)
    assert texts(browser, ".legend span") == ["kl · a", "kl · b"]
    assert len(css(browser, "path.curve")) == 2
    one(browser, "#tab-settings").click()
    rows = [row for row in texts(browser, "#settings tr") if row != "a b"]
    assert rows == ["optimizer.lr 0.001 0.002"]
    tick_of_settings = one(browser, "#settings input")
    tick_of_settings.click()
    assert len(css(browser, "#settings tr")) > 50
    assert len(css(browser, "tr.differs")) == 1
    one(browser, "#tab-rollouts").click()
    choose(browser, "run", "1")
    assert all("r1" in text for text in texts(browser, ".card .text"))


def test_the_live_page_says_when_there_is_more(browser, run):
    run.write(0, TEXTS)
    record = RunRecord(run.path)
    with make_server([record], lambda: render([record], live=True)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_address[1]}/")
        one(browser, "#tab-rollouts").click()
        assert not one(browser, "#news").is_displayed()
        run.write(1, TEXTS)
        until(lambda: one(browser, "#news").is_displayed())
        one(browser, "#news").click()
        until(lambda: "1 of 2" in one(browser, "#stepname").text)
        server.shutdown()


def until(condition, seconds=30):
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def visit_everything(browser):
    for tab in ("overview", "rollouts", "heldout", "settings"):
        one(browser, f"#tab-{tab}").click()
        click_all = "document.querySelectorAll('.card, .record, summary')[arguments[0]].click()"
        for number in range(len(css(browser, ".card, .record, summary"))):
            script(browser, click_all, number)
        for selector in (".tokens span", "figure svg"):
            if css(browser, selector):
                point_at(browser, selector)
        yield script(browser, "document.body.innerText")


def test_a_run_without_steps_or_rollouts_has_a_page_too(browser, run):
    opened(browser, run.path / "report.html", run)
    browser.get_log("browser")
    shown = list(visit_everything(browser))
    assert "no step is done yet" in shown[0]
    assert "no rollouts were recorded" in shown[1]
    run.write_heldout(0, [group[:1] for group in TEXTS])
    opened(browser, run.path / "report.html", run)
    for text in visit_everything(browser):
        assert "not in the loss" not in text
    assert browser.get_log("browser") == []


def test_texts_of_models_and_data_do_nothing(browser, tmp_path):
    run = make_run(tmp_path / HOSTILE.replace("/", "∕"))
    folder = run.path / "data" / "images"
    name = HOSTILE.replace("/", "∕") + ".png"
    Image.new("RGB", (40, 30), "red").save(folder / name)
    run.records = [
        Record(f"{n}{HOSTILE}", HOSTILE, (name,), gt=HOSTILE, verifier_type=kind)
        for n, kind in enumerate(("digit", "open_ended", HOSTILE, "mcq", "math"))
    ]
    hostile = [[f"<answer>{HOSTILE}</answer>", HOSTILE, "x"] for _ in run.records]
    run.write(0, hostile)
    run.write_heldout(0, hostile)
    run.write_metrics(**{f"reward/{HOSTILE}": [0.0, 1.0]})
    opened(browser, tmp_path / "page.html", run)
    browser.get_log("browser")
    shown = "".join(visit_everything(browser))
    assert shown.count("window.pwned=1") > 50  # as text
    assert script(browser, "window.pwned") is None
    assert script(browser, "document.querySelectorAll('script').length") == 2
    fetched = script(browser, "performance.getEntriesByType('resource').map(e => e.name)")
    assert [url for url in fetched if not url.startswith("data:")] == []
    assert browser.get_log("browser") == []


def test_the_hostile_text_would_act_as_markup(browser, tmp_path):
    """What the test above relies on."""
    page = tmp_path / "naive.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><script>'{HOSTILE}'</script>")
    browser.get(page.as_uri())
    until(lambda: script(browser, "window.pwned") == 1)
