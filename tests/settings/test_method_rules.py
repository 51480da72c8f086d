"""What whole models ask of the other settings, said before anything loads."""

import pytest

from core.settings.check import build, problems_of
from core.settings.job import TrainJob
from core.settings.rates import trains_text
from core.settings.rules import ineffective, training_problems

TUNE = {"kind": "fine_tune"}
GIVEN = {"relative_step": False}


def said(**groups):
    job = build(TrainJob, {"method": TUNE, **groups})
    return [(problem.where, problem.what, problem.level) for problem in training_problems(job)]


@pytest.mark.parametrize(
    ("groups", "where", "words"),
    [
        ({"memory": {"full_precision": "bf16", "mixed_precision": "fp16"}}, "memory.full_precision", "need bf16"),
        ({"memory": {"full_precision": "fp16", "mixed_precision": "no"}}, "memory.full_precision", "that is fp32"),
        ({"memory": {"fused_backward_pass": True}}, "memory.fused_backward_pass", "AdaFactor only"),
        (
            {
                "memory": {"fused_backward_pass": True},
                "optimizer": {"optimizer_type": "AdaFactor"},
                "schedule": {"gradient_accumulation_steps": 2},
            },
            "schedule.gradient_accumulation_steps",
            "several batches",
        ),
        (
            {"memory": {"fused_optimizer_groups": 4}, "optimizer": {"optimizer_type": "Prodigy"}},
            "memory.fused_optimizer_groups",
            "one step size",
        ),
        (
            {"memory": {"fused_optimizer_groups": 4, "num_processes": 2}},
            "memory.fused_optimizer_groups",
            "other graphics",
        ),
        ({"memory": {"fused_optimizer_groups": 4, "mixed_precision": "fp16"}}, "memory.mixed_precision", "scales"),
        (
            {
                "memory": {"fused_optimizer_groups": 4, "fused_backward_pass": True},
                "optimizer": {"optimizer_type": "AdaFactor"},
            },
            "memory.fused_backward_pass, memory.fused_optimizer_groups",
            "both",
        ),
        ({"method": {**TUNE, "block_lr": "1e-5,0"}}, "method.block_lr", "it takes 23 or 25"),
        ({"method": {**TUNE, "block_lr": "a lot"}}, "method.block_lr", "no list of numbers"),
        ({"method": {**TUNE, "block_lr": [0] * 23}}, "method.block_lr", "rate of 0"),
        (
            {"method": {**TUNE, "ema": True}, "optimizer": {"optimizer_type": "AdamWScheduleFree"}},
            "method.ema",
            "averages the weights itself",
        ),
        ({"saving": {"save_model_as": "pt"}}, "saving.save_model_as", ".pt"),
        (
            {"method": {**TUNE, "prior": "model"}, "dataset": {"prior_loss_weight": 0}},
            "dataset.prior_loss_weight",
            "is 0",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_said_with_its_fix(groups, where, words):
    found = [(place, what) for place, what, level in said(**groups) if level == "error"]
    assert any(where in place and words in what for place, what in found), found


def test_a_whole_model_with_what_suits_it_is_fine():
    adafactor = {"optimizer_type": "AdaFactor", "optimizer_args": GIVEN, "max_grad_norm": 0.0}
    groups = {
        "method": {**TUNE, "ema": True, "train_text_encoder": "yes", "block_lr": [1e-5] * 22 + [0]},
        "memory": {"full_precision": "bf16", "fused_backward_pass": True},
        "optimizer": adafactor,
        "schedule": {"lr_scheduler": "constant_with_warmup"},
    }
    assert [what for _, what, level in said(**groups) if level == "error"] == []


def test_negative_rates_are_advice_for_whole_models_and_refused_for_loras():
    rate = {"optimizer": {"learning_rate": -1e-7}}
    assert [level for _, what, level in said(**rate) if "negative" in what] == ["advice"]
    assert [level for _, what, level in said(method={"kind": "lora"}, **rate) if "negative" in what] == ["error"]


def test_a_rate_for_loras_is_questioned():
    assert [level for _, what, level in said(optimizer={"learning_rate": 1e-4}) if "one for a LoRA" in what] == [
        "advice"
    ]
    for optimizer in ({"learning_rate": 2e-6}, {"learning_rate": 1.0, "optimizer_type": "Prodigy"}):
        assert not [what for _, what, _ in said(optimizer=optimizer) if "one for a LoRA" in what]


def test_what_has_no_effect_is_told_for_each_kind():
    whole = ineffective(build(TrainJob, {"method": TUNE}))
    assert {
        "network.rank",
        "network.train_text_encoder",
        "method.ema_decay",
        "method.stop_text_encoder_training",
    } <= set(whole)
    assert "method.ema" not in whole and "memory.fused_backward_pass" not in whole
    lora = ineffective(build(TrainJob, {}))
    assert {"method.ema", "method.block_lr", "memory.fused_backward_pass"} <= set(lora)
    assert "network.rank" not in lora


def test_dreambooth_trains_the_text_encoder_unless_told_otherwise():
    def trains(**method):
        return trains_text(build(TrainJob, {"method": method}))

    assert trains(kind="dreambooth") and not trains(kind="fine_tune")
    assert not trains(kind="dreambooth", train_text_encoder="no") and trains(kind="fine_tune", train_text_encoder="yes")
    assert not trains(kind="dreambooth", stop_text_encoder_training=0)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("learning_rate_te2", "optimizer.text_encoder_lr"),
        ("full_bf16", "memory.full_precision"),
        ("use_8bit_adam", "optimizer.optimizer_type"),
        ("use_style_template", "captions.caption_template"),
        ("use_safetensors", "saving.save_model_as"),
        ("v2", "model.family"),
        ("stop_text_encoder_training", "method.stop_text_encoder_training"),
        ("fused_backward_pass", "memory.fused_backward_pass"),
    ],
)
def test_a_name_of_sd_scripts_leads_to_the_setting_that_stands_for_it(name, path):
    assert f"did you mean '{path}'?" in [problem.fix for problem in problems_of(TrainJob, {"schedule": {name: 1}})]


def test_fp8_that_is_widened_to_fp32_is_advised_against():
    def said(**memory):
        found = training_problems(build(TrainJob, {"memory": memory}))
        return [problem.level for problem in found if problem.where == "memory.mixed_precision"]

    assert said(fp8_base=True, mixed_precision="no") == said(fp8_base_unet=True, mixed_precision="no") == ["advice"]
    assert said(fp8_base=True) == said(fp8_base=True, mixed_precision="bf16") == said(mixed_precision="no") == []
