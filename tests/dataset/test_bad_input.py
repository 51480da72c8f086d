"""Every pitfall of the reference (its section 8): what a person is told, and that nothing of theirs is changed.

A row is a generator: it builds the bad input in the folder it is given, yields the settings to look at it with, gets back
what a person sees, and checks it. Rows are numbered as in the reference. Dataset files: test_bad_dataset_files.py.
"""

import codecs
import json
import os
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from core.cli.dataset_report import report_lines
from core.dataset.buckets.plan import Epochs
from core.dataset.caches.encoding import Side
from core.dataset.caches.npz import NpzCaches
from core.dataset.captions.pipeline import caption_preview
from core.dataset.images import opening
from core.dataset.images.opening import open_rgb
from core.dataset.images.pixels import load_pixels
from core.dataset.images.views import View
from core.imports.dataset_config import read_dataset_config
from core.record.problems import ProblemsError
from tests.dataset.bad_input import Table, image, told
from tests.hostile.image_files import flat, png

ORIENTATION = 0x0112

table = Table()


@table.row(1)
def a_photo_that_exif_turns(theirs):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = image(theirs / "phone.jpg", 160, 96, exif=exif)
    seen = yield {}
    assert seen.row("phone.jpg").size == (96, 160) and seen.placed("phone.jpg").image.rotated
    assert open_rgb(path).size == (96, 160)
    assert any("phone.jpg" in line and "EXIF" in line for line in report_lines(seen.job, seen.report))


@table.row(2)
def transparent_images(theirs):
    image(theirs / "glass.png")
    pixels: np.ndarray = np.zeros((96, 160, 4), np.uint8)  # hidden black below full transparency
    Image.fromarray(pixels).save(theirs / "glass.png")
    seen = yield {}
    (question,) = seen.report.questions
    assert (question.kind, question.images, question.examples) == ("transparency", 1, ("glass.png",))
    placed = seen.placed("glass.png")
    assert (load_pixels(placed.image.path, View(placed.placement), images=placed.concept.images) == 1).all()
    seen.look(dataset={"alpha_color": "#000000"})
    placed = seen.placed("glass.png")
    assert (load_pixels(placed.image.path, View(placed.placement), images=placed.concept.images) == -1).all()


@table.row(3)
def palette_gray_one_bit_16_bit_and_cmyk(theirs):
    size = (160, 96)
    palette = Image.new("P", size, 1)
    palette.putpalette([255, 0, 0, 128, 128, 128])
    palette.info["transparency"] = 0
    made = {
        "palette.png": palette,
        "gray.png": Image.new("LA", size, (128, 255)),
        "one_bit.png": Image.new("1", size, 1),
        "deep.png": Image.fromarray(np.full(size[::-1], 32896, np.uint16)),
        "print.jpg": Image.new("CMYK", size, (0, 0, 0, 127)),
    }
    for name, pixels in made.items():
        pixels.save(theirs / name)
        (theirs / name).with_suffix(".txt").write_text("gray")
    assert Image.open(theirs / "deep.png").mode == "I;16"
    seen = yield {}
    seen.trains(*made)
    for name in made:
        found = np.asarray(open_rgb(theirs / name), np.int32)
        assert (abs(found - (255 if name == "one_bit.png" else 128)) <= 2).all(), name


@table.row(4)
def animated_files(theirs):
    frames = [Image.effect_noise((160, 96), 60 + place) for place in range(3)]
    for name in ("wave.gif", "turn.webp", "spin.png"):
        frames[0].save(theirs / name, save_all=True, append_images=frames[1:])
    seen = yield {}
    seen.told("image.animated", str(theirs), "(spin.png, turn.webp, wave.gif)")
    seen.trains("wave.gif", "turn.webp", "spin.png")


@table.row(5)
def files_that_are_cut_off_or_no_images(theirs):
    image(theirs / "good.png")
    cut = image(theirs / "cut.png")
    cut.write_bytes(cut.read_bytes()[:20000])
    (theirs / "page.jpg").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (theirs / "zeros.png").write_bytes(bytes(5000))
    (theirs / "nothing.webp").write_bytes(b"")
    seen = yield {}
    broken = {"cut.png": "truncated", "page.jpg": "a web page", "zeros.png": "only zeros", "nothing.webp": "0 bytes"}
    for name, why in broken.items():
        seen.told("image.unreadable", str(theirs / name), why, blocks=True)
    seen.look(dataset={"skip_broken": True})
    for name, why in broken.items():
        seen.told("image.unreadable", str(theirs / name), why)
        assert why in seen.row(name).why and not seen.row(name).trains
    assert seen.report.ok and seen.report.steps_per_epoch == 1  # the length is that of what is left
    seen.trains("good.png")


@table.row(6)
def an_image_that_says_it_is_enormous(theirs):
    path = image(theirs / "bomb.png")
    data = path.read_bytes()
    header = struct.pack(">II", 40000, 40000) + data[24:29]
    path.write_bytes(data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:])
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "x" * (2 << 20), zip=True)  # Pillow refuses it by default (kohya_ss 817)
    image(theirs / "workflow.png", pnginfo=notes)
    seen = yield {}
    seen.told("image.unreadable", str(theirs / "bomb.png"), "bomb.png has more than", blocks=True)
    seen.trains("workflow.png")


@table.row(7)
def bmp_and_avif_whose_size_other_readers_miss(theirs):
    names = ["old.bmp"] + (["new.avif"] if features.check("avif") else [])
    for name in names:
        image(theirs / name, 160, 96)
    seen = yield {}
    for name in names:
        assert seen.row(name).size == (160, 96) and seen.row(name).bucket == (160, 96)


@table.row(8)
def images_too_small_to_train(theirs):
    image(theirs / "line.png", 400, 20)
    seen = yield {"dataset": {"bucket_no_upscale": True}}
    path = str(theirs / "line.png")
    seen.told("image.too-narrow", path, "line.png (400 x 20)", blocks=True)
    seen.look(dataset={"bucket_no_upscale": True, "skip_broken": True})
    seen.told("image.too-narrow", path, "line.png (400 x 20)")


@table.row(9)
def a_longest_side_below_the_resolution(theirs):
    image(theirs / "a.png", 320, 80)
    seen = yield {"dataset": {"resolution": 1024, "bucket_reso_steps": 64}}
    assert seen.report.ok and seen.row("a.png").bucket == (2048, 512)  # empty is twice the resolution, not 1024
    seen.look(dataset={"resolution": 1024, "max_bucket_reso": 768})
    seen.told("dataset.max-bucket-resolution", "dataset.max_bucket_reso", "1024 x 1024", blocks=True)


@table.row(10)
def names_that_differ_in_the_ending_or_in_case_only(theirs):
    image(theirs / "a.png")
    image(theirs / "a.jpg", 96, 160)
    image(theirs / "B.png")
    image(theirs / "b.png", 96, 160)
    two_cases = (theirs / "B.png").read_bytes() != (theirs / "b.png").read_bytes()  # not on Windows and macOS
    seen = yield {}
    seen.told("image.same-stem", str(theirs), "a.jpg, a.png")
    if two_cases:
        seen.told("image.same-name-ignoring-case", str(theirs), "B.png, b.png")
    assert len(latent_cache(seen).missing(seen.report.placed)) == (4 if two_cases else 3)  # an entry each


@table.row(11)
def caches_of_what_was_changed_since(theirs):
    image(theirs / "a.png")
    np.savez(theirs / "a.npz", latents=np.zeros((4, 8, 8), np.float32), original_size=[64, 64], crop_ltrb=[0] * 4)
    said = {str(theirs / "a.png"): {"caption": "a cat", "resolution": [512, 512]}}
    said[str(theirs / "gone.png")] = {"caption": "a dog", "resolution": [512, 512]}
    (theirs / "metadata_cache.json").write_text(json.dumps(said))
    seen = yield {"dataset": {"folder": None, "sources": [{"folder": str(theirs), "cache_info": True}]}}
    shown = str(theirs / "metadata_cache.json")
    seen.told("dataset.stale-caption-cache", shown, "a.png")
    seen.told("metadata.other-size", str(theirs), "a.png (512 x 512 in the metadata, 160 x 96 now)")
    seen.told("metadata.no-image", shown, "gone.png")
    others = NpzCaches(seen.report.placed)
    assert others(Side(seen.placed("a.png"))) is None and "a.npz" in others.refused
    assert latent_cache(seen).fill(seen.report.placed, finite) == 1 and not latent_cache(seen).missing(
        seen.report.placed
    )
    image(theirs / "a.png", caption="a fox", compress_level=1)  # the same image in other bytes
    seen.look()
    assert latent_cache(seen).missing(seen.report.placed) == list(seen.report.placed)
    assert (theirs / "a.npz").exists()


@table.row(12)
def captions_under_another_ending(theirs):
    image(theirs / "a.png").with_suffix(".txt").rename(theirs / "a.caption")
    image(theirs / "b.png")
    seen = yield {}
    assert seen.row("a.png").caption == "a fox" and seen.report.captions_found == 2  # auto takes either
    seen.look(captions={"caption_extension": ".caption"})
    seen.told("dataset.unused-captions", str(theirs), "1 image has")
    seen.told("dataset.default-captions", str(theirs), "1 of 2 images")
    assert seen.report.captions_found == 1


@table.row(13)
def captions_in_other_encodings(theirs):
    words = "\u8d64\u3044\u72d0\u304c\u68ee\u306e\u4e2d\u3092\u8d70\u3063\u3066\u3044\u307e\u3059"
    image(theirs / "mark.png").with_suffix(".txt").write_bytes(codecs.BOM_UTF8 + words.encode())
    image(theirs / "wide.png").with_suffix(".txt").write_bytes(words.encode("utf-16"))
    image(theirs / "japan.png").with_suffix(".txt").write_bytes(words.encode("cp932"))
    seen = yield {}
    assert {each.caption for each in seen.report.rows} == {words}
    seen.told("caption.not-utf8", str(theirs / "japan.txt"), "read as shift-jis")
    seen.told("caption.not-utf8", str(theirs / "wide.txt"), "encoded in utf-16")


@table.row(14)
def empty_captions_and_leading_blank_lines(theirs):
    image(theirs / "empty.png", caption="")
    image(theirs / "blank.png", caption=" \n\n")
    image(theirs / "late.png", caption="\n\na fox\n")
    seen = yield {}
    said = seen.told("dataset.empty-captions", str(theirs), "2 of 3 images")
    assert "blank.png, empty.png" in said.what
    assert seen.row("late.png").caption == "a fox"


@table.row(15)
def captions_of_several_lines(theirs):
    image(theirs / "a.png", caption="a fox\nin the snow")
    seen = yield {}
    (question,) = seen.report.questions
    assert (question.kind, question.examples) == ("lines", ("a.png",)) and seen.row("a.png").caption == "a fox"
    seen.look(captions={"caption_lines": "all"})
    assert seen.row("a.png").caption == "a fox in the snow"
    seen.look(captions={"caption_lines": "random"})
    placed = seen.placed("a.png")
    drawn = caption_preview(placed.caption, placed.concept.captions, 0, placed.key, 20)
    assert {each.text for each in drawn} == {"a fox", "in the snow"}


@table.row(16)
def the_leaf_folder_the_parent_and_none_at_all(theirs):
    leaf = image(theirs / "10_fox" / "a.png", caption=None).parent
    (theirs / "papers").mkdir()
    (theirs / "papers" / "list.pdf").write_bytes(b"%PDF")
    image(theirs / "plain" / "b.png", caption=None)
    seen = yield {}
    seen.trains("a.png", "plain/b.png")
    for folder in (leaf, theirs):
        seen.look(dataset={"folder": str(folder)})
        assert (seen.row("a.png").repeats, seen.row("a.png").caption) == (10, "fox")
    seen.look(dataset={"folder": str(theirs / "plain")})
    assert (seen.row("b.png").repeats, seen.row("b.png").caption) == (1, "plain")
    seen.look(dataset={"folder": str(theirs / "papers")})
    seen.told("dataset.no-images", str(theirs / "papers"), "1 .pdf", blocks=True)
    seen.look(dataset={"folder": str(theirs / "nowhere")})
    seen.told("dataset.missing-folder", str(theirs / "nowhere"), blocks=True)
    seen.look(dataset={"folder": str(leaf / "a.png")})
    seen.told("dataset.not-a-folder", "a.png", str(leaf), blocks=True)


@table.row(17)
def windows_paths_in_toml(theirs):
    written = 'resolution = 512\n[[datasets.subsets]]\nimage_dir = "C:\\new\\train"\n'
    (theirs / "set.toml").write_text("[[datasets]]\n" + written)
    (theirs / "right.toml").write_text("[[datasets]]\n" + written.replace('"', "'"))
    yield {}
    found = read_dataset_config(theirs / "set.toml")
    where = f"{theirs / 'set.toml'}, line 4, datasets[0].subsets[0].image_dir"
    told(found.problems, "dataset-config.backslashes", where, "image_dir = 'C:\\new\\train'", blocks=True)
    found = read_dataset_config(theirs / "right.toml")
    assert not found.problems and found.values["dataset"]["sources"][0]["folder"] == "C:\\new\\train"


@table.row(18)
def brackets_other_scripts_and_long_paths(theirs):
    long = "/".join(["a" * 60] * 5)
    names = [
        "[1]/{a}*.png" if os.name != "nt" else "[1]/{a}.png",
        "\u0444\u043e\u0442\u043e/\u72d0.png",
        f"{long}/x.png",
    ]
    for name in names:
        image(theirs / name)
    seen = yield {}
    seen.trains(*names)
    assert seen.report.ok and seen.report.captions_found == 3


@table.row(19)
def endings_in_mixed_case(theirs):
    names = ["one.PNG", "two.Jpg", "three.JPEG", "four.WebP"]
    for name in names:
        image(theirs / name)
    (theirs / "one.txt").rename(theirs / "one.TXT")
    seen = yield {}
    seen.trains(*names)
    assert seen.report.captions_found == 4


@table.row(20)
def a_vae_that_gives_no_finite_numbers(theirs):
    import torch

    image(theirs / "a.png")
    seen = yield {}

    def overflows(pixels):
        return tuple(part * torch.nan for part in finite(pixels))

    cache = latent_cache(seen)
    with pytest.raises(ProblemsError) as caught:
        cache.fill(seen.report.placed, overflows)
    told(caught.value.problems, "image.vae-nan", str(theirs / "a.png"), "the image a.png", blocks=True)
    assert cache.fill(seen.report.placed, overflows, retry=finite) == 1 and not cache.missing(seen.report.placed)


@table.row(21)
def more_regularization_than_images(theirs):
    for name in ("fox/a.png", "fox/b.png", *(f"dog/{number}.png" for number in range(5))):
        image(theirs / name)
    folders = {"folder": str(theirs / "fox"), "reg_data_dir": str(theirs / "dog")}
    seen = yield {"dataset": folders}
    assert seen.report.views == {0: 2, 1: 2} and seen.report.sentence.startswith("4 views of 7 images in rotation")
    epochs = Epochs(seen.report.placed, seen.job.dataset)
    shown = {each.key for epoch in range(3) for each, _ in epochs.views_of(epoch) if each.concept.number == 1}
    assert len(shown) == 5  # no unused tail: three epochs of two views show all five
    seen.look(dataset={"folder": None, "reg_data_dir": str(theirs / "dog")})
    seen.told("dataset.regularization-alone", "dataset.sources", "5 regularization images")
    seen.told("dataset.no-images", "dataset", blocks=True)
    seen.look(dataset={"folder": str(theirs / "fox")}, validation={"validation_split": 1})
    seen.told("dataset.no-images", "dataset", "validation", blocks=True)


@table.row(22)
def one_draw_of_the_latent_for_the_whole_run(theirs):
    import torch

    from core.training.loop.sources import frozen_latent, sample_latent

    image(theirs / "a.png")
    seen = yield {}
    assert seen.job.memory.latent_draw == "sample"
    mean, key = torch.zeros(4, 2, 2), seen.placed("a.png").key
    first, second = (sample_latent(mean, mean, 0, epoch, key, 0) for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(frozen_latent(mean, mean, 0, key), frozen_latent(mean, mean, 0, key))  # the named choice


@table.row(23)
def masks_of_another_size_missing_and_left_over(theirs):
    image(theirs / "set" / "a.png")
    image(theirs / "set" / "b.png")
    masks = image(theirs / "masks" / "a.png", 80, 48, caption=None).parent
    image(masks / "old.png", caption=None)
    folders = {"folder": str(theirs / "set"), "conditioning_data_dir": str(masks), "masked_loss": True}
    seen = yield {"dataset": folders}
    seen.told("mask.missing", str(masks), "1 of 2 images")
    seen.told("mask.unmatched", str(masks), "old.png")
    seen.told("mask.other-size", str(masks), "a.png (80 x 48 for 160 x 96)")
    assert seen.report.ok and seen.row("a.png").mask and not seen.row("b.png").mask
    (masks / "b.png").write_bytes(b"no image")
    for mask_folder in (masks, theirs / "gone"):  # ignored with masked loss off
        seen.look(dataset={**folders, "masked_loss": False, "conditioning_data_dir": str(mask_folder)})
        assert [each for each in seen.report.problems if each.code.startswith(("mask.", "dataset.missing"))] == []
        seen.trains("a.png", "b.png")


@table.row(24)
def several_resolutions_of_one_folder(theirs):
    image(theirs / "a.png")
    seen = yield {"dataset": {"more_resolutions": [256]}}
    assert [each.placement.bucket for each in seen.report.placed] == [(160, 96), (320, 192)]
    assert len(latent_cache(seen).missing(seen.report.placed)) == 2  # each resolution has an entry of its own


@table.row(25)
def what_windows_and_macos_leave_behind(theirs):
    image(theirs / "a.png")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "__MACOSX/._a.png", "_atelier_trash/old.png"):
        (theirs / name).parent.mkdir(exist_ok=True)
        (theirs / name).write_bytes(b"\x00\x05\x16\x07")
    seen = yield {}
    seen.trains("a.png")
    assert not seen.problems


@table.row(26)
def a_slow_drive(theirs):
    for number in range(3):
        image(theirs / f"{number}.png")
    seen = yield {}

    def refuse(*_, **__):
        raise AssertionError("an unchanged image is opened again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.dataset.sources.walk.read_header", refuse)
        patch.setattr("core.dataset.images.look.open_decoded", refuse)
        assert seen.look().trained == 3


# ---- the table


def latent_cache(seen):
    from core.dataset.caches.latents import LatentCache

    return LatentCache(seen.workspace.outputs / "cache", "vae")


def finite(pixels):
    """Stands in for a VAE."""
    import torch

    gray = torch.nn.functional.avg_pool2d(pixels, 8).mean(1, keepdim=True)
    mean = gray.expand(-1, 4, -1, -1)
    return mean, mean + 1


@pytest.mark.parametrize("name", table.rows)
def test_what_is_wrong_is_told_and_nothing_is_changed(tmp_path, name):
    table.run(name, tmp_path)


def test_every_pitfall_of_the_reference_has_a_row():
    assert [int(name.split()[0]) for name in table.rows] == list(range(1, 27))


@pytest.mark.parametrize("many", [False, True])
def test_a_png_of_endless_text_chunks_is_refused(tmp_path, many):
    """Each is read at every opening, so that 100,000 took a third of a second each time."""
    chunks = [(b"tEXt", b"a\0b")] * (opening.MAX_CHUNKS + 1 if many else opening.MAX_CHUNKS // 2)
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 8, *chunks, data=flat(8, 8)))
    with pytest.raises(opening.BrokenImage) if many else nullcontext():
        opening.open_decoded(path)
