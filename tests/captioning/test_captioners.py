"""What all captioners share: which images they describe, how captions are joined, and that nothing is lost."""

import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.captioning.captioner import captioner
from core.captioning.combining import cleaned, combined, parts_of, without_matches
from core.captioning.described import CaptionResult
from core.dataset.captions.history import History, only_one_writes
from core.dataset.captions.words import comparable
from core.record import lock
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.base import Settings
from core.settings.caption import CaptionerJob, CaptioningSettings
from core.settings.check import build
from tests.refusals import refused
from tests.tasks import surroundings


class NothingSettings(Settings):
    """No settings."""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (64, 64)).save(place / f"{name}.png")
    (place / "b.txt").write_text("red, fox")
    (place / "c.txt").write_text("")
    return place


def texts(folder):
    """Captions; what a kill leaves of a write has a name of its own (.tmp-...), which no scan reads."""
    return {path.stem: path.read_text() for path in sorted(folder.glob("[!.]*.txt"))}


def run(folder, describe=None, **captioning):
    task = captioner(
        "say",
        NothingSettings,
        describe or (lambda images, *_: ("a fox, snow" for _ in images)),
        title="Say",
        about="say it",
    )
    job = build(task.job, {"dataset": {"folder": str(folder)}, "captioning": captioning})
    context = surroundings(Workspace(folder.parent / "outputs"))
    return task.start(job, context)


NEW = "a fox, snow\n"


@pytest.mark.parametrize(
    ("existing", "b", "c"),
    [
        ("missing", "red, fox", NEW),
        ("keep", "red, fox", ""),
        ("replace", NEW, NEW),
        ("append", "red, fox, a fox, snow\n", NEW),
        ("prepend", "a fox, snow, red, fox\n", NEW),
        ("line", "red, fox\na fox, snow\n", NEW),
    ],
)
def test_existing_captions_are_kept_filled_replaced_or_added_to(folder, existing, b, c):
    before = texts(folder)
    outcome = run(folder, existing=existing)
    assert texts(folder) == {"a": NEW, "b": b, "c": c, "d": NEW}
    assert outcome.facts["written"] == sum(texts(folder)[name] != before.get(name) for name in "abcd")
    history = History(folder.parent / "outputs" / ".atelier" / "captions")
    (entry,) = history.entries()
    history.undo(entry.id)
    assert texts(folder) == before and entry.title == "Say"


def test_a_line_that_is_added_has_the_line_end_of_the_file(folder):
    (folder / "b.txt").write_bytes(b"red\r\nfox\r\n")
    run(folder, existing="line")
    assert (folder / "b.txt").read_bytes() == b"red\r\nfox\r\na fox, snow\r\n"


def test_a_second_run_appends_nothing_twice(folder):
    run(folder, existing="append")
    before = texts(folder)
    assert run(folder, existing="append").facts["written"] == 0 and texts(folder) == before


def test_only_the_named_images_are_captioned_and_a_name_of_none_is_refused(folder):
    before = texts(folder)
    run(folder, existing="replace", only=["a.png", str(folder / "c.png")])
    assert texts(folder) == before | {"a": NEW, "c": NEW}
    with refused("captioning.no-image", "e.png"):
        run(folder, existing="replace", only=["a.png", "e.png"])


def test_a_preview_shows_the_difference_and_writes_nothing(folder):
    before = texts(folder)
    outcome = run(folder, existing="replace", preview=2)
    assert texts(folder) == before and (outcome.facts["images"], outcome.facts["written"]) == (2, 0)
    first = {"image": str(folder / "a.png"), "name": "a.png", "caption": "a fox, snow", "before": "", "tags": []}
    assert outcome.facts["previews"][0] == first
    assert outcome.lines[0] == "a.png: a fox, snow" and outcome.lines[1].endswith("(was: red, fox)")


def test_a_run_that_finds_nothing_to_caption_says_why_and_a_preview_shows_its_captions_all_the_same(folder):
    run(folder)
    before = texts(folder)
    outcome = run(folder)
    assert (outcome.facts["images"], outcome.facts["reason"]) == (0, "captioned")
    outcome = run(folder, preview=3)
    assert len(outcome.facts["previews"]) == 3 and "All images already have a caption" in outcome.lines[-2]
    assert texts(folder) == before


def test_a_preview_names_each_tag_once_and_the_caption_only_where_it_is_more(folder):
    def tags(images, *_):
        return (CaptionResult("red, fox", scored=(("red", 0.9), ("fox", 0.8))) for _ in images)

    outcome = run(folder, tags, existing="replace", preview=1)
    assert outcome.lines[0] == "a.png: red 0.90, fox 0.80" and outcome.facts["previews"][0]["caption"] == ""
    outcome = run(folder, tags, existing="replace", preview=1, prefix="a photo, ")
    assert outcome.facts["previews"][0]["caption"].startswith("a photo")


def test_a_caption_that_is_edited_during_the_run_stays(folder):
    def describe(images, *_):
        for path in images:
            (folder / "d.txt").write_text("mine")
            yield f"seen {path.stem}"

    outcome = run(folder, describe)
    assert texts(folder)["d"] == "mine" and texts(folder)["a"] == "seen a\n"
    assert outcome.facts["written"] == 2 and any("1 caption edited" in line for line in outcome.lines)


def test_an_empty_answer_replaces_nothing(folder):
    before = texts(folder)
    outcome = run(folder, lambda images, *_: ("" for _ in images), existing="replace")
    assert texts(folder) == before and any("without a caption" in line for line in outcome.lines)


def test_captions_from_metadata_are_left_alone(tmp_path, folder):
    (tmp_path / "meta.json").write_text('{"a": {"caption": "from the file"}}')
    task = captioner("say", NothingSettings, lambda images, *_: ("x" for _ in images), title="Say", about="say it")
    sources = [{"folder": str(folder), "metadata_file": str(tmp_path / "meta.json")}]
    job = build(task.job, {"dataset": {"sources": sources}, "captioning": {"existing": "replace"}})
    task.start(job, surroundings(Workspace(tmp_path / "outputs")))
    assert "a" not in texts(folder)


def test_a_bad_pattern_is_refused_before_the_model_is_loaded(folder):
    with pytest.raises(ProblemsError) as caught:
        run(folder, lambda *_: pytest.fail("described"), remove_words=["(", "fine", "[z-a]"])
    assert caught.value.codes == ["caption.bad-pattern"] * 2


def test_two_writers_on_the_captions_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.1)
    first, second = surroundings(Workspace(tmp_path)), surroundings(Workspace(tmp_path))
    order = []

    def write():
        with only_one_writes(second):
            order.append("second")

    with only_one_writes(first):
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    third = surroundings(Workspace(tmp_path))
    third.token.cancel()
    with only_one_writes(first), pytest.raises(Cancelled), only_one_writes(third):
        pytest.fail("held twice")


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from core.captioning.captioner import captioner
from core.record.workspace import PROJECT, Workspace
from core.settings.base import Settings
from core.settings.check import build
from tests.tasks import surroundings

class NothingSettings(Settings):
    "No settings."

def describe(images, *_):
    print("ready", flush=True)
    for path in images:
        time.sleep(0.002)
        yield f"seen {path.stem}"

folder = Path(sys.argv[1])
task = captioner("say", NothingSettings, describe, title="Say", about="say it")
job = build(task.job, {"dataset": {"folder": str(folder)}, "captioning": {"existing": "replace"}})
print(task.start(job, surroundings(Workspace(folder.parent / "outputs"))).facts, flush=True)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_each_caption_whole_and_resumes_where_it_was(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for number in range(120):
        Image.new("RGB", (16, 16)).save(place / f"{number:03}.png")
        (place / f"{number:03}.txt").write_text(f"old {number:03}\n")
    command = [sys.executable, "-c", KILLED, str(place), str(PROJECT)]
    before = 0
    for number in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.03 * number)
        process.kill()
        process.wait()
        found = texts(place)
        assert all(text in (f"old {name}\n", f"seen {name}\n") for name, text in found.items())
        done = sum(text.startswith("seen") for text in found.values())
        assert done >= before, "what was done stays done"
        before = done
        if done == 120:
            break
    last = subprocess.run(command, capture_output=True, cwd=PROJECT, text=True, check=True).stdout
    assert f"'images': {120 - before if before < 120 else 120}" in last
    assert texts(place) == {f"{number:03}": f"seen {number:03}\n" for number in range(120)}
    history = History(tmp_path / "outputs" / ".atelier" / "captions")
    if before < 120:
        (entry,) = history.entries()
        history.undo(entry.id)
        assert texts(place) == {f"{number:03}": f"old {number:03}\n" for number in range(120)}


# ---- joining


PARTS = st.lists(st.text("ab _", min_size=1, max_size=6).filter(str.strip), max_size=6)


@given(existing=PARTS, new=PARTS, how=st.sampled_from(["append", "prepend"]))
def test_adding_keeps_every_part_once_more_changes_nothing(existing, new, how):
    settings = CaptioningSettings(existing=how)
    once = combined(", ".join(existing), ", ".join(new), settings)
    found = [comparable(part) for part in parts_of(once, ", ")]
    assert {comparable(part) for part in (*existing, *new)} == set(found)
    assert combined(once, ", ".join(new), settings) == once


@pytest.mark.parametrize(
    ("existing", "new", "separator", "own", "expected"),
    [
        ("1girl, extra,", "long hair", ", ", "", "1girl, extra, long hair"),
        ("1girl, extra,", "Extra", ", ", "", "1girl, extra,"),
        ("1girl", "long hair, Long_Hair", ", ", "", "1girl, long hair"),
        ("1girl; extra", "1girl; long hair", ", ", "; ", "1girl; extra; long hair"),
        ("a\nb", "b\nc", "\n", "", "a\nb\nc"),
        ("", "a,\nb,  c", ",\n", "", "a,\nb,\nc"),
    ],
)
def test_captions_are_joined_by_the_separator_of_what_is_added(existing, new, separator, own, expected):
    settings = CaptioningSettings(existing="append", separator=separator)
    assert combined(existing, new, settings, own) == expected


def test_no_text_is_divided_at_nothing():
    with pytest.raises(ProblemsError) as caught:
        build(CaptionerJob, {"captioning": {"separator": ""}})
    assert caught.value.problems[0].where.endswith("captioning.separator")


def test_spellings_of_a_tag_are_one():
    assert comparable("Long_Hair ") == comparable("long  hair") and comparable(r"saber \(fate\)") == "saber (fate)"


def test_prefix_suffix_and_removed_phrases():
    settings = CaptioningSettings(
        prefix="photo of mira", suffix="film grain", remove_words=[r"with the words? \"[^\"]*\"", r" on it$"]
    )
    assert cleaned('a cat  with the word "hi" on it', settings) == "photo of mira, a cat, film grain"
    assert cleaned('with the word "hi"', settings) == ""
    tags = CaptioningSettings(remove_words=["fox"])
    assert [cleaned(text, tags) for text in ("red fox, solo", "red, fox, solo", "fox, a  b")] == ["red, solo"] * 2 + [
        "a b"
    ]
    typed = CaptioningSettings(prefix="photo of mira, ", suffix=", film grain")
    assert cleaned("a cat", typed) == "photo of mira, a cat, film grain"


@pytest.mark.slow
def test_a_pattern_that_never_ends_is_stopped():
    with pytest.raises(ProblemsError) as caught:
        without_matches(r"(a|aa)+$", "a" * 60 + "b")
    assert caught.value.codes == ["caption.slow-pattern"]


def test_a_caption_file_that_cannot_be_read_skips_its_image_and_no_other(folder):
    (folder / "b.txt").unlink()
    (folder / "b.txt").symlink_to("/nowhere")
    (folder / "d.txt").write_bytes(b"x" * ((1 << 20) + 1))
    outcome = run(folder, existing="replace")
    assert (folder / "a.txt").read_text() == NEW and (folder / "c.txt").read_text() == NEW
    assert outcome.facts == {"images": 4, "written": 2, "skipped": 2}
    assert (folder / "b.txt").is_symlink() and len((folder / "d.txt").read_bytes()) == (1 << 20) + 1


def test_of_two_images_with_one_caption_file_the_second_is_named(folder):
    Image.new("RGB", (64, 64)).save(folder / "a.jpg")
    outcome = run(folder)
    assert outcome.facts["skipped"] == 1 and any("shares its caption file" in line for line in outcome.lines)


def test_where_training_joins_two_files_tags_go_to_the_tag_file_beside_a_sentence(folder):
    (folder / "a.caption").write_text("A fox in snow.")
    task = captioner("say", NothingSettings, lambda images, *_: ("fox" for _ in images), title="Say", about="say it")
    groups = {
        "dataset": {"folder": str(folder)},
        "captions": {"sidecars": "joined", "caption_extension": ".txt"},
    }
    for existing, text in (("missing", "fox\n"), ("replace", "fox\n"), ("append", "fox\n")):
        task.start(
            build(task.job, groups | {"captioning": {"existing": existing}}),
            surroundings(Workspace(folder.parent / "o")),
        )
        assert (folder / "a.txt").read_text() == text and (folder / "a.caption").read_text() == "A fox in snow."


def test_a_stopped_run_that_was_undone_begins_again(folder):
    def stopped(images, *_):
        yield "first"
        yield "second"
        raise Cancelled

    outcome = run(folder, stopped, existing="replace")
    assert (outcome.state, outcome.facts) == ("stopped", {"images": 4, "written": 2})
    history = History(folder.parent / "outputs" / ".atelier" / "captions")
    history.undo(next(history.entries()).id)
    (folder / "a.txt").write_text("by hand")
    assert run(folder, existing="replace").facts["written"] == 4 and texts(folder)["a"] == NEW


def test_a_run_that_is_cancelled_before_the_first_caption_says_only_that(folder):
    def stopped(images, *_):
        raise Cancelled
        yield

    with pytest.raises(Cancelled):
        run(folder, stopped, existing="replace")
    assert not list(History(folder.parent / "outputs" / ".atelier" / "captions").entries())


def test_a_run_that_writes_nothing_leaves_no_change(folder):
    run(folder, lambda images, *_: ("" for _ in images))
    assert not list(History(folder.parent / "outputs" / ".atelier" / "captions").entries())
