"""What people see while jobs run and wait: what each job waits for, what became of a stopped run, the buttons of Monitor."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect
from test_page_train import until
from test_page_verdict import trained

from core import tasks
from core.record.problems import ProblemsError
from tabs.monitor import tab as monitor
from tests.generation.test_run import small_lora

WAITS = re.compile(r"\d:\d\d.*\bfox\b")  # the time left of what is waited for, and its name


def start(engine, page, *names: str) -> list[str]:
    """Trainings in the queue; the first one begins."""
    jobs = [page.project.job.model_copy(deep=True) for _ in names]
    jobs = [job.with_settings(saving={"output_name": name}) for job, name in zip(jobs, names, strict=True)]
    entries = [engine.submit("train", job) for job in jobs]
    assert until(lambda: engine.status()["job"] is not None)
    return entries


@pytest.mark.slow
def test_a_waiting_job_says_what_it_waits_for_wherever_it_was_started(window, served, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "tag", replace(tasks.named("tag"), check=None))  # no tagger is here
    ended = trained(served, "wren")
    for file in (ended.folder / "checkpoints").iterdir():
        small_lora(file)
    served.engine.step_seconds = 3.0
    start(served.engine, served.page, "fox", "owl")
    tab = window.open("Captions")
    card = tab.locator("#tools-captioners [data-act=go]")
    card.click()
    task = tab.locator(".tool-task.waiting")
    expect(task).to_contain_text(WAITS)
    expect(task.locator("progress")).to_be_hidden()
    entry = next(entry for entry in served.engine.queue() if entry.task == "tag")
    card.click()
    expect(tab.locator("#tools-captioners [role=alert]").filter(has_text=WAITS)).to_be_visible()
    expect(tab.locator("#header-waiting")).to_have_text("2 waiting")
    expect(tab.locator("#header-waiting")).to_have_attribute(
        "title", re.compile(rf"owl: .*\bfox\b.*\n{re.escape(entry.title)}: ")
    )
    tab.evaluate("location.hash = '#Train'")
    tab.locator("#forecast-try").click()
    expect(tab.locator("#forecast-tried")).to_contain_text(WAITS)
    tab.locator("#enqueue").click()
    expect(tab.locator("#said")).to_contain_text(WAITS)
    tab.evaluate("location.hash = '#Generate'")
    tab.locator("#gen-draw").click()
    expect(tab.locator("#gen-status .gen-now")).to_contain_text(WAITS)
    tab.evaluate(f"location.hash = '#Monitor/{ended.name}'")
    verdict = tab.locator("#verdict")
    for place, does in ((".verdict-assess .verdict-make", "Assess"), ("> .verdict-make", "Make .* images")):
        verdict.locator(place).get_by_role("button", name=re.compile(does)).click()
        expect(verdict.locator(place)).to_contain_text(WAITS)
    verdict.get_by_role("button", name="Table of all").click()
    expect(tab.locator("#gen-table .grid-head")).to_contain_text(WAITS)
    tab.evaluate("location.hash = '#Monitor'")
    rows = tab.locator("#monitor .queue li.state-waiting .hint")
    expect(rows).to_have_count(7)
    for row in rows.all():
        expect(row).to_contain_text(WAITS)


def runs_of(engine) -> dict[str, str]:
    """{title: the run's folder} of all that have begun."""
    return {entry.title: entry.run for entry in engine.queue() if entry.run}


# Train and back, without a moment in which a timer of the page could run.
THERE_AND_BACK = """async () => {
  for (const name of ["Train", "Monitor"]) {
    const button = [...document.querySelectorAll("#tabs > .tab-wrapper [role=tab]")].find((each) => each.textContent.trim() === name);
    const opened = new Promise((done) => new MutationObserver(done).observe(button, {attributeFilter: ["aria-selected"]}));
    button.click();
    await opened;
  }
}"""


@pytest.mark.slow
def test_a_stopped_run_stays_in_view_while_the_next_one_trains(window, served):
    served.engine.step_seconds = 0.5
    start(served.engine, served.page, "stopped_one", "next_one")
    tab = window.open("Monitor")
    expect(tab.locator("#run-title")).to_have_text("stopped_one")
    tab.locator("#run-actions [data-action=stop]").click()
    expect(tab.locator("#header-job")).to_have_attribute("title", "next_one")
    expect(tab.locator("#run-title")).to_have_text("stopped_one")
    expect(tab.locator("#run-state")).to_have_text("stopped and saved")
    assert tab.evaluate("location.hash") == f"#Monitor/{runs_of(served.engine)['stopped_one']}"
    expect(tab.locator("#said")).to_be_hidden()  # it stands there
    tab.evaluate(THERE_AND_BACK)
    expect(tab.locator("#run-title")).to_have_text("next_one")
    assert tab.evaluate("location.hash") == "#Monitor"


@pytest.mark.slow
def test_a_run_stopped_before_its_first_step_is_not_said_to_be_saved(visit, served):
    served.engine.step_seconds = 30
    start(served.engine, served.page, "early")
    tab = visit().open("Monitor")
    tab.locator("#run-actions [data-action=stop]").click()
    expect(tab.locator("#run-state")).to_have_text("stopped")
    expect(tab.locator("#run-stage")).to_contain_text("No training state was saved")


@pytest.mark.slow
def test_a_run_that_is_stopped_from_another_tab_is_told_of_with_the_way_to_it(window, served):
    served.engine.step_seconds = 0.5
    start(served.engine, served.page, "stopped_two", "next_two")
    tab = window.open("Train")
    expect(tab.locator("#header-job")).to_have_attribute("title", "stopped_two")
    tab.locator("#header-stop").click()
    expect(tab.locator("#said.done")).to_contain_text("stopped_two")
    tab.locator("#said a.btn").click()
    expect(tab.locator("#run-title")).to_have_text("stopped_two")
    expect(tab.locator("#run-state")).to_have_class(re.compile("state-stopped"))
    expect(tab.locator("#said")).to_be_hidden()


@pytest.mark.slow
def test_the_header_leads_to_a_training_that_has_ended_until_it_was_seen(window, served):
    served.engine.step_seconds = 0.01
    start(served.engine, served.page, "just_trained")
    tab = window.open("Train")
    link = tab.locator("#header-trained")
    expect(link).to_have_text("just_trained is trained")
    expect(tab.locator("#header-idle")).to_be_hidden()
    link.click()
    expect(tab.locator("#run-title")).to_have_text("just_trained")
    expect(tab.locator("#verdict")).to_be_visible()
    expect(tab.locator("#header-idle")).to_be_visible()
    tab.evaluate("location.hash = '#Train'")
    expect(link).to_be_hidden()


@pytest.mark.slow
def test_a_stop_that_is_refused_can_be_pressed_again(visit, served, monkeypatch):
    def refuse(entry, only_waiting=False):
        raise ProblemsError.one("This is the job of somebody else", "fox", "ask them", "queue.not-yours")

    served.engine.step_seconds = 0.5
    start(served.engine, served.page, "refused")
    tab = visit().open("Monitor")
    monkeypatch.setattr(served.engine, "cancel", refuse)
    monkeypatch.setattr(served.engine, "command", lambda run, name: refuse(run))
    stop, pause = tab.locator("#header-stop"), tab.locator("#run-actions [data-action=pause]")
    for button, words in ((stop, "Stop"), (pause, "Pause")):
        button.click()
        expect(tab.locator("#said")).to_contain_text("somebody else")
        expect(button).to_be_enabled(timeout=10_000)  # a lost answer is waited for longer
        expect(button.locator("span:not(.off)") if button is pause else button).to_have_text(words)
        tab.get_by_role("button", name="Close this message").click()


OFFERED = {
    "running": ["sample", "save", "pause", "stop"],
    "paused": ["sample", "save", "resume", "stop"],
    "stopped": ["generate", "continue", "settings", "grid"],
}
SHOWN = "[...document.querySelectorAll('#run-actions > :not(.off)')].map((node) => node.dataset.action)"


@pytest.mark.slow
def test_monitor_offers_at_most_four_actions_in_the_same_places_and_none_that_looks_pressable_and_is_not(
    window, served
):
    served.engine.step_seconds, served.engine.sample_every = 0.5, 1000
    start(served.engine, served.page, "four")
    window.tab.set_viewport_size({"width": 390, "height": 900})
    tab = window.open("Monitor")
    rows = {}
    for state, action in (("running", "pause"), ("paused", "resume"), ("running", "stop"), ("stopped", "continue")):
        expect(tab.locator(f"#run-state.state-{state}")).to_be_visible()
        tab.wait_for_function(f"({SHOWN}).sort().join() === {sorted(OFFERED[state])!r}.join()")
        for button in tab.locator("#run-actions > :not(.off)").all():
            box, place = button.bounding_box(), button.get_attribute("data-place")
            assert rows.setdefault(place, (box["x"], box["y"], box["width"])) == (box["x"], box["y"], box["width"])
            assert box["x"] + box["width"] <= 390
        for button in tab.locator("#run-actions > :disabled:not(.off)").all():
            assert button.get_attribute("title"), "a button that does nothing says why"
        tab.mouse.move(2, 2)  # a control that comes under a resting pointer takes no click at once
        tab.locator(f"#run-actions [data-action={action}]").click()
    assert len(rows) == 4


@pytest.mark.slow
def test_a_success_leaves_by_itself_and_with_its_tab_and_covers_no_control_and_not_the_head(window):
    for place in ("Train", "Generate"):
        tab = window.open(place)
        for width in (390, 1400):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.evaluate(SAY)
            expect(tab.locator("#said")).to_be_visible()
            kept = KEPT if width == 390 else f"{KEPT}, {FIELDS}"
            assert until(lambda: tab.evaluate(COVERED, kept) == [], 2), (place, width, tab.evaluate(COVERED, kept))  # noqa: B023 (called here)
            box = tab.locator("#said").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
            assert box["y"] >= 0 and box["y"] + box["height"] <= 900
    tab.locator("#said").wait_for(state="hidden")
    assert 4500 < tab.evaluate("Date.now() - window.at") < 15000
    for more in ({"undo": "1"}, {"notes": ["one"]}):
        tab.evaluate(SAY, more)
        expect(tab.locator("#said")).to_be_visible()
        tab.locator("#tabs > .tab-wrapper [role=tab]").filter(has_text="Train" if "undo" in more else "Runs").click()
        expect(tab.locator("#said")).to_be_hidden()


@pytest.mark.slow
def test_a_message_with_a_list_and_a_file_gives_the_list_its_width(window):
    tab = window.open("Dataset")
    problem = {
        "what": "sd-scripts refuses a bucket step of 16",
        "where": "/home/iris/my/watercolors",
        "fix": "use a multiple of 64",
    }
    problems = [problem | {"level": "advice", "settings": []}]
    tab.evaluate(SAY, {"problems": problems, "link": ["/favicon.ico", "dataset.toml"]})
    said, listed = tab.locator("#said"), tab.locator("#said .problems")
    assert listed.bounding_box()["width"] > 0.9 * said.bounding_box()["width"]


SAY = """(more) => {
  atelier.say({id: `x${Math.random()}`, kind: 'done', text: 'The settings of the run were loaded.', ...more});
  window.at = Date.now();
}"""
KEPT = "#start, #gen-draw, #atelier-header, #tabs > .tab-wrapper"  # a phone's window may be full of fields
FIELDS = ".field, .form, label, input, textarea, select, button:not(#said *), a[href]:not(#said *), summary"
COVERED = """(kept) => {
  const said = document.querySelector('#said').getBoundingClientRect();
  return [...document.querySelectorAll(kept)].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.width && box.left < said.right && box.right > said.left && box.top < said.bottom && box.bottom > said.top;
  }).map((node) => node.id || node.className);
}"""


@pytest.mark.slow
def test_finished_jobs_stand_below_the_trainings_lead_somewhere_and_are_cleared(window, served):
    engine = served.engine
    engine.forget([entry.id for entry in engine.queue()])
    engine.step_seconds = 0.01
    start(engine, served.page, "trained")
    assert until(lambda: [entry.state for entry in engine.queue()] == ["done"])
    engine.pause_queue()
    one = engine.submit("prepare", served.page.project.job, title="prepared")
    two = engine.submit("train", served.page.project.job, title="never_began")
    engine.cancel(one)
    engine.cancel(two)
    tab = window.open("Runs")
    trainings, others = tab.locator("#runs-main table.runs"), tab.locator("#runs-queue .ended li")
    expect(others).to_have_count(2)
    expect(trainings).to_contain_text("trained")
    assert trainings.bounding_box()["y"] < others.first.bounding_box()["y"]
    expect(tab.locator("#runs-queue li.state-cancelled")).to_have_count(2)
    expect(tab.locator("#runs-queue .ended .chip").first).to_have_text("cancelled")
    expect(others.filter(has_text="prepared").locator("a")).to_have_attribute("href", "#Train")
    tab.get_by_role("button", name="Clear never_began").click()
    expect(others).to_have_count(1)
    tab.locator("#runs-queue .queue-clear").click()
    expect(tab.locator("#runs-queue .ended")).to_be_hidden()
    assert [entry.title for entry in engine.queue()] == ["trained"]  # a training stands in Runs


def test_a_stopped_run_that_could_not_be_saved_is_told_of_as_failed(page, monkeypatch):
    browser = page.browsers.of("one")
    browser.stopping.append("a_run")
    facts = {
        "state": "failed",
        "title": "fox",
        "message": "The disk is full",
        "fix": "free some space",
        "files": [],
        "step": 3,
    }
    monkeypatch.setattr(page.engine, "snapshot", lambda run: facts)
    monitor.report_stopped(page, browser, {"tab": "Train"})
    said = browser.message
    assert said["kind"] == "error" and [each["code"] for each in said["problems"]] == ["runs.stop-failed"]
    assert said["open"][0] == "#Monitor/a_run" and browser.stopping == []


@pytest.mark.slow
def test_the_end_of_a_training_is_announced_once_on_any_tab_and_a_message_without_its_buttons(window, served):
    engine = served.engine
    engine.step_seconds = 0.01
    tab = window.open("Captions")
    heard = tab.locator("#heard")
    tab.evaluate("""() => { window.spoken = []; new MutationObserver((all) => all.forEach(({addedNodes}) =>
        addedNodes.forEach((node) => spoken.push(node.textContent)))).observe(document.querySelector('#heard'), {childList: true}); }""")
    start(engine, served.page, "heard_fox")
    expect(heard).to_contain_text("Training heard_fox finished", timeout=30_000)
    tab.evaluate("atelier.say({kind: 'success', text: 'Saved.', open: ['#Runs', 'Open Runs']})")
    expect(heard).to_contain_text("Saved.")
    tab.wait_for_timeout(2500)
    spoken = tab.evaluate("spoken")
    assert [each for each in spoken if "heard_fox" in each] == ["Training heard_fox finished"] and "Saved." in spoken
    assert tab.locator("#said-place[aria-live], #said[role]").count() == 0  # else it is read twice
