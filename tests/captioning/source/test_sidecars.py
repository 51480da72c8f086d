"""Captions from JSON next to the images, in the forms of booru exports."""

import json

import pytest

from core.captioning.source.sidecars import MAX_BYTES, describe, tags_in
from core.settings.captioning.sources import SidecarSettings
from tests.refusals import refused

SIDECARS = "caption_sidecars"
DANBOORU = {
    "tag_string": "1girl ^_^ long_hair saber_(fate) fate/stay_night highres somebody",
    "tag_string_general": "1girl ^_^ long_hair",
    "tag_string_character": "saber_(fate)",
    "tag_string_copyright": "fate/stay_night",
    "tag_string_artist": "somebody",
    "tag_string_meta": "highres",
    "tag_count_general": 3,
}
E621 = {
    "tags": {"general": ["red_fur", "smile"], "species": ["fox"], "artist": [], "meta": ["hi_res"], "invalid": ["x"]}
}
CAPTION = "saber (fate), fate/stay night, somebody, 1girl, ^_^, long hair"


def tags(content, **asked):
    return ", ".join(tags_in(content, SidecarSettings(**asked)))


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (DANBOORU, CAPTION),
        (E621, "fox, red fur, smile"),
        ({"post": E621}, "fox, red fur, smile"),
        ({"posts": [E621]}, "fox, red fur, smile"),
        ([E621], "fox, red fur, smile"),
        ({"post": [{"tags": "o_o &#039;quoted&#039; a_b"}]}, "o_o, 'quoted', a b"),
        ({"tags": ["a_b", "c, d", 3, None, "a_b", " "]}, "a b, c, d"),
        ({"tags": "long hair, red_hat,smile"}, "long hair, red hat, smile"),
        ({"tags": "a_b c\nd e"}, "a b c, d e"),
        ({"tags": "a b c", "tags_artist": "b", "tags_updated": "2024"}, "b, a, c"),
        ({"tags": [], "caption": "A fox, in snow."}, "A fox, in snow."),
        ({"prompt": "a fox", "prompt_negative": "bad", "prompt_general": "no"}, "a fox"),
        ({"tags": {"general": {"a": 1}}, "other": "x"}, ""),
        ("text", ""),
        ([], ""),
        (None, ""),
    ],
)
def test_exports_are_read_with_the_defaults(content, caption):
    assert tags(content) == caption


def test_keys_are_tried_in_order_and_lead_into_objects():
    assert tags(DANBOORU, sidecar_keys=["nothing", " tag_string_general "]) == "1girl, ^_^, long hair"
    assert tags({"a": {"b": [{"tags": "x y"}]}}, sidecar_keys=["a.b.tags"]) == "x, y"
    assert tags({"a": "1", "b": "2"}, sidecar_keys=["b", "a"]) == "2"


def test_categories_are_ordered_and_left_out():
    assert tags(E621, category_order=["general"], excluded_categories=["species"]) == "red fur, smile, x, hi res"
    asked = {"category_order": ["artist", "meta"], "excluded_categories": ["general", "copyright"]}
    assert tags(DANBOORU, **asked) == "somebody, highres, saber (fate)"


def test_the_separator_in_the_file_can_be_set():
    text = {"tags": "a b,c\nd"}
    assert tags(text) == "a b,c, d"
    assert tags(text, input_separator="comma") == "a b, c\nd"
    assert tags(text, input_separator="line") == "a b,c, d"
    assert tags({"caption": "a b"}, input_separator="space") == "a, b"


def test_underscores_can_stay():
    assert tags({"tags": "a_b ^_^"}, remove_underscore=False) == "a_b, ^_^"


def test_either_file_name_is_found_and_the_separator_is_the_jobs(place):
    odd = "der 'große' [Fuchs] {1} 🦊"
    for name in ("a.png", "b.png", "c.png", "d.png", f"{odd}.png"):
        place.image(name)
    (place.folder / f"{odd}.json").write_text('{"tag_string": "odd_name"}')
    (place.folder / "a.json").write_text(json.dumps(DANBOORU))
    (place.folder / "b.png.json").write_text('{"score": NaN, "tags": "x y"}')
    (place.folder / "b.json").write_text('{"tags": "not this"}')
    (place.folder / "c.png.json").write_text('{"id": 3}')
    (place.folder / "c.json").write_text('\ufeff{"tags": ["🦊", "雪"]}', "utf-8")
    captions = place.run(SIDECARS, {"separator": " | "})
    assert captions == {"a": CAPTION.replace(", ", " | "), "b": "x | y", "c": "🦊 | 雪", odd: "odd name"}
    assert place.outcome.facts["skipped"] == 1 and any("d.png" in line for line in place.outcome.lines)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[" * 200_000, "file.not-json"),
        (b'{"tags": "' + b"a" * MAX_BYTES + b'"}', "file.too-large"),
        (b"{" + b'"a":1,' * 200_000 + b'"a":1}', "file.not-json"),
        (b'{"tags": "\\ud800"}', "file.not-json"),
        (b"\xff\xfe\x00", "file.not-json"),
        (b"", "file.not-json"),
        (b'{"caption": "' + b"a, " * 200_000 + b'"}', "source.too-long"),
        (b'{"tags": "\\u0000 \\n"}', "sidecar.no-text"),
        (None, "sidecar.missing"),
    ],
)
def test_a_bad_file_skips_its_image_only(place, data, code):
    place.image("a.png")
    place.image("b.png")
    if data is not None:
        (place.folder / "a.json").write_bytes(data)
    (place.folder / "b.json").write_text('{"tags": "fox"}')
    assert place.run(SIDECARS) == {"b": "fox"} and place.outcome.facts["skipped"] == 1
    assert place.codes(describe, SIDECARS) == {"a.png": code}


def test_keys_are_needed(place):
    place.image("a.png")
    with refused("sidecar.no-keys", "caption_sidecars.sidecar_keys"):
        place.run(SIDECARS, sidecar_keys=[" "])
