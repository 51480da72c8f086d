"""The dataset doctor finds what was put into the starter's drawings, and nothing in the drawings themselves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from core.dataset.buckets.aspect_ratio import fit_to_bucket, plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import Caption, read_caption
from core.dataset.doctor import images as doctor_images
from core.dataset.doctor import trash
from core.dataset.doctor.captions import caption_findings
from core.dataset.doctor.examine import KINDS, examine, treat
from core.dataset.doctor.finding import ExaminedImage
from core.dataset.doctor.images import (
    CloserLook,
    Reading,
    appearance_findings,
    close_pairs,
    difference,
    duplicate_findings,
    frame_share,
    size_findings,
)
from core.dataset.images.look import Look
from core.dataset.preflight import preflight
from core.dataset.sources.scan import scan
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.source import Source
from core.settings.dataset.validation import ValidationSettings
from core.settings.job import TrainJob
from tests.dataset.test_placing import image as image_info


def drawing(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """Hard-edged boxes: sharp, and as different from each other as photographs are."""
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), random.integers(0, 256, 3), dtype=np.uint8)
    for _ in range(12):
        x, y = random.integers(0, width), random.integers(0, height)
        pixels[y : y + random.integers(8, 40), x : x + random.integers(8, 40)] = random.integers(0, 256, 3)
    pixels[0, :5] = pixels[-1, -5:] = (255, 0, 0)
    pixels[0, 5:9] = pixels[-1, -9:-5] = (0, 255, 0)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Eight different drawings, each with a caption of its own."""
    root = tmp_path / "set"
    root.mkdir()
    words = "red green blue black white brown golden silver".split()
    for number, word in enumerate(words):
        drawing(number).save(root / f"{word}.png")
        (root / f"{word}.txt").write_text(f"a {word} thing")
    return root


def placed(*sources: Source):
    settings = DatasetSettings(sources=list(sources), resolution=64)
    found = concepts(settings, CaptionSettings(), ValidationSettings())
    plan = plan_buckets(settings)
    result = []
    for image in scan(found).images:
        concept = found[image.concept]
        caption = read_caption(image, concept.captions)
        result.append(Placed(image, plan.assign(image.width, image.height), caption, concept))
    return result


def findings(*sources, memo=None, **options):
    sources = [source if isinstance(source, Source) else Source(folder=str(source)) for source in sources]
    return {finding.kind: finding for finding in examine(placed(*sources), memo, **options)}


def names(finding):
    return [sorted(seen.key[1] for seen in group) for group in finding.images]


def test_a_sound_dataset_has_no_findings(folder):
    assert findings(folder) == {}


def test_exact_and_near_copies_are_found_and_the_best_is_kept(folder):
    shutil.copy(folder / "red.png", folder / "red_copy.png")
    original = Image.open(folder / "blue.png")
    original.resize((48, 40), Image.Resampling.LANCZOS).save(folder / "blue_small.jpg", quality=60)
    original.resize((160, 134), Image.Resampling.BICUBIC).save(folder / "blue_large.webp", quality=50)
    found = findings(folder)
    assert names(found["copy"]) == [["red.png", "red_copy.png"]]
    assert [key[1] for key in found["copy"].advised] == ["red_copy.png"]  # it has no caption
    assert names(found["near copy"]) == [["blue.png", "blue_large.webp", "blue_small.jpg"]]
    assert sorted(key[1] for key in found["near copy"].advised) == ["blue_large.webp", "blue_small.jpg"]


def test_a_copy_in_the_validation_folder_is_an_error_and_one_in_the_class_folder_advice(folder, tmp_path):
    for name in ("held", "class"):
        (tmp_path / name).mkdir()
        drawing(100 + len(name)).save(tmp_path / name / "own.png")
        (tmp_path / name / "own.txt").write_text(f"the {name}'s own")
    shutil.copy(folder / "red.png", tmp_path / "held" / "x.png")
    drawing(2).resize((48, 40)).save(tmp_path / "held" / "y.png")
    shutil.copy(folder / "green.png", tmp_path / "class" / "z.png")
    found = findings(
        folder,
        Source(folder=str(tmp_path / "held"), role="validation"),
        Source(folder=str(tmp_path / "class"), role="regularization"),
    )
    assert found["leak"].level == "error" and found["leak"].problem().level == "error"
    assert found["leak"].advised == (("held", "x.png"),)
    assert found["near leak"].level == "advice" and found["near leak"].advised == (("held", "y.png"),)
    assert found["class"].advised == (("class", "z.png"),) and found["class"].level == "advice"
    assert next(iter(found)) == "leak"


@pytest.mark.parametrize(("role", "kind"), [("regularization", "class"), ("validation", "leak")])
def test_duplicates_across_roles_never_advise_to_move_training_images(folder, tmp_path, role, kind):
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "red.png", folder / "red_copy.png")
    drawing(2).resize((48, 40)).save(folder / "blue_small.png")
    shutil.copy(folder / "red.png", tmp_path / "other" / "x.png")
    drawing(2).resize((160, 134)).save(tmp_path / "other" / "y.png")
    found = findings(folder, Source(folder=str(tmp_path / "other"), role=role))
    assert found[kind].count == 3 and found[kind].advised == (("other", "x.png"),)
    assert found["near " + kind].count == 3 and found["near " + kind].advised == (("other", "y.png"),)


def test_regularization_images_may_be_blurry_and_alike(folder, tmp_path):
    (tmp_path / "class").mkdir()
    drawing(20, 256, 200).filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "class" / "blurred.png")
    drawing(21).save(tmp_path / "class" / "one.png")
    drawing(21).resize((48, 40), Image.Resampling.LANCZOS).save(tmp_path / "class" / "near.jpg", quality=60)
    source = Source(folder=str(tmp_path / "class"), role="regularization")
    assert not {"blur", "near copy"} & findings(folder, source).keys()
    assert {"blur", "near copy"} <= findings(folder, source.model_copy(update={"role": "train"})).keys()


def test_blurred_plain_framed_small_enlarged_and_long_images_are_found(folder):
    drawing(20, 256, 200).filter(ImageFilter.GaussianBlur(4)).save(folder / "blurred.png")
    Image.new("RGB", (90, 90), (20, 30, 40)).save(folder / "plain.png")
    barred = Image.new("RGB", (96, 100))
    barred.paste(drawing(21), (0, 10))
    barred.save(folder / "barred.png")
    drawing(22, 60, 60).save(folder / "small.png")
    drawing(23, 400, 100).save(folder / "long.png")
    found = findings(folder)
    for kind, name in {
        "blur": "blurred.png",
        "plain": "plain.png",
        "border": "barred.png",
        "small": "small.png",
        "long": "long.png",
    }.items():
        assert names(found[kind]) == [[name]], kind
    assert found["border"].images[0][0].note == "20% is border"
    assert "enlarged" not in found
    drawing(24, 66, 66).save(folder / "little.png")
    settings = DatasetSettings(resolution=128)
    plan = plan_buckets(settings)
    larger = [
        Placed(each.image, plan.assign(each.image.width, each.image.height), each.caption)
        for each in placed(Source(folder=str(folder)))
    ]
    enlarged = {finding.kind: finding for finding in examine(larger, None)}["enlarged"]
    assert ["little.png"] in names(enlarged) and ["small.png"] not in names(enlarged)


def test_a_thing_on_an_even_ground_is_not_framed():
    round_one = Image.new("RGB", (100, 100), "white")
    ys, xs = np.mgrid[:100, :100]
    pixels = np.asarray(round_one).copy()
    pixels[(xs - 50) ** 2 + (ys - 50) ** 2 < 900] = (200, 30, 30)
    assert frame_share(pixels) == 0
    pixels[:] = 0
    pixels[20:80] = np.asarray(drawing(3, 100, 60))
    assert frame_share(pixels) == pytest.approx(0.4)


def test_captions_that_teach_little_are_found(folder):
    (folder / "red.txt").unlink()
    (folder / "green.txt").write_text("green")
    (folder / "green.txt").rename(folder / "IMG_0231.txt")
    (folder / "green.png").rename(folder / "IMG_0231.png")
    (folder / "IMG_0231.txt").write_text("img 0231")
    long = "a tall old tower beside a calm lake under a cloudy autumn sky"
    (folder / "blue.txt").write_text(long)
    (folder / "black.txt").write_text("Under a cloudy autumn sky, a tall old tower, beside a calm lake")
    found = findings(folder)
    assert names(found["no caption"]) == [["red.png"]]
    assert found["no caption"].images[0][0].note == "default: set"
    assert names(found["file name"]) == [["IMG_0231.png"]]
    assert names(found["alike captions"]) == [["black.png", "blue.png"]]
    for path in folder.glob("*.txt"):
        path.write_text("a fox")
    assert "one caption" in findings(folder)


def test_tags_of_one_image_are_found_and_sentences_are_not_taken_for_tags(folder):
    for path in sorted(folder.glob("*.txt")):
        path.write_text("fox, red fur, forest, looking at viewer, " + path.stem[:1])
    (folder / "red.txt").write_text("fox, red fur, forrest, looking at viewer, r")
    found = findings(folder)["rare tags"]
    assert ["red.png"] in names(found)
    assert "forrest" in next(seen.note for group in found.images for seen in group if seen.key[1] == "red.png")
    for path in folder.glob("*.txt"):
        path.write_text(f"a {path.stem} thing on a table, in front of an old brick wall, seen from above, at night")
    assert "rare tags" not in findings(folder)


def test_a_preflights_report_says_which_images_are_held_out(folder, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(folder / "red.png", tmp_path / "more" / "again.png")
    sources = [Source(folder=str(folder), validation_images=["red.png"]), Source(folder=str(tmp_path / "more"))]
    job = TrainJob(dataset=DatasetSettings(sources=sources, resolution=64, more_resolutions=[96]))
    report = preflight(job, Workspace(outputs=tmp_path / "out"))
    assert report.held_out == "1 image held out for validation: set/red.png; none of more"
    found = {finding.kind: finding for finding in examine(report, None)}
    assert found["leak"].advised == (("set", "red.png"),) and found["leak"].count == 2


def test_treating_a_finding_moves_the_advised_and_can_be_undone(folder):
    shutil.copy(folder / "red.png", folder / "red_copy.png")
    before = sorted(path.name for path in folder.iterdir())
    found = findings(folder)["copy"]
    token = treat(found, folder)
    assert not (folder / "red_copy.png").exists() and "copy" not in findings(folder)
    assert trash.undoable_actions(folder)[0].reason == KINDS["copy"]
    trash.put_back(token)
    assert sorted(path.name for path in folder.iterdir()) == before
    (folder / "red.txt").unlink()
    with pytest.raises(ProblemsError) as caught:
        treat(findings(folder)["no caption"], folder)
    assert caught.value.codes == ["doctor.nothing-to-move"]


def test_files_that_cannot_be_read_are_found_and_moved_with_their_captions(folder, tmp_path):
    whole, folder_of = (folder / "red.png").read_bytes(), {"cut.png": 200, "text.png": 0}
    for name, most in folder_of.items():
        (folder / name).write_bytes(whole[:most] or b"no image")
        (folder / name).with_suffix(".txt").write_text("a fox")
    job = TrainJob(dataset=DatasetSettings(sources=[Source(folder=str(folder))], resolution=64))
    report = preflight(job, Workspace(outputs=tmp_path / "out"), decode=True)
    found = next(each for each in examine(report, None) if each.kind == "unreadable")
    assert found.count == 2 and found.action == "put away" and {key[1] for key in found.advised} == {*folder_of}
    assert all(image.note for (image,) in found.images)
    token = treat(found, folder)
    assert not [path for path in folder.iterdir() if path.stem in ("cut", "text")]
    again = preflight(job, Workspace(outputs=tmp_path / "out"), decode=True)
    assert again.ok and "unreadable" not in {each.kind for each in examine(again, None)}
    trash.put_back(token)
    assert (folder / "cut.png").is_file() and (folder / "text.txt").is_file()


def test_a_mask_that_another_image_uses_stays(folder, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("red", "blue"):
        Image.new("L", (96, 80), 200).save(masks / f"{name}.png")
    again = tmp_path / "again"
    again.mkdir()
    for name in ("red", "blue"):
        shutil.copy(folder / f"{name}.png", again / f"{name}.png")
    sources = [Source(folder=str(each), conditioning_data_dir=str(masks)) for each in (folder, again)]
    job = TrainJob(dataset=DatasetSettings(sources=sources, masked_loss=True, resolution=64))
    found = {finding.kind: finding for finding in examine(preflight(job, Workspace(outputs=tmp_path / "out")), None)}
    treat(found["copy"], folder)
    assert sum((each / "red.png").exists() for each in (folder, again)) == 1
    assert sorted(path.name for path in masks.iterdir()) == ["blue.png", "red.png"]


def test_one_file_named_by_two_entries_is_never_put_away(folder, tmp_path):
    twice = placed(Source(folder=str(folder)))
    from dataclasses import replace

    other = [replace(each, image=replace(each.image, source="other")) for each in twice[:1]]
    found = {finding.kind: finding for finding in examine([*twice, *other], None)}["copy"]
    assert found.advised == () and found.action == "open"


def test_findings_are_plain_data_and_ids_stay(folder, tmp_path):
    (folder / "red.txt").unlink()
    memo = tmp_path / "memo.sqlite"
    steps = []
    first = findings(folder, memo=memo, progress=lambda done, total: steps.append((done, total)))["no caption"]
    again = findings(folder, memo=memo)["no caption"]
    said = json.loads(json.dumps(first.to_dict()))
    assert said["title"] == KINDS["no caption"]
    assert first.id == again.id == said["id"] and said["images"][0][0]["key"] == ["set", "red.png"]
    assert steps and steps[-1][0] == steps[-1][1]


def test_an_examination_can_be_cancelled(folder):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        findings(folder, cancel=token)


def test_close_pairs_are_exactly_those_within_the_distance():
    values = np.random.default_rng(1).integers(0, 2**16, 200)  # 16 bits: many pairs are close
    hashes = [f"{int(value):016x}" for value in values]
    pairs = {(i, j) for i in range(200) for j in range(i + 1, 200) if int(values[i] ^ values[j]).bit_count() <= 3}
    assert set(close_pairs(hashes, 3)) == pairs and pairs


# ---- at the edges, without files


def examined(number=0, text="", source="file", role="train", size=(512, 512), bucket=None, **more):
    where = fit_to_bucket(size, bucket or size)
    caption = Caption(text, source, Path(f"{number}.txt"))
    return ExaminedImage(Placed(replace(image_info(number, size=size), **more), where, caption), role)


def kinds(found):
    return [finding.kind for finding in found]


WORDS = [f"w{number:02}" for number in range(30)]


def words(count, *others):
    return " ".join([*WORDS[:count], *others])


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["a fox"] * 2, []),
        (["a fox"] * 3, ["one caption"]),
        (["a fox", "a fox", "an owl"], ["alike captions"]),
        (["a fox", "A_Fox.", "an owl"], ["alike captions"]),
        ([words(8), words(9)], []),
        ([words(9), words(10)], ["alike captions"]),
        ([words(18, "x"), words(18, "y")], ["alike captions"]),
        ([words(17, "x"), words(17, "y")], []),
        (["fox, red, den, " + each for each in "abcde"], ["rare tags"]),
        (["fox, red, den, " + each for each in "abcd"], []),
        (["fox, red, " + each for each in "abcde"], []),
        ([f"fox x y, red x y, den x y, {each} x y" for each in "abcde"], ["rare tags"]),
        ([f"fox x y, red x y, den x y, {each} x y z" for each in "abcde"], []),
    ],
)
def test_captions_are_alike_or_tags_from_so_many_words(texts, found):
    assert kinds(caption_findings([examined(number, text) for number, text in enumerate(texts)])) == found


def test_rare_tags_are_counted_and_three_of_an_image_are_shown():
    texts = ["fox, red, den, sea, " + each for each in ("a", "b", "c", "d, e, f", "g, h, i, j")]
    (finding,) = caption_findings([examined(number, text) for number, text in enumerate(texts)])
    assert "10 of 14" in finding.what
    assert [seen.note for (seen,) in finding.images] == ["a", "b", "c", "d, e, f", "g, h, i and 1 more"]


def test_spellings_of_a_tag_count_as_one_as_in_captions():
    texts = [
        "fox, red_hair, den",
        "Fox, red hair, den",
        r"fox, red\ hair, den",
        "fox,Red  Hair,den",
        "fox\nred hair, den",
    ]
    marked = [f"{text}, sea, {end}" for text, end in zip(texts, ("a_b", "c", "c", "c", "c"), strict=True)]
    found = caption_findings([examined(*each) for each in enumerate(marked)])
    (finding,) = [each for each in found if each.kind == "rare tags"]
    assert finding.what == "1 of 6 tags are used by one image only"
    assert [seen.note for (seen,) in finding.images] == ["a_b"]
    alike = [f"{words(7)} {tag}" for tag in ("red_hair", "red hair")]
    assert kinds(caption_findings([examined(*each) for each in enumerate([*alike, "else"])])) == ["alike captions"]


@pytest.mark.parametrize(
    ("source", "text", "note"),
    [("words", "set", "default: set"), ("words", " ", "empty caption"), ("none", "", "empty caption")]
    + [
        ("blank", "", "empty caption"),
        ("metadata", " ", "empty caption"),
        ("metadata", "fox", None),
        ("file", "fox", None),
    ],
)
def test_what_counts_as_a_caption(source, text, note):
    found = caption_findings([examined(text=text, source=source)])
    assert [(each.kind, each.images[0][0].note) for each in found] == ([("no caption", note)] if note else [])
    assert caption_findings([examined(text=text, source=source, role="regularization")]) == []


@pytest.mark.parametrize(
    ("stem", "text", "found"),
    [("IMG_0231", "img 0231", True), ("fox", "fox", False), ("IMG_0231", "IMG 0232", False), ("1", "a 1", False)],
)
def test_a_file_name_with_a_number_is_no_caption(stem, text, found):
    items = [examined(text=text, path=Path(f"{stem}.png"))]
    assert kinds(caption_findings(items)) == ["file name"] * found


@pytest.mark.parametrize(
    ("size", "bucket", "found"),
    [((64, 64), (64, 64), []), ((63, 64), (64, 64), ["small"]), ((64, 63), (64, 64), ["small"])]
    + [((100, 100), (150, 150), []), ((100, 100), (152, 152), ["enlarged"]), ((60, 60), (120, 120), ["small"])]
    + [((300, 100), None, []), ((301, 100), None, ["long"]), ((100, 301), None, ["long"])],
)
def test_sizes_are_found_from_their_limits_on(size, bucket, found):
    assert kinds(size_findings([examined(size=size, bucket=bucket)])) == found


def test_the_most_enlarged_the_longest_and_the_most_blurred_come_first(monkeypatch):
    items = [examined(n, size=(100, 100), bucket=(side, side)) for n, side in enumerate((160, 300, 200))]
    items += [examined(3 + n, size=(width, 100)) for n, width in enumerate((400, 900, 500))]
    found = {finding.kind: names(finding) for finding in size_findings(items)}
    assert found == {"enlarged": [["1.png"], ["2.png"], ["0.png"]], "long": [["4.png"], ["5.png"], ["3.png"]]}
    blurs = (50, 1, 20, 100, 100, 100)
    items = [replace(item, look=Look(blur=blur)) for item, blur in zip(items, blurs, strict=True)]
    (finding,) = appearance_findings(items, Reading())
    assert names(finding) == [["1.png"], ["2.png"], ["0.png"]]


@pytest.mark.parametrize(
    ("look", "frame", "found"),
    [
        ({"blur": 100.0}, 0, []),
        ({"blur": 99.9}, 0, ["blur"]),
        ({"blur": 0.0, "border": 1.0}, 0, ["plain"]),
        ({"blur": 200.0, "border": 0.99}, 0, []),
        ({"blur": 200.0, "border": 0.03}, 0.03, ["border"]),
        ({"blur": 200.0, "border": 0.03}, 0.029, []),
        ({"blur": 200.0, "border": 0.029}, 1.0, []),
    ],
)
def test_looks_are_found_from_their_limits_on(monkeypatch, look, frame, found):
    closer = lambda images, *_: {each.key: CloserLook(np.zeros((16, 16)), frame) for each in images}  # noqa: E731
    monkeypatch.setattr(doctor_images, "second_look", closer)
    assert kinds(appearance_findings([replace(examined(), look=Look(**look))], Reading())) == found


@pytest.mark.parametrize(
    ("original", "copy"),
    [
        ("bear", "bear copy"),
        ("bear", "bear copy 2"),
        ("bear", "bear_copy"),
        ("a long name", "a long name - Copy"),
        ("a long name", "b - Copy (2)"),
        ("bear of the north", "bear (1)"),
        ("bear of the north", "bear(1)"),
        ("IMG_0231", "IMG_0231_1"),
        ("the bear", "Copy of bear"),
        ("bear", "bear_from_phone"),  # no copy's name: the shorter one
        ("photocopy of it", "it (3)"),
        ("1", "2"),
    ],
)
def test_of_identical_files_the_one_with_the_original_name_is_kept(original, copy):
    items = [examined(copy, "fox"), examined(original, "fox")]
    assert min(items, key=doctor_images._keep_order) is items[1]
    captioned, bare = items[0], examined(original, source="words")
    assert min(captioned, bare, key=doctor_images._keep_order) is captioned


def test_of_duplicates_the_trained_captioned_largest_is_kept():
    best_first = [
        examined(9, "fox", bytes=9),
        examined(1, "fox", bytes=8),
        examined(2, "fox", bytes=8),
        examined(0, "fox", size=(512, 511), bytes=99),
        examined(0, "fox", source="words", size=(900, 900)),
        examined(0, "fox", role="regularization", size=(900, 900)),
        examined(0, "fox", role="validation", size=(900, 900)),
    ]
    assert sorted(best_first[::-1], key=doctor_images._keep_order) == best_first


@pytest.mark.parametrize(
    ("bits", "gray", "found"),
    [(0xFF00, 4.0, ["near copy"]), (0x1FF00, 4.0, []), (0xFF00, 4.01, []), (0x0001, 0.0, [])],
    ids=["8 bits and half the contrast", "9 bits", "more than half the contrast", "one color"],
)
def test_near_copies_differ_by_so_much(monkeypatch, bits, gray, found):
    """The first has the bit 1, the other one those that it differs in: a hash of zeros is that of one color."""
    items = [examined(n, f"fox {'ab'[n]}", bytes=n + 1) for n in range(2)]
    closer = lambda images, *_: {  # noqa: E731
        each.key: CloserLook(np.full((16, 16), gray * each.bytes, np.float32), 0) for each in images
    }
    monkeypatch.setattr(doctor_images, "second_look", closer)
    items = [replace(item, look=Look(dhash=f"{1 ^ (bits * n):016x}")) for n, item in enumerate(items)]
    assert kinds(duplicate_findings(items, Reading())) == found


def test_the_difference_of_two_grays_is_measured_by_the_smaller_contrast():
    board = np.indices((16, 16)).sum(0) % 2 * 2.0 - 1
    assert difference(20 * board, 40 * board) == pytest.approx(1.0)
    assert difference(0 * board, 4 * board) == pytest.approx(0.5), "of at least 8 levels"
