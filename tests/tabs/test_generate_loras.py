"""LoRAs in Generate without a browser: facts of files, the list to add one from, rows and trigger words."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from generate_parts import Engine, lora
from PIL import Image
from safetensors.torch import save_file
from work_parts import HOSTILE, event, make_page

from core.generation.model.index import facts_of_file, preview_of
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.settings.job import TrainJob
from tabs.form import picker
from tabs.generate import form, loras
from tabs.generate.tab import GenerateHandlers


@pytest.fixture
def desk(tmp_path):
    page = make_page(tmp_path, Engine(tmp_path / "outputs" / "images"))
    page.workspace = replace(page.workspace, models=tmp_path / "models")
    shutil.copytree(
        PROJECT / "models" / "starter", tmp_path / "models" / "starter", ignore=shutil.ignore_patterns("images")
    )
    return GenerateHandlers(page)


TAGS = json.dumps({"10_fox": {"fox": 10, "snow": 4}, "5_cat": {"cat": 6, "snow": 5}})


def test_trigger_words_are_those_stated_then_the_runs_then_the_most_frequent_tags(tmp_path):
    run = tmp_path / "runs" / "r"
    metadata = {"modelspec.trigger_phrase": "zfx, zfx fox", "ss_tag_frequency": TAGS}
    path = lora(run / "checkpoints" / "a.safetensors", metadata)
    (run / "job.json").write_text(json.dumps({"captions": {"trigger_word": "ohwx"}}))
    assert facts_of_file(path).words == ("zfx", "zfx fox", "ohwx", "fox", "snow", "cat")
    assert facts_of_file(path).family == "sd1"
    for bad in ("[", "[1]", '{"a": 3, "b": {"x": "y"}}', "[" * 5000):
        assert facts_of_file(lora(tmp_path / "b.safetensors", {"ss_tag_frequency": bad, "n": str(len(bad))})).words in (
            (),
            ("x",),
        )
    (tmp_path / "c.safetensors").write_bytes(b"no")
    assert facts_of_file(tmp_path / "c.safetensors").problem


def test_the_preview_is_the_image_beside_the_file_else_the_newest_sample_of_its_run(desk):
    space = desk.page.workspace
    path = lora(space.runs / "r" / "checkpoints" / "a.safetensors")
    assert preview_of(path, space) is None
    samples = space.runs / "r" / "samples"
    samples.mkdir()
    for name in ("00000000_00.png", "00000020_00.png", "00000020_01.png"):
        Image.new("RGB", (8, 8)).save(samples / name)
    assert preview_of(path, space) == samples / "00000020_00.png"
    beside = path.with_name("a.preview.png")
    Image.new("RGB", (8, 8)).save(beside)
    assert preview_of(path, space) == beside


def test_the_list_has_those_of_the_models_family_and_says_why_the_others_do_not_fit(desk):
    folder = desk.page.workspace.models / "loras"
    for number in range(picker.MAX_ROWS + 5):
        lora(folder / f"fox {number:02}.safetensors")
    lora(folder / f"large {HOSTILE[:20].replace('/', '')}.safetensors", width=2048)
    (folder / "torn.safetensors").write_bytes(b"no")
    desk.loras.model_lists.read()
    html = desk.loras.picker()
    assert html.count('data-act="add"') == picker.MAX_ROWS and "7 more" in html and "<img src=x" not in html
    listed = html.split('<ul tabindex="0"')[1]  # the name of a button is what it shows, its verb before
    assert listed.count('aria-label="Add fox ') == picker.MAX_ROWS
    assert listed.count('aria-description="SD 1.x, LoRA, rank 4"') == picker.MAX_ROWS
    for words, count in (("fox 07", 1), ("sdxl", 1), ("torn", 1), ("rank 4", picker.MAX_ROWS)):
        found = desk.lora_act(event("find", "", words))["add"]
        assert found.count('data-act="add"') == count and ("misfit" in found) == (words in ("sdxl", "torn"))
    (large,) = (each for each in desk.loras.model_lists.of(["lora"]) if each.facts.family == "sdxl")
    with pytest.raises(ProblemsError) as raised:
        desk.lora_act(event("add", large.name))
    assert raised.value.problems[0].code == "lora.other-family" and desk._values()["loras"] == []


def test_lists_of_vaes_and_upscalers_offer_nothing_else_and_name_damaged_ones(desk):
    models = desk.page.workspace.models
    lora(models / "loras" / "a.safetensors")
    for folder in ("vae", "upscalers"):
        (models / folder).mkdir()
        (models / folder / "torn.safetensors").write_bytes(b"no")
    dense = {"conv_first.weight": torch.zeros(4, 3, 3, 3), "body.0.rdb1.conv5.weight": torch.zeros(4, 4, 3, 3)}
    save_file(dense, models / "upscalers" / "big.safetensors")
    desk.loras.model_lists.read()
    shelf = desk.loras.model_lists
    (vae,) = shelf.of(["vae"])
    assert vae.name == "models/vae/torn.safetensors" and "unreadable" in vae.text
    assert [each.name for each in shelf.of(["upscaler"])] == [
        f"models/upscalers/{n}.safetensors" for n in ("big", "torn")
    ]
    assert not [each for each in shelf.of(["checkpoint"]) if "upscalers" in each.name or "vae/" in each.name]
    html = desk.loras.picker()
    assert 'id="gen-vaes"' in html and 'id="gen-upscalers"' in html
    drawn = desk._form()
    assert any('list="gen-vaes"' in part for part in drawn.values() if isinstance(part, str))


def test_the_folders_are_read_beside_the_page_and_then_sent_once(desk):
    seen = desk.tick("")["client"]
    desk.loras.model_lists.refresh(60)  # that of the tick has ended
    path = lora(desk.page.workspace.models / "loras" / "new.safetensors")
    desk.loras.model_lists.refresh(60)
    fresh = desk.tick(seen)
    assert "loras/new" in fresh["add"]
    version = desk.loras.model_lists.version
    desk.loras.model_lists.refresh(60)
    assert desk.loras.model_lists.version == version and path.exists()


def test_a_row_shows_family_words_and_state_and_a_word_is_written_at_the_prompts_end(desk):
    lora(
        desk.page.workspace.models / "loras" / "a.safetensors",
        {"modelspec.trigger_phrase": "zfx_(art), glyph style, x__y__z"},
    )
    desk.loras.model_lists.read()
    desk.lora_act(event("add", desk.loras.model_lists.of(["lora"])[0].name))
    row = desk._form()["loras"]
    # In the prompt already
    assert "SD 1.x" in row and 'data-arg="0:0"' in row and row.count("disabled>glyph style") == 1
    for _ in range(2):
        desk.lora_act(event("word", "0:0"))
    assert desk._values()["prompt"] == r"a fox, glyph style, zfx_\(art\)"  # its brackets are no weight
    desk.presets.put(desk._values() | {"dynamic_prompts": True})
    for _ in range(2):
        desk.lora_act(event("word", "0:2"))
    assert desk._values()["prompt"] == r"a fox, glyph style, zfx_\(art\), x\__y\__z"  # nor its underscores a wildcard
    desk.lora_act(event("word", "0:99"))
    desk.lora_act(event("on", "0", "false"))
    assert desk._values()["prompt"].endswith("z") and 'class="is-off"' in desk._form()["loras"]
    assert form.job_of(desk._values(), desk.page.project.job).generate.loras == []


def test_one_of_another_family_or_gone_says_so_in_its_row(desk):
    lora(desk.page.workspace.models / "loras" / "xl.safetensors", width=2048)
    uses = [{"file": "models/loras/xl.safetensors", "strength": 1.0}, {"file": "gone", "strength": 1.0}]
    desk.presets.put(desk._values() | {"loras": uses})
    row = desk._form()["loras"]
    assert "is a LoRA for SDXL; the model is SD 1.x" in row and "is not on this machine" in row


def test_a_lora_in_the_prompt_and_as_a_card_is_said_to_add_up(desk):
    """Both strengths act: with 0.7 and 0.8 the image is that of 1.5."""
    lora(desk.page.workspace.models / "loras" / "a.safetensors")
    desk.loras.model_lists.read()
    desk.lora_act(event("add", desk.loras.model_lists.of(["lora"])[0].name))
    desk.act(event("field", "prompt", "a fox <lora:a:0.7> <lora:b:0.5>"))
    shown = desk._form()["loras"]
    assert "From the prompt: a 0.7 + 1 of its card = 1.7, b 0.5<" in shown
    desk.act(event("field", "prompt", "a fox <lora:a:0.7:0.4> <lora:b:0.5>"))
    assert "From the prompt: a 0.4 / 0.7, added to its card, b 0.5<" in desk._form()["loras"]
    desk.act(event("field", "prompt", "a fox <lora:a:0.7> <lora:b:0.5>"))
    desk.lora_act(event("part", "0:start_at", "0.5"))
    assert "From the prompt: a 0.7, added to its card, b 0.5<" in desk._form()["loras"]
    desk.lora_act(event("on", "0", "false"))
    assert "From the prompt: a 0.7, b 0.5<" in desk._form()["loras"]


@pytest.mark.parametrize(
    ("prompt", "more", "areas"),
    [
        ("a fox AND a dog", {}, {0: "prompt 1, red", 2: "prompt 2, green", 3: "whole image"}),
        ("a fox AND a dog AND an owl AND a bear", {}, {0: "prompt 1, red", 2: "prompt 2, green", 3: "prompt 3, blue"}),
        (
            "a fox AND a dog",
            {"network_regional_mask_max_color_codes": 4},
            {0: "prompt 1", 2: "prompt 2", 3: "whole image"},
        ),
        ("a fox", {}, {}),
        ("a fox AND a dog", {"region_map": None}, {}),
    ],
)
def test_a_card_says_in_which_region_its_lora_acts(desk, prompt, more, areas):
    """As the engine has it: by its place among those that are used."""
    files = [{"file": f"{name}", "strength": 1.0, "enabled": name != "off"} for name in ("a", "off", "b", "c")]
    values = desk._values() | {"prompt": prompt, "region_map": "map.png", "loras": files} | more
    assert loras.areas_of(values) == areas
    desk.presets.put(values)
    shown = re.findall(r'<span class="hint" title="(prompt \d[^·"]*|whole image)', desk._form()["loras"])
    assert [each.strip() for each in shown] == list(areas.values())


@pytest.mark.parametrize(("more", "kept"), [({}, ["b"]), ({"region_map": "map.png"}, ["a", "b"])])
def test_a_lora_of_strength_0_keeps_its_region_as_on_the_command_line(desk, more, kept):
    uses = [{"file": "a", "strength": 0.0}, {"file": "off", "enabled": False}, {"file": "b"}]
    values = desk._values() | {"prompt": "a fox AND a dog", "loras": uses} | more
    assert [use.file for use in form.job_of(values, TrainJob()).generate.loras] == kept
    assert loras.areas_of(values).get(2) == ("prompt 2, green" if more else None)


def test_a_saved_preset_is_as_saved_with_its_loras(desk):
    """A card leaves out what has its default, a preset does not."""
    lora(desk.page.workspace.models / "loras" / "a.safetensors")
    desk.loras.model_lists.read()
    desk.lora_act(event("add", desk.loras.model_lists.of(["lora"])[0].name))
    desk.presets.run_act("save", {"preset": "with a lora"})
    assert desk.presets.name == "user/with a lora" and desk.presets.changed() == {}
    desk.lora_act(event("strength", "0", "0.5"))
    assert set(desk.presets.changed()) == {"loras"}
