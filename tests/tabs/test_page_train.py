"""The Train tab in a real browser."""

from __future__ import annotations

import json
import re
import threading
import time

import pytest
import work_parts
from playwright.sync_api import expect

from core.dataset.images import look
from core.settings.job import new_project
from core.settings.presets.files import dump
from tabs.train.tab import ADDS


def field(tab, path: str):
    return tab.locator("#field-" + path.replace(".", "-").replace("_", "-"))


def box(tab, path: str):
    return field(tab, path).locator("textarea, input[type=text]").first


def choose(select, words: str) -> None:
    """Choose the first option of a list that holds these words."""
    select.select_option(select.locator("option", has_text=words).first.get_attribute("value"))


def preset(tab):
    return tab.locator("#preset-list")


def choose_preset(tab, words: str) -> None:
    choose(preset(tab), words)


def chosen(tab, words: str) -> None:
    """The list of presets shows these words."""
    expect(preset(tab).locator("option:checked")).to_have_text(words)


def unfold(tab, group: str, more: bool = False) -> None:
    tab.locator(f"#group-{group} > button").click()
    if more:
        tab.locator(f"#more-{group} > button").click()


def menu(tab, words: str) -> None:
    tab.locator("#preset-bar summary").click()
    tab.get_by_role("button", name=words, exact=True).click()


def server_value(served, path: str):
    group, name = path.split(".")
    return getattr(getattr(served.page.project.job, group), name)


def until(true, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.03)
    return true()


def test_a_first_visitor_can_start_at_once_and_a_bad_value_is_said_kept_and_blocks_the_start(window, served):
    tab = window.open()
    expect(box(tab, "model.base_model")).to_have_value("models/starter")
    expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
    expect(tab.locator("#length-line")).to_contain_text("24 images x")
    expect(tab.locator("#header-family")).to_have_text("SD 1.x")
    fields = ("optimizer-learning-rate", "dataset-resolution", "dataset-train-batch-size", "network-rank")
    first = [f".first #field-{name}" for name in (*fields, "samples-sample-prompts")]
    for target in ("#start", "#enqueue", "#check", "#preset", *first):
        place = tab.locator(target).bounding_box()
        assert place["y"] >= 0 and place["y"] + place["height"] <= 860, f"{target} needs scrolling at 1280 x 860"
    looks = tab.locator("#train-form .field :is([type=checkbox], [type=radio])").evaluate_all(
        "nodes => nodes.map((node) => getComputedStyle(node).appearance)"
    )
    assert looks and set(looks) == {"auto"}  # Gradio's own look is a white check mark without a background
    assert tab.locator("footer:visible").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).fontFamily").startswith("system-ui")
    assert tab.evaluate("[...document.fonts].every(font => font.status !== 'loaded')")
    for told in ({"id": "b", "at": 2, "text": "newer"}, {"id": "a", "at": 1, "text": "older"}):
        tab.evaluate("(told) => atelier.say(told)", {"kind": "error", **told})
    expect(tab.locator("#said")).to_contain_text("newer")
    tab.evaluate("atelier.say({id: 'c', kind: 'error', text: 'of the page itself'})")
    expect(tab.locator("#said")).to_contain_text("of the page itself")

    before = server_value(served, "optimizer.learning_rate")
    unfold(tab, "optimizer")
    box(tab, "optimizer.learning_rate").fill("quick")
    tab.keyboard.press("Tab")
    wrong = field(tab, "optimizer.learning_rate").locator(".field-error")
    expect(wrong).to_contain_text("'quick'")
    box(tab, "saving.output_name").fill("a/b")
    tab.keyboard.press("Tab")
    expect(field(tab, "saving.output_name").locator(".field-error")).to_be_visible()
    assert server_value(served, "optimizer.learning_rate") == before
    tab.locator("#start").click()
    expect(tab.locator("#said.error .problem")).to_have_count(2)
    expect(tab.locator("#said.error")).to_contain_text("'quick'")
    assert not served.engine.queue()
    dark = tab.evaluate("document.body.classList.contains('dark')")
    tab.locator("#theme-toggle").click()
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    assert tab.evaluate("document.body.classList.contains('dark')") is not dark
    unfold(tab, "optimizer")
    expect(box(tab, "optimizer.learning_rate")).to_have_value("quick")
    expect(wrong).to_be_visible()
    box(tab, "optimizer.learning_rate").fill("2e-4")
    tab.keyboard.press("Enter")
    expect(wrong).to_have_count(0)
    assert server_value(served, "optimizer.learning_rate") == 2e-4
    box(tab, "saving.output_name").fill("typed_name")
    tab.evaluate("document.querySelector('#start').click()")  # without leaving the field first, as a key shortcut does
    assert until(lambda: any(entry.title == "typed_name" for entry in served.engine.queue()))


@pytest.mark.slow
def test_what_many_add_next_is_one_press_below_the_first_screen(visit, served):
    tab = visit().open()
    for words, path in ADDS.items():
        control = field(tab, path).locator("input, select").first
        tab.get_by_role("button", name=f"+ {words}").press("Enter")
        expect(control).to_be_focused()
        expect(control).to_be_in_viewport()


@pytest.mark.slow
def test_a_changed_field_is_marked_counted_and_put_back(visit, served):
    tab = visit().open()
    preset_rank = server_value(served, "network.rank")
    unfold(tab, "network", more=True)
    box(tab, "network.rank").fill(str(preset_rank + 1))
    tab.keyboard.press("Tab")
    expect(field(tab, "network.rank").get_by_text("Changed")).to_be_visible()
    assert server_value(served, "network.rank") == preset_rank + 1
    expect(tab.locator("#group-network .group-count")).to_have_text("")  # the rank stands on the first screen
    box(tab, "network.alpha").fill("7")
    tab.keyboard.press("Tab")
    expect(tab.locator("#group-network .group-count")).to_have_text("1 changed")
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    expect(tab.locator("#group-network .group-count")).to_have_text("")
    field(tab, "network.rank").get_by_role("button", name=f"Restore {preset_rank}").press("Enter")
    expect(box(tab, "network.rank")).to_have_value(str(preset_rank))
    expect(box(tab, "network.rank")).to_be_focused()
    expect(field(tab, "network.rank").get_by_text("Changed")).to_have_count(0)
    assert server_value(served, "network.rank") == preset_rank
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    expect(box(tab, "network.rank")).to_have_value(str(preset_rank + 1))
    tab.locator("#preset-bar").get_by_role("button", name="Redo").click()
    expect(box(tab, "network.rank")).to_have_value(str(preset_rank))


@pytest.mark.slow
def test_presets_are_saved_loaded_renamed_and_deleted(visit, served):
    tab = visit().open()
    unfold(tab, "network")
    box(tab, "network.rank").fill("7")
    tab.keyboard.press("Tab")
    menu(tab, "Save as ...")
    tab.get_by_role("textbox", name="Save as a preset").fill("mine")
    tab.get_by_role("button", name="Save", exact=True).last.click()
    chosen(tab, "mine (yours)")
    expect(tab.locator("#preset-state")).to_have_text("as saved")
    box(tab, "network.rank").fill("9")
    tab.keyboard.press("Tab")
    expect(tab.locator("#preset-state")).to_have_text("1 field changed")
    choose_preset(tab, "Starter style LoRA")
    expect(tab.locator("#preset-state")).to_have_text("as saved")
    choose_preset(tab, "mine (yours)")
    expect(box(tab, "network.rank")).to_have_value("7")
    menu(tab, "Rename ...")
    tab.get_by_role("textbox", name="Rename the preset").fill("ours")
    tab.get_by_role("button", name="Rename", exact=True).click()
    chosen(tab, "ours (yours)")
    assert [name for name in served.page.presets.names() if name.startswith("user/")] == ["user/ours"]
    menu(tab, "Delete ...")
    tab.get_by_role("button", name="Delete", exact=True).click()
    chosen(tab, "Defaults")
    assert not any(name.startswith("user/") for name in served.page.presets.names())
    expect(box(tab, "network.rank")).to_have_value("7")
    menu(tab, "Reset all to default")
    expect(box(tab, "network.rank")).to_have_value("16")
    assert served.page.project.job == new_project()


@pytest.mark.slow
def test_what_is_saved_holds_a_value_that_is_still_on_its_way(visit, served, monkeypatch):
    """Messages may overtake each other on a slow line; an action waits for the changes before it."""
    tab, slow = visit().open(), served.page.project.edit

    def later(*arguments, **named):
        time.sleep(1.0)
        return slow(*arguments, **named)

    monkeypatch.setattr(served.page.project, "edit", later)
    unfold(tab, "network")
    box(tab, "network.rank").fill("7")
    menu(tab, "Save as ...")
    tab.get_by_role("textbox", name="Save as a preset").fill("late")
    tab.get_by_role("button", name="Save", exact=True).last.click()
    chosen(tab, "late (yours)")
    assert served.page.presets.load("user/late").values["network"]["rank"] == 7
    expect(tab.locator("#preset-state")).to_have_text("as saved")
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    tab.locator("#preset-bar").get_by_role("button", name="Redo").click()
    expect(box(tab, "network.rank")).to_have_value("7")
    assert tab.locator("#said.error").count() == 0
    served.page.presets.delete("user/late")


@pytest.mark.slow
def test_a_preset_file_with_errors_is_listed_whole_and_applied_nowhere(visit, served, tmp_path):
    tab = visit().open()
    before = served.page.project.job
    bad = dump(before)
    bad["network"]["rank"] = "big"
    bad["optimizer"]["learning_rat"] = 1e-4
    bad["noise"]["max_timestep"] = 5000
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(bad))
    tab.set_input_files("#preset-file", str(path))
    said = tab.locator("#said.error")
    for words in ("network.rank", "optimizer.learning_rat", "noise.max_timestep", "broken.json"):
        expect(said).to_contain_text(words)
    assert served.page.project.job == before
    good = dump(before)
    good["network"]["rank"] = 5
    path.write_text(json.dumps(good))
    tab.set_input_files("#preset-file", str(path))
    chosen(tab, "broken (yours)")
    assert served.page.project.job.network.rank == 5
    served.page.presets.delete("user/broken")


@pytest.mark.slow
def test_the_json_pane_follows_the_form_and_is_checked(visit, served):
    tab = visit().open()
    unfold(tab, "json")
    pane = tab.locator("#json-text")
    expect(pane).to_have_value(json.dumps(dump(served.page.project.job), indent=2, ensure_ascii=False))
    box(tab, "saving.output_name").fill("from_the_form")
    tab.keyboard.press("Tab")
    tab.wait_for_function("document.querySelector('#json-text').value.includes('from_the_form')")
    text = pane.input_value()
    pane.fill(text.replace('"train_batch_size": 4', '"train_batch_size": 0'))
    tab.get_by_role("button", name="Apply").click()
    expect(tab.locator("#json-problems")).to_contain_text("Batch size is 0")
    assert served.page.project.job.dataset.train_batch_size == 4
    pane.fill(text.replace('"train_batch_size": 4', '"train_batch_size": 3'))
    tab.get_by_role("button", name="Apply").click()
    expect(tab.locator("#json-edited")).to_be_hidden()
    assert served.page.project.job.dataset.train_batch_size == 3


@pytest.mark.slow
def test_search_opens_the_group_of_a_field_by_its_sd_scripts_name_and_a_field_without_effect_says_why(visit):
    tab = visit().open()
    tab.locator("#field-search").fill("min_snr")
    tab.keyboard.press("Enter")
    expect(box(tab, "noise.min_snr_gamma")).to_be_focused()
    expect(box(tab, "noise.min_snr_gamma")).to_be_in_viewport()
    first = tab.locator("#field-results li").first
    shown = tab.locator("#train-form .group:visible")
    every = shown.count()
    for typed, name in (
        ("epochs", "max_train_epochs"),
        ("lr", "learning_rate"),
        ("rank", "network_dim"),
        ("warmup", "lr_warmup_steps"),
        ("unet lr", "unet_lr"),
        ("network_alpha", "network_alpha"),
    ):
        tab.locator("#field-search").fill(typed)
        expect(first.locator("code")).to_have_text(name)
    tab.locator("#field-search").fill("scheduler power")
    expect(shown).to_have_attribute("id", "group-schedule")
    tab.evaluate("atelier.goToField('noise.min_snr_gamma')")  # a message may lead to a field that is not searched
    expect(box(tab, "noise.min_snr_gamma")).to_be_focused()
    expect(shown).to_have_count(every)
    tab.locator("#field-search").fill("data_loader_n_workers")
    expect(tab.locator("#field-results")).to_contain_text("images are decoded by threads")
    tab.keyboard.press("Escape")
    box(tab, "schedule.max_train_steps").fill("40")
    tab.keyboard.press("Tab")
    expect(field(tab, "schedule.max_train_epochs").locator(".field-ignored")).to_have_text("Ignored: steps are set.")
    expect(tab.locator("#length-line")).to_contain_text("40 steps")


@pytest.mark.slow
def test_a_change_in_one_browser_reaches_the_other_and_an_old_one_is_refused(visit, served):
    tab, other = visit().open(), visit().open()
    other.evaluate(
        "atelier.ask = () => { window.deaf = true; return JSON.stringify({have: atelier.have, tab: 'none'}); }"
    )
    other.wait_for_function("window.deaf")  # this one hears of nothing: every question that it asked before is answered
    box(tab, "saving.output_name").fill("first")
    tab.keyboard.press("Tab")
    assert until(lambda: served.page.project.job.saving.output_name == "first")
    box(other, "saving.output_name").fill("second")
    other.keyboard.press("Tab")
    expect(other.locator("#said.error")).to_contain_text("changed in another browser")
    expect(box(other, "saving.output_name")).to_have_value("first")
    assert served.page.project.job.saving.output_name == "first"
    box(other, "saving.output_name").fill("third")
    other.keyboard.press("Tab")
    expect(box(tab, "saving.output_name")).to_have_value("third")


@pytest.mark.slow
def test_broken_images_are_left_out_by_the_button_beside_the_message(window, served, tmp_path):
    served.page.project.keep("Dataset", {})
    work_parts.image(tmp_path / "set" / "good.png", caption="a fox")
    for number in range(2):
        (tmp_path / "set" / f"bad{number}.png").write_bytes(b"no image")
    tab = window.open()
    field(tab, "dataset.folder").locator("input").fill(str(tmp_path / "set"))
    tab.keyboard.press("Tab")
    problems = tab.locator("#preflight-first")
    expect(problems.locator(".problem.error")).to_have_count(2)
    tab.locator("#start").click()  # refused: the same button stands in the message
    expect(tab.locator("#said").get_by_role("button", name="Skip 2 broken images")).to_be_visible()
    problems.get_by_role("button", name="Skip 2 broken images").click()
    expect(problems.locator(".problem.error")).to_have_count(0)
    expect(tab.locator("#preflight-problems")).to_contain_text("skipped")
    expect(problems.get_by_role("button", name="Skip")).to_have_count(0)
    expect(tab.locator("#start")).not_to_have_class(re.compile("blocked"))
    assert served.page.project.job.dataset.skip_broken


@pytest.mark.slow
def test_the_verdict_is_green_only_once_every_image_was_decoded(window, served, tmp_path, monkeypatch):
    """Damage behind a right header is found by decoding only."""
    served.page.project.keep("Dataset", {})
    for number in range(20):
        work_parts.image(tmp_path / "set" / f"{number:02}.png", caption="a fox")
    broken = tmp_path / "set" / "04.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    tab = window.open()
    verdict = tab.locator("#preflight-verdict")
    expect(verdict).to_have_attribute("data-state", "fine")
    gate, real = threading.Semaphore(0), look.open_decoded
    monkeypatch.setattr(look, "open_decoded", lambda path, **more: gate.acquire() and real(path, **more))
    served.page.project.edit("dataset.folder", str(tmp_path / "set"))
    tab.evaluate(
        """() => {
            const verdict = document.querySelector("#preflight-verdict");
            window.seen = [];
            new MutationObserver(() => seen.push([verdict.dataset.state, verdict.textContent])).observe(
                verdict, {attributes: true, childList: true, characterData: true, subtree: true});
        }"""
    )
    gate.release(7)
    expect(verdict).to_have_text("Reading images: 7 of 20")
    expect(verdict).to_have_attribute("data-state", "busy")
    gate.release(100)
    remedy = tab.locator("#preflight-first").get_by_role("button", name="Skip 1 broken image")
    expect(remedy).to_be_visible()
    expect(verdict).to_have_attribute("data-state", "bad")
    assert "fine" not in [state for state, _ in tab.evaluate("seen")]
    remedy.click()
    expect(verdict).to_contain_text("19 of 20 images will train")
    expect(verdict).to_have_attribute("data-state", "warn")


@pytest.mark.slow
def test_own_images_are_set_up_in_one_step_on_train_and_undo_takes_it_back(window, served, tmp_path):
    served.page.project.keep("Dataset", {})
    for number in range(5):
        size = (150, 300) if number == 0 else (300, 150)
        work_parts.image(tmp_path / "mira" / f"{number}.png", size, caption=f"mira on day {number}")
    tab = window.open()
    expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
    expect(tab.locator("#setup-card")).to_be_hidden()
    field(tab, "dataset.folder").locator("input").fill(str(tmp_path / "mira"))
    tab.keyboard.press("Tab")
    card = tab.locator("#setup-card")
    expect(card.get_by_role("button", name="Apply")).to_be_visible()
    expect(tab.locator("#preflight-verdict")).to_have_attribute("data-state", "warn")
    expect(tab.locator("#preflight-first .problem")).to_have_count(1)
    expect(tab.locator("#preflight-first")).to_contain_text("starter")
    assert tab.locator("#preflight").inner_text().count("photographs") == 1
    expect(tab.locator(".crop-box")).to_have_count(5)
    shapes = tab.evaluate(
        "[...document.querySelectorAll('.crop-box')].map((box) => [box.clientWidth / box.clientHeight, parseFloat(box.style.aspectRatio)])"
    )
    assert {round(ratio) for _, ratio in shapes} == {0, 2} and all(
        abs(shown - wanted) < 0.1 for shown, wanted in shapes
    )
    before = served.page.project.job
    card.get_by_role("button", name="Apply").click()
    expect(box(tab, "saving.output_name")).to_have_value("mira")
    expect(box(tab, "samples.sample_prompts")).to_have_value(re.compile("mira on day"))
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    expect(box(tab, "saving.output_name")).to_have_value(before.saving.output_name)
    assert served.page.project.job == before
    card.get_by_role("button", name="Keep current settings").click()
    expect(card).to_be_hidden()
    assert served.page.project.job == before
    tab.get_by_role("tab", name="Dataset").click()
    expect(tab.locator("#ds-sources")).to_contain_text("5 images")
    expect(tab.locator("#ds-setup").get_by_role("button")).to_have_count(0)
    served.page.project.keep("Dataset", {})
    tab.locator("#ds-again").click()
    tab.locator("#ds-setup").get_by_role("button", name="Apply").click()
    until(lambda: served.page.project.job.saving.output_name == "mira")
    assert served.page.project.job.saving.output_name == "mira"


@pytest.mark.slow
def test_a_recipe_shows_what_it_sets_and_leaves_the_users_own_choices(visit, served):
    project = served.page.project
    project.edit("saving.output_name", "mira")
    folder = project.job.dataset.folder
    tab = visit().open()
    expect(tab.locator("#recipe")).to_be_hidden()
    choose_preset(tab, "SD 1.5 LoRA: subject, 4 GB")
    expect(tab.locator("#recipe")).to_be_visible()
    tab.get_by_text("What this recipe sets", exact=True).click()
    rows = tab.locator("#recipe-sets dt")
    recipe = served.page.presets.load("sd15_lora_subject_4gb")
    expect(rows).to_have_count(len(recipe.reasons))
    expect(tab.locator("#recipe-sets dd")).to_have_text(list(recipe.reasons.values()))
    assert (project.job.saving.output_name, project.job.dataset.folder) == ("mira", folder)
    assert project.job.dataset.resolution == 512 and project.job.network.rank == 8
    tab.locator("#recipe-sets").get_by_role("button", name="Gradient checkpointing").click()
    expect(field(tab, "memory.gradient_checkpointing")).to_be_visible()
    tab.evaluate("atelier.act('undo')")
    assert until(lambda: project.preset == "starter_lora"), (project.can_undo, tab.locator("#said").inner_text())
    expect(tab.locator("#recipe")).to_be_hidden()


@pytest.mark.slow
def test_a_recipe_for_another_family_is_told_next_to_the_preset_with_two_ways_out(window, served):
    tab = window.open()
    headed = preset(tab).locator("optgroup").evaluate_all("(groups) => groups.map((group) => group.label)")
    assert [group.split(" (")[0] for group in headed] == ["Presets", "SD 1.x", "SD 2.x", "SDXL"]
    choose_preset(tab, "SDXL LoRA, 12 GB")
    fit = tab.locator("#recipe-fit")
    expect(fit).to_be_visible()
    facts = served.page.checks.facts(served.page.project.job)
    assert "recipe.other-family" not in [each["code"] for each in facts["problems"]] and facts["warned_by_recipe"] == 1
    expect(tab.locator("#preflight-verdict")).to_have_attribute("data-state", "warn")
    fit.get_by_role("button", name="SDXL model").click()
    expect(tab.locator("[data-catalog]:visible [data-entry=illustrious]")).to_contain_text("SDXL")
    tab.get_by_role("button", name="Close", exact=True).click()
    fit.get_by_role("button", name="SD 1.5").click()
    until(lambda: served.page.project.recipe().family == "sd1")
    assert served.page.project.recipe().family == "sd1"
    expect(fit).not_to_contain_text("SDXL")
    expect(tab.locator("#preflight-verdict")).not_to_have_attribute("data-state", "bad")
