"""A recipe of one family on a model of another, or for more VRAM than there is, is told everywhere before the start."""

from __future__ import annotations

import pytest

from core.cli.main import DONE, main
from core.record.workspace import PROJECT
from core.settings.presets.files import PresetStore
from core.training.checks.recipe_fit import GB, nearest, recipe_problems

STORE = PresetStore(PROJECT / "presets")


def codes(name, family, gpu=None):
    return [problem.code for problem in recipe_problems(STORE.load(name), family, gpu)]


@pytest.mark.parametrize(
    ("name", "family", "gpu", "expected"),
    [
        ("sdxl_lora_12gb", "sd1", None, ["recipe.other-family"]),
        ("sdxl_lora_12gb", "sdxl", None, []),
        ("sdxl_lora_12gb", "", None, []),  # the family is not known: model_problems tells why
        ("sdxl_lora_12gb", "sdxl", 8 * 2**30, ["recipe.more-vram"]),
        ("sdxl_lora_12gb", "sdxl", 12_622_000_000, []),  # what a card of 12 GB reports
        ("sdxl_lora_12gb", "sd1", 0, ["recipe.other-family", "recipe.more-vram"]),
        ("starter_lora", "sdxl", 0, []),  # a whole preset, which states neither
    ],
)
def test_family_and_vram_are_compared(name, family, gpu, expected):
    assert codes(name, family, gpu) == expected


def test_the_way_out_is_the_recipe_most_like_it():
    recipes = [STORE.load(name) for name in STORE.names("train")]
    for name in STORE.names("train"):
        wanted = STORE.load(name)
        if wanted.kind != "recipe" or not wanted.family:
            continue
        for family in ("sd1", "sdxl"):
            found = nearest(recipes, wanted, family, 24 * GB)
            assert found is not None and found.family == family and codes(found.name, family, 24 * GB) == []
        same = nearest(recipes, wanted, wanted.family, 24 * GB)
        assert same is not None and same.stated().get("method.kind") == wanted.stated().get("method.kind")


def test_the_check_on_the_command_line_says_it(tmp_path, capsys):
    words = [
        "train",
        str(STORE.path("sdxl_lora_12gb")),
        "--check",
        "--outputs",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    words += ["--model.base_model", "models/starter", "--dataset.folder", "models/starter/images"]
    assert main(words) == DONE
    said = capsys.readouterr().err
    assert "warning: The recipe" in said and "model.base_model" in said and "12 GB of VRAM" in said
