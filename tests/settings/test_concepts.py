"""A folder's own settings count for that folder; what it does not set is that of all folders."""

import pytest

from core.dataset.captions.pipeline import plain_caption
from core.settings.base import declared
from core.settings.check import build
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts_of
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import ONE_FOR_ALL, Source
from core.settings.dataset.validation import ValidationSettings
from core.settings.job import TrainJob

# group of the job -> where a folder in force has it, and what of it
GROUPS = {
    "dataset": ("images", ImageSettings),
    "captions": ("captions", CaptionSettings),
    "validation": ("validation", ValidationSettings),
}
# Where the type does not say another value than the default.
OTHER = {
    "alpha_color": "#102030",
    "caption_extension": ".cap",
    "face_crop_aug_range": (2.0, 4.0),
    "more_resolutions": [640],
    "bucket_reso_steps": 32,
    "validation_split": 0.25,
}


def other_than_default(entry):
    """A value of this setting that is not its default."""
    if entry.name in OTHER:
        return OTHER[entry.name]
    if entry.kind == "bool":
        return not entry.default
    if entry.choices:
        return next(choice for choice in entry.choices if choice != entry.default)
    if entry.kind in ("int", "float", "pair"):
        value = (entry.default or 0) + 64
        return value if value <= entry.bounds.get("le", value) else 0.25
    return "words"


def own_settings():
    """(where a folder in force has it, the setting) of all that a folder can have of its own."""
    for entry in declared(TrainJob):
        part, model = GROUPS.get(entry.group, ("", Source))
        if part and entry.name in Source.model_fields and entry.name in model.model_fields:
            yield part, entry


def test_each_setting_that_a_folder_can_have_counts_there_and_nowhere_else():
    found = list(own_settings())
    shared = {name for _, model in GROUPS.values() for name in model.model_fields}
    assert {entry.name for _, entry in found} == shared - ONE_FOR_ALL
    for part, entry in found:
        value = other_than_default(entry)
        sources = [{"folder": "a", entry.name: value}, {"folder": "b"}]
        method = {"kind": "embedding" if entry.name == "caption_template" else "lora"}  # the one that uses it
        own, common = concepts_of(build(TrainJob, {"method": method, "dataset": {"sources": sources}}))
        seen = [getattr(getattr(concept, part), entry.name) for concept in (own, common)]
        assert seen == [value, entry.default], entry.path
        everywhere = {"method": method, "dataset": {"sources": [{"folder": "a"}]}}
        everywhere[entry.group] = everywhere.get(entry.group, {}) | {entry.name: value}
        (only,) = concepts_of(build(TrainJob, everywhere))
        assert getattr(getattr(only, part), entry.name) == value, entry.path


def test_a_folder_that_is_switched_off_and_one_of_another_role_are_taken_as_such():
    sources = [{"folder": "a", "enabled": False}, {"folder": "b", "role": "validation"}]
    job = build(TrainJob, {"dataset": {"folder": "c", "reg_data_dir": "d", "sources": sources}})
    found = [(concept.source.folder, concept.role) for concept in concepts_of(job)]
    assert found == [("c", "train"), ("d", "regularization"), ("b", "validation")]


@pytest.mark.parametrize(
    "settings",
    [
        {"captions": {"trigger_word": "sks"}},
        {"method": {"kind": "embedding"}, "embedding": {"token_string": "sks"}},
    ],
)
def test_regularization_captions_get_only_a_trigger_word_of_their_own(settings):
    sources = [
        {"folder": "a"},
        {"folder": "b", "role": "regularization"},
        {"folder": "c", "role": "regularization", "trigger_word": "dog"},
        {"folder": "d", "role": "validation"},
    ]
    job = build(TrainJob, settings | {"dataset": {"sources": sources}})
    assert [plain_caption("a photo", each.captions) for each in concepts_of(job)] == [
        "sks a photo",
        "a photo",
        "dog a photo",
        "sks a photo",
    ]
