"""Captions from names: pattern, expression, and what is dropped from names."""

import os
import sys

import pytest

from core import tasks
from core.captioning.source.names import describe
from core.record.problems import ProblemsError
from tests.refusals import refused

NAMES = "caption_names"


def test_the_name_becomes_the_caption(place):
    place.image("red_fox-in.snow_012.png")
    place.image("10_sks dog/a (2).png")
    assert place.run(NAMES) == {"red_fox-in.snow_012": "red fox in snow", "a (2)": "a"}


def test_a_pattern_has_name_folder_number_and_class_tokens(place):
    place.image("10_sks_fox/in-snow_07.png")
    pattern = "photo of {words}, {name}, {folder}, no {number}"
    assert place.run(NAMES, pattern=pattern) == {"in-snow_07": "photo of sks_fox, in snow, sks fox, no 07"}
    sources = [{"folder": str(place.folder), "class_tokens": "mira woman"}]
    assert place.run(NAMES, {"existing": "replace"}, sources, pattern="{words}") == {"in-snow_07": "mira woman"}


def test_numbers_and_marks_stay_where_settings_say_so(place):
    place.image("10_red_fox_2.png")
    ways = {
        "red fox": {},
        "10 red fox": {"leading_numbers": False},
        "red fox 2": {"trailing_numbers": False},
        "red_fox": {"replaced": "-"},
    }
    for caption, asked in ways.items():
        assert place.run(NAMES, {"existing": "replace"}, **asked) == {"10_red_fox_2": caption}


def test_an_expression_reads_the_path_below_the_dataset_folder(place):
    place.image("10_mira/red_hat/smile_01.png")
    place.image("10_mira/loose.png")
    asked = {
        "expression": r"^10_(?P<who>\w+)/(?P<outfit>[^/]+)/(?P<mood>[a-z]+)(?P<extra>_x)?",
        "pattern": "{who}, {extra}, {outfit}, {mood}",
    }
    assert place.run(NAMES, **asked) == {"smile_01": "mira, red hat, smile"}
    assert place.outcome.facts["skipped"] == 1 and any("10_mira/loose.png" in line for line in place.outcome.lines)


def test_parts_are_joined_with_the_separator(place):
    place.image("a/fox_1.png")
    asked = {"pattern": "{folder};{number};{name}", "expression": "(?P<number>x)?"}
    assert place.run(NAMES, {"separator": "; "}, **asked) == {"fox_1": "a; fox"}


def test_quotes_brackets_and_emoji_pass_unchanged(place):
    name = """fox 'a' (b) [c] {d} \\1 🦊 雪"""
    place.image(f"{name}.png")
    assert place.run(NAMES, pattern="{name} {{name}") == {name: f"{name} {{{name}"}


def test_a_name_of_numbers_alone_is_skipped_and_named(place):
    place.image("0001.png")
    assert place.run(NAMES, pattern="a photo of {name}") == {}
    assert place.outcome.facts["skipped"] == 1 and any("0001.png" in line for line in place.outcome.lines)
    assert place.codes(describe, NAMES) == {"0001.png": "names.no-text"}
    assert place.codes(describe, NAMES, expression="x") == {"0001.png": "names.no-match"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_unicode_is_skipped(place):
    path = place.image("a.png")
    os.rename(path, os.fsencode(path.with_name("fox")) + b"\xff.png")
    place.image("ok.png")
    assert place.run(NAMES) == {"ok": "ok"}
    assert list(place.codes(describe, NAMES).values()) == ["source.not-unicode"]


@pytest.mark.parametrize(
    ("asked", "codes"),
    [
        ({"pattern": "{nmae} {outfit}"}, ["names.unknown-field"] * 2),
        ({"pattern": " ", "expression": "("}, ["caption.bad-pattern", "names.no-pattern"]),
    ],
)
def test_bad_settings_are_refused_before_the_start(place, asked, codes):
    place.image("a.png")
    with pytest.raises(ProblemsError) as caught:
        place.run(NAMES, **asked)
    assert caught.value.codes == codes


def test_a_slow_expression_is_ended(place, monkeypatch):
    monkeypatch.setattr("core.record.patterns.PATTERN_SECONDS", 0.1)
    place.image("a" * 60 + ".png")
    with refused("caption.slow-pattern", "^(a|aa|a?)+$"):
        place.run(NAMES, expression="^(a|aa|a?)+$")


def test_a_preview_writes_nothing_and_no_model_waits_for_the_device(place):
    place.image("red_fox.png")
    assert place.run(NAMES, {"preview": 1, "prefix": "photo"}) == {}
    assert place.outcome.lines[0] == "red_fox.png: photo, red fox"
    assert {tasks.named(name).lane for name in (NAMES, "caption_sidecars", "caption_metadata")} == {"light"}
