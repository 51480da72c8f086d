"""The captions of all images in one file, as sd-scripts' tagger writes them with --output_path."""

import json
from functools import partial
from pathlib import Path

import pytest

from core.dataset.captions.history import History
from core.record.cancel import Cancelled
from core.record.context import JobContext
from core.record.workspace import PROJECT
from tests.captioning.tagger.models import images, wd_folder
from tests.captioning.tagger.test_tagging import CAPTIONS, run
from tests.captioning.test_captioners import run as say
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("onnx_here")


@pytest.fixture
def folder(tmp_path):
    place = images(tmp_path / "set", "blue", "red")
    (place / "red.txt").write_text("by hand")
    return place


def test_tags_of_all_images_are_in_one_file_with_their_sizes(tmp_path, folder):
    model, out = wd_folder(tmp_path / "tagger"), tmp_path / "new" / "tags.json"
    outcome, _ = run("tag", tmp_path, folder, model, captioning={"output_path": str(out)})
    assert json.loads(out.read_text()) == {
        str(folder / f"{name}.png"): {"tags": CAPTIONS[name], "image_size": [40, 40]} for name in ("blue", "red")
    }
    assert [path.name for path in folder.glob("*.txt")] == ["red.txt"] and (folder / "red.txt").read_text() == "by hand"
    assert (outcome.facts["written"], outcome.facts["file"]) == (2, str(out))
    lines = out.with_suffix(".jsonl")
    run("retag", tmp_path, folder, model, captioning={"output_path": str(lines)})
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [
        {"image_path": str(folder / f"{name}.png"), "caption": CAPTIONS[name], "image_size": [40, 40]}
        for name in ("blue", "red")
    ]


def test_captions_are_joined_with_those_there_and_an_earlier_file_comes_back(tmp_path, folder):
    out = tmp_path / "outputs" / "meta.json"
    say(folder, output_path=str(out))
    first = out.read_bytes()
    assert {each["caption"] for each in json.loads(first).values()} == {"a fox, snow"}
    say(folder, output_path=str(out), existing="append")
    assert json.loads(out.read_text())[str(folder / "red.png")]["caption"] == "by hand, a fox, snow"
    history = History(tmp_path / "outputs" / ".atelier" / "captions")
    history.undo(next(history.entries()).id)
    assert out.read_bytes() == first


def test_a_job_that_was_cut_off_describes_only_the_rest(tmp_path, folder):
    out, seen = tmp_path / "meta.json", []

    def describe(images, *_, end=None):
        for path in images:
            if path.stem == end:
                raise Cancelled
            seen.append(path.stem)
            yield f"a {path.stem}"

    stopped = say(folder, partial(describe, end="red"), output_path=str(out))
    assert (stopped.state, stopped.facts) == ("stopped", {"images": 2, "written": 1}) and not out.exists()
    outcome = say(folder, describe, output_path=str(out))
    assert seen == ["blue", "red"] and (outcome.facts["images"], outcome.facts["written"]) == (2, 2)
    assert [each["caption"] for each in json.loads(out.read_text()).values()] == ["a blue", "a red"]
    say(folder, describe, output_path=str(out))
    assert seen == ["blue", "red", "blue", "red"]  # nothing is left of a job that ended


def stop(tmp_path, folder):
    """A job in which two images got their captions and the third was not reached; returns the file it resumes from."""

    def describe(images, *_):
        yield from ("first" for _ in images[:2])
        raise Cancelled

    images(folder, "green")
    say(folder, describe, output_path=str(tmp_path / "meta.json"), existing="append")
    (unfinished,) = (tmp_path / "outputs" / ".atelier" / "captions in one file").iterdir()
    return unfinished


def go_on(tmp_path, folder):
    """The captions by image name after the same job was started again."""
    out = tmp_path / "meta.json"
    say(folder, lambda images, *_: ("second" for _ in images), output_path=str(out), existing="append")
    return {Path(path).stem: each["caption"] for path, each in json.loads(out.read_text()).items()}


def test_an_image_whose_own_caption_was_edited_since_is_captioned_again(tmp_path, folder):
    stop(tmp_path, folder)
    (folder / "green.txt").write_text("by hand")
    assert go_on(tmp_path, folder) == {"blue": "first", "green": "by hand, second", "red": "by hand, second"}


@pytest.fixture
def warned(monkeypatch):
    """The codes of the warnings of all jobs."""
    codes = []
    monkeypatch.setattr(JobContext, "warn", lambda self, problem: codes.append(problem.code))
    return codes


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"captions": [], "counts": {}}', '{"captions": {"a": 3}, "counts": 1}']
    + [f'{{"captions": {{"a": {each}}}, "counts": {{}}}}' for each in ('"text"', '"ab"', "[]", '["a", "b", "c"]')],
)
def test_a_damaged_record_of_a_job_that_was_cut_off_only_costs_its_captions(tmp_path, folder, text, warned):
    stop(tmp_path, folder).write_text(text)
    assert go_on(tmp_path, folder) == {"blue": "second", "red": "by hand, second", "green": "second"}
    assert warned == ["caption.unfinished-unreadable"]


def test_captions_that_cannot_be_kept_for_later_do_not_hide_what_ended_the_job(tmp_path, folder, monkeypatch, warned):
    def full(path, value):
        raise OSError(28, "No space left on device")

    def describe(images, *_):
        yield from ("first", "second")
        raise ZeroDivisionError

    monkeypatch.setattr("core.captioning.captioners.atomic.write_json", full)
    monkeypatch.setattr("core.captioning.captioners.SAVE_SECONDS", -1.0)  # after each image, and at the end
    images(folder, "green")
    with pytest.raises(ZeroDivisionError):
        say(folder, describe, output_path=str(tmp_path / "meta.json"))
    assert warned == ["caption.unfinished-unwritten"]


def test_images_without_a_caption_are_left_out_and_a_preview_writes_nothing(tmp_path, folder):
    out = tmp_path / "meta.json"
    outcome = say(folder, lambda images, *_: (path.stem.replace("red", "") for path in images), output_path=str(out))
    assert list(json.loads(out.read_text())) == [str(folder / "blue.png")] and outcome.facts["written"] == 1
    out.unlink()
    say(folder, output_path=str(out), preview=1)
    assert not out.exists()


@pytest.mark.parametrize("name", ["meta.txt", "meta", "", "folder.json"])
def test_a_name_that_is_no_such_file_is_refused_before_the_start(tmp_path, folder, name):
    (tmp_path / "folder.json").mkdir()
    with refused("captioning.one-file"):
        run("tag", tmp_path, folder, wd_folder(tmp_path / "tagger"), captioning={"output_path": str(tmp_path / name)})


@pytest.mark.parametrize("name", ["presets/starter_lora.json", "models/starter/unet/config.json", "README.md"])
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_a_file_that_holds_something_else_is_not_replaced(tmp_path, folder, name, ending):
    out = tmp_path / f"mine{ending}"
    out.write_bytes((PROJECT / name).read_bytes())
    with refused("captioning.one-file", out):
        say(folder, output_path=str(out), existing="replace")
    assert out.read_bytes() == (PROJECT / name).read_bytes()


def test_a_place_that_cannot_be_written_is_said(tmp_path, folder):
    (tmp_path / "file").write_text("no folder")
    with refused("file.unwritable"):
        say(folder, output_path=str(tmp_path / "file" / "meta.json"))
