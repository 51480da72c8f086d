"""Axes of a grid: their settings by name, and their values as A1111's X/Y/Z plot reads them."""

from __future__ import annotations

from contextlib import suppress

import pytest

from core.generation.grids.axes import axes_of, joined, read_values, setting_named, settings_of_axes, texts_of
from core.generation.grids.plan import grid_of
from core.generation.prompt.styles import Style, write_styles
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.base import value_of
from core.settings.check import build
from core.settings.job import GridJob
from tests.refusals import refused


def grid_job(prompt="a fox", generate=None, **grid):
    return build(GridJob, {"generate": {"prompt": prompt, "seed": 1, **(generate or {})}, "grid": grid})


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("generate.steps", "generate.steps"),
        ("Steps", "generate.steps"),
        ("CFG Scale", "generate.guidance_scale"),
        ("Sampling steps", "generate.steps"),
        ("Denoising", "image_to_image.strength"),
        ("Hires upscaler", "hires.highres_fix_upscaler"),
        ("RNG source", "start_noise.noise_source"),
        ("[ControlNet] Weight", "control_weight"),
        ("Checkpoint name", "model.base_model"),
        ("pretrained_model_name_or_path", "model.base_model"),
        ("Prompt S/R", "prompt_sr"),
        ("LoRA strength: fox", "lora_strength:fox"),
        ("size", "size"),
        ("Layers (Skip-layer (SLG))", "skip_layer.slg_layers"),
        ("count", None),
        ("prompts.from_file", None),
        ("stepz", None),
    ],
)
def test_a_setting_is_named_by_path_name_title_or_the_name_of_other_programs(name, setting):
    assert setting_named(name) == setting


@pytest.mark.parametrize(
    ("setting", "text", "values"),
    [
        ("generate.steps", "1, 5,9", [1, 5, 9]),
        ("generate.steps", "1-5", [1, 2, 3, 4, 5]),
        ("generate.steps", "20-40 (+10), 3", [20, 30, 40, 3]),
        ("generate.steps", "10-5 (-3)", [10, 7]),
        ("generate.steps", "3-1", [3, 2, 1]),
        ("generate.steps", "1-10 [5]", [1, 3, 5, 7, 10]),  # as A1111's wiki has it
        ("generate.guidance_scale", "0-1 [6]", [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("generate.guidance_scale", "1-1.3 (+0.1), none", [1, 1.1, 1.2, 1.3, None]),
        ("generate.sampler", "Euler a, ddim, k_lms, PLMS", ["euler_a", "ddim", "lms", "pndm"]),
        ("generate.prompt_weights", "on, off", [True, False]),
        ("generate.prompt", '"a fox, red", a dog', ["a fox, red", "a dog"]),
        ("generate.negative_prompt", '"bad, ugly", none', ["bad, ugly", ""]),
        ("prompt_sr", 'fox, "big ""dog"""\ncat', ["fox", 'big "dog"', "cat"]),
        ("prompt_sr", "none, None, nonet", ["none", "", "nonet"]),
        ("size", "512x768, 64 x 64", [(512, 768), (64, 64)]),
        ("lora", "none, a.safetensors", [None, "a.safetensors"]),
        ("lora_strength", "-1-1 [3], 0.7", [-1, 0, 1, 0.7]),
        ("model.clip_skip", "1-2, none", [1, 2, None]),
        ("hires.highres_fix_scale", "none, 2", [None, 2]),
        ("start_noise.noise_offset_range", "0;0.1", [(0, 0.1)]),
        ("generate.embeddings", "none, w=a.pt; b.pt", [[], ["w=a.pt", "b.pt"]]),
    ],
)
def test_values_are_read_as_a1111_writes_them(setting, text, values):
    assert [each.value for each in read_values(setting, text)] == values


def test_rows_and_columns_are_called_by_labels_and_short_names():
    assert [each.text for each in read_values("generate.sampler", "euler_a")] == ["Euler a"]
    assert [each.text for each in read_values("model.base_model", "models/a/fox-v1.5.safetensors")] == ["fox-v1.5"]
    assert [each.text for each in read_values("lora", "outputs/runs/r/checkpoints/fox-000002.safetensors")] == [
        "fox-000002"
    ]


def test_texts_come_back_from_what_is_written_of_them():
    texts = ["a fox, red", 'a "dog"', "x --d 5", "two\nlines"]
    assert texts_of(joined(texts)) == texts


def test_every_setting_of_a_generation_can_be_an_axis_but_what_makes_several_images():
    assert {"model.vae", "image_to_image.strength", "deep_shrink.ds_depth_1", "memory.mixed_precision"} <= set(
        settings_of_axes()
    )
    assert not {"generate.count", "generate.loras", "prompts.from_file"} & set(settings_of_axes())


def test_everything_wrong_with_the_axes_is_told_at_once_and_where():
    job = grid_job(
        x_axis="stepz", x_values="1", y_axis="steps", y_values="0, x, 5", z_axis="sampler", z_values="euler b"
    )
    with pytest.raises(ProblemsError) as caught:
        axes_of(job)
    told = [(each.code, each.where) for each in caught.value.problems]
    assert told == [
        ("grid.unknown-axis", "grid.x_axis"),
        ("settings.bad-value", "grid.y_values"),
        ("settings.bad-value", "grid.y_values"),
        ("settings.bad-value", "grid.z_values"),
    ]
    assert "Sampling steps" in caught.value.problems[0].fix and "euler_a" in caught.value.problems[3].fix


@pytest.mark.parametrize(
    ("code", "grid"),
    [
        ("grid.no-axis", {}),
        ("grid.empty-axis", {"x_axis": "steps", "x_values": " , "}),
        ("grid.no-setting", {"x_values": "1"}),
        ("grid.axis-twice", {"x_axis": "steps", "x_values": "1", "y_axis": "Sampling steps", "y_values": "2"}),
        ("grid.axis-twice", {"x_axis": "size", "x_values": "64x64", "y_axis": "width", "y_values": "64"}),
        ("grid.search-not-found", {"x_axis": "prompt_sr", "x_values": "cat, dog"}),
        ("grid.bad-range", {"x_axis": "steps", "x_values": "1-5 (-1)"}),
        ("grid.bad-range", {"x_axis": "steps", "x_values": "1-5 (+0)"}),
        ("grid.bad-size", {"x_axis": "size", "x_values": "512"}),
        ("settings.bad-value", {"x_axis": "size", "x_values": "513x512"}),
        ("settings.bad-value", {"x_axis": "lora_strength", "x_values": "11"}),
        ("settings.bad-value", {"x_axis": "generate.prompt_weights", "x_values": "maybe"}),
        ("grid.too-many-values", {"x_axis": "seed", "x_values": "1-1000000000"}),
        ("grid.text-too-long", {"x_axis": "prompt", "x_values": "a" * 300_000}),
        ("grid.value-too-long", {"x_axis": "prompt", "x_values": "a" * 140_000}),
        (
            "grid.too-many-cells",
            {"x_axis": "seed", "x_values": "1-100", "y_axis": "steps", "y_values": "1-100"}
            | {"z_axis": "cfg scale", "z_values": "0-50 [100]"},
        ),
    ],
)
def test_axes_that_cannot_be_are_refused(code, grid):
    with refused(code):
        axes_of(grid_job(**grid))


PAIRS = ("0.5, 1", "1, 2", "64, 128", "0.1, 0.2", "10, 20")  # of numbers, the first pair within a setting's limits
NEEDS_FILE = {"image_to_image.image_path", "image_to_image.mask_path", "regions.region_map", "prompts.styles"}
OWN_SYNTAX = {"start_noise.noise_offset_range", "start_noise.pyramid_noise_discount_range", "memory.text_cache_bytes"}


def cells_of(setting, values, workspace):
    job = grid_job(name="g", x_axis=setting, x_values=values)
    job = job.with_settings(model={"base_model": str(workspace.models / "starter")})
    return [cell.request.job for cell in grid_of(job, workspace).cells]


def test_every_setting_as_an_axis_gives_its_values_to_the_cells(tmp_path):
    """An axis of embeddings once ended each grid with a TypeError."""
    workspace, refused_axes = Workspace(tmp_path, PROJECT / "models", PROJECT / "presets"), set()
    for setting, entry in settings_of_axes().items():
        choices = [str(each) for each in entry.choices][:2]
        tries = (
            ["on, off"] if entry.kind == "bool" else [", ".join(choices)] if choices else ["none, a=b.pt; c.pt", "a, b"]
        )
        for text in PAIRS if entry.kind in ("int", "float") else tries:
            with suppress(ProblemsError):
                values = [each.value for each in axes_of(grid_job(x_axis=setting, x_values=text))[0].values]
                assert [value_of(job, setting) for job in cells_of(setting, text, workspace)] == values, setting
                break
        else:
            refused_axes.add(setting)
    assert refused_axes == NEEDS_FILE | OWN_SYNTAX


def test_an_axis_of_styles_puts_each_around_the_prompts(tmp_path):
    workspace = Workspace(tmp_path, PROJECT / "models", PROJECT / "presets")
    write_styles(workspace, [Style("b/w", "ink of {prompt}", "color"), Style("big", "huge")])
    job = grid_job(prompt="a fox", name="g", x_axis="Styles", x_values="none, b/w, b/w; big")
    grid = grid_of(job.with_settings(model={"base_model": str(workspace.models / "starter")}), workspace)
    made = [cell.request.job.generate for cell in grid.cells]
    assert [each.prompt for each in made] == ["a fox", "ink of a fox", "ink of a fox, huge"]
    assert [each.negative_prompt for each in made] == ["", "color", "color"] and not grid.notes
    assert [each.text for each in grid.axes[0].values] == ["none", "b/w", "b/w, big"]


def test_a_sampler_with_its_schedule_is_answered_with_that_sampler():
    with refused("settings.bad-value") as error:
        axes_of(build(GridJob, {"grid": {"x_axis": "sampler", "x_values": "DPM++ 2M Karras"}}))
    assert error.value.problems[0].fix == "did you mean 'dpmsolver++'?"
