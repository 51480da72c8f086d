"""The memory and speed slider: its places are values of the memory group that fit together."""

import pytest

from core.settings.base import value_of
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.settings.presets.levels import level_of, levels
from core.settings.rules import training_problems

KINDS = {
    "lora": {},
    "embedding": {"method": {"kind": "embedding"}},
    "whole": {"method": {"kind": "fine_tune"}},
    "whole, AdaFactor": {"method": {"kind": "fine_tune"}, "optimizer": {"optimizer_type": "AdaFactor"}},
    "whole, gathered": {"method": {"kind": "dreambooth"}, "schedule": {"gradient_accumulation_steps": 4}},
    "whole, Prodigy": {"method": {"kind": "fine_tune"}, "optimizer": {"optimizer_type": "Prodigy"}},
    "whole, fp32": {"method": {"kind": "fine_tune"}, "memory": {"mixed_precision": "no"}},
}


def at(job: TrainJob, values: dict) -> TrainJob:
    all_values = to_values(job)
    for path, value in values.items():
        group, _, name = path.partition(".")
        all_values = merge(all_values, {group: {name: value}})
    return build(TrainJob, all_values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_moved_to_a_place_is_there_and_has_no_new_error(kind):
    job = build(TrainJob, KINDS[kind])
    known = {problem.what for problem in training_problems(job)}
    for level in levels(job):
        moved = at(job, level.values)
        assert level_of(moved) == level.number
        new = [each for each in training_problems(moved) if each.level == "error" and each.what not in known]
        assert not new
        assert all(path.startswith("memory.") for path in level.values)


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_can_be_left_again(kind):
    job = build(TrainJob, KINDS[kind])
    last = at(job, levels(job)[-1].values)
    usual = next(level for level in levels(last) if level.number == 1)
    assert level_of(at(last, usual.values)) == 1


def test_a_new_job_stands_at_the_usual_place_and_a_mixture_at_none():
    assert level_of(TrainJob()) == 1
    assert level_of(build(TrainJob, {"memory": {"gradient_checkpointing": True, "highvram": True}})) is None


def test_places_follow_the_method():
    lora = {level.number: level.values for level in levels(TrainJob())}
    assert sorted(lora) == [0, 1, 2, 3, 4] and lora[3]["memory.fp8_base_unet"]
    whole = {level.number: level.values for level in levels(build(TrainJob, KINDS["whole, AdaFactor"]))}
    assert not whole[4]["memory.fp8_base"] and whole[4]["memory.fused_backward_pass"]
    assert whole[3]["memory.full_precision"] == "bf16"
    apple = {level.number: level.values for level in levels(TrainJob(), "mps")}
    assert 3 not in apple and not any(values["memory.fp8_base"] for values in apple.values())
    assert value_of(at(TrainJob(), lora[0]), "memory.highvram")
