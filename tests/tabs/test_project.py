"""The form's state on the server: edits, undo, revisions, and the file it lives in."""

from __future__ import annotations

import json

import pytest
from work_parts import make_page

from core.record.problems import ProblemsError
from core.settings.dataset.source import Source
from core.settings.job import TrainJob, new_project
from core.settings.presets.files import PresetStore, content, dump, parse, to_values
from tabs.dataset.questions import answer, change_folders
from tabs.form.project import FIELDS, STARTER_IMAGES, OldRevision, Project, edited_by, with_value
from tabs.train.tab import ACTIONS


@pytest.fixture
def store(tmp_path):
    return PresetStore(tmp_path / "presets")


@pytest.fixture
def project(tmp_path, store):
    return Project(tmp_path / "project.json", store)


def test_without_a_starter_preset_the_starter_images_are_chosen(project):
    assert project.job == with_value(new_project(), "dataset.folder", STARTER_IMAGES)
    assert project.preset == ""


def test_an_edit_is_kept_across_a_restart_with_the_preset_and_the_bad_texts(project, store):
    project.edit("network.rank", "32")
    project.edit("optimizer.learning_rate", "fast")
    project.keep("Generate", {"prompt": "a fox"})
    again = Project(project.file, store)
    assert again.job == project.job and again.job.network.rank == 32
    assert again.shown("optimizer.learning_rate") == "fast"
    assert again.bad["optimizer.learning_rate"].problem.what == "Learning rate is 'fast', which is not a number"
    assert again.tab_state("Generate") == {"prompt": "a fox"}
    assert again.revision > project.revision - 1


def test_a_bad_text_changes_no_value_and_goes_when_a_good_one_comes(project):
    before = project.job
    project.edit("network.rank", "0")
    assert project.job == before and project.bad["network.rank"].problem.fix.startswith("use a whole number, 1 to 1024")
    project.edit("network.rank", "8")
    assert project.bad == {} and project.job.network.rank == 8


def test_a_name_no_file_can_have_is_refused_in_its_field(project):
    before = project.job.saving.output_name
    for name in ("a/b", "..", "con", " ", "x" * 101):
        project.edit("saving.output_name", name)
        assert "saving.output_name" in project.bad, name
        assert project.job.saving.output_name == before


def test_an_embedding_is_called_as_its_word_until_a_person_has_named_it(project, store):
    def name() -> str:
        return project.job.saving.output_name

    project.edit("embedding.token_string", "zkw")
    assert name() == TrainJob().saving.output_name  # a LoRA is not called so
    project.edit("method.kind", "embedding")
    assert name() == "zkw"
    project.edit("embedding.token_string", "<qvx>, zkw")
    assert name() == "qvx"
    project.undo()
    assert name() == "zkw" and project.job.embedding.words == ["zkw"]
    project.edit("saving.output_name", "mine")
    project.edit("embedding.token_string", "qvx")
    assert name() == "mine"
    store.save("whole", project.job)
    project.choose("user/whole")  # a name in a person's own preset is theirs
    project.edit("embedding.token_string", "zkw")
    assert name() == "mine"


def test_a_shipped_recipe_leaves_the_name_that_a_person_gave_an_embedding(project, store):
    next(iter(store.folders)).mkdir(parents=True, exist_ok=True)
    recipe = {"kind": "recipe", "schema_version": 2, "method": {"kind": "embedding"}}
    (next(iter(store.folders)) / "inversion.json").write_text(json.dumps(recipe))
    project.choose("inversion")
    project.edit("saving.output_name", "mine")
    project.edit("embedding.token_string", "zkw")
    assert project.job.saving.output_name == "mine"


def test_a_word_that_can_be_no_file_s_name_leaves_the_name(project):
    project.edit("method.kind", "embedding")
    for word in ("<>", "con", "..."):
        project.edit("embedding.token_string", word)
        assert project.job.saving.output_name == TrainJob().saving.output_name, word


def test_undo_and_redo_walk_the_same_way_and_a_new_edit_forgets_the_undone(project):
    ranks = []
    for rank in (4, 8, 12):
        project.edit("network.rank", str(rank))
    for _ in range(2):
        project.undo()
        ranks.append(project.job.network.rank)
    project.undo(redo=True)
    ranks.append(project.job.network.rank)
    assert ranks == [8, 4, 8]
    assert project.can_undo == f"change of {FIELDS['network.rank'].title}"
    project.edit("network.rank", "9")
    project.undo(redo=True)
    assert project.job.network.rank == 9 and project.can_redo == ""


def test_several_fields_change_together_and_come_back_together_or_none_does(project):
    project.edit("network.rank", "many")
    values = {"network.rank": "8", "network.layers": "attn1\nattn2", "network.up_lr_weight": ""}
    project.edit_several(values, did="change of two")
    assert (project.job.network.rank, project.job.network.layers, project.bad) == (8, ["attn1", "attn2"], {})
    before = project.job
    with pytest.raises(ProblemsError) as error:
        project.edit_several({"network.alpha": "4", "network.rank": "few"}, did="change of two")
    assert [problem.where for problem in error.value.problems] == ["network.rank"] and project.job == before
    project.undo()
    assert project.job.network.layers == [] and project.shown("network.rank") == "many"


def test_loading_a_preset_gives_exactly_the_saved_job(project, store):
    saved = with_value(with_value(TrainJob(), "network.rank", 77), "samples.sample_prompts", ["a", "b"])
    name = store.save("whole", saved)
    project.edit("noise.noise_offset", "0.1")
    project.choose(name)
    assert project.job == saved and project.changed() == {}


def test_a_recipe_says_what_it_left_alone_and_never_marks_it(project, store):
    recipe = parse({"kind": "recipe", "schema_version": 3, "network": {"rank": 64}}, "style.json")
    name = store.save_copy("style", recipe)
    project.edit("dataset.folder", "my/images")
    assert "your model, images, prompts" in project.choose(name).text
    assert project.job.dataset.folder == "my/images" and project.job.network.rank == 64
    project.edit("dataset.folder", "other/images")
    assert project.changed() == {}
    project.edit("network.rank", "2")
    assert project.changed() == {"network.rank": 64}


def test_put_back_takes_the_presets_value_for_one_field(project, store):
    project.choose(store.save("p", with_value(with_value(TrainJob(), "network.rank", 5), "network.alpha", 3.0)))
    project.edit("network.rank", "6")
    project.edit("network.alpha", "6")
    project.restore("network.rank")
    assert (project.job.network.rank, project.job.network.alpha) == (5, 6.0)


def test_a_preset_that_was_deleted_behind_our_back_leaves_the_defaults_to_compare_with(project, store):
    project.choose(store.save("gone", with_value(new_project(), "network.rank", 5)))
    store.delete("user/gone")
    assert project.changed() == {"network.rank": 16}
    assert project.preset == ""


def test_a_change_on_a_state_that_another_browser_altered_is_refused(project):
    seen = project.stamp
    with edited_by("mine", seen):
        project.edit("network.rank", "4")
        project.edit("network.alpha", "4")  # one's own changes do not make one's view old
    with pytest.raises(OldRevision), edited_by("other", seen):
        project.edit("network.rank", "5")
    assert project.job.network.rank == 4
    with edited_by("other", seen):
        project.edit("network.network_dropout", "0.1")  # another field
        project.edit("saving.output_name", "?")
    with edited_by("mine", seen):
        project.edit("optimizer.weight_decay", "0.2")
        with pytest.raises(OldRevision):
            project.edit("saving.output_name", "fox")
        with pytest.raises(OldRevision):
            project.set_values({"optimizer.weight_decay": 0.3}, did="a step of several")
    assert project.job.network.network_dropout == 0.1 and project.bad.keys() == {"saving.output_name"}
    assert project.job.optimizer.weight_decay == 0.2
    with edited_by("other", project.stamp):
        project.edit("network.rank", "5")
    with pytest.raises(OldRevision), edited_by("mine", seen):
        project.undo()
    project.undo()  # of whatever holds, as what the server does of itself
    assert project.job.network.rank == 4
    with pytest.raises(OldRevision), edited_by("mine", seen):
        project.edit("schedule.seed", "5")  # an undo may have changed any field


def test_a_browser_of_another_server_process_is_refused(project, store):
    project.edit("network.rank", "4")
    stale = project.stamp
    again = Project(project.file, store)
    for stamp in (stale, "", "nonsense", f"{again.boot}:x"):
        with pytest.raises(OldRevision), edited_by("s", stamp):
            again.edit("network.rank", "5")


@pytest.mark.parametrize("text", ["{", "[]", '{"job": {"network": {"rank": -1}}}', '{"job": {}, "bad": 3}', "\0"])
def test_an_unreadable_project_is_put_aside_and_said(tmp_path, store, text):
    file = tmp_path / "project.json"
    file.write_text(text)
    project = Project(file, store)
    assert "project-unreadable-" in project.notice
    assert [path.read_text() for path in tmp_path.glob("project-unreadable-*.json")] == [text]
    assert project.job.dataset.folder == STARTER_IMAGES


def test_a_project_that_cannot_be_written_goes_on_and_says_so(tmp_path, store):
    blocker = tmp_path / "outputs"
    blocker.write_text("a file where a folder should be")
    project = Project(blocker / "project.json", store)
    project.edit("network.rank", "4")
    assert project.job.network.rank == 4 and "cannot be saved" in project.notice


def test_the_file_holds_the_whole_job(project):
    project.edit("network.rank", "4")
    assert json.loads(project.file.read_text())["job"] == to_values(project.job)


def test_a_preset_of_another_task_is_refused(project, store, tmp_path):
    from core.settings.job import GenerateJob

    (tmp_path / "presets").mkdir(exist_ok=True)
    (tmp_path / "presets" / "draw.json").write_text(json.dumps(dump(GenerateJob(), task="generate")))
    before = project.job
    with pytest.raises(ProblemsError):
        project.choose("draw")
    assert project.job == before


def test_every_setting_is_a_field():
    assert len(FIELDS) > 60
    assert {path.split(".")[0] for path in FIELDS} <= set(TrainJob.model_fields)


BAD = "optimizer.learning_rate"
RECIPE = {
    "kind": "recipe",
    "schema_version": 3,
    "title": "Small",
    "description": "For a test.",
    "family": "sdxl",
    "vram_gb": 8,
}
RECIPE |= {"network": {"rank": 3}, "reasons": {"network.rank": "Small."}}


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.forecast.set_level({"level": 2}),
        lambda page: ACTIONS["train_all"](page, {}, None),
        lambda page: ACTIONS["use_model"](page, {"use": "base_model", "about": "models/starter"}, None),
        lambda page: change_folders(page.project, [Source(folder="models/starter")], "adding a folder"),
        lambda page: page.project.change(answer(page.project.job, "lines", "all"), did="an answer"),
    ],
)
def test_what_a_field_cannot_be_stays_while_other_fields_change_together(tmp_path, change):
    page = make_page(tmp_path)
    page.project.edit("model.base_model", "other")
    page.project.edit(BAD, "3e-4x")
    before = page.project.job
    change(page)
    assert page.project.job != before and page.project.shown(BAD) == "3e-4x"
    page.project.undo()
    assert page.project.job == before and page.project.shown(BAD) == "3e-4x"
    page.project.set_values({BAD: before.optimizer.learning_rate}, did="its own value")
    assert page.project.bad == {}


def test_a_loaded_preset_forgets_what_fields_cannot_be_but_in_those_that_a_recipe_leaves(project, store):
    store.user.mkdir(parents=True)
    (store.user / "small.json").write_text(json.dumps(RECIPE))
    for name, left in (("user/small", ["saving.output_name"]), (store.save("whole", TrainJob()), []), ("", [])):
        project.edit(BAD, "fast")
        project.edit("saving.output_name", "a/b")
        project.choose(name)
        assert list(project.bad) == left, name


def test_a_recipe_that_is_saved_again_stays_one_with_its_reasons_and_what_was_changed(project, store):
    project.take_file("small.json", json.dumps(RECIPE))
    project.edit("noise.noise_offset", "0.1")
    project.edit("saving.output_name", "mine")
    project.save("user/small", replace=True)
    kept = store.load("user/small")
    assert content(kept) == RECIPE | {"task": "train", "noise": {"noise_offset": 0.1}}
    assert project.preset == "user/small" and project.changed() == {} and project.recipe() is not None
    project.save("whole")
    assert store.load("user/whole").kind == "job" and store.load("user/small") == kept
