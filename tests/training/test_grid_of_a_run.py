"""A short training, and the grid of its checkpoints: base model first, strengths, prompts, losses, and the kept one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from core.engine.run_grid import _prompt_line, run_grid_of
from core.engine.view import RunView
from core.generation.grids.folder import position_of
from core.generation.grids.making import begin, run_grid
from core.generation.grids.plan import grid_of
from core.generation.images.metadata import read_image_metadata
from core.generation.model.library import Scan
from core.generation.model.store import make_store
from core.generation.prompt.sample_prompts import SamplePrompt
from core.generation.prompt.wildcards import no_files, one_variant, problems_in
from core.record.context import Reports
from core.record.kept import keep, read_kept
from core.settings.check import build
from core.settings.generation.grid import GridSettings
from core.settings.job import TrainJob
from core.settings.presets.files import parse
from core.training.loop.samples import prompts_of, settings_digest
from tests.refusals import refused
from tests.training.conftest import STARTER

PROMPTS = ["a fox, flat icon --d 5 --s 2", "a {bee} --n red --d 9 --s 3 --l 2"]


SAMPLES_OF = {
    kind: {"sample_prompts": [f"{text} --d 5 --s 2"], "sample_at_first": True, "sample_every_n_steps": 2}
    for kind, text in (("fine_tune", "a fox"), ("embedding", "a zyx"))
}


class Generated(Reports):
    """Keeps the files of generated images."""

    def __init__(self):
        self.files = []

    def generated(self, path, seed):
        self.files.append(path)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture
def trained(train):
    def run(**groups):
        given = {
            "samples": {"sample_prompts": PROMPTS, "sample_at_first": True, "sample_every_n_steps": 2},
            "saving": {"output_name": "fox", "save_every_n_steps": 2, "save_every_minutes": None},
            "validation": {"validation_split": 0.4, "validate_every_n_steps": 2},
        } | groups
        run = train(**given)
        run.start()
        folder = run.folder
        return folder, RunView.read(folder).snapshot(False), build(TrainJob, parse(folder.job(), "run").values)

    return run


def test_what_is_no_variant_in_a_sample_prompt_is_none_in_its_grid():
    line = _prompt_line(SamplePrompt("a my__fox__style {b|c}", negative="{d}, __e__"))
    assert problems_in(line) == [] and one_variant(line, no_files) == "a my__fox__style {b|c} --n {d}, __e__"


@pytest.mark.slow
def test_checkpoints_by_strengths_by_prompts_with_the_same_noise_along_each_row(trained, workspace):
    folder, facts, job = trained()
    asked = run_grid_of(facts, job, workspace)
    begun = begin(asked.job, workspace, run=folder.name, notes=asked.notes)
    content = begun.content()
    assert content.size == (3, 3, 2) and content.run == folder.name
    assert content.axis("x").texts == ("none", "t, step 2", "t, step 4")
    assert content.axis("z").texts == ("a fox, flat icon", "a \\{bee\\}")
    assert content.axis("x").notes[0] == "base model"
    losses = {point["step"]: point["loss"] for point in facts["measured"]}
    assert len(losses) >= 2
    for note, step in zip(content.axis("x").notes[1:], (2, 4), strict=True):
        assert f"{losses[step]:.4f}" in note
    assert sum(facts["best"]["label"] in note for note in content.axis("x").notes) == 1
    grid = grid_of(begun.job(), workspace)
    assert len(grid.cells) == 14 and sum(part.loads for part in grid.parts) == 1  # the base model once a prompt
    requests_and_notes = {cell.position: cell.request.job.generate for cell in grid.cells}
    assert {requests_and_notes[x, y, 0].seed for x, y in ((0, 0), (1, 0), (2, 2))} == {5}
    assert (
        requests_and_notes[1, 0, 1].negative_prompt,
        requests_and_notes[1, 0, 1].guidance_scale,
        requests_and_notes[1, 0, 1].seed,
    ) == (
        "red",
        2,
        9,
    )
    assert requests_and_notes[1, 0, 1].prompt == "a {bee}"
    assert [use.strength for use in requests_and_notes[2, 1, 0].loras] == [0.8]

    run_grid(asked.job.model_copy(update={"grid": GridSettings(folder=begun.name)}), workspace, store=make_store())
    assert begun.generated() == set(requests_and_notes)
    sample = next(each for each in facts["samples"] if (each["step"], each["index"]) == (4, 0))
    assert np.abs(pixels(sample["file"]) - pixels(begun.cell((2, 2, 0)))).max() <= 1, "the run's own sample"
    first = next(each for each in facts["samples"] if (each["step"], each["index"]) == (0, 1))
    assert np.abs(pixels(first["file"]) - pixels(begun.cell((0, 0, 1)))).max() <= 1, "that of the base model"

    assert set(asked.samples) == {(x, 2, y) for x in range(3) for y in range(2)}, "at strength 1"
    begun.path.rename(workspace.outputs / "away")  # its cells would be taken over
    another = begin(asked.job, workspace, run=folder.name)
    another.change(samples=asked.samples)
    reports = Generated()
    job = asked.job.model_copy(update={"grid": GridSettings(folder=another.name)})
    (folder.samples / asked.samples[2, 2, 0]).write_bytes(b"damaged")
    os.utime(folder.samples / asked.samples[1, 2, 0], (1e9, 1e9))  # older than its checkpoint
    run_grid(job, workspace, store=make_store(), reports=reports)
    used = {another.cell(another.content().source(at)): folder.samples / name for at, name in asked.samples.items()}
    made = set(reports.files)
    again = {another.cell((2, 2, 0)), another.cell((1, 2, 0))}
    assert made == {another.cell(at) for at in requests_and_notes} - used.keys() | again and len(used) == 6
    for cell in used.keys() - again:
        position = position_of(cell.stem)
        assert (pixels(cell) == pixels(used[cell])).all(), "the sample itself"
        recorded, asked_for = read_image_metadata(cell).job.generate, requests_and_notes[position]
        assert (recorded.prompt, recorded.seed, len(recorded.loras)) == (
            asked_for.prompt,
            asked_for.seed,
            min(position[0], 1),
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fine_tune", "embedding"])
def test_samples_of_other_methods_are_the_images_of_their_files(trained, workspace, kind):
    words = {"embedding": {"token_string": "zyx", "init_word": "fox"}} if kind == "embedding" else {}
    rate = {"learning_rate": 1e-4 if kind == "fine_tune" else 5e-3}
    folder, facts, job = trained(method={"kind": kind}, optimizer=rate, samples=SAMPLES_OF[kind], **words)
    asked = run_grid_of(facts, job, workspace, ())
    assert {x for x, _, _ in asked.samples} == ({0, 1, 2} if kind == "fine_tune" else {1, 2})
    begun = begin(asked.job, workspace, run=folder.name)
    run_grid(asked.job.model_copy(update={"grid": GridSettings(folder=begun.name)}), workspace, store=make_store())
    for at, name in asked.samples.items():
        off = np.abs(pixels(folder.samples / name) - pixels(begun.cell(begun.content().source(at))))
        assert off.mean() < 0.5, (at, name, off.mean(), off.max())


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"method": {"ema": True, "ema_use": "samples"}},
        {"network": {"base_weights": ["a.safetensors"]}},
        {"noise": {"zero_terminal_snr": True}},
        {"model": {"compatibility": "sd-scripts-0.10"}},
        {"samples": {"sample_prompts": ["a fox, flat icon --d 5 --s 3"]}},
        {"samples": {"sample_prompts": PROMPTS, "prompt_weights": False}},
    ],
)
def test_only_samples_that_the_file_gives_again_are_taken_over(workspace, make_job, other):
    first = make_job(samples={"sample_prompts": PROMPTS})
    digest = settings_digest(prompts_of(first, STARTER)[0], first.samples)
    sample = {"step": 2, "index": 0, "file": "samples/00000002_00.png", "settings": digest}
    files = [{"path": "a.safetensors", "name": "a", "step": 2}, {"path": "b.safetensors", "name": "b", "step": 4}]
    facts = {"files": files, "run": "r", "title": "fox", "samples": [sample, sample | {"step": 3}]}
    job = make_job(**({"samples": {"sample_prompts": PROMPTS}} | other))
    taken = run_grid_of(facts, job, workspace, strengths=()).samples
    assert taken == ({} if other else {(1, 0, 0): "00000002_00.png"})
    assert run_grid_of(facts, job, workspace, strengths=(0.5,)).samples == {}


@pytest.mark.slow
def test_a_kept_checkpoint_is_marked_in_lists_and_can_be_let_go(trained, workspace):
    folder = trained(samples={}, validation={})[0]
    file = folder.checkpoints / "fox-step00000002.safetensors"
    keep(folder.path, file, " my  fox ")
    assert read_kept(folder.path) == {"checkpoints/fox-step00000002.safetensors": "my fox"}
    labels = {path.name: label for label, path in Scan(workspace).loras()}
    assert "kept as my fox" in labels[file.name] and "kept" not in labels["fox.safetensors"]
    assert Scan(workspace).loras()[0][1] == file
    keep(folder.path, file, "")
    assert read_kept(folder.path) == {"checkpoints/fox-step00000002.safetensors": "fox-step00000002"}
    with refused("kept.name-too-long"):
        keep(folder.path, file, "a" * 81)
    keep(folder.path, file, None)
    assert read_kept(folder.path) == {} and not any("kept" in label for label, _ in Scan(workspace).loras())
    (folder.path / "kept.json").write_text("nonsense")
    assert read_kept(folder.path) == {}


@pytest.mark.slow
def test_a_run_without_prompts_takes_one_or_says_so(trained, workspace):
    _, facts, job = trained(samples={}, validation={})
    with refused("run-grid.no-prompt"):
        run_grid_of(facts, job, workspace)
    asked = run_grid_of(facts, job, workspace, fallback_prompt="an owl --s 999")
    assert asked.job.generate.prompt == "an owl s 999" and asked.job.grid.z_axis == ""
    with refused("run.no-file"):
        run_grid_of(facts | {"files": []}, job, workspace)


def test_whole_models_have_no_strengths(workspace, make_job):
    job = make_job(method={"kind": "fine_tune"}, samples={"sample_prompts": PROMPTS})
    files = [{"path": str(STARTER), "name": "a", "step": 2}, {"path": str(STARTER / "unet"), "name": "b", "step": 4}]
    facts = {"files": files, "run": "r", "title": "fox"}
    asked = run_grid_of(facts, job, workspace)
    assert (asked.job.grid.x_axis, asked.job.grid.y_axis, asked.job.grid.z_axis) == (
        "model.base_model",
        "generate.prompt",
        "",
    )
    assert asked.job.grid.x_values.startswith(str(STARTER))


def test_of_many_checkpoints_some_are_shown_with_the_best_and_the_last(workspace, make_job):
    files = [{"path": f"{step}.safetensors", "name": str(step), "step": step} for step in range(1, 101)]
    facts = {
        "files": files,
        "run": "r",
        "title": "fox",
        "best": {"step": 42, "label": "best", "as_good": [44]},
        "measured": [],
    }
    asked = run_grid_of(facts, make_job(samples={"sample_prompts": PROMPTS}), workspace)
    names = [path.stem for path in asked.files if path]
    assert (
        len(names) <= 12
        and {"1", "42", "44", "100"} <= set(names)
        and "best" in asked.notes["x"][names.index("42") + 1]
    )


@pytest.mark.slow
def test_checkpoints_of_a_control_net_follow_the_control_image_of_the_sample_next_to_none(
    trained, workspace, images, tmp_path
):
    (tmp_path / "edges").mkdir()
    for path in images.glob("*.png"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(tmp_path / "edges" / path.name)
    edges = str(tmp_path / "edges" / path.name)
    folder, facts, job = trained(
        method={"kind": "controlnet"},
        dataset={"conditioning_data_dir": str(tmp_path / "edges")},
        optimizer={"learning_rate": 1e-2},
        samples={"sample_prompts": [f"a fox --d 5 --s 2 --cn {edges}", f"a bee --d 9 --s 2 --cn {edges}"]},
    )
    asked = run_grid_of(facts, job, workspace, strengths=(0.5, 1.0))
    begun = begin(asked.job, workspace, run=folder.name, notes=asked.notes)
    assert begun.content().size == (3, 2, 2) and begun.content().axis("z").texts == ("a fox", "a bee")
    grid = grid_of(begun.job(), workspace)
    controls = {cell.position: cell.request.job.controls for cell in grid.cells}
    assert len(controls) == 10 and not controls[0, 0, 0].nets and not grid.notes, "one cell without control a prompt"
    assert [(use.weight, use.image) for use in controls[2, 0, 1].used] == [(0.5, edges)]
    run_grid(asked.job.model_copy(update={"grid": GridSettings(folder=begun.name)}), workspace, store=make_store())
    assert begun.generated() == set(controls)
    made = {(each["step"], each["index"]): pixels(each["file"]) for each in facts["samples"]}
    assert np.abs(pixels(begun.cell((2, 1, 0))) - made[4, 0]).mean() < 1, "the sample of the last checkpoint again"
    assert np.abs(pixels(begun.cell((0, 0, 0))) - made[-1, 0]).mean() < 1
