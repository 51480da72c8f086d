"""A form is drawn whatever is stored, and what a person typed wrong is a red field, never an error of the server."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from work_parts import answered, image, wait_until

from core import tasks
from core.captioning.bulk import CaptionEdit, Item
from core.settings.captioning.edits import EDITS
from tabs.captions.bulk import KNOWN, _difference
from tabs.captions.tab import CaptionHandlers
from tabs.dataset.class_form import TASK, ClassForm
from tabs.form.task_settings import form_settings
from tabs.tools.forms import BY_TASK, CHOSEN, STATE, ToolForm

REPLACEMENTS = ["a\\", "\\9", "\\g<x>", "\\g<", "\\N{no}", "\\u12", "\\g<999999999999>"]
PATTERNS = ["(", "(" * 400 + ")" * 400, "(?R)", "^(a|aa|a?)+$", "a{99999999999}", "[", "\\p{Nope}"]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([*REPLACEMENTS, *PATTERNS, "\0"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
LONG = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def desk(page, tmp_path):
    path = image(tmp_path / "set" / "a.png", (64, 64), caption="a" * 40 + "! fox")
    page.project.edit("dataset.folder", str(path.parent))
    page.reading.want()
    wait_until(lambda: not page.reading.busy)
    return CaptionHandlers(page)


def panel(desk) -> str:
    return desk.answer({"act": "bulk"})["bulk"]


def invalid(html: str) -> list[str]:
    return re.findall(r'id="cap-bulk-(\w+)"[^>]* aria-invalid="true"', html)


@pytest.mark.parametrize("text", REPLACEMENTS)
def test_a_replacement_that_is_none_is_a_red_field(desk, text):
    for name, value in {"edit": "replace", "match": "regex", "find": "fox", "replace_with": text}.items():
        html = desk.answer({"act": "bulk_field", "arg": name, "value": value})["bulk"]
    assert invalid(html) == ["replace_with"] and invalid(panel(desk)) == ["replace_with"]
    assert invalid(desk.answer({"act": "bulk_field", "arg": "replace_with", "value": "owl"})["bulk"]) == []


@pytest.mark.slow(only=("^(a|aa|a?)+$",))
@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_that_is_none_or_never_ends_is_a_red_field(desk, text):
    for name, value in {"edit": "replace", "match": "regex", "find": text}.items():
        html = desk.answer({"act": "bulk_field", "arg": name, "value": value})["bulk"]
    assert invalid(html) == ["find"] and invalid(panel(desk)) == ["find"]
    assert (
        "problems" in answered(desk.answer, {"act": "find", "value": f"re:{text[:150]}"})
        or desk.list_state("")["wrong"]
    )


@pytest.mark.parametrize("id", ["\0", "a\0b", "../../x", "", "x" * 5000, "."])
def test_a_change_that_is_not_there_is_not_undone(desk, id):
    assert answered(desk.answer, {"act": "revert", "arg": id})["problems"][0]["code"] == "caption.no-history"


def test_the_form_of_changes_is_saved_loaded_and_undone(desk):
    def do(act, arg="", value=""):
        return answered(desk.answer, {"act": act, "arg": arg, "value": value, "session": "one"})

    for name, value in {"edit": "replace", "find": "fox", "replace_with": "owl"}.items():
        do("bulk_field", name, value)
    do("preset_save", value="owls")
    assert desk.page.browsers.of("one").message["kind"] == "done"
    html = do("bulk_field", "replace_with", "hen")["bulk"]
    assert "1 changed" in html and 'value="hen"' in html
    html = do("preset_undo")["bulk"]
    assert "as saved" in html and 'value="owl"' in html
    do("bulk_field", "edit", "remove")
    assert 'value="owl"' in do("preset_load", value="user/owls")["bulk"]
    assert desk.page.presets.load("user/owls").task == "edit_captions"
    assert do("preset_load", value="user/none")["problems"]


def test_a_change_with_a_wrong_field_is_not_offered(desk):
    for name, value in {"edit": "sort", "order": "alphabet", "keep_first": "many"}.items():
        html = desk.answer({"act": "bulk_field", "arg": name, "value": value})["bulk"]
    assert invalid(html) == ["keep_first"] and 'value="many"' in html and "bulk_apply" not in html


@LONG
@given(st.dictionaries(st.sampled_from([*KNOWN, "edit"]), ANYTHING | st.sampled_from(list(EDITS)), max_size=6))
def test_the_form_of_changes_is_drawn_whatever_is_stored(desk, stored):
    desk._keep(bulk=stored)
    assert 'id="cap-bulk-edit"' in panel(desk)


@pytest.mark.slow(but=("merge_tags", "blip", "git_caption"))
@pytest.mark.parametrize("name", sorted(name for name, task in tasks.tasks().items() if task.card))
@settings(LONG, max_examples=5)
@given(data=st.data())
def test_the_form_of_a_task_is_drawn_whatever_is_stored(page, name, data):
    task = tasks.named(name)
    form, known = ToolForm(page, task.card), sorted(form_settings(task))
    kept = data.draw(st.dictionaries(st.sampled_from(known), ANYTHING, max_size=4))
    apart = data.draw(ANYTHING | st.just({name: kept}))
    page.project.keep(STATE, {task.card.name: data.draw(st.just({CHOSEN: name, BY_TASK: apart, **kept}) | ANYTHING)})
    assert 'data-act="go"' in form.html()


@LONG
@given(st.dictionaries(st.sampled_from(sorted(form_settings(tasks.named(TASK)))), ANYTHING, max_size=4) | ANYTHING)
def test_the_form_of_regularization_images_is_drawn_whatever_is_stored(page, stored):
    form = ClassForm(page, lambda: {"class_on": 0, "class_values": stored}, lambda **changes: None)
    assert 'data-act="class_make"' in form.html(0, None)


@pytest.mark.slow
def test_the_difference_of_long_captions_is_cut_to_where_it_begins():
    same, old, new = "red fox, " * 100, "a b c, " * 4000, "d e f, " * 4000
    item = Item("a.png", "set", same + old, False)
    html = _difference(CaptionEdit(item, same + old, same + new))
    assert "<del>a" in html and "<ins>d" in html and len(html) < 20_000
    assert "<ins>owl</ins>" in _difference(CaptionEdit(item, "fox, snow", "owl, snow"))
