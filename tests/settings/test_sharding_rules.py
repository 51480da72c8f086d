"""What DeepSpeed asks of the other settings, said before anything loads."""

import pytest

import core.settings.rules.sharding as rules
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.rules import ineffective, training_problems
from core.settings.rules.sharding import ELEMENTWISE

TUNE = {"method": {"kind": "fine_tune"}}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: object())
    monkeypatch.setattr(rules, "sys", type("Linux", (), {"platform": "linux"}))


def found(sharding, groups=None):
    """What is said about DeepSpeed and its settings, with DeepSpeed on."""
    job = build(TrainJob, merge({"sharding": {"deepspeed": True, **sharding}}, groups or {}))
    return [
        problem
        for problem in training_problems(job)
        if problem.code.startswith("deepspeed.") or "sharding" in problem.where or "DeepSpeed" in problem.what
    ]


@pytest.mark.parametrize(
    ("sharding", "groups", "where", "code", "facts"),
    [
        (
            {"zero_stage": 0, "offload_optimizer_device": "cpu"},
            {},
            "sharding.zero_stage",
            "offload-optimizer-stage",
            ["stage 0"],
        ),
        (
            {"offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": "/x"},
            {},
            "sharding.zero_stage",
            "offload-optimizer-stage",
            ["stage 3", "stage 2"],
        ),
        ({"offload_param_device": "cpu"}, {}, "sharding.zero_stage", "offload-param-stage", ["stage 3", "stage 2"]),
        (
            {"zero_stage": 3, "offload_optimizer_device": "nvme"},
            {},
            "sharding.offload_optimizer_nvme_path",
            "no-nvme-path",
            [],
        ),
        ({"zero_stage": 3, "offload_param_device": "nvme"}, {}, "sharding.offload_param_nvme_path", "no-nvme-path", []),
        ({}, {"method": {"kind": "embedding"}}, "sharding.deepspeed", "textual-inversion", []),
        ({}, TUNE | {"memory": {"fused_optimizer_groups": 4}}, "memory.fused_backward_pass", "fused-backward", []),
        (
            {},
            {"method": {"kind": "dreambooth", "stop_text_encoder_training": 5}},
            "method.stop_text_encoder_training",
            "stop-text-encoder",
            [],
        ),
        (
            {},
            {"method": {"kind": "dreambooth", "stop_text_encoder_epochs": 5}},
            "method.stop_text_encoder_epochs",
            "stop-text-encoder",
            [],
        ),
        ({}, {"network": {"module_dropout": 0.1}}, "network.module_dropout", "module-dropout", []),
        ({}, {"network": {"scale_weight_norms": 1.0}}, "network.scale_weight_norms", "max-weight-norm", []),
        ({}, {"optimizer": {"optimizer_type": "AdaFactor"}}, "optimizer.optimizer_type", "optimizer", ["AdaFactor"]),
        ({}, {"optimizer": {"optimizer_type": "Prodigy"}}, "optimizer.optimizer_type", "optimizer", ["Prodigy"]),
        (
            {},
            {"optimizer": {"optimizer_type": "AdamWScheduleFree"}},
            "optimizer.optimizer_type",
            "optimizer",
            ["AdamWScheduleFree"],
        ),
        (
            {"zero_stage": 3, "offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": "/x"},
            {"optimizer": {"optimizer_type": "Lion"}},
            "optimizer.optimizer_type",
            "adam-only",
            ["NVMe", "AdamW"],
        ),
        ({}, TUNE | {"memory": {"full_precision": "bf16"}}, "memory.full_precision", "full-precision", ["bf16"]),
        (
            {"fp16_master_weights_and_gradients": True, "offload_optimizer_device": "cpu"},
            TUNE,
            "memory.mixed_precision",
            "fp16-masters-precision",
            ["fp16"],
        ),
        (
            {"fp16_master_weights_and_gradients": True},
            TUNE | {"memory": {"mixed_precision": "fp16"}},
            "sharding.zero_stage",
            "fp16-masters-stage",
            ["stage 2", "RAM"],
        ),
        (
            {"zero_stage": 3, "offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": "/x"},
            {"method": {"kind": "fine_tune", "ema": True}},
            "method.ema",
            "ema-nvme",
            ["NVMe"],
        ),
    ],
)
def test_what_cannot_be_together_is_said_with_its_place(sharding, groups, where, code, facts):
    (problem,) = [each for each in found(sharding, groups) if each.code == f"deepspeed.{code}"]
    assert problem.where.startswith(where) and problem.level == "error" and problem.fix
    assert all(fact in problem.what for fact in facts)


def test_8_bit_weights_are_not_gathered():
    codes = {
        stage: [each.code for each in found({"zero_stage": stage}, {"memory": {"fp8_base": True}})] for stage in (2, 3)
    }
    assert "deepspeed.stage-3-fp8" in codes[3] and "deepspeed.stage-3-fp8" not in codes[2]


def test_compiled_blocks_are_not_gathered():
    (problem,) = [
        each
        for each in found({"zero_stage": 3}, {"memory": {"torch_compile": True}})
        if each.code == "deepspeed.stage-3-compile"
    ]
    assert problem.where == "memory.torch_compile" and problem.level == "error"


def test_what_fits_is_left_alone():
    assert found({}) == [] and found({"zero_stage": 3, "offload_param_device": "cpu"}, TUNE) == []


def test_stage_0_is_the_plain_way_and_that_is_advice():
    (problem,) = found({"zero_stage": 0})
    assert (problem.code, problem.where, problem.level) == ("deepspeed.stage-0", "sharding.zero_stage", "advice")


@pytest.mark.parametrize(("platform", "name"), [("win32", "Windows"), ("darwin", "macOS")])
def test_other_systems_are_refused_by_name(monkeypatch, platform, name):
    monkeypatch.setattr(rules.sys, "platform", platform)
    assert [name in each.what for each in found({}) if each.code == "deepspeed.not-linux"] == [True]


def test_a_missing_package_is_said_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    job = build(TrainJob, {"sharding": {"deepspeed": True}})
    (problem,) = [each for each in training_problems(job) if each.code == "deepspeed.not-installed"]
    assert "launch.sh deepspeed" in problem.fix and problem.level == "error"
    assert not any(each.code == "deepspeed.not-installed" for each in training_problems(build(TrainJob, {})))


def test_what_has_no_effect_is_named():
    off = ineffective(build(TrainJob, {}))
    assert "sharding.zero_stage" in off and "sharding.deepspeed" not in off
    two = ineffective(build(TrainJob, {"sharding": {"deepspeed": True}}))
    assert "sharding.zero3_init_flag" in two and "sharding.zero_stage" not in two


@pytest.mark.parametrize("path", ELEMENTWISE)
def test_an_optimizer_that_is_taken_moves_a_part_as_within_the_whole(path):
    import torch

    from core.optimization.optimizers import load_class, resolve

    made = load_class(resolve(path))
    chance = torch.Generator().manual_seed(1)
    start, gradients = torch.randn(6, 4, generator=chance), torch.randn(3, 6, 4, generator=chance)
    whole = [torch.nn.Parameter(start.clone())]
    parts = [torch.nn.Parameter(part.clone()) for part in start.reshape(-1).split(13)]
    for weights in (whole, parts):
        optimizer = made(weights, lr=1e-2)
        for gradient in gradients:
            cut = gradient.reshape(-1).split([weight.numel() for weight in weights])
            for weight, piece in zip(weights, cut, strict=True):
                weight.grad = piece.reshape(weight.shape).clone()
            optimizer.step()
    joined = torch.cat([part.detach() for part in parts]).view(6, 4)
    assert torch.equal(whole[0].detach(), joined)
