"""A grid in a real browser: asked for in the panel, gone through by keyboard, enlarged."""

from __future__ import annotations

import re

import pytest
from made_runs import make_run
from PIL import Image
from playwright.sync_api import expect

from core.engine.engine import Engine
from core.generation.grids.folder import list_grids
from core.generation.grids.making import begin
from core.record.preference import read_choices
from core.settings.check import build
from core.settings.job import GridJob
from tests.generation.test_run import small_lora


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page over a grid of three by two whose last cell failed and whose last but one waits; nothing is generated."""
    from page_server import Served

    page = Served(tmp_path_factory.mktemp("grids"), engine=lambda workspace: Engine(workspace, "cpu"))
    grid = {"x_axis": "steps", "x_values": "1, 2, 3", "y_axis": "seed", "y_values": "5, 6", "name": "three by two"}
    folder = begin(build(GridJob, {"grid": grid}), page.workspace)
    folder.cells.mkdir()
    for number, place in enumerate([(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)]):
        Image.new("RGB", (64, 64), f"hsl({60 * number}, 50%, 50%)").save(folder.cell(place))
    folder.change(failed={(2, 1, 0): "The device ran out of memory"}, state="stopped")
    yield page
    page.close()


@pytest.mark.slow
def test_a_grid_is_opened_gone_through_by_keyboard_and_enlarged_and_another_asked_for(made, chromium):
    from page_server import Visit, card_of

    visit = Visit(chromium, made.url)
    tab = visit.open("Generate")
    card_of(tab, "grid")
    tab.get_by_role("button", name="Open the grid three by two").click()
    cells = tab.locator("button.grid-cell")
    expect(cells).to_have_count(4)
    expect(tab.locator(".grid-table thead th")).to_have_count(3)
    expect(tab.locator(".grid-cell.failed")).to_contain_text("ran out of memory")
    expect(tab.get_by_role("button", name="Resume")).to_be_visible()
    expect(tab.locator("#gen-newest")).to_be_hidden()
    cells.first.focus()
    tab.keyboard.press("ArrowRight")
    expect(cells.nth(1)).to_be_focused()
    tab.keyboard.press("Enter")
    light = tab.locator("dialog.grid-light")
    expect(light).to_contain_text("Sampling steps: 2, Seed: 5")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowDown")
    expect(light).to_contain_text("Sampling steps: 1, Seed: 6")
    expect(light.get_by_role("button", name="Next")).to_be_disabled()  # the cells next to it are not there
    tab.keyboard.press("ArrowUp")
    light.get_by_role("button", name="Next").click()
    expect(light).to_contain_text("Sampling steps: 2, Seed: 5")
    light.get_by_role("button", name="Previous").click()
    expect(light.get_by_role("button", name="Previous")).to_be_disabled()
    for words in ("2, Seed: 5", "3, Seed: 5", "1, Seed: 6"):  # from row to row
        light.get_by_role("button", name="Next").click()
        expect(light).to_contain_text(f"Sampling steps: {words}")
    expect(light.get_by_role("link", name="Download")).to_have_attribute("download", re.compile("_x1_y2_z1.png$"))
    for words in ("Use settings", "Image to image", "Inpaint", "Upscale"):
        expect(light.get_by_role("button", name=words)).to_be_visible()
    light.get_by_role("button", name="Upscale").click()
    asks = tab.get_by_role("dialog", name="Upscale")
    expect(asks.get_by_label("Size")).to_contain_text("2 times: 128 × 128 pixels")
    tab.keyboard.press("Escape")
    tab.keyboard.press("Escape")
    expect(light).to_have_count(0)
    expect(cells.nth(3)).to_be_focused()

    expect(tab.locator("#grid-x-axis")).to_be_visible()  # the card stays though it was drawn anew
    tab.locator("#grid-x-axis").fill("sampler")
    tab.locator("#grid-x-axis").press("Tab")
    tab.get_by_role("button", name="All values of X").click()
    expect(tab.locator("#gen-grid [role=status]")).to_contain_text("images")
    tab.locator("#gen-table").get_by_role("button", name="Close").click()
    expect(tab.locator(".grid-shown")).to_have_count(0)
    expect(tab.locator("#gen-newest")).to_be_visible()
    visit.close()
    assert visit.errors == [] and visit.outside == []


@pytest.mark.slow
def test_values_of_a_grid_are_chosen_blind_by_keyboard_and_never_by_images_that_are_still_loading(made, chromium):
    from page_server import Visit, card_of

    visit = Visit(chromium, made.url)
    tab = visit.open("Generate")
    card_of(tab, "grid")
    tab.get_by_role("button", name="Open the grid three by two").click()
    (folder,) = list_grids(made.workspace)
    away = folder.cell((0, 0, 0)).rename(folder.path / "away.png")
    tab.get_by_role("button", name="Blind choice").click()
    box = tab.get_by_role("dialog", name="Blind choice")
    expect(box).to_contain_text("2 images are not made yet")
    expect(box.locator(".verdict-stage")).to_be_hidden()
    away.rename(folder.cell((0, 0, 0)))
    expect(box.locator(".verdict-stage")).to_be_visible()  # by itself
    tab.keyboard.press("Escape")
    held, free = [], []
    tab.route("**/atelier/file**", lambda route: route.continue_() if free else held.append(route))
    tab.get_by_role("button", name="Blind choice").click()
    box = tab.get_by_role("dialog", name="Blind choice")
    expect(box).to_contain_text('Which is better for "Seed 5"?')
    tab.keyboard.press("ArrowLeft")
    expect(box.get_by_role("button", name="Left", exact=True)).to_be_disabled()
    assert read_choices(folder.path) == [], "nobody has seen an image"
    free.append(True)
    for route in held:
        route.continue_()
    answers = box.locator(".verdict-answers")
    for number, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowDown", "s", *["ArrowLeft"] * 7], 1):
        expect(answers).to_have_attribute("data-number", str(number))
        tab.keyboard.press(key)
    expect(answers).to_have_attribute("data-number", "12")
    assert [each.outcome for each in read_choices(folder.path)][:4] == ["left", "right", "equal", "skip"]
    box.get_by_role("button", name="End").click()
    expect(box.locator("tbody tr")).to_have_count(3)
    expect(box).to_contain_text("After 10 blind choices")
    box.get_by_role("button", name="Continue").click()
    tab.keyboard.press("Backspace")
    expect(answers).to_have_attribute("data-number", "11")
    tab.keyboard.press("Escape")
    expect(box).to_have_count(0)
    made_choices = read_choices(folder.path)
    tab.unroute("**/atelier/file**")
    tab.route("**/atelier/file**", lambda route: route.abort())
    tab.get_by_role("button", name="Blind choice").click()
    box = tab.get_by_role("dialog", name="Blind choice")
    expect(box).to_contain_text("An image could not be loaded: skip these two")
    expect(box.get_by_role("button", name="Left", exact=True)).to_be_disabled()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("s")
    expect(box.locator(".verdict-answers")).to_have_attribute("data-number", "12")
    assert [each.outcome for each in read_choices(folder.path)[len(made_choices) :]] == ["skip"]
    tab.unroute("**/atelier/file**")
    tab.keyboard.press("Escape")
    visit.errors[:] = [each for each in visit.errors if "ERR_FAILED" not in each]
    expect(tab.locator(".grid-shown")).not_to_contain_text("blind choices")
    tab.locator("#gen-table").get_by_role("button", name="Close").click()
    visit.close()
    assert visit.errors == [] and visit.outside == []


@pytest.mark.slow
def test_a_lora_is_dragged_by_its_image_onto_an_axis(made, chromium):
    from page_server import Visit, card_of

    small_lora(file := made.workspace.outputs / "owl.safetensors")
    made.page.project.keep("Grids", {})
    made.page.project.keep("Generate", {"values": {"loras": [{"file": str(file), "strength": 1.0}]}})
    visit = Visit(chromium, made.url)
    tab = visit.open("Generate")
    card_of(tab, "grid")
    thumb = tab.locator("#gen-loras [data-lora] > .lora-thumb")
    tab.locator("#grid-y-axis").fill("steps")
    tab.locator("#grid-y-axis").press("Tab")
    expect(tab.locator("#gen-grid [role=status]")).to_contain_text("no values")
    axes = tab.locator(".grid-axis")
    thumb.drag_to(axes.nth(1))
    thumb.drag_to(axes.first)
    expect(axes.first.locator(".axis-cards li")).to_have_count(1)
    expect(axes.first.locator(".axis-cards li")).to_contain_text("owl")
    expect(tab.locator("#grid-x-axis")).to_have_value("lora")
    expect(tab.locator("#grid-y-axis")).to_have_value("steps")
    expect(tab.locator(".grid-axis.aimed")).to_have_count(0)
    for width in (1400, 390):  # a card is as high everywhere
        tab.set_viewport_size({"width": width, "height": 900})
        heights = (
            "nodes => nodes.filter((node) => node.checkVisibility()).map((node) => node.getBoundingClientRect().height)"
        )
        assert tab.locator(".lora-cards > li").evaluate_all(heights) == [72, 72], width
    visit.close()
    assert visit.errors == [] and visit.outside == []


@pytest.mark.slow
def test_the_list_of_an_axis_stays_open_until_all_are_chosen(made, chromium):
    from page_server import Visit, card_of

    for name in ("crow", "hare", "moth"):
        run = make_run(made.workspace.runs, f"20260102-030405_{name}", saved=(20,))
        small_lora(run / "checkpoints" / f"{name}-step00000020.safetensors")
    made.page.project.keep("Grids", {"fields": {"x_axis": "lora"}})
    visit = Visit(chromium, made.url)
    tab = visit.open("Generate")
    card_of(tab, "grid")
    add, values = (
        tab.get_by_role("button", name="LoRA for X", exact=True),
        tab.locator(".grid-axis").first.locator(".axis-cards b"),
    )
    add.click()
    rows = tab.locator("#pick-list > li")
    for name in ("crow", "moth"):
        rows.filter(has_text=name).locator(".choose").click()
        expect(rows.filter(has_text=name)).to_have_class(re.compile("taken"))
        expect(values.filter(has_text=name)).to_have_count(1)
    rows.filter(has_text="moth").locator(".choose").dispatch_event("click")  # once is enough
    expect(tab.locator(".models-dialog [aria-live]")).to_contain_text("2 added")
    tab.locator("#pick-find").fill("moth")
    expect(rows).to_have_count(1)
    expect(rows).to_have_class(re.compile("taken"))
    tab.get_by_role("dialog").get_by_role("button", name="Close").click()
    expect(tab.locator("dialog")).to_have_count(0)
    expect(add).to_be_focused()
    expect(values).to_have_text(["crow", "moth"])
    visit.close()
    assert visit.errors == [] and visit.outside == []
