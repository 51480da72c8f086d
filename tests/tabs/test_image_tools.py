"""The forms of tasks: made from what they declare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from work_parts import event, image, make_page, wait_until

from core import tasks
from core.dataset.preflight import preflight
from core.generation.prompt.sample_prompts import read_prompts
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from tabs.context import TABS
from tabs.dataset.concepts import entries_of
from tabs.form.task_settings import form_settings, main_setting
from tabs.form.view import FieldView
from tabs.tools.forms import SHORT, WITHOUT, ToolForm, cards
from tabs.tools.pairs import train_pairs, with_pairs
from tabs.tools.works import Work

IMAGES = tasks.named("resize").card
ACTIONS = [name for name, task in tasks.tasks().items() if task.card == IMAGES and main_setting(task) == "folder"]


@pytest.fixture
def both(page):
    return page.works, ToolForm(page, IMAGES)


def test_every_task_with_a_card_has_a_form_with_each_of_its_own_settings(page):
    shown_somewhere = [card for tab in TABS for card in cards(tab)]
    assert {task.card for task in tasks.tasks().values() if task.card} == set(shown_somewhere)
    for card in shown_somewhere:
        form = ToolForm(page, card)
        assert form.tasks
        for name, task in form.tasks.items():
            form._keep(**{card.name: {"action": name}}, opened=[card.name])
            shown = form.html()
            settings = form_settings(task).keys() - task.unused({})
            assert all(f'data-arg="{setting}"' in shown for setting in settings if setting not in WITHOUT)
            assert task.button in shown and ('data-act="preview"' in shown) == ("preview" in settings)


def test_image_tools_share_a_card_and_each_asks_for_its_folder():
    assert len(ACTIONS) == 6
    assert {name for name, task in tasks.tasks().items() if task.card == IMAGES} == {*ACTIONS, "latent_upscaler"}


@pytest.mark.parametrize("action", ACTIONS)
def test_the_form_shows_what_the_chosen_tool_asks_for(both, action):
    _, form = both
    form.act(event("more"))
    form.act(event("field", "folder", "outputs"))
    shown = form.act(event("field", "action", action))
    mine = set(form_settings(tasks.named(action)))
    others = set().union(*(form_settings(tasks.named(each)) for each in ACTIONS)) - mine
    assert all(f'data-arg="{name}"' in shown for name in mine - tasks.named(action).unused({}))
    assert not any(f'data-arg="{name}"' in shown for name in others)
    assert 'value="outputs"' in shown  # what tools have in common stays filled in
    assert (tasks.named(action).job.__doc__ or "")[:20].strip() in shown


def test_long_forms_show_at_first_where_the_result_goes():
    forms = {
        name: form_settings(task) for name, task in tasks.tasks().items() if task.card and task.card.tab == "Tools"
    }
    long = {name: form["output"].level for name, form in forms.items() if len(form) > SHORT and "output" in form}
    assert len(long) > 4 and set(long.values()) == {"shown"}, long


def test_a_long_form_shows_its_main_settings_first_and_those_with_a_value_of_their_own(page):
    (card,) = (card for card in cards("Captions") if card.name == "captioners")
    form = ToolForm(page, card)
    shown = form.act(event("field", "action", "tag"))
    assert 'data-arg="thresh"' in shown and 'data-arg="order"' not in shown and "More settings" in shown
    shown = form.act(event("more"))
    assert 'data-arg="order"' in shown and "Fewer settings" in shown
    form.act(event("field", "batch_size", "3"))
    shown = form.act(event("more"))
    assert 'data-arg="batch_size"' in shown and 'data-arg="order"' not in shown, "what was changed is seen"


def filled(form, action, **fields):
    for name, text in {"action": action, **fields}.items():
        form.act(event("field", name, text))
    return form.values()


def test_what_a_tool_writes_is_set_for_it_alone(page):
    form = ToolForm(page, tasks.named("resize_lora").card)
    filled(form, "resize_lora", new_rank="4", save_precision="bf16")
    assert not filled(form, "merge_loras").keys() & {"new_rank", "save_precision"}
    assert filled(form, "resize_lora")["new_rank"] == 4


def test_captioners_share_how_captions_are_written_and_nothing_of_their_models(page):
    form = ToolForm(page, tasks.named("vlm").card)
    mine = {"model": "models/large", "prompt": "Describe it.", "max_new_tokens": "300", "decoding": "greedy"}
    filled(form, "vlm", separator="; ", **mine)
    others = filled(form, "blip")
    assert not set(mine) & set(others) and others["separator"] == "; "
    assert filled(form, "blip", model="models/small")["model"] == "models/small"
    assert filled(form, "vlm")["model"] == "models/large" and 'value="models/large"' in form.html()
    filled(form, "tag", model_dir="a tagger")
    assert filled(form, "retag")["model_dir"] == "a tagger", "kept scores are those of the tagger"


def test_a_tagger_that_a_folder_replaces_is_not_offered(page):
    form = ToolForm(page, tasks.named("tag").card)
    filled(form, "tag", model_dir="")
    assert 'data-arg="repo_id" disabled' not in re.sub(r' (aria-description|id)="[^"]*"', "", form.html())
    filled(form, "tag", model_dir="a tagger")
    shown = re.sub(r' (aria-description|id)="[^"]*"', "", form.html())
    assert 'data-arg="repo_id" disabled><option>set by Model folder</option></select>' in shown


@pytest.mark.parametrize(
    ("action", "name", "what"),
    [("convert_lora", "output", "any"), ("tag", "model_dir", "folder"), ("clean_metadata", "out_json", "file"),
     ("merge_tags", "folders", "folder"), ("resize", "folder", "folder"), ("tag", "thresh", "")],
)  # fmt: skip
def test_a_setting_that_names_a_path_has_a_button_to_browse(page, action, name, what):
    shown = FieldView(form_settings(tasks.named(action))[name]).line()
    assert re.findall(r'data-browse="(\w+)"', shown) == ([what] if what else [])


def names_extension(name, entry):
    """Whether a setting is the extension of caption files, by its name or its default."""
    default = entry.default if isinstance(entry.default, str) else ""
    return "extension" in f"{name} {entry.title}".lower() or default.startswith(".")


EXTENSIONS = [
    (action, name)
    for action, task in tasks.tasks().items()
    for name, entry in form_settings(task).items()
    if task.card and names_extension(name, entry)
]


def test_every_setting_that_names_an_extension_follows_the_dataset():
    assert len(EXTENSIONS) >= 4
    assert {form_settings(tasks.named(action))[name].widget for action, name in EXTENSIONS} == {"extension"}


@pytest.mark.parametrize("endings", [[".txt"], [".caption"], [".txt", ".caption"], []])
def test_extensions_that_are_not_filled_in_are_the_datasets(page, tmp_path, endings):
    for number in range(2):
        path = image(tmp_path / "set" / f"{number}.png", (64, 64))
        for ending in endings:
            path.with_suffix(ending).write_text("a fox", encoding="utf-8")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    ToolForm(page, tasks.named("merge_captions").card).show()  # the dataset is read for it
    wait_until(lambda: page.reading.report is not None)
    for action, name in EXTENSIONS:
        form, usual = ToolForm(page, tasks.named(action).card), form_settings(tasks.named(action))[name].default
        form.act(event("field", "action", action))
        expected = usual if usual in endings or not endings else endings[0]
        assert f'value="{expected}"' in re.search(rf'<input[^>]*data-arg="{name}"[^>]*>', form.html())[0]
        if form_settings(tasks.named(action))[name].optional:
            form.act(event("field", name, ""))
            assert 'value=""' in re.search(rf'<input[^>]*data-arg="{name}"[^>]*>', form.html())[0], "none stays none"


def test_what_an_earlier_version_kept_breaks_no_form(page):
    old = {
        "action": "blip",
        "model": "models/large",
        "prefix": "mira",
        "existing": "append",
        "top_k": "many",
        "of tasks": {},
    }
    page.project.keep("Tools", {"captioners": old})
    form = ToolForm(page, tasks.named("vlm").card)
    assert form.values()["prefix"] == "mira" and "model" not in form.values() and form.html()
    assert filled(form, "vlm", model="x")["model"] == "x"


def test_copies_are_made_and_the_images_stay(both, tmp_path):
    tools, form = both
    file = image(tmp_path / "set" / "a.png", (400, 300), caption="a fox")
    before = file.read_bytes()
    form.act(event("field", "folder", str(tmp_path / "set")))
    form.act(event("field", "output", str(tmp_path / "small")))
    form.act(event("field", "max_resolution", "128"))
    form.act(event("go"))
    work, engine = tools.works()[0], form.page.engine
    wait_until(lambda: work.facts(engine)["state"] not in ("waiting", "running", "paused"))
    assert work.facts(engine)["state"] == "done", work.facts(engine)
    assert list((tmp_path / "small").rglob("*.png")) and file.read_bytes() == before
    assert work.facts(engine)["lines"]
    (entry,) = engine.queue()
    assert (entry.task, entry.state) == ("resize", "done")
    assert engine._runs.folder(entry.run).job()["resize"]["max_resolution"] == [128]


@pytest.mark.parametrize(("task", "offered"), [("tag", True), ("blip", False)])
def test_tagging_that_waits_for_the_device_is_offered_on_the_cpu(both, monkeypatch, task, offered):
    tools, form = both
    engine = form.page.engine
    monkeypatch.setattr("core.engine.engine.run_in_child", lambda *folder, **heard: ("done", None))
    with engine.borrow_device(CancelToken(), "a training"):
        engine.submit(task, build(tasks.named(task).job, {}))
        (work,) = tools.works()
        assert work.facts(engine)["on_cpu"] == offered
        if offered:
            tools.commands["tool_on_cpu"]({"work": work.id}, None)
            wait_until(lambda: work.facts(engine)["state"] == "done")
            assert not work.facts(engine)["on_cpu"]


@pytest.mark.slow
def test_the_last_line_of_a_long_result_says_what_was_done(both, tmp_path, monkeypatch):
    monkeypatch.setattr("tabs.tools.works.MAX_LINES", 2)
    folder = tmp_path / "broken"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"none")
    image(folder / "good.png")
    tools, form = both
    form.act(event("field", "action", "resize"))
    form.act(event("field", "folder", str(folder)))
    form.act(event("go"))
    (work,) = tools.works()
    wait_until(lambda: not tools._is_active(work))
    lines = work.facts(form.page.engine)["lines"]
    assert len(lines) == 4 and "3 more lines" in lines[2] and "5 skipped" in lines[3]


def test_what_cannot_be_is_refused_at_once(both):
    tools, form = both
    for name, text in (("quality", "200"), ("max_resolution", "large"), ("action", "melt")):
        with pytest.raises(ProblemsError):
            form.act(event("field", name, text))
    with pytest.raises(ProblemsError) as refused:
        form.act(event("go"))
    assert len(refused.value.problems) == 2
    form.act(event("preset_put_all_back"))
    form.page.project.edit("dataset.folder", "")
    with pytest.raises(ProblemsError) as refused:
        form.act(event("go"))
    assert refused.value.codes == ["tools.no-folder-chosen"]
    assert not tools.works() and form.values() == {}


@pytest.mark.parametrize("name", ["folder", "output"])
def test_a_shared_page_works_on_no_folder_outside(tmp_path, name):
    page = make_page(tmp_path, shared=True, real=True)
    form = ToolForm(page, IMAGES)
    with pytest.raises(ProblemsError) as refused:
        form.act(event("field", name, str(tmp_path)))
    assert refused.value.codes == ["shared.path-closed"]
    page.project.keep("Tools", {"images": {name: str(tmp_path)}})  # an earlier, unshared page
    with pytest.raises(ProblemsError) as refused:
        form.act(event("go"))
    assert refused.value.codes == ["shared.path-closed"]
    page.engine.close()


def test_what_happens_to_captions_that_are_there_is_chosen_for_each_captioner(page):
    (card,) = (card for card in cards("Captions") if card.name == "captioners")
    form = ToolForm(page, card)
    form.act(event("field", "action", "tag"))
    form.act(event("field", "existing", "append"))
    form.act(event("field", "prefix", "mira"))
    for name, existing in (("retag", "replace"), ("caption_names", "missing"), ("tag", "append")):
        shown = form.act(event("field", "action", name))
        assert f'<option value="{existing}" selected>' in shown, name
        assert form.values()["prefix"] == "mira"


def test_a_start_does_not_begin_with_the_earlier_value_of_a_field_that_was_refused(page, monkeypatch):
    form, started = ToolForm(page, IMAGES), []
    monkeypatch.setattr(page.works, "start", lambda *given: started.append(given))
    shown = form.act_and_report(event("field", "quality", "many"))["area"]
    assert 'aria-invalid="true"' in shown and 'value="many"' in shown, "what was written stays, and is marked"
    form.act_and_report(event("go"))
    assert not started
    form.act_and_report(event("field", "quality", "90"))
    form.act_and_report(event("go"))
    assert started


def test_a_value_of_a_field_that_the_form_leaves_out_starts_nothing(page, monkeypatch):
    form, started = ToolForm(page, tasks.named("merge_models").card), []
    monkeypatch.setattr(page.works, "start", lambda task, job: started.append(job.merge_models))
    for name, value in (("action", "merge_models"), ("method", "sigmoid"), ("multiplier", "0.3")):
        form.act(event("field", name, value))
    form.act(event("go"))
    shown = form.act(event("field", "method", "weighted_sum"))
    assert "tool-merge_models-ratios" in shown and "tool-merge_models-multiplier" not in shown
    form.act(event("go"))
    assert [each.multiplier for each in started] == [0.3, 0.5]
    assert "0.3" in form.act(event("field", "method", "sigmoid")), "it comes back as it was"


def test_a_refused_start_is_answered_in_its_card_in_place_of_what_failed_there_before(page, monkeypatch):
    form, other = ToolForm(page, IMAGES), ToolForm(page, tasks.named("merge_models").card)
    failed = [Work(name, tasks.named(name), name, failed=0.0) for name in ("crop", "merge_models", "download")]
    monkeypatch.setattr(page.works, "works", lambda: failed)
    said = []
    monkeypatch.setattr(page.browsers, "say", lambda *given, **about: said.append(about))
    form.act(event("field", "folder", "nowhere"))
    shown = form.act_and_report(event("go"))["area"]
    assert "tool-refused" in shown and "nowhere" in shown.partition("tool-refused")[2] and not said
    assert "tool-refused" in form.act_and_report(event("field", "quality", "91"))["area"], (
        "it stays while fields change"
    )
    assert "tool-refused" not in other.html()
    assert page.works._hidden == {"crop"}, "what failed in other cards, and downloads, stay"
    assert "tool-refused" not in form.act_and_report(event("field", "action", "crop"))["area"]
    form.act_and_report(event("go"))
    monkeypatch.setattr(page.works, "start", lambda *given: None)
    assert "tool-refused" not in form.act_and_report(event("go"))["area"]


def test_a_failure_stays_until_it_has_been_seen(page, monkeypatch):
    work = Work("failed", tasks.named("crop"), "Crop: set", ended={"state": "failed", "previews": [], "file": None})
    monkeypatch.setattr(page.works, "works", lambda: [work])
    page.works.close_failed(IMAGES)
    assert [each["state"] for each in page.works.parts("Tools", {})["works"]] == ["failed"]
    page.works.close_failed(IMAGES)
    assert not page.works._hidden, "a page has only now been told of it"
    monkeypatch.setattr("tabs.tools.works.NOTICED_SECONDS", 0.0)
    page.works.close_failed(IMAGES)
    assert page.works._hidden == {"failed"}


def test_a_discarded_download_does_not_show_an_earlier_try(page, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    about = "some/model/file.safetensors"
    for _ in range(2):
        page.works.use({"tool": "download", "about": about}, None)
        wait_until(lambda: all(not page.works._is_active(work) for work in page.works.works()))
    (work,) = page.works.works()
    page.works.discard({"about": work.about}, None)
    assert page.works.works() == []


def test_a_form_shows_what_the_chosen_preprocessor_reads(page):
    form = ToolForm(page, tasks.named("make_hints").card)
    canny, blur = 'id="tool-make_hints-edge_low"', 'id="tool-make_hints-blur_radius"'
    shown = form.act(event("field", "edge_low", "50"))
    assert canny in shown and blur not in shown
    shown = form.act(event("field", "preprocessor", "blur"))
    assert canny not in shown and blur in shown
    assert form.values()["edge_low"] == 50, "what was filled in comes back"


@pytest.mark.slow
def test_a_preview_shows_images_beside_their_control_images(page, tmp_path):
    image(tmp_path / "set" / "a.png", (64, 64))
    form = ToolForm(page, tasks.named("make_hints").card)
    form.act(event("field", "folder", str(tmp_path / "set")))
    form.act(event("preview"))
    (work,) = page.works.works()
    wait_until(lambda: not page.works._is_active(work))
    (pair,) = page.works.parts("Tools", {})["works"][0]["previews"]
    assert pair["name"] == "a.png" and pair["image"] != pair["hint"]
    assert all("size=256" in pair[name] for name in ("image", "hint"))


def test_the_page_says_which_characters_a_prefix_cannot_have_and_takes_one_number_for_a_size(page):
    form = ToolForm(page, tasks.named("number").card)
    form.choose("number")
    for prefix, fix in (("a/b", '< > : " / \\ | ? *'), ("a" * 81, "at most 80 characters")):
        with pytest.raises(ProblemsError, match=re.escape(fix)):
            form.act(event("field", "number_prefix", prefix))
    form.choose("crop")
    form.act(event("field", "crop_size", "128"))
    assert list(form.values()["crop_size"]) == [128, 128]


def test_tools_of_a_card_do_not_share_the_names_of_what_they_write(page):
    form = ToolForm(page, tasks.named("check_weights").card)
    for name, output in (("check_weights", "weights.png"), ("compare_loras", None)):
        form.choose(name)
        assert not form.values().get("png")
        if output:
            form.act(event("field", "png", output))
            assert form.values()["png"] == output
    form.choose("check_weights")
    assert form.values()["png"] == "weights.png"


@pytest.mark.slow
def test_pairs_that_a_tool_has_made_are_trained_with_one_press(page, tmp_path):
    image(tmp_path / "set" / "a.png", (64, 64), caption="a fox")
    image(tmp_path / "set" / "b.png", (64, 64), "red", caption="a bear")
    form = ToolForm(page, tasks.named("make_hints").card)
    form.act(event("field", "folder", str(tmp_path / "set")))
    form.act(event("field", "output", str(tmp_path / "lines")))
    form.act(event("go"))
    (work,) = page.works.works()
    wait_until(lambda: not page.works._is_active(work))
    page.project.edit("samples.sample_prompts", ["a fox, glyph style"])
    page.project.edit("validation.validation_split", 0.5)
    before, browser = page.project.job, page.browsers.of("someone")
    train_pairs(page, {"work": "another"}, browser)
    assert page.project.job == before
    train_pairs(page, {"work": work.id}, browser)
    wait_until(lambda: page.project.job != before and browser.message is not None)
    job = page.project.job
    (held,) = preflight(job, page.workspace).validation
    (prompt,) = read_prompts(job.samples, control=True)[0]  # refuses those without a control image
    assert (prompt.prompt, Path(prompt.control)) == (held.caption.text, tmp_path / "lines" / held.image.path.name)
    assert (job.method.kind, browser.message["go"]) == ("controlnet", "Train")
    assert (job.dataset.folder, job.dataset.conditioning_data_dir) == (str(tmp_path / "set"), str(tmp_path / "lines"))
    page.project.edit("dataset.conditioning_data_dir", str(tmp_path / "earlier"))
    page.project.edit("samples.sample_prompts", [f"a cat --cn {tmp_path / 'earlier' / 'cat.png'} --d 3"])
    train_pairs(page, {"work": work.id}, browser)
    wait_until(lambda: page.project.job == job)
    for _ in range(4):
        page.project.undo()
    assert page.project.job == before


def test_pairs_keep_the_other_folders_and_the_method_where_they_belong_to_the_dataset():
    two = {"sources": [{"folder": "one", "class_tokens": "fox"}, {"folder": "two"}]}
    job = build(TrainJob, {"method": {"kind": "lllite"}, "dataset": two})
    found = with_pairs(job, "one", "lines")
    assert found.method.kind == "lllite" and found.dataset.conditioning_data_dir is None
    folders = [(each.folder, each.class_tokens, each.conditioning_data_dir) for each in entries_of(found)]
    assert folders == [("one", "fox", "lines"), ("two", None, None)]
    other = with_pairs(job, "three", "lines")
    assert [each.folder for each in entries_of(other)] == ["three"] and other.dataset.conditioning_data_dir == "lines"


def test_a_suffix_of_earlier_control_images_holds_no_more_for_pairs_that_have_none():
    dataset = {"conditioning_suffix": "-condlabel", "sources": [{"folder": "one"}, {"folder": "two"}]}
    job = build(TrainJob, {"method": {"kind": "lllite"}, "dataset": dataset})
    found = with_pairs(job, "one", "lines")
    assert [each.images.conditioning_suffix for each in concepts_of(found)] == [None, "-condlabel"]
    assert with_pairs(job, "three", "lines").dataset.conditioning_suffix is None
