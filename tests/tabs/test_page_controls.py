"""ControlNets, CLIP and VGG guidance in a real browser, filled in by keyboard: what is refused, seen and sent to the job."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from core.control.controlnet import from_unet
from core.control.controlnet_file import write_control_net
from core.engine.engine import Engine
from core.families import family
from core.record.workspace import PROJECT, Workspace
from core.settings.generation.controls import ControlUse
from tests.tools.images.test_hints import write_net


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from page_server import Served

    served = Served(tmp_path_factory.mktemp("controls"), engine=lambda workspace: Engine(workspace, "cpu"))
    folder = served.workspace.runs / "one" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.no_grad():
        net = from_unet(family("sd1").load(PROJECT / "models/starter").denoiser, 0)
    write_control_net(folder / "edges.safetensors", dict(net.state_dict()), "sd1", {})
    models = served.workspace.outputs / "preprocessors"
    write_net(models / "half/model.onnx")
    served.workspace.inputs.mkdir(parents=True)
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((32, 32, 96, 96), fill="black")
    image.save(served.workspace.inputs / "disc.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "preprocessors", property(lambda workspace: models))
        for name in ("PREVIEW_SECONDS", "MAP_SECONDS"):
            patch.setattr(f"tabs.generate.controls.{name}", 60.0)  # a busy machine is slow
        yield served
    served.close()


@pytest.mark.slow
def test_a_control_net_is_added_by_keyboard_previewed_and_removed(page, chromium):
    from page_server import Visit

    visit = Visit(chromium, page.url)
    tab = visit.open("Generate")
    group = tab.locator("#gen-cards [data-card=controls]")
    tab.locator("#gen-add").get_by_role("button", name="+ ControlNet").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#pick-find")).to_be_focused()  # the list of ControlNets
    tab.keyboard.press("Escape")
    expect(tab.locator("#gen-control_net")).to_have_value("")
    tab.locator("#gen-control_net").fill("nowhere")
    tab.keyboard.press("Tab")
    expect(tab.get_by_text("No ControlNet 'nowhere'")).to_be_visible()
    tab.locator("#gen-control_net").fill(str(page.workspace.runs / "one/checkpoints/edges.safetensors"))
    tab.keyboard.press("Tab")
    row = group.locator("li.net")
    expect(row).to_have_count(1)
    expect(row.locator(".badge")).to_have_text("ControlNet")
    expect(group.locator("> .strip")).to_contain_text("1 of 1 net on")
    tab.locator("#net-0-image").fill(str(page.workspace.inputs / "disc.png"))
    tab.keyboard.press("Tab")
    expect(row.locator("img.gen-thumb")).to_be_visible()
    expect(tab.locator("#net-0-edge_low")).to_have_count(0)
    tab.locator("#net-0-preprocessor").select_option("canny")
    expect(tab.locator("#net-0-edge_low")).to_be_visible()
    expect(row.locator("img.net-map")).to_be_visible()  # of a plain preprocessor, without a click
    row.get_by_role("button", name="Preview").click()
    expect(row.locator("img.net-hint")).to_be_visible()
    expect(row.locator("img.net-map")).to_have_count(0)
    edges = row.locator("img.net-hint").get_attribute("src")
    preprocessor = tab.locator("#net-0-preprocessor")
    preprocessor.select_option("half")  # a model
    expect(tab.locator("#net-0-edge_low")).to_have_count(0)
    expect(row.locator(f"img.net-hint:not([src='{edges}'])")).to_be_visible()
    expect(preprocessor.locator("option:checked")).to_have_text("half")
    expect(tab.locator("#net-0-hint_model")).to_have_count(0)
    preprocessor.select_option("model")  # any other
    tab.locator("#net-0-hint_model").fill(str(page.workspace.outputs / "preprocessors/half"))
    tab.keyboard.press("Tab")
    expect(row.locator("img.net-hint")).to_be_visible()
    expect(preprocessor.locator("option:checked")).to_have_text("ONNX model")
    preprocessor.select_option("canny")
    fitted = row.locator("img.net-hint").get_attribute("src")
    row.get_by_text("Mode and fit").click()
    tab.locator("#net-0-fit").select_option("fill")
    tab.locator(".gen-ratios").get_by_text("Custom").click()
    for name, side in (("width", "256"), ("height", "128")):
        tab.locator(f"#gen-{name}").fill(side)
        tab.keyboard.press("Tab")
    expect(row.locator(f"img.net-hint:not([src='{fitted}'])")).to_have_js_property("naturalHeight", 128)
    other = Visit(chromium, page.url)
    theirs = other.open("Generate").locator("#gen-cards [data-card=controls]")
    expect(theirs.get_by_role("button", name="Preview", exact=True)).to_be_visible()
    expect(theirs.locator("img.net-hint")).to_have_count(0)
    other.close()
    tab.locator("#net-0-weight").fill("9")
    tab.keyboard.press("Tab")
    expect(tab.get_by_text("Weight cannot be '9'")).to_be_visible()
    tab.locator("#net-0-weight").fill("0.5")
    tab.keyboard.press("Tab")
    expect(tab.locator("#net-0-weight")).to_have_value("0.5")
    row.get_by_label("Use one, edges").uncheck()
    expect(group.locator("> .strip")).to_contain_text("0 of 1 net on")
    expect(row.locator("b")).to_be_visible()  # what is off stays in sight
    (kept,) = page.page.project.tab_state("Generate")["values"]["nets"]
    assert ControlUse.model_validate(kept).weight == 0.5 and not kept["enabled"]
    row.get_by_role("button", name="Remove one, edges").click()
    expect(row).to_have_count(0)
    visit.close()
    assert visit.errors == [] and visit.outside == []
