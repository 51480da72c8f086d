"""Regularization images: the missing ones, at the sizes of the training, the same bytes however often it was broken off."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.cli.main import main
from core.dataset.preflight import preflight
from core.generation import class_images as running
from core.generation import making
from core.generation.class_images import check_task, make_class_images
from core.generation.class_plan import MANIFEST, Manifest, manifest_for, plan_class_images, seed_of, sizes_by_views
from core.generation.images.metadata import read_image_metadata
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.dataset.class_images import ClassImageSettings
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.source import Source
from core.settings.job import ClassImagesJob, TrainJob
from tests.refusals import refused
from tests.reports import Heard

WIDE, SQUARE = (96, 64), (64, 64)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")


@pytest.fixture
def dataset(tmp_path) -> DatasetSettings:
    """Two wide images and one square one of a fox, at sizes that are buckets as they are."""
    folder = tmp_path / "fox"
    folder.mkdir()
    for number, size in enumerate((WIDE, WIDE, SQUARE)):
        Image.new("RGB", size, (200, 80 * number, 20)).save(folder / f"{number}.png")
    source = Source(folder=str(folder), identifier="sks", class_word="fox")
    return DatasetSettings(
        sources=[source], resolution=80, min_bucket_reso=64, bucket_reso_steps=32, bucket_no_upscale=True
    )


def job_of(dataset: DatasetSettings, **asked) -> ClassImagesJob:
    asked = {"steps": 1, "guidance_scale": 4.0, "prompt": "a {class}, flat icon"} | asked
    return ClassImagesJob(dataset=dataset, class_images=ClassImageSettings(**asked))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def sizes_in(folder: Path) -> list[tuple[int, int]]:
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            found.append(image.size)
    return found


def test_a_cancelled_job_goes_on_and_ends_with_the_same_bytes(workspace, dataset, store, tmp_path):
    folder = tmp_path / "broken off"
    job = job_of(dataset, folder=str(folder), number=3, batch=1)
    with pytest.raises(Cancelled):
        make_class_images(job, workspace, store=store, reports=Heard(stop_after=1))
    (first,) = folder.glob("*.png")
    before = first.stat().st_mtime_ns
    made = make_class_images(job, workspace, store=store)
    assert len(made) == 2 and first not in made and first.stat().st_mtime_ns == before
    unbroken = tmp_path / "unbroken"
    make_class_images(job_of(dataset, folder=str(unbroken), number=3, batch=1), workspace, store=store)
    assert sorted(contents(folder)) == [f"class_000{n}.{end}" for n in (1, 2, 3) for end in ("png", "txt")]
    assert contents(folder) == contents(unbroken)
    assert make_class_images(job, workspace, store=store) == []  # nothing is missing


def test_an_image_that_is_gone_or_cut_short_is_made_again_as_it_was_also_in_a_group(
    workspace, dataset, store, tmp_path
):
    folder = tmp_path / "class"
    job = job_of(dataset, folder=str(folder), number=5)
    make_class_images(job, workspace, store=store)
    at_once = json.loads((folder / MANIFEST).read_text("utf-8"))["at_once"]
    assert at_once["96x64"] > 1  # else the groups of this test are none
    before = contents(folder)
    (folder / "class_0001.png").unlink()
    cut = folder / "class_0003.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    made = make_class_images(job, workspace, store=store)
    assert sorted(path.name for path in made) == ["class_0001.png", "class_0003.png"]
    assert contents(folder) == before


def test_a_broken_write_leaves_no_half_image(workspace, dataset, store, tmp_path, monkeypatch):
    folder = tmp_path / "class"
    job = job_of(dataset, folder=str(folder), number=1)
    write = running.atomic.write_bytes

    def full_disk(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.atomic, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_class_images(job, workspace, store=store)
    assert not list(folder.glob("*.png"))
    monkeypatch.setattr(running.atomic, "write_bytes", write)
    assert len(make_class_images(job, workspace, store=store)) == 1


def test_images_have_the_sizes_of_the_training_and_say_how_they_were_drawn(workspace, dataset, store):
    make_class_images(job_of(dataset, seed=7, negative_prompt="red"), workspace, store=store)
    folder = workspace.datasets / "fox regularization images"
    assert Counter(sizes_in(folder)) == {WIDE: 2, SQUARE: 1}  # as many as an epoch has views, in its shapes
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        record = read_image_metadata(path).job
        assert record is not None and record.generate.seed == seed_of(7, number)
        assert (record.generate.prompt, record.generate.negative_prompt) == ("a fox, flat icon", "red")
        assert (record.generate.width, record.generate.height) == sizes_in(folder)[number]
        assert path.with_suffix(".txt").read_text("utf-8") == "fox\n"
        assert str(workspace.outputs).encode() not in path.read_bytes()


def test_another_prompt_is_refused_with_what_differs_and_nothing_is_changed(workspace, dataset, store, tmp_path):
    folder = tmp_path / "class"
    make_class_images(job_of(dataset, folder=str(folder), number=1), workspace, store=store)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ProblemsError) as error:
        other = job_of(dataset, folder=str(folder), number=2, prompt="a sleeping {class}", steps=2)
        make_class_images(other, workspace, store=store)
    (problem,) = error.value.problems
    assert problem.code == "class-images.other-settings" and "class 2" in problem.fix
    assert "'a fox, flat icon'" in problem.what and "'a sleeping fox'" in problem.what
    assert "number of steps was 1, now 2" in problem.what
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_several_at_once_that_do_not_fit_are_drawn_one_by_one(workspace, dataset, store, tmp_path, monkeypatch):
    denoise, heard = making.denoise, Heard()

    def small_device(model, states, stage, noises, *given, **named):
        if len(noises) > 1:
            raise torch.OutOfMemoryError("too little")
        return denoise(model, states, stage, noises, *given, **named)

    monkeypatch.setattr(making, "denoise", small_device)
    job = job_of(dataset, folder=str(tmp_path / "class"), number=3)
    made = make_class_images(job, workspace, store=store, reports=heard)
    assert len(made) == 3 and any("do not fit" in text for text in heard.said)
    assert "The regularization images are in" in heard.said[-1]


# ---- the plan


def test_sizes_follow_the_views_and_a_larger_number_only_adds():
    views = {(64, 64): 1, (96, 64): 6, (64, 96): 3}
    sizes = sizes_by_views(views, 40)
    for count in range(1, 41):
        assert sizes_by_views(views, count) == sizes[:count]
        for size, shown in views.items():
            assert abs(sizes[:count].count(size) - count * shown / 10) < 1
    begun = [(64, 64)] * 3
    assert sizes_by_views(views, 40, begun)[:3] == begun
    assert Counter(sizes_by_views(views, 40, begun)) == {(64, 64): 4, (96, 64): 24, (64, 96): 12}


def test_repeats_count_as_views_and_other_roles_do_not(workspace, dataset, tmp_path):
    (tmp_path / "reg").mkdir()
    Image.new("RGB", (64, 96)).save(tmp_path / "reg" / "a.png")
    sources = [
        dataset.sources[0].model_copy(update={"num_repeats": 10}),
        Source(folder=str(tmp_path / "reg"), role="regularization", class_word="dog"),
    ]
    plan = plan_class_images(job_of(dataset.model_copy(update={"sources": sources})), workspace)
    assert plan.views == {WIDE: 20, SQUARE: 10} and plan.number == 30
    assert (plan.class_word, plan.prompt, plan.caption) == ("fox", "a fox, flat icon", "fox")
    many = [dataset.sources[0].model_copy(update={"num_repeats": 1000})]
    assert plan_class_images(job_of(dataset.model_copy(update={"sources": many})), workspace).number == 200


def test_what_is_missing_is_said_together(workspace, dataset, tmp_path):
    source = dataset.sources[0].model_copy(update={"class_word": None})
    inside = str(tmp_path / "fox" / "class")
    with pytest.raises(ProblemsError) as error:
        plan_class_images(job_of(dataset.model_copy(update={"sources": [source]}), folder=inside), workspace)
    assert error.value.codes == ["class-images.no-class", "class-images.inside-training-folder"]
    with refused("class-images.contains-training-folder"):
        plan_class_images(job_of(dataset, folder=str(tmp_path)), workspace)


def test_captions_of_one_folder_are_not_mixed(workspace, dataset, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()

    def manifest(**settings):
        return manifest_for(plan_class_images(job_of(dataset, folder=str(folder), **settings), workspace), {"seed": 1})

    manifest(caption="a {class}")[0].write(folder)
    manifest(caption="a fox")
    with refused("class-images.other-settings", "'a fox'", "'an animal'"):
        manifest(caption="an animal")
    Manifest({"seed": 1}, "fox").write(folder)
    assert manifest(caption="an animal")[0].settings["caption"] == "an animal", "earlier versions did not record it"


def test_images_of_the_person_count_and_are_left_alone(workspace, dataset, store, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (50, 50)).save(folder / "own.png")
    own = (folder / "own.png").read_bytes()
    job = job_of(dataset, folder=str(folder), number=3)
    assert "2 of 3 regularization images" in check_task(job, workspace)
    assert not (folder / MANIFEST).exists()  # asking makes nothing
    assert len(make_class_images(job, workspace, store=store)) == 2
    assert (folder / "own.png").read_bytes() == own


def test_images_without_their_list_are_not_mixed_with_others(workspace, dataset, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (50, 50)).save(folder / "class_0001.png")
    plan = plan_class_images(job_of(dataset, folder=str(folder)), workspace)
    with refused("class-images.no-manifest"):
        manifest_for(plan, {})
    for text in (
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 1, "settings": {}, "class": "", "at_once": {}, "sizes": [[0, 8]]}',
    ):
        (folder / MANIFEST).write_text(text, "utf-8")
        with refused("class-images.bad-manifest"):
            manifest_for(plan, {})


def test_planned_sizes_stay_when_the_dataset_changes_and_it_is_said(workspace, dataset, tmp_path):
    folder = tmp_path / "class"
    Manifest({}, "fox", [(128, 128), (128, 128)]).write(folder)
    plan = plan_class_images(job_of(dataset, folder=str(folder), number=4), workspace)
    manifest, said = manifest_for(plan, {})
    assert manifest.sizes[:2] == [(128, 128)] * 2 and set(manifest.sizes[2:]) <= {WIDE, SQUARE}
    assert len(manifest.sizes) == 4 and [problem.level for problem in said] == ["advice"]


def test_the_images_train_beside_the_subject_at_its_sizes_with_the_class_as_caption(
    workspace, dataset, store, tmp_path
):
    folder = tmp_path / "class"
    make_class_images(job_of(dataset, folder=str(folder), number=6), workspace, store=store)
    beside = Source(folder=str(folder), role="regularization", class_word="fox")
    with_folder = dataset.model_copy(update={"sources": [*dataset.sources, beside]})
    report = preflight(TrainJob(dataset=with_folder), workspace)
    assert report.ok, report.problems
    made = [each for each in report.placed if each.concept.role == "regularization"]
    assert len(made) == 6 and all(each.placement.scale == 1 and each.placement.area_after_crop == 1 for each in made)
    assert Counter(each.placement.bucket for each in made) == {WIDE: 4, SQUARE: 2}
    assert {row.caption for row in report.rows if Path(row.path).parent == folder} == {"fox"}


def test_the_command_checks_first_and_then_makes_them(dataset, tmp_path, capsys):
    folder, outputs = tmp_path / "class", tmp_path / "outputs"
    words = [
        "--dataset.folder",
        str(tmp_path / "fox"),
        "--dataset.resolution",
        "64",
        "--dataset.enable_bucket",
        "false",
    ]
    words += ["--class_images.folder", str(folder), "--class_images.number", "2", "--class_images.steps", "1"]
    words = ["class_images", *words, "--outputs", str(outputs), "--device", "cpu"]
    assert main(words) == 2 and "class_images.class_word" in capsys.readouterr().err
    words += ["--class_images.class_word", "fox"]
    assert main([*words, "--check"]) == 0 and "2 of 64 x 64" in capsys.readouterr().out
    assert not folder.exists()
    assert main(words) == 0 and sizes_in(folder) == [SQUARE, SQUARE]
    assert f"set dataset.reg_data_dir to {folder}" in capsys.readouterr().err
