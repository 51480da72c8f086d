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


def said(sharding, groups=None):
    job = build(TrainJob, merge({"sharding": {"deepspeed": True, **sharding}}, groups or {}))
    found = [
        problem for problem in training_problems(job) if "sharding" in problem.where or "DeepSpeed" in problem.what
    ]
    return [(problem.where, problem.what, problem.level) for problem in found]


@pytest.mark.parametrize(
    ("sharding", "groups", "where", "words"),
    [
        ({"zero_stage": 0, "offload_optimizer_device": "cpu"}, {}, "sharding.zero_stage", "stage 0 leaves"),
        (
            {"offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": "/x"},
            {},
            "sharding.zero_stage",
            "stage 3 only, and this is stage 2",
        ),
        ({"offload_param_device": "cpu"}, {}, "sharding.zero_stage", "stage 3 only, and this is stage 2"),
        (
            {"zero_stage": 3, "offload_optimizer_device": "nvme"},
            {},
            "sharding.offload_optimizer_nvme_path",
            "no folder",
        ),
        ({"zero_stage": 3, "offload_param_device": "nvme"}, {}, "sharding.offload_param_nvme_path", "no folder"),
        ({}, {"method": {"kind": "embedding"}}, "sharding.deepspeed", "few rows"),
        ({}, TUNE | {"memory": {"fused_optimizer_groups": 4}}, "memory.fused_backward_pass", "whole gradient"),
        (
            {},
            {"method": {"kind": "dreambooth", "stop_text_encoder_training": 5}},
            "method.stop_text_encoder_training",
            "every step",
        ),
        ({}, {"network": {"module_dropout": 0.1}}, "network.module_dropout", "every step"),
        ({}, {"network": {"scale_weight_norms": 1.0}}, "network.scale_weight_norms", "cuts it"),
        ({}, {"optimizer": {"optimizer_type": "AdaFactor"}}, "optimizer.optimizer_type", "AdaFactor looks at"),
        ({}, {"optimizer": {"optimizer_type": "Prodigy"}}, "optimizer.optimizer_type", "all of them"),
        ({}, {"optimizer": {"optimizer_type": "AdamWScheduleFree"}}, "optimizer.optimizer_type", "cuts weights"),
        (
            {"zero_stage": 3, "offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": "/x"},
            {"optimizer": {"optimizer_type": "Lion"}},
            "optimizer.optimizer_type",
            "on a disk with AdamW",
        ),
        ({}, TUNE | {"memory": {"full_precision": "bf16"}}, "memory.full_precision", "train in bf16"),
        (
            {"fp16_master_weights_and_gradients": True, "offload_optimizer_device": "cpu"},
            TUNE,
            "memory.mixed_precision",
            "are for fp16",
        ),
        (
            {"fp16_master_weights_and_gradients": True},
            TUNE | {"memory": {"mixed_precision": "fp16"}},
            "sharding.zero_stage",
            "RAM",
        ),
        (
            {"zero_stage": 3, "offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": "/x"},
            {"method": {"kind": "fine_tune", "ema": True}},
            "method.ema",
            "on a disk",
        ),
    ],
)
def test_what_cannot_be_together_is_said_with_its_place(sharding, groups, where, words):
    job = build(TrainJob, merge({"sharding": {"deepspeed": True, **sharding}}, groups))
    found = [problem for problem in training_problems(job) if words in problem.what and problem.where.startswith(where)]
    assert found and found[0].fix


def test_8_bit_weights_are_not_gathered():
    job = build(TrainJob, {"sharding": {"deepspeed": True, "zero_stage": 3}, "memory": {"fp8_base": True}})
    assert any("8 bits" in problem.what for problem in training_problems(job))


def test_compiled_blocks_are_not_gathered():
    job = build(TrainJob, {"sharding": {"deepspeed": True, "zero_stage": 3}, "memory": {"torch_compile": True}})
    assert any(problem.where == "memory.torch_compile" for problem in training_problems(job))


def test_what_fits_is_left_alone():
    assert said({}) == [] and said({"zero_stage": 3, "offload_param_device": "cpu"}, TUNE) == []


def test_stage_0_is_the_plain_way_and_that_is_advice():
    ((where, what, level),) = said({"zero_stage": 0})
    assert where == "sharding.zero_stage" and "as without DeepSpeed" in what and level == "advice"


@pytest.mark.parametrize(("platform", "name"), [("win32", "Windows"), ("darwin", "macOS")])
def test_other_systems_are_refused_by_name(monkeypatch, platform, name):
    monkeypatch.setattr(rules.sys, "platform", platform)
    assert any(name in what for _, what, _ in said({}))


def test_a_missing_package_is_said_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    job = build(TrainJob, {"sharding": {"deepspeed": True}})
    (problem,) = [each for each in training_problems(job) if "not installed" in each.what]
    assert "launch.sh deepspeed" in problem.fix and problem.level == "error"
    assert not any("not installed" in each.what for each in training_problems(build(TrainJob, {})))


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
