"""Hostile images, the settings in them, zips and folders of them, and who reads them."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.hostile.changes import DEEP, NUMBERS, SPECIAL, Files, changed, said, special, text, written

# ---- images


def _image(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **more: Any) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").convert(mode).save(out, kind, **more)
    return out.getvalue()


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, color: int = 2, data: bytes = b""
) -> bytes:
    """A PNG of these chunks between header and pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def flat(width: int, height: int, color: int = 2) -> bytes:
    """Packed pixels of one color."""
    row = b"\0" * (1 + width * {0: 1, 2: 3, 6: 4}[color])
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])


def _packed(text: bytes) -> bytes:
    return b"parameters\0\0" + zlib.compress(text)


def _many_text_chunks() -> bytes:
    return png(8, 8, *[(b"tEXt", b"k%d\0v" % number) for number in range(100_000)], data=flat(8, 8))


def _text_bomb() -> bytes:
    """400 MB of text in 2 MB."""
    packer = zlib.compressobj(1)
    block = b"a" * (1 << 20)
    packed = b"".join([*(packer.compress(block) for _ in range(400)), packer.flush()])
    return png(8, 8, (b"zTXt", b"parameters\0\0" + packed), data=flat(8, 8))


def _exif_loop() -> bytes:
    """A TIFF whose directory leads to itself, as EXIF; and one of 65,535 entries."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + struct.pack("<I", 8)


def _exif_many() -> bytes:
    entries = b"".join(struct.pack("<HHII", number, 2, 0x7FFFFFFF, 8) for number in range(60_000))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + entries + struct.pack("<I", 0)


def _tiff(tags: list[tuple[int, int, int, int]]) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + b"\0" * 64


def _xmp(depth: int) -> bytes:
    return (b"<x:a>" * depth + b"</x:a>" * depth).replace(b"x:a>", b"rdf:Description>")


def _laughs() -> bytes:
    lines = [b'<!DOCTYPE l [<!ENTITY a0 "ha">']
    lines += [b'<!ENTITY a%d "%s">' % (number, b"&a%d;" % (number - 1) * 10) for number in range(1, 12)]
    return b"<?xml version='1.0'?>" + b"".join(lines) + b"]><x:xmpmeta>&a11;</x:xmpmeta>"


def _png_xmp(text: bytes) -> bytes:
    return png(8, 8, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text), data=flat(8, 8))


def _gif_frames() -> bytes:
    frames = [Image.new("P", (64, 64), number) for number in range(200)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _jpeg_sized(width: int, height: int) -> bytes:
    """A JPEG that says another size than it holds."""
    data = _image("JPEG")
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def _jpeg_segments() -> bytes:
    data = _image("JPEG")
    return data[:2] + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + b"\0" * 65527) * 100 + data[2:]


def _bmp_sized() -> bytes:
    data = bytearray(_image("BMP"))
    data[18:26] = struct.pack("<ii", 60_000, -60_000)
    return bytes(data)


IMAGES: list[tuple[str, Callable[[], bytes]]] = [
    ("empty.png", text("")),
    ("text.png", text("hello")),
    ("page.jpg", text("<html></html>")),
    ("bomb.png", lambda: png(60_000, 60_000, data=flat(100, 100))),
    ("bomb2.png", lambda: png(0x7FFFFFFF, 0x7FFFFFFF, data=b"")),
    ("zero.png", lambda: png(0, 0)),
    ("line.png", lambda: png(100_000, 1, data=flat(100_000, 1))),
    ("column.png", lambda: png(1, 100_000, data=flat(1, 100_000))),
    ("gray13000.png", lambda: png(13_000, 13_000, color=0, data=flat(13_000, 13_000, 0))),
    ("textbomb.png", _text_bomb),
    ("chunks.png", _many_text_chunks),
    ("params.png", lambda: png(8, 8, (b"zTXt", _packed(b"x" * 60_000_000)), data=flat(8, 8))),
    ("xmp.png", lambda: _png_xmp(_xmp(DEEP))),
    ("laughs.png", lambda: _png_xmp(_laughs())),
    ("loop.png", lambda: png(8, 8, (b"eXIf", _exif_loop()), data=flat(8, 8))),
    ("many.png", lambda: png(8, 8, (b"eXIf", _exif_many()), data=flat(8, 8))),
    ("icc.png", lambda: png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 50_000_000)), data=flat(8, 8))),
    ("palette.png", lambda: png(8, 8, color=3, data=flat(8, 8, 0))),
    ("apng.png", lambda: png(8, 8, (b"acTL", struct.pack(">II", 0x7FFFFFFF, 0)), data=flat(8, 8))),
    ("loop.tif", _exif_loop),
    ("strips.tif", lambda: _tiff([(256, 4, 1, 65_000), (257, 4, 1, 65_000), (258, 3, 1, 8), (273, 4, 0x7FFFFFFF, 8)])),
    (
        "rational.tif",
        lambda: _tiff([(256, 4, 1, 8), (257, 4, 1, 8), (282, 5, 1, 8), (262, 3, 1, 99), (277, 3, 1, 999)]),
    ),
    ("frames.gif", _gif_frames),
    ("sized.jpg", lambda: _jpeg_sized(65_000, 65_000)),
    ("sized2.jpg", lambda: _jpeg_sized(12_000, 12_000)),
    ("segments.jpg", _jpeg_segments),
    ("sized.bmp", _bmp_sized),
    ("loop.jpg", lambda: _image("JPEG", exif=b"Exif\0\0" + _exif_loop())),
    ("half.webp", lambda: _image("WEBP")[:60]),
]
_KINDS = [
    ("PNG", "a.png"),
    ("JPEG", "a.jpg"),
    ("WEBP", "a.webp"),
    ("GIF", "a.gif"),
    ("BMP", "a.bmp"),
    ("TIFF", "a.tif"),
]
_KINDS += [("AVIF", "a.avif")]


def make_image(folder: Path, case: int) -> Path:
    kind, name = _KINDS[case % len(_KINDS)]
    return Files(name, lambda: _image(kind), IMAGES)(folder, case)


def read_image(path: Path) -> None:
    """As a scan, a training and the page read it. What cannot be read is a broken image with a reason."""
    from core.dataset.images.opening import BrokenImage, open_decoded, read_header
    from core.dataset.images.thumbnails import thumbnail
    from core.generation.images.metadata import read_image_metadata

    enough = lambda each: open_decoded(each, enough=(1024, 1024))  # noqa: E731
    for read in (read_header, enough, lambda each: thumbnail(each, 256, path.parent / "thumbs")):
        try:
            read(path)
        except BrokenImage as error:
            assert 3 < len(str(error)) < 300, str(error)[:200]
    record = read_image_metadata(path)
    assert record.job or record.reason


def read_texts(path: Path) -> None:
    """As captions are made of it: a text or the reason why there is none."""
    from core.captioning.source.metadata import _caption_of
    from core.record.problems import ProblemsError
    from core.settings.captioning.sources import ImageTextSettings

    for way in ("first", "all"):
        found = _caption_of(path, ImageTextSettings(combine=way, remove_weights=True), ", ")
    assert len(found.text) <= 100_000
    if found.problem:
        raise ProblemsError([found.problem])


def read_painted(path: Path) -> None:
    """As a mask that was sent to the page for an image of 64 x 64, and as what painting starts from."""
    from core.dataset.images.painting import MAX_BYTES, decoded_mask, initial_mask
    from core.dataset.sources.image_info import ImageInfo
    from core.record.problems import ProblemsError
    from core.record.regular import open_regular

    info = ImageInfo("set", path.name, path, 64, 64, 1, 1)
    start = initial_mask(info, path, lambda each: True)
    assert start.unread or start.mask is None or start.mask.size == (64, 64)
    try:
        with open_regular(path) as file:
            mask = decoded_mask(file.read(MAX_BYTES + 1), info)
    except ProblemsError as error:
        said(error.problems)
    else:
        assert (mask.mode, mask.size) == ("L", (64, 64))


GOOD_PNG = _image("PNG", size=(64, 64))


# ---- settings in images

A1111 = """a fox, (red:1.3) <lora:fox:0.8>
Negative prompt: blurry
Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 12345, Size: 512x512, Model hash: abcdef1234, \
Model: sd15, Clip skip: 2, Lora hashes: "fox: 123456789abc", Version: v1.9.0"""
_LINE = "a\nSteps: {0}, Sampler: Euler a, CFG scale: {0}, Seed: {0}, Size: {0}x{0}, Clip skip: {0}"
SETTINGS_TEXTS = [
    *[_LINE.format(number.decode("latin-1")) for number in NUMBERS],
    "a <lora:b:" + "9" * 5000 + ">\nSteps: 1, Seed: 1, CFG scale: 1",
    "<lora:a:1>" * 20_000 + "\nSteps: 1, Seed: 1, CFG scale: 1",
    "a\n" + "a: b, " * 4000,
    "a\n" + 'Steps: "' + "\\" * 15_000,
    "a\n" + "Steps: " + " " * 19_000,
    "a\n" + "x" * 19_000,
    "a\n" + "x -/" * 4900,
    "(" * 1_000_000 + "\nSteps: 1, Seed: 1, CFG scale: 1",
    "\n" * 1_000_000 + "Steps: 1, Seed: 1, CFG scale: 1",
    "<lora:" * 500_000 + "\nSteps: 1, Seed: 1, CFG scale: 1",
    'a\nSteps: 1, Seed: 1, CFG scale: 1, Lora hashes: "' + "a: " * 6000 + '"',
    "a\nSteps: ²³, Seed: ٣, CFG scale: ½, Clip skip: ²",
    "a\nSteps: 1_0, Seed: 1, CFG scale: nan, Sampler: " + "E" * 15_000,
]
_CHUNK = {
    "format": 1,
    "job": {"generate": {"prompt": "a fox", "seed": 5, "width": 512, "height": 512, "guidance_scale": 7.0}},
    "hashes": {"model": "ab", "loras": {"a": "b"}, "embeddings": {}},
}
SETTINGS_JSON = [
    "[" * DEEP,
    '{"format":' + "[" * DEEP,
    '{"format": NaN, "job": {}}',
    '{"format": 1e999, "job": {}}',
    '{"format": "1", "job": {}}',
    '{"format": ' + "9" * 5000 + "}",
    '{"format": 1, "job": {"generate": {"seed": 1e999}}}',
    '{"format": 1, "job": {"generate": {"width": ' + "9" * 4000 + "}}}",
    '{"format": 1, "job": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    '{"format": 1, "job": {}, "hashes": []}',
    '{"format": 1, "job": {}, "hashes": null}',
    '{"format": 1, "job": {}, "hashes": {"loras": [1]}}',
    '{"format": 1, "job": {"generate": {' + ",".join(f'"key{n}": 1' for n in range(30_000)) + "}}}",
    '{"format": 1, "job": {"generate": {"prompt": "\\ud800"}}}',
    "[" + "[]," * 2_000_000 + "[]]",
]


def _with_text(key: bytes, content: bytes) -> bytes:
    return png(8, 8, (b"iTXt", key + b"\0\0\0\0\0" + content), data=flat(8, 8))


def make_settings_image(folder: Path, case: int) -> Path:
    """In PNG text by turns, in EXIF of a JPEG for some."""
    if case == 0:
        return written(folder, "a.png", _with_text(b"parameters", A1111.encode()))
    cases = [(b"parameters", each) for each in SETTINGS_TEXTS] + [(b"atelier", each) for each in SETTINGS_JSON]
    if case <= len(cases):
        key, said = cases[case - 1]
        return written(folder, "a.png", _with_text(key, said.encode("utf-8", "surrogatepass")))
    rng = random.Random(f"settings {case}")
    if case % 3 == 0:
        return written(folder, "a.png", _with_text(b"atelier", changed(json.dumps(_CHUNK).encode(), rng)))
    content = changed(A1111.encode(), rng)
    if case % 3 == 1:
        return written(folder, "a.png", _with_text(b"parameters", content))
    coded = b"UNICODE\0" + content.decode("utf-8", "replace").encode(rng.choice(("utf-16-be", "utf-16-le")), "replace")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = coded[:60_000]
    return written(folder, "a.jpg", changed(_image("JPEG", exif=exif), rng) if case % 2 else _image("JPEG", exif=exif))


def read_settings_image(path: Path) -> None:
    from core.generation.images.a1111 import from_a1111_text
    from core.generation.images.metadata import read_image_metadata

    record = read_image_metadata(path)
    assert record.job or record.reason
    assert sum(len(str(note)) for note in record.notes) < 20_000, "notes without end"
    from_a1111_text(path.read_bytes()[:200_000].decode("latin-1"))


# ---- zips


def _zip(*entries: tuple[str, bytes], pack: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", pack) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def _good_zip() -> bytes:
    return _zip(("fox/a.png", GOOD_PNG), ("fox/a.txt", b"a fox"), ("fox/b.jpg", _image("JPEG")))


def _zip_linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("b.png", GOOD_PNG)
    return out.getvalue()


def _zip_many() -> bytes:
    return _zip(*[(f"{number}.png", b"") for number in range(15_000)], pack=zipfile.ZIP_STORED)


ZIPS: list[tuple[str, Callable[[], bytes]]] = [
    ("a.zip", text("")),
    ("a.zip", text("PK")),
    ("a.zip", text(b"PK\5\6" + b"\0" * 18)),
    ("a.zip", text(b"PK\5\6" + b"\xff" * 18)),
    ("a.zip", lambda: _zip(("../../a.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("/etc/a.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("//server/share/a.png", GOOD_PNG), ("\\\\server\\b.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(*[(f"{number}.txt", b"\0" * 40_000_000) for number in range(80)], ("a.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("C:\\a.png", GOOD_PNG), ("con.png", b""), ("a\0b.png", b""))),
    ("a.zip", lambda: _zip(("a" * 5000 + ".png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("a/" * 5000 + "a.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("a/" * 100 + "a.png", GOOD_PNG), ("b.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("a.png/b.png", GOOD_PNG), ("a.png", GOOD_PNG))),
    ("a.zip", lambda: _zip(("a.png", b"\0" * 150_000_000))),
    ("a.zip", lambda: _zip(("a.png", GOOD_PNG), pack=zipfile.ZIP_LZMA)),
    ("a.zip", lambda: _zip(("a.png", GOOD_PNG), pack=zipfile.ZIP_BZIP2)),
    ("a.zip", lambda: _zip(("\u202ea.png", GOOD_PNG), ("\x1b.png", b""))),
    ("a.zip", lambda: _zip(("a.png", GOOD_PNG), ("A.png", GOOD_PNG), ("a.png ", GOOD_PNG))),
    ("a.zip", lambda: _zip(*[("a.png", GOOD_PNG)] * 300)),
    ("a.zip", _zip_linked),
    ("a.zip", _zip_many),
    ("a.zip", lambda: _good_zip()[:-10]),
    ("a.zip", lambda: b"x" * 1000 + _good_zip()),
]


def make_zip(folder: Path, case: int) -> Path:
    return Files("a.zip", _good_zip, ZIPS)(folder, case)


def read_zip(path: Path) -> None:
    from core.dataset.sources.archive import unpack_zip

    target = path.parent / "datasets"
    before = sorted(each.name for each in path.parent.iterdir())
    try:
        unpack_zip(path, target)
    finally:
        left = list(target.glob(".tmp-*")) if target.is_dir() else []
        assert not left and sorted({*before, "datasets"}) >= sorted(each.name for each in path.parent.iterdir())


# ---- folders


def make_folder(folder: Path, case: int) -> Path:
    """Good images and, next to them, things that are none; in folders that lead round in circles."""
    rng = random.Random(case)
    top = folder / "images"
    top.mkdir()
    written(top, "good.png", GOOD_PNG)
    written(top, "good.txt", b"a fox")
    if case == 0:
        return top
    inner = [top]
    for number in range(rng.randint(0, 4)):
        inner.append(
            rng.choice(inner) / rng.choice([f"{number}_fox", "10_" + "x" * 200, f"sub {number}", "9" * 200 + "_a"])
        )
        inner[-1].mkdir(exist_ok=True)
    for number in range(rng.randint(2, 12)):
        place, stem = rng.choice(inner), rng.choice([f"f{number}", "x" * 200 + str(number), f"\u202e\n\x1b[2J{number}"])
        name = stem + rng.choice([".png", ".jpg", ".txt", ".caption", ".webp", ".npz", ".json", ""])
        kind = rng.choice([*SPECIAL, "bytes", "image", "up", "surrogate"])
        if os.path.lexists(place / name):
            continue
        if kind == "up":
            (place / name).symlink_to(rng.choice(inner), target_is_directory=True)
        elif kind == "bytes":
            written(place, name, rng.randbytes(500))
        elif kind == "image":
            written(place, name, GOOD_PNG)
        elif kind == "surrogate":
            written(Path(os.fsdecode(os.fsencode(place))), f"\udcff\udc80{number}.png", GOOD_PNG)
        else:
            special(place, name, kind)
            if rng.random() < 0.5 and not name.endswith(".png"):
                written(place, os.path.splitext(name)[0] + ".png", GOOD_PNG)
    return top


def read_folder(top: Path) -> None:
    """`train --check` for it: the good image trains, whatever lies next to it, and each thing in the way is named."""
    from core.dataset.preflight import preflight
    from core.dataset.sources.scan import describe_layout
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob

    describe_layout(top)
    dataset = {"folder": str(top), "skip_broken": True, "resolution": 128, "bucket_reso_steps": 32}
    job = TrainJob.model_validate({"dataset": dataset})
    report = preflight(job, Workspace(outputs=top.parent / "outputs"), decode=True, count_tokens=len)
    said(report.problems)
    assert not [each for each in report.problems if each.level == "error"], report.problems
    assert any(each.key[1] == "good.png" and each.trains for each in report.rows)


# ---- masks


def make_mask(folder: Path, case: int) -> Path:
    """A mask of one of two images, by name; by turns the other image is the hostile one, and masks by its transparency."""
    hostile = make_image(folder, case) if case else written(folder, "a.png", _image("PNG", "L", (64, 64)))
    masks, images = folder / "masks", folder / "images"
    masks.mkdir()
    images.mkdir()
    written(images, "good.png", GOOD_PNG)
    written(images, "clear.png", _image("PNG", "RGBA", (64, 64)))
    name = ("good" if case % 3 else "clear") + hostile.suffix
    place = masks if case % 3 else images
    if case % 3 == 0:
        (images / "clear.png").unlink()
    if os.path.lexists(hostile):
        os.replace(hostile, place / name)
    return folder


def read_mask(folder: Path) -> None:
    """What passes the check before a training, decoded, gives the training its masks."""
    from core.dataset.images.masks import load_mask
    from core.dataset.images.views import draw_view
    from core.dataset.preflight import preflight
    from core.record.problems import ProblemsError
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob

    masks = {"conditioning_data_dir": str(folder / "masks"), "masked_loss": True}
    for more in (masks | {"skip_broken": True}, {"alpha_mask": True, "skip_broken": True}, masks):
        dataset = {"folder": str(folder / "images"), "resolution": 64, "bucket_reso_steps": 8}
        job = TrainJob.model_validate({"dataset": dataset | more})
        report = preflight(job, Workspace(outputs=folder / "outputs"), decode=True, count_tokens=len)
        said(report.problems)
        if not report.ok:
            raise ProblemsError(list(report.problems))
        for each in report.placed:
            mask = load_mask(each, draw_view(each, 1, 0, 0))
            assert mask is None or (mask.shape[0] == 1 and 0 <= mask.min() and mask.max() <= 1)


FAMILIES = {
    "masks": (make_mask, lambda: {"read": read_mask}),
    "images": (make_image, lambda: {"read": read_image, "texts": read_texts, "paint": read_painted}),
    "image settings": (make_settings_image, lambda: {"read": read_settings_image, "texts": read_texts}),
    "zips": (make_zip, lambda: {"read": read_zip}),
    "image folders": (make_folder, lambda: {"read": read_folder}),
}
