"""Dataset, Captions, Generate and Runs in a real browser."""

from __future__ import annotations

import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from page_server import GO_ON, HOLD, PLACES, WATCH, choose_embedding
from playwright.sync_api import expect
from safetensors.numpy import save_file
from test_overtaking import slowly
from work_parts import HOSTILE, image, wait_until

from core.settings.check import build
from tabs import context
from tabs.generate.sending import Sending

ASKED = "() => fetch('robots.txt').then(() => new Promise((done) => setTimeout(done, 200)))"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A page of its own, whose engine also draws."""
    import page_server
    from work_engine import WorkEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_server, "FakeEngine", WorkEngine)
        page = page_server.Served(tmp_path_factory.mktemp("work"))
    yield page
    page.close()


@pytest.fixture
def window(work, chromium):
    """A browser on that page, with the starter's images chosen. Nothing of the test may reach the console or the net."""
    from page_server import Visit

    work.engine.resume_queue()
    work.page.project.choose("starter_lora")
    failed = [entry.id for entry in work.engine.queue() if entry.state == "failed"]
    for tab, kept in {"Dataset": {}, "Captions": {}, "Generate": {"closed": failed}}.items():
        work.page.project.keep(tab, kept)
    made = Visit(chromium, work.url)
    yield made
    made.close()
    assert made.errors == [] and made.outside == []


@pytest.fixture
def foxes(tmp_path):
    """Three captioned images and one without a caption."""
    for number, name in enumerate(("ant", "bee", "cat")):
        image(tmp_path / "foxes" / f"{name}.png", (200 + 40 * number, 200), caption=f"a {name}")
    image(tmp_path / "foxes" / "dog.png", (200, 300))
    return tmp_path / "foxes"


def folder_box(tab):
    return tab.locator("#ds-folder textarea, #ds-folder input").first


def choose(tab, folder) -> None:
    expect(tab.locator("#ds-grid .tile").first).to_be_visible()
    folder_box(tab).fill(str(folder))
    folder_box(tab).press("Enter")


def caption_box(tab):
    return tab.locator("#cap-box textarea")


def open_captions(window, work, folder):
    work.page.project.edit("dataset.folder", str(folder))
    tab = window.open("Captions")
    expect(caption_box(tab)).to_have_value("a ant")
    return tab


# -- Dataset


@pytest.mark.slow
def test_images_are_shown_with_caption_bucket_and_crop_frame_and_lead_to_their_captions(window):
    tab = window.open("Dataset")
    expect(tab.locator("#ds-summary")).to_contain_text("24 of 24 images will train")
    expect(tab.locator("#ds-summary")).to_contain_text("24 images in one folder.")
    tiles = tab.locator("#ds-grid .tile")
    expect(tiles).to_have_count(24)
    banana = tiles.filter(has_text="banana.png")
    expect(banana).to_contain_text("a banana, glyph style")
    expect(banana).to_contain_text("112×144")
    tab.wait_for_function(
        "[...document.querySelectorAll('#ds-grid img')].slice(0, 8).every((each) => each.naturalWidth > 0)"
    )
    frame, whole = banana.locator(".crop").bounding_box(), banana.locator("img").bounding_box()
    assert frame["width"] == pytest.approx(whole["width"], abs=1) and frame["height"] < whole["height"] - 2
    tab.locator("#ds-plots .bar").filter(has_text="112 × 144").click()
    expect(tiles).to_have_count(4)
    tab.locator("#ds-plots .bar").filter(has_text="112 × 144").click()
    expect(tiles).to_have_count(24)
    tab.get_by_role("button", name="Edit the caption of banana.png").click()
    expect(caption_box(tab)).to_have_value("a banana, glyph style")


@pytest.mark.slow
def test_a_hostile_zip_is_refused_in_words_and_a_good_one_becomes_the_chosen_folder(window, work, foxes, tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../escape.png", b"x")
    before = work.page.project.job
    tab = window.open("Dataset")
    expect(tab.locator("#ds-summary .lead")).to_be_visible()
    tab.evaluate(WATCH, ["#ds-folder", "#ds-drop", "#ds-browse", "#ds-summary", "#ds-main"])
    tab.locator("#ds-drop input[type=file]").set_input_files(str(tmp_path / "bad.zip"))
    expect(tab.locator("#ds-intake")).to_contain_text("outside its folder")
    tab.locator("#ds-intake").get_by_role("button", name="Close").click()
    expect(tab.locator("#ds-intake .problem")).to_have_count(0)
    assert tab.evaluate("movedBy()") == {}
    assert work.page.project.job == before

    with zipfile.ZipFile(tmp_path / "my foxes.zip", "w") as archive:
        for file in foxes.iterdir():
            archive.write(file, f"my foxes/{file.name}")
    tab.locator("#ds-drop input[type=file]").set_input_files(str(tmp_path / "my foxes.zip"))
    expect(tab.locator("#ds-summary")).to_contain_text("4 of 4 images will train")
    wait_until(lambda: "foxes" in (work.page.project.job.dataset.folder or ""))
    tab.locator("#ds-drop input[type=file]").set_input_files([str(file) for file in foxes.iterdir()])
    expect(tab.locator("#ds-intake")).to_contain_text("Add images to them?")
    assert "foxes" in work.page.project.job.dataset.folder, "nothing changes before it is answered"
    tab.locator("#ds-intake").get_by_role("button", name="Use it alone").click()
    expect(tab.locator("#ds-intake .intake")).to_have_count(0)
    wait_until(lambda: Path(work.page.project.job.dataset.folder).name == "images")
    expect(folder_box(tab)).to_have_value(re.compile("images$"))


# -- Captions


@pytest.mark.slow
def test_keys_change_the_image_and_save_the_count_follows_and_undo_brings_the_earlier_text_back(window, work, foxes):
    tab = open_captions(window, work, foxes)
    tab.keyboard.press("ArrowRight")
    expect(caption_box(tab)).to_have_value("a bee")
    tab.keyboard.press("ArrowLeft")
    expect(caption_box(tab)).to_have_value("a ant")
    caption_box(tab).click()
    tab.keyboard.press("End")
    tab.keyboard.type(", red and small")
    expect(tab.locator("#cap-meter")).to_contain_text("6 of 75 tokens")
    expect(tab.locator("#cap-state")).to_contain_text("Not saved yet")
    tab.keyboard.press("ArrowLeft")  # moves in the text, not to another image
    expect(caption_box(tab)).to_have_value("a ant, red and small")
    tab.keyboard.press("Alt+ArrowRight")
    expect(caption_box(tab)).to_have_value("a bee")
    wait_until(lambda: (foxes / "ant.txt").read_text() == "a ant, red and small\n")
    tab.keyboard.type("x")
    tab.keyboard.press("Control+s")
    expect(tab.locator("#cap-state")).to_contain_text("Saved to bee.txt")
    assert (foxes / "bee.txt").read_text() != "a bee"
    typed, buttons = caption_box(tab).input_value(), tab.locator("#cap-buttons")
    buttons.get_by_role("button", name="Undo").click()
    expect(caption_box(tab)).to_have_value("a bee")
    expect(tab.locator("#cap-state")).to_contain_text("Undone: bee.png")
    assert (foxes / "bee.txt").read_text() == "a bee"
    buttons.get_by_role("button", name="Redo").click()
    expect(caption_box(tab)).to_have_value(typed)
    buttons.get_by_role("button", name="Next").click()
    expect(caption_box(tab)).to_have_value("a cat")
    tab.get_by_label("Which images are listed").select_option("none")
    expect(tab.locator("#cap-list .pick")).to_have_count(1)
    tab.locator("#cap-list .pick").click()
    caption_box(tab).fill("a dog " * 40)
    expect(tab.locator("#cap-meter")).to_contain_text("80 of 75 tokens: the last 5 are not trained")
    tab.get_by_role("tab", name="Dataset", exact=True).click()  # leaving the tab saves
    wait_until(lambda: (foxes / "dog.txt").is_file())


# -- Generate


def lora_in(work, name: str) -> Path:
    """A file with a LoRA's keys among the results of a run."""
    folder = work.workspace.runs / "20260101-000000_fox" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{layer}.lora_down.weight": np.zeros((4, 64), "f4"), f"{layer}.lora_up.weight": np.zeros((32, 4), "f4")}
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def field(tab, name: str):
    return tab.locator(f"#gen-{name}")


@pytest.mark.slow
def test_drawing_with_a_lora_beside_the_base_model_and_then_with_an_embedding(window, work):
    lora_in(work, f"fox {len(HOSTILE)}")
    tab = window.open("Generate")
    expect(field(tab, "prompt")).to_have_value("a fox, glyph style")
    tab.locator("#gen-add summary").first.focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#gen-find")).to_be_focused()
    tab.keyboard.type("fox")
    offered = tab.locator("#gen-add [data-act=add]").filter(has_text="fox").first
    expect(offered).to_be_visible()
    offered.press("Enter")
    expect(tab.locator("#gen-loras li")).to_have_count(1)
    strength = tab.locator("#gen-loras input[type=number]")
    strength.fill("0.6")
    strength.press("Tab")
    wait_until(lambda: work.page.project.tab_state("Generate")["values"]["loras"][0]["strength"] == 0.6)
    expect(tab.locator("#gen-loras input[type=range]")).to_have_value("0.6")
    field(tab, "prompt").fill("a small fox")
    field(tab, "seed").fill("41")
    tab.get_by_label("Compare with the base model").check()
    tab.locator("#gen-draw").click()
    pair = tab.locator("#shelf-grid .tile:has(.base)").first
    expect(pair).to_have_attribute(
        "aria-label", re.compile("a small fox, fox, fox .*0.6, seed 41, next to the base model")
    )
    pair.click()
    light = tab.get_by_role("dialog")
    expect(light.get_by_alt_text("Made by the base model")).to_be_visible()
    expect(light).to_contain_text("a small fox")
    expect(light.get_by_role("link", name="Download")).to_have_attribute("download", re.compile("_41.png$"))
    tab.keyboard.press("Escape")
    expect(light).to_have_count(0)
    job = work.engine._jobs[work.engine.queue()[-1].id]
    assert job.generate.seed == 41 and job.generate.loras[0].strength == 0.6

    path = work.workspace.runs / "20260101-000000_fox" / "checkpoints" / "zunkel.safetensors"
    save_file({"emb_params": np.zeros((1, 64), "f4")}, path)
    choose_embedding(tab, "fox / zunkel")
    wait_until(lambda: len(work.page.project.tab_state("Generate")["values"].get("embeddings", [])) == 1)
    field(tab, "prompt").fill("a zunkel")
    tab.locator("#gen-draw").click()
    wait_until(lambda: work.engine._jobs[work.engine.queue()[-1].id].generate.embeddings)
    job = work.engine._jobs[work.engine.queue()[-1].id]
    assert job.generate.embeddings == ["outputs/runs/20260101-000000_fox/checkpoints/zunkel.safetensors"]
    tab.reload()
    expect(tab.locator("#gen-embeddings")).to_contain_text("zunkel")


@pytest.mark.slow
def test_a_click_on_what_the_resting_mouse_has_pressed_before_counts_after_keys_in_between(window, work):
    """The keys scroll the page under the mouse, and Generate comes back under it without the mouse's doing."""
    tab = window.open("Generate")
    tab.set_viewport_size({"width": 1366, "height": 600})
    path = work.workspace.runs / "20260101-000000_fox" / "checkpoints" / "knots.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": np.zeros((1, 64), "f4")}, path)
    choose_embedding(tab, "knots")
    wait_until(lambda: "knots" in str(work.page.project.tab_state("Generate").get("values")))
    field(tab, "prompt").fill("a fox")
    tab.locator("#gen-draw").click()
    wait_until(lambda: getattr(work.engine, "_jobs", {}))
    for by_key in ("#gen-embeddings .remove-all", "#gen-more select", "#gen-more summary"):
        jobs = len(work.engine._jobs)
        tab.locator(by_key).last.focus()
        tab.keyboard.press("Enter")
        tab.wait_for_timeout(1000)  # what a key brings under the mouse is aimed at for half a second
        tab.locator("#gen-draw").click()
        wait_until(lambda: len(work.engine._jobs) > jobs)  # noqa: B023 (called here)


def test_an_error_returns_to_the_corner_of_a_window_that_grows(window, work):
    tab = window.open("Generate")
    tab.set_viewport_size({"width": 700, "height": 520})
    tab.evaluate("atelier.say({id: 'c', kind: 'error', text: 'words '.repeat(30)})")
    tab.wait_for_timeout(500)
    tab.set_viewport_size({"width": 1366, "height": 900})
    tab.wait_for_function("document.querySelector('#said-place').getBoundingClientRect().bottom > 860")
    assert tab.locator("#said-place").bounding_box()["x"] > 600


@pytest.mark.slow
def test_a_message_that_goes_moves_nothing_at_the_end_of_the_page(window, work):
    tab = window.open("Generate")
    tab.locator("#gen-add").wait_for()
    tab.evaluate("atelier.say({kind: 'error', text: 'words '.repeat(60)})")
    room = "parseFloat(document.documentElement.style.getPropertyValue('--said')) || 0"
    tab.wait_for_function(f"{room} > 40")
    tab.evaluate("scrollTo(0, 1e6)")
    before = tab.evaluate("scrollY")
    tab.get_by_role("button", name="Close this message").click()
    tab.wait_for_timeout(300)
    assert tab.evaluate("scrollY") == before > 0
    tab.evaluate("scrollTo(0, 0)")
    tab.wait_for_function(f"{room} < 40")


@pytest.mark.slow
def test_generate_stays_in_reach_while_the_settings_are_scrolled(window, work):
    tab = window.open("Generate")
    tab.set_viewport_size({"width": 1280, "height": 420})
    again = tab.locator("#gen-again")
    tab.locator("#gen-add").wait_for()
    expect(again).to_be_hidden()
    tab.evaluate("scrollTo(0, 260)")
    expect(again).to_be_in_viewport(ratio=1)
    tab.evaluate("""() => document.addEventListener("click", (event) => {
      if (event.target.id !== "gen-draw") return;
      event.stopImmediatePropagation();
      window.pressed = (window.pressed || 0) + 1;
    }, true)""")
    again.locator(".btn").first.click()
    assert tab.evaluate("window.pressed") == 1
    tab.evaluate("""() => {
      const now = document.querySelector("#gen-status .gen-now");
      now.innerHTML = '<span class="gen-words">Waiting</span><button type="button" class="btn" data-act="cancel">Cancel</button>';
      now.querySelector("button").addEventListener("click", (event) => {
        event.stopImmediatePropagation();
        window.stopped = (window.stopped || 0) + 1;
      });
    }""")
    again.get_by_text("Cancel").click()
    assert tab.evaluate("window.stopped") == 1, "its Cancel is that of the line"
    tab.evaluate("scrollTo(0, 0)")
    expect(again).to_be_hidden()
    tab.evaluate("document.querySelector('#gen-draw').remove()")  # as before the prompts have come
    tab.keyboard.press("Control+Enter")
    tab.evaluate("document.querySelector('#gen-again button').click()")
    assert not window.errors


@pytest.mark.slow
def test_a_lora_is_added_moved_and_its_trigger_word_written_by_keyboard(window, work):
    path = lora_in(work, "owl")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{layer}.lora_down.weight": np.zeros((4, 768), "f4"),
        f"{layer}.lora_up.weight": np.zeros((32, 4), "f4"),
    }
    save_file(tensors, path, {"modelspec.trigger_phrase": "zowl"})
    tab = window.open("Generate")
    expect(field(tab, "prompt")).to_be_visible()
    for open_one in tab.locator("#gen-loras [data-act=remove]").all():
        open_one.click()
    tab.locator("#gen-add summary").first.press("Enter")
    tab.locator("#gen-add").get_by_role("button", name="Refresh").click()
    offered = tab.locator("#gen-add [data-act=add]").filter(has_text="owl")
    expect(offered).to_have_count(1)  # the list is drawn again, without what was typed before
    tab.locator("#gen-find").focus()
    tab.keyboard.type("owl")
    expect(tab.locator("#gen-add [data-act=add]:visible")).to_have_count(1)
    offered.press("Enter")
    row = tab.locator("#gen-loras li").filter(has_text="owl")
    row.locator("input[type=range]").press("ArrowLeft")
    expect(row.locator("input[type=number]")).to_have_value("0.95")
    row.get_by_role("button", name="zowl").click()
    expect(field(tab, "prompt")).to_have_value(re.compile(", zowl$"))
    row.get_by_label("Use owl").uncheck()
    expect(row).to_have_class("is-off")
    for part in (
        row.locator("label b"),
        row.locator("input[type=range]"),
        row.get_by_role("button", name="Remove owl"),
    ):
        expect(part).to_be_visible()
    row.get_by_label("Use owl").check()
    expect(row).not_to_have_class("is-off")
    before = len(work.engine.queue())
    tab.locator("#gen-draw").click()
    wait_until(lambda: len(work.engine.queue()) > before)
    asked = work.engine._jobs[work.engine.queue()[-1].id].generate
    assert (asked.loras[0].strength, asked.prompt.endswith(", zowl")) == (0.95, True)


@pytest.mark.slow
def test_settings_of_an_image_come_back_by_a_click_and_by_dropping_it_and_control_enter_draws_with_them(window, work):
    work.engine.submit("generate", build_generate(prompt="a rare cactus", seed=123, steps=7))
    tab = window.open("Generate")
    tab.locator("#shelf-grid .tile").filter(has_text="a rare cactus").first.click()
    tab.get_by_role("dialog").get_by_role("button", name="Use settings").click()
    expect(field(tab, "prompt")).to_have_value("a rare cactus")
    expect(field(tab, "steps")).to_have_value("7")
    file = next(path for path in work.workspace.images.rglob("*_123.png"))
    field(tab, "prompt").fill("other words")
    tab.locator("#gen-drop input[type=file]").set_input_files(str(file))
    expect(field(tab, "prompt")).to_have_value("a rare cactus")
    expect(tab.locator("#said")).to_contain_text("were loaded")
    tab.reload()
    expect(field(tab, "seed")).to_have_value("123")
    field(tab, "prompt").fill("by keyboard alone")
    field(tab, "prompt").press("Control+Enter")
    expect(tab.locator("#shelf-strip .tile").first).to_contain_text("by keyboard alone")


@pytest.mark.slow
def test_settings_of_a_dropped_image_are_shown_also_when_a_field_is_changed_while_it_is_read(window, work, monkeypatch):
    work.engine.submit("generate", build_generate(prompt="a late cactus", seed=124, steps=7))
    tab = window.open("Generate")
    expect(tab.locator("#shelf-grid .tile").filter(has_text="a late cactus").first).to_be_visible()
    file = next(path for path in work.workspace.images.rglob("*_124.png"))
    begun = slowly(monkeypatch, Sending, "read", 1.5)
    field(tab, "prompt").fill("other words")
    tab.locator("#gen-drop input[type=file]").set_input_files(str(file))
    wait_until(lambda: begun)
    field(tab, "steps").fill("9")
    tab.keyboard.press("Tab")
    expect(tab.locator("#said")).to_contain_text("were loaded")
    tab.wait_for_timeout(1000)  # an ignored answer is visible for a moment
    expect(field(tab, "prompt")).to_have_value("a late cactus")
    expect(field(tab, "steps")).to_have_value("7")
    tab.locator("#said").get_by_role("button", name="Undo").click()
    expect(field(tab, "prompt")).to_have_value("other words")
    expect(tab.locator("#said")).to_contain_text("are back")


@pytest.mark.slow
def test_an_answer_that_was_made_before_an_image_was_read_but_comes_later_does_not_hide_its_settings(
    window, work, monkeypatch
):
    work.engine.submit("generate", build_generate(prompt="a late cactus", seed=125, steps=7))
    tab = window.open("Generate")
    expect(tab.locator("#shelf-grid .tile").filter(has_text="a late cactus").first).to_be_visible()
    file = next(path for path in work.workspace.images.rglob("*_125.png"))
    begun = slowly(monkeypatch, Sending, "read", 1.5)
    labelled, late = context._with_label, []

    def delayed(label, *more):
        if label[0] in "12" and label[0] not in late:
            late.append(label[0])
            time.sleep(3)
        return labelled(label, *more)

    monkeypatch.setattr(context, "_with_label", delayed)
    field(tab, "prompt").fill("words of before")
    tab.locator("#gen-drop input[type=file]").set_input_files(str(file))
    wait_until(lambda: begun)
    field(tab, "steps").fill("11")
    tab.keyboard.press("Tab")
    expect(tab.locator("#said")).to_contain_text("were loaded")
    wait_until(lambda: len(late) == 2)
    tab.wait_for_timeout(4000)
    expect(field(tab, "prompt")).to_have_value("a late cactus")
    expect(field(tab, "steps")).to_have_value("7")


@pytest.mark.slow
def test_the_list_of_generations_has_its_place_and_a_second_cancel_hits_nothing(window, work, monkeypatch):
    monkeypatch.setattr(work.engine, "draw_seconds", 60.0, raising=False)
    before = len(work.engine.queue())
    below = "#gen-draw, #gen-compare, #gen-status, #gen-add, #gen-loras, #gen-steps"
    tab = window.open("Generate")

    def places():
        found = {}
        for width in (390, 1280):
            tab.set_viewport_size({"width": width, "height": 860})
            tab.evaluate("scrollTo(0, 0)")
            found[width] = tab.evaluate(PLACES, below)
        return found

    expect(tab.locator("#gen-status")).to_contain_text("Nothing is being generated")
    field(tab, "prompt").fill("the same words")
    at_first = places()
    with pytest.MonkeyPatch.context() as patch:
        slowly(patch, work.engine, "submit", 1.0)
        tab.locator("#gen-draw").click()
        expect(tab.locator("#gen-status")).to_contain_text("Checking")
        expect(tab.locator("#gen-status [data-act=cancel]")).to_be_visible()
    for _ in range(2):
        tab.locator("#gen-draw").click()
    tab.locator("#gen-status summary").click()
    cancels = tab.locator("#gen-status").get_by_role("button", name="Cancel")
    expect(cancels).to_have_count(3)
    assert places() == at_first
    ids = [entry.id for entry in work.engine.queue()[before:]]
    box = cancels.nth(1).bounding_box()
    tab.mouse.move(0, 0)
    tab.evaluate(HOLD)
    tab.mouse.click(box["x"] + 5, box["y"] + 5)
    tab.wait_for_function("document.querySelectorAll('#gen-status [data-act=cancel]').length === 2")
    tab.mouse.click(box["x"] + 5, box["y"] + 5)
    tab.evaluate(ASKED)  # what the click would have sent has been answered
    assert {entry.id: entry.state for entry in work.engine.queue()} | {ids[2]: "waiting", ids[1]: "cancelled"} == {
        entry.id: entry.state for entry in work.engine.queue()
    }
    tab.evaluate(GO_ON)
    monkeypatch.setattr(work.engine, "draw_seconds", 0.01)
    field(tab, "prompt").fill("fail")
    work.engine.cancel(ids[0])
    tab.locator("#gen-draw").click()
    expect(tab.locator("#gen-status .failed").first).to_contain_text("ran out of memory")
    assert places()[1280] == at_first[1280]
    for entry in work.engine.queue():
        work.engine.cancel(entry.id)
    tab.locator("#gen-status .failed").get_by_role("button", name="Close").click()
    expect(tab.locator("#gen-status :is([data-act=cancel], [data-act=close])")).to_have_count(0)


def build_generate(**generate):
    from core.settings.job import GenerateJob

    return build(GenerateJob, {"generate": generate})


# -- Runs


@pytest.fixture
def run(work):
    """A finished training in the list."""
    work.engine.step_seconds = 0.005
    entry = work.engine.submit("train", work.page.project.job)
    wait_until(lambda: next(each for each in work.engine.queue() if each.id == entry).state == "done")
    work.engine.step_seconds = 0.05
    return next(each for each in work.engine.queue() if each.id == entry).run


@pytest.mark.slow
def test_a_run_is_opened_used_and_deleted(window, work, run):
    tab = window.open("Runs")
    row = tab.locator("table.runs tbody tr").first
    expect(row).to_contain_text("100 / 100")
    row.locator(".open").click()
    details = tab.locator(".run-details")
    expect(details).to_contain_text("base model")
    expect(details.get_by_role("link", name="Download").first).to_be_visible()
    work.page.project.edit("schedule.max_train_steps", "7")
    details.get_by_role("button", name="Use its settings").click()
    expect(tab.get_by_role("tab", name="Train", exact=True)).to_have_attribute("aria-selected", "true")
    wait_until(lambda: work.page.project.job == work.engine.run_job(run))
    tab.get_by_role("tab", name="Runs", exact=True).click()
    tab.locator(".run-details").get_by_role("button", name="Delete", exact=True).click()
    expect(tab.locator("#said")).to_contain_text("moved to the trash")
    assert run not in [each.name for each in work.engine.runs()]


# -- all of them
