"""What whole models ask of the other settings, said before anything loads."""

import pytest

from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.rates import trains_text
from core.settings.rules import ineffective, training_problems
from tests.refusals import problems_of

TUNE = {"kind": "fine_tune"}
GIVEN = {"relative_step": False}


def found(**groups):
    return training_problems(build(TrainJob, {"method": TUNE, **groups}))


@pytest.mark.parametrize(
    ("groups", "where", "code", "facts"),
    [
        (
            {"memory": {"full_precision": "bf16", "mixed_precision": "fp16"}},
            "memory.full_precision",
            "memory.full-precision-mismatch",
            "bf16 fp16",
        ),
        (
            {"memory": {"full_precision": "fp16", "mixed_precision": "no"}},
            "memory.full_precision",
            "memory.full-precision-mismatch",
            "fp16 fp32",
        ),
        (
            {"memory": {"fused_backward_pass": True}},
            "memory.fused_backward_pass",
            "memory.fused-optimizer",
            "AdaFactor AdamW",
        ),
        (
            {
                "memory": {"fused_backward_pass": True},
                "optimizer": {"optimizer_type": "AdaFactor"},
                "schedule": {"gradient_accumulation_steps": 2},
            },
            "schedule.gradient_accumulation_steps",
            "memory.fused-accumulation",
            "",
        ),
        (
            {"memory": {"fused_optimizer_groups": 4}, "optimizer": {"optimizer_type": "Prodigy"}},
            "memory.fused_optimizer_groups",
            "memory.fused-adaptive",
            "Prodigy",
        ),
        (
            {"memory": {"fused_optimizer_groups": 4, "num_processes": 2}},
            "memory.fused_optimizer_groups",
            "memory.fused-several-gpus",
            "GPUs",
        ),
        (
            {"memory": {"fused_optimizer_groups": 4, "mixed_precision": "fp16"}},
            "memory.mixed_precision",
            "memory.fused-fp16",
            "fp16",
        ),
        (
            {
                "memory": {"fused_optimizer_groups": 4, "fused_backward_pass": True},
                "optimizer": {"optimizer_type": "AdaFactor"},
            },
            "memory.fused_backward_pass, memory.fused_optimizer_groups",
            "memory.fused-twice",
            "",
        ),
        ({"method": {**TUNE, "block_lr": "1e-5,0"}}, "method.block_lr", "method.block-lr-count", "2 23 25"),
        ({"method": {**TUNE, "block_lr": "a lot"}}, "method.block_lr", "settings.not-numbers", "'a lot'"),
        ({"method": {**TUNE, "block_lr": [0] * 23}}, "method.block_lr", "method.block-lr-zero", "0"),
        (
            {"method": {**TUNE, "ema": True}, "optimizer": {"optimizer_type": "AdamWScheduleFree"}},
            "method.ema",
            "method.ema-schedule-free",
            "",
        ),
        (
            {"method": {"kind": "lora", "ema": True}, "optimizer": {"optimizer_type": "AdamWScheduleFree"}},
            "method.ema",
            "method.ema-schedule-free",
            "",
        ),
        ({"saving": {"save_model_as": "pt"}}, "saving.save_model_as", "saving.pt-full-model", ".pt"),
        (
            {"method": {**TUNE, "prior": "model"}, "dataset": {"prior_loss_weight": 0}},
            "dataset.prior_loss_weight",
            "method.prior-weight-zero",
            "0",
        ),
    ],
)
def test_a_combination_that_cannot_work_is_said_with_its_fix(groups, where, code, facts):
    (problem,) = [each for each in found(**groups) if each.code == code]
    assert where in problem.where and problem.level == "error" and problem.fix
    assert all(fact in problem.what for fact in facts.split()), problem


def test_a_whole_model_with_what_suits_it_is_fine():
    adafactor = {"optimizer_type": "AdaFactor", "optimizer_args": GIVEN, "max_grad_norm": 0.0}
    groups = {
        "method": {**TUNE, "ema": True, "train_text_encoder": "yes", "block_lr": [1e-5] * 22 + [0]},
        "memory": {"full_precision": "bf16", "fused_backward_pass": True},
        "optimizer": adafactor,
        "schedule": {"lr_scheduler": "constant_with_warmup"},
    }
    assert [problem.what for problem in found(**groups) if problem.level == "error"] == []


def test_negative_rates_are_advice_for_whole_models_and_refused_for_loras():
    rate = {"optimizer": {"learning_rate": -1e-7}}
    codes = ("learning-rate.negative", "learning-rate.unlearning")
    assert [(each.code, each.level) for each in found(**rate) if each.code in codes] == [(codes[1], "advice")]
    lora = found(method={"kind": "lora"}, **rate)
    assert [(each.code, each.level) for each in lora if each.code in codes] == [(codes[0], "error")]


def test_a_rate_for_loras_is_questioned():
    """Once, by the usual range: of the rates above it, those far above are reported by the rule for every method."""
    code = "learning-rate.high-full-model"
    for kind, rates in (("fine_tune", (2.1e-5, 6e-5)), ("dreambooth", (1.1e-5, 3e-5))):
        for rate, codes in zip((*rates, 1e-4), (code, code, "learning-rate.unusual"), strict=True):
            said = [
                each for each in found(method={"kind": kind}, optimizer={"learning_rate": rate}) if "rate" in each.code
            ]
            assert [each.code for each in said] == [codes], (kind, rate)
    near = next(each for each in found(optimizer={"learning_rate": 3e-5}) if each.code == code)
    assert (near.level, near.fix) == ("advice", "use 5e-7 to 2e-5, and start with 5e-6")
    for optimizer in ({"learning_rate": 2e-6}, {"learning_rate": 1.0, "optimizer_type": "Prodigy"}):
        assert code not in [each.code for each in found(optimizer=optimizer)]


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
    assert {"method.train_text_encoder", "method.block_lr", "memory.fused_backward_pass"} <= set(lora)
    assert not {"network.rank", "method.ema"} & set(lora)
    for groups, trains in (
        ({"network": {"train_text_encoder": True}}, True),
        ({"network": {"train_text_encoder": False}}, False),
        ({"method": {"kind": "embedding"}}, False),
    ):
        for name in ("method.stop_text_encoder_training", "method.stop_text_encoder_epochs"):
            assert (name not in ineffective(build(TrainJob, groups))) is trains


def test_dreambooth_trains_the_text_encoder_unless_told_otherwise():
    def trains(**method):
        return trains_text(build(TrainJob, {"method": method}))

    assert trains(kind="dreambooth") and not trains(kind="fine_tune")
    assert not trains(kind="dreambooth", train_text_encoder="no") and trains(kind="fine_tune", train_text_encoder="yes")
    assert not trains(kind="dreambooth", stop_text_encoder_training=0)
    assert not trains(kind="dreambooth", stop_text_encoder_epochs=0)
    assert trains(kind="dreambooth", stop_text_encoder_epochs=1)


def test_a_text_encoder_stops_at_a_step_or_after_an_epoch_and_not_both():
    def codes(**method):
        return [each.code for each in training_problems(build(TrainJob, {"method": {"kind": "dreambooth", **method}}))]

    code = "method.text-encoder-stops-twice"
    assert code in codes(stop_text_encoder_training=0, stop_text_encoder_epochs=3)
    assert code not in codes(stop_text_encoder_training=9) + codes(stop_text_encoder_epochs=3)


@pytest.mark.parametrize("stop", ["stop_text_encoder_training", "stop_text_encoder_epochs"])
def test_a_text_encoder_that_trains_alone_does_not_stop(stop):
    def refused(**groups):
        problems = training_problems(
            build(TrainJob, {"method": {stop: 9}, "network": {"train_text_encoder": True}} | groups)
        )
        return [each.level for each in problems if each.code == "method.text-encoder-stops-alone"] == ["error"]

    assert refused(network={"train_text_encoder": True, "train_unet": False}) and refused(optimizer={"unet_lr": 0.0})
    assert refused(method={"kind": "dreambooth", stop: 9}, optimizer={"unet_lr": 0.0})
    assert not refused() and not refused(method={}, optimizer={"unet_lr": 0.0})
    assert not refused(network={"train_text_encoder": False}) and not refused(method={"kind": "embedding", stop: 9})


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
    def about(**memory):
        job = build(TrainJob, {"memory": memory})
        return [(each.code, each.level) for each in training_problems(job) if each.where == "memory.mixed_precision"]

    for name in ("fp8_base", "fp8_base_unet"):
        assert about(**{name: True}, mixed_precision="no") == [("memory.fp8-with-fp32", "advice")]
    assert about(fp8_base=True) == about(fp8_base=True, mixed_precision="bf16") == about(mixed_precision="no") == []


@pytest.mark.parametrize(("kind", "refused"), [("dreambooth", True), ("embedding", False), ("controlnet", False)])
def test_prior_preservation_that_a_method_does_not_use_is_not_refused(kind, refused):
    method, dataset = {"kind": kind, "prior": "model"}, {"prior_loss_weight": 0}
    codes = {each.code for each in training_problems(build(TrainJob, {"method": method, "dataset": dataset}))}
    assert ("method.prior-weight-zero" in codes) is refused
    sharding = {"deepspeed": True, "zero_stage": 3, "zero3_init_flag": True}
    codes = {each.code for each in training_problems(build(TrainJob, {"method": method, "sharding": sharding}))}
    assert ("deepspeed.zero3-init-prior" in codes) is refused
