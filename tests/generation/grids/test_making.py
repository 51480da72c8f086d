"""A grid from its settings to its folder: order of work, resuming, failures, the files for people."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from io import BytesIO
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from core.cli.main import main
from core.generation import making
from core.generation.grids import making as grids_making
from core.generation.grids.folder import GridFolder, list_grids
from core.generation.grids.making import begin, run_grid
from core.generation.grids.plan import check_task, grid_of, with_seeds
from core.generation.images.metadata import read_image_metadata
from core.generation.model.store import ModelStore
from core.generation.run import run_generate
from core.networks.adapter_file import save_lora
from core.record import allowed
from core.record.cancel import Cancelled
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation.grid import GridSettings
from core.settings.job import GridJob
from tests.generation.test_run import pixels, small_lora
from tests.models import tiny_sd1
from tests.refusals import refused
from tests.reports import Heard


@pytest.fixture
def workspace(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")


def job_of(prompt="a fox, flat icon", generate=None, base_model="models/starter", **grid):
    asked = {"prompt": prompt, "steps": 2, "width": 64, "height": 64, "seed": 7, **(generate or {})}
    return build(GridJob, {"generate": asked, "model": {"base_model": base_model}, "grid": grid})


TWO = {"x_axis": "steps", "x_values": "1,2,3", "y_axis": "seed", "y_values": "1-2"}


def test_a_comparison_of_checkpoints_makes_strength_1_before_the_others(workspace, store, tmp_path):
    files = [small_lora(tmp_path / f"{name}.safetensors") for name in "ab"]
    axes = {
        "x_axis": "lora",
        "x_values": f"none, {files[0]}, {files[1]}",
        "y_axis": "lora_strength",
        "y_values": "0.5, 1",
    }
    asked = job_of(generate={"steps": 1}, **axes)
    for run, order in (("", [0.5, 1.0, 0.5, 1.0]), ("a run", [1.0, 1.0, 0.5, 0.5])):
        folder = begin(asked, workspace, run)
        made = grid_of(folder.job(), workspace, run).cells
        used = [use.strength for cell in made for use in cell.request.job.generate.loras]
        assert used == order and len(made) == 5, "the base model is made once, first"
        heard = Heard()
        run_grid(
            asked.with_settings(grid={"folder": folder.name}),
            workspace,
            store=store,
            reports=heard,
        )
        assert [path.stem for path, _ in heard.images] == [folder.cell(cell.position).stem for cell in made]


def test_a_comparison_makes_the_first_prompts_of_all_checkpoints_before_the_others(workspace, tmp_path):
    files = [small_lora(tmp_path / f"{name}.safetensors") for name in "ab"]
    axes = {"x_axis": "lora", "x_values": f"{files[0]}, {files[1]}", "y_axis": "prompt", "y_values": "fox, dog, cat"}
    job = begin(job_of(**axes), workspace, "a run").job()
    for run, order in (("a run", "fox dog fox dog cat cat"), ("", "fox dog cat fox dog cat")):
        made = grid_of(job, workspace, run).cells
        assert [cell.request.job.generate.prompt for cell in made] == order.split()
        files_of = [cell.position[0] for cell in made]
        assert files_of == ([0, 0, 1, 1, 0, 1] if run else [0, 0, 0, 1, 1, 1])


def test_each_cell_is_the_image_that_its_settings_make_alone(workspace, store):
    heard = Heard()
    folder, failed = run_grid(job_of(**TWO), workspace, store=store, reports=heard)
    assert failed == 0 and folder.path.parent == workspace.outputs / "grids" and len(heard.images) == 6
    assert [steps for steps in heard.stages if steps[2]][-1][1:] == (12, 12)
    for x, steps in enumerate((1, 2, 3)):
        for y, seed in enumerate((1, 2)):
            job = read_image_metadata(folder.cell((x, y, 0))).job
            assert (job.generate.steps, job.generate.seed, job.generate.count) == (steps, seed, 1)
    alone = run_generate(job, workspace, store=store)[0]
    assert np.abs(pixels(alone) - pixels(folder.cell((2, 1, 0)))).max() <= 1  # in a batch of two there
    assert folder.content().state == "done" and folder.content().steps == 12
    assert list_grids(workspace)[0].name == folder.name


def test_models_load_once_each_and_lora_files_attach_once_each(workspace, tmp_path, store, monkeypatch):
    other = tiny_sd1(tmp_path / "tiny")
    for name in ("a", "b"):
        small_lora(workspace.runs / "2026-01-01_a" / "checkpoints" / f"{name}.safetensors")
    checkpoints = workspace.runs / "2026-01-01_a" / "checkpoints"
    job = job_of(
        **{"x_axis": "checkpoint", "x_values": f"models/starter, {other}, models/starter"},
        **{"y_axis": "lora", "y_values": f"none, {checkpoints / 'a.safetensors'}"},
        **{"z_axis": "lora_strength", "z_values": "0.5, 1"},
    )
    grid = grid_of(with_seeds(job), workspace)
    assert [(part.loads, len(part.cells)) for part in grid.parts] == [(True, 1), (False, 2), (True, 1), (False, 2)]
    assert len(grid.same) == 6, "the same model again, and no LoRA at two strengths"
    models = [cell.request.job.model.base_model for cell in grid.cells]
    assert models == ["models/starter"] * 3 + [str(other)] * 3
    assert "6 images, 12 steps, 2 model loads" in check_task(
        job_of(**{**TWO, "y_axis": "checkpoint"} | {"y_values": f"models/starter, {other}"}), workspace
    )


@pytest.mark.slow
def test_each_model_is_loaded_once_though_they_alternate_in_the_table(workspace, tmp_path, monkeypatch):
    loads, real = [], ModelStore._load

    def load(self, slot, key, *more):
        loads.append(slot)
        return real(self, slot, key, *more)

    monkeypatch.setattr(ModelStore, "_load", load)
    other = tiny_sd1(tmp_path / "tiny")
    models = {"x_axis": "checkpoint", "x_values": f"models/starter, {other}"}
    folder, _ = run_grid(job_of(**models, y_axis="steps", y_values="1, 2, 3"), workspace, store=ModelStore(0))
    assert len(folder.generated()) == 6 and loads.count("base") == 2


def test_axes_reach_prompts_loras_and_seeds(workspace):
    checkpoints = workspace.runs / "2026-01-01_a" / "checkpoints"
    for name in ("a", "b"):
        small_lora(checkpoints / f"{name}.safetensors")
    job = job_of(
        "a fox <lora:a:0.3>",
        {"negative_prompt": "fox tail", "loras": [{"file": "b", "strength": 0.9}]},
        **{"x_axis": "prompt_sr", "x_values": "fox, dog", "y_axis": "lora_strength:a", "y_values": "0, 1"},
        **{"z_axis": "lora", "z_values": "b, none", "vary_seeds_x": True, "vary_seeds_z": True},
    )
    cells = {cell.position: cell.request.job.generate for cell in grid_of(job, workspace).cells}
    assert (cells[1, 0, 0].prompt.strip(), cells[1, 0, 0].negative_prompt) == ("a dog", "dog tail")
    assert [(use.file, use.strength) for use in cells[0, 1, 0].loras] == [("b", 0.9), ("a", 1.0)]
    assert [(use.file, use.strength) for use in cells[0, 1, 1].loras] == [("a", 1.0)]
    assert [cells[place].seed for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1))] == [7, 8, 7, 10]  # A1111's
    rows = {"vary_seeds_y": True, "x_axis": "steps", "x_values": "1,2", "y_axis": "width", "y_values": "64,128"}
    cells = {cell.position: cell.request.job.generate for cell in grid_of(job_of(**rows), workspace).cells}
    assert (cells[1, 0, 0].seed, cells[1, 1, 0].seed, cells[0, 1, 0].width) == (7, 8, 128)


def test_all_cells_have_the_same_images_of_folders(workspace, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (64, 64), "gray").save(tmp_path / name)
    groups = {
        "controls": {"control_image": str(tmp_path), "nets": [{"file": "lines"}]},
        "perceptual": {"guide_image": str(tmp_path), "vgg16_guidance_scale": 1.0},
    }
    job = job_of(x_axis="steps", x_values="1,2,3")
    job = build(GridJob, {name: getattr(job, name).model_dump() for name in ("generate", "model", "grid")} | groups)
    cells = [cell.request.job for cell in grid_of(job, workspace).cells]
    assert len(cells) == 3
    for of in (lambda cell: cell.controls.control_image, lambda cell: cell.perceptual.guide_image):
        assert [of(cell) for cell in cells] == [str(tmp_path / "a.png")] * 3


def test_an_axis_of_models_and_one_of_their_prediction_both_act_in_any_order(workspace):
    axes = {"prediction": "epsilon, v", "checkpoint": "models/starter, models/other"}
    for first, second in (("prediction", "checkpoint"), ("checkpoint", "prediction")):
        names = {"x_axis": first, "x_values": axes[first], "y_axis": second, "y_values": axes[second]}
        grid = grid_of(job_of(**names), workspace)
        models = {(cell.request.job.model.base_model, cell.request.job.model.prediction) for cell in grid.cells}
        assert len(models) == 4 and not grid.notes


def test_a_negative_prompt_that_styles_and_replacements_add_to_is_no_option_that_wins(workspace):
    names = {"x_axis": "negative prompt", "x_values": "red, blue", "y_axis": "prompt_sr", "y_values": "red, green"}
    assert not grid_of(job_of("a red fox", **names), workspace).notes
    names = {"x_axis": "negative prompt", "x_values": "{red|blue}, green"}
    assert not grid_of(job_of("a red fox", **names), workspace).notes
    names = {"x_axis": "steps", "x_values": "1,2"}
    notes = grid_of(job_of("a red fox --s 3", **names), workspace).notes
    assert [note.code for note in notes] == ["grid.option-wins"]


def test_a_random_seed_is_one_for_all_cells_and_kept_with_the_grid(workspace, store):
    job = job_of(
        generate={"seed": None, "steps": 1}, x_axis="cfg scale", x_values="1,4", y_axis="seed", y_values="-1,5"
    )
    folder = begin(job, workspace)
    seeds = [{cell.position: cell.request.seed for cell in grid_of(folder.job(), workspace).cells} for _ in range(2)]
    assert seeds[0] == seeds[1] and seeds[0][0, 1, 0] == seeds[0][1, 1, 0] == 5
    assert seeds[0][0, 0, 0] == seeds[0][1, 0, 0] != 5
    assert with_seeds(job_of(generate={"seed": None}, x_axis="steps", x_values="1")).generate.seed is not None


@pytest.mark.slow
def test_a_stopped_grid_makes_only_what_is_missing_and_equals_an_unbroken_one(workspace, store):
    job = job_of(**TWO)
    whole, _ = run_grid(job, workspace, store=store)
    heard = Heard(stop_after=2)
    folder = begin(job, workspace)
    resumed = job.model_copy(update={"grid": GridSettings(folder=folder.name)})
    with pytest.raises(Cancelled):
        run_grid(resumed, workspace, store=store, reports=heard)
    assert folder.content().state == "stopped" and folder.png.is_file() and folder.html.is_file()
    before = {path: path.stat().st_mtime_ns for path in folder.cells.iterdir()}
    assert len(before) == 2
    folder.cell((0, 1, 0)).unlink()  # of a batch of two, as if the process had ended between them
    again = Heard()
    run_grid(resumed, workspace, store=store, reports=again)
    assert len(again.images) == 5 and folder.content().state == "done"
    kept = folder.cell((0, 0, 0))
    assert kept.stat().st_mtime_ns == before[kept], "what was there is not made again"
    for path in whole.cells.iterdir():
        assert np.array_equal(pixels(path), pixels(folder.cells / path.name))


def test_a_grid_ends_when_its_minutes_are_over_and_is_resumed(workspace, store, monkeypatch):
    folder = begin(job_of(**TWO), workspace)
    folder.change(minutes=1)
    resumed = job_of().model_copy(update={"grid": GridSettings(folder=folder.name)})
    # 40 seconds at each look
    monkeypatch.setattr(grids_making, "time", SimpleNamespace(monotonic=count(0, 40).__next__))
    run_grid(resumed, workspace, store=store)
    assert folder.content().state == "late" and folder.generated() == {(0, 0, 0), (0, 1, 0)}, "the batch is finished"
    folder.change(minutes=0)
    run_grid(resumed, workspace, store=store)
    assert folder.content().state == "done" and len(folder.generated()) == 6


@pytest.mark.slow
def test_a_killed_process_leaves_a_grid_that_is_resumed(workspace, store):
    words = ["--generate.steps", "4", "--generate.seed", "7", "--generate.width", "64", "--generate.height", "64"]
    words += ["--grid.x_axis", "steps", "--grid.x_values", "20-24", "--outputs", str(workspace.outputs)]
    process = subprocess.Popen([sys.executable, "webui.py", "grid", "a fox", *words], cwd=PROJECT)
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list(workspace.outputs.glob("grids/*/cells/*.png"))) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (folder,) = list_grids(workspace)
    made = folder.generated()
    assert 0 < len(made) < 5 and folder.content().state == "running"
    times = {place: folder.cell(place).stat().st_mtime_ns for place in made}
    job = folder.job().model_copy(update={"grid": GridSettings(folder=folder.name)})
    run_grid(job, workspace, store=store)
    assert len(folder.generated()) == 5
    assert times == {place: folder.cell(place).stat().st_mtime_ns for place in made}


@pytest.mark.slow
def test_a_failed_cell_is_marked_with_its_reason_and_the_others_go_on(workspace, store, monkeypatch):
    real = making.ImageMaker.make

    def make(self, batch, *more):
        if any(request.job.generate.steps == 2 and request.seed == 2 for request in batch):
            raise MemoryError
        return real(self, batch, *more)

    monkeypatch.setattr(making.ImageMaker, "make", make)
    folder, failed = run_grid(job_of(**TWO), workspace, store=store)
    assert failed == 1 and list(folder.content().failed) == [(1, 1, 0)]
    assert "memory" in folder.content().failed[1, 1, 0]
    assert folder.generated() == {(x, y, 0) for x in range(3) for y in range(2)} - {(1, 1, 0)}
    monkeypatch.undo()
    job = job_of().model_copy(update={"grid": GridSettings(folder=folder.name)})
    assert run_grid(job, workspace, store=store)[1] == 0 and len(folder.generated()) == 6  # tried again when resumed
    assert folder.content().failed == {}


@pytest.mark.slow
def test_a_model_that_is_gone_fails_only_its_own_cells(workspace, tmp_path, store):
    other = tiny_sd1(tmp_path / "tiny")
    job = job_of(x_axis="checkpoint", x_values=f"{other}, models/starter", y_axis="steps", y_values="1, 2")
    folder = begin(job, workspace)
    shutil.rmtree(other)
    resumed = job.model_copy(update={"grid": GridSettings(folder=folder.name)})
    assert run_grid(resumed, workspace, store=store)[1] == 2
    assert folder.generated() == {(1, 0, 0), (1, 1, 0)} and set(folder.content().failed) == {(0, 0, 0), (0, 1, 0)}


@pytest.mark.slow
def test_the_exported_image_has_a_label_for_every_value_and_the_page_holds_its_images(workspace, store):
    long = "a very long name of a search " * 6
    job = job_of(x_axis="prompt_sr", x_values=f"fox, {long}", y_axis="sampler", y_values="ddim, Euler a")
    job = build(
        GridJob,
        {
            **job.model_dump(mode="json", exclude={"grid"}),
            "grid": job.grid.model_dump() | {"z_axis": "steps", "z_values": "1, 2", "name": "<b>tests</b>"},
        },
    )
    folder, _ = run_grid(job, workspace, store=store)
    with Image.open(folder.png) as image:
        sheet = np.asarray(image.convert("L")).astype(int)
    with Image.open(folder.cell((0, 0, 0))) as image:
        cell = np.asarray(image.convert("L")).astype(int)
    assert sheet.shape[1] > 2 * 64 and sheet.shape[0] > 4 * 64
    spots = [
        (y, x)
        for y in range(sheet.shape[0] - 64)
        for x in range(sheet.shape[1] - 64)
        if sheet[y, x] == cell[0, 0] and np.array_equal(sheet[y : y + 64, x : x + 64], cell)
    ]
    assert len(spots) == 1, "the cell stands there as it is"
    top, left = spots[0]
    assert (sheet[:top, left : left + 64] < 128).any(), "the column's label is above it"
    assert (sheet[top : top + 64, :left] < 128).any(), "the row's label is beside it"
    text = folder.html.read_text("utf-8")
    assert "&lt;b&gt;tests" in text and "<b>tests" not in text
    assert "Euler a" in text and long.strip() in text and "http" not in text.replace("http-equiv", "")
    held = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text)
    assert len(held) == 8 and Image.open(BytesIO(base64.b64decode(held[0]))).size == (64, 64)


@pytest.mark.parametrize(
    ("code", "where", "given"),
    [
        ("model.not-found", "grid.x_values", {"x_axis": "checkpoint", "x_values": "models/starter, models/nothing"}),
        ("lora.not-found", "grid.x_values", {"x_axis": "lora", "x_values": "none, nothing"}),
        ("grid.no-lora", "grid.x_axis", {"x_axis": "lora_strength", "x_values": "1, 2"}),
        ("prompt.bad-wildcard", "generate.prompt", {"x_axis": "prompt", "x_values": "{9$$a|b}"}),
        ("grid.several-images", "generate.prompt", {"x_axis": "prompt", "x_values": "{e$$a|b}"}),
        ("grid.no-such-grid", "grid.folder", {"folder": "nothing"}),
    ],
)
def test_what_cannot_be_made_is_told_before_the_start(workspace, code, where, given):
    with refused(code) as caught:
        check_task(job_of(**given), workspace)
    assert where in [each.where for each in caught.value.problems]


def test_a_folder_that_cannot_be_written_is_told_before_the_start(workspace):
    workspace.outputs.mkdir()
    (workspace.outputs / "grids").write_text("a file")
    with refused("outputs.not-writable"):
        check_task(job_of(**TWO), workspace)
    with refused("outputs.not-writable"):
        begin(job_of(**TWO), workspace)


def test_a_shared_page_reaches_no_file_through_an_axis(workspace, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    job = job_of(x_axis="image_path", x_values=f"none, {tmp_path / 'secret.png'}")
    assert "2 images" in check_task(job, workspace)
    allowed.keep_files_inside([workspace.outputs, workspace.models])
    try:
        with refused("shared.path-closed"):
            check_task(job, workspace)
    finally:
        allowed.keep_files_inside(None)


def test_an_option_of_the_prompt_that_an_axis_would_change_is_told(workspace):
    notes = grid_of(job_of("a fox --s 3", **TWO), workspace).notes
    assert "grid.option-wins" in [note.code for note in notes]


def test_a_full_disk_leaves_no_folder_of_a_grid(workspace, monkeypatch):
    def full(target, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.generation.grids.folder.atomic.write_json", full)
    with refused("disk.full"):
        begin(job_of(**TWO), workspace)
    assert not list((workspace.outputs / "grids").iterdir())


def test_a_disk_that_fills_up_ends_a_grid_with_its_images_and_the_rest_is_made_later(workspace, store, monkeypatch):
    job = job_of(generate={"steps": 1}, x_axis="seed", x_values="1-3")
    folder = begin(job, workspace)
    job = job.with_settings(grid={"folder": folder.name})
    write, calls = grids_making.atomic.write_bytes, count(1)

    def filling(path, data):
        if path.suffix == ".png" and next(calls) > 2:
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr("core.generation.grids.making.atomic.write_bytes", filling)
        with refused("disk.full"):
            run_grid(job, workspace, store=store)
    made = folder.generated()
    assert len(made) == 2 and folder.content().state == "failed"
    before = {cell: folder.cell(cell).stat().st_mtime_ns for cell in made}
    run_grid(job, workspace, store=store)
    assert len(folder.generated()) == 3 and folder.content().state == "done"
    assert {cell: folder.cell(cell).stat().st_mtime_ns for cell in made} == before, "made once"


def test_a_lora_of_another_family_on_an_axis_is_told_before_the_start(workspace, tmp_path):
    fits, layer = (
        small_lora(tmp_path / "fits.safetensors"),
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    )
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 2048), f"{layer}.lora_up.weight": torch.ones(640, 2)}
    other = save_lora(tmp_path / "other.safetensors", tensors, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert "2 images" in check_task(job_of(x_axis="lora", x_values=f"none, {fits}"), workspace)
    with refused("lora.other-family"):
        check_task(job_of(x_axis="lora", x_values=f"{fits}, {other}"), workspace)


def test_a_damaged_grid_is_told(workspace):
    folder = begin(job_of(**TWO), workspace)
    raw = json.loads((folder.path / "grid.json").read_text("utf-8"))
    (folder.path / "grid.json").write_text(json.dumps(raw | {"axes": [{"letter": "q"}]}))
    with refused("grid.damaged"):
        folder.content()
    with refused("grid.no-such-grid"):
        GridFolder.named("../" + folder.name, workspace)


@pytest.mark.slow
def test_the_command_line_counts_and_makes(workspace, capsys):
    words = ["grid", "a fox", "--generate.steps", "1", "--generate.width", "64", "--generate.height", "64"]
    words += ["--grid.x_axis", "seed", "--grid.x_values", "1-3", "--outputs", str(workspace.outputs)]
    assert main([*words, "--check"]) == 0
    assert "3 images, 3 steps, 1 model load" in capsys.readouterr().out and not list_grids(workspace)
    assert main(words) == 0
    (folder,) = list_grids(workspace)
    assert len(folder.generated()) == 3 and folder.html.name in capsys.readouterr().out


@pytest.mark.parametrize(
    "axis",
    [
        "denoising",
        "deep_shrink.ds_ratio",
        "gradual_latent.gradual_latent_ratio",
        "detailer.ad_denoising_strength",
        "refiner.aesthetic_score",
    ],
)
def test_an_axis_that_is_ignored_without_another_setting_is_told(axis, workspace):
    notes = grid_of(job_of(x_axis=axis, x_values="0.2, 0.8" if "aesthetic" not in axis else "2, 6"), workspace).notes
    assert [(note.code, note.where) for note in notes] == [("grid.idle-axis", "grid.x_values")]


def test_an_axis_that_hires_fix_needs_is_not_idle(workspace):
    names = {"x_axis": "denoising", "x_values": "0.2, 0.8", "y_axis": "hires upscale", "y_values": "2"}
    assert not grid_of(job_of(**names), workspace).notes
