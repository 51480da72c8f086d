"""webui.py presets: what there is, and what a recipe sets and why."""

import json

from core.cli.main import main
from core.record.workspace import PROJECT
from core.settings.presets.files import PresetStore, read

NAME = "sdxl_lora_8gb"
STORE = PresetStore(PROJECT / "presets")


def test_presets_are_listed_with_title_and_description(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name.split()[0] for name in STORE.names()]
    recipe = STORE.load(NAME)
    assert any(recipe.title in line and recipe.description in line for line in lines)


def test_a_recipe_is_shown_with_each_value_and_its_reason(capsys):
    assert main(["presets", NAME]) == 0
    text, recipe = capsys.readouterr().out, STORE.load(NAME)
    for path, value in recipe.stated().items():
        assert f"{path} = {json.dumps(value)}" in text and recipe.reasons[path] in text


def test_a_whole_preset_is_shown_by_what_differs_from_the_defaults(capsys):
    assert main(["presets", "starter_lora"]) == 0
    text = capsys.readouterr().out
    assert 'saving.output_name = "glyph_style"' in text and "noise." not in text


def test_a_preset_that_cannot_be_read_is_listed_as_such_and_refused_by_name(tmp_path, capsys):
    (tmp_path / "odd.json").write_text("{")
    (tmp_path / "good.json").write_text((PROJECT / "presets" / f"{NAME}.json").read_text("utf-8"))
    assert main(["presets", "--presets", str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:2] == ["good", "odd"]
    for words in (["odd"], ["missing"], ["good", "more"], ["--device", "cpu"]):
        assert main(["presets", *words, "--presets", str(tmp_path)]) == 2


def test_a_recipe_and_flags_make_a_job(tmp_path, capsys):
    images = PROJECT / "models" / "starter" / "images"
    words = f"--model.base_model models/starter --dataset.folder {images} --dataset.resolution 64 --outputs {tmp_path}"
    assert main(["train", "sd15_lora_subject_4gb", "--check", "--device", "cpu", *words.split()]) == 0
    assert "steps" in capsys.readouterr().out
    assert read(PROJECT / "presets" / "sd15_lora_subject_4gb.json").kind == "recipe"
