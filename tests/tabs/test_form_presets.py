"""Presets, undo and marks of changes on Generate and in the forms of tasks, without a browser."""

from __future__ import annotations

import json
import re

import pytest
from generate_parts import Engine
from work_parts import event, make_page, said

from core import tasks
from core.record.problems import Problem, ProblemsError
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import apply
from tabs.form.presets import json_text
from tabs.generate.form import ENTRIES, default_values, start_values
from tabs.generate.tab import GenerateHandlers
from tabs.tools.forms import ToolForm
from tabs.train.presets_bar import choices


@pytest.fixture
def desk(tmp_path):
    return GenerateHandlers(make_page(tmp_path, Engine(tmp_path / "outputs" / "images")))


def press(desk, act, arg="", value=""):
    return desk.preset_act(event(act, arg, value))


def change(desk, **fields):
    for name, value in fields.items():
        desk.act(event("field", name, value))


def test_a_saved_preset_gives_the_same_job_again(desk):
    change(desk, prompt="a red fox", steps="31", count="3")
    press(desk, "preset_save", value="foxes")
    assert desk.presets.name == "user/foxes" and desk.presets.changed() == {}
    job = apply(desk.page.presets.load("user/foxes"))
    assert isinstance(job, GenerateJob) and (job.generate.steps, job.generate.count) == (31, 3)
    change(desk, steps="12", prompt="a cat")
    assert desk.presets.changed() == {"prompt": "a red fox", "steps": 31}
    press(desk, "preset_put_back", "steps")
    assert desk._values()["steps"] == 31 and list(desk.presets.changed()) == ["prompt"]
    press(desk, "preset_load", value="user/foxes")
    assert desk.presets.changed() == {} and desk._values()["prompt"] == "a red fox"


def marked(desk):
    drawn = desk.presets.fields(ENTRIES)
    blocks = re.findall(r'<(?:div|label) class="own([^"]*)".*?data-arg="([^"]+)"', drawn)
    return [name for kind, name in blocks if "is-own" in kind.split()]


def test_fields_are_marked_where_they_differ_from_the_preset_or_from_what_its_empty_ones_mean(desk):
    start = start_values() | {"base_model": "models/starter"}
    desk.presets.keep(start)
    press(desk, "preset_save", value="starter")
    assert start["preview_every_n_steps"] is not None and marked(desk) == []
    own = default_values(start, TrainJob(), desk.page.workspace)
    assert own.keys() == {"width", "height", "guidance_scale"}
    desk.presets.keep(start | own | {"zero_terminal_snr": "off"})
    assert marked(desk) == []
    desk.presets.keep(start | {"width": 192, "steps": 9, "zero_terminal_snr": "on", "preview_every_n_steps": None})
    assert set(marked(desk)) == {"width", "steps", "zero_terminal_snr", "preview_every_n_steps"}
    assert set(desk.presets.changed()) == set(marked(desk))


def test_it_is_listed_on_its_own_form_alone(desk):
    press(desk, "preset_save", value="foxes")
    assert "user/foxes" in desk.presets.html()
    assert "user/foxes" not in [name for _, name in choices(desk.page)]
    desk.page.presets.save("lora", TrainJob())
    with pytest.raises(ProblemsError) as refused:
        press(desk, "preset_load", value="user/lora")
    assert refused.value.codes == ["preset.other-task"]
    with pytest.raises(ProblemsError):
        desk.page.project.choose("user/foxes")


def test_undo_and_redo_walk_through_fields_and_presets(desk):
    first = desk._values()
    change(desk, steps="9")
    change(desk, steps="9")  # passed through: no step of its own
    change(desk, seed="7")
    press(desk, "preset_undo")
    assert desk._values()["steps"] == 9 and desk._values()["seed"] is None
    press(desk, "preset_undo")
    assert desk._values() == first
    press(desk, "preset_redo")
    press(desk, "preset_redo")
    assert (desk._values()["steps"], desk._values()["seed"]) == (9, 7)
    press(desk, "preset_load", value="")
    assert desk._values()["steps"] == first["steps"]
    press(desk, "preset_undo")
    assert desk._values()["steps"] == 9
    assert re.findall(r'data-act="preset_(undo|redo)"[^>]* title="[^"]', desk.presets.html()) == ["undo", "redo"]


def test_all_changes_are_put_back_at_once(desk):
    change(desk, steps="9", prompt_weights="false")
    press(desk, "preset_put_all_back")
    assert desk.presets.changed() == {}


def test_the_json_is_the_job_and_can_be_edited(desk):
    change(desk, steps="9")
    job = json.loads(json.dumps({"kind": "job", "schema_version": 2, "task": "generate", "generate": {"steps": 44}}))
    press(desk, "preset_json", value=json.dumps(job))
    assert desk._values()["steps"] == 44
    for wrong in (
        "{",
        json.dumps(job | {"task": "train", "generate": {}}),
        json.dumps(job | {"generate": {"steps": 0}}),
    ):
        with pytest.raises(ProblemsError):
            press(desk, "preset_json", value=wrong)
    assert desk._values()["steps"] == 44


def test_a_form_that_cannot_be_used_is_not_saved_and_a_taken_name_not_written_over(desk):
    change(desk, steps="many")
    with pytest.raises(ProblemsError) as refused:
        press(desk, "preset_save", value="bad")
    assert refused.value.codes == ["settings.bad-value"] and desk.page.presets.names("generate") == []
    change(desk, steps="9")
    press(desk, "preset_save", value="mine")
    change(desk, steps="10")
    with pytest.raises(ProblemsError):
        press(desk, "preset_save", value="mine")
    press(desk, "preset_save", "user/mine")
    assert apply(desk.page.presets.load("user/mine")).generate.steps == 10


def test_deleting_asks_and_keeps_the_fields(desk):
    change(desk, steps="9")
    press(desk, "preset_save", value="mine")
    assert re.search('data-act="preset_delete" data-arg="user/mine"[^>]* data-sure="', desk.presets.html())
    press(desk, "preset_delete", "user/mine")
    assert desk.page.presets.names("generate") == [] and desk.presets.name == "" and desk._values()["steps"] == 9


def test_what_of_a_preset_is_not_here_is_said(desk):
    job = {
        "kind": "job",
        "schema_version": 2,
        "task": "generate",
        "generate": {"loras": [{"file": "gone", "strength": 1}]},
    }
    press(desk, "preset_json", value=json.dumps(job))
    assert desk._values()["loras"] == [] and "gone" in said(desk)


def test_names_of_presets_never_become_markup(desk):
    press(desk, "preset_save", value="a&b'c")
    assert "a&amp;b" in desk.presets.html() and "a&b'" not in desk.presets.html()


def test_what_a_field_cannot_be_stays_in_it_while_others_change_together_and_prevents_a_start(desk):
    change(desk, width="192", height="128", steps="many")
    for act, arg in (("swap", ""), ("seed", "lock"), ("file_stop", "")):
        desk.act(event(act, arg))
        assert list(desk.presets.bad) == ["steps"], act
    desk.choose_embeddings(["ink"])
    assert list(desk.presets.bad) == ["steps"] and desk._values()["width"] == 128
    desk.draw()
    assert desk.page.engine.jobs == [] and "many" in desk.presets.fields(["steps"])
    change(desk, width="x")
    desk.act(event("swap"))
    assert list(desk.presets.bad) == ["steps"], "what is written anew is corrected"
    press(desk, "preset_put_back", "steps")
    assert desk.presets.bad == {}
    change(desk, steps="many")
    press(desk, "preset_load", value="")
    assert desk.presets.bad == {}


def test_an_invalid_text_is_a_step_of_undo_and_others_keep_it(desk):
    change(desk, width="192")
    change(desk, steps="many")
    change(desk, seed="7")
    for act, bad, seed, width in (
        ("undo", ["steps"], None, 192),
        ("undo", [], None, 192),
        ("undo", [], None, None),
        ("redo", [], None, 192),
        ("redo", ["steps"], None, 192),
        ("redo", ["steps"], 7, 192),
    ):
        press(desk, f"preset_{act}")
        values = desk._values()
        assert (list(desk.presets.bad), values["seed"], values["width"]) == (bad, seed, width), act
    change(desk, steps="9")
    assert desk.presets.bad == {}
    press(desk, "preset_undo")
    assert desk.presets.bad["steps"].text == "many"
    form = ToolForm(desk.page, tasks.named("tag").card)
    with pytest.raises(ProblemsError):
        form.act(event("field", "thresh", "many"))
    fill(form, undesired_tags="solo")
    form.act(event("preset_undo"))
    assert list(form.form().bad) == ["thresh"] and form.values().get("undesired_tags", "") == ""


def test_a_text_of_any_length_that_its_setting_takes_is_kept_whole_and_the_form_s_own_json_is_applied(desk):
    change(desk, prompt="a red fox, " * 200, steps="31")
    text = json_text(desk.presets.checked_job(), "generate")
    assert len(text) > 4000
    change(desk, steps="9")
    press(desk, "preset_json", value=text)
    assert desk._values()["steps"] == 31
    tags, form = ", ".join(f"tag {number}" for number in range(700)), ToolForm(desk.page, tasks.named("tag").card)
    form.act(event("field", "undesired_tags", tags))
    assert form.values()["undesired_tags"] == tags and len(tags) > 6000


def test_a_saved_preset_keeps_its_title_and_an_opened_one_too(desk):
    job = {"kind": "job", "schema_version": 3, "task": "generate", "title": "Foxes", "description": "Red ones."}
    desk.presets.take_file("foxes.json", json.dumps(job | {"generate": {"steps": 31}}))
    change(desk, steps="9")
    press(desk, "preset_save", "user/foxes")
    kept = desk.page.presets.load("user/foxes")
    assert (kept.title, kept.description, apply(kept).generate.steps) == ("Foxes", "Red ones.", 9)


# -- the forms of tasks


@pytest.fixture
def form(desk):
    return ToolForm(desk.page, tasks.named("tag").card)


def fill(form, **fields):
    for name, text in fields.items():
        form.act(event("field", name, text))


def test_a_tagger_has_presets_and_undo_like_every_form(desk, form):
    fill(form, thresh="0.4", undesired_tags="solo")
    form.act(event("preset_save", "", "strict"))
    assert apply(desk.page.presets.load("user/strict")).tag.thresh == 0.4 and form.form().changed() == {}
    fill(form, thresh="0.5")
    assert form.form().changed() == {"thresh": 0.4} and "1 changed" in form.html()
    form.act(event("preset_undo"))
    assert form.values()["thresh"] == 0.4
    form.act(event("preset_load", "", ""))
    assert (form.values()["thresh"], form.values()["undesired_tags"]) == (None, "")
    form.act(event("preset_load", "", "user/strict"))
    assert (form.values()["thresh"], form.values()["undesired_tags"]) == (0.4, "solo")
    assert "strict" not in ToolForm(desk.page, tasks.named("resize").card).html()


def test_a_pair_is_the_same_typed_kept_and_saved(desk):
    form = ToolForm(desk.page, tasks.named("faces").card)
    form.choose("faces")
    assert form.form().changed() == {}
    fill(form, crop_size="256x128")
    assert form.form().changed() == {"crop_size": [512, 512]}
    form.act(event("preset_save", "", "wide"))
    assert form.form().changed() == {}
    fill(form, crop_size="512x512")
    assert form.form().changed() == {"crop_size": [256, 128]}
    form.act(event("preset_load", "", ""))
    assert form.form().changed() == {} and form.values()["crop_size"] == [512, 512]


def test_a_preset_of_a_task_leaves_the_dataset_alone(desk):
    form = ToolForm(desk.page, tasks.named("resize").card)
    fill(form, folder="models/starter/images", max_resolution="256")
    form.act(event("preset_save", "", "small"))
    fill(form, folder="outputs", max_resolution="768")
    form.act(event("preset_load", "", "user/small"))
    assert form.values()["folder"] == "outputs" and form.values()["max_resolution"] != 768
    form.act(event("preset_undo"))
    form.act(event("preset_undo"))
    form.act(event("preset_undo"))
    assert form.values()["folder"] == "models/starter/images", "what is filled in of files can be undone too"


def test_every_form_of_a_task_can_be_saved_as_it_comes(desk):
    for name, task in tasks.tasks().items():
        if task.card and (form := ToolForm(desk.page, task.card)).form(task).covered:
            form.choose(name)
            form.act(event("preset_save", "", f"mine {name}"))
            assert desk.page.presets.names(name) == [f"user/mine {name}"] and form.form().changed() == {}


def test_a_default_that_nobody_chose_is_not_taken_over_by_another_task(desk):
    form = ToolForm(desk.page, tasks.named("tag").card)
    fill(form, thresh="0.4")
    assert form.values().keys() <= {"thresh"}


def test_an_empty_field_says_what_its_emptiness_means(desk):
    inspect, tag = (ToolForm(desk.page, tasks.named(name).card).form(tasks.named(name)) for name in ("inspect", "tag"))
    assert inspect.known["file"].optional and not inspect.known["file"].hint
    assert 'placeholder="empty"' in inspect.fields(["file"])
    assert tag.known["general_threshold"].hint and f'placeholder="{tag.known["general_threshold"].hint}"' in tag.fields(
        ["general_threshold"]
    )
    assert 'placeholder="0.7"' in tag.fields(["general_threshold"], hints={"general_threshold": "0.7"})


def test_what_stands_against_a_start_is_marked_at_its_field_until_one_is_changed(desk):
    form = ToolForm(desk.page, tasks.named("resize").card)
    wrong = 'id="tool-resize-max_resolution" aria-invalid="true"'
    form.form().mark([Problem("This cannot be", "resize.max_resolution", "use another")])
    assert wrong in form.html() and form.html().count("aria-invalid") == 1
    fill(form, max_resolution="256")
    assert "aria-invalid" not in form.html()
