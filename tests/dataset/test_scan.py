"""Any folder works: layouts, names and junk; what cannot train is named, what and where and how to fix it."""

import os
import sys
from dataclasses import replace

import pytest

from core.dataset.sources.files import as_words, repeats_and_words
from core.dataset.sources.scan import describe_layout, scan, scan_dataset
from core.record.cancel import Cancelled, CancelToken
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import PLAIN, concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.validation import ValidationSettings
from tests.threads import no_thread_left


def look(*folders, **options):
    sources = [folder if isinstance(folder, dict) else {"folder": str(folder)} for folder in folders]
    dataset = DatasetSettings.model_validate({"sources": sources, **options})
    return scan_dataset(dataset)


def keys(found):
    return [image.key for image in found.images]


def test_a_plain_folder_trains_with_all_below_it(tmp_path, add):
    add("my_fox-photos/b.png", 64, 48)
    add("my_fox-photos/sub/deep/a.jpg")
    found = look(tmp_path / "my_fox-photos")
    assert keys(found) == [("my_fox-photos", "b.png"), ("my_fox-photos", "sub/deep/a.jpg")]
    first = found.images[0]
    assert (first.width, first.height, first.repeats, first.class_tokens) == (64, 48, 1, "my fox photos")
    assert first.bytes == first.path.stat().st_size and first.mtime_ns == first.path.stat().st_mtime_ns
    assert not found.problems
    assert describe_layout(tmp_path / "my_fox-photos") == "2 images in 2 folders"


@pytest.mark.parametrize("images", [{"conditioning_data_dir": "masks"}, {"conditioning_suffix": "_mask"}, {}])
def test_the_layout_counts_no_masks(tmp_path, add, images):
    masks = "masks/a" if "conditioning_data_dir" in images else f"a{images.get('conditioning_suffix', '-masklabel')}"
    for name in ("a", "b", masks):
        add(f"set/{name}.png")
    images = {name: str(tmp_path / "set" / text) if text == "masks" else text for name, text in images.items()}
    concept = replace(PLAIN, images=ImageSettings(**images, masked_loss=True))
    assert describe_layout(tmp_path / "set", concept) == "2 images in one folder"


def test_a_repeats_folder_given_itself_is_understood(tmp_path, add):
    add("10_sks fox/a.png")
    (image,) = look(tmp_path / "10_sks fox").images
    assert (image.source, image.repeats, image.class_tokens) == ("10_sks fox", 10, "sks fox")


def test_a_parent_gives_each_named_folder_its_repeats_and_trains_the_rest_once(tmp_path, add):
    add("set/10_fox/a.png")
    add("set/5_my_style/b.png")
    add("set/loose/c.png")
    add("set/d.png")
    found = look(tmp_path / "set")
    assert [(p.key, p.repeats, p.class_tokens) for p in found.images] == [
        (("set", "d.png"), 1, "set"),
        (("set", "loose/c.png"), 1, "set"),
        (("10_fox", "a.png"), 10, "fox"),
        (("5_my_style", "b.png"), 5, "my_style"),
    ]
    assert describe_layout(tmp_path / "set") == (
        "2 folders with repeats: 10_fox, 5_my_style (2 images), and 2 images outside them"
    )


def test_what_a_source_sets_itself_comes_before_its_name(tmp_path, add):
    add("10_fox/a.png")
    (image,) = look({"folder": str(tmp_path / "10_fox"), "num_repeats": 3, "class_tokens": "red fox"}).images
    assert (image.repeats, image.class_tokens) == (3, "red fox")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("10_fox", (10, "fox")),
        ("10_fox_red", (10, "fox_red")),
        ("3_", (3, "")),
        ("0_x", (0, "x")),
        ("10", None),
        ("fox_10", None),
        ("20240131_holiday", None),
        ("-1_fox", None),
        ("1.5_fox", None),
    ],
)
def test_the_name_of_a_folder_says_repeats_and_words(name, said):
    assert repeats_and_words(name) == said


def test_words_of_a_plain_name():
    assert as_words("__my_red--fox photos_") == "my red fox photos"


def test_two_folders_of_one_name_get_two_ids(tmp_path, add):
    add("a/fox/1.png")
    add("b/fox/1.png")
    assert keys(look(tmp_path / "a/fox", tmp_path / "b/fox")) == [("fox", "1.png"), ("fox #2", "1.png")]


def test_the_same_folder_twice_trains_once_and_is_said(tmp_path, add):
    add("fox/1.png")
    found = look(tmp_path / "fox", tmp_path / "fox" / ".." / "fox")
    assert len(found.images) == 1
    assert found.problems[0].code == "dataset.duplicate-folder" and found.problems[0].level == "advice"


def test_extensions_in_any_case_and_names_in_any_script_are_images(tmp_path, add):
    for name in ("[a] (1).PNG", "狐*.JpG", "*.webp", "ünïcode.Bmp", "emoji 🦊.gif", "long" * 50 + ".tif"):
        if os.name == "nt" and "*" in name:
            continue
        add(f"fox/{name}")
    found = look(tmp_path / "fox")
    assert len(found.images) == len(list((tmp_path / "fox").iterdir())) and not found.broken


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows names that are no text")
def test_names_that_are_no_text_train_and_can_be_printed(tmp_path, add):
    plain = add("fox/a.png")
    os.rename(plain, os.fsencode(plain.parent) + b"/\xff\xfe.png")
    os.truncate(os.fsencode(add("fox/b.png").parent) + b"/b.png", 0)
    os.rename(os.fsencode(plain.parent) + b"/b.png", os.fsencode(plain.parent) + b"/\xfe.png")
    found = look(tmp_path / "fox")
    assert len(found.images) == 1
    (problem,) = found.problems
    problem.where.encode("utf-8")


def test_junk_and_our_own_trash_are_passed_over_in_silence(tmp_path, add):
    add("fox/a.png")
    for name in ("._a.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / "fox" / name).write_bytes(b"junk")
    for name in ("_atelier_trash/b.png", ".git/c.png"):
        add(f"fox/{name}")
    found = look(tmp_path / "fox")
    assert keys(found) == [("fox", "a.png")] and not found.problems


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_once_and_loops_end(tmp_path, add):
    add("fox/a.png")
    other = add("elsewhere/b.png")
    (tmp_path / "fox/loop").symlink_to(tmp_path / "fox")
    (tmp_path / "fox/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "fox/c.png").symlink_to(other)
    (tmp_path / "fox/dangling.png").symlink_to(tmp_path / "nowhere.png")
    found = look(tmp_path / "fox")
    assert keys(found) == [("fox", "a.png"), ("fox", "c.png"), ("fox", "more/b.png")]
    assert [(each.relative, each.reason) for each in found.broken] == [("dangling.png", "is a broken link")]


def test_the_size_is_the_one_after_the_rotation_that_exif_asks_for(tmp_path, add):
    from PIL import Image

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for ending in ("jpg", "png", "webp", "tif"):
            add(f"fox/{orientation}.{ending}", 40, 30, exif=exif)
    for image in look(tmp_path / "fox").images:
        turned = int(image.relative[0]) >= 5
        assert (image.width, image.height) == ((30, 40) if turned else (40, 30)), image.relative


def test_captions_beside_an_image_are_noted(tmp_path, add):
    add("fox/a.png")
    for name in ("a.TXT", "a.caption", "ab.txt", "a.json"):
        (tmp_path / "fox" / name).write_text("x")
    assert look(tmp_path / "fox").images[0].sidecars == ("a.TXT", "a.caption")


# ---- what is wrong


BAD = {
    "zero.png": (b"", "is empty (0 bytes)"),
    "text.jpg": (b"no image at all", "is not a supported image"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "holes.webp": (b"\0" * 4096, "contains only zeros"),
    "short.png": (b"\x89PNG\r\n\x1a\n\0\0", "is a damaged or truncated PNG image"),
    "garbage.png": (b"\x89PNG\r\n\x1a\n" + b"garbage" * 30, "is a damaged or truncated PNG image"),
    "garbage.jpg": (b"\xff\xd8\xff" + b"garbage" * 30, "is a damaged or truncated JPEG image"),
    "garbage.webp": (b"RIFF\xff\xff\xff\x7fWEBPVP8X" + b"garbage" * 30, "is a damaged or truncated WebP image"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a supported image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_image_is_named_and_kept_apart(tmp_path, add, name):
    add("fox/good.png")
    content, reason = BAD[name]
    (tmp_path / "fox" / name).write_bytes(content)
    found = look(tmp_path / "fox")
    assert keys(found) == [("fox", "good.png")]
    assert [each.relative for each in found.broken] == [name] and reason in found.broken[0].reason
    (problem,) = found.problems
    assert name in problem.what and reason in problem.what and name in problem.where
    assert problem.remedy == "dataset.skip_broken" and problem.level == "error"
    assert look(tmp_path / "fox", skip_broken=True).problems[0].level == "advice"


def test_an_image_that_claims_billions_of_pixels_is_named(tmp_path, add):
    """Width and height of a PNG stand at bytes 16 to 23, guarded by a checksum over the header chunk."""
    import struct
    import zlib

    path = add("fox/bomb.png")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    (broken,) = look(tmp_path / "fox").broken
    assert "million pixels" in broken.reason


def test_a_png_with_a_huge_text_is_an_image_all_the_same(tmp_path):
    """Programs that draw images store their workflow in it; Pillow refuses above 1 MB unless told otherwise."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (3 << 20), zip=True)
    (tmp_path / "fox").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "fox/a.png", pnginfo=info)
    assert len(look(tmp_path / "fox").images) == 1


def test_a_folder_that_does_not_exist_is_said(tmp_path):
    (problem,) = look(tmp_path / "nowhere").problems
    assert "does not exist" in problem.what and "nowhere" in problem.where and problem.level == "error"


def test_no_folder_at_all_is_said():
    (problem,) = scan([]).problems
    assert "No image folder is chosen" in problem.what and problem.where == "dataset.folder"


def test_an_empty_folder_is_said_with_what_it_holds_instead(tmp_path):
    (problem,) = look(tmp_path).problems
    assert problem.code == "dataset.no-images" and "empty" in problem.what
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").write_bytes(b"x")
    (problem,) = look(tmp_path).problems
    assert "2 .mp4" in problem.what and ".png" in problem.fix
    assert describe_layout(tmp_path) == "no images found"


def test_a_file_in_place_of_a_folder_is_said(tmp_path, add):
    image = add("fox/a.png")
    (problem,) = look(image).problems
    assert problem.code == "dataset.not-a-folder" and str(tmp_path / "fox") in problem.fix
    (tmp_path / "fox.zip").write_bytes(b"PK")
    (problem,) = look(tmp_path / "fox.zip").problems
    assert problem.code == "dataset.zip-as-folder"


def test_a_path_pasted_with_quotation_marks_is_understood(tmp_path, add):
    add("fox/a.png")
    assert len(look(f'"{tmp_path / "fox"}" ').images) == 1


def test_a_folder_of_zero_repeats_is_left_out_and_said(tmp_path, add):
    add("set/0_old/a.png")
    add("set/2_new/b.png")
    found = look(tmp_path / "set")
    assert keys(found) == [("2_new", "b.png")]
    assert "0 repeats" in found.problems[0].what


def test_a_year_in_front_of_a_folders_name_is_pointed_out(tmp_path, add):
    add("2024_holiday/a.png")
    found = look(tmp_path / "2024_holiday")
    assert found.images[0].repeats == 2024
    assert found.problems[0].code == "dataset.many-repeats" and "2024 repeats" in found.problems[0].what


def test_two_images_that_share_a_caption_are_pointed_out(tmp_path, add):
    add("fox/a.png")
    add("fox/a.jpg")
    (problem,) = look(tmp_path / "fox").problems
    assert "a.jpg, a.png" in problem.what and problem.level == "advice"


def test_an_animated_image_is_pointed_out(tmp_path):
    from PIL import Image

    (tmp_path / "fox").mkdir()
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "fox/a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "fox/still.gif")
    (problem,) = look(tmp_path / "fox").problems
    assert "first frame" in problem.what and "a.gif" in problem.what and "still" not in problem.what


def test_a_folder_that_may_not_be_opened_is_said(tmp_path, add, monkeypatch):
    add("fox/a.png")
    add("fox/closed/b.png")
    listed = os.scandir

    def refuse(path):  # the administrator, who runs many a test, may read everything
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr("os.scandir", refuse)
    found = look(tmp_path / "fox")
    assert keys(found) == [("fox", "a.png")]
    assert "cannot be opened" in found.problems[0].what and found.problems[0].level == "advice"
    assert "cannot be opened" in look(tmp_path / "fox" / "closed").problems[0].what


def test_a_cancel_ends_the_scan(tmp_path, add):
    add("fox/a.png")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        scan(concepts(DatasetSettings(folder=str(tmp_path / "fox")), CaptionSettings(), ValidationSettings()), token)


def test_many_images_come_back_in_order_and_no_thread_is_left(tmp_path, add):
    source = add("fox/000.png").read_bytes()
    for index in range(1, 700):
        (tmp_path / f"fox/{index:03}.png").write_bytes(source)
    with no_thread_left():
        found = look(tmp_path / "fox")
    assert [image.relative for image in found.images] == [f"{index:03}.png" for index in range(700)]
