"""The panel of Generate: how the model is used, sizes, seeds and closed groups, without a browser."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from generate_parts import Engine, draw
from PIL import Image
from safetensors.torch import save_file
from work_parts import event, make_page

from core.control.hints import make_hint
from core.formats.hashes import legacy_hash
from core.generation.model.sources import Hashes
from core.generation.plan.checks import problems_of
from core.generation.sample.guidances import GUIDANCES
from core.settings.check import build
from core.settings.generation.controls import ControlUse
from core.settings.job import GenerateJob, TrainJob
from core.settings.model import ModelSettings
from tabs.form import model_lists
from tabs.generate import controls, form, image_values, panel
from tabs.generate.tab import GenerateHandlers
from tabs.markup import esc


@pytest.fixture
def desk(tmp_path):
    return GenerateHandlers(make_page(tmp_path, Engine(tmp_path / "outputs" / "images")))


def model_made(project, **fields):
    return form.job_of(form.start_values() | fields, build(TrainJob, {"model": project})).model


TRAIN = {"base_model": "models/mine.safetensors", "vae": "models/v.pt", "clip_skip": 2, "prediction": "v"}


def test_vae_clip_skip_and_prediction_follow_train_until_they_are_set():
    asked = model_made(TRAIN)
    assert (asked.vae, asked.clip_skip, asked.prediction) == ("models/v.pt", 2, "v")
    own = model_made(TRAIN, vae="models/w.pt", clip_skip=1, prediction="epsilon")
    assert (own.base_model, own.vae, own.clip_skip, own.prediction) == (
        TRAIN["base_model"],
        "models/w.pt",
        1,
        "epsilon",
    )
    other = model_made(TRAIN, base_model="models/other", clip_skip=3)
    assert (other.vae, other.clip_skip, other.prediction) == (None, 3, "auto")


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"vae": "models/w.pt", "prediction": "epsilon"},
        {"vae": None, "clip_skip": None, "prediction": "auto"},
        {"base_model": "models/other", "clip_skip": None},
        {"family": "sd2"},
    ],
)
def test_fields_of_a_models_settings_make_the_same_settings_again(own):
    wanted = ModelSettings.model_validate(TRAIN | own)
    fields = form.model_values(wanted, ModelSettings.model_validate(TRAIN))
    assert model_made(TRAIN, **fields) == wanted


def test_the_seed_is_drawn_or_locked_to_that_of_the_newest_image(desk, tmp_path):
    desk.act(event("seed", "lock"))
    locked = desk._values()["seed"]
    assert 0 <= locked < 2**32 and 'aria-pressed="true"' in desk._form()["settings"]
    desk.act(event("seed", "lock"))
    assert desk._values()["seed"] is None
    desk.act(event("seed", "lock"))
    locked, free = 'data-arg="lock" aria-pressed="true"', 'data-arg="lock" aria-pressed="false"'
    assert free in desk.stage_act(event("forever"))["settings"], "its seeds are random"
    assert locked in desk.stage_act(event("forever"))["settings"]
    desk.act(event("seed", "lock"))
    draw(tmp_path / "outputs" / "images" / "d" / "1.png", seed=1)
    for seed in (1, None):
        desk.act(event("seed", "lock"))
        assert desk._values()["seed"] == seed


def test_a_ratio_keeps_the_models_pixels_and_swap_turns_the_sides(desk):
    desk.act(event("ratio", "", "2:3"))
    values = desk._values()
    assert (values["width"], values["height"]) == form.ratio_size("2:3", (128, 128))
    desk.act(event("ratio", "", ""))  # Ctrl+Enter on the list, where none is chosen
    assert desk._values() == values
    desk.act(event("swap"))
    assert desk._values()["width"] == values["height"]


def test_what_is_said_of_a_size_is_the_models(tmp_path):
    space = make_page(tmp_path).workspace
    path = tmp_path / "xl.safetensors"
    save_file({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1, 2816)}, path)
    model = panel.model_of(form.start_values() | {"base_model": str(path)}, ModelSettings(), space)
    assert (model.family, model.trained, model.step) == ("sdxl", (1024, 1024), 8)
    assert "1024 × 1024" in panel.about_size(model, (1024, 1024))
    assert "4 times" in panel.about_size(model, (2048, 2048)) and "lose quality" in panel.about_size(model, (512, 512))
    gone = panel.model_of(form.start_values() | {"base_model": "nowhere"}, ModelSettings(), space)
    assert gone.family == "" and gone.trained is None and gone.problem


def test_a_kind_of_guidance_shows_its_settings_while_it_is_chosen(desk):
    def rows(**values):
        return [row.name for row in panel.rows_of(desk._values() | values, panel.SHOWN_ABOVE, lambda *names: "")]

    assert "pag" not in rows() and "pag" in rows(guidance="pag") and "apg" not in rows(guidance="pag")
    desk.presets.change("guidance", "pag")
    html = desk._form()["more"]
    assert 'id="gen-pag_scale"' in html and 'id="gen-apg_eta"' not in html


def test_an_invalid_text_stays_in_sight_when_its_guidance_is_no_longer_chosen_and_its_row_counts_it(desk):
    desk.act(event("field", "guidance", "pag"))
    desk.act(event("field", "pag_scale", "much"))
    desk.act(event("field", "guidance", "classic"))
    html = desk._form()["more"]
    assert 'id="gen-pag_scale" aria-invalid="true"' in html and "1 to fix" in html
    desk.act(event("field", "pag_scale", "3"))
    html = desk._form()["more"]
    assert 'id="gen-pag_scale"' not in html and "to fix" not in html


def test_the_row_of_the_refiner_says_which_and_when(desk):
    desk.presets.put(desk._values() | {"refiner_checkpoint": "models/finisher", "refiner_switch_at": 0.7})
    rows = panel.rows_of(desk._values(), panel.SHOWN_ABOVE, lambda *names: " ".join(names))
    (summary,) = [row.summary for row in rows if "refiner_checkpoint" in row.fields]
    assert "finisher" in summary and "0.7" in summary
    assert "SDXL only" in desk._form()["more"], "the starter is an SD 1.x model"


def test_advice_about_settings_stands_at_their_card_their_row_and_the_sampling_settings(desk):
    values = {"guidance_scale": 1.0, "negative_scale": 2.0, "image_format": "webp", "region_map": "x.png"}
    values |= {"prompt": "c" * 21_000 + " AND b :0.5"}
    desk.presets.put(desk._values() | values)
    shown = desk._form()
    advice = {"settings": "generate.no-guidance", "more": "output.exif-limit", "cards": "generate.region-weights"}
    texts = {each.code: esc(each.what)[:60] for each in problems_of(form.job_of(desk._values(), desk.page.project.job))}
    assert [part for part, code in advice.items() if texts[code] not in shown[part]] == []


def test_the_refiners_list_has_refiners_only(desk, monkeypatch):
    monkeypatch.setattr(model_lists, "is_refiner", lambda kind: kind.family == "sd1")
    desk.loras.model_lists.read()
    names = [each.name for each in desk.loras.model_lists.of(["refiner"])]
    assert (
        names
        == [each.name for each in desk.loras.model_lists.of(["checkpoint"]) if each.name.endswith("starter")]
        != []
    )
    assert 'list="gen-refiners"' in desk._form()["more"] and 'id="gen-refiners"' in desk.loras.picker()


def test_a_refiner_of_an_image_that_is_not_here_is_left_out(desk):
    job = GenerateJob.model_validate({"refiner": {"refiner_checkpoint": "sd_xl_refiner_1.0", "refiner_switch_at": 0.6}})
    values, notes = image_values.values_of(
        job, desk._values(), desk.page.workspace, desk.page.project.job.model, Hashes()
    )
    assert values["refiner_checkpoint"] is None and values["refiner_switch_at"] == 0.6
    assert [note.where for note in notes if note.code == "model.not-found"] == ["refiner.refiner_checkpoint"]


def test_a_control_net_of_another_hash_than_the_images_is_said(desk, tmp_path):
    net = tmp_path / "lines.safetensors"
    net.write_bytes(bytes(2 << 20))
    job = GenerateJob.model_validate({"controls": {"nets": [{"file": str(net)}]}})
    for digest, wanted in ((legacy_hash(net), 0), ("0123abcd", 1)):
        hashes = Hashes(controls={str(net): digest})
        values, notes = image_values.values_of(
            job, desk._values(), desk.page.workspace, desk.page.project.job.model, hashes
        )
        assert [note.code for note in notes].count("generate.other-hash") == wanted and len(values["nets"]) == 1


def test_every_setting_of_a_generation_is_in_the_panel_once(desk):
    desk.presets.put(desk._values() | {"highres_fix_scale": 2.0})
    shown = desk._form()
    html = "".join(shown[name] for name in ("prompts", "settings", "cards", "more"))
    for name, entry in form.ENTRIES.items():
        if entry.kind != "list" and entry.group not in GUIDANCES:
            assert html.count(f'id="gen-{name}"') == 1, name
    rows = panel.rows_of(desk._values(), panel.SHOWN_ABOVE, lambda *names: "")
    summaries = {row.name: row.summary for row in rows}
    assert summaries["conditioning"] == "" and not {"hires", "regions", "controls", "image_to_image"} & set(summaries)


@pytest.mark.parametrize(("size", "shown"), [((64, 96), (64, 96)), ((1024, 512), (512, 256))])
def test_the_preview_of_a_preprocessor_is_what_it_makes_at_the_size_of_the_images(desk, tmp_path, size, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    asked = ControlUse(file="net", preprocessor="tile", tile_factor=16)
    found = controls._hint(tmp_path / "noise.png", (), asked, size, desk.page.workspace).result(60)
    seen = Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2])))
    wanted = Image.fromarray(make_hint(pixels, asked))
    wanted.thumbnail(shown)
    assert seen.size == shown and np.array_equal(np.array(seen), np.array(wanted))


def control_images(folder):
    """A photo, and its edges as *Control images* makes them; another drawing, black on white."""
    photo = np.zeros((96, 96, 3), np.uint8)
    photo[...] = np.linspace(40, 200, 96, dtype=np.uint8)[:, None, None]
    photo[24:72, 24:72] = 220
    lines = make_hint(photo, ControlUse(file="net", preprocessor="canny"))
    for name, pixels in (("photo", photo), ("lines", lines), ("ink", 255 - lines)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in ("photo", "lines", "ink")}


def test_a_control_image_that_has_its_lines_gets_no_preprocessor_until_one_without_follows(desk):
    """Canny edges of Canny edges are double lines."""
    folder = desk.page.workspace.inputs
    folder.mkdir(parents=True)
    image = control_images(folder)

    def now():
        return [use["preprocessor"] for use in desk._values()["nets"]]

    def said():
        return (desk.page.browser.message or {}).get("text", "")

    nets = [
        {"file": f"{name}.safetensors", "preprocessor": hint} for name, hint in (("a_canny", "canny"), ("b", "tile"))
    ]
    desk.presets.put(desk._values() | {"nets": nets})
    desk.sending._follow(image["photo"])
    assert now() == ["canny", "tile"] and "preprocessor" not in said()
    desk.sending._follow(image["lines"])
    assert now() == ["none", "tile"] and "a_canny is set to" in said()
    desk.controls.act("net_part", "0:preprocessor", "canny")  # it stays what is chosen now
    desk.presets.change("control_image", image["lines"])
    assert now() == ["canny", "tile"]
    desk.controls.act("net_part", "0:image", image["lines"])
    assert now() == ["canny", "tile"], "the same image"
    desk.presets.change("control_image", image["ink"])
    desk.controls.act("net_part", "0:image", "")
    assert now() == ["canny", "tile"], "black on white is no control image"
    desk.presets.change("control_image", image["lines"])
    assert now() == ["none", "tile"] and "a_canny is set to" in said()
    desk.presets.change("control_image", image["photo"])
    assert now() == ["canny", "tile"] and "a_canny is set to" in said()
