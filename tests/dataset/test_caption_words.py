"""Names and tags as the words of a caption."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.captions.words import KAOMOJI, name_words, number_of, tag_words


@pytest.mark.parametrize(
    ("name", "words", "number"),
    [
        ("10_red-fox_012", "red fox", "012"),
        ("fox (3)", "fox", "3"),
        ("fox (red)", "fox (red)", ""),
        ("2024_snow.day", "snow day", ""),
        ("0001", "", "0001"),
        ("der 'große' [Fuchs] 🦊_7", "der 'große' [Fuchs] 🦊", "7"),
        ("__", "", ""),
    ],
)
def test_names_become_words(name, words, number):
    assert (name_words(name), number_of(name)) == (words, number)


def test_each_step_can_be_left_out():
    assert name_words("10_a-b_2", leading=False) == "10 a b"
    assert name_words("10_a-b_2", trailing=False) == "a b 2"
    assert name_words("10_a-b_2", replaced="") == "a-b"


@given(st.text(max_size=300))
def test_any_name_gives_words_without_the_replaced_characters(name):
    words = name_words(name)
    assert not set("_-.") & set(words) and words == words.strip()


def test_kaomoji_keep_their_underscores():
    assert tag_words("long_hair") == "long hair"
    assert {tag_words(face) for face in KAOMOJI} == KAOMOJI
