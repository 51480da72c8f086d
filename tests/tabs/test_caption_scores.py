"""Thresholds on the Captions tab: kept scores become tags again, without the model."""

import pytest
from work_parts import answered, make_page, wait_until

from core import tasks
from core.settings.check import build
from tabs.captions.tab import CaptionHandlers
from tabs.tools.forms import ToolForm
from tests.captioning.tagger.models import COLORS, images, wd_folder
from tests.tasks import surroundings


@pytest.fixture
def desk(tmp_path):
    folder, model = images(tmp_path / "set", *COLORS), wd_folder(tmp_path / "tagger")
    page = make_page(tmp_path)
    page.project.edit("dataset.folder", str(folder))
    desk = CaptionHandlers(page)
    desk.scores.fill("model_dir", str(model))
    desk.tag = lambda: tasks.named("tag").start(
        build(tasks.named("tag").job, {"dataset": {"folder": str(folder)}, "tag": {"model_dir": str(model)}}),
        surroundings(page.workspace),
    )
    desk.reading.want()
    wait_until(lambda: not desk.reading.busy)
    return desk


def test_a_threshold_changes_the_tags_of_the_open_image_and_no_file(desk, tmp_path):
    key = desk.answer({"act": "shelf"})["open"]
    assert "tag" in desk.answer({"act": "scores", "key": key})["result"], "what to do first"
    desk.tag()
    before = {path: path.read_text() for path in (tmp_path / "set").glob("*.txt")}
    shown = desk.answer({"act": "scores", "key": key})
    assert 'data-arg="thresh"' in shown["form"] and "scores_write" in shown["result"]
    few = desk.answer({"act": "scores_field", "key": key, "arg": "thresh", "value": "0.95"})["result"]
    many = desk.answer({"act": "scores_field", "key": key, "arg": "thresh", "value": "0.05"})["result"]
    assert len(many) > len(few) and before == {path: path.read_text() for path in (tmp_path / "set").glob("*.txt")}
    desk.answer({"act": "scores_write"})
    form = ToolForm(desk.page, tasks.named("tag").card)
    assert form.task.name == "retag" and form.values()["thresh"] == 0.05, (
        "the form of the captioners has the same settings"
    )
    form.choose("tag")
    assert form.values()["thresh"] == 0.05, "and the tagger too"


def test_a_wrong_value_and_an_unknown_field_are_refused(desk):
    key = desk.answer({"act": "shelf"})["open"]
    for arg, value in (("thresh", "many"), ("thresh", "-1"), ("preview", "3"), ("odd", "1")):
        assert answered(desk.answer, {"act": "scores_field", "key": key, "arg": arg, "value": value})["problems"]
