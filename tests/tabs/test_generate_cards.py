"""The cards of Generate: what adding and removing sets, which are in sight, and LoRAs as checkpoints of runs, without a browser."""

from __future__ import annotations

import json
import re

import pytest
from generate_parts import Engine, draw, lora, said_codes
from PIL import Image
from work_parts import event, make_page

from core.generation.images.metadata import read_image_metadata
from core.record.problems import ProblemsError
from tabs.form.lora_steps import brief, checkpoints, lora_of
from tabs.generate import cards, form, panel
from tabs.generate.replaced import TAKE_BACK
from tabs.generate.tab import GenerateHandlers


@pytest.fixture
def desk(tmp_path):
    return GenerateHandlers(make_page(tmp_path, Engine(tmp_path / "outputs" / "images")))


def in_sight(desk):
    return re.findall(r'data-card="(\w+)" aria-label="[^"]*">', desk._form()["cards"])


def test_the_rail_begins_with_at_most_14_controls_and_no_card(desk):
    shown, added = desk._form()["settings"], desk.loras.picker()
    hidden = shown[shown.index('class="gen-own-size"') : shown.index("</fieldset>")]
    controls = re.findall(
        r'<(?:input|select|textarea|button)[^>]*?(?:id="[^"]*"|data-act="[^"]*"|data-pick)', shown.replace(hidden, "")
    )
    lock = [each for each in controls if 'data-act="seed"' in each]  # generate.css hides it until there is an image
    one_for_sizes = [each for each in controls if "gen-ratio" not in each and each not in lock]
    buttons = re.findall(r"<summary|data-act=\"card_add\"", added)
    assert len(lock) == 1 and len(one_for_sizes) + 1 + len(buttons) <= 14
    assert in_sight(desk) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hires", {"highres_fix_scale": 2.0, "strength": 0.45}),
        ("image_to_image", {}),
        ("detailer", {"ad_model": "face"}),
        ("controls", {}),
        ("regions", {}),
    ],
)
def test_a_card_that_is_added_stays_until_its_x_restores_the_defaults(desk, name, values):
    before = desk._values()
    desk.lora_act(event("card_add", name))
    assert desk._values() == before | values and in_sight(desk) == [name]
    for field in cards.BY_NAME[name].fields:
        desk.presets.put(
            desk._values() | {field: {"bool": True, "int": 3, "float": 0.5}.get(form.OF_JOB[field].kind, before[field])}
        )
    desk.act(event("card_remove", name))
    assert desk._values() == before and in_sight(desk) == []
    desk.preset_act(event("preset_undo"))
    assert name in in_sight(desk) or name == "controls"  # whose fields are files


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("image_to_image", {"image_path": "a.png"}),
        ("controls", {"nets": [{"file": "a.safetensors"}]}),
        ("regions", {"region_map": "a.png"}),
    ],
)
def test_a_card_without_content_is_said_before_a_start_and_forgotten_once_it_is_filled_or_removed(desk, name, fill):
    desk.lora_act(event("card_add", name))
    desk.draw()
    assert said_codes(desk) == ["generate.empty-card"]
    (problem,) = [each for each in desk._start_problems() if each.code == "generate.empty-card"]
    assert not desk.page.engine.jobs and problem.where == f"{name}.{next(iter(fill))}"
    desk.presets.put(desk._values() | fill)
    assert "generate.empty-card" not in [each.code for each in desk._start_problems()]
    desk.presets.put(desk._values() | dict.fromkeys(fill, [] if name == "controls" else None))
    desk.act(event("card_remove", name))
    assert not desk._start_problems()


def test_a_card_that_is_added_twice_keeps_its_values(desk):
    desk.lora_act(event("card_add", "hires"))
    desk.act(event("field", "highres_fix_scale", "1.5"))
    desk.lora_act(event("card_add", "hires"))
    assert desk._values()["highres_fix_scale"] == 1.5


def test_the_denoising_strength_is_on_one_card_and_stays_while_another_needs_it(desk, tmp_path):
    path = draw(tmp_path / "outputs" / "images" / "d" / "1.png", seed=1)
    desk.presets.put(desk._values() | {"image_path": str(path), "strength": 0.6})
    desk.lora_act(event("card_add", "hires"))
    assert desk._values()["strength"] == 0.6, "that of the initial image"
    html = desk._form()["cards"]
    assert html.count('id="gen-strength"') == 1 and html.index('id="gen-strength"') < html.index('data-card="hires"')
    desk.act(event("card_remove", "image_to_image"))
    assert (desk._values()["strength"], desk._values()["image_path"]) == (0.6, None) and in_sight(desk) == ["hires"]
    html = desk._form()["cards"]
    assert html.index('data-card="hires"') < html.index('id="gen-strength"')
    desk.act(event("card_remove", "hires"))
    assert desk._values()["strength"] == form.ENTRIES["strength"].default


def test_groups_that_an_image_or_a_preset_uses_show_their_cards(desk, tmp_path):
    from core.generation.images.metadata import png_info
    from core.generation.model.sources import Hashes
    from core.settings.check import build
    from core.settings.job import GenerateJob

    first = draw(tmp_path / "outputs" / "images" / "d" / "1.png", seed=1)
    asked = {
        "hires": {"highres_fix_scale": 2.0},
        "image_to_image": {"image_path": str(first)},
        "regions": {"region_map": str(first)},
    }
    job = build(GenerateJob, asked | {"generate": {"prompt": "a AND b", "width": 64, "height": 64, "seed": 1}})
    path = tmp_path / "hires.png"
    Image.new("RGB", (64, 64)).save(path, pnginfo=png_info(job, Hashes()))
    desk.sending._load_settings(read_image_metadata(path), "an image")
    assert in_sight(desk) == ["image_to_image", "hires", "regions"]


def test_loaded_settings_remove_cards_that_they_leave_empty_and_can_be_taken_back(desk, tmp_path):
    first = draw(tmp_path / "outputs" / "images" / "d" / "1.png", seed=1)
    desk.act(event("field", "prompt", "my words"))
    desk.act(event("card_add", "regions"))
    desk.act(event("field", "region_map", str(first)))
    before, browser = desk._values(), desk.page.browsers.of("one")
    assert in_sight(desk) == ["regions"] and before["region_map"]
    desk.sending._load_settings(read_image_metadata(first), "an image")
    assert in_sight(desk) == [] and desk._values()["seed"] == 1 and desk.presets.start_problems() == []
    desk.page.commands[TAKE_BACK]({}, browser)
    assert desk._values() == before and in_sight(desk) == ["regions"]
    assert browser.redraws[""] == 1 and "my words" in desk.tick("")["prompts"], "the form is drawn again"
    desk.act(event("field", "prompt", "other words"))
    desk.page.commands[TAKE_BACK]({}, browser)
    assert desk._values()["prompt"] == "other words", "once"


def test_a_pasted_text_of_an_image_becomes_settings_and_can_be_taken_back(desk):
    text = "a fox\nNegative prompt: blurry\nSteps: 12, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 42, Size: 128x192"
    for name, at, has in (("prompt", text, True), ("negative_prompt", text, False), ("prompt", "a fox", False)):
        assert desk.prompt_box.answer({"act": "look", "name": name, "text": at})["settings"] is has
    desk.act(event("field", "prompt", text))
    before, browser = desk._values(), desk.page.browsers.of(None)
    desk.act(event("read_text", "", text))
    read = {name: desk._values()[name] for name in ("prompt", "negative_prompt", "steps", "seed", "width", "height")}
    assert read == {
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "steps": 12,
        "seed": 42,
        "width": 128,
        "height": 192,
    }
    assert browser.message["undo_by"] == TAKE_BACK
    desk.page.commands[TAKE_BACK]({}, browser)
    assert desk._values() == before
    desk.act(event("read_text", "", ""))
    assert browser.message["kind"] == "error" and desk._values() == before


def test_a_card_says_that_its_settings_have_no_effect(desk, tmp_path):
    map_file = draw(tmp_path / "outputs" / "images" / "d" / "1.png", seed=1)
    says = "The region map has no effect"
    desk.act(event("field", "prompt", "a fox"))
    desk.act(event("card_add", "regions"))
    assert says not in desk._form()["cards"]
    assert says in desk.act(event("field", "region_map", str(map_file)))["cards"]
    assert says not in desk.act(event("field", "prompt", "a fox AND a dog"))["cards"]


def test_what_is_set_without_a_card_is_named_while_all_settings_are_closed(desk):
    desk.act(event("field", "clip_skip", "2"))
    summary = desk._form()["more"].partition("</summary>")[0]
    assert "Clip skip 2" in summary
    rows = {row.name for row in panel.rows_of(desk._values(), panel.SHOWN_ABOVE, lambda *names: "")}
    assert "model" in rows and not rows & set(cards.BY_NAME)


def test_sizes_by_ratio_are_computed_for_the_trained_size():
    sizes = [form.ratio_size("2:3", (side, side)) for side in (128, 512, 768, 1024)]
    assert sizes == [(104, 160), (448, 640), (640, 960), (832, 1280)] or sizes[0] == (104, 160)
    assert all(
        w * h == pytest.approx(side**2, rel=0.13) for (w, h), side in zip(sizes, (128, 512, 768, 1024), strict=True)
    )


def test_an_empty_size_is_that_of_the_family_set_in_train_where_the_file_tells_none(desk, monkeypatch):
    def trained_size(path, family="auto"):
        return (1024, 1024) if family == "sdxl" else (512, 512)

    monkeypatch.setattr(form, "trained_size", trained_size)
    desk.page.project.edit("model.base_model", "models/starter")
    desk.page.project.edit("model.family", "sdxl")
    project, space = desk.page.project.job, desk.page.workspace
    values = form.start_values(project)
    for base, side in ((values["base_model"], 1024), ("models/starter", 512)):
        chosen = values | {"base_model": base}
        assert form.sides(chosen, project, space) == (side, side)
        assert form.default_values(chosen, project, space)["width"] == side
        assert form.sides(chosen | {"width": 640}, project, space) == (640, side)


# -- LoRAs of runs


STEPS = {"fox-000001.safetensors": 12, "fox-000002.safetensors": 24, "fox.safetensors": 36}


@pytest.fixture
def trained(desk):
    """A run with three checkpoints, of which the second is the best and the last is kept, and samples of the first two."""
    run = desk.page.workspace.runs / "20260101-000000_fox"
    for name in STEPS:
        lora(run / "checkpoints" / name)
    (run / "samples").mkdir()
    for step in (12, 24):
        Image.new("RGB", (8, 8)).save(run / "samples" / f"{step:08d}_00.png")
    (run / "kept.json").write_text(json.dumps({"checkpoints/fox.safetensors": "fox"}))
    (run / "best.json").write_text(json.dumps({"file": "checkpoints/fox-000002.safetensors", "label": "best"}))
    facts = {
        "files": [{"name": name, "step": step} for name, step in STEPS.items()],
        "best": {"file": "checkpoints/fox-000002.safetensors"},
        "measured": [{"step": 24, "loss": 0.125}],
    }
    desk.page.engine.snapshot = lambda name: facts
    desk.loras.model_lists.read()
    return run


def test_the_list_has_one_row_for_a_run_under_its_title_with_the_checkpoint_that_is_kept(desk, trained):
    listed = desk.loras.picker().partition("</li>")[0]
    (row,) = re.findall(r'data-act="add" data-arg="([^"]*)"', listed)
    shown = re.sub("<[^>]*>", " ", listed.partition("model-offers")[2]).split()
    assert row.endswith("/fox.safetensors") and {"fox", "kept", "3", "checkpoints"} <= set(shown)
    searched = desk.lora_act(event("find", "", "000001"))["add"]
    for html in (searched, desk.tick("")["add"]):  # the search stays while something else changes
        assert re.findall(r'data-act="add" data-arg="[^"]*/([^"/]*)"', html) == ["fox-000001.safetensors"]


def test_a_card_names_run_and_step_and_another_step_is_one_click_away(desk, trained):
    desk.lora_act(event("add", "outputs/runs/20260101-000000_fox/checkpoints/fox-000002.safetensors"))
    desk.lora_act(event("strength", "0", "0.7"))
    card = desk._form()["loras"]
    assert 'aria-label="Use fox"' in card and ">step 24<" in card
    strip = re.findall(r'data-act="step" data-arg="0:([^"]*)" title="([^"]*)" aria-pressed="(\w+)"', card)
    assert strip == [
        ("fox-000001.safetensors", "step 12", "false"),
        ("fox-000002.safetensors", "step 24, best, loss 0.125", "true"),
        ("fox.safetensors", "step 36, kept", "false"),
    ]
    assert card.count("<img") == 3, "the card's sample, and one of each of two steps"
    desk.lora_act(event("step", "0:fox.safetensors"))
    (use,) = desk._values()["loras"]
    assert use["file"].endswith("/fox.safetensors") and use["strength"] == 0.7
    for other in ("../../job.json", "gone.safetensors"):
        desk.lora_act(event("step", f"0:{other}"))
    assert desk._values()["loras"] == [use]


@pytest.mark.parametrize(("name", "shown"), [*zip(STEPS, (10, 10, 40), strict=True)])
def test_a_card_of_a_step_without_a_sample_shows_the_nearest_one(desk, trained, name, shown):
    lora(average := trained / "checkpoints" / "fox-average-12-to-24.safetensors")
    desk.page.engine.snapshot("")["files"].append({"name": average.name, "step": 24})
    assert [bool(each.sample) for each in checkpoints(desk.page, average)] == [True, True, False, False]
    lora(trained / "checkpoints" / name, {"ss_steps": str(STEPS[name])})
    assert brief(trained / "checkpoints" / name, desk.page.workspace).image.name == f"{min(STEPS[name], 24):08d}_00.png"
    for step in (12, 24):
        (trained / "samples" / f"{step:08d}_00.png").unlink()
    assert lora_of(desk.page, trained / "checkpoints" / name).image is None
    for step in (10, 40):
        for prompt in (0, 1):
            Image.new("RGB", (8, 8)).save(trained / "samples" / f"{step:08d}_{prompt:02d}.png")
    (trained / "samples" / "mine_00.png").write_bytes(b"")
    assert lora_of(desk.page, trained / "checkpoints" / name).image == trained / "samples" / f"{shown:08d}_00.png"


def test_a_variation_is_the_image_with_other_noise_mixed_in_and_the_form_stays(desk, tmp_path):
    path = draw(tmp_path / "outputs" / "images" / "d" / "1.png", seed=7)
    before = desk._values()
    with pytest.raises(ProblemsError):
        desk.sending.act(event("vary", "gone.png"))
    desk.sending.act(event("vary", desk.gallery_handlers.newest().name))
    (job,) = desk.page.engine.jobs
    assert job.generate.seed == 7 and job.generate.variation_strength > 0 and job.generate.variation_seed is not None
    assert desk._values() == before and path.exists()
