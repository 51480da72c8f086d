"""The caption pipeline: sd-scripts' results for every option it has, ours where it loses something, addressed draws."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.dataset.captions.files import Caption, join_texts
from core.dataset.captions.pipeline import (
    ImageUse,
    caption_preview,
    caption_variants_of_epoch,
    is_random,
    needs_steps,
    plain_caption,
)
from core.dataset.captions.templates import OBJECT, STYLE
from core.record import draws
from core.settings.dataset.captions import CaptionSettings
from tests.dataset.training_captions import training_caption
from tests.recorded_json import recorded_json

VECTORS = recorded_json("captions_deterministic")["cases"]
KEY = ("folder", "a.png")


def draw(raw, epoch=1, seed=0, key=KEY, repeat=0, step=0, total_steps=0, words="", **options):
    settings = CaptionSettings(**options)
    return training_caption(raw, settings, seed, epoch, key, repeat, step=step, total_steps=total_steps, words=words)


def piped(raw, seed=0, epoch=0, words="", **options):
    return draw(raw, epoch, seed, words=words, **options)


# ---- sd-scripts


def by_sd_scripts(case, **more):
    """Epochs of the vectors are counted from 1; 0 is sd-scripts' value before the first."""
    at = {"epoch": case["epoch"] - 1, "step": case["step"], "total_steps": case["max_train_steps"]}
    return draw(case["caption"], **at, **case["options"], **more)


def test_captions_come_out_as_in_sd_scripts():
    assert len(VECTORS) >= 174
    for case in VECTORS:
        assert by_sd_scripts(case, compatibility="kohya") == case["result"], case


def test_by_default_only_a_mark_that_would_be_trained_is_otherwise():
    commas = [case for case in VECTORS if case["options"].get("caption_separator", ",") == ","]
    other = [case for case in commas if by_sd_scripts(case) != case["result"]]
    assert len(commas) < len(VECTORS) and {case["options"].get("keep_tokens_separator") for case in other} == {"|||"}
    assert all(case["result"].count("|||") == 1 and "|||" not in by_sd_scripts(case) for case in other)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle_caption": True},
        {"caption_tag_dropout_rate": 1e-9},
        {"shuffle_caption": True, "keep_tokens": 1},
        {"shuffle_caption": True, "keep_tokens_separator": "|||"},
        {"token_warmup_step": 10, "step": 10},
        {"shuffle_caption": True, "trigger_word": "sks"},
    ],
)
@pytest.mark.parametrize(("separator", "between"), [(";", "; "), ("; ", "; "), (" ", " "), ("|", "| "), (",", ", ")])
def test_the_separator_stays_between_the_tags(options, separator, between):
    tags = ["one", "red hat".replace(" ", "-"), "blue", "a,b" if separator != "," else "ab"]
    text = f"one{'|||' if 'keep_tokens_separator' in options else separator}{separator.join(tags[1:])}"
    found = draw(text, caption_separator=separator, **options)
    assert sorted(found.removeprefix(f"sks{between}").split(between)) == sorted(tags)


def test_with_compatibility_tags_are_joined_by_commas_as_in_sd_scripts():
    options = {"caption_separator": ";", "caption_tag_dropout_rate": 1e-9}
    assert draw("a;b", compatibility="kohya", **options) == "a, b" and draw("a;b", **options) == "a; b"


WORKED = [  # reference 4.2, verified there by running sd-scripts; only what chance does not change
    ({}, "a,  b , c\nsecond", "a,  b , c"),
    ({"keep_tokens_separator": "|||", "caption_tag_dropout_rate": 1.0}, "1girl ||| b, c ||| e", "1girl, e"),
    (
        {"keep_tokens": 1, "caption_tag_dropout_rate": 1.0, "tag_dropout_mode": "all", "trigger_word": "sks"},
        "1girl, sks, b, c",
        "1girl, sks",
    ),
    ({"keep_tokens_separator": "|||"}, "1girl, x ||| b, c, d ||| best", "1girl, x ||| b, c, d ||| best"),
    ({"caption_prefix": "PRE", "caption_suffix": "SUF"}, "l1\nl2", "PRE l1"),
    ({"caption_dropout_rate": 1.0, "caption_prefix": "PRE"}, "anything", ""),
    ({"enable_wildcard": True}, "{a|{b|c}}", "{a|{b|c}"),
    ({"enable_wildcard": True}, "{} {{retro}}", "{} {retro}"),
]


@pytest.mark.parametrize(("options", "raw", "result"), WORKED)
def test_worked_examples_come_out_as_in_sd_scripts(options, raw, result):
    assert piped(raw, compatibility="kohya", **options) == result


def test_a_prefix_and_a_suffix_stick_to_the_first_and_last_line_in_sd_scripts_and_to_every_line_here():
    options = {"caption_prefix": "PRE", "caption_suffix": "SUF", "enable_wildcard": True}
    theirs = {piped("l1\nl2\nl3", seed, compatibility="kohya", **options) for seed in range(40)}
    ours = {piped("l1\nl2\nl3", seed, **options) for seed in range(40)}
    assert theirs == {"PRE l1", "l2", "l3 SUF"}
    assert ours == {f"PRE l{number} SUF" for number in (1, 2, 3)}


def test_draws_are_taken_in_the_order_of_sd_scripts():
    """Reference 4.1: random() for the dropout, choice of the line, choice per group, shuffle, random() per tag."""
    raw = "{a|b|c}, d, {e|f}, g, h\n{i|j}, k, l, m, n, o"
    settings = CaptionSettings(
        caption_dropout_rate=0.2,
        enable_wildcard=True,
        shuffle_caption=True,
        caption_tag_dropout_rate=0.3,
        keep_tokens=1,
        compatibility="kohya",
    )
    for seed in range(50):
        rng, expected = draws.python_random(seed, "caption", 0, *KEY, 0), ""
        if rng.random() >= 0.2:
            line = rng.choice(raw.split("\n"))
            line = re.sub(r"\{([^}]+)\}", lambda group: rng.choice(group[1].split("|")), line)  # noqa: B023
            tags = [tag.strip() for tag in line.split(",")]
            flexible = tags[1:]
            rng.shuffle(flexible)
            expected = ", ".join(tags[:1] + [tag for tag in flexible if rng.random() >= 0.3])
        assert training_caption(raw, settings, seed, 0, KEY, 0) == expected


def test_no_draw_is_taken_for_what_is_off(monkeypatch):
    monkeypatch.setattr(draws, "python_random", None)
    settings = CaptionSettings(caption_prefix="x", keep_tokens_separator="|")
    assert training_caption("a, b\nc", settings, 3, 0, KEY, 0) == "x a, b"


@pytest.mark.parametrize(("step", "kept"), [(0, 1), (10, 2), (25, 5), (49, 9), (50, 10), (4000, 10)])
def test_a_warm_up_grows_to_all_tags(step, kept):
    """Reference 4.3, from sd-scripts: n = 10, S = 50, min = 1."""
    raw = ", ".join("abcdefghij")
    for options in ({"token_warmup_step": 50}, {"token_warmup_step": 0.5}):
        assert len(draw(raw, step=step, total_steps=100, **options).split(", ")) == kept
    assert draw(raw, step=step, total_steps=1, token_warmup_step=0.5) == raw  # a share of nothing is off


def test_kept_tags_come_before_and_beside_the_warm_up():
    assert draw("x ||| a, b, c ||| y", token_warmup_step=50, keep_tokens_separator="|||") == "x, a, y"
    assert draw("x, a, b, c", token_warmup_step=50, keep_tokens=2, token_warmup_min=0) == "x, a"


# ---- ours


def test_a_suffix_stays_on_a_caption_of_several_lines():
    assert draw("l1\nl2", caption_prefix="PRE", caption_suffix="SUF") == "PRE l1 SUF"
    assert plain_caption("\n  \nfirst words\nsecond", CaptionSettings()) == "first words"


def test_lines_are_taken_as_chosen_and_blank_ones_never():
    raw = "one\n\n  two \n"
    assert draw(raw) == "one"
    assert draw(raw, caption_lines="all", caption_suffix="end") == "one two end"
    assert {draw(raw, epoch, caption_lines="random") for epoch in range(30)} == {"one", "two"}
    assert {draw(raw, epoch, enable_wildcard=True) for epoch in range(30)} == {"one", "two"}


def test_a_mark_is_never_trained():
    assert draw("a, b ||| c ||| d ||| e", keep_tokens_separator="|||") == "a, b, c, d, e"
    assert draw("a, b", keep_tokens_separator="|||") == "a, b"


def test_every_nth_epoch_is_without_captions_as_a_person_counts():
    drawn = [draw("a fox", epoch, caption_dropout_every_n_epochs=3) for epoch in range(7)]
    assert drawn == ["a fox", "a fox", "", "a fox", "a fox", "", "a fox"]


def test_a_prefix_without_a_comma_is_one_tag_with_the_first():
    for epoch in range(20):
        options = {"shuffle_caption": True, "keep_tokens": 1}
        assert draw("a, b, c, d", epoch, caption_prefix="trigger", **options).startswith("trigger a, ")
        assert draw("a, b, c, d", epoch, caption_prefix="trigger,", **options).startswith("trigger, ")


def test_tags_joined_by_the_secondary_separator_stay_together():
    out = {draw("1girl, sky;;;day, out", n, shuffle_caption=True, secondary_separator=";;;") for n in range(30)}
    assert len(out) == 6 and all("sky,day" in caption for caption in out)


def test_a_trigger_word_takes_its_place_or_stands_in_front():
    assert draw("a photo of [trigger], [name] runs", trigger_word="sks") == "a photo of sks, sks runs"
    assert draw("a photo of a fox", trigger_word="sks") == "sks a photo of a fox"
    assert draw("fox, snow", trigger_word="sks") == "sks, fox, snow"
    assert draw("fox; snow", trigger_word="sks", caption_separator=";") == "sks; fox; snow"
    assert draw("a SKS fox", trigger_word="sks") == "a SKS fox"
    assert draw("he asks", trigger_word="ask") == "ask he asks"  # part of a word is not the word
    assert draw("", trigger_word="sks") == draw("  ", trigger_word="sks", shuffle_caption=True) == "sks"
    assert draw("a [trigger]") == "a [trigger]"


def test_a_trigger_word_is_kept_whatever_is_shuffled_and_dropped():
    options = {"trigger_word": "sks", "shuffle_caption": True, "caption_tag_dropout_rate": 0.5}
    for epoch in range(30):
        assert draw("a, b, c", epoch, **options).split(", ")[0] == "sks"
        assert draw("a, b, sks fox, c", epoch, **options).split(", ")[0] == "sks fox"
        assert draw("a, b, sks fox, c", epoch, keep_tokens=1, **options).split(", ")[:2] == ["a", "sks fox"]
        ends = draw("a ||| b, c ||| sks", epoch, keep_tokens_separator="|||", **options).split(", ")
        assert (ends[0], ends[-1], ends.count("sks")) == ("a", "sks", 1)


def test_sentences_take_the_place_of_captions_around_the_trigger_word_or_the_folders_words():
    assert (len(OBJECT), len(STYLE)) == (27, 19) and all(text.count("{}") == 1 for text in OBJECT + STYLE)
    drawn = {draw("raw", epoch, words="cat", caption_template="object") for epoch in range(600)}
    assert drawn == {text.replace("{}", "cat") for text in OBJECT}
    styles = {draw("raw", epoch, words="w", trigger_word="<s>", caption_template="style") for epoch in range(600)}
    assert styles == {text.replace("{}", "<s>") for text in STYLE}
    assert draw("raw", caption_template="object") == "raw"  # there is nothing to put into a sentence
    assert draw("raw", words="cat", caption_template="object", caption_dropout_rate=1.0) == ""


# ---- two files


def two(sentence="A fox, running.", tags="fox, snow, day"):
    return Caption(tags, "file", Path("a.txt"), sentence=sentence, tags=tags)


def test_a_joined_sentence_stays_whole_in_front_of_the_tags():
    joined = {"sidecars": "joined"}
    assert draw(two(), **joined) == join_texts("A fox, running.", "fox, snow, day", CaptionSettings())
    for epoch in range(20):
        out = draw(two(), epoch, shuffle_caption=True, caption_tag_dropout_rate=0.3, keep_tokens=1, **joined)
        assert out.startswith("A fox, running., fox")
    theirs = {draw(two(), n, shuffle_caption=True, compatibility="kohya", **joined) for n in range(30)}
    assert not all(caption.startswith("A fox, running.") for caption in theirs)


def test_of_two_files_the_sentence_is_drawn_as_often_as_asked_and_never_shuffled():
    options = {"sidecars": "drawn", "sentence_share": 0.25, "shuffle_caption": True, "caption_prefix": "P,"}
    drawn = [draw(two(), epoch, **options) for epoch in range(2000)]
    sentences = [caption for caption in drawn if "running" in caption]
    assert set(sentences) == {"P, A fox, running."}
    # 4 standard deviations of a share of 0.25 over 2000 draws: 0.039
    assert len(sentences) / 2000 == pytest.approx(0.25, abs=0.039)
    assert draw(two(), sidecars="drawn", sentence_share=0.0) == "fox, snow, day"
    assert draw(two(), sidecars="drawn", sentence_share=1.0) == "A fox, running."


# ---- properties

TAGS = st.lists(st.text("abc xyz", min_size=1, max_size=6), min_size=1, max_size=9)


@given(tags=TAGS, keep=st.integers(0, 10), epoch=st.integers(0, 50))
def test_a_shuffle_keeps_every_tag_and_the_first_ones_in_place(tags, keep, epoch):
    raw = ", ".join(tags)
    out = draw(raw, epoch, shuffle_caption=True, keep_tokens=keep).split(", ")
    expected = [tag.strip() for tag in raw.strip().split(",")]
    assert Counter(out) == Counter(expected)
    assert out[:keep] == expected[:keep]


WORDS = st.lists(st.sampled_from("fox snow day red sky tree".split()), max_size=5)


@given(head=WORDS, middle=WORDS, tail=WORDS, rate=st.floats(0, 1), shuffle=st.booleans(), epoch=st.integers(0, 50))
def test_between_marks_tags_move_and_drop_and_outside_they_stay(head, middle, tail, rate, shuffle, epoch):
    raw = " ||| ".join(", ".join(part) for part in (head, middle, tail))
    options = {"keep_tokens_separator": "|||", "shuffle_caption": shuffle, "caption_tag_dropout_rate": rate}
    out = [tag for tag in draw(raw, epoch, **options).split(", ") if tag]
    end = len(out) - len(tail)
    assert (out[: len(head)], out[end:]) == (head, tail)
    left = out[len(head) : end]
    assert not Counter(left) - Counter(middle)  # nothing is invented
    if rate == 0:
        assert Counter(left) == Counter(middle) and (shuffle or left == middle)
    if rate == 1:
        assert left == []


@given(tags=WORDS.filter(bool), keep=st.integers(0, 6), trigger=st.sampled_from([None, "sks", "fox"]))
def test_a_full_tag_dropout_leaves_the_kept_tags_and_the_trigger_word(tags, keep, trigger):
    out = draw(", ".join(tags), caption_tag_dropout_rate=1.0, keep_tokens=keep, trigger_word=trigger)
    kept = tags[:keep]
    if trigger and trigger not in tags:
        kept = [trigger, *kept]
    elif trigger and trigger not in kept:
        kept = [*kept, trigger]
    assert out == ", ".join(kept)


@given(st.text("ab{}| ,\n", max_size=30), st.integers(0, 20))
def test_choices_leave_no_group_that_was_one(raw, seed):
    line = piped(raw, seed, enable_wildcard=True)
    if "{{" not in raw and "}}" not in raw and not re.search(r"\{[^}]*\{", raw):  # nothing is nested
        assert not re.search(r"\{[^{}]*\|[^{}]*\}", line)
    assert len(line) <= len(raw)


PARTS = st.lists(st.text("abc", min_size=0, max_size=3), min_size=1, max_size=4)


@given(st.lists(PARTS, min_size=1, max_size=4), st.integers(0, 50))
def test_each_choice_becomes_one_of_its_parts(groups, epoch):
    groups = [parts for parts in groups if "|".join(parts)] or [["a", "b"]]
    raw = "-".join("{" + "|".join(parts) + "}" for parts in groups)
    out = draw(raw, epoch, enable_wildcard=True).split("-")
    assert len(out) == len(groups) and all(one in parts for one, parts in zip(out, groups, strict=True))


EVERYTHING = {
    "caption_prefix": "masterpiece,",
    "caption_suffix": ", end",
    "enable_wildcard": True,
    "shuffle_caption": True,
    "keep_tokens": 1,
    "caption_dropout_rate": 0.1,
    "caption_dropout_every_n_epochs": 4,
    "caption_tag_dropout_rate": 0.2,
    "token_warmup_step": 20,
    "trigger_word": "sks",
    "sidecars": "drawn",
}


@given(st.integers(0, 9), st.integers(0, 3), st.integers(0, 30), st.text(max_size=20))
def test_the_same_address_gives_the_same_caption(epoch, repeat, step, text):
    caption = two(tags=f"{{a|b}}, c, d, {text}")
    address = {"epoch": epoch, "repeat": repeat, "step": step, "total_steps": 30}
    assert draw(caption, **address, **EVERYTHING) == draw(caption, **address, **EVERYTHING)


def test_another_seed_epoch_image_or_repeat_gives_another_draw():
    options = {"shuffle_caption": True}
    raw = ", ".join("abcdefghijkl")
    others = [draw(raw, epoch=2, **options), draw(raw, key=("folder", "b.png"), **options)]
    others += [draw(raw, repeat=1, **options), draw(raw, seed=1, **options)]
    assert len({draw(raw, **options), *others}) == 5


def test_dropout_empties_the_share_of_draws_that_was_asked_for():
    drawn = [draw("a fox", epoch=epoch, caption_dropout_rate=0.25) for epoch in range(4000)]
    assert set(drawn) == {"", "a fox"}
    # 4 standard deviations of a share of 0.25 over 4000 draws: 0.027
    assert drawn.count("") / 4000 == pytest.approx(0.25, abs=0.027)
    assert draw("a fox", caption_dropout_rate=1.0) == ""


# ---- what is known ahead


def test_the_variants_of_an_epoch_are_exactly_the_captions_it_uses():
    settings = CaptionSettings(**EVERYTHING)
    for epoch in (0, 2, 3):
        shown = [
            ImageUse(("folder", f"{n}.png"), repeat, two(), settings, "fox", epoch * 9 + n)
            for n in range(9)
            for repeat in range(3)
        ]
        used = [
            training_caption(two(), settings, 5, epoch, each.key, each.repeat, step=each.step, total_steps=30)
            for each in shown
        ]
        variants = caption_variants_of_epoch(shown, 5, epoch, 30)
        assert variants == list(dict.fromkeys(used))
        assert (variants == [""]) if epoch == 3 else (len(variants) > 3)
    plain = [ImageUse((str(n),), 0, "a, b, c", CaptionSettings()) for n in range(3)]
    assert caption_variants_of_epoch(plain, 5, 2) == ["a, b, c"]


VARYING = [
    {"shuffle_caption": True},
    {"caption_dropout_rate": 0.5},
    {"caption_dropout_every_n_epochs": 2},
    {"enable_wildcard": True},
    {"caption_lines": "random"},
    {"token_warmup_step": 9},
    {"caption_tag_dropout_rate": 0.5},
    {"caption_template": "style"},
    {"sidecars": "drawn"},
]


@pytest.mark.parametrize("options", VARYING, ids=lambda options: next(iter(options)))
def test_what_varies_is_known_to_vary(options):
    raw = two(sentence="a\nb", tags="{a|b}, c, d\ne, f")
    drawn = {draw(raw, epoch, step=epoch, words="w", **options) for epoch in range(12)}
    assert len(drawn) > 1 and is_random(CaptionSettings(**options))


def test_what_does_not_vary_is_known_not_to():
    steady = [
        {},
        {"caption_prefix": "a", "caption_suffix": "b", "trigger_word": "c", "keep_tokens": 2},
        {"keep_tokens_separator": "|||", "secondary_separator": ";", "caption_lines": "all"},
        {"sidecars": "joined"},
        {"sidecars": "drawn", "sentence_share": 1.0},
        {"caption_dropout_rate": 1.0, "shuffle_caption": True},
        {"caption_dropout_every_n_epochs": 1, "shuffle_caption": True},
    ]
    for options in steady:
        assert not is_random(CaptionSettings(**options)), options
        assert len({draw(two("a\nb", "c ||| d, e;f"), epoch, step=epoch, **options) for epoch in range(12)}) == 1
    assert needs_steps(CaptionSettings(token_warmup_step=0.1)) and not needs_steps(CaptionSettings())


def test_a_preview_shows_what_the_epochs_use():
    settings = CaptionSettings(**EVERYTHING)

    def step_of(epoch, repeat):
        return epoch * 6 + repeat

    preview = caption_preview(
        two(), settings, 7, KEY, 4, repeats=2, class_tokens="fox", total_steps=30, step_of=step_of
    )
    assert [(each.epoch, each.repeat) for each in preview] == [(e, r) for e in (1, 2, 3, 4) for r in (1, 2)]
    for each in preview:
        epoch, repeat = each.epoch - 1, each.repeat - 1
        step = step_of(epoch, repeat)
        assert each.text == training_caption(
            two(), settings, 7, epoch, KEY, repeat, step=step, total_steps=30, words="fox"
        )
    assert [each.text for each in preview[-2:]] == ["", ""]  # epoch 4
    grown = CaptionSettings(token_warmup_step=1000)
    assert [each.text for each in caption_preview("a, b, c", grown, 7, KEY, 2)] == ["a, b, c"] * 2


def test_the_plain_caption_is_the_one_without_draws():
    settings = CaptionSettings(**(EVERYTHING | {"token_warmup_step": 0.5, "keep_tokens_separator": "|||"}))
    assert plain_caption("a ||| {b|c}, d", settings) == "sks, masterpiece, a, b, d, end"
    assert plain_caption("x", CaptionSettings(caption_template="object"), "cat") == "a photo of a cat"
    assert plain_caption("x", CaptionSettings(caption_dropout_rate=1.0)) == "x"


def test_all_tags_are_dropped_at_once_or_none():
    options = {"caption_tag_dropout_rate": 0.3, "keep_tokens": 1, "tag_dropout_mode": "all"}
    found = Counter(draw("a, b, c, d", epoch, **options) for epoch in range(400))
    assert found.keys() == {"a", "a, b, c, d"} and 0.2 < found["a"] / 400 < 0.4
