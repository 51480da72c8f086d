"""The page about sd-scripts names every choice that repeats it, and no other setting or value."""

import json
import re

from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from tests.docs.guide import DOCS

PAGE = (DOCS / "sd_scripts.md").read_text("utf-8")
SET = re.findall(r"`([a-z_]+\.[a-z0-9_]+) = ([^`]+)`", PAGE)


def test_what_the_page_says_to_set_can_be_set():
    for path, text in SET:
        group, name = path.split(".")
        value = json.loads(text)
        assert value_of(build(TrainJob, {group: {name: value}}), path) == value, path


def test_every_choice_that_repeats_sd_scripts_is_in_the_page():
    said = {(path, json.loads(text)) for path, text in SET if text.startswith('"')}
    offered = {
        (entry.path, choice)
        for entry in declared(TrainJob)
        for choice, label in (entry.labels or {}).items()
        if "sd-scripts" in label and (entry.path, choice) != ("captions.weighted_mean", "free")  # the default
    }
    assert offered and offered <= said, offered - said


def test_all_of_it_can_be_set_at_once():
    values: dict = {}
    for path, text in SET:
        group, name = path.split(".")
        values = merge(values, {group: {name: json.loads(text)}})
    build(TrainJob, values)
