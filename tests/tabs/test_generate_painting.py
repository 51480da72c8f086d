"""Initial images, masks and regions of Generate: what may be saved, where it goes, and painting in a browser."""

from __future__ import annotations

import base64
import re
from functools import partial
from io import BytesIO

import pytest
from page_server import card_of
from PIL import Image
from playwright.sync_api import expect
from work_parts import answered, event, make_page, said, wait_until

from core.generation.effects.regions import masks_of
from tabs.generate.tab import GenerateHandlers


@pytest.fixture
def desk(tmp_path):
    return GenerateHandlers(make_page(tmp_path))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "fox.png"
    Image.new("RGB", (96, 64), "teal").save(path)
    return path


def png(image):
    written = BytesIO()
    image.save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def shown(answer):
    return Image.open(BytesIO(base64.b64decode(answer["mask"].partition(",")[2])))


def codes(answer):
    return [problem["code"] for problem in answer.get("problems", [])]


def test_a_dropped_image_becomes_the_initial_one_and_is_kept_once(desk, tmp_path):
    for _ in range(2):
        upload = tmp_path / "upload" / "My fox.png"
        upload.parent.mkdir(exist_ok=True)
        Image.new("RGB", (96, 64), "teal").save(upload)
        answer = desk.begin_with(str(upload))
        assert answer["initial"] is None and not upload.exists()
    (kept,) = desk.page.workspace.inputs.iterdir()
    assert desk._values()["image_path"] == str(kept) and kept.stem.startswith("My fox_")


@pytest.mark.parametrize("name, kind", [("a.gif", "GIF"), ("a.avif", "AVIF"), ("a.bmp", "BMP"), ("photo.jpg", "MPO")])
def test_an_image_of_another_format_is_kept_as_png_with_what_is_transparent(desk, tmp_path, name, kind):
    picture = Image.new("RGB", (96, 64), "teal")
    if kind in ("GIF", "AVIF"):
        picture.putalpha(Image.new("L", (96, 64), 0))
    picture.save(tmp_path / name, kind, **({"save_all": True, "append_images": [picture]} if kind == "MPO" else {}))
    desk.follow(str(tmp_path / name))
    with Image.open(desk._values()["control_image"]) as kept:
        assert (kept.format, kept.size) == ("PNG", (96, 64))
        assert kept.getpixel((0, 0))[3:] == ((0,) if kind in ("GIF", "AVIF") else ())


def test_the_mask_of_another_image_goes_when_an_image_is_dropped(desk, tmp_path):
    def drop(color):
        Image.new("RGB", (96, 64), color).save(tmp_path / "upload.png")
        desk.begin_with(str(tmp_path / "upload.png"))

    drop("teal")
    desk.act(event("field", "mask_path", str(tmp_path / "mask.png")))
    drop("teal")
    assert desk._values()["mask_path"]
    drop("red")
    assert not desk._values()["mask_path"]


def test_a_folder_of_initial_images_is_named_with_its_number_of_images(desk, picture):
    for number in range(3):
        (desk.page.workspace.inputs / "set").mkdir(parents=True, exist_ok=True)
        (desk.page.workspace.inputs / "set" / f"{number}.png").write_bytes(picture.read_bytes())
    row = desk.painting.row("image_to_image", desk._values() | {"image_path": str(desk.page.workspace.inputs / "set")})
    assert "3 images in set" in row and "More also" not in row
    assert "More also" in desk.painting.row("image_to_image", desk._values())


@pytest.mark.parametrize("name, content", [("a.png", b"no image"), ("a.png", b""), ("a.svg", b"<svg/>")])
def test_what_is_no_image_is_refused_and_not_kept(desk, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    desk.begin_with(str(tmp_path / name))
    assert "image.unreadable" in said(desk)
    assert not desk._values()["image_path"] and not desk.page.workspace.inputs.exists()


def test_a_mask_is_saved_as_a_file_of_its_own_and_the_next_one_starts_from_it(desk, picture):
    asked = {"image": str(picture), "mask": ""}
    opened = desk.painting.answer({"act": "mask", **asked})
    assert opened["mask"] == "" and (opened["image"]["width"], opened["image"]["height"]) == (96, 64)
    mask = Image.new("RGB", (96, 64))
    mask.paste("white", (0, 0, 48, 64))
    answer = desk.painting.answer({"act": "mask save", "png": png(mask), **asked})
    path = answer["fields"]["mask_path"]
    with Image.open(path) as saved:
        assert (saved.mode, saved.getpixel((10, 10)), saved.getpixel((90, 10))) == ("L", 255, 0)
    again = shown(desk.painting.answer({"act": "mask", "image": str(picture), "mask": path}))
    assert again.size == (96, 64) and again.getpixel((10, 10)) == 255
    other = desk.painting.answer({"act": "mask save", "png": png(Image.new("RGB", (96, 64), "white")), **asked})
    assert other["fields"]["mask_path"] != path and len(list(desk.page.workspace.inputs.iterdir())) == 2


def test_the_colors_are_the_regions_that_a_generation_reads(desk):
    two = desk.painting.answer({"act": "regions", "prompt": "a fox AND a dog"})
    assert [each["color"] for each in two["colors"]] == ["#ff0000", "#00ff00"]
    assert [each["name"] for each in two["colors"]] == ["a fox", "a dog"]
    none = desk.painting.answer({"act": "regions", "prompt": "a fox"})["colors"]
    assert [each["color"] for each in none] == ["#ff0000", "#00ff00", "#0000ff"]
    loras = [{"file": name, "strength": 1.0, "enabled": name != "off"} for name in ("off", "ink.safetensors")]
    desk.presets.put(desk._values() | {"loras": loras})
    named = desk.painting.answer({"act": "regions", "prompt": "a fox AND a dog"})
    assert [each["name"] for each in named["colors"]] == ["a fox \u00b7 ink", "a dog"], "as the engine has it"
    desk.presets.put(desk._values() | {"loras": []})
    prompt = " AND ".join("abcde")
    five = desk.painting.answer({"act": "regions", "prompt": prompt})
    assert len(five["colors"]) == 5
    size = five["image"]["width"], five["image"]["height"]
    painted = Image.new("RGB", size)
    for number, each in enumerate(five["colors"]):
        painted.paste(each["color"], (number * 20, 0, number * 20 + 20, 50))
    fields = desk.painting.answer({"act": "regions save", "prompt": prompt, "png": png(painted)})["fields"]
    assert fields["network_regional_mask_max_color_codes"] == "5"
    masks = masks_of(Image.open(fields["region_map"]), 5, 5)
    assert [float(masks[number, 10, number * 20 + 10]) for number in range(5)] == [1] * 5
    assert float(masks.sum(0).max()) == 1


def test_the_card_of_regions_says_how_prompts_are_joined_until_they_are(desk):
    hint = "a fox AND a dog"
    assert hint in desk.painting.row("regions", desk._values() | {"prompt": "a fox"})
    assert hint not in desk.painting.row("regions", desk._values() | {"prompt": "a fox AND a cat"})


def test_what_cannot_be_painted_is_said(desk, picture, tmp_path):
    ask = partial(answered, desk.painting.answer)
    assert codes(ask({"act": "mask"})) == ["paint.no-image"]
    assert codes(ask({"act": "mask", "image": str(tmp_path)})) == ["paint.folder"]
    assert codes(ask({"act": "mask", "image": str(tmp_path / "none.png")})) == ["image.missing"]
    assert codes(ask({"act": "mask save", "image": str(picture), "png": "%"})) == ["mask.not-base64"]
    small = png(Image.new("RGB", (8, 8)))
    assert codes(ask({"act": "mask save", "image": str(picture), "png": small})) == ["mask.other-size"]
    assert codes(ask({"act": "regions save", "png": small})) == ["mask.other-size"]
    assert codes(ask({"act": "other"})) == ["paint.unknown"]
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert codes(ask({"act": "mask", "image": str(tmp_path / "broken.png")})) == ["image.unreadable"]


def test_a_name_without_end_is_said_and_draws_no_thumbnail(desk):
    for asked in ({"act": "mask", "image": "a" * 5000}, {"act": "regions", "image": "b" * 300}):
        assert codes(answered(desk.painting.answer, asked)) == ["path.invalid"]
    assert desk.painting.thumb("a" * 5000, "Mask") == ""


def test_a_shared_page_paints_over_images_of_open_folders_only(tmp_path, picture):
    desk = GenerateHandlers(make_page(tmp_path / "home", shared=True))
    assert codes(answered(desk.painting.answer, {"act": "mask", "image": str(picture)})) == ["shared.path-closed"]
    desk.begin_with(str(picture))
    path = desk._values()["image_path"]
    assert not codes(answered(desk.painting.answer, {"act": "mask", "image": path}))
    desk.act(event("field", "mask_path", path))
    desk.page.roots.admit(desk.presets.job(desk._values()))
    assert desk.painting.row("image_to_image", desk._values()).count("<img") == 2
    assert "<img" not in desk.painting.row("image_to_image", {"image_path": str(picture), "mask_path": "/etc/passwd"})


RENAMED = """(data) => { const other = new DataTransfer();
other.items.add(new File([data.files[0]], "copied.png", {type: "image/png"})); return other; }"""


@pytest.mark.slow
def test_an_image_is_dropped_painted_over_and_its_regions_painted(window, tmp_path):
    path = tmp_path / "fox.png"
    Image.new("RGB", (200, 100), "teal").save(path)
    tab = window.open("Generate")
    card_of(tab, "image_to_image")
    data = tab.evaluate_handle(
        """(bytes) => { const data = new DataTransfer(); const raw = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
        data.items.add(new File([raw], "fox.png", {type: "image/png"})); return data; }""",
        base64.b64encode(path.read_bytes()).decode(),
    )
    tab.dispatch_event("[data-card=image_to_image] h3", "drop", {"dataTransfer": data})
    expect(tab.locator("#gen-cards .gen-thumb")).to_have_count(1)
    paste = (
        """(data) => document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}))"""
    )
    tab.evaluate(paste, data.evaluate_handle(RENAMED))
    expect(tab.locator("#gen-image_path")).to_have_value(re.compile("copied_"))
    tab.locator("[data-paint=mask]").click()
    tab.locator(".painter[data-ready]").wait_for()
    assert covered(tab) == [0, 0]  # nothing is made anew, and nothing is covered
    stroke(tab, (0.2, 0.5), (0.4, 0.5))
    assert covered(tab) == [255, 0]  # only what was painted
    tab.keyboard.press("i")
    assert covered(tab) == [0, 255]
    tab.keyboard.press("Control+z")
    before = tab.evaluate("scrollY")
    tab.keyboard.press("Control+s")
    expect(tab.locator("#gen-cards .gen-thumb")).to_have_count(2)
    with Image.open(tab.locator("#gen-mask_path").input_value()) as mask:
        assert [mask.getpixel(place) for place in ((60, 50), (150, 50))] == [255, 0] and mask.size == (200, 100)
    wait_until(lambda: tab.evaluate("scrollY") == before)
    tab.locator("[data-paint=mask]").click()
    tab.locator(".painter[data-ready]").wait_for()
    assert covered(tab) == [255, 0]  # as it was saved
    tab.keyboard.press("Escape")
    card_of(tab, "regions")
    tab.locator("[data-paint=regions]").click()
    tab.locator(".painter[data-ready]").wait_for()
    expect(tab.locator(".painter").get_by_role("button", name="Save regions")).to_be_disabled()
    expect(tab.locator(".painter output").first).to_have_text("33 px")  # a sixth of the longer side
    tab.locator(".painter").get_by_role("button", name="Columns").click()
    assert region_at(tab, 0, 66, 67, 132, 133, 199) == [*[[255, 0, 0]] * 2, *[[0, 255, 0]] * 2, *[[0, 0, 255]] * 2]
    tab.keyboard.press("Control+z")
    assert region_at(tab, 10, 110) == [[0, 0, 0], [0, 0, 0]]
    tab.locator(".painter").get_by_role("slider", name="Size").fill("12")
    stroke(tab, (0.2, 0.3), (0.2, 0.7))
    tab.keyboard.press("2")
    stroke(tab, (0.7, 0.3), (0.7, 0.7))
    tab.locator(".painter").get_by_role("button", name="Save regions").click()
    expect(tab.locator("#gen-region_map")).to_have_value(re.compile("regions_"))
    with Image.open(tab.locator("#gen-region_map").input_value()) as regions:
        assert [regions.getpixel(place) for place in ((40, 50), (140, 50), (100, 50))] == [
            (255, 0, 0),
            (0, 255, 0),
            (0, 0, 0),
        ]
        assert {color for _, color in regions.getcolors()} == {(255, 0, 0), (0, 255, 0), (0, 0, 0)}


def covered(tab):
    """How far the overlay covers a painted and an unpainted place of the image."""
    read = """() => { const pen = document.querySelector(".painter canvas").getContext("2d");
    return [[60, 50], [150, 50]].map((at) => pen.getImageData(...at, 1, 1).data[3]); }"""
    return tab.evaluate(read)


def region_at(tab, *places):
    """The colors in the middle row of the region map, from left to right."""
    read = """(places) => { const pen = document.querySelector(".painter canvas").getContext("2d");
    return places.map((x) => [...pen.getImageData(x, 50, 1, 1).data].slice(0, 3)); }"""
    return tab.evaluate(read, list(places))


def stroke(tab, start, end):
    """From one place of the image to another, as shares of its sides."""
    box = tab.locator(".painter-layer").bounding_box()
    tab.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    tab.mouse.down()
    tab.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=3)
    tab.mouse.up()
