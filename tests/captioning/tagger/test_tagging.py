"""Tagging from the folder of images to the captions, with small models of the real contract."""

import os
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from core import tasks
from core.captioning import decoding
from core.captioning.decoding import decoded_ahead
from core.captioning.described import with_scores
from core.captioning.tagger import tagging
from core.captioning.tagger.score_cache import FolderScores
from core.captioning.tagger.tagging import preview
from core.cli.main import main
from core.engine.engine import Engine
from core.record.cancel import CancelToken
from core.record.problems import Problem
from core.record.workspace import Workspace
from core.settings.captioning.tagger import RetagSettings
from core.settings.check import build
from tests.captioning.tagger.models import COLORS, images, score, wd_folder
from tests.refusals import refused
from tests.tasks import surroundings

pytestmark = pytest.mark.usefixtures("onnx_here")

ALL = ("blue", "green", "red", "white")
CAPTIONS = {
    "blue": "blue sky, solo, ^_^",
    "green": "green grass, solo, ^_^",
    "red": "red hair, solo, ^_^, ruby (gem)",
    "white": "blue sky, green grass, red hair, solo, ^_^",
}


@pytest.fixture
def model(tmp_path):
    return wd_folder(tmp_path / "tagger")


@pytest.fixture
def folder(tmp_path):
    return images(tmp_path / "set", *ALL)


def captions(folder):
    return {path.stem: path.read_text("utf-8").strip() for path in sorted(folder.glob("*.txt"))}


def workspace(tmp_path):
    return Workspace(tmp_path / "out", tmp_path / "models", tmp_path / "presets")


def run(name, tmp_path, folder, model, context=None, captioning=None, **asked):
    """(outcome, events) of a task."""
    task = tasks.named(name)
    groups = {"dataset": {"folder": str(folder)}, name: {"model_dir": str(model) if model else None, **asked}}
    job = build(task.job, groups | {"captioning": captioning or {}})
    task.check_job(job, workspace(tmp_path))
    context = context or surroundings(workspace(tmp_path))
    return task.start(job, context), context.journal.events


REPLACE = {"existing": "replace"}


def test_the_command_line_tags_a_folder_and_writes_it_anew_from_its_scores(
    tmp_path, folder, model, capsys, monkeypatch
):
    monkeypatch.undo()  # the model in a process of its own
    words = ["--dataset.folder", str(folder), "--outputs", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["tag", *words, "--tag.model_dir", str(model), "--check"]) == 0
    assert "4 images" in capsys.readouterr().out and captions(folder) == {}
    assert main(["tag", *words, "--tag.model_dir", str(model), "--tag.character_threshold", "0.3"]) == 0
    assert captions(folder) == CAPTIONS
    said = capsys.readouterr()
    assert "solo: 4" in said.out + said.err and "ruby (gem): 1" in said.out + said.err
    (model / "model.onnx").unlink()  # the scores are enough
    again = ["--captioning.existing", "replace", "--retag.model_dir", str(model), "--retag.thresh", "0.9"]
    assert main(["retag", *words, *again, "--retag.undesired_tags", "solo"]) == 0
    assert captions(folder) == {
        "blue": "blue sky", "green": "green grass", "red": "red hair, ruby (gem)", "white": "blue sky, green grass, red hair",
    }  # fmt: skip


@pytest.mark.parametrize(("batch", "asked"), [("N", 3), (1, 3), (4, 3), (4, 1)])
def test_any_batch_gives_the_same_scores(tmp_path, folder, batch, asked):
    model = wd_folder(tmp_path / "tagger", batch=batch)
    outcome, _ = run("tag", tmp_path, folder, model, captioning={"preview": 4}, batch_size=asked, thresh=0.05)
    found = {line.partition(".png: ")[0]: line.partition(".png: ")[2] for line in outcome.lines if ".png: " in line}
    assert set(found) == set(ALL)
    for color, line in found.items():
        for name in ("blue_sky", "red_hair", "solo", "ruby_(gem)"):
            wanted = score(name, COLORS[color])
            shown = f"{name.replace('_', ' ')} {wanted:.2f}"
            assert (shown in line) == (wanted >= 0.05), f"{color}: {line}"


def test_the_real_size_and_the_order_of_colors(tmp_path, model):
    """448 pixels, blue first: an image of half blue and half black has half the mean."""
    wd_folder(model, size=448)
    half = Image.new("RGB", (896, 896))
    half.paste((0, 0, 255), (0, 0, 896, 448))
    (tmp_path / "set").mkdir()
    half.save(tmp_path / "set" / "a.png")
    outcome, _ = run("tag", tmp_path, tmp_path / "set", model, captioning={"preview": 1})
    assert f"blue sky {score('blue_sky', (0, 0, 127.5)):.2f}" in outcome.lines[0]


def test_tags_of_a_category_that_the_tagger_lacks_are_warned_of(tmp_path, folder, model):
    _, events = run("tag", tmp_path, folder, model, rating_tag="first", quality_tag="last")
    assert [each.text for each in events if getattr(each, "level", "") == "warning"] == [
        "tagger has no quality tags, so none is written"
    ]


def test_images_that_cannot_be_read_are_named_skipped_and_counted(tmp_path, folder, model):
    (folder / "green.png").write_bytes((folder / "green.png").read_bytes()[:60])
    outcome, events = run("tag", tmp_path, folder, model, batch_size=2)
    assert set(captions(folder)) == {"blue", "red", "white"}
    assert (outcome.facts["written"], outcome.facts["skipped"]) == (3, 1)
    assert any("green.png" in line for line in outcome.lines)
    assert [event.level for event in events if event.kind == "log" and "green.png" in event.text] == ["warning"]


def test_a_model_that_fails_for_one_image_skips_that_one(tmp_path, folder, model, monkeypatch):
    from core.captioning.tagger.session import Tagger
    from core.record.problems import ProblemsError

    own = Tagger.run

    def failing(self, batch):
        if len(batch) > 1 or np.allclose(batch[0][0, 0], (0, 0, 255)):  # BGR: the red one; and any larger batch
            raise ProblemsError.one("no memory", code="tagger.model")
        return own(self, batch)

    monkeypatch.setattr(Tagger, "_run_test_image", lambda self: None)
    monkeypatch.setattr(Tagger, "run", failing)
    outcome, _ = run("tag", tmp_path, folder, model, batch_size=3)
    assert set(captions(folder)) == {"blue", "green", "white"} and outcome.facts["skipped"] == 1
    assert any("red.png: no memory" in line for line in outcome.lines)


def test_the_model_gets_batches_decoded_by_the_asked_number_of_threads(tmp_path, folder, model, monkeypatch):
    from core.captioning.tagger.session import Tagger

    own, sizes, pools = Tagger.run, [], []
    monkeypatch.setattr(Tagger, "run", lambda self, batch: sizes.append(len(batch)) or own(self, batch))
    pool = decoding.ThreadPoolExecutor
    monkeypatch.setattr(decoding, "ThreadPoolExecutor", lambda *words: pools.append(words[0]) or pool(*words))
    run("tag", tmp_path, folder, model, batch_size=3, decode_threads=7)
    assert sizes == [1, 3, 1], "one white image as a trial, then the four"
    assert pools == [7]


def test_the_queue_of_the_page_runs_both(tmp_path, folder, model):
    engine = Engine(workspace(tmp_path), "cpu", "a test")
    engine.start()
    try:
        for name, more in (("tag", {}), ("retag", {"captioning": REPLACE})):
            asked = {"model_dir": str(model), "thresh": 0.9}
            job = build(tasks.named(name).job, {"dataset": {"folder": str(folder)}, name: asked, **more})
            identity = engine.submit(name, job)
            assert ended(engine, identity) == "done"
            assert captions(folder)["white"] == "blue sky, green grass, red hair"
            (folder / "white.txt").unlink()
    finally:
        engine.close()


@pytest.mark.slow
def test_a_job_that_waits_for_the_device_tags_at_once_on_the_cpu(tmp_path, folder, model):
    engine = Engine(workspace(tmp_path), "cpu", "a test")
    engine.start()
    try:
        with engine.borrow_device(CancelToken(), "a training"):
            identity = engine.submit("tag", tag_job(folder, model))
            engine.start_on_cpu(identity)
            assert ended(engine, identity) == "done"
    finally:
        engine.close()
    assert captions(folder) == CAPTIONS


def tag_job(folder, model):
    return build(tasks.named("tag").job, {"dataset": {"folder": str(folder)}, "tag": {"model_dir": str(model)}})


def ended(engine, identity):
    """The state of a job once it neither waits nor runs."""
    end = time.monotonic() + 60
    while (state := engine.progress(identity)["state"]) in ("waiting", "running") and time.monotonic() < end:
        time.sleep(0.02)
    return state


def test_nothing_to_do_loads_no_model(tmp_path, folder, model):
    run("tag", tmp_path, folder, model)
    _, events = run("tag", tmp_path, folder, model)
    assert not any("loading" in event.text for event in events if event.kind == "stage")


NAMES = ["it's.png", 'a "b" [c].png', "😀 ünï.png", "x,y;z.png", "%41&amp;.png"]


def test_any_name_is_tagged_and_found_again(tmp_path):
    model = wd_folder(tmp_path / "täg'ger [x] 😀")
    names = NAMES if os.name != "nt" else [name for name in NAMES if '"' not in name]
    folder = images(tmp_path / "a [set] 'of' 😀", *(f"red as {name}" for name in names))
    if sys.platform == "linux":
        os.rename(folder / names[0], os.fsencode(folder) + b"/\xff.png")
    run("tag", tmp_path, folder, model)
    texts = [path.read_text("utf-8").strip() for path in folder.iterdir() if path.suffix == ".txt"]
    assert texts == [CAPTIONS["red"]] * len(names)
    outcome, _ = run("retag", tmp_path, folder, model, captioning=REPLACE, thresh=0.9)
    assert outcome.facts["written"] == len(names)
    assert {path.read_text("utf-8").strip() for path in folder.iterdir() if path.suffix == ".txt"} == {
        "red hair, ruby (gem)"
    }


def test_compatibility_opens_images_as_sd_scripts_does(tmp_path, model):
    """It drops alpha, so that hidden colors show; otherwise transparent parts are white."""
    (tmp_path / "set").mkdir()
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "set" / "a.png")
    asked = {"captioning": {"preview": 1}, "remove_underscore": False}
    (plain, *_), _ = run("tag", tmp_path, tmp_path / "set", model, **asked)[0].lines, None
    (old, *_), _ = run("tag", tmp_path, tmp_path / "set", model, compatibility="sd-scripts-0.9", **asked)[0].lines, None
    assert "blue_sky" in plain and "blue_sky" not in old and "red_hair" in old
    _, events = run("tag", tmp_path, tmp_path / "set", model, compatibility="sd-scripts-0.9", mcut=True, **asked)
    assert any("Automatic threshold" in event.text for event in events if event.kind == "log")


@pytest.mark.parametrize(
    ("before", "captioning", "asked", "wanted"),
    [
        ("red_hair, x\n", {"existing": "append"}, {}, "red_hair, x, red hair, solo, ^_^, ruby (gem)\n"),
        ("red hair,x\n", {"existing": "append"}, {}, "red hair, x, solo, ^_^, ruby (gem)\n"),
        ("x", REPLACE, {"tag_replacement": "red hair, woman"}, " woman, solo, ^_^, ruby (gem)\n"),
        ("x", REPLACE, {"tag_replacement": "solo, woman"}, "red hair,  woman, ^_^, ruby (gem)\n"),
        ("x", REPLACE, {"thresh": 0.99}, "\n"),
        ("x\n", {"existing": "append"}, {"thresh": 0.99}, "x\n"),
        ("x", {"existing": "line"}, {}, "x\nred hair, solo, ^_^, ruby (gem)\n"),
        (
            "x",
            REPLACE | {"prefix": "fox"},
            {"tag_replacement": "red hair, woman"},
            "fox, woman, solo, ^_^, ruby (gem)\n",
        ),
    ],
)
def test_compatibility_writes_files_letter_by_letter(tmp_path, model, before, captioning, asked, wanted):
    folder = images(tmp_path / "set", "red")
    (folder / "red.txt").write_text(before)
    run("tag", tmp_path, folder, model, captioning=captioning, compatibility="sd-scripts-0.9", **asked)
    assert (folder / "red.txt").read_bytes().decode() == wanted
    (folder / "red.txt").write_text(before)
    run("retag", tmp_path, folder, model, captioning=captioning, compatibility="sd-scripts-0.9", **asked)
    assert (folder / "red.txt").read_bytes().decode() == wanted


@pytest.mark.parametrize(
    ("separator", "captioning", "wanted"),
    [
        ("; ", {"existing": "append"}, "x; Red_Hair; solo; ^_^; ruby (gem)\n"),
        ("; ", {"existing": "replace", "prefix": "fox"}, "fox; red hair; solo; ^_^; ruby (gem)\n"),
        ("\n", {"existing": "replace"}, "red hair\nsolo\n^_^\nruby (gem)\n"),
        (", ", {"existing": "replace", "prefix": "fox", "separator": ": "}, "fox: red hair, solo, ^_^, ruby (gem)\n"),
    ],
)
def test_tags_are_added_with_the_separator_between_them(tmp_path, model, separator, captioning, wanted):
    folder = images(tmp_path / "set", "red")
    (folder / "red.txt").write_text("x; Red_Hair")
    run("tag", tmp_path, folder, model, captioning=captioning, caption_separator=separator)
    assert (folder / "red.txt").read_text() == wanted


def test_tags_are_counted_only_where_asked(tmp_path, folder, model):
    counted, _ = run("tag", tmp_path, folder, model, captioning={"preview": 4})
    assert counted.facts["counts"] == {
        "solo": 4,
        "^_^": 4,
        "blue sky": 2,
        "green grass": 2,
        "red hair": 2,
        "ruby (gem)": 1,
    }
    plain, _ = run("tag", tmp_path, folder, model, captioning={"preview": 4}, frequency_tags=False)
    assert "counts" not in plain.facts and len(plain.lines) == 5


def test_all_counts_are_in_a_table_where_they_are_too_many_to_list(tmp_path, folder, model, monkeypatch):
    def tables():
        return list((tmp_path / "out" / "tags").glob("*.csv"))

    run("tag", tmp_path, folder, model)
    assert not tables(), "six tags are listed"
    monkeypatch.setattr("core.captioning.captioners.LISTED", 2)
    assert "table" not in run("tag", tmp_path, folder, model, captioning=REPLACE | {"preview": 4})[0].facts
    outcome, _ = run("retag", tmp_path, folder, model, captioning=REPLACE, undesired_tags="^_^")
    (table,) = tables()
    assert table.read_text() == "tag,images\nsolo,4\nblue sky,2\ngreen grass,2\nred hair,2\nruby (gem),1\n"
    assert outcome.facts["table"] == str(table) and len(outcome.facts["counts"]) == 2
    assert any(table.name in line for line in outcome.lines)


def test_an_image_without_a_tag_is_skipped_except_with_compatibility(tmp_path, folder, model):
    outcome, _ = run("tag", tmp_path, folder, model, thresh=0.9)
    assert outcome.facts["written"] == 4
    outcome, _ = run(
        "tag", tmp_path, folder, model, captioning=REPLACE, thresh=0.9, character_threshold=2, undesired_tags="red_hair"
    )
    assert outcome.facts["skipped"] == 1 and captions(folder)["red"] == "red hair, ruby (gem)"
    asked = {"thresh": 0.99, "compatibility": "sd-scripts-0.9"}
    assert run("tag", tmp_path, folder, model, captioning=REPLACE, **asked)[0].facts["written"] == 4
    assert set(captions(folder).values()) == {""}


# ---- kept scores


def test_scores_of_several_runs_are_kept_together(tmp_path, folder, model):
    run("tag", tmp_path, folder, model, captioning={"preview": 2})
    images(tmp_path / "set" / "inside", "red")
    run("tag", tmp_path, folder, model)
    outcome, _ = run("retag", tmp_path, folder, model, captioning=REPLACE)
    assert outcome.facts["images"] == 5 and not outcome.facts["written"], "the same captions again"


def test_retag_skips_images_that_changed_or_are_new(tmp_path, folder, model):
    run("tag", tmp_path, folder, model)
    Image.new("RGB", (50, 50), "blue").save(folder / "red.png")
    images(folder, "blue as new.png")
    outcome, _ = run("retag", tmp_path, folder, model, captioning=REPLACE, thresh=0.9)
    assert (outcome.facts["written"], outcome.facts["skipped"]) == (3, 2)
    assert captions(folder)["red"] == CAPTIONS["red"] and "new" not in captions(folder)


def test_retag_and_tag_write_the_same(tmp_path, folder, model):
    asked = {"thresh": 0.3, "rating_tag": "first", "order": "score", "tag_weights": True, "mcut": True}
    run("tag", tmp_path, folder, model, **asked)
    first = captions(folder)
    assert first["red"].startswith("(sensitive:0.95), (red hair:0.98)")
    run("retag", tmp_path, folder, model, captioning=REPLACE)
    assert captions(folder) != first
    run("retag", tmp_path, folder, model, captioning=REPLACE, **asked)
    assert captions(folder) == first


def test_the_page_previews_settings_without_writing(tmp_path, folder, model):
    run("tag", tmp_path, folder, model, captioning={"preview": 3})
    asked = RetagSettings(model_dir=str(model), thresh=0.9)
    found = dict(preview(sorted(folder.glob("*.png")), asked, workspace(tmp_path)))
    assert (
        found[folder / "blue.png"].text == "blue sky"
        and with_scores(found[folder / "blue.png"].scored) == "blue sky 0.98"
    )
    assert isinstance(found[folder / "white.png"], Problem) and captions(folder) == {}


def test_scores_without_a_tagging_or_damaged_are_said(tmp_path, folder, model):
    with refused("tagger.no-scores"):
        run("retag", tmp_path, folder, model)
    run("tag", tmp_path, folder, model)
    kept = FolderScores(workspace(tmp_path), str(model), folder).path
    good = kept.read_text()
    kept.write_text(good.replace("[[0,", "[[99,", 1))
    with refused("tagger.bad-scores"):
        run("retag", tmp_path, folder, model, captioning=REPLACE)
    kept.write_text(good[:-20])
    assert run("retag", tmp_path, folder, model, captioning=REPLACE)[0].facts["skipped"] == 1, "half a line is none"
    run("tag", tmp_path, folder, model, captioning=REPLACE)
    assert run("retag", tmp_path, folder, model, captioning=REPLACE)[0].facts["images"] == 4


def test_a_stopped_run_keeps_the_scores_of_what_it_wrote(tmp_path, folder, model, monkeypatch):
    token = CancelToken()
    own = tagging._caption_result

    def stopping(*words):
        token.cancel()
        return own(*words)

    monkeypatch.setattr(tagging, "_caption_result", stopping)
    context = surroundings(workspace(tmp_path), token)
    outcome, _ = run("tag", tmp_path, folder, model, context=context, batch_size=1)
    assert (outcome.state, outcome.facts["written"]) == ("stopped", 1)
    assert set(captions(folder)) == {"blue"}
    monkeypatch.undo()
    kept = FolderScores(workspace(tmp_path), str(model), folder)
    assert {name for name in ALL if kept.find(folder / f"{name}.png")[0]} == {"blue"}
    run("tag", tmp_path, folder, model)
    assert captions(folder)["white"] == CAPTIONS["white"]


def test_decoding_is_ahead_by_a_bounded_number_in_several_threads(tmp_path):
    began, together = [], threading.Barrier(2)

    def prepare(path):
        began.append(path)
        if path.name in ("0", "1"):
            together.wait(timeout=60)  # ends only when two threads are here at once
        return np.zeros(1)

    paths = [tmp_path / str(number) for number in range(100)]
    ahead = decoded_ahead(paths, prepare, 3, 2)
    most = 0
    for done, (path, _) in enumerate(ahead):
        assert path == paths[done]
        most = max(most, len(began) - done)
    assert len(began) == 100 and most <= 3 + 2 * 2
