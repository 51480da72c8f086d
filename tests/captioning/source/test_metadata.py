"""Captions from the text inside images, in files as other programs write them."""

import json
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.captioning.source.metadata import FIELDS, describe, plain_prompt
from core.settings.captioning.sources import ImageTextSettings
from tests.generation.images.test_comfyui import API
from tests.refusals import refused

METADATA = "caption_metadata"
A1111 = """a fox, <lora:my fox:0.8>, (snow:1.2)
second line
Negative prompt: blurry, ugly
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"""
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:title="Mira 'at' home">
<dc:description><rdf:Alt><rdf:li xml:lang="de">ein Fuchs</rdf:li><rdf:li xml:lang="x-default">a &lt;red&gt; fox 🦊</rdf:li>
</rdf:Alt></dc:description><dc:subject><rdf:Bag><rdf:li>fox</rdf:li><rdf:li> snow </rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>""".encode()


def png(**texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key.replace("_x_", "-"), text)
    return {"pnginfo": info}


def exif(tags=(), comment=None, endian=">"):
    made = Image.Exif()
    made.endian = endian
    for tag, value in dict(tags).items():
        made[tag] = value
    if comment is not None:
        made.get_ifd(0x8769)[0x9286] = comment
    return {"exif": made}


def iptc(*records):
    """IPTC records (dataset, bytes)."""
    return b"".join(b"\x1c\x02" + bytes([number]) + struct.pack(">H", len(text)) + text for number, text in records)


def photoshop(data):
    """The APP13 segment with these records, to put behind a JPEG's first two bytes."""
    data += b"\0" * (len(data) % 2)
    body = b"Photoshop 3.0\x00" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(data)) + data
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def xp(text):
    return text.encode("utf-16-le") + b"\0\0"


def unicode_comment(text, coding):
    return b"UNICODE\0" + text.encode(coding)


def only(place, field, name="a.png", **asked):
    """The caption of the one image by one field; None where it is skipped."""
    captions = place.run(METADATA, {"existing": "replace"}, text_fields=[field], **asked)
    return captions.get(name.partition(".")[0])


@pytest.mark.parametrize(
    ("field", "texts", "caption"),
    [
        ("a1111", {"parameters": A1111}, "a fox, (snow:1.2) second line"),
        ("a1111", {"parameters": "only a prompt"}, "only a prompt"),
        ("a1111", {"parameters": '{"sui_image_params": {"prompt": "of swarm"}}'}, "of swarm"),
        ("a1111", {"parameters": '{"prompt": "of fooocus"}'}, "of fooocus"),
        ("comfyui", {"prompt": API}, "a red fox, in snow"),
        ("comfyui", {"prompt": "plain text"}, None),
        ("novelai", {"Software": "NovelAI", "Description": "{fox}, snow"}, "{fox}, snow"),
        ("novelai", {"Software": "GIMP", "Description": "a fox"}, None),
        ("invokeai", {"invokeai_metadata": '{"positive_prompt": "a fox"}'}, "a fox"),
        ("invokeai", {"sd_x_metadata": '{"image": {"prompt": [{"prompt": "older"}]}}'}, "older"),
        ("png.My key", {"My key": "my 'text' [b]"}, "my 'text' [b]"),
    ],
)
def test_text_of_png_files(place, field, texts, caption):
    place.image("a.png", **png(**texts))
    assert only(place, field) == caption


@pytest.mark.parametrize(
    ("field", "options", "caption"),
    [
        ("exif.description", exif({0x010E: "Füchse 🦊".encode()}), "Füchse 🦊"),
        ("exif.description", exif({0x010E: b"caf\xe9"}), "café"),
        ("exif.description", exif({0x010E: "OLYMPUS DIGITAL CAMERA         "}), None),
        ("exif.comment", exif(comment=b"ASCII\0\0\0a fox\0\0"), "a fox"),
        ("exif.comment", exif(comment=b"JIS\0\0\0\0\0" + "きつね".encode("iso2022_jp")), "きつね"),
        ("exif.comment", exif(comment=b"\0" * 8 + "Füchse".encode()), "Füchse"),
        ("exif.comment", exif(comment=unicode_comment("ein Fuchs 🦊", "utf-16-be")), "ein Fuchs 🦊"),
        ("exif.comment", exif(comment=unicode_comment("ein Fuchs 🦊", "utf-16-le")), "ein Fuchs 🦊"),
        ("exif.comment", exif(comment=unicode_comment("狐", "utf-16-le"), endian="<"), "狐"),
        ("exif.comment", exif(comment=unicode_comment("狐", "utf-16-be")), "狐"),
        ("exif.comment", exif(comment=unicode_comment("\ufeff狐と雪", "utf-16-be")), "狐と雪"),
        ("exif.comment", exif(comment=unicode_comment(A1111, "utf-16-be")), None),
        ("a1111", exif(comment=unicode_comment(A1111, "utf-16-be")), "a fox, (snow:1.2) second line"),
        ("a1111", exif(comment=b"ASCII\0\0\0my cat"), None),
        ("exif.xp_title", exif({0x9C9B: xp("Title 狐")}), "Title 狐"),
        ("exif.xp_comment", exif({0x9C9C: xp("comment")}), "comment"),
        ("exif.xp_keywords", exif({0x9C9E: xp("fox;red snow; ")}), "fox, red snow"),
        ("exif.xp_subject", exif({0x9C9F: xp("subject")}), "subject"),
        ("exif.xp_title", exif({0x9C9B: b"\x00\xd8\x01"}), "\ufffd"),
        ("xmp.description", {"xmp": XMP}, "a <red> fox 🦊"),
        ("xmp.title", {"xmp": XMP}, "Mira 'at' home"),
        ("xmp.subject", {"xmp": XMP}, "fox, snow"),
    ],
)
def test_text_of_jpeg_files(place, field, options, caption):
    place.image("a.jpg", **options)
    assert only(place, field) == caption


@pytest.mark.parametrize("name", ["a.webp", "a.avif", "a.tif"])
def test_xmp_and_exif_are_read_from_other_formats(place, name):
    place.image(name, xmp=XMP) if name != "a.tif" else place.image(name, tiffinfo={700: XMP})
    assert only(place, "xmp.description") == "a <red> fox 🦊"
    if name != "a.tif":
        place.image(name, **exif({0x0110: f"prompt:{API}"}))
        assert only(place, "comfyui") == "a red fox, in snow"


def test_iptc_records_are_read_in_either_encoding(place):
    path = place.image("a.jpg")
    records = iptc((5, b"Title"), (120, "Füchse".encode()), (25, b"fox"), (25, "caf\xe9".encode("latin-1")), (25, b""))
    path.write_bytes(path.read_bytes()[:2] + photoshop(records) + path.read_bytes()[2:])
    for field, caption in {"iptc.caption": "Füchse", "iptc.keywords": "fox, café", "iptc.title": "Title"}.items():
        assert only(place, field) == caption
    path.unlink()
    place.image("a.tif", tiffinfo={33723: records})
    assert only(place, "iptc.keywords") == "fox, café"


def test_text_behind_the_pixels_of_a_png_is_found(place):
    path = place.image("a.png")
    data = b"Description\0a late fox"
    chunk = struct.pack(">I", len(data)) + b"tEXt" + data + struct.pack(">I", zlib.crc32(b"tEXt" + data))
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    assert only(place, "png.Description") == "a late fox"


def test_the_first_field_with_a_text_wins_or_all_are_joined(place):
    place.image("a.jpg", xmp=XMP, **exif({0x010E: "a fox", 0x9C9E: xp("fox;snow")}))
    place.image("b.png", **png(Description="b"))
    fields = ["png.Description", " exif.description ", "xmp.title", "exif.xp_keywords", "xmp.subject"]
    assert place.run(METADATA, text_fields=fields) == {"a": "a fox", "b": "b"}
    joined = place.run(METADATA, {"existing": "replace", "separator": "; "}, text_fields=fields, combine="all")
    assert joined == {"a": "a fox; Mira 'at' home; fox; snow", "b": "b"}


def test_lora_tags_and_weights_are_removed_on_demand():
    prompt = r"a fox, <lora:a b:1:lbw=x>, <HYPERNET:c:1>, (red:1.2) [hat], saber \(fate\) <lora"
    keep = ImageTextSettings(remove_loras=False)
    assert plain_prompt(prompt, keep) == prompt
    assert plain_prompt(prompt, ImageTextSettings()) == r"a fox, (red:1.2) [hat], saber \(fate\) <lora"
    both = ImageTextSettings(remove_weights=True)
    assert plain_prompt(prompt, both) == "a fox, red hat, saber (fate) <lora"
    assert plain_prompt("(a:1.2.3)", both) == "(a:1.2.3)"


def test_every_field_is_read_by_default():
    assert set(ImageTextSettings().text_fields) == {*FIELDS, "png.Description"}


def test_images_without_text_are_skipped_and_named(place):
    place.image("a.png")
    place.image("b.png", **png(parameters=" \n, "))
    place.image("c.bmp")
    assert place.run(METADATA) == {} and place.outcome.facts["skipped"] == 3
    assert all(any(name in line for line in place.outcome.lines) for name in ("a.png", "b.png", "c.bmp"))


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ({"parameters": "a" * 300_000}, "source.too-long"),
        ({"Description": "a" * 150_000}, "source.too-long"),
        ({"prompt": "[" * 100_000}, "file.not-json"),
        ({"prompt": '{"1": ' * 50_000}, "file.not-json"),
        ({"workflow": "{" + '"a": [],' * 300_000}, "file.not-json"),
        ({"workflow": "{" + " " * 9_000_000 + "}"}, "source.too-long"),
        ({"invokeai_metadata": '{"positive_prompt": "\\ud800"}'}, "file.not-json"),
        ({"XML:com.adobe.xmp": "<!DOCTYPE a [<!ENTITY b 'ha'>]><a>&b;</a>"}, "source.bad-xmp"),
        ({"XML:com.adobe.xmp": "<a>" * 200 + "</a>" * 200}, "source.bad-xmp"),
        ({"XML:com.adobe.xmp": "<a>" + " " * 5_000_000 + "</a>"}, "source.bad-xmp"),
        (
            {"XML:com.adobe.xmp": XMP.decode().replace("<rdf:li>fox</rdf:li>", "<rdf:li>fox</rdf:li>" * 2000)},
            "source.bad-xmp",
        ),
        ({"Description": "\x00\x1b"}, "metadata.no-text"),
        ({}, "metadata.no-text"),
    ],
)
def test_hostile_text_skips_its_image_only(place, texts, code):
    place.image("a.png", **png(**texts))
    place.image("b.png", **png(Description="fox"))
    assert place.run(METADATA) == {"b": "fox"} and place.outcome.facts["skipped"] == 1
    assert place.codes(describe, METADATA) == {"a.png": code}


def test_a_broken_image_is_skipped(place):
    place.image("a.png")
    (place.folder / "b.png").write_bytes(b"no image")
    assert place.codes(describe, METADATA) == {"a.png": "metadata.no-text", "b.png": "image.unreadable"}


def test_a_field_that_cannot_be_read_does_not_hide_the_next(place):
    place.image("a.png", **png(prompt="{broken", Description="fox"))
    assert place.run(METADATA) == {"a": "fox"}


def test_unknown_fields_are_refused_before_the_start(place):
    place.image("a.png")
    with refused("metadata.unknown-field", "exif.descripton", "exif.description"):
        place.run(METADATA, text_fields=["exif.descripton", "png.x"])
    with refused("metadata.no-fields"):
        place.run(METADATA, text_fields=[])


GRAPH = {
    "1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "latent_image": ["3", 0], "steps": 9}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a hat"}},
}


@pytest.mark.parametrize(
    "said",
    [
        {"c": "a hat", "uc": "blur", "steps": 9},
        {"prompt": "a hat", "num_inference_steps": 9},
        {"sui_image_params": {"prompt": "a hat"}},
        GRAPH,
    ],
)
def test_settings_in_json_give_their_prompt_and_never_themselves(place, said):
    text = json.dumps(said)
    place.image("a.jpg", **exif(comment=unicode_comment(text, "utf-16-be")))
    place.image("b.png", **png(parameters=text))
    place.image("c.jpg", comment=text.encode())
    assert place.run(METADATA, {"existing": "replace"}, text_fields=["a1111"]) == dict.fromkeys("abc", "a hat")
    assert place.run(METADATA, {"existing": "replace"}, text_fields=["exif.comment"]).get("a") in (None, "a hat")
