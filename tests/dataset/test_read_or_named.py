"""What lies in a folder of images trains or is named: every format that can be read, what cannot, what systems leave there,
OneTrainer's masks, captions of no image."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.dataset.captions.files import caption_change, read_caption
from core.dataset.doctor.trash import companions
from core.dataset.images.opening import open_rgb
from core.dataset.sources.archive import unpack_zip
from core.dataset.sources.scan import describe_layout, scan_dataset
from core.dataset.sources.walk import Walk, unused_files
from core.generation.class_plan import other_images
from core.record.problems import ProblemsError
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.dataset import DatasetSettings
from core.tools.images.folders import images_of
from core.tools.images.latent_upscaler import _is_source
from core.tools.images.make_pairs import _captions
from tabs.form.folder_browser import listing
from tabs.server.uploads import store_upload

FORMATS = {
    ".jpe": "JPEG",
    ".jif": "JPEG",
    ".pjpeg": "JPEG",
    ".apng": "PNG",
    ".tga": "TGA",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".ppm": "PPM",
    ".dib": "DIB",
    ".ico": "ICO",
    ".pcx": "PCX",
    ".qoi": "QOI",
    "": "PNG",
    ".jpg_large": "JPEG",
    ".jpg ": "JPEG",
    ".unheard": "WEBP",
    ".bmp_": "BMP",
    ".bin~": "QOI",
    ".img": "AVIF",
}


def look(folder, **options):
    return scan_dataset(DatasetSettings(folder=str(folder), **options))


def names(found):
    return [image.relative for image in found.images]


def named(found, code):
    return [problem for problem in found.problems if problem.code == code]


@pytest.mark.parametrize("ending", FORMATS)
def test_every_image_that_can_be_read_trains_with_its_caption(tmp_path, ending):
    pixels = np.full((24, 32, 3), (200, 100, 50), np.uint8)
    path = tmp_path / f"a{ending}"
    Image.fromarray(pixels).save(path, FORMATS[ending])
    (tmp_path / "a.txt").write_text("a fox", "utf-8")
    (image,) = look(tmp_path).images
    assert image.relative == path.name and read_caption(image, CaptionSettings()).text == "a fox"
    assert (image.width, image.height) == open_rgb(path).size
    assert np.abs(np.asarray(open_rgb(path)).astype(int)[12, 12] - (200, 100, 50)).max() < 12


def test_other_files_are_named_with_their_number(tmp_path, add):
    add("set/a.png")
    for name in ("b.psd", "c.cr2", "d.mp4", "e", "f.svg", "g.jpg.part"):
        (tmp_path / "set" / name).write_bytes(b"8BPS")
    for name in ("meta.json", "a.npz", "Thumbs.db", ".DS_Store", "notes.md", "a.txt"):
        (tmp_path / "set" / name).write_bytes(b"{}")
    (problem,) = look(tmp_path / "set").problems
    assert problem.code == "dataset.unread-files" and problem.level == "advice"
    assert problem.what.startswith("6 files") and "b.psd" in problem.what and "and 1 more" in problem.what


def test_a_text_file_is_no_tga(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\0\0\2" + bytes(9) + b"\4\0\4\0\x18\0" + bytes(48))
    (problem,) = look(tmp_path).problems
    assert problem.code == "image.unreadable"


SYSTEM = ("@eaDir", "#recycle", "#snapshot", "lost+found", "System Volume Information", "$RECYCLE.BIN", "__pycache__")
SYSTEM = (
    *SYSTEM,
    "__MACOSX",
    ".ipynb_checkpoints",
    "@Recycle",
    ".@__thumb",
    "~snapshot",
    "_gsdata_",
    "$WINDOWS.~BT",
    "@SynoX",
    "A.lrdata",
)


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_systems_are_left_out_everywhere_and_named_once(tmp_path, add, name):
    for each in ("a.png", f"{name}/b.png", f"{name}/a.png/SYNOFILE_THUMB_M.jpg", f"sub/{name}/c.png"):
        add(f"set/{each}")
    (tmp_path / "set" / name / "d.txt").write_text("a fox", "utf-8")
    (tmp_path / "set" / "a.txt").write_text("a cat", "utf-8")
    found = look(tmp_path / "set")
    assert names(found) == ["a.png"]
    (problem,) = found.problems
    assert problem.code == "dataset.ignored-names" and name in problem.what and problem.what.startswith("2 ")
    assert [path.name for path in images_of(tmp_path / "set", True)[0]] == ["a.png"]
    assert [path.name for path in other_images(tmp_path / "set")] == ["a.png"]
    assert _captions(str(tmp_path / "set")) == ["a cat"]


def test_folders_of_systems_are_left_out_of_zips(tmp_path, add):
    data = add("a.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a.png", "x.psd", "noext", *(f"{name}/b.png" for name in SYSTEM)):
            archive.writestr(name, data)
        archive.writestr("readme", b"text")
    folder = unpack_zip(tmp_path / "set.zip", tmp_path / "sets")
    assert sorted(path.name for path in folder.rglob("*")) == ["a.png", "noext", "x.psd"]
    found = look(folder)
    assert names(found) == ["a.png", "noext"] and named(found, "dataset.unread-files")


def test_what_stays_in_a_zip_is_named_as_in_folders(tmp_path, add):
    """Also where all other files of the zip are such, and of files that are dropped one by one."""
    data, folder = add("set/a.png").read_bytes(), tmp_path / "set"
    given = {
        "#recycle/x.png": data,
        "b.docx": b"x",
        "e.jpg.part": data,
        "sub/@eaDir/c/t.jpg": data,
        "sub/@eaDir/d.png": data,
    }
    quiet = {"n.md": b"x", ".DS_Store": b"x", "__MACOSX/._a.png": data, "sub/Thumbs.db": b"x"}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in {"a.png": data, **given, **quiet}.items():
            archive.writestr(name, content)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    unused = Walk()
    store_upload([tmp_path / "set.zip"], tmp_path / "sets", unused=unused)
    said = {problem.code: problem.what for problem in unused_files(Path("set.zip"), [("", unused)])}
    assert said == {problem.code: problem.what for problem in look(folder).problems}
    assert said["dataset.unread-files"].startswith("2 ") and "b.docx" in said["dataset.unread-files"]
    assert said["dataset.ignored-names"].startswith("2 ") and "sub/@eaDir" in said["dataset.ignored-names"]
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("b.docx", b"x")
    with pytest.raises(ProblemsError) as failed:
        store_upload([tmp_path / "none.zip"], tmp_path / "sets")
    assert [problem.code for problem in failed.value.problems] == ["zip.no-images", "dataset.unread-files"]
    loose = Walk()
    store_upload([folder / "a.png", folder / "b.docx", folder / "n.md"], tmp_path / "sets", unused=loose)
    assert loose.unread == ["b.docx"]


def test_dropped_files_of_any_name_are_taken_in(tmp_path, add):
    files = [add("in/a.png"), add("in/b.png").rename(tmp_path / "in" / "b.jpg_large"), tmp_path / "in" / "c.psd"]
    files[2].write_bytes(b"8BPS")
    folder = store_upload(files, tmp_path / "sets")
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.jpg_large", "c.psd"]


@pytest.fixture
def labelled(tmp_path, add):
    """OneTrainer's set: two images, each with a mask, and a control image."""
    for name in ("0.png", "0-masklabel.png", "1.jpg", "1-MASKLABEL.PNG", "1-condlabel.png", "sub/2.png"):
        add(f"set/{name}")
    return tmp_path / "set"


def test_masks_of_onetrainer_are_never_trained(labelled):
    found = look(labelled)
    assert names(found) == ["0.png", "1.jpg", "sub/2.png"]
    assert [image.conditioning for image in found.images] == [None] * 3
    assert [problem.code for problem in found.problems] == ["mask.not-used", "control.not-used"]
    assert [problem.remedy for problem in found.problems] == ["dataset.masked_loss", ""]
    assert describe_layout(labelled).startswith("3 images")
    assert {path.name for path in other_images(labelled)} == {"0.png", "1.jpg", "2.png"}
    assert not _is_source(labelled / "0-masklabel.png") and _is_source(labelled / "0.png")


def test_masks_of_onetrainer_are_the_masks_of_masked_loss(labelled):
    found = look(labelled, masked_loss=True)
    masks = {image.relative: image.conditioning and image.conditioning.name for image in found.images}
    assert masks == {"0.png": "0-masklabel.png", "1.jpg": "1-MASKLABEL.PNG", "sub/2.png": None}
    assert [problem.code for problem in found.problems] == ["control.not-used", "mask.missing"]


def test_masks_of_onetrainer_are_found_in_a_folder_of_masks_too(labelled):
    found = look(labelled, masked_loss=True, conditioning_data_dir=str(labelled))
    assert names(found) == ["0.png", "1.jpg", "sub/2.png"]
    assert found.images[0].conditioning == labelled / "0-masklabel.png"


def test_masked_loss_without_any_mask_is_said(tmp_path, add):
    add("set/a.png")
    assert [problem.code for problem in look(tmp_path / "set", masked_loss=True).problems] == ["mask.missing"]
    assert not look(tmp_path / "set", masked_loss=True, alpha_mask=True).problems


def test_a_folder_of_masks_alone_has_no_images(tmp_path, add):
    add("set/a-masklabel.png")
    assert [problem.code for problem in look(tmp_path / "set").problems] == ["dataset.no-images"]


def test_the_folder_browser_counts_no_masks(labelled):
    class Roots:
        def check(self, text, kind):
            return labelled

        def holds(self, path):
            return True

    assert listing(Roots(), str(labelled)).images == 2


def test_a_caption_named_after_the_whole_file_is_read_and_saved_over(tmp_path, add):
    add("set/a.png")
    (tmp_path / "set" / "a.png.txt").write_text("red hat", "utf-8")
    found = look(tmp_path / "set")
    (image,) = found.images
    assert read_caption(image, CaptionSettings()).text == "red hat" and not found.problems
    assert caption_change(image.path, "blue hat").path.name == "a.png.txt"
    assert [path.name for path in companions([image.path])] == ["a.png.txt"]


def test_a_caption_named_after_the_whole_file_is_first_where_two_images_share_a_stem(tmp_path, add):
    for name in ("a.png", "a.jpg", "b.png"):
        add(f"set/{name}")
    for name in ("a.txt", "a.png.txt", "b.txt", "b.png.txt"):
        (tmp_path / "set" / name).write_text(f"of {name}", "utf-8")
    found = look(tmp_path / "set")
    captions = {image.relative: read_caption(image, CaptionSettings()) for image in found.images}
    expected = {"a.jpg": "a.txt", "a.png": "a.png.txt", "b.png": "b.txt"}
    assert {name: caption.path.name for name, caption in captions.items()} == expected
    assert {name: caption_change(tmp_path / "set" / name, "x").path.name for name in expected} == expected
    (unused,) = named(found, "caption.without-image")
    assert "b.png.txt" in unused.what and "a.png.txt" not in unused.what


def test_repeats_that_lie_too_deep_are_named(tmp_path, add):
    """kohya_ss' projects have img, reg, model and log, of which img is the folder to choose."""
    for name in ("img/10_fox/a.png", "reg/1_fox/b.png", "5_cat/c.png", "img/2024_summer/d.png"):
        add(f"set/{name}")
    (deeper,) = named(look(tmp_path / "set"), "dataset.deeper-repeats")
    assert "img/10_fox" in deeper.what and "reg/1_fox" in deeper.what and "5_cat" not in deeper.what
    assert "summer" not in deeper.what and deeper.fix.endswith(str(tmp_path / "set" / "img"))
    assert not named(look(tmp_path / "set" / "img"), "dataset.deeper-repeats")


def test_what_ai_toolkit_makes_of_the_images_is_not_trained(tmp_path, add):
    for name in ("a.png", "_controls/a.canny.jpg", "_latent_cache/b.png"):
        add(f"set/{name}")
    found = look(tmp_path / "set")
    assert names(found) == ["a.png"] and "_controls" in named(found, "dataset.ignored-names")[0].what


def test_files_in_which_other_programs_keep_captions_are_named_while_captions_are_missing(tmp_path, add):
    add("set/a.png")
    for name in ("metadata.jsonl", "a.json", "metadata.csv", "metadata_cache.json", "notes.md"):
        (tmp_path / "set" / name).write_text("{}", "utf-8")
    (problem,) = named(look(tmp_path / "set"), "caption.unread-list")
    assert problem.what.startswith("3 files ") and "metadata_cache" not in problem.what and "notes" not in problem.what
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a.png", "metadata.csv"):
            archive.write(tmp_path / "set" / name, name)
    assert named(look(unpack_zip(tmp_path / "set.zip", tmp_path / "unpacked")), "caption.unread-list")
    (tmp_path / "set" / "a.txt").write_text("red hat", "utf-8")
    assert not named(look(tmp_path / "set"), "caption.unread-list")


def test_names_match_however_their_accents_are_written(tmp_path, add):
    """macOS writes an accent as a character of its own, other systems one character for both: two names that look alike."""
    one, two = "caf\u00e9", "cafe\u0301"
    add(f"set/{one}.png")
    add(f"masks/{two}.png")
    (tmp_path / "set" / f"{two}.txt").write_text("red hat", "utf-8")
    found = look(tmp_path / "set", conditioning_data_dir=str(tmp_path / "masks"), masked_loss=True)
    (image,) = found.images
    assert read_caption(image, CaptionSettings()).text == "red hat" and image.conditioning is not None
    assert caption_change(image.path, "blue hat").path.name == f"{two}.txt"
    assert [path.name for path in companions([image.path])] == [f"{two}.txt"]
    (tmp_path / "meta.json").write_text(json.dumps({two: {"caption": "green hat"}}), "utf-8")
    (listed,) = scan_dataset(
        DatasetSettings(sources=[{"folder": str(tmp_path / "set"), "metadata_file": str(tmp_path / "meta.json")}])
    ).images
    assert listed.path == image.path


def test_images_named_like_masks_of_others_are_named(tmp_path, add):
    alike = ["a_mask.png", "a-masklabel2.png", "b-Mask.jpg", "c.mask.png", "sub/masks/d.png", "mask/a.png"]
    for name in (
        "a.png",
        "b.png",
        "c.png",
        "sub/d.png",
        "e_mask.png",
        "masks/e.png",
        "gas mask.png",
        "10_fox/e.png",
        *alike,
    ):
        add(f"set/{name}")
    add("set/b.png").with_name("b.Mask").write_bytes((tmp_path / "set/b.png").read_bytes())
    (problem,) = named(look(tmp_path / "set"), "mask.trained")
    assert problem.what.startswith("7 files ") and "a_mask.png" in problem.what
    found = look(tmp_path / "set", conditioning_suffix="_mask", masked_loss=True)
    assert named(found, "mask.trained")[0].what.startswith("6 files ")


def test_a_caption_of_no_image_is_named(tmp_path, add):
    add("set/a.png")
    add("set/foo_0123_0200_0080_0080.png")
    for name in ("a.txt", "a.png.txt", "b.txt", "c.caption", "foo.txt"):
        (tmp_path / "set" / name).write_text("red hat", "utf-8")
    (problem,) = look(tmp_path / "set").problems
    assert problem.code == "caption.without-image" and problem.what.startswith("3 ")
    assert all(name in problem.what for name in ("a.png.txt", "b.txt", "c.caption"))
