"""From answers to captions: what is taken out, what is cut, what is added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.captioning.combining import without_matches
from core.captioning.sentences.cleaning import (
    clean,
    cut_to_tokens,
    missing_words,
    plain,
    repetition,
    to_sentence_end,
    with_words,
    without_openers,
    without_repetition,
    without_thinking,
)
from core.families.token_count import count_tokens
from core.settings.captioning.sentences import INVENTED_WRITING, OPENERS, CaptionCleaningSettings

WORDS = st.lists(st.sampled_from("a fox runs in the red snow, and looks. up! again; far".split()), max_size=60).map(
    " ".join
)
DEFAULT = CaptionCleaningSettings()


def cleaned(text, cut=False, **settings):
    return clean(text, CaptionCleaningSettings(**settings), cut=cut, count=count_tokens)


@pytest.mark.parametrize(
    ("answer", "opened", "caption"),
    [
        ("A fox.", False, "A fox."),
        ("<think>Is it a dog?</think>\n\nA fox.", False, "A fox."),
        ("Is it a dog?</think>A fox.", True, "A fox."),
        ("a</think>b</think> A fox.", True, "A fox."),
        ("<think>Is it a", False, ""),
        ("Is it a", True, ""),
        ("A fox. <think>Was that", False, "A fox."),
    ],
)
def test_thinking_is_never_part_of_a_caption(answer, opened, caption):
    assert without_thinking(answer, opened) == caption


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('"A fox runs."', "A fox runs."),
        ("\u201cA fox runs.\u201d", "A fox runs."),
        ('"Stop" says a "sign"', '"Stop" says a "sign"'),
        ("**A fox** in *deep* `snow`", "A fox in deep snow"),
        ("# Fox\n- red\n- small", "Fox\nred\nsmall"),
        ("a [fox](http://a.example/b)", "a fox"),
        ("1girl, long_hair, looking_at_viewer, __x__y", "1girl, long_hair, looking_at_viewer, x" + "y"),
        ("2 * 3 * 4 = 24", "2 * 3 * 4 = 24"),
        ("the fox's tail", "the fox's tail"),
        ("", ""),
    ],
)
def test_markdown_and_quotes_around_the_whole_go(text, caption):
    assert plain(text) == caption


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("The image shows a red fox.", "A red fox."),
        ("This photo depicts a fox", "A fox"),
        ("this black and white photograph features a fox", "this black and white photograph features a fox"),
        ("The digital illustration portrays a fox", "A fox"),
        ("Sure! Here is a caption for your image: The image shows a fox.", "A fox."),
        ("In this image, we can see a fox.", "A fox."),
        ("Caption: a fox", "A fox"),
        ("the image shows", "the image shows"),
        ("The image is", "The image is"),
        ("The image islands", "The image islands"),
        ("A fox; the image shows snow", "A fox; the image shows snow"),
        ("certainly a fox", "certainly a fox"),
    ],
)
def test_openers_go_from_the_start_alone(text, caption):
    assert without_openers(text, OPENERS) == caption


def test_the_list_of_openers_is_the_users():
    assert cleaned("Behold, a fox", openers=["behold"]) == "A fox"
    assert cleaned("The image shows a fox", openers=[]) == "The image shows a fox"


def test_only_an_answer_that_was_cut_off_loses_its_last_sentence():
    text = "A fox runs. It is v"
    assert cleaned(text, cut=True) == "A fox runs."
    assert cleaned(text) == text == cleaned(text, cut=True, whole_sentences=False)
    assert to_sentence_end("no end at al") == "no end at al"
    assert to_sentence_end('He says "stop." Th') == 'He says "stop."'
    assert to_sentence_end("it weighs 3.5 kg. It") == "it weighs 3.5 kg."


def test_lines_are_joined():
    assert cleaned("A fox.\n\nIt runs.") == "A fox. It runs."
    assert cleaned("**A fox**", plain_text=False) == "**A fox**"


def test_a_limit_of_tokens_is_kept_at_the_end_of_a_sentence_part_or_word():
    text = "A red fox runs. It looks up, far away. The end."
    assert cut_to_tokens(text, 100, count_tokens) == text
    assert cut_to_tokens(text, 8, count_tokens) == "A red fox runs."
    assert cut_to_tokens("red, blue, green", 4, count_tokens) == "red, blue"
    assert cut_to_tokens("red blue green", 2, count_tokens) == "red blue"
    assert cleaned(text, max_caption_tokens=8) == "A red fox runs."


@given(WORDS, st.integers(1, 40))
def test_what_is_left_within_a_limit_is_a_beginning_and_fits(text, tokens):
    left = cut_to_tokens(text, tokens, count_tokens)
    assert text.startswith(left) and count_tokens(left) <= tokens


@given(WORDS)
def test_cleaning_twice_changes_nothing_more_and_adds_no_word(text):
    once = cleaned(text)
    assert cleaned(once) == once
    assert {word.casefold() for word in once.split()} <= {word.casefold() for word in text.split()}


def test_a_phrase_that_repeats_is_found_and_cut():
    assert repetition("a fox in the snow and a fox in the sun") is None
    assert repetition("a very very very good fox") is None
    assert (
        without_repetition("a fox, and the snow, and the snow, and the snow, and the snow, and")
        == "a fox, and the snow"
    )
    assert without_repetition("old Old old old old") == "old"


@given(
    WORDS.filter(lambda text: repetition(text) is None),
    st.lists(st.sampled_from(["in", "red", "air"]), min_size=1, max_size=9),
)
def test_any_phrase_that_stands_five_times_in_a_row_is_found(before, phrase):
    text = f"{before} {' '.join(phrase * 5)}".strip()
    left = without_repetition(text)
    assert repetition(text) is not None and text.startswith(left) and repetition(left) is None


def test_required_words_that_are_missing_come_at_the_end():
    assert with_words("A fox runs.", ["fox", "mira", "deep snow"]) == "A fox runs, mira, deep snow"
    assert with_words("A foxglove.", ["Fox"]) == "A foxglove, Fox"
    assert with_words("A FOX.", ["fox", " "]) == "A FOX."
    text, words = "A red fox in snow, by mira, at night", ["fox", "mira", "ice"]
    assert with_words(text, words, 14, words_and_commas) == f"{text}, ice"
    assert with_words(text, words, 11, words_and_commas) == "A red fox in snow, mira, ice"
    assert with_words(text, words, 3, words_and_commas) == "fox, mira, ice"


def words_and_commas(text):
    """The number of words and commas."""
    return len(text.replace(",", " ,").split())


@given(WORDS, st.lists(st.sampled_from(["mira", "red snow", "c++"])))
def test_no_required_word_is_missing_afterwards(text, required):
    assert missing_words(with_words(text, required), required) == []


@pytest.mark.parametrize(
    ("sentence", "left"),
    [
        ('a bus with the word "stop" on it', "a bus"),
        ("a cup with the letters abc on the side", "a cup"),
        ("a man with the name 'joe' on his shirt", "a man"),
        ("a girl has the words 'hello you' in her hand", "a girl"),
        ('a shop with a sign that says "open all day" on it', "a shop"),
        ("a shirt that says nike on it in snow", "a shirt in snow"),
        ("a mug that says 'i'm happy' on it", "a mug"),
        ("a player with the number 7 on it", "a player"),
        ("a player with the number 12 on his back", "a player"),
        ('a page with the words " and a pen', "a page and a pen"),
        ("a card the word love on it", "a card the"),
        ("a sign that says the word stop on it", "a sign"),
        ("a poster that says'the word \" on it", "a poster"),
        ("a fox in the snow with a red hat", "a fox in the snow with a red hat"),
    ],
)
def test_writing_that_git_invents_is_removed(sentence, left):
    for pattern in INVENTED_WRITING:
        sentence = without_matches(pattern, sentence)
    assert " ".join(sentence.split()) == left


@given(st.text(alphabet="that says'\"word on it wth number 7 ", max_size=300))
def test_no_sentence_takes_long(sentence):
    for pattern in [*INVENTED_WRITING, *OPENERS]:
        sentence = without_matches(pattern, sentence)
