"""What a run leads to works for each training method: comparison, assessment, grid, report card, and Generate with it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from core.assess import run as assessment
from core.assess.card import card_of
from core.engine.engine import Engine
from core.engine.verdict import read_verdict
from core.generation.grids.folder import GridFolder
from core.generation.grids.making import begin, run_grid
from core.generation.model.store import make_store
from core.record.cancel import CancelToken
from core.settings.generation.grid import GridSettings
from core.settings.tools.assess import AssessSettings
from core.settings.tools.card import CardSettings
from tabs.context import make_page
from tabs.generate import form, grids
from tabs.monitor import verdict
from tests.tasks import surroundings
from tests.training.test_grid_of_a_run import pixels

IMAGES, MODEL = {"copies", "diversity"}, {"fit", "drift", "trigger"}
TAKEN = {  # measures
    "lora": IMAGES | MODEL | {"blocks", "strength", "rank"},
    "dreambooth": IMAGES | MODEL,
    "fine_tune": IMAGES | MODEL,
    "embedding": IMAGES,
    "controlnet": set(),
    "lllite": set(),
}


@pytest.fixture
def ended(train, workspace, images, tmp_path):
    def run(kind):
        groups = {"method": {"kind": kind}, "optimizer": {"learning_rate": 1e-4}}
        prompts = ["a fox --d 5 --s 2", "a bee --d 9 --s 2"]
        if kind == "embedding":
            groups["embedding"] = {"token_string": "zyx", "init_word": "fox"}
            prompts = ["a zyx --d 5 --s 2", "red zyx --d 9 --s 2"]
        if kind in ("controlnet", "lllite"):
            (tmp_path / "edges").mkdir()
            for path in images.glob("*.png"):
                ImageOps.invert(Image.open(path).convert("RGB")).save(tmp_path / "edges" / path.name)
            groups["dataset"] = {"conditioning_data_dir": str(tmp_path / "edges")}
            prompts = [f"{each} --cn {tmp_path / 'edges' / path.name}" for each in prompts]
        groups["samples"] = {"sample_prompts": prompts, "sample_at_first": True, "sample_every_n_steps": 2}
        groups["saving"] = {"output_name": "fox", "save_every_n_steps": 2, "save_every_minutes": None}
        training = train(**groups)
        training.start()
        return training.folder

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", TAKEN)
def test_everything_after_a_training(ended, workspace, kind):
    folder = ended(kind)
    page = make_page(Engine(workspace), workspace)
    facts, job = page.engine.snapshot(folder.name), page.engine.run_job(folder.name)
    before = verdict.part(page, folder.name, facts, job)
    assert "problems" not in before and len(before["columns"]) == 3, before
    assert before["making"]["taken"] == 2 * (2 if kind == "embedding" else 3)
    verdict.start(page, folder.name)
    made = read_verdict(folder.path)
    grid = GridFolder.named(made.grid, workspace)
    job_of_grid = grid.job()
    run_grid(job_of_grid.model_copy(update={"grid": GridSettings(folder=grid.name)}), workspace, store=make_store())
    content = grid.content()
    assert {at: named.name for at, named in grid.samples(workspace).items()} == content.samples
    again = begin(job_of_grid, workspace)  # of no run: nothing is taken over
    run_grid(job_of_grid.model_copy(update={"grid": GridSettings(folder=again.name)}), workspace, store=make_store())
    for at in content.samples:
        assert np.abs(pixels(grid.cell(at)) - pixels(again.cell(at))).mean() < 0.5, (
            at,
            "the sample is what its file gives",
        )
    assert not content.failed, content.failed
    assert grid.generated() == content.cells
    shown = verdict.part(page, folder.name, page.engine.snapshot(folder.name), job)
    assert shown["making"]["missing"] == 0 and bool(shown["blind"]) == (kind not in ("controlnet", "lllite"))
    values = form.generate_with(page, folder.name)
    assert (
        values["loras"] or values["nets"] or values["embeddings"] or values["base_model"] != str(job.model.base_model)
    )
    for file in facts["files"]:
        assert card_of(
            folder.checkpoints / file["name"], CardSettings(file=file["path"]), workspace, CancelToken()
        ).title
    assert bool(before["assess"]) == bool(TAKEN[kind])
    asked = AssessSettings(run=folder.name, prompts=3, sampling_steps=1)
    found = assessment.do(asked, assessment.plan(asked, workspace), surroundings(workspace)).facts["cells"]
    assert {*found} == {file["name"] for file in facts["files"]}
    taken = {name for cells in found.values() for name, each in cells.items() if "why" not in each}
    assert taken == TAKEN[kind]
    grids.queue_run(page, folder.name)
    grids.queue_runs(page, [folder.name])
