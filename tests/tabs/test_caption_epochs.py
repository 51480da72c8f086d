"""Captions as the epochs will use them, and rewriting old encodings."""

from __future__ import annotations

import html
import re

import pytest
from work_parts import HOSTILE, image, make_page, wait_until

from core.dataset.buckets.plan import Plan
from tabs.captions.epochs import preview
from tabs.captions.tab import CaptionHandlers
from tests.dataset.training_captions import training_caption


@pytest.fixture
def desk(tmp_path):
    for number in range(3):
        image(tmp_path / "set" / f"{number}.png", caption=f"fox, red, snow, day{number}")
    page = make_page(tmp_path)
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    return CaptionHandlers(page)


def read(desk: CaptionHandlers) -> None:
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)


def shown(desk: CaptionHandlers, text: str, number: int = 1) -> list[str]:
    placed = next(each for each in desk.reading.report.placed if each.image.relative == f"{number}.png")
    drawn = preview(desk.reading.job, desk.reading.report, placed, text)
    return [html.unescape(each) for each in re.findall("<q>(.*?)</q>", drawn)]


def test_the_preview_is_what_the_training_draws(desk):
    desk.page.project.edit("captions.shuffle_caption", True)
    desk.page.project.edit("schedule.seed", "7")
    read(desk)
    text = "fox, red, snow, day1"
    settings = desk.reading.job.captions
    placed = next(each for each in desk.reading.report.placed if each.image.relative == "1.png")
    assert shown(desk, text) == [training_caption(text, settings, 7, epoch, placed.key, 0) for epoch in range(3)]
    assert len(set(shown(desk, text))) > 1


def test_under_a_tag_warm_up_the_preview_is_what_each_step_trains(desk):
    desk.page.project.edit("captions.token_warmup_step", "6")
    desk.page.project.edit("captions.token_warmup_min", "1")
    desk.page.project.edit("schedule.max_train_steps", "12")
    desk.page.project.edit("dataset.train_batch_size", "1")
    desk.page.project.edit("schedule.seed", "7")
    read(desk)
    job, report = desk.reading.job, desk.reading.report
    trained = Plan(report.placed, job, 7, report.total_steps).first_captions(3)
    found = {}
    for number in range(3):
        placed = next(each for each in report.placed if each.image.relative == f"{number}.png")
        found[number] = shown(desk, f"fox, red, snow, day{number}", number)
        assert found[number] == trained[placed.key]
    assert len({len(captions[0].split(", ")) for captions in found.values()}) > 1  # one epoch, several steps


def test_a_folders_own_caption_settings_hold_in_the_preview(desk, tmp_path):
    from core.settings.dataset.source import Source
    from tabs.dataset.concepts import with_entries

    source = Source(folder=str(tmp_path / "set"), shuffle_caption=True, caption_prefix="photo of", num_repeats=5)
    desk.page.project.replace(with_entries(desk.page.project.job, [source]))
    read(desk)
    drawn = shown(desk, "a, b, c")
    assert len(drawn) == 6 and all("photo of" in each and len(each.split(", ")) == 3 for each in drawn)
    placed = desk.reading.report.placed[0]
    assert "The first 2 of 5 views" in preview(desk.reading.job, desk.reading.report, placed, "a, b")


@pytest.mark.parametrize(("repeats", "views"), [(1, 1), (2, 2), (3, 2)])
def test_two_views_of_each_of_three_epochs_are_shown_and_more_are_counted(desk, tmp_path, repeats, views):
    from core.settings.dataset.source import Source
    from tabs.dataset.concepts import with_entries

    source = Source(folder=str(tmp_path / "set"), shuffle_caption=True, num_repeats=repeats)
    desk.page.project.replace(with_entries(desk.page.project.job, [source]))
    read(desk)
    assert len(shown(desk, "a, b, c")) == 3 * views
    placed = desk.reading.report.placed[0]
    said = preview(desk.reading.job, desk.reading.report, placed, "a, b")
    assert (f"{views} of {repeats} views" in said) is (repeats > views)


def test_nothing_is_previewed_where_nothing_is_drawn_and_hostile_words_stay_words(desk):
    read(desk)
    assert shown(desk, "fox") == []
    desk.page.project.edit("captions.caption_tag_dropout_rate", "0.01")
    read(desk)
    placed = desk.reading.report.placed[0]
    assert "<img src=x" not in preview(desk.reading.job, desk.reading.report, placed, HOSTILE)


def test_old_encodings_are_rewritten_at_once_and_put_back_byte_for_byte(desk, tmp_path):
    old = {"0.txt": "Füchse, rot".encode("cp1252"), "1.txt": "雪の中の狐です".encode("shift-jis")}
    for name, data in old.items():
        (tmp_path / "set" / name).write_bytes(data)
    read(desk)
    tally = desk.answer({"act": "open"})["tally"]
    assert "Rewrite 2 captions as UTF-8" in tally and "1 shift-jis" in tally
    answer = desk.answer({"act": "utf8"})
    assert answer["said"] == "Rewrite as UTF-8: 2 captions" and answer["undo"] == "Rewrite as UTF-8"
    assert (tmp_path / "set" / "0.txt").read_bytes().decode("utf-8").strip() == "Füchse, rot"
    assert "Rewrite" not in answer["tally"]
    answer = desk.answer({"act": "undo"})
    assert answer["said"] == "Undone: Rewrite as UTF-8" and "Rewrite 2 captions" in answer["tally"]
    assert {name: (tmp_path / "set" / name).read_bytes() for name in old} == old
    desk.answer({"act": "redo"})
    assert (tmp_path / "set" / "0.txt").read_bytes().decode("utf-8").strip() == "Füchse, rot"


def test_held_out_images_can_be_captioned_too(desk, tmp_path):
    from core.settings.dataset.source import Source
    from tabs.dataset.concepts import with_entries

    source = Source(folder=str(tmp_path / "set"), validation_images=["2.png"])
    desk.page.project.replace(with_entries(desk.page.project.job, [source]))
    read(desk)
    assert len(desk.answer({"act": "shelf"})["chain"]) == 3 and desk.reading.report.trained == 2
