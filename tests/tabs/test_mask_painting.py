"""Painted masks, the server's side: what may be saved, where it goes, what training makes of it, and whose files stay as they are."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image
from work_parts import answered, image, make_page, wait_until

from core.dataset.images.masks import load_mask
from core.dataset.images.views import draw_view
from core.dataset.preflight import preflight
from core.record.workspace import display_path
from core.settings.dataset.source import Source
from tabs.captions.mask_painting import Masks
from tabs.captions.tab import CaptionHandlers
from tabs.dataset.concepts import entries_of, with_entries


class Painter:
    """A browser on the Captions tab, as the server sees it."""

    def __init__(self, folder, *, home=None, shared=False, **settings):
        self.page = make_page(home or folder.parent, shared=shared)
        entry = Source(folder=str(folder)).model_copy(update=settings)
        self.page.project.replace(with_entries(self.page.project.job, [entry]))
        self.desk = CaptionHandlers(self.page)
        self.masks = Masks(self.page, self.desk.edits)
        self.folder = self.page.workspace.datasets / f"{folder.name}_masks"
        self.read()

    def read(self) -> None:
        self.page.reading.want(now=True)
        wait_until(lambda: not self.page.reading.busy)
        shelf = self.desk.answer({"act": "open"})
        self.keys = {item["name"]: key for key, item in shelf["items"].items()}

    def ask(self, act: str, name: str, **more):
        return answered(self.masks.answer, {"act": act, "key": self.keys[name], **more})

    def save(self, name: str, mask: Image.Image | bytes, over: str = "", **more):
        data = mask if isinstance(mask, bytes) else png(mask)
        return self.ask("save", name, png=base64.b64encode(data).decode(), over=over, **more)

    def conditioning(self):
        report = preflight(self.page.project.job, self.page.workspace)
        return {each.image.relative: each.image.conditioning for each in (*report.placed, *report.validation)}


def png(mask: Image.Image) -> bytes:
    written = BytesIO()
    mask.save(written, "PNG")
    return written.getvalue()


def left_half(size) -> Image.Image:
    """As a browser sends it: RGBA, the left half white."""
    mask = Image.new("RGBA", size, "black")
    mask.paste("white", (0, 0, size[0] // 2, size[1]))
    return mask


def shown(answer) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(answer["mask"].partition(",")[2])))


def codes(answer) -> list[str]:
    return [problem["code"] for problem in answer["problems"]]


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    image(tmp_path / "set" / "a.png", (64, 48))
    image(tmp_path / "set" / "b.png", (64, 48))
    image(tmp_path / "set" / "sub" / "a.png", (32, 32))
    return tmp_path / "set"


def test_a_saved_mask_is_gray_of_the_images_size_and_is_shown_again(folder):
    painter, before = Painter(folder), files(folder)
    opened = painter.ask("open", "a.png")
    assert (opened["mask"], opened["version"]) == ("", "")
    assert (opened["image"]["width"], opened["image"]["height"]) == (64, 48)
    answer = painter.save("a.png", left_half((64, 48)))
    assert answer["offer"] and not painter.page.project.job.dataset.sources
    with Image.open(painter.folder / "a.png") as written:
        assert (written.mode, written.size) == ("L", (64, 48))
        assert (written.getpixel((0, 0)), written.getpixel((63, 0))) == (255, 0)
    again = painter.ask("open", "a.png")
    assert again["version"] == answer["version"] != ""
    assert (shown(again).getpixel((31, 47)), shown(again).getpixel((32, 47))) == (255, 0)
    assert files(folder) == before


def test_masks_never_take_the_place_of_control_images(folder, monkeypatch):
    painter, before = Painter(folder), Masks._current_concept
    monkeypatch.setattr(Masks, "_current_concept", lambda *asked: replace(before(*asked), control=True))
    assert not painter.save("a.png", left_half((64, 48)))["offer"]
    assert codes(painter.ask("use", "a.png")) == ["mask.control-images"]
    assert not painter.page.project.job.dataset.conditioning_data_dir


def test_one_click_trains_the_folder_with_its_masks_and_undo_takes_it_back(folder):
    painter = Painter(folder)
    before = painter.page.project.job
    painter.save("a.png", left_half((64, 48)))
    assert "not used" in painter.ask("look", "a.png")["line"]
    answer = painter.ask("use", "a.png")
    (entry,) = entries_of(painter.page.project.job)
    assert (entry.conditioning_data_dir, entry.masked_loss) == (display_path(painter.folder), True)
    assert not answer["offer"] and "used for training" in painter.ask("look", "a.png")["line"]
    assert "whole image trains" in painter.ask("look", "b.png")["line"]
    # The mask at the top is not one of the image of its name in the sub-folder.
    assert painter.conditioning() == {"a.png": painter.folder / "a.png", "b.png": None, "sub/a.png": None}
    painter.page.project.undo()
    assert painter.page.project.job == before


def test_what_is_painted_is_the_mask_that_training_loads(folder):
    painter = Painter(folder)
    painter.save("sub/a.png", left_half((32, 32)))
    painter.ask("use", "sub/a.png")
    report = preflight(painter.page.project.job, painter.page.workspace)
    placed = next(each for each in report.placed if each.image.relative == "sub/a.png")
    mask = load_mask(placed, draw_view(placed, seed=1, epoch=0, repeat=0))
    assert mask is not None and mask[0, :, 0].min() == 1 and mask[0, :, -1].max() == 0
    assert mask.mean() == pytest.approx(0.5, abs=0.02)  # the border between the halves is resized


def test_masks_of_a_rotated_photo_have_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set").mkdir()
    Image.new("RGB", (80, 48), "teal").save(tmp_path / "set" / "phone.jpg", exif=exif)
    painter = Painter(tmp_path / "set")
    opened = painter.ask("open", "phone.jpg")["image"]
    assert (opened["width"], opened["height"]) == (48, 80)
    assert codes(painter.save("phone.jpg", left_half((80, 48)))) == ["mask.other-size"]
    assert "said" in painter.save("phone.jpg", left_half((48, 80)))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    written = BytesIO()
    Image.new("L", (64, 48)).save(written, "JPEG")
    return written.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "mask.not-png"),
        (b"not an image", "mask.not-png"),
        (jpeg(), "mask.not-png"),
        (png(Image.new("L", (64, 48)))[:60], "mask.not-png"),
        (bomb(64, 48), "mask.not-png"),
        (bomb(30_000, 30_000), "mask.not-png"),
        (bomb(9_000, 9_000), "mask.other-size"),
        (png(Image.new("L", (48, 64))), "mask.other-size"),
        (b"\x89PNG\r\n\x1a\n" + bytes(6 << 20), "mask.too-many-bytes"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_anything_but_a_png_of_the_images_size_is_refused_and_nothing_is_written(folder, data, code):
    painter = Painter(folder)
    assert codes(painter.save("a.png", data)) == [code]
    assert not painter.page.workspace.datasets.exists()


@pytest.mark.parametrize("text", [None, 7, "%%%", "AAA", "é", ["AAAA"]])
def test_what_is_no_base64_is_refused(folder, text):
    painter = Painter(folder)
    assert codes(painter.ask("save", "a.png", png=text, over="")) in (["mask.not-base64"], ["mask.not-png"])
    assert not painter.page.workspace.datasets.exists()


@pytest.mark.parametrize("key", ["", "../../a.png", "/etc/passwd", "a.png", "0" * 16, None, {"a": 1}])
def test_a_key_that_names_no_image_of_the_dataset_is_refused(folder, key):
    masks = Painter(folder).masks
    assert codes(answered(masks.answer, {"act": "open", "key": key})) == ["mask.unknown-image"]
    assert codes(answered(masks.answer, {"act": "delete", "key": key})) == ["mask.unknown-image"]


def test_a_second_window_does_not_overwrite_what_the_first_has_saved_unless_asked(folder):
    painter = Painter(folder)
    first = painter.save("a.png", left_half((64, 48)))["version"]
    second = painter.save("a.png", Image.new("L", (64, 48), 255), over=first)["version"]
    assert codes(painter.save("a.png", left_half((64, 48)), over=first)) == ["mask.changed-meanwhile"]
    assert painter.ask("open", "a.png")["version"] == second
    assert "said" in painter.save("a.png", left_half((64, 48)), over=first, always=True)


def test_two_images_of_one_stem_would_share_a_mask_and_are_refused(folder):
    image(folder / "a.jpg", (64, 48))
    painter = Painter(folder)
    answer = painter.save("a.png", left_half((64, 48)))
    assert codes(answer) == ["mask.same-stem"] and "a.jpg" in answer["problems"][0]["what"]
    assert "said" in painter.save("b.png", left_half((64, 48)))


@pytest.mark.parametrize("suffix", [None, "-masklabel", "_mask"])
@pytest.mark.parametrize("layout", ["none", "beside", "folder", "inside", "alpha"])
def test_painting_one_mask_keeps_all_others_whatever_their_names_and_places(tmp_path, suffix, layout):
    label = suffix or ("-masklabel" if layout == "beside" else "")
    own = tmp_path / "set" / "masks" if layout == "inside" else tmp_path / "own"
    for name in ("set/a", "set/b", "other/c"):
        path = image(tmp_path / f"{name}.png", (64, 48))
        if name != "set/a" and layout in ("beside", "folder", "inside"):
            image((path.parent if layout == "beside" else own) / f"{path.stem}{label}.png", (64, 48))
    painter = Painter(tmp_path / "set")
    job = with_entries(painter.page.project.job, [Source(folder=str(tmp_path / name)) for name in ("set", "other")])
    masks = {"conditioning_suffix": suffix, "masked_loss": True, "alpha_mask": layout == "alpha"}
    masks["conditioning_data_dir"] = str(own) if layout in ("folder", "inside") else None
    painter.page.project.replace(job.with_settings(dataset=masks))
    painter.read()
    before = painter.conditioning()
    assert set(before) == {"a.png", "b.png", "c.png"} and bool(before["b.png"]) == (layout not in ("none", "alpha"))
    painter.save("a.png", left_half((64, 48)))
    painter.ask("use", "a.png")
    after = painter.conditioning()
    assert after == before | {"a.png": painter.folder / "a.png"}
    painter.read()
    assert set(painter.keys) == {"a.png", "b.png", "c.png"}
    lines = {name: painter.ask("look", name)["line"] for name, path in after.items() if path}
    assert lines.pop("a.png") == "Painted mask, used for training."
    assert all(line == f"Mask from {after[name].parent.name}, used for training." for name, line in lines.items())
    if layout in ("beside", "folder", "inside"):  # another program replaces a mask and adds one
        place = tmp_path / "set" if layout == "beside" else own
        image(tmp_path / "set" / "d.png", (64, 48))
        image(place / f"b{label}.png", (64, 48), "gray")
        added = image(place / f"d{label}.png", (64, 48))
        assert painter.conditioning() == after | {"d.png": added}


@pytest.mark.parametrize("masked", [True, False])
def test_a_mask_that_was_not_painted_is_not_called_painted(folder, masked):
    image(folder / "b-masklabel.png", (64, 48), "gray")
    painter = Painter(folder, masked_loss=masked)
    before = painter.ask("look", "b.png")["line"]
    painter.save("a.png", left_half((64, 48)))
    assert (
        painter.ask("look", "b.png")["line"] == before and shown(painter.ask("open", "b.png")).getpixel((0, 0)) == 128
    )
    assert painter.ask("look", "a.png")["line"] == "Painted mask, not used for training."
    painter.ask("use", "a.png")
    painter.read()
    assert painter.ask("look", "b.png")["line"] == "Mask from set, used for training."
    painter.page.project.undo()
    painter.read()
    painter.save("b.png", left_half((64, 48)), over=painter.ask("open", "b.png")["version"])
    used = "Mask from set, used for training, not the painted one."
    assert painter.ask("look", "b.png")["line"] == (used if masked else "Painted mask, not used for training.")
    painter.ask("use", "b.png")
    assert painter.ask("look", "b.png")["line"] == "Painted mask, used for training."


def test_the_mask_folder_chosen_last_is_the_one_that_painting_keeps(folder, tmp_path):
    masks = [image(tmp_path / name / "b.png", (64, 48)) for name in ("first", "second")]
    painter = Painter(folder)
    painter.save("a.png", left_half((64, 48)))
    for mask in (*masks, None):
        chosen = {"folder": str(folder), "conditioning_data_dir": mask and str(mask.parent), "masked_loss": True}
        painter.page.project.replace(with_entries(painter.page.project.job, [Source(**chosen)]))
        painter.read()
        for _ in range(2):
            painter.ask("use", "a.png")
            assert painter.conditioning()["b.png"] == mask


def test_images_that_lie_in_no_folder_of_the_dataset_are_refused(folder):
    painter = Painter(folder)
    folder.rename(folder.with_name("moved"))
    assert codes(painter.ask("open", "a.png")) == ["mask.no-folder"]


def test_transparency_is_what_painting_starts_from(tmp_path):
    (tmp_path / "set").mkdir()
    cut = Image.new("RGBA", (40, 40), "teal")
    cut.putalpha(left_half((40, 40)).getchannel("R"))
    cut.save(tmp_path / "set" / "cut.png")
    painter = Painter(tmp_path / "set", alpha_mask=True)
    mask = shown(painter.ask("open", "cut.png"))
    assert (mask.getpixel((0, 0)), mask.getpixel((39, 0))) == (255, 0)
    assert "transparent areas do not train" in painter.ask("look", "cut.png")["line"]


def test_an_image_without_transparency_trains_whole_also_where_transparency_masks(tmp_path):
    image(tmp_path / "set" / "a.jpg", (64, 48))
    painter = Painter(tmp_path / "set", alpha_mask=True)
    assert painter.ask("look", "a.jpg")["line"] == "No mask: the whole image trains."


def test_a_broken_mask_can_be_painted_anew(folder, tmp_path):
    own = tmp_path / "own"
    image(own / "a.png", (64, 48))
    painter = Painter(folder, conditioning_data_dir=str(own), masked_loss=True)
    data = (own / "a.png").read_bytes()
    (own / "a.png").write_bytes(data[:80])
    opened = painter.ask("open", "a.png")
    assert opened["mask"] == "" and "truncated" in opened["note"]
    painter.save("a.png", left_half((64, 48)))
    assert shown(painter.ask("open", "a.png")).getpixel((0, 0)) == 255


def test_a_folder_of_that_name_that_is_not_ours_is_never_written_to(folder, tmp_path):
    other = tmp_path / "other" / "set"
    image(other / "a.png", (64, 48))
    painter = Painter(folder)
    painter.folder.mkdir(parents=True)
    painter.save("a.png", left_half((64, 48)))
    assert not list(painter.folder.iterdir())
    assert (painter.folder.with_name("set_masks-2") / "a.png").is_file()
    painter.page.project.replace(with_entries(painter.page.project.job, [Source(folder=str(other))]))
    painter.read()
    painter.save("a.png", left_half((64, 48)))
    assert (painter.folder.with_name("set_masks-3") / "a.png").is_file()


def test_images_above_the_limit_and_masks_among_the_images_are_refused(folder, monkeypatch, tmp_path):
    painter = Painter(folder)
    monkeypatch.setattr("core.dataset.images.painting.LARGE_PIXELS", 2000)
    assert codes(painter.ask("open", "a.png")) == ["mask.image-too-large"]
    assert "title" in painter.ask("open", "sub/a.png")
    monkeypatch.undo()
    image(tmp_path / "outputs" / "datasets" / "x.png", (64, 48))
    assert codes(Painter(tmp_path / "outputs").ask("open", "datasets/x.png")) == ["mask.among-images"]


def test_a_shared_page_paints_on_its_own_images_and_follows_no_link_out(tmp_path):
    datasets = tmp_path / "outputs" / "datasets"
    image(datasets / "set" / "a.png", (64, 48))
    secret = image(tmp_path / "secret" / "a.png", (64, 48))
    (datasets / "set" / "a-masklabel.png").symlink_to(secret)
    painter = Painter(datasets / "set", home=tmp_path, shared=True)
    assert painter.ask("open", "a.png")["mask"] == ""
    assert painter.ask("open", "a.png")["image"]["url"].startswith("atelier/thumb?")
    assert "said" in painter.save("a.png", left_half((64, 48)))
    assert [name for name in files(painter.folder) if not name.startswith(".")] == ["a.png"]
    (painter.folder / "a.png").unlink()
    (painter.folder / "a.png").symlink_to(secret)
    assert codes(painter.ask("open", "a.png")) == ["shared.path-closed"]
    before = secret.read_bytes()
    assert codes(painter.save("a.png", left_half((64, 48)))) == ["shared.path-closed"]
    assert secret.read_bytes() == before


def test_a_shared_page_paints_on_no_image_outside_its_folders(folder):
    painter = Painter(folder)
    painter.masks.page = make_page(folder.parent / "other", shared=True)
    assert codes(painter.ask("open", "a.png")) == ["shared.path-closed"]
