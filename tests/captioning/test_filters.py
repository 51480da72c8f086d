"""Filter expressions: by hand, against a slow reading of their own, and broken ones."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.captioning.filters import Facts, fields_in, is_expression, test_of, unknown_field_in
from core.record.problems import ProblemsError

test_of.__test__ = False

FOX = Facts(
    "fox_01.png",
    "animals",
    "Red_Fox, looking at viewer, snow, saber (fate)",
    False,
    80,
    512,
    768,
    "512x768",
    datetime(2026, 5, 2).timestamp(),
    ("blur",),
)
NONE = Facts("b.png", "misc", "", True)
EMPTY = Facts("c.png", "misc", "", False)


@pytest.mark.parametrize(
    ("expression", "fox"),
    [
        ("", True),
        ("red fox", True),
        ("red_fox & !dog", True),
        ("dog | snow", True),
        ("dog or snow and not rain", True),
        ("(dog | snow) & rain", False),
        ('"looking at viewer"', True),
        ("looking*", True),
        ("look", False),
        ("saber_(fate)", True),
        ("fox", False),
        ("text:fox", True),
        (r're:"Fox\b"', True),
        ("re:^fox", False),
        ("name:fox", True),
        ("name:fox*.png", True),
        ("name:fox*.jpg", False),
        ("folder:animals", True),
        ("bucket:512x768", True),
        ("found:blur", True),
        ("tokens:>75", True),
        ("tokens:<=75", False),
        ("tags:4", True),
        ("chars:>100", False),
        ("width:512 height:>=768", True),
        ("date:2026-05-02", True),
        ("date:>2026-05-02", False),
        ("is:missing", False),
        ("is:captioned", True),
        ("!!snow", True),
        ("snow !rain", True),
    ],
)
def test_expressions_choose(expression, fox):
    assert test_of(expression)(FOX) is fox


def test_missing_and_empty_captions_are_two_things():
    assert [test_of("is:missing")(each) for each in (NONE, EMPTY, FOX)] == [True, False, False]
    assert [test_of("is:empty")(each) for each in (NONE, EMPTY, FOX)] == [False, True, False]


@pytest.mark.parametrize(
    "expression",
    [
        "(",
        "a &",
        "| a",
        "!",
        'a "b',
        "a)",
        "tokens:many",
        "is:odd",
        "date:2026-13-01",
        "(" * 200 + "a",
        "a" * 3000,
    ],
)
def test_a_broken_expression_is_refused_with_a_code(expression):
    with pytest.raises(ProblemsError) as caught:
        test_of(expression)
    assert caught.value.codes == ["filter.bad-expression"]


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "(" * 400 + ")" * 400,
        "(?R)",
        "a{99999999999}",
        "a" * 3000,
        "(?P<a>",
        "\\p{Nope}",
        "[",
        "*",
        "(?<n>a)\\g<m>",
    ],
)
def test_a_pattern_that_is_none_is_refused_with_a_code(pattern):
    with pytest.raises(ProblemsError) as caught:
        test_of(f're:"{pattern[:1900]}"' if len(pattern) < 1000 else f"re:{pattern}")
    assert set(caught.value.codes) <= {"caption.bad-pattern", "filter.bad-expression"}


@pytest.mark.parametrize(
    "text", ["black and white", "not a fox", "9:16 photo", "(ant", "note: this", "wow!", "is:", "cats & co"]
)
def test_words_are_searched_unless_they_are_clearly_an_expression(text):
    assert is_expression(text) is ("&" in text)


@pytest.mark.parametrize(
    "text",
    [
        "fox & snow",
        "a | b",
        "!snow",
        "!!snow",
        "(!a)",
        '"black and white"',
        "smile*",
        "IS:missing",
        "a AND b",
        "a tokens:>75",
    ],
)
def test_operators_quotes_and_fields_make_an_expression(text):
    assert is_expression(text) and test_of(text)


def test_the_fields_of_an_expression_are_known():
    expression = 'cat & !TOKENS:>75 | (name:fox* bucket:"512x512") "found:blur" 9:16 is:'
    assert fields_in(expression) == {"tokens", "name", "bucket"} and fields_in("") == set()


TREES = st.recursive(
    st.sampled_from("abcd"),
    lambda inner: st.one_of(st.tuples(st.just("!"), inner), st.tuples(st.sampled_from("&|"), inner, inner)),
    max_leaves=8,
)


def written(tree):
    if isinstance(tree, str):
        return tree
    return f"!({written(tree[1])})" if tree[0] == "!" else f"({written(tree[1])}) {tree[0]} ({written(tree[2])})"


def holds(tree, tags):
    if isinstance(tree, str):
        return tree in tags
    if tree[0] == "!":
        return not holds(tree[1], tags)
    return (all if tree[0] == "&" else any)(holds(each, tags) for each in tree[1:])


@given(tree=TREES, tags=st.sets(st.sampled_from("abcd")))
def test_any_expression_says_what_logic_says(tree, tags):
    assert test_of(written(tree))(Facts("a", "b", ", ".join(sorted(tags)), False)) is holds(tree, tags)


@given(st.text('ab&|!()": *', max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        test_of(text)(FOX)
    except ProblemsError as error:
        assert error.codes == ["filter.bad-expression"]


def test_a_word_that_looks_like_a_field_is_told():
    assert unknown_field_in("foo:bar") == unknown_field_in("fox & !Foo:bar").casefold() == "foo:"
    for text in ("tokens:>75", "9:16", "looking at: viewer", "a:d", "fox :d", "IS:missing", ""):
        assert unknown_field_in(text) == "", text
