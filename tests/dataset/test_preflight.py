"""The report before a start: everything wrong at once, every image with its place, and the true number of steps."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.dataset.buckets.length import advised_epochs, length_of, length_sentence
from core.dataset.buckets.plan import Epochs
from core.dataset.caches.contents import content_hashes, dataset_fingerprint
from core.dataset.preflight import preflight
from core.record.problems import ProblemsError, errors
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.dataset.images import ImageSettings
from core.settings.job import TrainJob
from core.settings.optimization.schedule import ScheduleSettings
from core.settings.rules import ineffective
from core.settings.values import summary


@pytest.fixture
def check(tmp_path):
    """check(dataset={...}, schedule={...}, decode=True) -> the report on tmp_path/fox."""

    def run(decode=False, count_tokens=None, **groups):
        groups["dataset"] = {"folder": str(tmp_path / "fox"), "resolution": 128, "bucket_reso_steps": 32} | groups.get(
            "dataset", {}
        )
        job = TrainJob.model_validate(groups)
        workspace = Workspace(outputs=tmp_path / "outputs")
        return preflight(job, workspace, decode=decode, count_tokens=count_tokens)

    return run


def caption(path, text="a fox"):
    path.with_suffix(".txt").write_text(text)


def test_a_good_folder_has_no_problems_and_every_number(check, add):
    for index in range(6):
        caption(add(f"fox/{index}.png", 256, 256))
    caption(add("fox/wide.png", 320, 192), "a wide fox, running")
    report = check(
        dataset={"train_batch_size": 4}, schedule={"max_train_epochs": 10}, count_tokens=lambda text: len(text.split())
    )
    assert report.ok and not report.problems
    assert (report.trained, report.skipped, report.captions_found) == (7, 0, 7)
    assert report.buckets == {(128, 128): (6, 6), (160, 96): (1, 1)}
    assert (report.batches_per_epoch, report.steps_per_epoch, report.epochs, report.total_steps) == (3, 3, 10, 30)
    assert report.sentence == "7 images in 3 batches of up to 4 x 10 epochs = 30 steps"
    assert (report.longest_tokens, report.token_limit) == (4, 75)
    row = report.rows[-1]
    assert (row.caption, row.source, row.tokens, row.trains) == ("a wide fox, running", "file", 4, True)
    assert (row.size, row.bucket, row.scale) == ((320, 192), (160, 96), 0.5) and row.frame == (0, 0, 1, 1)
    assert report.summary()["total_steps"] == 30


def test_everything_wrong_is_listed_at_once(check, add):
    add("fox/a.png").write_bytes(b"")
    add("fox/b.png", 4000, 8)
    report = check(dataset={"max_bucket_reso": 64, "sources": [{"folder": "/nowhere/at/all"}]})
    whats = " / ".join(problem.what for problem in report.problems)
    for part in ("is empty (0 bytes)", "does not exist", "64 is below the resolution"):
        assert part in whats
    assert not report.ok and report.trained == 0 and report.sentence == "No images to train on"


def test_broken_images_block_until_they_may_be_left_out(check, add):
    caption(add("fox/good.png", 256, 256))
    add("fox/zero.png").write_bytes(b"")
    cut = add("fox/cut.png", 256, 256)
    cut.write_bytes(cut.read_bytes()[:5000])
    caption(cut)
    assert check(dataset={"skip_broken": True}).trained == 2  # the first pass reads headers only
    assert not check(decode=True).ok
    report = check(decode=True, dataset={"skip_broken": True})
    assert report.ok and report.trained == 1 and report.skipped == 2
    assert {row.key[1]: row.why for row in report.rows if not row.trains} == {
        "zero.png": "is empty (0 bytes)",
        "cut.png": "is truncated",
    }
    assert sum("cut.png" in problem.what or "zero.png" in problem.what for problem in report.problems) == 2
    assert report.folders[0].images == 1
    again = check(dataset={"skip_broken": True})  # a first pass knows what was found broken before
    assert again.trained == 1 and any("cut.png" in problem.what for problem in again.problems)
    add("fox/cut.png", 250, 250)
    assert check(dataset={"skip_broken": True}).trained == 2


def test_an_image_too_narrow_for_any_bucket_is_named(check, add):
    caption(add("fox/a.png", 256, 256))
    caption(add("fox/line.png", 3, 900))
    report = check()
    (problem,) = report.problems
    assert "line.png (3 x 900) is too narrow" in problem.what and problem.level == "error"
    (square,) = [each for each in check(dataset={"enable_bucket": False}).problems if each.level == "error"]
    assert square.code == problem.code and ImageSettings.title_of("enable_bucket") in square.fix
    assert check(dataset={"skip_broken": True}).ok


def test_small_and_heavily_cropped_images_are_advice(check, add):
    caption(add("fox/small.png", 64, 64))
    caption(add("fox/long.png", 1500, 150))
    report = check()
    whats = [problem.what for problem in report.problems]
    assert report.ok and len(whats) == 2
    assert [problem.code for problem in report.problems] == ["image.upscaled", "image.cropped"]
    assert "1 of 2 images" in whats[0] and "2.0 times: small.png" in whats[0] and "long.png" in whats[1]


def test_missing_empty_and_unread_captions_are_counted(check, add):
    for name in ("a", "b", "c"):
        add(f"fox/{name}.png", 256, 256)
    (add("fox/d.png", 256, 256).with_suffix(".txt")).write_text(" ")
    add("fox/e.png", 256, 256).with_suffix(".caption").write_text("a fox")
    report = check(captions={"caption_extension": ".txt"})
    found = {problem.code: problem.what for problem in report.problems}
    assert report.ok and report.captions_found == 0
    assert "4 of 5 images" in found["dataset.default-captions"] and "'fox'" in found["dataset.default-captions"]
    assert "1 of 5 images" in found["dataset.empty-captions"]
    assert "1 image has" in found["dataset.unused-captions"] and "1 .caption" in found["dataset.unused-captions"]


def test_what_images_without_captions_train_as_includes_the_trigger_word(check, add):
    add("fox/a.png", 256, 256)
    (add("fox/b.png", 256, 256).with_suffix(".txt")).write_text("")
    for captions, trained in (({}, "zxq fox"), ({"caption_prefix": "photo of"}, "zxq photo of fox")):
        for new in ({"captions": {"trigger_word": "zxq", **captions}}, TOKEN | {"captions": captions}):
            found = {problem.code: problem.what for problem in check(**new).problems}
            assert f"it trains as '{trained}'" in found["dataset.default-captions"]
            assert "and trains as 'zxq" in found["dataset.empty-captions"]
    template = TOKEN | {"captions": {"caption_template": "object"}}
    found = {problem.code: problem.what for problem in check(**template).problems}
    assert "it trains by templates such as 'a photo of a zxq'" in found["dataset.default-captions"]


TOKEN = {"method": {"kind": "embedding"}, "embedding": {"token_string": "zxq", "init_word": "fox"}}


@pytest.mark.parametrize("kind", ["lora", "dreambooth", "controlnet"])
def test_a_caption_template_is_for_textual_inversion_only(check, add, tmp_path, kind):
    """Left over from another method it changes no caption, neither of all folders nor of one."""
    caption(add("fox/a.png", 256, 256), "a fox runs")
    source = {"folder": str(tmp_path / "fox"), "caption_template": "style"}
    for values in ({"captions": {"caption_template": "style"}}, {"dataset": {"folder": None, "sources": [source]}}):
        values = values | {"method": {"kind": kind}}
        report = check(**values)
        assert [row.caption for row in report.rows] == ["a fox runs"]
        assert dataset_fingerprint(report.placed)["images"][0]["caption"] == "a fox runs"
    template = {"captions": {"caption_template": "style"}}
    report = check(**template | TOKEN)
    (row,), (image,) = report.rows, dataset_fingerprint(report.placed)["images"]
    assert row.caption == image["caption"] == "a painting in the style of zxq"  # recorded as trained
    job = build(TrainJob, template | {"method": {"kind": kind}})
    assert "textual inversion" in ineffective(job)["captions.caption_template"]
    assert summary(job, "captions") == "as written, up to 75 tokens"
    embedding = build(TrainJob, template | TOKEN)
    assert "captions.caption_template" not in ineffective(embedding)
    assert summary(embedding, "captions").startswith("style templates")


def test_the_real_kind_and_transparency_of_each_image_are_told(check, add, tmp_path):
    add("fox/a.png", 128, 128)
    add("fox/b.jfif", 128, 128, format="JPEG")
    add("fox/c.png", 128, 128, format="JPEG")
    Image.new("RGBA", (128, 128), (9, 9, 9, 0)).save(tmp_path / "fox" / "d.png")
    for report in (check(decode=True), check()):  # remembered
        rows = {row.key[1]: row for row in report.rows}
        assert {name: row.actual_format for name, row in rows.items() if row.actual_format} == {"c.png": "JPEG"}
        assert [name for name, row in rows.items() if row.transparent] == ["d.png"]
        assert any(each.code == "image.wrong-extension" and "c.png (JPEG)" in each.what for each in report.problems)
        assert report.trained == 4


def test_captions_in_an_old_encoding_are_one_finding(check, add):
    for name in ("a", "b"):
        add(f"fox/{name}.png", 256, 256).with_suffix(".txt").write_bytes("un café".encode("utf-16"))
    (problem,) = check().problems
    assert "2 captions were read as utf-16" in problem.what and "a.png, b.png" in problem.what


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("a fox, <lora:fox_v2:0.8>", ""),
        ("a (red:1.2) fox", "weighted_captions"),
        ("a {red|white} fox", "enable_wildcard"),
        ("{\\rtf1\\ansi a fox}", ""),
        ("<!DOCTYPE html><html>404</html>", ""),
        ("nana (one piece), fate: zero, {a}, (a) : 3", None),
    ],
)
def test_notations_of_prompts_that_train_as_text_are_named(check, add, text, setting):
    caption(add("fox/a.png", 256, 256), text)

    def found(**captions):
        return [each for each in check(captions=captions).problems if each.code == "caption.read-as-text"]

    assert len(found()) == (setting is not None)
    assert len(found(weighted_captions=True, enable_wildcard=True)) == (setting == "")


def test_captions_beyond_the_mark_are_named(check, add):
    caption(add("fox/a.png", 256, 256), "word " * 80)
    report = check(count_tokens=lambda text: len(text.split()))
    (problem,) = report.problems
    assert report.longest_tokens == 80 and "longer than 75 tokens (the longest has 80)" in problem.what
    assert problem.fix.endswith(" to 150")
    assert not check(count_tokens=lambda text: len(text.split()), captions={"max_token_length": 150}).problems


@pytest.mark.parametrize(
    ("words", "room"),
    [(230, 300), (700, 600)],
)
def test_a_very_long_caption_is_told_the_length_that_holds_it_or_the_longest(check, add, words, room):
    caption(add("fox/a.png", 256, 256), "word " * words)
    count, longest = (lambda text: len(text.split())), {"max_token_length": 225}
    (problem,) = check(count_tokens=count, captions=longest).problems
    assert problem.code == "dataset.long-captions" and problem.fix.endswith(f" to {room}")
    left = check(count_tokens=count, captions={"max_token_length": 600}).problems
    assert [problem.fix for problem in left] == ([] if words <= 600 else ["shorten them"])


def test_prefix_and_suffix_count_as_tokens(check, add):
    caption(add("fox/a.png", 256, 256), "one two")
    report = check(count_tokens=lambda text: len(text.split()), captions={"caption_prefix": "zero"})
    assert report.rows[0].tokens == 3 and report.rows[0].caption == "zero one two"


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("short\n" + "word " * 80, {"caption_lines": "random"}),
        ("a {b|" + "word " * 80 + "}", {"enable_wildcard": True}),
        ("tags", {"sidecars": "drawn"}),
    ],
)
def test_the_longest_caption_that_may_be_drawn_is_what_counts(check, add, text, captions):
    image = add("fox/a.png", 128, 128)
    caption(image, text)
    image.with_suffix(".caption").write_text("word " * 80)
    report = check(captions=captions, count_tokens=lambda words: len(words.split()))
    assert report.longest_tokens is not None and report.longest_tokens >= 80
    assert any("longer than 75 tokens" in each.what for each in report.problems)


@pytest.mark.slow
def test_the_report_needs_no_torch(tmp_path):
    code = "import sys; import core.dataset.preflight, core.dataset.sources.archive; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- length


def counts(views, batches, size, accumulation=1):
    """Epochs of so many views and batches, all alike."""
    updates = -(-batches // accumulation)
    return SimpleNamespace(
        views=views,
        steady=True,
        full=False,
        batch_sizes=[size],
        batches_in=lambda epoch: batches,
        steps_in=lambda epoch: updates,
        first_step=lambda epoch: epoch * updates,
        epoch_of=lambda step: step // updates,
    )


def test_the_sentence_is_true_arithmetic():
    def sentence(images, views, batches, size, accumulation=1, **schedule):
        schedule["gradient_accumulation_steps"] = accumulation
        epochs = counts(views, batches, size, accumulation)
        return length_sentence(length_of(ScheduleSettings(**schedule), epochs), epochs, images, accumulation)

    assert sentence(24, 24, 6, 4, max_train_epochs=66) == "24 images x 66 epochs / batch 4 = 396 steps"
    assert sentence(1, 1, 1, 1, max_train_epochs=1) == "1 image x 1 epoch / batch 1 = 1 step"
    assert sentence(24, 60, 15, 4, max_train_epochs=2) == (
        "24 images (60 with repeats) x 2 epochs / batch 4 = 30 steps"
    )
    assert (
        sentence(24, 6, 6, 1, max_train_epochs=2) == "6 views of 24 images in rotation x 2 epochs / batch 1 = 12 steps"
    )
    assert sentence(24, 24, 7, 4, max_train_epochs=10) == "24 images in 7 batches of up to 4 x 10 epochs = 70 steps"
    assert sentence(24, 24, 7, 4, 2, max_train_epochs=10) == (
        "24 images in 7 batches of up to 4, 2 batches per step, 4 steps per epoch x 10 epochs = 40 steps"
    )
    four = "24 images / batch 4"
    assert sentence(24, 24, 6, 4, max_train_steps=96) == f"96 steps = 16 epochs x {four}"
    assert sentence(24, 24, 6, 4, max_train_steps=6) == f"6 steps = 1 epoch x {four}"
    assert sentence(24, 24, 6, 4, max_train_steps=100) == f"100 steps, about 16.7 epochs of {four}"
    assert sentence(24, 24, 6, 4, max_train_steps=4) == f"4 steps, about 0.667 epochs of {four}"


def test_steps_win_over_epochs_and_the_advice_fills_in_for_both():
    def chosen(**schedule):
        length = length_of(ScheduleSettings(**schedule), counts(24, 6, 4))
        return length.total_steps, length.epochs, length.chosen_by

    assert chosen(max_train_steps=100, max_train_epochs=3) == (100, 17, "steps")
    assert chosen(max_train_epochs=3) == (18, 3, "epochs")
    assert chosen() == (6 * advised_epochs(24, 4), advised_epochs(24, 4), "advice")
    both = {"max_train_steps": 100, "max_train_epochs": 3, "compatibility": "kohya"}
    assert chosen(**both) == (18, 3, "epochs"), "sd-scripts computes the steps of the epochs"
    assert chosen(max_train_steps=100, compatibility="kohya") == (100, 17, "steps")


@given(views=st.integers(1, 100_000), batch=st.integers(1, 64))
def test_the_advised_length_keeps_its_promises(views, batch):
    epochs = advised_epochs(views, batch)
    assert epochs * -(-views // batch) >= 100  # updates
    assert epochs >= 10
    if batch == 1:
        assert epochs <= 100
        if 15 <= views <= 300:  # rounding to whole epochs moves the total by at most half a pass
            assert 1500 - views / 2 <= epochs * views <= 3000 + views / 2
        assert advised_epochs(views + 1) <= epochs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_steps_shown_are_the_steps_trained(tmp_path_factory, data):
    from PIL import Image

    folder = tmp_path_factory.mktemp("set")
    for name in data.draw(st.lists(st.sampled_from(["1_a", "3_b", "loose"]), min_size=1, max_size=3, unique=True)):
        (folder / name).mkdir()
        for index in range(data.draw(st.integers(1, 6))):
            size = (data.draw(st.integers(60, 400)), data.draw(st.integers(60, 400)))
            Image.new("RGB", size).save(folder / name / f"{index}.bmp")
    batch, accumulation, epochs = (data.draw(st.integers(1, top)) for top in (5, 4, 5))
    job = TrainJob.model_validate(
        {
            "dataset": {"folder": str(folder), "resolution": 128, "bucket_reso_steps": 16, "train_batch_size": batch},
            "schedule": {"max_train_epochs": epochs, "gradient_accumulation_steps": accumulation},
        }
    )
    report = preflight(job, Workspace(outputs=folder / "out"))
    made = 0
    epochs = Epochs(report.placed, job.dataset, accumulation)
    for epoch in range(report.epochs):
        made += len(epochs.groups(1, epoch))
    assert report.total_steps == made


def test_images_that_no_epoch_shows_do_not_count_as_training_and_say_why(tmp_path, check, add):
    for number in range(3):
        add(f"fox/{number}.png", 128, 128)
    for number in range(5):
        add(f"dog/{number}.png", 128, 128)
    dataset = {"reg_data_dir": str(tmp_path / "dog")}
    report = check(dataset=dataset, model={"compatibility": "sd-scripts-0.10"})
    assert report.trained == 6 and report.sentence.startswith("6 images x")
    assert [(row.key, row.why) for row in report.rows if not row.trains] == [
        (("dog", f"{number}.png"), "is not needed to balance the training images") for number in (3, 4)
    ]
    assert any(each.code == "dataset.regularization-unused" for each in report.problems)
    assert check(dataset=dataset).trained == 8
    report = check(dataset={"short_batches": "drop", "train_batch_size": 4})
    assert report.trained == 0 and all("never fills a batch" in row.why for row in report.rows)
    assert not report.ok and [each.code for each in errors(report.problems)] == ["dataset.no-batches"]


def test_validation_that_holds_out_no_image_is_told(tmp_path, check, add):
    def told(**groups):
        return "dataset.no-validation" in [each.code for each in check(**groups).problems if each.level == "advice"]

    split = {"validation": {"validation_split": 0.5}}
    first = add("fox/a.png", 128, 128)
    named = {"dataset": {"sources": [{"folder": str(tmp_path / "fox"), "validation_images": ["gone.png"]}]}}
    assert told(**split) and told(**named) and not told()
    (tmp_path / "fox" / "copy.png").write_bytes(first.read_bytes())
    assert told(**split)  # copies stay together
    add("fox/b.png", 160, 128)
    assert not told(**split)


# ---- fingerprint


def test_the_fingerprint_names_every_image_with_content_caption_and_place(check, add, tmp_path):
    import hashlib
    import json

    path = add("fox/a.png", 256, 256)
    caption(path)
    placed = check().placed
    fingerprint = dataset_fingerprint(placed, memo_path=tmp_path / "index.sqlite")
    (row,) = json.loads(json.dumps(fingerprint))["images"]
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row["source"], row["path"], row["caption"], row["bucket"]) == ("fox", "a.png", "a fox", [128, 128])


def test_hashes_are_read_once_and_again_after_a_change(check, add, tmp_path, monkeypatch):
    path = add("fox/a.png", 256, 256)
    memo = tmp_path / "index.sqlite"
    images = [each.image for each in check().placed]
    first = content_hashes(images, memo)
    monkeypatch.setattr("core.dataset.caches.contents._sha256", lambda image: "read again")
    assert content_hashes(images, memo) == first
    path.write_bytes(path.read_bytes() + b"x")
    changed = [each.image for each in check().placed]
    assert content_hashes(changed, memo) == {("fox", "a.png"): "read again"}


def test_an_image_that_vanished_is_named(check, add):
    path = add("fox/a.png", 256, 256)
    images = [each.image for each in check().placed]
    path.unlink()
    with pytest.raises(ProblemsError, match=r"a\.png"):
        content_hashes(images)


def test_what_a_reader_remarks_of_a_damaged_file_is_advice_and_never_a_raw_warning(check, add, tmp_path, recwarn):
    """An EXIF directory of five entries that holds none, in one of two images; it trains all the same."""
    caption(add("fox/good.png"))
    damaged = add("fox/damaged.png").with_suffix(".jpg")
    with Image.open(damaged.with_suffix(".png")) as image:
        image.save(damaged, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    damaged.with_suffix(".png").unlink()
    caption(damaged)
    for _ in range(2):  # the second time from memory
        report = check(decode=True)
        (told,) = [each for each in report.problems if "EXIF" in each.what]
        assert told.level == "advice" and "damaged.jpg" in told.what and "good.png" not in told.what
        assert report.trained == 2
    assert not [each for each in recwarn if "PIL" in str(each.filename)]
