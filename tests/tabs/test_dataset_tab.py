"""The Dataset tab without a browser: what is read, shown and changed."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from pathlib import Path

import gradio as gr
import pytest
from work_parts import HOSTILE, event, image, make_page, said, wait_until

from core.dataset.doctor.finding import Finding, FindingImage
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.dataset.dataset import Source
from core.settings.job import TrainJob
from tabs.dataset import grid as view
from tabs.dataset import reading
from tabs.dataset import tab as dataset_tab
from tabs.dataset.concepts import entries_of, with_entries
from tabs.dataset.doctor import PUT_BACK
from tabs.dataset.doctor import cards as doctor_cards
from tabs.dataset.tab import DatasetHandlers
from tabs.markup import client_stamp
from tabs.server.uploads import store_upload


@pytest.fixture
def desk(tmp_path):
    return DatasetHandlers(make_page(tmp_path))


def choose(desk: DatasetHandlers, folder) -> None:
    """Choose a folder and wait until it has been read."""
    desk.choose(str(folder))
    wait_until(lambda: not desk.reading.busy)


def test_the_starter_images_are_there_at_first(desk):
    desk.show()
    wait_until(lambda: desk.reading.report is not None and not desk.reading.checking)
    shown = desk.boards()
    assert "24 of 24 images will train" in shown["summary"] and "24 images in one folder." in shown["summary"]
    assert shown["grid"].count('class="tile"') == 24 and "error" not in shown["checks"]


def test_images_that_are_held_out_are_named_where_the_number_that_trains_stands(desk, tmp_path):
    for number in range(4):
        image(tmp_path / "foxes" / f"{number}.png", (64 + number, 64))
    desk.page.project.edit("validation.validation_split", 0.25)
    choose(desk, tmp_path / "foxes")
    wait_until(lambda: "3 of 4 images will train" in desk.boards()["summary"])
    assert 'data-field="validation.best_checkpoint">1 held out for validation<' in desk.boards()["summary"]
    desk.page.project.edit("validation.validation_split", 0.0)
    desk.choose("models/starter/images")
    wait_until(lambda: "24 of 24" in desk.boards()["summary"])
    assert "held out" not in desk.boards()["summary"]


def test_a_chosen_folder_is_the_same_field_as_in_train(desk, tmp_path):
    image(tmp_path / "foxes" / "a.png", caption="a fox")
    choose(desk, tmp_path / "foxes")
    assert desk.page.project.job.dataset.folder == str(tmp_path / "foxes")
    assert "1 of 1 image will train" in desk.boards()["summary"]
    desk.page.project.edit("dataset.folder", "models/starter/images")  # as Train does
    told = desk.tick("")
    assert told["folder"] == "models/starter/images" and client_stamp(told["client"])


def test_the_line_below_the_field_says_what_is_wrong_or_where_images_are_used_from(desk, tmp_path):
    image(tmp_path / "foxes" / "a.png", caption="a fox")
    choose(desk, tmp_path / "foxes")
    wait_until(lambda: "1 image found in foxes." in desk.boards()["state"])
    desk.choose(str(tmp_path / "nowhere"))
    wait_until(lambda: "The image folder does not exist" in desk.boards()["state"])


def test_what_was_shown_is_not_sent_again_and_typing_is_not_disturbed(desk, tmp_path):
    image(tmp_path / "foxes" / "a.png")
    choose(desk, tmp_path / "foxes")
    seen = desk.tick("")["client"]
    assert desk.tick(seen) == gr.skip()
    image(tmp_path / "foxes" / "b.png")
    desk.read_again()
    wait_until(lambda: not desk.reading.busy)
    told = desk.tick(seen)
    assert "folder" not in told and "2 of 2 images" in told["summary"]


def test_the_checks_follow_captions_that_are_written_elsewhere(desk, tmp_path, monkeypatch):
    path = image(tmp_path / "foxes" / "a.png")
    choose(desk, tmp_path / "foxes")
    desk.tick("")
    wait_until(lambda: not desk.reading.busy)
    assert "dataset.default-captions" in [each.code for each in desk.reading.problems]
    path.with_suffix(".txt").write_text("a fox")
    desk.reading.captions_saved([path])
    desk.stamp()
    assert not desk.reading.busy, "more captions may follow"
    monkeypatch.setattr("tabs.dataset.reading.FRESH_SECONDS", 0.0)
    desk.stamp()
    wait_until(lambda: not desk.reading.busy)
    assert "dataset.default-captions" not in [each.code for each in desk.reading.problems]
    desk.stamp()
    assert not desk.reading.busy, "read once"


def test_the_first_tick_after_opening_leaves_the_folder_field_alone(desk):
    seen = desk.show()["client"]
    wait_until(lambda: not desk.reading.busy)
    assert "folder" not in desk.tick(seen)


def test_broken_images_are_named_and_left_out_only_with_consent(desk, tmp_path):
    folder = tmp_path / "set"
    image(folder / "good.png", (200, 200))
    (folder / "zero.png").write_bytes(b"")
    whole = image(folder / "cut.png", (300, 300))
    import random

    from PIL import Image

    Image.frombytes("RGB", (300, 300), random.Random(1).randbytes(270_000)).save(whole)
    whole.write_bytes(whole.read_bytes()[:100_000])
    choose(desk, folder)
    shown = desk.boards()
    assert "1 of 3 images can train" in shown["summary"]  # not before it is said what becomes of the others
    assert "zero.png" in shown["checks"] and "cut.png" in shown["checks"] and "2 errors" in shown["checks"]
    assert "Skip 2 broken images" in shown["checks"]
    assert shown["grid"].count("unreadable</span>") == 2 and shown["grid"].count("<img") == 1
    desk.act(event("skip", value="true"))
    wait_until(lambda: not desk.reading.busy)
    assert desk.page.project.job.dataset.skip_broken and "errors" not in desk.boards()["checks"]
    assert "2 broken images are skipped" in desk.boards()["checks"]
    assert "Leave out broken" not in desk.boards()["checks"]  # it is on


def test_the_frame_on_the_image_is_the_bucket_in_fractions(desk, tmp_path):
    image(tmp_path / "set" / "wide.png", (300, 200))
    choose(desk, tmp_path / "set")
    row = desk.reading.report.rows[0]
    left, top, right, bottom = row.frame
    assert (right - left) / (bottom - top) * 300 / 200 == pytest.approx(row.bucket[0] / row.bucket[1], rel=0.02)
    width = float(
        re.search(r"class=\"crop\" style=\"left:[\d.]+%;top:[\d.]+%;width:([\d.]+)%", desk.boards()["grid"])[1]
    )
    assert width == pytest.approx(100 * (right - left), abs=0.01)
    assert f"{row.bucket[0]}×{row.bucket[1]}" in desk.boards()["grid"]


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot exist there")
def test_names_and_captions_never_become_markup(desk, tmp_path):
    image(tmp_path / "set" / f"{HOSTILE}.png", caption="<script>alert(1)</script>")
    image(tmp_path / "set" / f"10_{HOSTILE}" / "b.png")
    (tmp_path / "set" / f"zero{HOSTILE}.png").write_bytes(b"")
    choose(desk, tmp_path / "set")
    shown = "".join(desk.boards().values())
    assert "<img src=x" not in shown and "<script" not in shown
    assert "&lt;img src=x" in shown


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such names")
def test_a_name_that_is_no_utf8_is_shown_and_its_caption_opens(desk, tmp_path):
    good = image(tmp_path / "set" / "a.png")
    good.rename(tmp_path / "set" / "\udcff.png")
    choose(desk, tmp_path / "set")
    assert "1 of 1 image will train" in desk.boards()["summary"] and "<img" in desk.boards()["grid"]
    desk.act(event("open", "0"))
    assert len(desk.page.project.tab_state("Captions")["key"]) == 16


def test_ten_thousand_images_show_48_at_a_time(desk):
    from core.dataset.report import Row

    row = Row(
        ("s", "a.png"),
        desk.page.workspace.outputs / "a.png",
        (64, 64),
        (64, 64),
        (0, 0, 1, 1),
        1.0,
        1,
        "",
        None,
        "file",
        1,
        True,
    )
    report = type("R", (), {"rows": (row,) * 10_000})()
    shown = view.grid(report, "all", 208, desk.page.thumb_url, False)
    assert shown.count('class="tile"') == 10_000 - 208 * 48 and "of 209 · 10,000 images" in shown
    assert view.grid(report, "all", 0, desk.page.thumb_url, False).count('loading="lazy"') == 48


def test_the_view_is_chosen_by_kind_and_by_bucket(desk, tmp_path):
    image(tmp_path / "set" / "wide.png", (600, 200), caption="x")
    image(tmp_path / "set" / "square.png", (600, 600))
    choose(desk, tmp_path / "set")
    desk.act(event("show", value="words"))
    assert desk.boards()["grid"].count('class="tile"') == 1 and "square.png" in desk.boards()["grid"]
    width, height = next(row.bucket for row in desk.reading.report.rows if "wide" in row.key[1])
    desk.act(event("show", f"{width}x{height}"))
    assert "wide.png" in desk.boards()["grid"] and "square.png" not in desk.boards()["grid"]
    assert f'data-arg="{width}x{height}"' not in desk.boards()["plots"]  # pressed: another click shows all


# -- folders


def test_a_folder_that_says_no_more_than_a_path_keeps_the_short_form():
    job = build(TrainJob, {"dataset": {"folder": "a", "sources": [{"folder": "b", "num_repeats": 3}]}})
    entries = entries_of(job)
    assert with_entries(job, entries) == job
    changed = with_entries(job, [Source(folder="a", num_repeats=2), entries[1]])
    assert changed.dataset.folder is None and [each.num_repeats for each in changed.dataset.sources] == [2, 3]
    assert with_entries(changed, [Source(folder="a"), entries[1]]) == job


def test_repeats_words_and_switch_of_a_folder_are_changed_in_the_list(desk, tmp_path):
    image(tmp_path / "10_fox" / "a.png")
    choose(desk, tmp_path / "10_fox")
    assert 'placeholder="10"' in desk.boards()["sources"] and 'placeholder="fox"' in desk.boards()["sources"]
    desk.act(event("own", "0:num_repeats", "4"))
    desk.act(event("own", "0:class_tokens", "a red fox"))
    source = desk.page.project.job.dataset.sources[0]
    assert (source.num_repeats, source.class_tokens, source.enabled) == (4, "a red fox", True)
    desk.act(event("own", "0:enabled", "false"))
    assert not desk.page.project.job.dataset.sources[0].enabled
    desk.act(event("remove", "0"))
    assert entries_of(desk.page.project.job) == []
    desk.page.project.undo()
    assert len(entries_of(desk.page.project.job)) == 1


@pytest.mark.parametrize("value", ["x", "-1", "0", "1.5", "99999"])
def test_impossible_repeats_are_refused_and_the_field_goes_back(desk, tmp_path, value):
    image(tmp_path / "set" / "a.png")
    choose(desk, tmp_path / "set")
    before, shown = desk.page.project.job, desk.boards()["sources"]
    with pytest.raises(ProblemsError):
        desk.act(event("own", "0:num_repeats", value))
    assert desk.page.project.job == before
    assert desk.boards()["sources"] != shown  # sent anew, so that what was typed does not stay on the screen


def test_a_second_folder_is_added_from_the_browser(desk, tmp_path):
    image(tmp_path / "one" / "a.png")
    image(tmp_path / "two" / "b.png")
    choose(desk, tmp_path / "one")
    assert f'data-act="also" value="{tmp_path / "one"}"' in desk.boards()["browser"]  # where browsing begins
    desk.browse(event("also", value=str(tmp_path / "two")))
    wait_until(lambda: not desk.reading.busy)
    assert [source.folder for source in desk.page.project.job.dataset.all_sources()] == [
        str(tmp_path / "one"),
        str(tmp_path / "two"),
    ]
    assert "2 of 2 images will train" in desk.boards()["summary"]
    desk.browse(event("use", value=str(tmp_path / "three")))
    assert desk.page.project.job.dataset.folder == str(tmp_path / "three")


def test_a_missing_folder_is_said_with_its_fix(desk, tmp_path):
    choose(desk, tmp_path / "gone")
    shown = desk.boards()
    assert "1 error" in shown["checks"] and str(tmp_path / "gone") in shown["checks"]


def test_a_shared_page_neither_chooses_nor_reads_a_folder_outside(tmp_path):
    image(tmp_path / "secret" / "a.png")
    desk = DatasetHandlers(make_page(tmp_path, shared=True))
    before = desk.page.project.job.dataset.folder
    shown = desk.choose(str(tmp_path / "secret"))
    assert "not accessible" in desk.page.browser.message["problems"][0]["what"]
    assert shown["folder"] == before, "the field agrees with the images that are shown"
    desk.reading.layout = "24 images in one folder."
    desk.page.project.edit("dataset.folder", str(tmp_path / "secret"))  # by a preset, say
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    assert desk.reading.report is None and desk.reading.problems[0].code == "shared.path-closed"
    assert "24 images" not in desk.boards()["summary"]


def test_dropped_images_become_the_chosen_folder(desk, tmp_path):
    files = [str(image(tmp_path / "up" / f"fox{n}.png")) for n in range(3)]
    (tmp_path / "up" / "fox.docx").write_bytes(b"x")
    desk.store_dropped([*files, str(tmp_path / "up" / "fox.docx")])
    wait_until(lambda: desk._intake.done)
    assert desk.page.project.job.dataset.folder == str(desk.page.workspace.datasets / "fox")
    assert not any((tmp_path / "up").iterdir())  # the server's copies of the upload are gone
    assert [problem.code for problem in desk._intake.result] == ["dataset.unread-files"]
    assert "fox.docx" in desk.boards()["intake"]


@pytest.mark.parametrize(
    ("answer", "folders", "lost"),
    [("add", ["mine", "fox"], False), ("alone", ["fox"], False), ("close", ["mine"], False), ("alone", ["fox"], True)],
)
def test_images_dropped_on_a_chosen_dataset_are_added_or_used_alone_as_answered(desk, tmp_path, answer, folders, lost):
    image(tmp_path / "mine" / "a.png")
    choose(desk, tmp_path / "mine")
    if lost:
        shutil.rmtree(tmp_path / "mine")
        desk.read_again()
        wait_until(lambda: not desk.reading.busy)
    desk.store_dropped([str(image(tmp_path / "up" / "fox.png"))])
    wait_until(lambda: desk._intake.done)
    assert [Path(each.folder).name for each in entries_of(desk.page.project.job)] == ["mine"]
    asked = desk.boards()["intake"]
    assert "<strong>fox</strong>" in asked and ("dataset has images" in asked) is not lost
    assert asked.split("primary")[1].split("</button>")[0].endswith(">Use it alone" if lost else ">Add")
    desk.store_dropped([str(image(tmp_path / "up" / "owl.png"))])
    assert "upload.busy" in said(desk) and asked == desk.boards()["intake"], "the first ones still wait for an answer"
    assert desk.intake_act(event(answer))["intake"] == ""
    assert [Path(each.folder).name for each in entries_of(desk.page.project.job)] == folders
    assert ("kept in" in said(desk)) is (answer == "close")


def test_a_drop_used_alone_replaces_every_folder_and_one_undo_brings_all_back(desk, tmp_path):
    image(tmp_path / "mine" / "a.png")
    image(tmp_path / "second" / "b.png")
    choose(desk, tmp_path / "mine")
    desk.browse(event("also", value=str(tmp_path / "second")))
    desk.store_dropped([str(image(tmp_path / "up" / "fox.png"))])
    wait_until(lambda: desk._intake.done)
    steps = len(undone(desk))
    desk.intake_act(event("alone"))
    assert [Path(each.folder).name for each in entries_of(desk.page.project.job)] == ["fox"]
    assert len(undone(desk)) == steps + 1
    desk.act(event("undo"))
    assert [Path(each.folder).name for each in entries_of(desk.page.project.job)] == ["mine", "second"]


def test_the_line_of_a_drop_that_is_done_before_the_next_tick_goes(desk, tmp_path, monkeypatch):
    shows = threading.Event()
    monkeypatch.setattr(dataset_tab, "store_upload", lambda *given: shows.wait() and store_upload(*given))
    shown = desk.show() | desk.store_dropped([str(image(tmp_path / "up" / "fox.png"))])
    shows.set()
    wait_until(lambda: desk._intake.done)
    assert "Adding files" in shown["intake"] and desk.tick(shown["client"])["intake"] == ""


def test_a_bad_drop_is_explained_until_closed(desk, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text(HOSTILE)
    before = desk.page.project.job
    desk.store_dropped([str(note)])
    wait_until(lambda: desk._intake.done)
    assert "The dropped files contain no images" in desk.boards()["intake"] and desk.page.project.job == before
    desk.intake_act(event("close"))
    assert desk.boards()["intake"] == ""


def test_both_tabs_share_one_reading(desk):
    assert desk.page.reading is desk.reading


# -- the offer to set up for one's own images


def undone(desk) -> list[str]:
    return [did for did, _ in desk.page.project.steps.past]


def test_own_images_are_offered_a_set_up_that_one_undo_takes_back(desk, tmp_path):
    desk.show()
    wait_until(lambda: desk.reading.report is not None)
    assert desk.boards()["setup"] == ""
    for number in range(3):
        image(tmp_path / "mira" / f"{number}.png", caption=f"mira {number}")
    choose(desk, tmp_path / "mira")
    card = desk.boards()["setup"]
    assert 'data-act="setup"' in card and 'data-act="keep_demo"' in card
    assert "photographs" in card  # the starter is the only model here
    before, steps = desk.page.project.job, len(undone(desk))
    desk.act(event("setup"))
    job = desk.page.project.job
    assert job.saving.output_name == "mira" and set(job.samples.sample_prompts) == {f"mira {n}" for n in range(3)}
    assert len(undone(desk)) == steps + 1
    desk.page.project.undo()
    assert desk.page.project.job == before


def test_what_was_set_up_for_one_folder_is_offered_anew_for_the_next(desk, tmp_path):
    for name in ("mira", "tom"):
        image(tmp_path / name / "1.png", caption=f"{name} at sea")
    choose(desk, tmp_path / "mira")
    desk.act(event("setup"))
    choose(desk, tmp_path / "mira")
    assert desk.boards()["setup"] == "", "nothing is left to set"
    choose(desk, tmp_path / "tom")
    assert "tom at sea" in desk.boards()["setup"]
    desk.act(event("setup"))
    job = desk.page.project.job
    assert (job.saving.output_name, job.samples.sample_prompts) == ("tom", ["tom at sea"])
    desk.page.project.edit("samples.sample_prompts", "a prompt of my own")
    desk.page.project.edit("saving.output_name", "mine")
    choose(desk, tmp_path / "mira")
    assert desk.boards()["setup"] == "", "a person's own stays"


def test_a_trigger_word_that_all_captions_share_later_is_offered_as_new(desk, tmp_path):
    for number in range(3):
        image(tmp_path / "mira" / f"{number}.png", caption=f"mira {number}, glyph style" if number else "")
    choose(desk, tmp_path / "mira")
    assert "Trigger word" not in desk.boards()["setup"] and "New since" not in desk.boards()["setup"]
    desk.act(event("setup"))
    name = desk.page.project.job.saving.output_name
    desk.page.project.edit("model.base_model", "a/model")  # without the demo's, nothing else is offered again
    choose(desk, tmp_path / "mira")
    assert desk.boards()["setup"] == ""
    (tmp_path / "mira" / "0.txt").write_text("mira 0, glyph style")
    desk.reading.want(now=True)
    wait_until(lambda: not desk.reading.busy)
    card = desk.boards()["setup"]
    assert "New since you applied" in card and "→ glyph style" in card and card.count("<tr>") == 1
    desk.act(event("setup"))
    job = desk.page.project.job
    assert job.captions.trigger_word == "glyph style" and job.saving.output_name == name
    assert desk.boards()["setup"] == ""
    desk.page.project.edit("captions.trigger_word", "")
    assert desk.boards()["setup"] == "", "the user wants none"


def test_a_set_up_that_is_declined_is_not_offered_again_for_these_folders(desk, tmp_path):
    for name in ("mira", "others"):
        image(tmp_path / name / "1.png", caption="a")
    choose(desk, tmp_path / "mira")
    before = desk.page.project.job
    desk.act(event("keep_demo"))
    assert desk.boards()["setup"] == "" and desk.page.project.job == before
    choose(desk, tmp_path / "others")
    assert desk.boards()["setup"]
    choose(desk, tmp_path / "mira")
    assert desk.boards()["setup"] == ""


def test_every_tile_of_the_doctor_has_its_file_name(tmp_path):
    shown = FindingImage(("set", "fox.png"), tmp_path / "fox.png", "default: set")
    finding = Finding("no caption", "advice", "1 image is without a caption", "write captions", ((shown,),))
    assert "<b>fox.png</b> <span>default: set</span>" in doctor_cards([finding], None, lambda *_: "thumb.png")


def test_the_offer_shows_captions_as_texts(desk, tmp_path):
    image(tmp_path / "set" / "1.png", caption='<img src=x onerror="alert(1)">')
    choose(desk, tmp_path / "set")
    assert "<img" not in desk.boards()["setup"]


def test_a_folder_that_does_not_exist_gets_no_green_tick(desk, tmp_path):
    choose(desk, tmp_path / "nowhere")
    shown = desk.boards()
    assert "error" in shown["checks"] and 'class="good"' not in shown["doctor"] + shown["checks"]
    image(tmp_path / "here" / "a.png", caption="a fox")
    choose(desk, tmp_path / "here")
    assert desk.boards()["doctor"]


def test_browsing_begins_at_the_nearest_folder_that_is_there_and_counts_its_images(desk, tmp_path):
    image(tmp_path / "sets" / "mira" / "a.png")
    for missing, begins, images in (("sets/mira", "sets/mira", 1), ("sets/none/deeper", "sets", 0), ("a/b/c", ".", 0)):
        wants = {"files": str(tmp_path / missing), "kind": "folder"}
        found = desk.page.models.parts("Dataset", {"wants": wants})["browse"]
        assert (found["folder"], found["images"]) == (str((tmp_path / begins).resolve()), images)


def test_the_two_pagers_around_many_images_have_names_of_their_own(desk, tmp_path):
    for number in range(view.PAGE_SIZE + 1):
        image(tmp_path / "set" / f"{number}.png", (64, 64))
    choose(desk, tmp_path / "set")
    assert re.findall('<nav class="pager" aria-label="([^"]*)"', desk.boards()["grid"]) == list(view.PAGERS)
    assert len(set(view.PAGERS)) == 2


def test_the_first_images_of_a_large_folder_are_shown_while_all_are_read(desk, tmp_path, monkeypatch):
    for number in range(3):
        image(tmp_path / "foxes" / f"{number}.png", caption=f"fox {number}")
    go, real = threading.Event(), reading.preflight
    monkeypatch.setattr(reading, "preflight", lambda *given, **more: go.wait(60) and real(*given, **more))
    monkeypatch.setattr(reading, "FIRST_ROWS", 2)
    shown = desk.choose(str(tmp_path / "foxes"))["grid"]
    assert desk.reading.report is None and desk.reading.busy
    assert shown.count('<li class="tile">') == 2 and "fox 1" in shown and "fox 2" not in shown
    assert "not trained" not in shown and 'data-act="open"' not in shown
    go.set()
    wait_until(lambda: not desk.reading.busy)
    assert desk.boards()["grid"].count('<li class="tile"') == 3 and not desk.reading.first


def test_the_first_images_of_another_folder_are_never_shown(desk, tmp_path, monkeypatch):
    image(tmp_path / "foxes" / "a.png")
    go, real = threading.Event(), reading.preflight
    monkeypatch.setattr(reading, "preflight", lambda *given, **more: go.wait(60) and real(*given, **more))
    desk.choose(str(tmp_path / "foxes"))
    wait_until(lambda: desk.reading.first)
    desk.page.project.edit("dataset.folder", str(tmp_path / "none"))
    desk.reading.want()
    assert desk.reading.first == () and '<li class="tile">' not in desk.boards()["grid"]
    go.set()
    wait_until(lambda: not desk.reading.busy)


def test_copies_of_one_name_are_told_apart_by_their_folders(desk, tmp_path):
    sources = []
    for name in ("new", "old"):  # equal names, and only the last has captions
        image(tmp_path / name / "car.png", caption="a car" if name == "old" else None)
        sources.append(Source(folder=str(tmp_path / name)))
    desk._set_sources(sources, "two folders")
    wait_until(lambda: not desk.reading.busy)
    shown = desk.boards()["doctor"].partition("Duplicates")[2].partition("</article>")[0]
    kept, goes = (shown.index(f"<b>{folder}/</b><b>car.png</b>") for folder in ("old", "new"))
    assert kept < goes < shown.index("would be removed</span>")


def test_moving_copies_to_the_trash_says_so_with_undo(desk, tmp_path):
    for name in ("a", "b"):
        image(tmp_path / "set" / f"{name}.png", caption="a car")
    choose(desk, tmp_path / "set")
    (finding,) = (each for each in desk.reading.findings if each.kind == "copy")
    desk.act(event("away", finding.id))
    browser, moved = desk.page.browser, tmp_path / "set" / "b.png"
    assert not moved.exists() and f"1 image moved to {tmp_path / 'set' / '_atelier_trash'}." in browser.message["text"]
    wait_until(lambda: "Restore: 1 image removed" in desk.doctor.html(entries_of(desk.page.project.job)))
    desk.page.commands[browser.message["undo_by"]]({}, desk.page.browsers.of("another"))
    assert not moved.exists(), "another browser undoes its own moves"
    for _ in range(2):
        desk.page.commands[PUT_BACK]({}, browser)
        assert moved.exists() and (browser.message["kind"], browser.message["undo_by"]) == ("done", "")


def test_each_folder_s_trash_takes_its_own_images_and_undo_restores_them_all(desk, tmp_path):
    folders, names = [tmp_path / name for name in ("cats", "dogs")], ("a.png", "b.png")
    for number, folder in enumerate(folders):
        for name in names:
            image(folder / name, (200 + number, 200), caption="a pet")
    desk._set_sources([Source(folder=str(folder)) for folder in folders], "two folders")
    wait_until(lambda: not desk.reading.busy)
    finding = next(each for each in desk.reading.findings if each.kind == "plain")
    desk.act(event("away", finding.id))
    assert "4 images moved" in desk.page.browser.message["text"]
    for folder in folders:
        assert sorted(path.name for path in (folder / "_atelier_trash").rglob("*.png")) == [*names]
    desk.page.commands[PUT_BACK]({}, desk.page.browser)
    assert all((folder / name).is_file() for folder in folders for name in names)


def test_where_one_folder_s_images_cannot_be_moved_those_of_the_others_stay_too(desk, tmp_path):
    folders = [tmp_path / name for name in ("cats", "dogs")]
    for number, folder in enumerate(folders):
        image(folder / "a.png", (200 + number, 200), caption="a pet")
    desk._set_sources([Source(folder=str(folder)) for folder in folders], "two folders")
    wait_until(lambda: not desk.reading.busy)
    (folders[1] / "_atelier_trash").write_text("no folder")
    finding = next(each for each in desk.reading.findings if each.kind == "plain")
    with pytest.raises(ProblemsError):
        desk.doctor.move_to_trash(finding.id, entries_of(desk.page.project.job))
    assert all((folder / "a.png").is_file() for folder in folders)


def test_the_layout_counts_each_folder_once_and_by_what_it_is_for(tmp_path):
    mine, style, others = (str(tmp_path / name) for name in ("img/10_mychar person", "img/5_mystyle", "reg/1_person"))
    for folder in (mine, style, others):
        image(Path(folder) / "a.png")
    sources = [Source(folder=mine), Source(folder=style), Source(folder=mine, resolution=128)]
    sources.append(Source(folder=others, role="regularization"))

    def layout(**dataset):
        return reading._layout(build(TrainJob, {"dataset": dataset}))

    expected = "2 folders: 10_mychar person, 5_mystyle, and 1 folder of regularization images."
    assert layout(sources=[each.model_dump(exclude_unset=True) for each in sources]) == expected
    parents = {"folder": str(tmp_path / "img"), "reg_data_dir": str(tmp_path / "reg")}
    assert layout(**parents).startswith(
        "2 folders with repeats: 10_mychar person, 5_mystyle (2 images), and 1 folder of reg"
    )
    assert layout() == "" and layout(folder=mine) == "1 folder with repeats: 10_mychar person (1 image)."
