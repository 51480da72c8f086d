"""The image tools: what they write, what they leave out, and that the images themselves stay as they are."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from core import tasks
from core.cli.main import main
from core.control.detectors.mtcnn import Face, FaceDetector, weights_folder
from core.record import atomic
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.presets.files import dump
from core.settings.tools.images import FaceSettings
from core.tools.images import faces
from core.tools.images.faces import face_window, rotated, window_around
from core.tools.images.folders import images_of, plan
from tests.refusals import refused
from tests.tasks import surroundings


def made(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    made(100, 60).save(root / "wide.png")
    (root / "wide.txt").write_text("a wide thing")
    made(30, 40, seed=1).save(root / "sub" / "small.jpg")
    (root / "broken.png").write_bytes(b"no image")
    (root / "notes.md").write_text("x")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class Report:
    """What a tool found, under the names of its facts."""

    def __init__(self, facts):
        self.captions, self.others, self.undo = (facts.get(name) for name in ("captions", "others", "undo"))
        self.written = [Path(path) for path in facts.get("written", ())]
        self.skipped = [(Path(each["path"]), each["why"]) for each in facts.get("skipped", ())]


def use(folder, /, cancel=None, detector=None, **asked):
    task = tasks.named(asked.pop("action"))
    known = task.settings_of(task.job()).__class__.model_fields
    asked = {"folder": str(folder), **({"output": str(folder.parent / "out")} if "output" in known else {})} | asked
    job = build(task.job, {task.name: asked})
    before = tree(folder)
    context = surroundings(Workspace(outputs=folder.parent / "outputs"), cancel)
    if detector:
        outcome = faces.do(task.settings_of(job), plan(task.settings_of(job), context.workspace), context, detector)
    else:
        outcome = task.start(job, context)
    if not asked.get("number_in_place") and task.name != "undo_number":
        assert tree(folder) == before
    return Report(outcome.facts), list(outcome.lines)


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".jpg", ".webp"):
            with Image.open(path) as image:
                found[path.relative_to(folder).as_posix()] = image.size
    return found


def test_copies_of_each_largest_size_come_from_the_image_itself(folder, tmp_path):
    report, lines = use(folder, action="resize", max_resolution=[32, (16, 16)], divisible_by=4)
    # 100 x 60 at 1024 pixels: 41 x 24, and 20 x 12 at 256; 30 x 40 likewise 27 x 36 and 13 x 18; cut to fours
    assert sizes(tmp_path / "out") == {
        "sub/small+16x16.png": (12, 16),
        "sub/small+32x32.png": (24, 36),
        "wide+16x16.png": (20, 12),
        "wide+32x32.png": (40, 24),
    }
    assert (tmp_path / "out" / "wide+16x16.txt").read_text() == "a wide thing" and report.captions == 2
    assert [path.name for path, _ in report.skipped] == ["broken.png"] and report.others == 1
    assert any(line.startswith("broken.png ") for line in lines) and "1 skipped" in lines[-1]
    alone, _ = use(folder, action="resize", max_resolution=[(16, 16)], divisible_by=4, output=str(tmp_path / "alone"))
    name = "wide+16x16.png"
    assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() and alone.written


def test_an_image_below_a_limit_is_copied_once_and_never_enlarged(folder, tmp_path):
    report, _ = use(folder, action="resize", max_resolution=[512, 256], format="jpg")
    assert sizes(tmp_path / "out") == {"sub/small+512x512.jpg": (30, 40), "wide+512x512.jpg": (100, 60)}
    assert sum("256x256" in why for _, why in report.skipped) == 2


def test_a_second_run_keeps_what_is_there(folder, tmp_path):
    use(folder, action="resize", max_resolution=[32])
    before = tree(tmp_path / "out")
    report, _ = use(folder, action="resize", max_resolution=[32], interpolation="nearest")
    assert not report.written and tree(tmp_path / "out") == before
    assert len(report.skipped) == 3


def test_cropping_gives_exactly_the_size_from_the_middle(folder, tmp_path):
    use(folder, action="crop", crop_size=(64, 64))
    assert set(sizes(tmp_path / "out").values()) == {(64, 64)}
    report, _ = use(folder, action="crop", crop_size=(64, 64), crop_scaled=False, output=str(tmp_path / "b"))
    assert not report.written and any("is 30 x 40, smaller than 64 x 64" in why for _, why in report.skipped)


def test_converting_keeps_transparency_or_puts_it_on_white_and_copies_what_fits_already(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    clear = made(20, 20, "RGBA")
    pixels = np.asarray(clear).copy()
    pixels[:10, :, 3], pixels[10:, :, 3] = 0, 255
    Image.fromarray(pixels).save(root / "clear.png")
    made(20, 20).save(root / "photo.jpg", quality=40)
    use(root, action="convert", format="webp")
    with Image.open(tmp_path / "out" / "clear.webp") as written:
        assert np.array_equal(np.asarray(written.convert("RGBA"))[10:], pixels[10:])  # at quality 100 nothing is lost
    use(root, action="convert", format="jpg", output=str(tmp_path / "jpg"))
    assert (tmp_path / "jpg" / "photo.jpg").read_bytes() == (root / "photo.jpg").read_bytes()
    with Image.open(tmp_path / "jpg" / "clear.jpg") as image:
        assert np.asarray(image)[:8].min() > 240
    made(20, 20).save(root / "moves.webp", save_all=True, append_images=[made(20, 20, seed=2)])
    use(root, action="convert", format="webp", output=str(tmp_path / "still"))
    with Image.open(tmp_path / "still" / "moves.webp") as image:
        assert not image.is_animated


def test_two_images_that_would_become_one_file_are_told_apart(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    made(20, 20).save(root / "a.png")
    made(20, 20, seed=2).save(root / "a.jpg")
    report, _ = use(root, action="convert", format="webp")
    assert len(report.written) == 1 and "would overwrite a.webp" in report.skipped[0][1]


def test_masks_follow_their_image_in_size_and_name(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    made(64, 64).save(root / "a.png")
    made(64, 64, seed=1).save(root / "a-masklabel.png")
    use(root, action="resize", max_resolution=[32])
    assert sizes(tmp_path / "out") == {"a+32x32-masklabel.png": (32, 32), "a+32x32.png": (32, 32)}
    use(root, action="number", output=str(tmp_path / "n"))
    assert set(sizes(tmp_path / "n")) == {"0001.png", "0001-masklabel.png"}


# ---- numbers


def numbered(root: Path) -> dict[str, bytes]:
    root.mkdir()
    for name in ("fox10", "fox2", "0001"):
        made(20, 20, seed=len(name)).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(name)
    (root / "fox2_flip.npz").write_bytes(b"npz of fox2")
    (root / "fox2-masklabel.png").write_bytes((root / "fox2.png").read_bytes())
    return tree(root)


def test_numbered_copies_keep_the_natural_order_and_their_captions(tmp_path):
    numbered(tmp_path / "set")
    use(tmp_path / "set", action="number", number_prefix="fox_", number_start=5, number_digits=3)
    out = tmp_path / "out"
    assert [(out / f"fox_00{n}.txt").read_text() for n in (5, 6, 7)] == ["0001", "fox2", "fox10"]
    assert (out / "fox_006.png").read_bytes() == (tmp_path / "set" / "fox2.png").read_bytes()


def test_linked_folders_are_read_as_a_training_reads_them_and_a_loop_ends(tmp_path):
    numbered(tmp_path / "disk")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "10_fox").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "set", target_is_directory=True)
    found, _ = images_of(tmp_path / "set", recursive=True)
    assert len(found) == 4 and {path.parent.name for path in found} == {"10_fox"}


def test_of_two_images_of_one_stem_each_takes_the_caption_that_training_reads(tmp_path):
    (tmp_path / "set").mkdir()
    for name, caption in (("a.png", "a.png.txt"), ("a.jpg", "a.txt")):
        made(80, 64).save(tmp_path / "set" / name)
        (tmp_path / "set" / caption).write_text(f"of {name}")
    use(tmp_path / "set", action="number", number_start=1, number_digits=1)
    captions = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.txt")}
    assert captions == {"1.txt": "of a.jpg", "1.png.txt": "of a.png"}


def test_a_file_that_cannot_be_read_is_left_out_of_the_numbered_copies(tmp_path):
    numbered(tmp_path / "set")
    (tmp_path / "set" / "fox3.png").symlink_to(tmp_path / "nowhere.png")
    report, lines = use(tmp_path / "set", action="number")
    assert [path.name for path, _ in report.skipped] == ["fox3.png"] and "fox3.png" in " ".join(lines)
    assert len(report.written) == 4  # the others, one of them a mask


def test_numbering_in_place_takes_everything_along_and_goes_back(tmp_path):
    root = tmp_path / "set"
    before = numbered(root)
    report, lines = use(root, action="number", number_in_place=True, number_start=0)
    after = {name: data for name, data in tree(root).items() if not name.startswith("_atelier")}
    names = {"0000", "0001", "0002"}
    wanted = {f"{n}.{e}" for n in names for e in ("png", "txt")} | {"0001_flip.npz", "0001-masklabel.png"}
    assert set(after) == wanted and after["0001.txt"] == b"fox2" and after["0000.txt"] == b"0001"
    assert report.undo and "8 files renamed" in lines[0]
    use(root, action="undo_number")
    assert tree(root) == before
    with pytest.raises(ProblemsError, match="no numbering"):
        use(root, action="undo_number")
    (tmp_path / "secret.png").write_bytes(b"x")
    (root / "_atelier_trash" / "1-numbers").mkdir(parents=True)
    for names in (["a.png", "../secret.png"], [str(tmp_path / "out.png"), "0001.png"]):  # of a dataset from anywhere
        record = {"v": 1, "files": [names], "first": []}
        (root / "_atelier_trash" / "1-numbers" / "renamed.json").write_text(json.dumps(record))
        with pytest.raises(ProblemsError, match="no numbering"):
            use(root, action="undo_number")


def test_numbering_takes_along_a_caption_whose_accent_is_encoded_otherwise(tmp_path):
    for name in ("a.png", "a\u00e9.png"):
        made(80, 64).save(tmp_path / name)
    (tmp_path / "ae\u0301.txt").write_text("x")
    use(tmp_path, action="number", number_in_place=True)
    assert {"0001.png", "0002.png", "0002.txt"} <= set(tree(tmp_path))


@pytest.mark.parametrize("name", ["atomic.write_json", "new_trash_folder"])
def test_numbering_without_room_for_its_record_leaves_all_names(tmp_path, monkeypatch, name):
    before = numbered(tmp_path / "set")

    def full(*given):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(f"core.tools.images.number.{name}", full)
    with refused("disk.full"):
        use(tmp_path / "set", action="number", number_in_place=True)
    assert {key: value for key, value in tree(tmp_path / "set").items() if key in before} == before


def test_numbering_that_fails_half_way_leaves_all_names(tmp_path, monkeypatch):
    from core.tools.images import number as image_numbers

    root = tmp_path / "set"
    before = numbered(root)
    real, calls = image_numbers.atomic.replace, []

    def refuse(source, target):
        calls.append(source)
        if len(calls) == 10:
            raise PermissionError(13, "in use", str(source))
        real(source, target)

    monkeypatch.setattr(image_numbers.atomic, "replace", refuse)
    with refused("tools.rename-failed", "in use"):
        use(root, action="number", number_in_place=True, number_start=7)
    after = {name: data for name, data in tree(root).items() if not name.startswith("_atelier")}
    assert after == before and not list(root.glob(".numbering*"))


@pytest.mark.parametrize("fails", [6, 10])
def test_a_numbering_whose_error_cannot_be_reverted_keeps_its_record(tmp_path, monkeypatch, fails):
    """A share that is gone for one file: its renames fail in both directions."""
    from core.tools.images import number as image_numbers

    root = tmp_path / "set"
    before = numbered(root)
    real, calls, stuck = image_numbers.atomic.replace, [], []

    def refuse(source, target):
        calls.append(source)
        if len(calls) == fails:
            stuck.append(calls[2])
        if stuck and (len(calls) == fails or stuck[0] == target):
            raise PermissionError(13, "in use", str(source))
        real(source, target)

    with monkeypatch.context() as patch, refused("tools.rename-failed"):
        patch.setattr(image_numbers.atomic, "replace", refuse)
        use(root, action="number", number_in_place=True, number_start=7)
    assert list(root.glob(".numbering*"))
    use(root, action="undo_number")
    assert tree(root) == before


@pytest.mark.parametrize("after", [0, 1, 5, 8, 9, 12, 15])
def test_a_numbering_that_was_cut_off_can_be_taken_back(tmp_path, monkeypatch, after):
    """A power cut after so many of the 16 renames: names that are both old and new among them."""
    from core.tools.images import number as image_numbers

    root = tmp_path / "set"
    before = numbered(root)
    real, calls = image_numbers.atomic.replace, []

    def cut(source, target):
        if Path(source).name.startswith(".tmp-"):
            return real(source, target)
        calls.append(source)
        if len(calls) > after:
            raise SystemExit
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(image_numbers.atomic, "replace", cut)
        with pytest.raises(SystemExit):
            use(root, action="number", number_in_place=True, number_start=0)
    use(root, action="undo_number")
    assert tree(root) == before


def test_captions_and_masks_written_after_a_numbering_go_back_with_their_images(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for name in ("fox", "owl", "red cat"):
        made(80, 64).save(root / f"{name}.png")
    use(root, action="number", number_in_place=True)
    for name in ("0001", "0002"):
        (root / f"{name}.txt").write_text(name)
        made(80, 64).save(root / f"{name}-masklabel.png")
    (root / "0003.png").unlink()
    _, lines = use(root, action="undo_number")
    names = {"fox.png", "fox.txt", "fox-masklabel.png", "owl.png", "owl.txt", "owl-masklabel.png"}
    assert set(tree(root)) == names and (root / "fox.txt").read_text() == "0001"
    assert lines == ["1 numbered file not found", "6 files have their original names again"]


@pytest.mark.parametrize("after", [1, 4, 8, 11])
def test_a_way_back_that_was_cut_off_goes_on(tmp_path, monkeypatch, after):
    from core.tools.images import number as image_numbers

    root = tmp_path / "set"
    before = numbered(root)
    use(root, action="number", number_in_place=True, number_start=0)
    real, calls = image_numbers.atomic.replace, []

    def cut(source, target):
        calls.append(source)
        if len(calls) > after:
            raise SystemExit
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(image_numbers.atomic, "replace", cut)
        use(root, action="undo_number")
    use(root, action="undo_number")
    assert tree(root) == before


def test_a_name_that_is_taken_stops_the_numbering(tmp_path):
    root = tmp_path / "set"
    numbered(root)
    (root / "n1.png").mkdir()
    before = tree(root)
    with refused("tools.name-taken", "n1.png"):
        use(root, action="number", number_in_place=True, number_prefix="n", number_digits=1)
    assert tree(root) == before


def test_a_file_in_the_place_of_an_earlier_name_stops_the_way_back(tmp_path):
    root = tmp_path / "set"
    numbered(root)
    use(root, action="number", number_in_place=True, number_start=5)
    (root / "fox2.txt").write_text("new")
    before = tree(root)
    with refused("tools.earlier-name-taken", "fox2.txt"):
        use(root, action="undo_number")
    assert tree(root) == before


@pytest.mark.parametrize("files", [[["../outside.png", "0000.png"]], [["fox2.png", "../outside.png"]], [["/x", 5]], []])
def test_a_record_of_a_downloaded_dataset_that_names_files_elsewhere_is_no_numbering(tmp_path, files):
    root = tmp_path / "set"
    numbered(root)
    (tmp_path / "outside.png").write_bytes(b"mine")
    record = root / "_atelier_trash" / "now-numbers" / "renamed.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"v": 1, "files": files, "first": [0, 0]}))
    before = tree(tmp_path)
    with refused("tools.no-numbering"):
        use(root, action="undo_number")
    assert tree(tmp_path) == before


# ---- faces


def tilted(degrees: float, size=(200, 160), center=(70, 60)) -> tuple[Image.Image, Face]:
    """An image with a red left and a blue right eye on a line that falls to the right by `degrees`."""
    image = Image.new("RGB", size, (90, 120, 90))
    draw = ImageDraw.Draw(image)
    x, y = 15 * math.cos(math.radians(degrees)), 15 * math.sin(math.radians(degrees))
    eyes = [(center[0] - x, center[1] - y), (center[0] + x, center[1] + y)]
    for (ex, ey), color in zip(eyes, ((255, 0, 0), (0, 0, 255)), strict=True):
        draw.ellipse((ex - 4, ey - 4, ex + 4, ey + 4), fill=color)
    return image, Face(center[0] - 30, center[1] - 36, center[0] + 30, center[1] + 36, 0.99, eyes[0], eyes[1])


def middle_of(image: Image.Image, color: int) -> tuple[float, float]:
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero((pixels[..., color] > 150) & (pixels[..., 1] < 80))
    return float(columns.mean()), float(rows.mean())


@pytest.mark.parametrize("degrees", [0, 25, -40])
def test_turning_levels_the_eyes_and_the_face_stays_in_its_place(degrees):
    image, face = tilted(degrees)
    assert face.tilt == pytest.approx(degrees)
    turned = rotated(image, face.tilt, face.center)
    (x1, y1), (x2, y2) = middle_of(turned, 0), middle_of(turned, 2)
    assert abs(y1 - y2) < 0.6 and x2 - x1 == pytest.approx(30, abs=0.8)
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((69.5, 59.5), abs=1.2)  # pixel centers
    assert np.asarray(turned).min(axis=(0, 1))[1] == 0 and tuple(np.asarray(turned)[0, 0]) != (0, 0, 0)


def test_the_window_lies_inside_the_image():
    assert window_around(50, 50, (40, 20), (100, 100)) == (30, 40, 70, 60)
    assert window_around(5, 99, (40, 20), (100, 100)) == (0, 80, 40, 100)


def test_a_window_by_the_faces_size_is_named_by_where_the_face_is():
    image, face = tilted(10)
    settings = FaceSettings(face_crop="ratio", face_crop_ratio=(2, 1.5))
    copy, info = face_window(image, face, settings)
    assert copy.size == (144, 108)  # 72 pixels, the larger side, times 2 and 1.5
    assert list(info) == [70, 54, 60, 72]  # at the left edge of the image: the window is moved in


def test_faces_are_scaled_to_one_size_and_never_beyond_the_image():
    image, face = tilted(0)
    settings = FaceSettings(face_crop="size", crop_size=(80, 64), face_resize="face", resize_face_size=36)
    copy, info = face_window(image, face, settings)
    assert copy.size == (80, 64) and info[3] == 36
    small = settings.model_copy(update={"resize_face_size": 16})
    copy, info = face_window(image, face, small)
    assert copy.size == (80, 64) and info[3] == round(72 * 0.4)  # 80 of 200 pixels: the whole width shows
    fit = settings.model_copy(update={"face_resize": "fit"})
    assert face_window(image, face, fit)[1][3] == round(72 * 0.4)


class Found:
    def __init__(self, *faces):
        self.faces = list(faces)

    def find(self, image, min_score):
        return [face for face in self.faces if face.score >= min_score]


def test_every_face_that_qualifies_is_written_under_the_name_that_a_face_crop_reads(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    image, face = tilted(0)
    image.save(root / "mira.png")
    (root / "mira.txt").write_text("mira")
    tiny = Face(150, 100, 160, 110, 0.95, (152, 104), (158, 104))
    other = Face(130, 90, 180, 140, 0.95, (140, 110), (170, 110))
    report, _ = use(root, detector=Found(face, other, tiny), action="faces", face_crop="none")
    names = sorted(path.name for path in report.written)
    assert names == ["mira_01_0070_0060_0060_0072.png", "mira_02_0155_0115_0050_0050.png"]
    assert (tmp_path / "out" / "mira_01_0070_0060_0060_0072.txt").read_text() == "mira"
    assert any("face of 10 pixels" in why for _, why in report.skipped)
    one, _ = use(root, detector=Found(face, other), action="faces", multiple_faces=False, output=str(tmp_path / "one"))
    assert len(one.written) == 1 and one.written[0].name.startswith("mira_0")
    none, _ = use(root, detector=Found(), action="faces", output=str(tmp_path / "none"))
    assert len(none.skipped) == 1 and not none.written


def test_the_detector_finds_no_face_in_noise_and_takes_any_size():
    detector = FaceDetector()
    for size in ((160, 120), (8, 8), (13, 400)):
        assert detector.find(made(*size), 0.9) == []


def test_a_missing_detector_is_refused_with_the_line_that_installs_it(tmp_path, monkeypatch):
    from core.control.detectors import mtcnn as face_detector

    monkeypatch.setattr(face_detector, "find_spec", lambda name: None)
    with pytest.raises(ProblemsError, match=r"not installed[^\0]*pip install mtcnn==1\.0\.0"):
        weights_folder()


# ---- what is refused


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"folder": ""}, "No folder is chosen"),
        ({"folder": "no such folder"}, "does not exist"),
        ({"output": "{folder}"}, "into the image folder itself"),
        ({"output": "{folder}/inside"}, "into the image folder itself"),
        ({"output": "{folder}/notes.md"}, "into the image folder itself"),
        ({"max_resolution": []}, "No size is given"),
        ({"action": "faces", "face_resize": "fit", "face_crop": "ratio"}, "fixed size"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(folder, tmp_path, asked, said):
    asked = {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in asked.items()}
    before = tree(tmp_path)
    with pytest.raises(ProblemsError, match=said):
        use(folder, **({"action": "resize"} | asked))
    assert tree(tmp_path) == before


def test_a_cancel_stops_between_images(folder):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        use(folder, cancel=token, action="convert")


def test_the_command_line_runs_a_job_file(folder, tmp_path, capsys):
    job = build(tasks.named("crop").job, {"crop": {"folder": str(folder), "crop_size": (512, 64)}})
    atomic.write_json(tmp_path / "job.json", dump(job, task="crop"))
    former = {
        "folder": str(folder),
        "action": "crop",
        "crop_size": [512, 64],
        "face_crop": "size",
        "max_resolution": [9],
    }
    atomic.write_json(
        tmp_path / "v1.json", {"kind": "job", "schema_version": 1, "task": "pictures", "pictures": former}
    )
    words = ["crop", str(tmp_path / "job.json"), "--crop.crop_size", "64,64", "--outputs", str(tmp_path / "o")]
    for former in ("v1", "job"):  # as it was written in version 1
        again = ["images", str(tmp_path / f"{former}.json"), "--images.crop_size", "64,64", "--images.edge_low", "4"]
        assert main([*again, "--check", "--outputs", str(tmp_path / "o")]) == 0
        assert "crop: from" in capsys.readouterr().out
    assert main([*words, "--check"]) == 0 and "crop: from" in capsys.readouterr().out
    assert not (tmp_path / "o" / "datasets").exists()
    assert main(words) == 0
    assert set(sizes(tmp_path / "o" / "datasets" / "crop" / "set").values()) == {(64, 64)}
    assert "2 images saved" in capsys.readouterr().out
    assert main(["images", "--outputs", str(tmp_path / "o")]) == 2


def test_the_command_has_help(capsys):
    for words in (["faces"], ["images"], ["images", "faces"], ["tool", "faces"]):
        assert main([*words, "--help"]) == 0 and "--faces.face_crop_ratio" in capsys.readouterr().out
