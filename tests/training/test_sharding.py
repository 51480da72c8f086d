"""DeepSpeed trains what the plain way trains: two processes on a CPU, ZeRO stages 1 to 3, parts off the card, continued runs."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core.record.journal import read_lines
from core.record.workspace import PROJECT
from core.settings.presets.files import to_values
from core.training.memory.shares import TrainedSizes, process_sizes
from core.training.sharding.stepper import ShardedStepper
from tests.models import tiny_folder
from tests.refusals import refused
from tests.training.test_processes import LAUNCH, QUIET

pytestmark = [
    pytest.mark.slow,  # all read what two processes trained, which takes minutes
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed (Linux alone has it)"),
]

# Sums are taken in another order and divided by another route. A weight moves by up to 4e-4 and 3e-6 in these runs.
# Adam divides by the gradient's own size: where that is nearly nothing, its last digits decide.
LORA_APART, MODEL_APART = 5e-6, 5e-7
TUNE = {"kind": "fine_tune", "ema": True, "ema_decay": 0.5}
MODEL = {"method": TUNE, "optimizer": {"learning_rate": 1e-6}, "schedule": {"max_train_steps": 2, "seed": 7}}
# A LoRA with all that looks at the weights next to it. SGD: what is rounded stays as small as it is.
LOOKED = {
    "network": {"rank": 4, "alpha": 4.0, "train_text_encoder": True},
    "optimizer": {"optimizer_type": "SGD", "learning_rate": 1.0},
    "schedule": {"max_train_steps": 1, "seed": 7},
    "memory": {"gradient_checkpointing": True},
    "samples": {"sample_prompts": ["a fox"], "sample_steps": 1, "sample_at_first": False},
    "validation": {"validation_split": 0.4, "validate_every_n_steps": 1, "max_validation_steps": 2},
}
NARROW = {
    "method": {"kind": "fine_tune"},
    "optimizer": {"learning_rate": 1e-5},
    "schedule": {"max_train_steps": 1, "seed": 7},
    "memory": {"mixed_precision": "bf16"},
}


def zero(stage, **more):
    return {"deepspeed": True, "zero_stage": stage, **more}


@pytest.fixture(scope="module")
def ran(tmp_path_factory, images):
    """{name: its run's folder}, all trained by the same two processes, with accumulation and batches that leave one idle."""
    place = tmp_path_factory.mktemp("sharded")
    base = {
        "model": {"base_model": str(PROJECT / "models" / "starter")},
        "dataset": {"folder": str(images), "resolution": 64, "bucket_reso_steps": 16, "train_batch_size": 2},
        "network": {"rank": 4, "alpha": 4.0},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"max_train_steps": 2, "seed": 7, "gradient_accumulation_steps": 2},
        "saving": {"output_name": "t", "save_every_minutes": None, "save_precision": "fp32", "save_state": True},
        "logging": {"log_with": "none"},
    }
    cases = [
        {"name": "lora", "job": base},
        {"name": "lora 2", "job": base | {"sharding": zero(2)}},
        {"name": "model", "job": base | MODEL},
        {"name": "model 1 cpu", "job": base | MODEL | {"sharding": zero(1, offload_optimizer_device="cpu")}},
        {"name": "model 3", "job": base | MODEL | {"sharding": zero(3, zero3_init_flag=True)}},
        {"name": "model 3 stopped", "job": base | MODEL | {"sharding": zero(3)}, "stop_at": 1},
        {"name": "model 3 on", "continues": "model 3 stopped", "job": base | MODEL | {"sharding": zero(3)}},
    ]
    tiny = base | {"model": {"base_model": str(tiny_folder("sd1", place / "sd1"))}}
    cases += [
        {"name": "looked at", "job": tiny | LOOKED},
        {"name": "looked at 3", "job": tiny | LOOKED | {"sharding": zero(3)}},
        {"name": "bf16", "job": tiny | NARROW | {"sharding": zero(3)}},
        {"name": "bf16 narrow", "job": tiny | NARROW | {"sharding": zero(3, zero3_save_16bit_model=True)}},
    ]
    listed = place / "cases.json"
    listed.write_text(json.dumps(cases))
    command = [sys.executable, *LAUNCH, *QUIET, "-m", "tests.training.sharded_runs", str(listed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=PROJECT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {case["name"]: place / case.get("continues", case["name"]) for case in cases}


def trained(folder):
    return load_file(folder / "checkpoints" / "t.safetensors")


def losses(folder):
    lines = [line for line in read_lines(folder / "events.jsonl") if line["kind"] == "steps"]
    return {step: loss for line in lines for step, loss in zip(line["steps"], line["losses"], strict=True)}


def apart(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def distance(one, other):
    """Norm of what lies between the LoRA's second matrices, which begin as zeros, and the other's."""
    second = [name for name in one if name.endswith("up.weight")]
    return sum(float((one[name] - other[name] if other else one[name]).norm()) ** 2 for name in second) ** 0.5


@pytest.mark.parametrize(
    ("sharded", "plain", "tolerance"),
    [
        ("lora 2", "lora", LORA_APART),
        ("model 1 cpu", "model", MODEL_APART),
        ("model 3", "model", MODEL_APART),
    ],
)
def test_it_trains_what_the_plain_way_trains(ran, sharded, plain, tolerance):
    assert losses(ran[sharded]) == pytest.approx(losses(ran[plain]), rel=1e-5)
    assert apart(trained(ran[sharded]), trained(ran[plain])) < tolerance


def test_a_continued_run_ends_where_an_unbroken_one_does_to_the_bit(ran):
    assert apart(trained(ran["model 3"]), trained(ran["model 3 on"])) == 0
    assert losses(ran["model 3"]) == losses(ran["model 3 on"])


def test_stage_3_trains_text_encoders_with_checkpointing_and_shows_what_the_plain_way_shows(ran):
    plain, shared = ran["looked at"], ran["looked at 3"]
    assert losses(shared) == pytest.approx(losses(plain), rel=1e-5)
    # The random model makes much of a sum's last digits: plain runs with other products differ by 0.15% of the change too.
    assert distance(trained(shared), trained(plain)) < 0.01 * distance(trained(plain), {})
    moved = [
        value.abs().max() for name, value in trained(plain).items() if name.endswith("up.weight") and "_te_" in name
    ]
    assert min(moved) > 1e-4  # text encoders train
    (one,), (other,) = validated(plain), validated(shared)
    assert other == pytest.approx(one, rel=1e-5)
    images = []
    for folder in (plain, shared):
        (path,) = (folder / "samples").glob("*.png")
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB"), dtype=int))
    assert abs(images[0] - images[1]).max() <= 2


def validated(folder):
    """Losses on held-out images after step 0."""
    return [
        line["loss"] for line in read_lines(folder / "events.jsonl") if line["kind"] == "validated" and line["step"]
    ]


def test_files_hold_the_weights_that_train_or_those_of_16_bits(ran):
    exact, narrow = trained(ran["bf16"]), trained(ran["bf16 narrow"])
    assert losses(ran["bf16"]) == losses(ran["bf16 narrow"])
    inside = [name for name in exact if "diffusion_model" in name]
    assert all(torch.equal(exact[name].bfloat16().float(), narrow[name]) for name in inside)
    assert not any(torch.equal(exact[name], narrow[name]) for name in inside if exact[name].dim() == 4)


def test_each_process_keeps_a_part_and_none_holds_all(ran):
    (state,) = (ran["model 3"] / "state").glob("step*2")
    parts = [torch.load(path, weights_only=True)["parts"] for path in sorted(state.glob("part-*.pt"))]
    assert len(parts) == 2
    held = [sum(group["master"].numel() for group in part) for part in parts]
    total = sum(weight.numel() for name, weight in trained(ran["model 3"]).items() if "diffusion_model" in name)
    assert max(held) < 0.6 * total and sum(held) >= total


def test_one_process_trains_continues_and_refuses_states_of_another_kind(train, ran):
    two = {"schedule": {"max_train_steps": 2, "seed": 7}}
    plain, alone = train(**two), train(**two, sharding=zero(2, offload_optimizer_device="cpu"))
    assert plain.start() == alone.start() == "done"
    assert alone.losses() == pytest.approx(plain.losses(), rel=1e-5)
    assert apart(load_file(plain.file()), load_file(alone.file())) < 1e-5  # at ten times the rate of those above
    cut = next((ran["lora 2"] / "state").glob("step*2"))
    longer = {"max_train_steps": 4, "seed": 7}
    for groups, code, fact in (
        ({"sharding": zero(2)}, "state.other-partitions", "processes 2 (now 1)"),
        ({}, "state.with-deepspeed", cut),
    ):
        training = train(**groups, resume={"resume": str(cut)}, schedule=longer)
        with refused(code, fact):
            training.start()


@pytest.mark.parametrize("stage", [2, 3])
def test_main_memory_holds_what_was_foretold(train, monkeypatch, stage):
    real, found = ShardedStepper.step, []

    def watched(stepper, loss):
        norm = real(stepper, loss)
        zero, trained = (
            stepper._zero,
            sum(getattr(weight, "ds_numel", weight.numel()) for weight in stepper._parameters),
        )
        masters = stepper._shards.masters
        held = [*masters, *(master.grad for master in masters)]
        held += [value for state in stepper.optimizer.state.values() for value in state.values() if value.dim()]
        held += zero.param_buffer_of_bit16_for_cpu_offload_groups if stage == 2 else [zero.grad_partitions_flat_buffer]
        settings = stepper._settings
        found.append(
            (
                sum(tensor.nbytes for tensor in held),
                process_sizes(settings, TrainedSizes(trained, 4, 0, 2.0), 1, 1).memory,
            )
        )
        return norm

    monkeypatch.setattr(ShardedStepper, "step", watched)
    train(sharding=zero(stage, offload_optimizer_device="cpu"), schedule={"max_train_steps": 1, "seed": 7}).start()
    ((held, foretold),) = found
    assert held == pytest.approx(foretold, rel=1e-3)


def test_a_loss_that_is_no_number_moves_nothing(train, monkeypatch):
    from core.training.loop import passes

    real, seen, plain = ShardedStepper.step, [], passes.training_loss

    def watched(stepper, loss):
        before = [master.detach().clone() for master in stepper._shards.masters]
        norm = real(stepper, loss)
        pairs = zip(before, stepper._shards.masters, strict=True)
        seen.append(all(torch.equal(a, b) for a, b in pairs))
        return norm

    def poisoned(*arguments, **named):
        return plain(*arguments, **named) * (float("nan") if len(seen) == 1 else 1.0)

    monkeypatch.setattr(ShardedStepper, "step", watched)
    monkeypatch.setattr(passes, "training_loss", poisoned)
    monkeypatch.setattr("core.training.loop.loss_readback.MOST_WAITING", 3)
    monkeypatch.setattr("core.training.loop.loss_readback.EVENT_SECONDS", 1e9)
    with refused("training.not-finite", "of step 2 "):
        train(sharding=zero(2), schedule={"max_train_steps": 6, "seed": 7}).start()
    assert seen == [False, True, True]


def test_losses_of_fp16_are_scaled_and_an_overflow_halves_the_scale(train):
    from core.training.sharding.stepper import LossScale

    scale = LossScale()
    scale.update(True)
    assert scale.factor == 2.0**15
    for _ in range(2000):
        scale.update(False)
    assert scale.factor == 2.0**16
    one = {"max_train_steps": 1, "seed": 7}
    training = train(sharding=zero(2), memory={"mixed_precision": "fp16"}, schedule=one)
    assert training.start() == "done" and all(loss < 10 for loss in training.losses().values())


@pytest.mark.parametrize(("which", "ticks"), [("none", [0, 1, 2, 3]), ("sd-scripts-0.10", [0, 0, 1, 1])])
def test_the_curve_stands_still_while_fp16_overflows_only_as_in_sd_scripts(train, monkeypatch, which, ticks):
    """The gradients of the first and the third step overflow. In the second life the curve stands where it stood."""
    rates, backward = [], ShardedStepper.backward

    def watched(stepper, losses_of, images, last):
        rates.append(stepper.optimizer.param_groups[0]["lr"])
        stepper._scale.factor = 2.0**100 if len(rates) in (1, 3) else 2.0**10
        return backward(stepper, losses_of, images, last)

    monkeypatch.setattr(ShardedStepper, "backward", watched)
    training = train(
        sharding=zero(2),
        memory={"mixed_precision": "fp16"},
        optimizer={"learning_rate": 1e-3},
        schedule={"max_train_steps": 4, "seed": 7, "lr_scheduler": "linear"},
        model={"compatibility": which},
    )
    stopped = training.again()

    def stop(line):
        if line["kind"] == "steps" and line["steps"][-1] >= 3:
            stopped.token.cancel()

    stopped.on_line = stop
    monkeypatch.setattr("core.training.loop.loss_readback.EVENT_SECONDS", 0.0)
    assert stopped.start() == "stopped" and len(rates) == 3
    assert training.again().start() == "done"
    assert rates == pytest.approx([1e-3 * (1 - tick / 4) for tick in ticks])


def test_the_job_is_shown_as_it_is(make_job):
    assert to_values(make_job(sharding=zero(3)))["sharding"]["zero_stage"] == 3
