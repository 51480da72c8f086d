"""The formatter: each setting by what it does to the caption of one image."""

import time
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.captioning.tagger.tagging import formatter
from core.captioning.tagger.tags import KAOMOJI, Formatter, Label, items_of, mcut, pairs_of
from core.settings.captioning.tagger import FLOOR, TagSettings
from tests.refusals import refused

SCORED = [
    (Label("general", "rating"), 0.2),
    (Label("sensitive", "rating"), 0.6),
    (Label("1girl", "general"), 0.9),
    (Label("long_hair", "general"), 0.8),
    (Label("hair", "general"), 0.7),
    (Label("^_^", "general"), 0.5),
    (Label("a,b", "general"), 0.4),
    (Label("solo", "general"), 0.2),
    (Label("saber_(fate)", "character"), 0.95),
    (Label("rin_(fate)", "character"), 0.7),
    (Label("original", "copyright"), 0.6),
    (Label("somebody", "artist"), 0.5),
    (Label("highres", "meta"), 0.45),
    (Label("a_model", "model"), 0.55),
    (Label("best_quality", "quality"), 0.3),
    (Label("bad_quality", "quality"), 0.1),
]
G = "1girl, long hair, hair, ^_^, a b"
C = "saber (fate), rin (fate)"
REST = "original, somebody, highres, a model"


def caption(**asked):
    return formatter(TagSettings(**asked), {"general": 0.35})(SCORED).text


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, f"{G}, {C}, {REST}"),
        ({"thresh": 0.75}, "1girl, long hair, saber (fate)"),
        ({"thresh": 0.75, "general_threshold": 0.85}, "1girl, saber (fate)"),
        ({"thresh": 0.75, "character_threshold": 1.5}, "1girl, long hair"),
        ({"thresh": 1.5, "copyright_threshold": 0.6}, "original"),
        ({"thresh": 1.5, "artist_threshold": 0.5}, "somebody"),
        ({"thresh": 1.5, "meta_threshold": 0.45}, "highres"),
        ({"thresh": 1.5, "model_threshold": 0.55}, "a model"),
        ({"thresh": 0.85, "rating_tag": "first"}, "sensitive, 1girl, saber (fate)"),
        ({"thresh": 0.85, "rating_tag": "last"}, "1girl, saber (fate), sensitive"),
        ({"thresh": 0.85, "rating_tag": "last", "rating_threshold": 0.7}, "1girl, saber (fate)"),
        ({"thresh": 0.85, "quality_tag": "first", "rating_tag": "first"}, "sensitive, best quality, 1girl, saber (fate)"),
        ({"thresh": 0.85, "quality_tag": "last", "rating_tag": "last"}, "1girl, saber (fate), best quality, sensitive"),
        ({"thresh": 0.85, "quality_tag": "last", "quality_threshold": 0.31}, "1girl, saber (fate)"),
        ({"rating_tag": "last", "undesired_tags": "Sensitive"}, f"{G}, {C}, {REST}"),
        ({"undesired_tags": "1GIRL,  long   hair, saber \\(fate\\), *(fate), ori*al"}, "hair, ^_^, a b, somebody, highres, a model"),
        ({"undesired_tags": "a\\,b\nlong_hair"}, f"1girl, hair, ^_^, {C}, {REST}"),
        ({"undesired_tags": "fate, saber", "character_tag_expand": True}, f"{G}, rin, {REST}"),
        ({"wanted_tags": "*hair, solo", "rating_tag": "last"}, "long hair, hair, sensitive"),
        ({"tag_replacement": " 1girl , woman ; long hair,mane;"}, f"woman, mane, hair, ^_^, a b, {C}, {REST}"),
        ({"tag_replacement": "a\\,b,c\\;d\nhighres,sharp"}, f"1girl, long hair, hair, ^_^, c;d, {C}, original, somebody, sharp, a model"),
        ({"tag_replacement": "long_hair,hair"}, f"1girl, hair, ^_^, a b, {C}, {REST}"),
        ({"character_tag_expand": True, "character_threshold": 0.6}, f"{G}, saber, fate, rin, {REST}"),
        ({"remove_overlap": True}, f"1girl, long hair, ^_^, a b, {C}, {REST}"),
        ({"max_tags": 3, "rating_tag": "last"}, "1girl, long hair, saber (fate), sensitive"),
        ({"order": "score", "thresh": 0.7}, "saber (fate), 1girl, long hair, hair, rin (fate)"),
        ({"character_tags_first": True, "thresh": 0.7}, "saber (fate), rin (fate), 1girl, long hair, hair"),
        (
            {"always_first_tags": "hair, nothing , 1girl", "thresh": 0.7, "character_tags_first": True},
            "hair, 1girl, saber (fate), rin (fate), long hair",
        ),
        (
            {"always_first_tags": "hair, my_word", "insert_always_first": True, "thresh": 0.8, "tag_weights": True},
            "hair, my word, (1girl:0.90), (long hair:0.80), (saber (fate):0.95)",
        ),
        ({"remove_underscore": False, "thresh": 0.8}, "1girl, long_hair, saber_(fate)"),
        ({"escape_parentheses": True, "thresh": 0.8}, "1girl, long hair, saber \\(fate\\)"),
        ({"tag_weights": True, "thresh": 0.8}, "(1girl:0.90), (long hair:0.80), (saber (fate):0.95)"),
        ({"caption_separator": " | ", "thresh": 0.8}, "1girl | long hair | saber (fate)"),
        ({"thresh": 2}, ""),
        (
            {
                "rating_tag": "last", "character_tags_first": True, "character_tag_expand": True,
                "always_first_tags": "1girl, 1boy", "thresh": 0.7,
            },
            "1girl, saber, fate, rin, long hair, hair, sensitive",
        ),
    ],
)  # fmt: skip
def test_a_setting_changes_the_caption(asked, wanted):
    assert caption(**asked) == wanted


def test_the_models_own_thresholds_hold_where_none_is_set():
    form = formatter(TagSettings(), {"general": 0.75, "character": 0.9, "artist": 0.5})
    assert form(SCORED).text == "1girl, long hair, saber (fate), somebody"


def test_the_automatic_threshold_cuts_at_the_largest_gap():
    assert mcut([0.9, 0.85, 0.3, 0.25]) == pytest.approx((0.85 + 0.3) / 2)
    assert mcut([0.9]) == pytest.approx((0.9 + FLOOR) / 2) and mcut([0.06, 0.1]) <= 0.1
    labels = [(Label(f"g{n}", "general"), score) for n, score in enumerate((0.9, 0.85, 0.3, 0.25))]
    labels += [(Label(f"c{n}", "character"), score) for n, score in enumerate((0.12, 0.07))]
    assert formatter(TagSettings(mcut=True), {})(labels).text == "g0, g1"
    assert formatter(TagSettings(mcut=True, general_threshold=1.5), {})(labels).text == ""


def test_the_series_of_a_table_follow_their_character_once():
    labels = [(Label("miku", "character", ("vocaloid",)), 0.9), (Label("rin", "character", ("vocaloid", "x_y")), 0.9)]
    assert formatter(TagSettings(character_tag_expand=True), {})(labels).text == "miku, vocaloid, rin, x y"
    assert formatter(TagSettings(), {})(labels).text == "miku, rin"


@pytest.mark.parametrize("face", sorted(KAOMOJI))
def test_faces_keep_their_underscores(face):
    assert formatter(TagSettings(), {})([(Label(face, "general"), 0.9)]).text == face


def test_lists_and_pairs_are_read_as_people_write_them():
    assert items_of(" a, b c ,\n d\\,e ,,") == ["a", "b c", "d,e"]
    assert pairs_of("a,b; c , d ;\n") == [("a", "b"), ("c", "d")]
    for wrong in ("a", "a,b,c", "a,", "x,y;z"):
        with refused("tagger.bad-replacement"):
            pairs_of(wrong)


NAMES = st.text("ab_ (),|:é'\"😀0\\*", min_size=1, max_size=9).filter(lambda name: name.strip(" ,"))
OPTIONS = st.fixed_dictionaries(
    {
        "thresh": st.sampled_from([0.05, 0.35, 0.6]),
        "order": st.sampled_from(["index", "score"]),
        "rating_tag": st.sampled_from(["none", "first", "last"]),
        "quality_tag": st.sampled_from(["none", "first", "last"]),
        "character_tags_first": st.booleans(),
        "remove_underscore": st.booleans(),
        "escape_parentheses": st.booleans(),
        "always_first_tags": st.sampled_from(["", "a, b", "a b,a_b,ab"]),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.sampled_from(["general", "character", "rating", "meta"]), st.floats(0.05, 1)), max_size=12),
    OPTIONS,
)  # fmt: skip
def test_no_tag_is_lost_or_doubled(found, asked):
    scored = [(Label(name, kind), score) for name, kind, score in found]
    form = Formatter(TagSettings(**asked), {})
    tagged = form(scored)
    best = max((score for label, score in scored if label.category == "rating"), default=None)
    first = next((label.name for label, score in scored if label.category == "rating" and score == best), None)
    wanted = {
        form.key(label.name) for label, score in scored if label.category != "rating" and score >= asked["thresh"]
    }
    wanted |= {form.key(first)} if first is not None and asked["rating_tag"] != "none" else set()
    keys = [form.key(tag) for tag in tagged.tags]
    assert len(keys) == len(set(keys)) and set(keys) == {key for key in wanted if key}
    assert tagged.text == ", ".join(tagged.tags) and tagged.text.count(",") == max(0, len(keys) - 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(NAMES, st.floats(0.05, 1)), max_size=12), st.integers(1, 5))
def test_the_most_certain_tags_are_kept(found, most):
    scored = [(Label(name, "general"), score) for name, score in found]
    every = formatter(TagSettings(thresh=0.05, order="score"), {})(scored).tags
    assert formatter(TagSettings(thresh=0.05, order="score", max_tags=most), {})(scored).tags == every[:most]


@pytest.mark.parametrize("undesired", ["*" * 9 + "q", "*e*e*e*e*e*e*q", "q" + "*e" * 9])
def test_many_stars_take_no_time(undesired):
    form = Formatter(TagSettings(undesired_tags=undesired), {"general": 0.35})
    began = time.thread_time()
    assert form([(Label("e" * 40, "general"), 0.9)]).tags == ("e" * 40,)
    assert time.thread_time() - began < 0.5, "backtracking took seconds"


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", min_size=1, max_size=8))
def test_a_star_matches_as_in_file_names(undesired, name):
    found = Formatter(TagSettings(undesired_tags=undesired), {"general": 0.35})([(Label(name, "general"), 0.9)])
    assert (found.tags == ()) == fnmatchcase(name, undesired)
