"""Generate's gallery without a browser: what it lists and shows, and what becomes of an image that is chosen there."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import torch
from generate_parts import draw, lora, made, make_desk, said_codes
from PIL import Image
from work_parts import HOSTILE, answered, event, said, wait_until

from core.generation.grids.folder import GridFolder
from core.generation.images.gallery import Facts, Shot
from core.generation.images.metadata import png_info
from core.generation.images.record import ImageRecord
from core.generation.model.sources import Hashes
from core.generation.plan.stages import only_upscales, stages_of
from core.generation.plan.upscalers import UPSCALERS
from core.generation.sample.loop import steps_of
from core.record.problems import ProblemsError
from core.settings.generation.controls import ControlSettings, ControlUse
from core.settings.generation.high_resolution import HiresSettings
from core.settings.generation.image_to_image import ImageToImageSettings
from core.settings.job import GridJob, TrainJob
from tabs.generate import cards, form
from tabs.generate.gallery import about_job
from tabs.generate.sending import upscale_values
from tabs.generate.stage import newest
from tabs.generate.tab import GenerateHandlers


@pytest.fixture
def desk(tmp_path):
    return make_desk(tmp_path)


def answer(desk, act, **asked):
    return answered(desk.gallery_handlers.answer, {"act": act} | asked)


def codes(answered):
    return [problem["code"] for problem in answered.get("problems", [])]


def test_an_image_stands_beside_the_same_one_without_loras(desk):
    folder = desk.page.workspace.images / "2026-01-01"
    use = [{"file": "runs/x/glyphs.safetensors", "strength": 0.8}]
    draw(folder / "1_base.png")
    draw(folder / "2_lora.png", loras=use)
    listed = answer(desk, "list")
    assert listed["names"] == ["2026-01-01/2_lora.png"] and listed["total"] == 2
    tile = listed["tiles"]["2026-01-01/2_lora.png"]
    assert "1_base.png" in tile["base"] and tile["own"] == "glyphs at 0.8" and tile["seed"] == "1"
    assert "1_base.png" in answer(desk, "open", name="2026-01-01/2_lora.png")["base"]


def test_a_new_image_is_noticed_and_nothing_is_sent_when_nothing_is_new(desk):
    folder = desk.page.workspace.images / "2026-01-01"
    draw(folder / "1.png")
    desk.loras.model_lists.read()
    seen, told = desk.tick("")["client"], desk.gallery_handlers.parts("Generate", {})
    assert (
        desk.tick(seen) == gr.skip()
        and desk.gallery_handlers.parts("Generate", {}) == told
        and desk.gallery_handlers.parts("Runs", {}) == {}
    )
    draw(folder / "2.png", seed=2)
    assert desk.tick(seen).keys() == {"client", "newest"} and desk.gallery_handlers.parts("Generate", {}) != told
    assert len(answer(desk, "list")["names"]) == 2 and desk.gallery_handlers.last_seed() == 2


def test_the_strip_has_the_images_of_this_session_newest_first(desk):
    folder = desk.page.workspace.images / "d"
    os.utime(draw(folder / "before.png"), (1, 1))
    draw(folder / "one.png")
    os.utime(draw(folder / "two.png", seed=2), (time.time() + 1,) * 2)
    assert answer(desk, "list", words="nothing has this")["strip"] == ["d/two.png", "d/one.png"]


def test_many_new_images_are_read_on_the_light_lane(desk, monkeypatch):
    monkeypatch.setattr("tabs.generate.gallery.READ_AT_ONCE", 1)
    for number in range(3):
        draw(desk.page.workspace.images / f"{number}.png", seed=number)
    listed = answer(desk, "list")
    assert len(listed["names"]) == 3
    wait_until(lambda: answer(desk, "list")["left"] == 0)
    assert answer(desk, "list")["models"] == [("starter", 3)]


def test_a_seed_of_64_bits_reaches_the_page_and_comes_back_from_it(desk):
    seed = 2**64 - 1
    draw(desk.page.workspace.images / "d" / "1.png", seed=seed)
    assert answer(desk, "list")["tiles"]["d/1.png"]["seed"] == str(seed)
    desk.send(event("use", "d/1.png"))
    assert desk._values()["seed"] == seed and str(seed) in said(desk), "that it is set is said"


def test_the_viewer_shows_every_setting_escaped_and_they_are_taken_over(desk):
    asked = {"prompt": f"a {HOSTILE}", "negative_prompt": "blur", "seed": 9, "steps": 3, "schedule_type": "karras"}
    draw(desk.page.workspace.images / "d" / "1.png", sampler="euler", **asked)
    opened = answer(desk, "open", name="d/1.png")
    for words in ("64 × 64", "Euler", "blur", "models/starter", "Karras"):
        assert words in opened["about"]
    assert "<img" not in opened["about"] and opened["settings"] and opened["file"] == "1.png"
    desk.send(event("use", "d/1.png"))
    assert desk._values()["seed"] == 9 and desk._values()["schedule_type"] == "karras"


@pytest.mark.parametrize(("strength", "snr", "seed", "kept"), [(0.0, "off", None, "auto"), (0.2, "on", 7, "on")])
def test_what_had_no_effect_on_an_image_is_not_set(desk, strength, snr, seed, kept):
    """A grid draws a variation seed for its cells, and every image says whether zero terminal SNR was used."""
    asked = {"seed": 9, "variation_seed": 7, "variation_strength": strength, "zero_terminal_snr": snr}
    draw(desk.page.workspace.images / "d" / "1.png", **asked)
    desk.send(event("use", "d/1.png"))
    assert (desk._values()["variation_seed"], desk._values()["zero_terminal_snr"]) == (seed, kept)


def test_the_viewer_names_denoising_strength_and_mask_blur_at_their_defaults():
    def named(**given):
        job = made().model_copy(update={"image_to_image": ImageToImageSettings(**given)})
        return re.findall("Denoising strength|Mask blur|Padding", about_job(job, ImageRecord(job=job)))

    assert named() == [] and named(image_path="a.png") == ["Denoising strength"]
    masked = {"image_path": "a.png", "mask_path": "m.png"}
    assert named(**masked) == ["Denoising strength", "Mask blur"]
    assert named(**masked, inpaint_area="masked") == ["Denoising strength", "Mask blur", "Padding"]


def test_the_viewer_names_hires_at_its_defaults_and_each_control_net_in_words():
    job = made().model_copy(update={"hires": HiresSettings(highres_fix_scale=2)})
    nets = [
        ControlUse(file="lines.safetensors", image="dog.png", weight=0.7, end_at=0.6),
        ControlUse(file="off.pt", enabled=False),
    ]
    job = job.model_copy(update={"controls": ControlSettings(nets=nets)})
    words = " ".join(re.sub("<[^>]*>", " ", about_job(job, ImageRecord(job=job))).split())
    for part in (
        f"Hires steps {job.generate.steps}",
        "Upscaler Lanczos",
        "Schedule type",
        "lines 0.7 , follows dog.png , end at 0.6",
    ):
        assert part.lower() in words.lower(), words
    assert "preprocessor" not in words.lower() and "off.pt" not in words


def test_an_image_is_sent_on_at_its_own_size(desk):
    path = draw(desk.page.workspace.images / "d" / "1.png", prompt="a hill", seed=9, width=128, height=64)
    Image.open(path).resize((300, 130)).save(path, pnginfo=png_info(made(seed=9, prompt="a hill"), Hashes()))
    assert "300 × 130, from 64 × 64" in answer(desk, "open", name="d/1.png")["about"]
    desk.presets.put(form.start_values() | {"prompt": "mine", "mask_path": "x.png", "seed": 4})
    for act in ("begin", "inpaint"):
        desk.send(event(act, "d/1.png"))
        values = desk._values()
        assert (values["image_path"], values["mask_path"], values["prompt"]) == (str(path), None, "mine")
        assert (values["width"], values["height"], values["seed"]) == (296, 128, None)
    with pytest.raises(ProblemsError):
        desk.send(event("begin", "../../x.png"))


def test_an_image_in_use_is_said_above_generate_and_leaving_it_brings_the_fields_back(desk):
    path = draw(desk.page.workspace.images / "d" / "fox.png", seed=9)
    draw(desk.page.workspace.images / "d" / "owl.png", seed=8)
    before = form.start_values() | {"width": 128, "height": 256, "seed": 4, "strength": 0.6}
    desk.presets.put(before)
    assert "gen-using" not in desk._form()["prompts"]
    desk.send(event("begin", "d/owl.png"))
    desk.send(event("begin", "d/fox.png"))
    cards.set_added(desk.page, cards.IMAGE, True)
    line = desk._form()["prompts"]
    assert "Image to image: <b>fox.png</b> (strength 0.6)" in line and 'data-act="image_stop"' in line
    desk.presets.put(desk._values() | {"mask_path": str(path), "width": 192})
    assert "Inpaint: <b>fox.png</b>" in desk._form()["prompts"]
    line = desk.act(event("image_stop"))["prompts"]
    assert not cards.added(desk.page), "an empty card would be refused at the start"
    assert desk._values() == before | {"width": 192}, "what was changed since stays"
    assert "image_stop" not in line and 'data-act="image_again"' in line
    desk.presets.put(desk._values() | {"strength": 0.45})  # as by the card Hires
    desk.act(event("image_again"))
    values = desk._values()
    assert values["strength"] == 0.6, "that of the image"
    assert (values["image_path"], values["mask_path"], values["height"]) == (str(path), str(path), 64)
    desk.act(event("image_stop"))
    assert desk._values() == before | {"width": 192, "strength": 0.45}
    desk.presets.act("preset_undo", "", "")
    assert desk._values()["image_path"] == str(path)
    desk.presets.act("preset_redo", "", "")
    assert "gen-using" not in desk.draw()["prompts"], "what was left is offered until the next start"


def test_a_mask_of_another_size_than_its_image_is_said_with_both_sizes_before_the_start(desk):
    path = draw(desk.page.workspace.images / "d" / "fox.png")
    masks = {size: path.with_name(f"{size[0]}.png") for size in ((64, 64), (32, 32), (48, 64))}
    for size, mask in masks.items():
        Image.new("L", size, 255).save(mask)

    def line(mask):
        return desk.sending.line(form.start_values() | {"image_path": str(path), "mask_path": str(mask)})

    assert [" x " in line(mask) for mask in masks.values()] == [False, True, True]
    assert "32 x 32, the image 64 x 64: it is resized" in line(masks[32, 32])
    assert "48 x 64, the image 64 x 64: it is stretched" in line(masks[48, 64])
    assert " x " not in line(path.parent) and " x " not in line("gone.png") and " x " not in line("")


def test_leaving_the_initial_image_of_used_settings_keeps_their_size_and_hires_fix(desk):
    folder = desk.page.workspace.images / "d"
    draw(folder / "fox.png", width=256, height=256)
    hires = HiresSettings(highres_fix_scale=2)
    job = made(prompt="a hill", width=256, height=256, steps=7)
    Image.new("RGB", (256, 256)).save(
        folder / "hires.png",
        pnginfo=png_info(
            job.model_copy(
                update={"hires": hires, "image_to_image": ImageToImageSettings(image_path="a.png", strength=0.3)}
            ),
            Hashes(),
        ),
    )
    given = ImageToImageSettings(image_path="outputs/images/d/fox.png", strength=0.3, mask_blur=9)
    Image.new("RGB", (256, 256)).save(
        folder / "large.png", pnginfo=png_info(job.model_copy(update={"image_to_image": given}), Hashes())
    )
    before = form.start_values() | {"width": 128, "height": 192, "strength": 0.6, "highres_fix_scale": 1.5}
    names = ("image_path", "width", "height", "strength", "mask_blur", "steps", "highres_fix_scale")

    def left():
        desk.act(event("image_stop"))
        return tuple(desk._values()[name] for name in names)

    desk.presets.put(before)
    desk.send(event("use", "d/large.png"))
    assert desk._values()["strength"] == 0.3 and desk._values()["width"] == 256
    desk.send(event("begin", "d/fox.png"))
    assert left() == (None, 256, 256, 0.6, None, 7, None), "all but the initial image are of the used image"
    desk.presets.put(before)
    desk.send(event("begin", "d/fox.png"))
    desk.send(event("use", "d/large.png"))
    assert left() == (None, 256, 256, 0.6, None, 7, None), "the size before the first image is replaced too"
    desk.send(event("use", "d/hires.png"))
    assert left() == (None, 256, 256, 0.3, None, 7, 2), "hires fix keeps its strength"
    desk.presets.put(before | {"image_path": "typed.png", "mask_blur": 2})
    desk.send(event("use", "d/large.png"))
    assert left() == (None, 256, 256, 0.8, None, 7, None), "what belonged to another image is the default"
    desk.send(event("use", "d/large.png"))
    desk.send(event("use", "d/fox.png"))
    assert "image_stop" not in desk._form()["prompts"] and "large" not in desk._form()["prompts"]


def test_prompts_of_a_file_are_said_above_generate_until_they_are_left(desk):
    file = desk.page.workspace.outputs / "many.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a fox\n# a comment\n\nan owl\n")
    desk.presets.put(form.start_values() | {"prompt": "mine", "from_file": str(file)})
    line = desk._form()["prompts"]
    assert "Prompts from <b>many.txt</b> (2 prompts)" in line and 'data-act="file_stop"' in line
    assert "many.txt" not in desk.act(event("file_stop"))["prompts"] and desk._values()["prompt"] == "mine"
    desk.presets.put(desk._values() | {"from_module": "mine.prompts"})
    assert "Prompts from <b>mine.prompts</b>" in desk._form()["prompts"]
    desk.presets.put(desk._values() | {"from_module": None, "from_file": str(file.with_name("gone.txt"))})
    assert "Prompts from <b>gone.txt</b><" in desk._form()["prompts"]


def upscale(name, **choice):
    given = {"factor": 2, "upscaler": "lanczos", "strength": 0.2} | choice
    return event("upscale", name, json.dumps(given))


def test_upscaling_makes_one_larger_image_at_once_and_leaves_the_fields_alone(desk):
    path = draw(desk.page.workspace.images / "d" / "1.png", prompt="a hill", seed=9)
    Image.new("RGB", (300, 130)).save(path.with_name("2.png"))
    before = form.start_values() | {"prompt": "mine", "count": 4, "n_iter": 2, "compare": True, "seed": 4}
    desk.presets.put(before)
    desk.send(upscale("d/1.png"))
    (job,) = desk.page.engine.jobs
    assert desk._values() == before
    asked, given, scale = job.generate, job.image_to_image, job.hires.highres_fix_scale
    assert (asked.prompt, asked.seed, asked.width, asked.height, asked.count) == ("a hill", 9, 128, 128, 1)
    assert (given.image_path, given.strength, scale, job.prompts.n_iter) == (str(path), 0.2, None, 1)
    desk.send(upscale("d/2.png", factor=3, strength=0.5))  # it says no settings, so those of the fields are used
    asked = desk.page.engine.jobs[1].generate
    assert (asked.prompt, asked.seed, asked.width, asked.height, asked.count) == ("mine", 4, 888, 384, 1)
    desk.send(upscale("d/1.png", strength=0))
    assert only_upscales(desk.page.engine.jobs[2])
    for wrong in ({"factor": 9}, {"strength": 2}, {"upscaler": "none"}, {"strength": "x"}):
        with pytest.raises(ProblemsError) as raised:
            desk.send(upscale("d/1.png", **wrong))
        assert raised.value.problems[0].code == "upscale.bad-choice"


def test_the_dialog_of_upscale_offers_every_upscaler_that_of_the_form_first(desk, tmp_path):
    desk.page.workspace = replace(desk.page.workspace, models=tmp_path / "models")
    desk = GenerateHandlers(desk.page)
    draw(desk.page.workspace.images / "d" / "1.png")
    folder = desk.page.workspace.models / "upscalers"
    lora(folder / "no upscaler.safetensors")
    dense = {"conv_first.weight": torch.zeros(4, 3, 3, 3), "body.0.rdb1.conv5.weight": torch.zeros(4, 4, 3, 3)}
    torch.save(dense, folder / "x4.pth")
    (folder / "torn.pth").write_bytes(b"")
    file = "file:models/upscalers/x4.pth"
    desk.loras.model_lists.read()
    offered = desk.sending.answer({"name": "d/1.png"})
    assert offered["sizes"] == [[2, 128, 128], [3, 192, 192], [4, 256, 256]]
    assert {name for name, *_ in offered["upscalers"]} == {*UPSCALERS, file, "file:models/upscalers/torn.pth"}
    assert [name for name, *_, why in offered["upscalers"] if why] == ["file:models/upscalers/torn.pth"]
    listed = desk._form()["cards"].split('id="gen-highres_fix_upscaler"')[1].split("</select>")[0]
    in_form = dict(re.findall('value="([^"]+)"[^>]*?( disabled)?>', listed))
    assert in_form == dict.fromkeys([*UPSCALERS, file], "") | {"file:models/upscalers/torn.pth": " disabled"}
    for choice, values in ((file, ("lanczos", "models/upscalers/x4.pth")), ("latent", ("latent", None))):
        desk.act(event("field", "highres_fix_upscaler", choice))
        assert (desk._values()["highres_fix_upscaler"], desk._values()["highres_fix_upscaler_file"]) == values
    desk.presets.put(form.start_values() | {"highres_fix_upscaler_file": "models/upscalers/x4.pth"})
    offered = desk.sending.answer({"name": "d/1.png"})["upscalers"]
    assert [name for name, *_ in offered].count(file) == 1 and offered[0][0] == file
    assert codes(answered(desk.sending.answer, {"name": "../x.png"})) == ["gallery.gone"]


@pytest.mark.slow
def test_the_cell_of_a_grid_is_used_as_an_image_of_the_gallery(desk):
    space = desk.page.workspace
    grid = GridFolder.create(space, GridJob(), [], {})
    path = draw(grid.cell((1, 0, 0)), prompt="a hill", seed=9)
    name = f"grid:{grid.name}/{path.name}"
    desk.send(event("use", name))
    assert (desk._values()["prompt"], desk._values()["seed"]) == ("a hill", 9)
    desk.send(event("begin", name))
    assert desk._values()["image_path"] == str(path)
    desk.send(upscale(name))
    assert desk.page.engine.jobs[0].generate.width == 128
    for wrong in (f"grid:{grid.name}/x9_y1_z1.png", "grid:../x/x1_y1_z1.png", f"grid:{grid.name}/grid.json"):
        with pytest.raises(ProblemsError):
            desk.send(event("use", wrong))


def test_an_upscaler_file_enlarges_the_image_itself(desk):
    shot = Shot("1.png", desk.page.workspace.images / "1.png", 1, 1)
    values = upscale_values(shot, Facts(width=300, height=128), 2, "file:models/upscalers/x4.pth", 0.3)
    assert not values.keys() - form.ENTRIES.keys()
    job = form.job_of(form.start_values() | values | {"steps": 10}, TrainJob())
    first, second = stages_of(job)
    assert (first.size, steps_of(first), first.begins) == ((296, 128), 0, "image")
    assert (second.size, steps_of(second), second.begins) == ((592, 256), 10, "previous image")


@pytest.mark.slow
def test_everything_that_stands_against_a_start_is_said_at_once_and_goes_with_its_cause(desk):
    wrong = {
        "base_model": "models/nowhere",
        "mask_path": "x.png",
        "file_pattern": "[x]",
        "prompt": "a fox <lora:none:1>",
    }
    desk.presets.put(form.start_values() | wrong)
    for name, text in (("steps", "many"), ("width", "63")):
        desk.act(event("field", name, text))
    assert said_codes(desk) == ["settings.bad-value"] * 2
    shown = desk.draw()
    assert said_codes(desk) == [
        "generate.mask-alone", "image.missing", "lora.not-found", "model.not-found", "output.unknown-field",
        "settings.bad-value", "settings.bad-value",
    ]  # fmt: skip
    assert not desk.page.engine.jobs
    for name in ("steps", "width", "base_model", "file_pattern"):
        place = "".join(shown.values()).partition(f'id="gen-{name}"')[2].partition(">")[0]
        assert 'aria-invalid="true"' in place, name
    for name, text in (
        ("steps", "20"),
        ("width", ""),
        ("base_model", ""),
        ("file_pattern", "[seed]"),
        ("mask_path", ""),
    ):
        desk.act(event("field", name, text))
    assert said_codes(desk) == ["lora.not-found"]
    desk.act(event("field", "seed", "5"))  # what changes nothing of it leaves it
    assert said_codes(desk) == ["lora.not-found"]
    desk.act(event("field", "prompt", "a fox"))
    assert desk.page.browsers.of(None).message["kind"] == "over"


def test_the_fault_of_one_field_is_said_until_that_field_is_right(desk):
    desk.act(event("field", "steps", "many"))
    desk.act(event("field", "prompt", "a fox"))
    assert len(said_codes(desk)) == 1
    desk.act(event("field", "steps", "9"))
    assert desk.page.browsers.of(None).message["kind"] == "over"


def test_an_image_of_another_program_is_shown_all_the_same(desk):
    path = desk.page.workspace.images / "d" / "1.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)
    opened = answer(desk, "open", name="d/1.png")
    assert "no settings" in opened["about"] and not opened["settings"]
    (path.parent / "2.png").write_bytes(b"")
    assert answer(desk, "list")["names"] == ["d/1.png"]
    assert "press Generate" in newest(None, str)


def test_stars_trash_and_undo(desk):
    draw(desk.page.workspace.images / "d" / "1.png")
    draw(desk.page.workspace.images / "d" / "2.png", seed=2)
    names = answer(desk, "list")["names"]
    assert answer(desk, "stars", names=names[:1], stars=5) == {"stars": {names[0]: 5}}
    assert answer(desk, "list", stars=1)["names"] == names[:1]
    away = answer(desk, "trash", names=names)
    listed = answer(desk, "list")
    assert listed["names"] == [] and listed["away"]["token"] == away["token"] and "2 images" in away["said"]
    assert sorted(answer(desk, "back", token=away["token"])["names"]) == sorted(names)
    for name in names:
        answer(desk, "trash", names=[name])
    desk.gallery_handlers.begun = time.time() + 60  # the server was started anew
    for _ in names:
        last = answer(desk, "list")["away"]
        assert not last["recent"] and len(answer(desk, "back", token=last["token"])["names"]) == 1, "one after another"
    assert answer(desk, "list")["away"] is None and answer(desk, "list")["tiles"][names[0]]["stars"] == 5
    (desk.page.workspace.images / names[1]).unlink()  # by another program
    assert answer(desk, "stars", names=names, stars=4) == {"stars": {names[0]: 4}}
    away = answer(desk, "trash", names=names)
    assert away["names"] == names and answer(desk, "back", token=away["token"])["names"] == names[:1]
    assert codes(answer(desk, "trash", names=names[1:])) == ["gallery.gone"]
    assert codes(answer(desk, "trash", names=["../x.png"])) == ["gallery.gone"]
    assert codes(answer(desk, "trash", names=[])) == ["trash.nothing-selected"]
    assert codes(answer(desk, "back", token="/etc/passwd")) == ["trash.missing-record"]
    assert codes(answer(desk, "open", name="../x.png")) == ["gallery.gone"]


def test_all_selected_images_are_rated_and_deleted_and_the_answer_names_them(desk, monkeypatch):
    for most in ("MAX_TILES", "MAX_COPIED"):
        monkeypatch.setattr(f"tabs.generate.gallery.{most}", 1)
    for number in range(3):
        draw(desk.page.workspace.images / "d" / f"{number}.png", seed=number)
    names = answer(desk, "list")["names"]
    assert answer(desk, "stars", names=names, stars=4)["stars"] == dict.fromkeys(names, 4)
    assert answer(desk, "trash", names=names)["names"] == names and answer(desk, "list")["names"] == []


@pytest.mark.parametrize("asked", [{}, {"act": "x"}, {"act": ["list"]}, {"act": "tiles", "names": "x"}, {"act": "tiles", "names": [1, {}]},
                                   {"act": "stars", "names": None, "stars": "5"}, {"act": "cancel"}])  # fmt: skip
def test_questions_that_make_no_sense_change_nothing(desk, asked):
    assert not desk.gallery_handlers.answer(asked).get("problems")


def test_selected_images_become_a_folder_of_the_dataset(desk):
    folder = desk.page.workspace.images / "d"
    draw(folder / "1.png", prompt="a red fox")
    draw(folder / "2.png", prompt="a blue fox", seed=2)
    answer(desk, "list")
    project = desk.page.project
    for number, name in enumerate(("mine", "more")):
        assert "copy" in answer(desk, "train", folder=name, words="red" if number else "")
        wait_until(lambda: desk.gallery_handlers.parts("Generate", {})["gallery"]["copy"]["done"])
        state = desk.gallery_handlers.parts("Generate", {})["gallery"]["copy"]
        assert not state["problems"] and name in state["said"]
    made = desk.page.workspace.datasets / "mine"
    assert {path.name: path.read_text() for path in made.glob("*.txt")} == {"1.txt": "a red fox", "2.txt": "a blue fox"}
    assert [Path(each.folder).name for each in project.job.dataset.all_sources()] == ["mine", "more"]
    assert len(list((desk.page.workspace.datasets / "more").glob("*.png"))) == 1
    answer(desk, "train", folder="a/b")
    wait_until(lambda: desk.gallery_handlers.parts("Generate", {})["gallery"]["copy"].get("problems"))
    assert [Path(each.folder).name for each in project.job.dataset.all_sources()] == ["mine", "more"]
