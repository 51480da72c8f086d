"""Every kind of image file comes out as RGB in sRGB with its transparency apart; a missing reader is named."""

import re
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from core.dataset.images import opening, plugins
from core.dataset.images.colors import color_of
from core.dataset.images.opening import OTHER_TIFF, BrokenImage, open_decoded, open_rgb, problem_of, read_header
from core.dataset.sources.files import is_image_name

ORANGE = (200, 100, 50)
RGB16 = (200 * 257, 100 * 257, 50 * 257)


def png(path, depth: int, kind: int, row: bytes, width: int = 4, height: int = 4, hidden: bytes | None = None):
    """A PNG written by hand, since Pillow writes no 16-bit colors. kind: 0 gray, 2 RGB, 4 gray + alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    middle = chunk(b"tRNS", hidden) if hidden is not None else b""
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + pixels + chunk(b"IEND", b""))
    return path


def palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *ORANGE])
    return image


def lab():
    srgb, other = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(Image.new("RGB", (4, 4), ORANGE), srgb, other, outputMode="LAB")


def solid(mode, color):
    return Image.new(mode, (4, 4), color)


# name, image, options of save, color at the corner, allowed difference
MODES = [
    ("rgb.png", solid("RGB", ORANGE), {}, ORANGE, 0),
    ("rgb.bmp", solid("RGB", ORANGE), {}, ORANGE, 0),
    ("rgb.tif", solid("RGB", ORANGE), {}, ORANGE, 0),
    ("rgb.webp", solid("RGB", ORANGE), {"lossless": True}, ORANGE, 0),
    ("rgb.jpg", solid("RGB", ORANGE), {"quality": 95}, ORANGE, 3),
    ("rgb.avif", solid("RGB", ORANGE), {"quality": 100}, ORANGE, 3),
    ("gray.png", solid("L", 77), {}, (77, 77, 77), 0),
    ("gray.jpg", solid("L", 77), {"quality": 95}, (77, 77, 77), 1),
    ("bit.png", solid("1", 1), {}, (255, 255, 255), 0),
    ("bit.tif", solid("1", 0), {}, (0, 0, 0), 0),
    ("palette.png", palette(), {}, ORANGE, 0),
    ("palette.gif", palette(), {}, ORANGE, 0),
    ("palette.bmp", palette(), {}, ORANGE, 0),
    ("palette.tif", palette(), {}, ORANGE, 0),
    ("cmyk.tif", solid("CMYK", (0, 255, 255, 0)), {}, (255, 0, 0), 0),
    ("cmyk.jpg", solid("CMYK", (0, 255, 255, 0)), {"quality": 95}, (255, 0, 0), 4),
    ("ycc.tif", solid("RGB", ORANGE).convert("YCbCr"), {"compression": "jpeg", "quality": 95}, ORANGE, 4),
    ("lab.tif", lab(), {}, ORANGE, 4),  # Lab of 8 bits a channel is coarser than RGB
    ("gray16.png", Image.fromarray(np.full((4, 4), 0x4D4D, np.uint16)), {}, (77, 77, 77), 0),
    ("gray16.tif", Image.fromarray(np.full((4, 4), 0x4D4D, np.uint16)), {}, (77, 77, 77), 0),
    ("int32.tif", Image.fromarray(np.full((4, 4), 77 * 257, np.int32)), {}, (77, 77, 77), 0),
    ("float.tif", Image.fromarray(np.full((4, 4), 77 / 255, np.float32)), {}, (77, 77, 77), 0),
    ("float255.tif", Image.fromarray(np.array([[77.0, 255], [0, 1]], np.float32)), {}, (77, 77, 77), 0),
    ("nan.tif", Image.fromarray(np.array([[np.nan, 1], [0, 1]], np.float32)), {}, (0, 0, 0), 0),
    # with a transparency that lets nothing through
    ("opaque.png", solid("RGBA", (*ORANGE, 255)), {}, ORANGE, 0),
    ("opaque.tif", solid("RGBA", (*ORANGE, 255)), {}, ORANGE, 0),
    ("la.png", solid("LA", (77, 255)), {}, (77, 77, 77), 0),
]


@pytest.mark.parametrize(("name", "image", "options", "expected", "tolerance"), MODES, ids=[row[0] for row in MODES])
def test_an_image_of_any_mode_is_rgb(tmp_path, name, image, options, expected, tolerance):
    image.save(tmp_path / name, **options)
    opened = open_decoded(tmp_path / name)
    assert opened.colors.mode == "RGB" and opened.alpha is None
    got = np.array(opened.colors.getpixel((0, 0)))
    assert np.abs(got - np.array(expected)).max() <= tolerance
    assert read_header(tmp_path / name).width == opened.colors.width


LEVELS = [
    ("unsigned 32 bits", np.int32, (0, -1), {339: 1}, (0, 255)),
    ("above 16 bits", np.int32, (100_000, 200_000), {339: 1}, (128, 255)),
    ("signed 32 bits", np.int32, (2**30, 2**31 - 1), {}, (128, 255)),
    ("signed 16 bits", np.uint16, (16384, 32767), {339: 2}, (128, 255)),
    ("white is zero", np.uint16, (16384, 65535), {262: 0}, (191, 0)),
    ("floats beyond 1", np.float32, (0.5, 1.01), {}, (128, 255)),
    ("infinite", np.float32, (0.5, np.inf), {}, (128, 255)),
]


@pytest.mark.parametrize(("name", "kind", "values", "tags", "grays"), LEVELS, ids=[row[0] for row in LEVELS])
def test_grays_of_a_tiff_have_the_brightness_that_its_tags_state(tmp_path, name, kind, values, tags, grays):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([values], kind)).save(path, tiffinfo={339: 1} if kind is np.uint16 else {})
    for tag, value in tags.items():  # which Pillow does not write
        entry = rb"%s\x03\0\x01\0\0\0..\0\0" % re.escape(struct.pack("<H", tag))
        changed, count = re.subn(entry, struct.pack("<HHII", tag, 3, 1, value), path.read_bytes(), flags=re.DOTALL)
        assert count == 1
        path.write_bytes(changed)
    colors = open_rgb(path)
    assert tuple(colors.getpixel((index, 0))[0] for index in (0, 1)) == grays


def test_a_tiff_that_cannot_be_read_is_named_as_one(tmp_path):
    Image.fromarray(np.zeros((1, 2), np.float32)).save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(
        whole.replace(struct.pack("<HHII", 258, 3, 1, 32), struct.pack("<HHII", 258, 3, 1, 64))
    )
    with pytest.raises(BrokenImage, match="TIFF"):
        open_rgb(tmp_path / "a.tif")


def test_an_uncompressed_ycbcr_tiff_is_named_as_one_that_is_not_supported(tmp_path):
    Image.new("YCbCr", (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImage) as caught:
        open_rgb(tmp_path / "a.tif")
    assert str(caught.value) == OTHER_TIFF


SIXTEEN = [
    ("rgb", 2, struct.pack(">3H", *RGB16), None, 255),
    ("rgba opaque", 6, struct.pack(">4H", *RGB16, 65535), None, 255),
    ("rgba", 6, struct.pack(">4H", *RGB16, 128 * 257), None, 128),
    ("rgb, hidden color", 2, struct.pack(">3H", *RGB16), struct.pack(">3H", *RGB16), 0),
    ("rgb, another color hidden", 2, struct.pack(">3H", *RGB16), struct.pack(">3H", 0, 0, 0), 255),
]


@pytest.mark.parametrize(("name", "kind", "pixel", "hidden", "alpha"), SIXTEEN, ids=[row[0] for row in SIXTEEN])
def test_colors_of_sixteen_bits_are_scaled(tmp_path, name, kind, pixel, hidden, alpha):
    opened = open_decoded(png(tmp_path / "a.png", 16, kind, pixel * 4, hidden=hidden))
    assert opened.colors.getpixel((1, 1)) == ORANGE
    assert (opened.alpha.getpixel((1, 1)) if opened.alpha else 255) == alpha


GRAYS = [
    ("2 bits", 2, bytes([0b11000110]), 3, (255, 0, 85, 170)),
    ("4 bits", 4, bytes([0xF0, 0x5A]), 15, (255, 0, 85, 170)),
    ("8 bits", 8, bytes([255, 0, 85, 170]), 255, (255, 0, 85, 170)),
    ("16 bits", 16, struct.pack(">4H", 65535, 0, 85 * 257, 170 * 257), 65535, (255, 0, 85, 170)),
    ("1 bit", 1, bytes([0b10110000]), 1, (255, 0, 255, 255)),
]


@pytest.mark.parametrize(("name", "depth", "row", "hidden", "grays"), GRAYS, ids=[row[0] for row in GRAYS])
def test_the_transparent_gray_of_any_depth_is_transparent(tmp_path, name, depth, row, hidden, grays):
    """The color is named in the file's own levels: 3 of 2 bits is white."""
    path = png(tmp_path / "a.png", depth, 0, row, hidden=struct.pack(">H", hidden))
    opened = open_decoded(path)
    assert tuple(np.asarray(opened.colors)[0, :, 0]) == grays
    assert tuple(np.asarray(opened.alpha)[0]) == tuple(0 if gray == 255 else 255 for gray in grays)


def test_gray_and_alpha_of_sixteen_bits(tmp_path):
    path = png(tmp_path / "a.png", 16, 4, struct.pack(">2H", 77 * 257, 51 * 257) * 4)
    opened = open_decoded(path)
    assert opened.colors.getpixel((0, 0)) == (77, 77, 77) and opened.alpha.getpixel((0, 0)) == 51


def test_what_is_transparent_takes_the_chosen_color(tmp_path):
    pixels = np.full((4, 4, 4), (200, 0, 0, 51), np.uint8)  # 0.2 of red 200, 0.8 of what is behind
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert open_rgb(tmp_path / "a.png").getpixel((0, 0)) == (244, 204, 204)
    assert open_decoded(tmp_path / "a.png").on(color_of("#000000")).getpixel((0, 0)) == (40, 0, 0)
    assert open_decoded(tmp_path / "a.png").on(color_of("#0A64ff")).getpixel((0, 0)) == (48, 80, 204)


def test_one_pixel_that_lets_through_is_transparency(tmp_path):
    image = Image.new("RGBA", (40, 30), "red")
    image.save(tmp_path / "a.webp", lossless=True)
    assert open_decoded(tmp_path / "a.webp").alpha is None
    image.putpixel((39, 29), (255, 0, 0, 254))
    image.save(tmp_path / "a.webp", lossless=True)
    assert open_decoded(tmp_path / "a.webp").alpha is not None


@pytest.mark.parametrize("name", ["a.PNG", "a.jpg", "noextension"])
def test_the_content_and_not_the_name_chooses_the_reader(tmp_path, name):
    Image.new("RGB", (4, 4), ORANGE).save(tmp_path / name, "WEBP", lossless=True)
    assert read_header(tmp_path / name).format == "WEBP"
    assert open_rgb(tmp_path / name).getpixel((0, 0)) == ORANGE


# ---- formats of optional packages


def quarters():
    """Red, green over blue, white."""
    image = Image.new("RGB", (40, 24), "white")
    for box, color in (((0, 0, 20, 12), "red"), ((20, 0, 40, 12), "lime"), ((0, 12, 20, 24), "blue")):
        image.paste(color, box)
    return image


def corners(image):
    w, h = image.size
    return np.array([image.getpixel(at) for at in ((4, 4), (w - 4, 4), (4, h - 4), (w - 4, h - 4))], int)


QUARTERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_read_upright_where_its_reader_is_installed(tmp_path, orientation):
    pytest.importorskip("pillow_heif")
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quarters().transpose(back[orientation]) if orientation > 1 else quarters()
    for name in ("a.heic", "A.HIF", "lies.jpg"):
        stored.save(tmp_path / name, "HEIF", quality=95, exif=exif.tobytes())
        header, image = read_header(tmp_path / name), open_rgb(tmp_path / name)
        assert header.format == "HEIF" and (header.width, header.height) == image.size == (40, 24)
        assert np.abs(corners(image) - QUARTERS).max() <= 4  # a lossy format


def test_jpeg_xl_is_read_where_its_reader_is_installed(tmp_path):
    pytest.importorskip("pillow_jxl")
    quarters().save(tmp_path / "a.jxl", lossless=True)
    assert read_header(tmp_path / "a.jxl").format == "JXL"
    assert (corners(open_rgb(tmp_path / "a.jxl")) == QUARTERS).all()
    turned = Image.Exif()
    turned[0x0112] = 6
    # its own header turns a JPEG XL, not the EXIF data that it may carry as well
    quarters().save(tmp_path / "a.jxl", lossless=True, exif=turned.tobytes())
    assert (corners(open_rgb(tmp_path / "a.jxl")) == QUARTERS).all()


@pytest.mark.filterwarnings("ignore:Using JPEG reconstruction")
def test_a_jpeg_inside_jpeg_xl_is_turned_as_the_jpeg_was(tmp_path):
    pytest.importorskip("pillow_jxl")
    turned = Image.Exif()
    turned[0x0112] = 6
    quarters().save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=turned)
    with Image.open(tmp_path / "a.jpg") as jpeg:
        jpeg.save(tmp_path / "a.jxl")
    header = read_header(tmp_path / "a.jxl")
    assert (header.width, header.height) == (24, 40)
    assert np.array_equal(open_rgb(tmp_path / "a.jxl"), open_rgb(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("module", "name", "kind"), [("pillow_heif", "a.heic", "HEIF"), ("pillow_jxl", "a.jxl", "JXL")]
)
def test_transparency_of_optional_formats(tmp_path, module, name, kind):
    pytest.importorskip(module)
    Image.new("RGBA", (16, 16), (*ORANGE, 0)).save(tmp_path / name, kind)
    assert open_decoded(tmp_path / name).alpha is not None and open_rgb(tmp_path / name).getpixel((8, 8)) == (
        255,
        255,
        255,
    )


HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40
MISSING = [
    ("a.heic", HEIC_START, "pillow-heif"),
    ("named.jpg", HEIC_START, "pillow-heif"),
    ("a.jxl", b"\xff\x0a" + b"\0" * 40, "pillow-jxl-plugin"),
    ("b.jxl", b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40, "pillow-jxl-plugin"),
]


@pytest.mark.parametrize(("name", "start", "wanted"), MISSING)
def test_an_image_whose_reader_is_missing_is_named_with_what_to_install(tmp_path, monkeypatch, name, start, wanted):
    monkeypatch.setattr(plugins, "LOADED", frozenset())
    monkeypatch.setattr(opening, "LOADED", frozenset())
    path = tmp_path / name
    path.write_bytes(start)
    assert is_image_name(name)  # so a scan lists it rather than passing over it
    with pytest.raises(BrokenImage, match=wanted) as found:
        read_header(path)
    problem = problem_of(path, found.value)
    assert wanted in problem.what and name in problem.what
    assert (
        problem.fix.startswith("export it as JPEG or PNG")
        and f'"{sys.executable}" -m pip install {wanted}' in problem.fix
    )


def test_a_cut_off_file_of_an_optional_format_is_named(tmp_path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(HEIC_START)
    with pytest.raises(BrokenImage, match="damaged or cut off HEIC"):
        read_header(tmp_path / "a.heic")


def test_an_image_of_too_many_pixels_is_named_and_not_decoded(tmp_path):
    path = png(tmp_path / "a.png", 8, 0, b"", width=20_000, height=20_000 // 4 * 4)
    with pytest.raises(BrokenImage, match="more than 178 million pixels"):
        open_decoded(path)
    assert "a.png" in problem_of(path, BrokenImage("x")).what
