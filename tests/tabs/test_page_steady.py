"""What a person aims at stays where it is: Back stays in the page, messages push nothing, buttons keep their places."""

from __future__ import annotations

import re

import pytest
from page_server import GO_ON, HOLD, PLACES, WATCH
from playwright.sync_api import expect
from test_overtaking import slowly
from test_page_train import until


def open_tab(tab, name: str) -> None:
    tab.get_by_role("tab", name=name, exact=True).first.click()
    at(tab, name)


def at(tab, name: str) -> None:
    expect(tab.get_by_role("tab", name=name, exact=True).first).to_have_attribute("aria-selected", "true")
    expect(tab).to_have_url(re.compile(f"#{name}(/|$)"))


@pytest.mark.slow
def test_back_and_forward_go_through_the_tabs_and_stay_in_the_page(window, served, monkeypatch):
    slowly(monkeypatch, served.engine, "snapshot", 0.5)
    tab = window.open()
    length = tab.evaluate("history.length")
    for name in ("Monitor", "Tools", "Runs"):
        open_tab(tab, name)
    for name in ("Tools", "Monitor", "Train"):
        tab.evaluate("history.back()")
        at(tab, name)
        tab.wait_for_timeout(700)  # the page writes its address twice a second: that must not undo the way back
        at(tab, name)
    for name in ("Monitor", "Tools"):
        tab.evaluate("history.forward()")
        at(tab, name)
    assert tab.evaluate("history.length") == length + 3
    tab.evaluate("history.go(-2)")
    at(tab, "Train")
    open_tab(tab, "Monitor")
    assert tab.evaluate("history.length") == length + 1


@pytest.mark.slow
def test_back_goes_from_one_chosen_run_to_the_one_before_not_to_one_that_is_gone_and_no_control_takes_its_keys(
    visit, served
):
    window = visit()
    served.engine.step_seconds = 0.01
    tab = window.open()
    for _ in range(2):
        before = len(served.engine.run_states(200))
        tab.locator("#start").click()
        assert until(
            lambda before=before: (
                len(served.engine.run_states(200)) > before
                and all(entry.state not in ("waiting", "running") for entry in served.engine.queue())
            )
        )
        at(tab, "Monitor")  # the start leads there, late on a busy machine
        open_tab(tab, "Train")
    open_tab(tab, "Monitor")
    names = [run.name for run in served.engine.run_states(2)]
    expect(tab.locator(f"#run-choice option[value='{names[0]}']")).to_have_count(1)
    for name in names:
        tab.locator("#run-choice").select_option(name)
        expect(tab).to_have_url(re.compile(re.escape(name)))
    tab.evaluate("history.back()")
    expect(tab).to_have_url(re.compile(re.escape(names[0])))
    expect(tab.locator("#run-choice")).to_have_value(names[0])
    tab.evaluate("history.back()")
    expect(tab).to_have_url(re.compile("#Monitor$"))
    expect(tab.locator("#run-choice")).to_have_value("")
    for _ in range(2):  # the second time too
        tab.evaluate("location.hash = 'Monitor/20200101-000000_none'")
        expect(tab.locator("#said")).to_be_visible()
        expect(tab).to_have_url(re.compile("#Monitor$"))
        tab.get_by_role("button", name="Close this message").click()
    expect(tab.locator("#loss-chart path.smooth")).to_have_attribute("d", re.compile("M.*L"))
    taken = """(node) => !node.dispatchEvent(
        new KeyboardEvent("keydown", {key: "ArrowLeft", altKey: true, bubbles: true, cancelable: true}))"""
    for place in ("#loss-chart svg", "#tabs [role=tab]", "body"):
        assert not tab.locator(place).first.evaluate(taken), place
    open_tab(tab, "Captions")
    assert not tab.locator("body").evaluate(taken)


@pytest.mark.slow
def test_a_message_and_the_problems_of_a_missing_folder_push_nothing(window, served):
    for width in (1280, 390):
        tab = window.open()
        tab.set_viewport_size({"width": width, "height": 800})
        expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
        before = tab.evaluate(PLACES, "#start, #enqueue, #check, .first .field, #tabs [role=tab]")
        assert len(before) > 10
        say = "(kind) => atelier.say({id: kind + Math.random(), kind, title: 'Not done', text: 'word '.repeat(300)})"
        for kind in ("error", "done"):
            tab.evaluate(say, kind)
            expect(tab.locator("#said")).to_be_visible()
            assert tab.evaluate(PLACES, "#start, #enqueue, #check, .first .field, #tabs [role=tab]") == before
            said, start = tab.locator("#said").bounding_box(), tab.locator("#start").bounding_box()
            assert said["x"] >= 0 and said["x"] + said["width"] <= width and said["y"] > 0.4 * 800
            beside = said["x"] + said["width"] < start["x"] or said["y"] > start["y"] + start["height"]
            assert beside or said["y"] + said["height"] < start["y"], "Start is covered"
        tab.locator("#said").get_by_role("button", name="Close this message").click()
        assert tab.evaluate(PLACES, "#start, #enqueue, #check, .first .field, #tabs [role=tab]") == before
    tab.set_viewport_size({"width": 1280, "height": 800})
    expect(tab.locator("#said")).to_be_hidden()
    tab.evaluate(WATCH, ["#start", "#enqueue", "#check", "#preflight"])
    served.page.project.edit("dataset.folder", "/no/such/folder")
    expect(tab.locator("#preflight-first .problem").first).to_be_visible()
    assert tab.evaluate("movedBy()") == {}
    tab.evaluate("scrollTo(0, 700)")
    expect(tab.locator("#start")).to_be_in_viewport(ratio=1)  # with what speaks against it


HEADER = "#atelier-header > :not(.skip, .job), #header-stop, #header-device, #tabs [role=tab]"


@pytest.mark.slow
def test_a_job_that_begins_moves_nothing_in_the_header_at_any_width(visit, served):
    tab = visit().open()
    served.engine.step_seconds = 2.0

    def places():
        found = {}
        for width in (1280, 1100, 800, 390):
            tab.set_viewport_size({"width": width, "height": 800})
            found[width] = tab.evaluate(PLACES, HEADER) | {
                "wide": tab.evaluate("document.body.scrollWidth > innerWidth")
            }
            found[width].pop("header-project")
        return found

    expect(tab.locator("#header-idle:visible, #header-trained:visible")).to_have_count(1)
    idle = places()
    served.engine.submit("train", served.page.project.job, title="a name of many words " * 9)
    expect(tab.locator("#header-job")).to_be_visible()
    tab.evaluate("document.querySelector('#header-job').textContent = 'word '.repeat(40)")
    assert places() == idle and not any(place["wide"] for place in idle.values())
    assert tab.locator("#header-stop").is_visible()
    accent = tab.locator("#start").evaluate("(node) => getComputedStyle(node).backgroundColor")
    assert accent not in tab.evaluate(DISABLED), "a disabled button has no accent color"


DISABLED = """() => ['btn primary', 'lg primary'].map((name) => {
  const node = Object.assign(document.createElement('button'), {className: name, disabled: true});
  document.querySelector('.gradio-container').append(node);
  const color = getComputedStyle(node).backgroundColor;
  node.remove();
  return color;
})"""


@pytest.mark.slow
def test_a_real_start_on_a_slow_server_shows_the_new_run_as_beginning_and_never_the_last_one(
    visit, served, monkeypatch
):
    served.engine.step_seconds = 0.01
    tab = visit().open()
    tab.locator("#start").click()
    expect(tab.locator("#run-state")).to_have_text("done")
    open_tab(tab, "Train")
    served.engine.step_seconds = 0.3
    slowly(monkeypatch, served.engine, "snapshot", 1.0)
    slowly(monkeypatch, served.engine, "queue", 0.1)
    tab.locator("#field-saving-output-name").locator("textarea, input").first.fill("slow_one")
    tab.locator("#start").click()
    at(tab, "Monitor")
    expect(tab.locator("#run-title")).to_have_text("slow_one")
    expect(tab.locator("#run-state")).to_have_text("training")


@pytest.mark.slow
def test_a_changed_value_moves_no_field(visit, served):
    tab = visit().open()
    expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
    ids = tab.evaluate(
        "[...document.querySelectorAll('.first .field, #search-bar, #start, .group')].map((node) => `#${node.id}`)"
    )
    assert len(ids) > 15
    tab.evaluate(WATCH, ids)
    for name, value in (("saving-output-name", "other"), ("dataset-train-batch-size", "3"), ("network-rank", "15")):
        one = tab.locator(f"#field-{name}").locator("textarea, input").first
        one.fill(value)
        one.press("Tab")
        expect(tab.locator(f"#field-{name} .field-changed")).to_be_visible()
    batch = tab.locator("#field-dataset-train-batch-size")
    batch.locator("textarea, input").first.fill("many")
    batch.locator("textarea, input").first.press("Tab")
    expect(batch.locator(".refused")).to_contain_text("'many'")
    expect(batch.locator(".field-changed")).to_contain_text("Not used")
    # Tab leads to the button that puts the value back
    tab.locator("#search-bar input").first.evaluate("(box) => box.focus({preventScroll: true})")
    tab.mouse.move(2, 2)
    assert batch.locator(".refused").bounding_box()["height"] <= 1
    batch.hover()
    place, field = batch.locator(".refused").bounding_box(), batch.bounding_box()
    assert place["y"] >= field["y"] + field["height"] and place["height"] > 20
    tab.locator("#field-network-rank .field-changed button").click()
    expect(tab.locator("#field-network-rank .field-changed")).to_have_count(0)
    assert tab.evaluate("movedBy()") == {}


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1366])
def test_a_changed_value_of_generate_moves_no_field(visit, served, width):
    tab = visit().open("Generate")
    tab.set_viewport_size({"width": width, "height": 900})
    expect(tab.locator("#gen-sampler")).to_be_visible()
    fields = [f"#gen-{name}" for name in ("count", "compare", "steps", "guidance_scale", "seed", "sampler")]
    tab.evaluate(WATCH, [*fields, "#gen-draw", "#gen-status", "#gen-add"])
    for name, value in (("count", "12"), ("steps", "30"), ("guidance_scale", "7.25"), ("seed", "4294967295")):
        tab.locator(f"#gen-{name}").fill(value)
        tab.locator(f"#gen-{name}").press("Tab")
        expect(tab.locator(f"label.is-own:has(#gen-{name}), .is-own #gen-{name}").first).to_be_visible()
    tab.locator("#gen-compare").check()
    tab.locator("#gen-sampler").select_option(index=2)
    tab.locator("#gen-count").fill("1")
    tab.locator("#gen-count").press("Tab")
    expect(tab.locator("label.is-own:has(#gen-count)")).to_have_count(0)
    assert tab.evaluate("movedBy()") == {}
    served.page.project.keep("Generate", {})


def gone(engine) -> set[str]:
    return {entry.id for entry in engine.queue() if entry.state not in ("waiting", "running")}


@pytest.mark.slow
def test_the_keyboard_stays_on_a_button_whose_list_is_drawn_anew(visit, served):
    engine = served.engine
    engine.pause_queue()
    ids = [engine.submit("train", served.page.project.job, title=f"job {number}") for number in range(4)]

    def order() -> list[str]:
        return [entry.id for entry in engine.queue() if entry.state == "waiting"]

    tab = visit().open("Monitor")
    tab.get_by_role("button", name="Move job 0 down").focus()
    for place in (1, 2):
        expect(tab.get_by_role("button", name="Move job 0 down")).to_be_focused()
        expect(tab.get_by_role("button", name="Move job 0 down")).to_be_enabled()
        tab.keyboard.press("Enter")
        assert until(lambda place=place: order()[place] == ids[0])


@pytest.mark.slow
def test_a_second_click_never_hits_the_next_job_that_slides_there(window, served):
    engine = served.engine
    engine.step_seconds = 0.5
    # All fits: a shorter list does not scroll the page back
    window.tab.set_viewport_size({"width": 1280, "height": 2400})
    tab = window.open("Monitor")
    ids = [engine.submit("train", served.page.project.job, title="the same name") for _ in range(6)]

    def press(place: str, first: str) -> None:
        """Click what is first there until the job is gone and the next one has its place, then click once more."""
        expect(tab.locator(place).first).to_be_enabled()
        tab.locator(place).first.scroll_into_view_if_needed()
        box = tab.locator(place).first.bounding_box()
        tab.mouse.move(0, 0)
        tab.evaluate(HOLD)
        tab.mouse.click(box["x"] + 5, box["y"] + 5)
        assert until(lambda: first in gone(engine))
        left = len(engine.queue()) - len(gone(engine))
        tab.wait_for_function(
            "([place, first]) => { const node = document.querySelector(place); return node && !node.disabled && "
            "(node.dataset.entry || node.dataset.arg) !== first; }",
            arg=[place, first],
        )
        tab.mouse.click(box["x"] + 5, box["y"] + 5)
        tab.wait_for_timeout(300)
        assert len(engine.queue()) - len(gone(engine)) == left, "the next job was cancelled"
        tab.evaluate(GO_ON)

    waiting = "#monitor .queue button[aria-label^='Cancel']:not(.off)"
    expect(tab.locator(waiting)).to_have_count(5)
    press(waiting, ids[1])

    def press_later() -> bool:
        """A moment later it is what the person sees; on a busy machine the moment begins when the browser has looked."""
        tab.wait_for_timeout(700)
        tab.mouse.down()
        tab.mouse.up()
        return until(lambda: ids[2] in gone(engine), 10)

    assert press_later() or press_later()
    press("#header-stop", ids[0])
    open_tab(tab, "Runs")
    press("#runs-queue .queue button[aria-label^='Cancel']:not(.off)", ids[4])


@pytest.mark.slow
def test_what_a_flick_of_the_page_brings_under_the_pointer_takes_a_click_at_once_and_what_comes_later_by_itself_none(
    visit,
):
    window = visit()
    tab = window.open("Train")
    tab.evaluate("""() => {
      document.body.innerHTML = '<div style="height: 900px">rest</div>' + '<button style="height: 900px; width: 100%">first</button>'
        + '<button style="height: 900px; width: 100%">second</button><div style="height: 2000px"></div>';
      document.body.addEventListener("click", ({target}) => { document.title = target.textContent; });
      window.clock = performance.now();
      performance.now = () => window.clock;
      document.title = "none";
    }""")

    def scroll(top: int, later: int) -> None:
        tab.evaluate("""([top, later]) => new Promise((done) => {
          window.clock += later;
          addEventListener("scroll", () => setTimeout(done, 250), {once: true});  // the page has looked twice since
          scrollTo(0, top);
        })""", [top, later])  # fmt: skip

    def press() -> str:
        tab.mouse.down()
        tab.mouse.up()
        return tab.title()

    tab.mouse.move(300, 300)
    tab.mouse.wheel(0, 20)
    tab.wait_for_function("scrollY > 0")
    for top in (200, 400, 900):
        scroll(top, 400)
    assert press() == "first"
    scroll(1800, 2000)
    assert press() == "first"


@pytest.mark.slow
def test_back_closes_what_is_open_over_the_page_and_stays_on_the_tab(window, served):
    tab = window.open()
    open_tab(tab, "Monitor")
    open_tab(tab, "Tools")
    box = tab.locator("dialog")
    ask = "(name) => { atelier.dialog({title: name}); }"
    tab.evaluate(ask, "one")
    tab.evaluate("history.back()")
    expect(box).to_have_count(0)
    at(tab, "Tools")
    tab.evaluate(ask, "two")
    box.get_by_role("button", name="Cancel").click()
    expect(box).to_have_count(0)
    tab.wait_for_function("history.state === null")  # nothing is left of it that Back would go through
    tab.evaluate("""() => {
        const box = document.createElement("dialog");
        box.addEventListener("cancel", async (event) => {
            event.preventDefault();
            if (await atelier.dialog({title: "Discard?"})) box.close();
        });
        atelier.modal(box);
    }""")
    tab.evaluate("history.back()")
    expect(box).to_have_count(2)  # one that asks first
    tab.evaluate("history.back()")
    expect(box).to_have_count(1)
    tab.evaluate("history.back()")
    box.get_by_role("button", name="OK").click()
    expect(box).to_have_count(0)
    tab.wait_for_function("history.state === null")
    at(tab, "Tools")
    tab.evaluate(ask, "three")
    tab.evaluate("() => { document.querySelector('dialog').close(); atelier.goTo('Runs'); }")
    at(tab, "Runs")
    for name in ("Tools", "Monitor"):
        tab.evaluate("history.back()")
        at(tab, name)
