"""What DeepSpeed takes and where, by the formulas of its paper: 2, 2 and 12 bytes a number, each whole or divided."""

from dataclasses import replace

import pytest

from core.dataset.preflight import preflight
from core.training.checks.before_start import problems_with_model, problems_without_model
from core.training.memory.advice import advise
from core.training.memory.plan import memory_plan
from core.training.memory.shares import DISK_BUFFERS, DISK_GROUP, GATHERED, LARGEST_BUCKET
from core.training.sharding import fast_disk
from tests.training.test_memory_plan import job_of, published, short

BUCKET = 2 * LARGEST_BUCKET


@pytest.fixture(scope="module")
def facts():
    return short(published("sd1", 512))


def plan(facts, processes, stage, method="fine_tune", **sharding):
    memory = {"mixed_precision": "bf16", "num_processes": processes}
    groups = {"method": {"kind": method}, "sharding": {"deepspeed": True, "zero_stage": stage, **sharding}}
    return memory_plan(job_of(memory=memory, **groups), facts)


def test_buffers_are_as_large_as_what_deepspeed_is_told_and_holds():
    """A bucket of 50 million numbers, as many fetched ahead in stage 3 and a layer of 30; from a disk five groups of 100 million:
    weight, gradient, two memories of Adam, and one on its way."""
    assert (LARGEST_BUCKET, GATHERED, DISK_GROUP, DISK_BUFFERS) == (50_000_000, 80_000_000, 100_000_000, 5)


@pytest.mark.parametrize("processes", [1, 4])
def test_a_whole_model_in_bf16_is_divided_by_stage(facts, processes):
    numbers = facts.parts["unet"].numbers
    part = numbers / processes
    one, two, three = (plan(facts, processes, stage) for stage in (1, 2, 3))
    for found in (one, two, three):  # fp32 weights and two memories of AdamW
        assert found.optimizer == pytest.approx(12 * part, abs=4)
    # fp32 for the step next to what the backward pass left in bf16
    assert one.gradients == pytest.approx(2 * numbers + 4 * part + BUCKET, abs=4)
    assert two.gradients == three.gradients == pytest.approx((2 + 4) * part + BUCKET, abs=4)
    assert one.weights == two.weights == 2 * numbers
    assert three.weights == pytest.approx(2 * part, abs=4)
    # A pass has some layers whole, a file all of them.
    assert three.activations == max(two.activations + 2 * GATHERED, 2 * numbers)
    assert (two.memory, two.disk) == (0, 0)


def test_what_lies_in_main_memory_or_on_a_disk_leaves_the_card(facts):
    numbers = facts.parts["unet"].numbers
    cpu = plan(facts, 4, 2, offload_optimizer_device="cpu")
    assert (cpu.optimizer, cpu.gradients, cpu.weights) == (0, BUCKET, 2 * numbers)
    # fp32: weights, two memories, gradient; bf16: gradient or weights on their way. Of all four processes.
    assert cpu.memory == pytest.approx(18 * numbers, abs=16)
    narrow = plan(facts, 4, 2, offload_optimizer_device="cpu", fp16_master_weights_and_gradients=True)
    assert cpu.memory - narrow.memory == pytest.approx(4 * numbers, abs=16)
    both = plan(facts, 4, 3, offload_optimizer_device="cpu", offload_param_device="cpu")
    assert both.weights == both.optimizer == 0
    assert both.memory == pytest.approx(20 * numbers, abs=32)
    disk = plan(
        facts,
        4,
        3,
        offload_optimizer_device="nvme",
        offload_optimizer_nvme_path="x",
        offload_param_device="nvme",
        offload_param_nvme_path="x",
    )
    assert disk.disk == pytest.approx((16 + 2) * numbers, abs=32)
    buffers = 4 * DISK_BUFFERS * (4 * min(numbers / 4, DISK_GROUP) + 2 * DISK_GROUP)
    assert disk.memory == pytest.approx(2 * numbers + buffers, abs=32)


def test_stage_3_divides_the_frozen_model_of_a_lora_too(facts):
    whole, part = plan(facts, 2, 2, "lora"), plan(facts, 2, 3, "lora")
    assert part.weights == pytest.approx(whole.weights / 2, abs=4)
    # A network's fp32 weights move where they lie: no second copy.
    assert part.optimizer == pytest.approx(whole.optimizer * 8 / 12, abs=8)


def test_a_processor_holds_all_processes_and_what_would_lie_beside_a_card(facts):
    on_cpu = replace(facts, device="cpu")
    card, machine = plan(facts, 2, 2), plan(on_cpu, 2, 2)
    assert machine.optimizer == 2 * card.optimizer == pytest.approx(12 * facts.parts["unet"].numbers, abs=8)
    moved = plan(on_cpu, 2, 2, offload_optimizer_device="cpu")
    assert moved.memory == 0 and moved.optimizer > machine.optimizer


def test_a_process_takes_a_whole_batch_of_its_own_and_its_gradients_travel_as_one(facts):
    alone, four = (
        memory_plan(
            job_of(memory={"mixed_precision": "bf16", "num_processes": count}, method={"kind": "fine_tune"}), facts
        )
        for count in (1, 4)
    )
    assert (four.weights, four.optimizer) == (alone.weights, alone.optimizer)
    assert four.activations == max(alone.activations, alone.gradients)


def test_what_would_not_fit_is_offered_main_memory_and_stage_3(facts):
    memory = {"mixed_precision": "bf16", "num_processes": 4}
    job = job_of(memory=memory, method={"kind": "fine_tune"}, sharding={"deepspeed": True, "zero_stage": 2})
    offered = {saving.path: saving.bytes for saving in advise(job, replace(facts, batch=8), None)}
    assert offered["sharding.offload_optimizer_device"] > 2.5e9 and offered["sharding.zero_stage"] > 0.5e9


# -- the fast disk


@pytest.fixture
def on_disk(make_job, workspace, tmp_path):
    def found(folder):
        sharding = {"deepspeed": True, "zero_stage": 3, "offload_optimizer_device": "nvme"}
        job = make_job(sharding=sharding | {"offload_optimizer_nvme_path": str(folder)})
        said = problems_without_model(job, workspace, preflight(job, workspace), "cpu")
        said += problems_with_model(job, workspace)
        return [each for each in said if each.where == "sharding.offload_optimizer_nvme_path"]

    return found


def test_a_disk_that_is_not_there_takes_no_files_or_has_no_room_is_told(on_disk, tmp_path, monkeypatch):
    assert on_disk(tmp_path) == []
    (missing,) = on_disk(tmp_path / "nvme")
    (tmp_path / "file").write_text("")
    (file,) = on_disk(tmp_path / "file")
    assert missing.code == file.code == "deepspeed.no-offload-folder"
    assert str(tmp_path / "nvme") in missing.what and file.what == f"{tmp_path / 'file'} is a file"
    monkeypatch.setattr(fast_disk.machine, "free_disk", lambda folder: 1000)
    (full,) = on_disk(tmp_path)
    assert full.code == "disk.space" and " 1.0 kB " in full.what
    left = tmp_path / "zero_stage_3" / "optimizer" / "rank0"
    left.mkdir(parents=True)
    (left / "0_1.tensor.swp").write_bytes(bytes(20_000_000))  # a run writes over what the one before left
    assert on_disk(tmp_path) == []


def test_a_disk_folder_that_takes_no_files_is_told(on_disk, tmp_path, monkeypatch):
    def refuse(*_, **named):
        raise PermissionError(13, "Permission denied") if str(named.get("dir")) == str(tmp_path) else OSError

    monkeypatch.setattr("core.training.checks.named_files.tempfile.TemporaryFile", refuse)
    (found,) = on_disk(tmp_path)
    assert found.code == "folder.not-writable" and found.what == f"{tmp_path} is not writable: Permission denied"
