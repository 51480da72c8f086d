"""What several processes and DeepSpeed are told of the settings. Needs neither."""

import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from core.cli.jobs import run_together
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.building.models import Models
from core.training.sharding.stepper import config_of


def told(compute=torch.float32, processes=2, **groups):
    return config_of(build(TrainJob, groups), processes, [torch.nn.Parameter(torch.zeros(10))], compute)


def zero(**sharding):
    return told(sharding={"deepspeed": True, **sharding})["zero_optimization"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_stage_is_the_one_asked_for_and_nothing_leaves_the_card_unasked(stage):
    found = zero(zero_stage=stage)
    assert found["stage"] == stage and not {"offload_optimizer", "offload_param"} & set(found)


def test_what_is_kept_elsewhere_lies_where_it_was_asked_to(tmp_path):
    fast, other = str(tmp_path / "fast"), str(tmp_path / "other")
    found = zero(
        zero_stage=3, offload_optimizer_device="cpu", offload_param_device="nvme", offload_param_nvme_path=fast
    )
    assert (found["offload_optimizer"]["device"], found["offload_param"]["device"]) == ("cpu", "nvme")
    assert found["offload_param"]["nvme_path"] == fast and "nvme_path" not in found["offload_optimizer"]
    disk = {"offload_optimizer_device": "nvme", "offload_optimizer_nvme_path": other}
    assert zero(zero_stage=3, **disk)["offload_optimizer"]["nvme_path"] == other


def test_batches_clipping_and_the_type_of_masters_are_those_of_the_job():
    found = told(schedule={"gradient_accumulation_steps": 3}, optimizer={"max_grad_norm": 0.5})
    assert (found["gradient_accumulation_steps"], found["train_batch_size"]) == (3, 6)
    assert found["gradient_clipping"] == 0.5 and "fp16" not in found and "bf16" not in found
    model = {"method": {"kind": "fine_tune"}}
    assert told(torch.bfloat16, **model)["bf16"]["enabled"]
    for narrow in (False, True):
        sharding = {"deepspeed": True, "fp16_master_weights_and_gradients": narrow}
        found = told(torch.float16, sharding=sharding, **model)
        assert found["fp16"]["fp16_master_weights_and_grads"] is narrow


@pytest.mark.parametrize("early", [False, True])
def test_a_model_that_is_loaded_in_parts_never_lies_whole_on_the_card(early):
    sharding = {"deepspeed": True, "zero_stage": 3, "zero3_init_flag": early}
    inputs = SimpleNamespace(
        job=build(TrainJob, {"sharding": sharding, "method": {"kind": "fine_tune"}}),
        context=SimpleNamespace(device="cuda:0"),
        precision=SimpleNamespace(compute=torch.float32, trainable=torch.float32),
        family=SimpleNamespace(load=lambda model, **how: how["device"]),
        model="m",
    )
    assert Models(inputs)._load_trained(("unet",)) == ("cpu" if early else "cuda:0")


@pytest.mark.parametrize("minutes", [30.0, 7.0])
def test_the_others_are_waited_for_as_long_as_was_asked_for(monkeypatch, workspace, make_job, minutes):
    def state(**given):
        raise TimeoutError(given["timeout"])

    monkeypatch.setattr("accelerate.PartialState", state)
    monkeypatch.setattr("core.record.processes.end_with_launcher", lambda: None)
    with pytest.raises(TimeoutError, match=re.escape(str(timedelta(minutes=minutes)))):
        run_together(make_job(memory={"ddp_timeout": minutes}), "t", workspace, None, None)
