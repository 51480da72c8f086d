"""Texts of the form and the values they stand for."""

from __future__ import annotations

import pytest

from core.record.units import number_text
from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.settings.values import BadText, text_of, value_from

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
     ("network.alpha", "inf"), ("network.alpha", "1,5,2"), ("network.alpha", "1.000,5"), ("network.alpha", "1,000"),
     ("schedule.max_train_steps", "1,000"), ("network.rank", "2,5"), ("memory.text_cache_bytes", "1,500 MB"),
     ("optimizer.text_encoder_lr", "0,0001"), ("dataset.resolution", "axb"),
     ("dataset.resolution", "1 2.5"), ("dataset.more_resolutions", "768\nlarge"),
     ("dataset.more_resolutions", "512 x 76.5"), ("dataset.face_crop_aug_range", "small, large")],
)  # fmt: skip
def test_texts_that_are_no_value_are_told_with_the_fix(path, text):
    with pytest.raises(BadText) as told:
        value_from(FIELDS[path], text)
    assert told.value.problem.where == path and told.value.problem.fix.startswith(("use ", "write"))


def test_a_comma_that_may_part_thousands_is_asked_about():
    for path, fix in (("network.alpha", "write 1000 or 1.000"), ("schedule.max_train_steps", "write 1000")):
        with pytest.raises(BadText) as told:
            value_from(FIELDS[path], "1,000")
        assert "may mean 1000 or 1.000" in told.value.problem.what and told.value.problem.fix == fix


def test_a_folder_is_named_in_one_line_with_the_count_of_its_own_settings():
    sources = [Source(folder="a", num_repeats=3, flip_aug=True), Source(folder="b"), Source(folder="c", enabled=False)]
    assert text_of(FIELDS["dataset.sources"], sources) == "a, 2 settings of its own\nb\nc, left out"
