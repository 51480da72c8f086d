"""Texts of the form and the values they stand for."""

from __future__ import annotations

import json

import pytest

from core import extensions, tasks
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError
from core.record.units import number_text
from core.settings.base import declared, item_of, item_settings, value_of
from core.settings.check import build
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.settings.values import CODECS, text_of, value_from, value_typed
from tests.refusals import refused

FIELDS = {entry.path: entry for entry in declared(TrainJob)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (1e-8, "1e-8"), (16.0, "16"), (0.05, "0.05"), (0.001, "0.001"), (0, "0"),
     (1.5, "1.5"), (-3e-7, "-3e-7"), (0.00012345, "1.2345e-4"), (4294967295, "4294967295")],
)  # fmt: skip
def test_numbers_are_written_as_people_of_the_field_do(value, text):
    assert number_text(value) == text
    assert float(text) == value


def test_every_default_survives_the_way_through_its_widget():
    for entry in declared(TrainJob):
        if entry.elsewhere:
            continue
        value = value_of(TrainJob(), entry.path)
        back = value_from(entry, text_of(entry, value))
        assert build(TrainJob, {entry.group: {entry.name: back}}) == TrainJob(), entry.path


def every_setting():
    """(group's model, declaration) of every setting of every task and of its folders and LoRAs, each once."""
    extensions.load()
    found = {}
    for task in tasks.tasks().values():
        for entry in declared(task.job):
            found.setdefault(entry.path, (task.job.model_fields[entry.group].annotation, entry))
            found |= {item.path: (item_of(entry), item) for item in item_settings(entry)}
    return list(found.values())


EVERY = every_setting()
SIZES = [512, [512, 768]]
ARGUMENTS = {
    "a": 0.5,
    "betas": [0.9, 0.99],
    "one": [1],
    "on": True,
    "text": "linear",
    "number as text": "1",
    "none": None,
}
EXAMPLES = {  # kind or widget -> values, besides the default, the choices and the bounds
    "bool": [True, False], "int": [1, 7, 2**53 + 1], "float": [0.1, 1e-5, 1.0, 2.5e-8], "text": ["a fox", "1", "null point"],
    "span": [100, 0.1, "12.5%"], "pair": [*SIZES, [0.25, 0.75], 0.5], "list": [[], ["a", "b c"], ["one"]],
    "sizes": [SIZES, [768], []], "object": [{}, {"a": [1, "ä"], "b": {"c": None}}], "arguments": [{}, ARGUMENTS],
}  # fmt: skip


def examples(group, entry):
    """The values that a setting takes, as JSON: {name: value} of a preset."""
    values = [
        *([] if entry.info.is_required() else [entry.default]),
        *entry.choices,
        *entry.bounds.values(),
        *EXAMPLES.get(entry.kind, []),
    ]
    values += [None] if entry.optional else []
    for value in EXAMPLES["sizes"] if entry.widget == "sizes" else values:
        try:
            made = with_value(group, entry, value)
        except ValueError:
            continue
        yield made, json.loads(json.dumps(getattr(made, entry.name), default=to_values))


def with_value(group, entry, value):
    needed = {name: "x" for name, info in group.model_fields.items() if info.is_required()}
    return group.model_validate_json(json.dumps(needed | {entry.name: value}, default=dict), strict=True)


@pytest.mark.parametrize("name", sorted({entry.group for _, entry in EVERY}))
def test_every_value_of_a_groups_settings_survives_the_way_through_its_field_and_the_command_line(name):
    """Folders, LoRAs and ControlNets have cards, and their lists are JSON on the command line."""
    for group, entry in [(group, entry) for group, entry in EVERY if entry.group == name]:
        found, cards = list(examples(group, entry)), entry.widget in ("sources", "loras", "controls")
        assert found and entry.kind in CODECS, entry.path
        for made, value in found:
            assert "\n" not in made.summary()
            by_field = value_from(entry, text_of(entry, value))
            text = value if isinstance(value, str) else json.dumps(value)
            for back in [value_typed(entry, text)] if cards else [by_field, value_typed(entry, text)]:
                assert with_value(group, entry, back) == made, (entry.path, value, back)


@pytest.mark.parametrize(
    ("path", "word", "value"),
    [
        ("optimizer.learning_rate", "0,0001", 1e-4),
        ("memory.text_cache_bytes", "1.5 GB", 1610612736),
        ("dataset.resolution", "512x768", [512, 768]),
        ("dataset.resolution", "512,768", [512, 768]),
        ("schedule.seed", "18446744073709551615", 2**64 - 1),
        ("schedule.seed", "null", None),
        ("optimizer.text_encoder_lr", "0,0001", "0,0001"),  # two numbers, or one? the check refuses it
        ("network.alpha", "1,000", "1,000"),
        ("network.rank", "2.5", 2.5),
        ("network.train_unet", "True", True),
        ("samples.sample_prompts", "a fox, a tree", ["a fox", "a tree"]),
        ("samples.sample_prompts", '["a fox, red"]', ["a fox, red"]),
        ("optimizer.optimizer_args", "betas=0.9,0.99 decouple=True", ["betas=0.9,0.99", "decouple=True"]),
        ("optimizer.optimizer_args", "a='b", "a='b"),
        ("captions.max_token_length", "150", 150),
        ("captions.caption_prefix", "1", "1"),
    ],
)
def test_words_of_the_command_line_become_values(path, word, value):
    found = value_typed(FIELDS[path], word)
    assert (found, type(found)) == (value, type(value))


def test_a_field_keeps_every_digit_of_a_seed():
    assert value_from(FIELDS["schedule.seed"], "9007199254740993") == 2**53 + 1


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("dataset.resolution", "512", 512),
        ("dataset.resolution", "512 x 768", [512, 768]),
        ("dataset.resolution", "512,768", [512, 768]),
        ("dataset.resolution", "(640×640)", [640, 640]),
        ("optimizer.betas", "0.9, 0.99", [0.9, 0.99]),
        ("optimizer.learning_rate", " 1E-4 ", 1e-4),
        ("memory.text_cache_bytes", "512 MB", 512 << 20),
        ("optimizer.learning_rate", "0,0001", 1e-4),
        ("optimizer.learning_rate", "1,5e-4", 1.5e-4),
        ("noise.noise_offset", ",05", 0.05),
        ("noise.noise_offset", "0.00e-5", 0),
        ("network.rank", "١٢", 12),
        ("noise.min_snr_gamma", "1,2345", 1.2345),
        ("schedule.lr_warmup_steps", "12,5%", "12.5%"),
        ("memory.text_cache_bytes", "1,5 GB", 1610612736),
        ("memory.text_cache_bytes", "1.5g", 1610612736),
        ("schedule.max_train_steps", "", None),
        ("schedule.max_train_steps", "1e3", 1000),
        ("samples.sample_prompts", " a fox \n\n a tree", ["a fox", "a tree"]),
        ("captions.caption_prefix", "glyph, ", "glyph, "),
        ("captions.caption_prefix", "  ", None),
        ("dataset.folder", " my images ", "my images"),
        ("dataset.more_resolutions", "768\n 512 x 768\n\n640×640", [768, [512, 768], [640, 640]]),
        ("dataset.more_resolutions", "", []),
        ("dataset.face_crop_aug_range", "0.2, 0.6", [0.2, 0.6]),
        ("dataset.face_crop_aug_range", "", None),
        ("optimizer.learning_rate", "1e\u22124", 1e-4),
        ("optimizer.learning_rate", "\u200b1e\u20134\ufeff", 1e-4),
        ("dataset.face_crop_aug_range", "0.2, \u200e0.6", [0.2, 0.6]),
    ],
)
def test_texts_become_values(path, text, value):
    found = value_from(FIELDS[path], text)
    assert found == value
    group, name = path.split(".")
    job = build(TrainJob, {group: {name: found}})
    assert value_from(FIELDS[path], text_of(FIELDS[path], value_of(job, path))) == to_values(job)[group][name]


@pytest.mark.parametrize(
    ("path", "text"),
    [("network.rank", "abc"), ("network.rank", "2.5"), ("network.rank", ""), ("network.rank", "nan"),
     ("network.alpha", "inf"), ("network.alpha", "1e-400"), ("network.alpha", "-0.001e-999"),
     ("network.alpha", "1,5,2"), ("network.alpha", "1.000,5"), ("network.alpha", "1,000"),
     ("schedule.max_train_steps", "1,000"), ("network.rank", "2,5"), ("memory.text_cache_bytes", "1,500 MB"),
     ("memory.text_cache_bytes", "1.2.3 GB"), ("memory.text_cache_bytes", f"1{'0' * 400} GB"),
     ("optimizer.text_encoder_lr", "0,0001"), ("dataset.resolution", "axb"),
     ("dataset.resolution", "1 2.5"), ("dataset.more_resolutions", "768\nlarge"),
     ("dataset.more_resolutions", "512 x 76.5"), ("dataset.resolution", "512x"),
     ("dataset.resolution", " × 512"), ("dataset.face_crop_aug_range", "small, large")],
)  # fmt: skip
def test_texts_that_are_no_value_are_told_with_the_fix(path, text):
    with pytest.raises(ProblemsError) as told:
        value_from(FIELDS[path], text)
    assert told.value.problems[0].where == path and told.value.problems[0].fix.startswith(("use ", "write"))


def test_a_number_that_would_become_0_is_refused_on_the_command_line_and_in_files():
    for path, text in (("network.alpha", "1e-400"), ("optimizer.betas", "[0.9, 1e-400]")):
        with pytest.raises(ProblemsError):
            build(TrainJob, {path.partition(".")[0]: {path.partition(".")[2]: value_typed(FIELDS[path], text)}})
    with pytest.raises(ProblemsError):
        parse_json('{"a": 1e-400}', "a file")
    assert value_typed(FIELDS["network.alpha"], "0e-400") == 0


def test_a_comma_that_may_part_thousands_is_asked_about():
    for path, fix in (("network.alpha", "write 1000 or 1.000"), ("schedule.max_train_steps", "write 1000")):
        with pytest.raises(ProblemsError) as told:
            value_from(FIELDS[path], "1,000")
        assert "may mean 1000 or 1.000" in told.value.problems[0].what and told.value.problems[0].fix == fix


def test_a_point_that_may_part_thousands_of_a_whole_number_is_asked_about():
    with refused("settings.bad-value", "'1.000', which may mean 1000 or 1"):
        value_from(FIELDS["schedule.max_train_steps"], "1.000")
    assert (
        value_from(FIELDS["network.alpha"], "1.000") == 1 and value_from(FIELDS["schedule.max_train_steps"], "8.0") == 8
    )


def test_a_folder_is_named_in_one_line_with_the_count_of_its_own_settings():
    sources = [Source(folder="a", num_repeats=3, flip_aug=True), Source(folder="b"), Source(folder="c", enabled=False)]
    assert text_of(FIELDS["dataset.sources"], sources) == "a, 2 settings of its own\nb\nc, left out"
