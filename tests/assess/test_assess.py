"""A whole assessment on the starter: every measure of a run's checkpoints, resumed, with what is wrong said."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import tasks
from core.assess import run as assess
from core.assess.bench import Bench
from core.assess.blocks import PARTS, SETS
from core.assess.measures import MEASURES, STRENGTHS
from core.assess.results import FILE, read_results, rows_of
from core.assess.statistics import ratio_of
from core.assess.target import find_target, one_timestep_each
from core.engine.execute import execute
from core.families import family
from core.generation.model.store import make_store
from core.record.cancel import Cancelled
from core.record.events import Saved
from core.record.journal import Journal
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from core.settings.tools.assess import AssessSettings
from tests.models import tiny_folder, tiny_lora
from tests.refusals import refused
from tests.tasks import surroundings

STARTER = PROJECT / "models" / "starter"
SMALL = {"prompts": 3, "sampling_steps": 1}
STORE = make_store()


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return tiny_lora(family("sd1").load(STARTER), tmp_path_factory.mktemp("lora") / "t.safetensors")


@pytest.fixture
def made(tmp_path, lora):
    """made(steps, groups): (workspace, folder) of a run on five images with a checkpoint of random numbers at each step."""
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
    images = tmp_path / "glyphs"
    images.mkdir()
    for path in sorted((STARTER / "images").glob("*.png"))[:5]:
        shutil.copy(path, images)
        shutil.copy(path.with_suffix(".txt"), images)

    def make(steps=(20, 40), **groups):
        dataset = {"folder": str(images), "resolution": 64, "bucket_reso_steps": 16}
        values = {"model": {"base_model": str(STARTER)}, "dataset": dataset, "schedule": {"seed": 7}}
        folder = RunFolder.create(workspace.runs, "t", dump(build(TrainJob, merge(values, groups))))
        folder.checkpoints.mkdir()
        with Journal(folder.path) as journal:
            for step in steps:
                shutil.copy(lora, folder.checkpoints / f"t-step{step:08d}.safetensors")
                journal.put(Saved(step, f"checkpoints/t-step{step:08d}.safetensors", 1))
        return workspace, folder

    return make


def use(workspace, folder, **settings):
    task = tasks.named("assess")
    job = build(task.job, {"assess": {"run": folder.name} | SMALL | settings})
    context = surroundings(workspace)
    context.store = STORE
    return task.start(job, context)


def test_every_measure_is_taken_once_and_a_killed_assessment_resumes_at_the_next_cell(made, monkeypatch):
    workspace, folder = made(steps=(40,))
    keep, kept = assess.Assessment._store, []

    def killed(self, checkpoint, measure, data):
        keep(self, checkpoint, measure, data)
        kept.append((checkpoint.step, measure.name))
        if len(kept) == 3:
            raise Cancelled

    monkeypatch.setattr(assess.Assessment, "_store", killed)
    with pytest.raises(Cancelled):
        use(workspace, folder)
    outcome = use(workspace, folder)
    assert len(kept) == len(set(kept)) == len(MEASURES), "each cell once"
    (cells,) = outcome.facts["cells"].values()
    assert {name for name, data in cells.items() if "why" in data} == {"loss"}, "nothing was held out"
    assert [row[0] for row in cells["strength"]["rows"]] == list(STRENGTHS)
    drifts = [row[2] for row in cells["strength"]["rows"]]
    assert drifts == sorted(drifts) and cells["drift"]["outside"] == pytest.approx(drifts[3], abs=1e-3)
    assert cells["rank"]["rank"] == 4 and cells["trigger"]["word"] == "glyph style"
    assert cells["blocks"]["parts"].keys() == PARTS.keys()
    assert all((folder.path / name).is_file() for name in cells["copies"]["files"])
    assert "step 40" in "\n".join(outcome.lines) and read_results(folder.path).keys() == outcome.facts["cells"].keys()
    use(workspace, folder)
    assert len(kept) == len(MEASURES), "nothing is measured again"
    path = folder.checkpoints / "t-step00000040.safetensors"
    save_file(load_file(path), path, {"ss_base_model_version": "sd_v1", "modelspec.title": "kept"})
    use(workspace, folder)
    assert len(kept) == len(MEASURES), "nor after its metadata changed"
    for settings in ({"prompts": 4}, {"sampling_steps": 2}):
        target = find_target(AssessSettings.model_validate({"run": folder.name} | SMALL | settings), workspace)
        assert target.key(MEASURES["rank"], target.checkpoints[0]) != cells["rank"][assess.KEY], (
            "by other settings it is"
        )


def test_the_whole_drift_of_a_lora_in_one_block_depends_on_it_and_every_prediction_is_announced(made):
    workspace, folder = made(steps=(20,))
    path = folder.checkpoints / "t-step00000020.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if "mid_block" in name}
    save_file(tensors, path, {"ss_base_model_version": "sd_v1"})
    target, counted = find_target(AssessSettings.model_validate({"run": folder.name} | SMALL), workspace), []
    context = surroundings(workspace)
    context.store, context.stage = STORE, lambda name, *numbers: counted.append(numbers)
    measures = [MEASURES[name] for name in ("drift", "blocks")]
    bench = Bench(target, context, 10**6)
    bench.prepare(measures)
    with bench.opened(target.checkpoints[0]) as subject:
        drift, blocks = (measure.call("measure", bench, subject) for measure in measures)
        assert counted[-1][0] == target.predictions(target.checkpoints, measures)
        whole = [one_timestep_each(bench.changes(subject, name)) for name in SETS]
        for name, changes in zip(SETS, whole, strict=True):  # so small that other batches round it by a thousandth
            off = bench.block_changes(subject, name, "NONE")
            assert off == pytest.approx(changes, rel=1e-2), "all parts off: the base model"
        one, other = (image.tobytes() for image, _ in subject.generate(["a fox"] * 2, 1))
        assert one != other, "a caption of several images gets other seeds, else its images agree by nature"
    (part,) = blocks["parts"].items()
    assert part[0] == "MID" and part[1]["value"] == pytest.approx(1, rel=1e-2)
    assert part[1]["times"] == pytest.approx(ratio_of(*whole).value, rel=1e-2) and drift["value"] > 0


def test_what_prevents_an_assessment_is_said_before_anything_is_loaded(made, monkeypatch):
    workspace, folder = made()

    def find(**settings):
        return find_target(AssessSettings(**{"run": folder.name} | settings), workspace)

    for settings, code in (
        ({"run": None}, "runs.no-such-run"),
        ({"run": "../gone"}, "runs.no-such-run"),
        ({"run": "x" * 300}, "runs.no-such-run"),
        ({"steps": ["30"]}, "run.no-file"),
        ({"measures": ["taste"]}, "assess.unknown-measure"),
    ):
        with refused(code):
            find(**settings)
    assert [each.step for each in find(steps=["40"]).checkpoints] == [40]
    assert str(folder.name) in str(find())
    few, many = (find(sampling_steps=steps, measures=["diversity"]) for steps in (1, 5))
    assert few.predictions(few.checkpoints, few.measures) * 5 == many.predictions(many.checkpoints, many.measures)
    with monkeypatch.context() as shared:
        shared.setattr("core.assess.target.may_reach", lambda path: False)
        assert find().no_images_reason and not find().training, (
            "a guest of a shared page sees no image that it does not serve"
        )
    folder.lock()
    with refused("assess.training"):
        find()
    folder.unlock()
    for path in folder.checkpoints.iterdir():
        path.unlink()
    with refused("run.no-file"):
        find()
    _, other = made(model={"base_model": "gone.safetensors"})
    with refused("model.not-found"):
        find(run=other.name)


def test_what_cannot_be_measured_is_named_and_the_rest_is_measured(made, tmp_path):
    workspace, folder = made(steps=(20,))
    shutil.rmtree(tmp_path / "glyphs")
    (cells,) = use(workspace, folder).facts["cells"].values()
    assert {name for name, data in cells.items() if "why" not in data} == {"rank"}
    assert str(tmp_path / "glyphs") in cells["drift"]["why"] or cells["drift"]["why"]
    assert json.loads((folder.path / FILE).read_text())["cells"]
    _, embedding = made(steps=(20,), method={"kind": "embedding"}, embedding={"token_string": "zkw"})
    target = find_target(AssessSettings(run=embedding.name), workspace)
    assert {name for name, each in MEASURES.items() if "not applicable" in target.reason(each)} == {
        "fit", "drift", "blocks", "trigger", "strength", "rank"
    }  # fmt: skip


def test_a_result_that_is_nan_is_stored_as_a_warning(made, monkeypatch):
    workspace, folder = made(steps=(20,))
    monkeypatch.setattr("core.assess.loss.recorded", lambda *_: {"loss": 0.5, "above": {"value": math.nan}})
    outcome = use(workspace, folder, measures=["loss"])
    ((row,),) = map(rows_of, read_results(folder.path).values())
    assert row["warning"] and row["brief"] == "-" and "Nothing" not in outcome.lines[-1]


def test_a_checkpoint_that_is_damaged_or_goes_ends_nothing_and_loses_no_cell(made, monkeypatch):
    workspace, folder = made(steps=(10, 20, 30))
    damaged, good, going = sorted(folder.checkpoints.iterdir())
    keep = assess.Assessment._store

    def kept(*given):
        keep(*given)
        going.unlink(missing_ok=True)

    use(workspace, folder, measures=["rank"], steps=["30"])
    before = read_results(folder.path)[going.name]
    damaged.write_bytes(damaged.read_bytes()[:900])
    monkeypatch.setattr(assess.Assessment, "_store", kept)
    use(workspace, folder, measures=["rank", "loss"])
    cells = read_results(folder.path)
    assert "why" in cells[damaged.name]["rank"] and cells[going.name]["rank"] == before["rank"]
    assert "why" not in cells[good.name]["rank"]
    good.write_bytes(b"")
    with pytest.raises(ProblemsError) as caught:
        use(workspace, folder, measures=["rank"])
    assert {problem.where for problem in caught.value.problems} == {str(damaged), str(good)}


KINDS = {
    "sdxl": ({}, set()),
    "fine_tune": ({"method": {"kind": "fine_tune"}}, {"blocks", "strength", "rank"}),
    "embedding": (
        {"method": {"kind": "embedding"}, "embedding": {"token_string": "zkw"}},
        set(MEASURES) - {"copies", "diversity"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_checkpoint_gets_the_measures_that_apply(made, tmp_path, kind):
    groups, missing = KINDS[kind]
    family_name = "sdxl" if kind == "sdxl" else "sd1"
    base = tiny_folder(family_name, tmp_path / "base")
    workspace, folder = made(steps=(), model={"base_model": str(base)}, **groups)
    path = folder.checkpoints / "t-step00000020.safetensors"
    if kind == "sdxl":
        tiny_lora(family("sdxl").load(base), path)
    elif kind == "fine_tune":
        path = tiny_folder("sd1", path.with_suffix(""), seed=1)
    else:
        save_file({"emb_params": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}, path)
    with Journal(folder.path) as journal:
        journal.put(Saved(20, f"checkpoints/{path.name}", 1))
    (cells,) = use(workspace, folder).facts["cells"].values()
    assert {name for name, data in cells.items() if "why" in data} == missing | {"loss"}


@pytest.mark.slow
def test_many_steps_on_four_images_and_a_wrong_rate_are_named_for_what_they_are_and_a_short_run_is_not(tmp_path):
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
    found = {}
    for name, images, steps, rate in (
        ("overfitted", ("fox", "bear", "sailboat", "house"), 300, 2e-3),
        ("short", ("",), 30, 2e-3),
        ("wrong rate", ("",), 30, 2e-2),
    ):
        dataset = tmp_path / name
        dataset.mkdir()
        for path in (each for start in images for each in (STARTER / "images").glob(f"{start}*")):
            shutil.copy(path, dataset)
        values = {
            "model": {"base_model": str(STARTER)},
            "dataset": {"folder": str(dataset), "resolution": 128},
            "optimizer": {"learning_rate": rate},
            "schedule": {"max_train_steps": steps, "seed": 7},
            "saving": {"save_every_minutes": None},
        }
        folder = RunFolder.create(workspace.runs, name, dump(job := build(TrainJob, values), task="train"))
        assert execute("train", job, folder, workspace, "cpu")[0] == "done"
        outcome = use(workspace, folder, measures=["fit", "copies", "drift"], prompts=4, sampling_steps=12)
        (found[name],) = outcome.facts["cells"].values()
        warned = {each for each, data in found[name].items() if MEASURES[each].text("warning", data)}
        assert ("copies" in warned) == (name == "overfitted"), outcome.lines
        assert ("fit" in warned) == (name == "wrong rate"), outcome.lines
    overfitted, short = found["overfitted"], found["short"]
    assert overfitted["copies"]["distance"] < overfitted["copies"]["limit"] < overfitted["copies"]["typical"]
    assert overfitted["drift"]["outside"] > short["drift"]["outside"] > 0
