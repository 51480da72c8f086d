"""Changes to many captions: each kind by its effect, its undo, and what is refused."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core import tasks
from core.captioning import edits
from core.captioning.bulk import Item, changes_of, mixed_spellings, planned, tag_counts, tags_together
from core.captioning.combining import parts_of, tag_test
from core.captioning.edits import edit_problems, editor
from core.dataset.captions.history import History
from core.dataset.captions.words import KAOMOJI, comparable
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.captioning.edits import EDITS, CaptionEditSettings
from core.settings.check import build
from tests.tasks import surroundings

TEXT = "red fox, long_hair, snow, red fox"


def edited(text=TEXT, name="fox_01.png", folder="10_arctic fox", **settings):
    return editor(CaptionEditSettings(**settings), [text])(text, name, folder)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"edit": "add", "tags": "Red_Fox, ice"}, f"{TEXT}, ice"),
        ({"edit": "add", "tags": "ice", "place": "start"}, f"ice, {TEXT}"),
        (
            {"edit": "add", "tags": "ice", "place": "after", "after": "long hair"},
            "red fox, long_hair, ice, snow, red fox",
        ),
        ({"edit": "add", "tags": "ice", "place": "after", "after": "gone"}, f"{TEXT}, ice"),
        ({"edit": "remove", "tags": "long hair, rain"}, "red fox, snow, red fox"),
        ({"edit": "remove", "tags": "long*, *now"}, "red fox, red fox"),
        ({"edit": "add", "tags": "ice", "place": "after", "after": "l*"}, "red fox, long_hair, ice, snow, red fox"),
        ({"edit": "replace", "find": "* hair", "replace_with": "bun"}, "red fox, bun, snow, red fox"),
        ({"edit": "front", "tags": "s*, long*"}, "snow, long_hair, red fox, red fox"),
        ({"edit": "imply", "implications": ["* hair -> hair", "red* = fox"]}, "fox, long_hair, snow, hair"),
        ({"edit": "replace", "find": "LONG hair", "replace_with": "bun, braid"}, "red fox, bun, braid, snow, red fox"),
        ({"edit": "replace", "find": "snow"}, "red fox, long_hair, red fox"),
        ({"edit": "replace", "find": "snow", "replace_with": "Long hair"}, "red fox, long_hair, red fox"),
        ({"edit": "replace", "find": "* fox", "replace_with": "snow"}, "snow, long_hair"),
        ({"edit": "replace", "find": "ed", "replace_with": "", "match": "text"}, "r fox, long_hair, snow, r fox"),
        (
            {"edit": "replace", "find": r"(\w+) fox", "replace_with": r"fox \1", "match": "regex"},
            "fox red, long_hair, snow, fox red",
        ),
        ({"edit": "front", "tags": "snow, long hair, rain"}, "snow, long_hair, red fox, red fox"),
        ({"edit": "sort"}, "long_hair, red fox, red fox, snow"),
        ({"edit": "sort", "order": "frequency", "keep_first": 1}, "red fox, red fox, long_hair, snow"),
        ({"edit": "deduplicate"}, "red fox, long_hair, snow"),
        ({"edit": "imply", "implications": ["snow -> winter", "winter -> season"]}, f"{TEXT}, winter, season"),
        ({"edit": "imply", "implications": ["red fox = fox"]}, "fox, long_hair, snow"),
        ({"edit": "spaces"}, "red fox, long hair, snow, red fox"),
        ({"edit": "underscores"}, "red_fox, long_hair, snow, red_fox"),
        ({"edit": "prefix", "tags": "photo of mira"}, f"photo of mira, {TEXT}"),
        ({"edit": "prefix", "tags": "photo of mira, "}, f"photo of mira, {TEXT}"),
        ({"edit": "suffix", "tags": ", film grain"}, f"{TEXT}, film grain"),
        ({"edit": "suffix", "tags": "film grain"}, f"{TEXT}, film grain"),
        ({"edit": "prefix", "tags": "red"}, TEXT),
        ({"edit": "suffix", "tags": "fox"}, TEXT),
        ({"edit": "prefix", "tags": "re"}, f"re, {TEXT}"),
        ({"edit": "suffix", "tags": "x"}, f"{TEXT}, x"),
        ({"edit": "front", "tags": "snow, Snow"}, "snow, red fox, long_hair, red fox"),
        ({"edit": "add", "tags": "ice, Ice"}, f"{TEXT}, ice"),
        ({"edit": "separator", "new_separator": "; "}, "red fox; long_hair; snow; red fox"),
        ({"edit": "separator", "separator": ";", "new_separator": ", "}, TEXT),
        ({"edit": "file_name"}, "fox"),
        ({"edit": "folder_name"}, "arctic fox"),
    ],
)
def test_each_kind_of_change(settings, expected):
    assert edited(**settings) == expected


def test_the_tests_of_implications_are_made_once_not_for_each_caption(monkeypatch):
    made = []
    monkeypatch.setattr(edits, "tag_test", lambda tags: made.append(tags) or tag_test(tags))
    apply = edits.editor(CaptionEditSettings(edit="imply", implications=["a -> b", "c* -> d"]), ())
    assert [apply("a"), apply("cat"), apply("a, cat")] == ["a, b", "cat, d", "a, cat, b, d"] and len(made) == 2


def test_changes_of_spelling():
    assert edited("saber (fate), ^_^", edit="escape") == r"saber \(fate\), ^_^"
    assert edited(r"saber \(fate\)", edit="escape") == r"saber \(fate\)"
    assert edited(r"saber \(fate\)", edit="unescape") == "saber (fate)"
    assert edited("1Girl, RED", edit="lower") == "1girl, red"
    assert edited(", ".join(KAOMOJI), edit="spaces") == ", ".join(KAOMOJI)
    assert edited("a fox,\nin snow\n", edit="one_line") == "a fox, in snow"
    assert (
        edited("dan and anna and\nhand in sand", edit="one_line", separator=" and ") == "dan and anna and hand in sand"
    )
    assert edited("a, b\nc", edit="add", tags="d") == "a, b, d\nc, d", "each line is a caption of its own"
    assert edited("a ;b\nc,d", edit="separator", separator=";", new_separator=", ") == "a, b\nc,d"
    assert edited("x, y", edit="prefix", tags="x") == "x, y", "it is there already"
    assert edited("a;  b", edit="add", tags="b", separator="; ") == "a;  b", "what does not change keeps its spelling"


@pytest.mark.parametrize("settings", [{"edit": "add"}, {"edit": "prefix"}, {"edit": "suffix"}])
def test_a_blank_line_stays_blank_unless_it_is_all_there_is(settings):
    assert edited("a cat\n\na dog", tags="x", **settings).split("\n")[1] == ""
    assert edited("", tags="x", **settings) == "x"


def test_frequency_counts_the_tags_of_every_line():
    order = {"edit": "sort", "order": "frequency"}
    assert editor(CaptionEditSettings(**order), ["a, b\nb"])("a, b") == "b, a"


def test_the_length_of_a_list_does_not_multiply_with_the_tags_of_a_caption():
    tags = [f"tag {number}" for number in range(2000)]
    text, rules = ", ".join(tags[:40]), [f"{tag} -> next to {tag}" for tag in tags]
    settings = (
        CaptionEditSettings(edit="imply", implications=rules),
        CaptionEditSettings(edit="remove", tags=", ".join(tags)),
    )
    for each in settings:
        change, began = editor(each, []), time.thread_time()
        for _ in range(50):
            change(text)
        assert time.thread_time() - began < 1, "5 s and more where each tag is compared with each of the list"


def test_circles_of_many_lengths_end_where_they_began():
    """The states of all together repeat after their least common multiple, 10 ** 9 rounds."""
    lengths = (2, 3, 5, 7, 11, 13, 17, 19, 23)
    rules = [f"{size}_{n} = {size}_{(n + 1) % size}" for size in lengths for n in range(size)]
    tags = ", ".join(f"{size}_0" for size in lengths)
    assert edited(tags, edit="imply", implications=rules) == tags


def test_rules_that_go_round_end():
    rules = ["a = b", "b = a", "c -> d", "d -> c"]
    assert set(edited("a, c", edit="imply", implications=rules).split(", ")) >= {"c", "d"}


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"edit": "add"}, ["edit.incomplete"]),
        ({"edit": "add", "tags": "a", "place": "after"}, ["edit.incomplete"]),
        ({"edit": "replace"}, ["edit.incomplete"]),
        ({"edit": "replace", "find": "(", "match": "regex"}, ["caption.bad-pattern"]),
        ({"edit": "separator"}, ["edit.incomplete"]),
        ({"edit": "imply"}, ["edit.incomplete"]),
        ({"edit": "imply", "implications": ["a b"]}, ["edit.bad-rule"]),
        ({"edit": "imply", "implications": ["a -> b -> c", "a = b = c", "a -> =_="]}, ["edit.bad-rule"] * 2),
        ({"edit": "sort", "separator": " "}, ["edit.blank-separator"]),
    ],
)
def test_what_is_not_complete_is_said_before_anything_changes(settings, codes):
    assert [problem.code for problem in edit_problems(CaptionEditSettings(**settings))] == codes
    with pytest.raises(ProblemsError):
        edited(**settings)


TAGS = st.lists(st.text("abA_ ()", min_size=1, max_size=5).filter(str.strip), max_size=6)
READY = {"tags": "new tag", "find": "a", "implications": ["a -> b"], "after": "b", "new_separator": "; "}


@given(tags=TAGS, kind=st.sampled_from([name for name in EDITS if name not in ("prefix", "suffix")]))
def test_a_change_made_twice_changes_nothing_more_and_loses_no_tag_unasked(tags, kind):
    once = edited(", ".join(tags), edit=kind, **READY)
    if kind != "replace":  # a tag may be replaced by one that is found again
        assert edited(once, edit=kind, **READY) == once
    if kind in ("add", "sort", "front", "deduplicate", "imply", "underscores", "lower"):
        assert {comparable(tag) for tag in tags} <= {comparable(part) for part in parts_of(once, ", ")}


def items(*texts):
    return [Item(f"{number}.png", "set", text, False) for number, text in enumerate(texts)]


def test_tags_are_counted_once_a_caption_in_their_usual_spelling():
    all_items = items("a_b, c", "a b, a b", "A b, d", "a b, c")
    assert tag_counts(all_items, 2) == [("a b", 4), ("c", 2)]
    assert tags_together(all_items, "c", 5) == [("a_b", 2)]
    assert mixed_spellings(all_items) == {"a b": ["a_b"]}, "a text encoder reads 'A b' as 'a b'"


def test_only_what_would_differ_is_planned():
    plan = planned(items("fox", "fox, snow"), CaptionEditSettings(edit="add", tags="snow"))
    assert [(each.before, each.after) for each in plan] == [("fox", "fox, snow")]


# ---- the task


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for name, text in (("a", "fox, snow"), ("b", "fox"), ("c", None)):
        Image.new("RGB", (64, 64)).save(place / f"{name}.png")
        if text:
            (place / f"{name}.txt").write_text(text)
    return place


def texts(folder):
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def run(folder, **settings):
    task = tasks.named("edit_captions")
    job = build(task.job, {"dataset": {"folder": str(folder)}, "edit_captions": settings})
    return task.start(job, surroundings(Workspace(folder.parent / "outputs")))


def test_the_task_changes_the_chosen_captions_and_one_undo_restores_them(folder):
    before = texts(folder)
    outcome = run(folder, edit="add", tags="ice", filter="fox & !snow | is:missing", preview=True)
    assert texts(folder) == before and outcome.facts == {"planned": 2, "written": 0}
    outcome = run(folder, edit="add", tags="ice", filter="fox & !snow | is:missing")
    assert texts(folder) == before | {"b": "fox, ice\n", "c": "ice\n"} and outcome.facts["written"] == 2, (
        "the folder's words trained c"
    )
    history = History(folder.parent / "outputs" / ".atelier" / "captions")
    (entry,) = history.entries()
    history.undo(entry.id)
    assert texts(folder) == before and entry.title == "Add tags"


@pytest.mark.parametrize(("filter", "planned"), [("tokens:>5", 1), ("tokens:<=5 & is:captioned", 1), ("chars:>5", 1)])
def test_the_command_line_counts_what_a_filter_asks_for(folder, filter, planned):
    (folder / "a.txt").write_text("a red fox that looks at the snow")
    assert run(folder, edit="prefix", tags="x", filter=filter, preview=True).facts["planned"] == planned


@pytest.mark.parametrize("filter", ["bucket:512x512", "!(fox | found:blur)"])
def test_the_command_line_refuses_fields_that_only_the_page_knows(folder, filter):
    with pytest.raises(ProblemsError) as caught:
        run(folder, edit="prefix", tags="x", filter=filter)
    assert caught.value.codes == ["filter.only-on-page"]


@pytest.mark.parametrize("sidecars", ["joined", "drawn"])
def test_of_two_caption_files_the_one_that_is_written_is_edited(folder, sidecars):
    """Training joins both; what is joined is in neither file."""
    (folder / "a.caption").write_text("A fox sits.")
    (folder / "c.caption").write_text("A cat sits.")
    task = tasks.named("edit_captions")
    captions = {"caption_extension": ".txt", "sidecars": sidecars}
    groups = {"dataset": {"folder": str(folder)}, "captions": captions, "edit_captions": {"edit": "add", "tags": "ice"}}
    task.start(build(task.job, groups), surroundings(Workspace(folder.parent / "outputs")))
    assert texts(folder) == {"a": "fox, snow, ice\n", "b": "fox, ice\n", "c": "ice\n"}
    assert (folder / "a.caption").read_text() == "A fox sits."


def test_images_that_share_a_caption_file_count_as_one_caption(folder):
    Image.new("RGB", (64, 64)).save(folder / "b.jpg")
    Image.new("RGB", (64, 64)).save(folder / "d_0010_0010_0020_0020.png")  # reads d.txt, and gets a file of its own
    (folder / "d.txt").write_text("owl")
    Image.new("RGB", (64, 64)).save(folder / "d.png")
    outcome = run(folder, edit="add", tags="ice", filter="fox & !snow | owl")
    assert outcome.facts == {"planned": 3, "written": 3} and len(outcome.lines) == 4
    assert texts(folder)["d"] == texts(folder)["d_0010_0010_0020_0020"] == "owl, ice\n"


def test_captions_in_metadata_are_not_touched(folder, tmp_path):
    (tmp_path / "meta.json").write_text('{"a": {"caption": "from the file"}}')
    task = tasks.named("edit_captions")
    sources = [{"folder": str(folder), "metadata_file": str(tmp_path / "meta.json")}]
    job = build(task.job, {"dataset": {"sources": sources}, "edit_captions": {"edit": "add", "tags": "x"}})
    task.start(job, surroundings(Workspace(tmp_path / "outputs")))
    assert texts(folder)["a"] == "fox, snow"


def test_a_caption_that_changed_since_it_was_planned_stays(folder):
    item = Item("a.png", "set", "fox, snow", False, path=folder / "a.png")
    missing = Item("c.png", "set", "set", True, path=folder / "c.png")
    plan = planned([item, missing], CaptionEditSettings(edit="add", tags="ice"))
    (folder / "a.txt").write_text("typed meanwhile")
    (folder / "c.txt").write_text("new")
    done = History(folder / "captions").apply("Add", changes_of(plan))
    assert not done.written and len(done.changed_since) == 2
    assert texts(folder) == {"a": "typed meanwhile", "b": "fox", "c": "new"}
