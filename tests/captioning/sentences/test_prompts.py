"""What a vision-language model is asked."""

import pytest

from core.captioning.sentences.profiles import filled, prompt_of, prompt_problems
from core.settings.captioning.prompts import CAPTION_TYPES, LENGTHS, TOGGLES
from core.settings.captioning.sentences import VlmSettings

FACTS = {"tags": "1girl, {name}", "name": "img_01", "folder": "mira", "trigger": "mra"}


def prompt(**settings):
    return prompt_of(VlmSettings(**settings), FACTS)


def test_length_and_words_are_asked_for_in_every_caption_type():
    for name in CAPTION_TYPES:
        bare = prompt(caption_type=name)
        asked = prompt(caption_type=name, caption_length="very-short", caption_words=50)
        assert "very short " in asked and " in 50 words or less" in asked
        assert bare == asked.replace("very short ", "").replace(" in 50 words or less", "") and "{" not in bare
    assert len({prompt(caption_type=name) for name in CAPTION_TYPES}) == len(CAPTION_TYPES)
    assert len({prompt(caption_length=name) for name in LENGTHS}) == len(LENGTHS)


@pytest.mark.parametrize("name", TOGGLES)
def test_each_addition_adds_its_sentence(name):
    assert prompt(**{name: True}) == f"{prompt()} {TOGGLES[name][1]}"


def test_the_person_has_a_name():
    assert prompt(person_name="{trigger}").endswith("you must refer to them as mra.")


def test_an_own_prompt_replaces_everything_and_is_filled_once():
    asked = prompt(prompt="Of {name} in {folder}: {tags}. Say {trigger}!", lighting=True, caption_type="danbooru")
    assert asked == "Of img_01 in mira: 1girl, {name}. Say mra!"
    assert filled("{nothing} {} {name", FACTS) == "{nothing} {} {name"


def test_names_that_stand_for_nothing_are_told_with_their_setting():
    found = prompt_problems(VlmSettings(prompt="{tag} {name}", caption_start="{Name}", person_name="{trigger}"))
    assert [(each.code, each.where) for each in found] == [
        ("captioner.unknown-name", "vlm.prompt"),
        ("captioner.unknown-name", "vlm.caption_start"),
    ]
