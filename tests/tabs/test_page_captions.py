"""Captions in a real browser whose server is slow: what is typed belongs to the image that is on the screen, and stays."""

from __future__ import annotations

import random
import re
import time
from threading import Event
from types import SimpleNamespace

import pytest
from page_server import WATCH
from playwright.sync_api import expect
from work_parts import image, wait_until

DELAYS = (0, 100, 250, 700)  # milliseconds after the key that opens the next image
SLOW = 1.5  # seconds: twice what a person here waits at most


@pytest.fixture
def slow(served, monkeypatch):
    """Every answer about captions takes `slow.seconds`: a part of it before the work, the rest after, as on a busy machine."""
    from tabs.captions.tab import CaptionHandlers

    held = SimpleNamespace(seconds=0.0, fail=False)

    def slowly(name):
        quick = getattr(CaptionHandlers, name)

        def answer(desk, *asked):
            total, before = held.seconds, held.seconds * random.random()
            time.sleep(before)
            if held.fail:
                raise RuntimeError("the test wants no answer")
            found = quick(desk, *asked)
            time.sleep(total - before)
            return found

        monkeypatch.setattr(CaptionHandlers, name, answer)

    for name in ("save", "text_state", "list_state"):
        slowly(name)
    return held


def make_images(folder, number: int):
    for n in range(number):
        image(folder / f"{n:03}.png", (64, 64), caption=f"caption {n}")
    return folder


def on_disk(folder, n: int) -> str:
    return (folder / f"{n:03}.txt").read_text("utf-8").strip()


def browsing_until(tab, true, seconds: float = 60.0) -> None:
    """Until it is true, while the browser's events are heard."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        tab.wait_for_timeout(20)


@pytest.fixture
def opened(visit, served, slow, tmp_path):
    """Opens a folder of so many images on the Captions tab, the first one open, and only then slows the server down."""
    made = []

    def open_tab(number: int = 12, seconds: float = SLOW):
        folder = make_images(tmp_path / "set", number)
        served.page.project.keep("Captions", {})
        served.page.project.edit("dataset.folder", str(folder))
        made.append(visit())
        tab = made[-1].open("Captions")
        expect(box(tab)).to_have_value("caption 0")
        expect(tab.locator("#cap-buttons [data-act=next]")).to_be_enabled()
        box(tab).focus()
        tab.keyboard.press("Control+End")
        slow.seconds = seconds
        return tab, folder

    yield open_tab
    slow.seconds, slow.fail = 0.0, False
    for one in made:
        assert [each for each in one.errors if "500" not in each] == []


def box(tab):
    return tab.locator("#cap-text")


def test_what_is_typed_after_the_key_is_the_next_images_whatever_the_server_is_doing(opened, slow):
    typed = 3
    tab, folder = opened(16)
    wanted, shown = {}, []
    for n in range(typed):
        words = f" typed {n}"
        tab.keyboard.type(words)
        wanted[n] = f"caption {n}{words}"
        if n % 2:  # the typing goes on in the very moment of the key
            tab.keyboard.press("Alt+ArrowRight")
        else:
            tab.keyboard.down("Alt")
            tab.keyboard.press("ArrowRight")
            tab.keyboard.up("Alt")
        tab.wait_for_timeout(DELAYS[n % 4])
        shown.append(box(tab).input_value())
    assert shown == [f"caption {n + 1}" for n in range(len(shown) - 1)] + [shown[-1]]
    slow.seconds = 0.0
    wait_until(lambda: all(on_disk(folder, n) == wanted[n] for n in wanted))
    others = [n for n in range(len(list(folder.glob("*.png")))) if n not in wanted]
    assert len(wanted) == typed and all(on_disk(folder, n) == f"caption {n}" for n in others)


@pytest.mark.slow
def test_two_quick_switches_and_back_keep_each_text_with_its_image(opened, slow):
    tab, folder = opened()
    tab.keyboard.type(" A")
    tab.keyboard.press("Alt+ArrowRight")
    tab.keyboard.press("Alt+ArrowRight")
    tab.keyboard.type(" C")
    tab.keyboard.press("Alt+ArrowLeft")
    tab.keyboard.press("Alt+ArrowLeft")
    expect(box(tab)).to_have_value("caption 0 A")
    tab.keyboard.type("A")  # while the first save is on its way
    expect(box(tab)).to_have_value("caption 0 AA")
    expect(tab.locator("#cap-label")).to_have_text("Caption of 000.png")
    tab.keyboard.press("Alt+ArrowRight")
    wait_until(lambda: on_disk(folder, 0) == "caption 0 AA" and on_disk(folder, 2) == "caption 2 C")
    assert on_disk(folder, 1) == "caption 1"
    assert tab.locator("#captions .question").count() == 0


@pytest.mark.slow
def test_a_click_in_the_list_switches_at_once_and_undo_of_the_browser_stays_in_its_image(opened, slow):
    tab, folder = opened()
    tab.keyboard.type(" typed")
    tab.locator("#cap-list .pick").nth(4).click()
    assert box(tab).input_value() == "caption 4"
    expect(tab.locator("#cap-list [aria-current=true]")).to_contain_text("004.png")
    expect(tab.locator("#cap-stage")).to_contain_text("5 of 12")
    box(tab).focus()
    tab.keyboard.press("Control+End")
    tab.keyboard.type("x")
    for _ in range(6):
        tab.keyboard.press("Control+z")
    assert box(tab).input_value() == "caption 4"
    wait_until(lambda: on_disk(folder, 0) == "caption 0 typed")
    assert on_disk(folder, 4) == "caption 4"


@pytest.mark.slow
def test_the_list_follows_what_is_typed_into_find_whatever_comes_late(opened, slow):
    tab, _ = opened(seconds=0.5)
    answered = []
    tab.on("requestfinished", lambda asked: '"find"' in (asked.post_data or "") and answered.append(asked))
    tab.locator("#cap-find").press_sequentially("007", delay=350)  # three questions, whose answers overlap
    expect(tab.locator("#cap-list .pick")).to_have_count(1)
    expect(tab.locator("#cap-list .pick")).to_contain_text("007.png")
    browsing_until(tab, lambda: len(answered) >= 3)
    assert tab.locator("#cap-list .pick").count() == 1 and tab.locator("#cap-find").input_value() == "007"
    assert box(tab).input_value() == "caption 0", "the open image stays open"
    expect(tab.locator("#cap-find")).to_be_focused()


@pytest.mark.slow
def test_undo_does_not_touch_what_is_typed_while_it_is_carried_out(opened, slow):
    tab, folder = opened(seconds=0.0)
    tab.keyboard.type(" new")
    tab.keyboard.press("Alt+ArrowRight")
    wait_until(lambda: on_disk(folder, 0) == "caption 0 new")
    expect(tab.locator("#cap-buttons").get_by_role("button", name="Undo")).to_be_enabled()
    slow.seconds = 2.0
    tab.locator("#cap-buttons [data-act=undo]").click()
    box(tab).focus()
    tab.keyboard.press("Control+End")
    tab.keyboard.type(" mine")
    wait_until(lambda: on_disk(folder, 0) == "caption 0")
    slow.seconds = 0.0
    tab.wait_for_timeout(500)
    assert box(tab).input_value() == "caption 1 mine"
    tab.keyboard.press("Control+s")
    wait_until(lambda: on_disk(folder, 1) == "caption 1 mine")
    tab.keyboard.press("Alt+ArrowLeft")
    expect(box(tab)).to_have_value("caption 0")


@pytest.mark.slow
def test_undo_leads_to_its_image_also_when_a_later_question_is_answered_first(opened, monkeypatch):
    from tabs.captions.tab import CaptionHandlers

    tab, folder = opened(seconds=0.0)
    tab.keyboard.type(" new")
    tab.keyboard.press("Alt+ArrowRight")
    expect(tab.locator("#cap-buttons").get_by_role("button", name="Undo")).to_be_enabled()
    listed, quick, others = Event(), CaptionHandlers._handle, []

    def held(desk, act, *asked):
        found = quick(desk, act, *asked)
        if act == "undo":
            listed.wait(20)
        return found

    monkeypatch.setattr(CaptionHandlers, "_handle", held)
    tab.on("response", lambda answer: "atelier/captions" in answer.url and others.append(answer.request.post_data_json))
    tab.locator("#cap-buttons [data-act=undo]").click()
    wait_until(lambda: on_disk(folder, 0) == "caption 0")
    others.clear()
    tab.locator("#cap-show").select_option("all")
    tab.locator("#cap-show").dispatch_event("change")
    browsing_until(tab, lambda: any(asked["act"] == "show" for asked in others))
    assert box(tab).input_value() == "caption 1"
    tab.wait_for_timeout(200)
    listed.set()
    expect(box(tab)).to_have_value("caption 0")


@pytest.mark.slow
def test_a_file_that_another_program_changed_is_asked_about_also_after_moving_on(opened, slow):
    tab, folder = opened(seconds=0.3)
    expect(tab.locator("#cap-notes > *").first).to_be_visible()
    tab.evaluate(WATCH, ["#cap-text", "#cap-meter", "#cap-buttons", "#cap-notes"])
    (folder / "000.txt").write_text("from elsewhere")
    tab.keyboard.type(" mine")
    tab.keyboard.press("Alt+ArrowRight")
    unsaved = tab.locator("#cap-unsaved")
    expect(unsaved).to_contain_text("Another caption is not saved")
    assert on_disk(folder, 0) == "from elsewhere" and box(tab).input_value() == "caption 1"
    assert tab.evaluate("movedBy()") == {}
    tab.reload()  # nor is it lost by a refresh
    unsaved.get_by_role("button", name="000.png").click()
    expect(tab.locator("#cap-state")).to_contain_text("Its version: from elsewhere")
    expect(box(tab)).to_have_value("caption 0 mine")
    (folder / "000.txt").write_text("changed in bulk")
    tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as any other look
    expect(tab.locator("#cap-state")).to_contain_text("Its version: changed in bulk")
    tab.get_by_role("button", name="Keep mine").click()
    wait_until(lambda: on_disk(folder, 0) == "caption 0 mine")
    expect(unsaved).to_be_hidden()
    tab.locator("#cap-buttons").get_by_role("button", name="Undo").click()
    wait_until(lambda: on_disk(folder, 0) == "changed in bulk")
    expect(box(tab)).to_have_value("changed in bulk")
    box(tab).fill("a blue ant")
    (folder / "000.txt").write_text("a gray ant")
    box(tab).press("Tab")
    tab.locator("#cap-state .question").get_by_role("button", name="Use the other").click()
    expect(box(tab)).to_have_value("a gray ant")
    tab.locator("#cap-buttons").get_by_role("button", name="Undo").click()
    wait_until(lambda: on_disk(folder, 0) == "a blue ant")


def test_quick_tags_have_their_room_before_they_are_known(opened):
    tab, _ = opened(seconds=0.0)
    expect(tab.locator("#cap-quick button").first).to_be_visible()
    filled = tab.locator("#cap-quick").bounding_box()["height"]
    tab.route(
        "**/atelier/captions",
        lambda way: way.fulfill(json={}) if '"tags"' in way.request.post_data else way.continue_(),
    )
    tab.reload()
    expect(box(tab)).to_have_value("caption 0")
    expect(tab.locator("#cap-quick button")).to_have_count(0)
    assert tab.locator("#cap-quick").bounding_box()["height"] == filled > 32
    tab.unroute("**/atelier/captions")
    tab.reload()
    expect(tab.locator("#cap-quick button").first).to_be_visible()


@pytest.mark.slow
def test_a_refresh_in_the_middle_and_a_server_that_fails_lose_nothing(opened, slow):
    tab, folder = opened(seconds=1.0)
    tab.keyboard.type(" one")
    tab.keyboard.press("Alt+ArrowRight")
    tab.keyboard.type(" two")
    tab.reload()
    wait_until(lambda: on_disk(folder, 0) == "caption 0 one" and on_disk(folder, 1) == "caption 1 two")
    slow.seconds = 0.0
    tab.wait_for_selector("body[data-atelier=ready]")
    expect(box(tab)).to_have_value("caption 1 two")
    slow.fail = True
    box(tab).click()
    tab.keyboard.press("Control+End")
    tab.keyboard.type(" three")
    tab.keyboard.press("Control+s")
    expect(tab.locator("#cap-state")).to_contain_text("Not saved: the server does not answer")
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    slow.fail = False
    wait_until(lambda: on_disk(folder, 1) == "caption 1 two three")
    tab.wait_for_function("!Object.keys(localStorage).some((each) => each.startsWith('atelier-caption'))")


LATE = """() => {
    const fetched = window.fetch;
    window.fetch = async (address, asked) => {
        const answer = await fetched(address, asked);
        if (String(asked?.body).includes(`"act":"%s"`)) await new Promise((done) => setTimeout(done, 1500));
        return answer;
    };
}"""


@pytest.mark.slow
@pytest.mark.parametrize("act", ["open", "look"])
def test_a_refresh_opens_the_image_that_was_open_whichever_answer_comes_first(opened, act):
    """The server hears of a move late, and its tick may ask for the list before the tab does."""
    tab, _ = opened(seconds=0.0)
    tab.add_init_script(f"({LATE % act})()")
    tab.keyboard.press("Alt+ArrowRight")
    expect(box(tab)).to_have_value("caption 1")
    tab.reload()
    expect(box(tab)).to_have_value(re.compile("caption"))
    tab.wait_for_timeout(2000)
    expect(box(tab)).to_have_value("caption 1")


@pytest.mark.slow
def test_the_key_opens_the_next_image_also_when_a_later_question_was_answered_before_the_folder_was_read(opened):
    tab, _ = opened(seconds=0.0)
    lists = []

    def answer(way):
        act = way.request.post_data_json["act"]
        if act not in ("open", "shelf"):
            return way.continue_()
        lists.append((act, way))
        acts = [act for act, _ in lists]
        if sorted(acts) == ["open", "shelf"]:
            held = dict(lists)
            nothing = {"open": "", "chain": [], "at": -1, "items": {}, "page": [], "list": "", "stamp": "earlier"}
            held["shelf"].fulfill(json=held["shelf"].fetch().json() | nothing)
            tab.wait_for_timeout(100)
            held["open"].fulfill(response=held["open"].fetch())
        # whatever is asked later is answered never

    tab.route("**/atelier/captions", answer)
    tab.reload()
    expect(box(tab)).to_have_value("caption 0")
    tab.keyboard.press("Alt+ArrowDown")
    assert box(tab).input_value() == "caption 1"
    assert [act for act, _ in lists[:2]] == ["open", "shelf"]


@pytest.mark.slow
def test_the_key_right_after_the_tab_is_opened_counts_before_the_server_hears_of_the_tab(opened):
    tab, _ = opened(seconds=0.0)
    tab.get_by_role("tab", name="Dataset").click()
    tab.evaluate("() => { const show = atelier.showCaptions; atelier.showCaptions = () => setTimeout(show, 1000); }")
    tab.get_by_role("tab", name="Captions").click()
    expect(box(tab)).to_be_visible()
    tab.keyboard.press("Alt+ArrowDown")
    expect(box(tab)).to_have_value("caption 1")
    tab.wait_for_timeout(2000)
    assert box(tab).input_value() == "caption 1"


@pytest.mark.slow
def test_a_caption_of_a_metadata_file_cannot_be_typed_over(visit, served, tmp_path):
    import json

    from core.settings.dataset.source import Source
    from tabs.dataset.concepts import with_entries

    folder, listed = make_images(tmp_path / "set", 2), tmp_path / "meta.json"
    listed.write_text(json.dumps({"000": {"caption": "from the list"}, "001": {"tags": "a, b"}}))
    served.page.project.keep("Captions", {})
    source = Source(folder=str(folder), metadata_file=str(listed))
    served.page.project.replace(with_entries(served.page.project.job, [source]))
    tab = visit().open("Captions")
    expect(box(tab)).to_have_value("from the list")
    expect(box(tab)).to_have_js_property("readOnly", True)
    expect(tab.locator("#cap-notes")).to_contain_text("meta.json")
    expect(tab.locator("#cap-buttons [data-act=save]")).to_be_disabled()
    box(tab).focus()
    tab.keyboard.type("typed")
    tab.keyboard.press("Control+s")
    tab.keyboard.press("Alt+ArrowRight")
    expect(box(tab)).to_have_value("a, b")
    assert on_disk(folder, 0) == "caption 0" and "typed" not in listed.read_text()
    assert tab.evaluate("getComputedStyle(document.getElementById('cap-text')).cursor") == "default"


@pytest.mark.slow
def test_a_folder_changed_elsewhere_takes_no_keystrokes_along(opened, slow, served, tmp_path):
    tab, folder = opened(seconds=0.0)
    other = image(tmp_path / "other" / "owl.png", caption="an owl").parent
    tab.keyboard.type(" half a wo")
    served.page.project.edit("dataset.folder", str(other))
    for sign in "rd and more":
        tab.keyboard.type(sign)
        tab.wait_for_timeout(250)
    assert box(tab).input_value() == "caption 0 half a word and more"
    expect(box(tab)).to_have_value("an owl")  # once nobody types
    wait_until(lambda: on_disk(folder, 0) == "caption 0 half a word and more")
    assert (other / "owl.txt").read_text() == "an owl"


@pytest.mark.slow
def test_what_was_saved_by_hand_is_a_step_of_undo_of_its_own_also_on_a_slow_server(opened):
    tab, folder = opened(3, 0.5)
    for words in (" one", " two", " three"):
        tab.keyboard.type(words)
        tab.keyboard.press("Control+s")
        expect(tab.locator("#cap-state")).to_contain_text("Saved")  # the answer comes after the work
        wait_until(lambda words=words: on_disk(folder, 0).endswith(words))
    tab.locator("#cap-stage").click()
    for left in ("caption 0 one two", "caption 0 one", "caption 0"):
        tab.keyboard.press("Control+z")
        wait_until(lambda left=left: on_disk(folder, 0) == left)
    expect(box(tab)).to_have_value("caption 0")


@pytest.mark.slow
def test_save_by_the_mouse_ends_a_step_though_leaving_the_box_has_saved_the_text(opened):
    tab, folder = opened(3, 0.0)
    for words in ("one", "two"):
        box(tab).fill(words)
        tab.locator("#cap-buttons [data-act=save]").hover()
        tab.mouse.down()
        wait_until(lambda words=words: on_disk(folder, 0) == words)
        expect(tab.locator("#cap-state")).to_contain_text("Saved to")
        tab.mouse.up()
        expect(tab.locator("#cap-state")).to_contain_text("Saved to")
    tab.locator("#cap-history summary").click()
    expect(tab.locator("#cap-earlier q")).to_have_text(["one", "caption 0"])
    tab.locator("#cap-buttons [data-act=undo]").click()
    wait_until(lambda: on_disk(folder, 0) == "one")


@pytest.mark.slow
def test_a_text_that_may_not_be_saved_can_be_discarded(opened, monkeypatch):
    from core.dataset.captions import history
    from core.record.problems import ProblemsError

    def refuse(folders, workspace=None):
        raise ProblemsError.one("Nothing can be saved: this folder is read-only", "set", "make it writable", "x.y")

    tab, folder = opened(3, 0.0)
    monkeypatch.setattr(history, "check_folders", refuse)
    tab.keyboard.type(" mine")
    tab.keyboard.press("Control+s")
    state = tab.locator("#cap-state")
    expect(state).to_contain_text("this folder is read-only")
    tab.get_by_role("button", name="Close this message").click()
    state.get_by_role("button", name="Discard").click()
    tab.locator("dialog").get_by_role("button", name="Discard").click()
    expect(box(tab)).to_have_value("caption 0")
    expect(state).to_have_text("Discarded")
    tab.reload()
    expect(box(tab)).to_have_value("caption 0")
    assert on_disk(folder, 0) == "caption 0" and tab.locator("#cap-unsaved .question").count() == 0


@pytest.mark.slow
def test_a_long_undo_shows_its_progress_and_captions_are_saved_meanwhile(opened, served, monkeypatch):
    from core.dataset.captions.history import History
    from tabs.captions import rewriting as caption_rewriting

    monkeypatch.setattr(caption_rewriting, "AT_ONCE", 2)
    monkeypatch.setattr(caption_rewriting, "WAIT_SECONDS", 0.0)
    tab, folder = opened(number=6, seconds=0.0)
    tab.evaluate("atelier.captions.ask({act: 'bulk_field', arg: 'tags', value: 'blue'})")
    tab.locator("#cap-more summary", has_text="Change many captions").click()
    tab.locator("#cap-bulk-go").click()
    expect(tab.locator("#cap-state")).to_contain_text("6 captions")
    go, quick = Event(), History.undo

    def held(history, id, progress):
        progress(2, 6)
        assert go.wait(60)
        return quick(history, id, progress)

    monkeypatch.setattr(History, "undo", held)
    tab.locator("#cap-buttons").get_by_role("button", name="Undo").click()
    expect(tab.locator("#cap-state progress")).to_be_visible()
    expect(tab.locator("#cap-state")).to_contain_text("2 of 6")
    box(tab).fill("typed meanwhile")
    tab.keyboard.press("Control+s")
    wait_until(lambda: on_disk(folder, 0) == "typed meanwhile")
    go.set()
    expect(tab.locator("#cap-state")).to_contain_text("Undone")
    expect(tab.locator("#cap-state progress")).to_have_count(0)
    assert [on_disk(folder, n) for n in range(6)] == ["typed meanwhile", *(f"caption {n}" for n in range(1, 6))]


@pytest.mark.slow
def test_what_is_typed_while_another_window_changes_the_folder_goes_into_no_other_caption(opened, served, tmp_path):
    tab, folder = opened(3, seconds=0)
    other = make_images(tmp_path / "other", 2)
    (other / "000.txt").write_text("of the other folder")
    tab.keyboard.type(" mine")
    served.page.project.edit("dataset.folder", str(other))
    expect(box(tab)).to_have_value("of the other folder", timeout=20_000)
    tab.keyboard.type(" and more")
    expect(box(tab)).to_have_value("of the other folder")
    expect(tab.locator("#said")).to_contain_text("changed in another window")
    box(tab).click()
    tab.keyboard.press("Control+End")
    tab.keyboard.type(" now")
    expect(box(tab)).to_have_value("of the other folder now")
    tab.keyboard.press("Control+s")
    wait_until(lambda: on_disk(other, 0) == "of the other folder now" and on_disk(folder, 0) == "caption 0 mine")
