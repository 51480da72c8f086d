"""Tags letter by letter as sd-scripts 0.9.0 writes them: the results of its own code for one image (captioning.md, section 12)."""

import pytest

from core.captioning.tagger.sd_scripts import appended
from core.captioning.tagger.tagging import formatter, ignored_settings
from core.captioning.tagger.tags import Label
from core.settings.captioning.tagger import TagSettings
from tests.refusals import refused

SCORES = {
    "rating": {"general": 0.2, "sensitive": 0.6, "questionable": 0.1, "explicit": 0.05},
    "general": {
        "1girl": 0.9,
        "1boy": 0.1,
        "long_hair": 0.8,
        "^_^": 0.5,
        "||_||": 0.5,
        ">_<": 0.5,
        "a,b": 0.4,
        "solo": 0.2,
    },
    "character": {"saber_(fate)": 0.95, "hatsune_miku_(append)_(vocaloid)": 0.7, "kizuna_ai": 0.1},
}
SCORED = [(Label(name, group), score) for group, names in SCORES.items() for name, score in names.items()]
G = "1girl, long_hair, ^_^, ||_||, >_<, a,b"
C = "saber_(fate), hatsune_miku_(append)_(vocaloid)"
PLAIN = "1girl, long hair, ^_^, || ||, >_<, a,b"
EXPANDED = "saber, fate, hatsune_miku_(append), vocaloid"


def tagged(**asked):
    options = {"compatibility": "sd-scripts-0.9", "remove_underscore": False} | asked
    return formatter(TagSettings(**options), {})(SCORED)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, f"{G}, {C}"),
        ({"thresh": 0.75}, "1girl, long_hair, saber_(fate)"),
        ({"character_threshold": 0.99}, G),
        ({"general_threshold": 0.85}, f"1girl, {C}"),
        ({"remove_underscore": True}, f"{PLAIN}, saber (fate), hatsune miku (append) (vocaloid)"),
        ({"character_tags_first": True}, f"hatsune_miku_(append)_(vocaloid), saber_(fate), {G}"),
        ({"character_tag_expand": True}, f"{G}, {EXPANDED}"),
        ({"rating_tag": "first"}, f"sensitive, {G}, {C}"),
        ({"rating_tag": "last"}, f"{G}, {C}, sensitive"),
        ({"undesired_tags": "sensitive", "rating_tag": "first"}, f"{G}, {C}"),
        ({"always_first_tags": "1girl,long_hair"}, f"long_hair, 1girl, ^_^, ||_||, >_<, a,b, {C}"),
        ({"always_first_tags": "1girl, long_hair"}, f"{G}, {C}"),
        ({"always_first_tags": "solo"}, f"{G}, {C}"),
        ({"undesired_tags": "1girl, >_<"}, f"long_hair, ^_^, ||_||, a,b, {C}"),
        ({"undesired_tags": "saber, fate", "character_tag_expand": True}, f"{G}, {EXPANDED}"),
        ({"tag_replacement": "a\\,b,A\\;B;1girl,woman"}, f"woman, long_hair, ^_^, ||_||, >_<, A;B, {C}"),
        ({"tag_replacement": "1girl, woman"}, f" woman{G[5:]}, {C}"),
        (
            {"caption_separator": "; ", "undesired_tags": "1girl;>_<"},
            "long_hair; ^_^; ||_||; a,b; saber_(fate); hatsune_miku_(append)_(vocaloid)",
        ),
        ({"thresh": 0.99}, ""),
        (
            {
                "remove_underscore": True,
                "rating_tag": "last",
                "character_tags_first": True,
                "character_tag_expand": True,
                "always_first_tags": "1girl,1boy",
            },
            "1girl, hatsune miku (append), vocaloid, saber, fate, long hair, ^_^, || ||, >_<, a,b, sensitive",
        ),
    ],
)
def test_the_caption_is_that_of_sd_scripts(asked, wanted):
    assert tagged(**asked).text == wanted


def test_what_makes_it_fail_is_a_problem_before_the_start():
    with refused("tagger.bad-replacement"):
        tagged(tag_replacement="1girl,woman;")
    with refused("tagger.separator"):
        tagged(caption_separator=" ")


@pytest.mark.parametrize(
    ("before", "asked", "wanted"),
    [
        ("1girl, extra\n", {}, f"1girl, extra{G[5:]}, {C}"),
        ("saber, fate, x", {"character_tag_expand": True}, f"saber, fate, x, {G}, {EXPANDED}"),
        (
            "long_hair, x",
            {"remove_underscore": True},
            f"long_hair, x, {PLAIN}, saber (fate), hatsune miku (append) (vocaloid)",
        ),
        ("line1\nline2, 1girl", {}, f"line1\nline2, 1girl{G[5:]}, {C}"),
    ],
)
def test_tags_are_appended_as_sd_scripts_does(before, asked, wanted):
    assert appended(before, tagged(**asked).tags, ", ") == wanted


def test_the_counted_tags_are_those_that_passed():
    assert tagged(thresh=0.85).tags == ("1girl", "saber_(fate)")
    assert tagged(thresh=0.85, always_first_tags="saber_(fate)").tags == ("saber_(fate)", "1girl")


def test_settings_it_does_not_have_are_named():
    own = TagSettings(
        compatibility="sd-scripts-0.9", order="score", mcut=True, undesired_tags="x", artist_threshold=0.5
    )
    assert ignored_settings(own) == ["Artist threshold", "Automatic threshold", "Order"]
    assert ignored_settings(own.model_copy(update={"compatibility": "none"})) == []
    assert tagged(order="score", mcut=True, max_tags=1, tag_weights=True).text == f"{G}, {C}"
