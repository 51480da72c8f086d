"""Each item tells apart what is right, slower, missing and broken; what is missing here is pretended."""

import errno
import sys
from types import SimpleNamespace

import pytest

from core.machine_check import computing, gpu, jobs, system, trainings
from core.machine_check.item import ABSENT, FAILED, OK, SLOWER, CheckContext
from core.machine_check.items import all_items
from core.machine_check.trainings import Trained
from core.record.lock import HeldElsewhere
from core.record.workspace import Workspace
from core.setup.choose import MachineFacts
from core.training.prove import Proof

NO_GPU = MachineFacts("Linux", "x86_64")


@pytest.fixture
def place(tmp_path):
    return CheckContext("cpu", Workspace(tmp_path / "outputs", tmp_path / "models"), tmp_path)


def on_cuda(place, **earlier):
    return CheckContext("cuda", place.workspace, place.folder, earlier)


def facts(monkeypatch, **more):
    seen = MachineFacts("Linux", "x86_64", **more)
    for module in (system, computing):
        monkeypatch.setattr(module, "machine_facts", lambda: seen)


def test_names_are_unique_and_what_an_item_needs_comes_before_it():
    seen = []
    for item in all_items():
        assert item.name not in seen
        assert set(item.needs) <= set(seen), item.name
        seen.append(item.name)


# -- the machine


def test_packages_that_are_missing_or_of_other_versions(place, monkeypatch):
    assert system.packages(place).state in (OK, SLOWER)
    pinned = system.pinned_versions("torch==2.0\nnumpy==1.5 ; sys_platform == 'linux'\n# pillow==3\n")
    assert pinned == {"torch": "2.0", "numpy": "1.5"}
    monkeypatch.setattr(system, "PACKAGES", ("torch", "no-such-package"))
    told = system.packages(place)
    assert told.state == FAILED and "no-such-package" in told.reason and told.fix
    monkeypatch.setattr(system, "PACKAGES", ("torch",))
    monkeypatch.setattr(system, "version", lambda name: "0.1+cu1")
    told = system.packages(place)
    assert told.state == SLOWER and "torch 0.1+cu1" in told.reason


def test_a_python_that_is_too_new_is_told(place, monkeypatch):
    assert system.python(place).state == OK
    monkeypatch.setattr(system, "fitness", lambda: "new")
    assert system.python(place).state == FAILED


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ({"driver": "580.1", "compute": ("8.6",)}, OK),
        ({"nvidia_card": True}, FAILED),
        ({"amd_card": True}, OK),
        ({"macos": "15.1"}, OK),
        ({}, ABSENT),
    ],
)
def test_a_driver_is_there_broken_or_not_there(place, monkeypatch, seen, state):
    facts(monkeypatch, **seen)
    assert system.driver(place).state == state


def test_little_memory_is_told(place, monkeypatch):
    monkeypatch.setattr(system.psutil, "virtual_memory", lambda: SimpleNamespace(total=8 << 30, available=2 << 30))
    assert system.memory(place).state == SLOWER


def test_a_disk_that_is_full_slow_or_read_only(place, monkeypatch):
    monkeypatch.setattr(system, "DISK_BYTES", 1 << 20)
    monkeypatch.setattr(system.machine, "free_disk", lambda folder: 50_000_000_000)
    monkeypatch.setattr(system, "write_speed", lambda path: 500e6)
    assert system.disk(place).state == OK
    monkeypatch.setattr(system, "write_speed", lambda path: 5e6)
    assert system.disk(place).state == SLOWER
    monkeypatch.setattr(system.machine, "free_disk", lambda folder: 5_000_000_000)
    assert system.disk(place).state == SLOWER
    monkeypatch.setattr(system.machine, "free_disk", lambda folder: 1_000_000)
    assert system.disk(place).state == FAILED

    def refuses(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(system, "write_speed", refuses)
    told = system.disk(place)
    assert told.state == FAILED and "Read-only" in told.reason


def test_the_pace_of_a_disk_leaves_no_file(place, monkeypatch):
    monkeypatch.setattr(system, "DISK_BYTES", 1 << 20)
    assert system.write_speed(place.folder / "disk.bin") > 0
    assert not (place.folder / "disk.bin").exists()


def test_a_drive_with_without_and_with_broken_locks(place, monkeypatch):
    assert system.locks(place).state == OK

    def answer(what):
        def acquire(lock):
            if isinstance(what, Exception):
                raise what
            return what

        monkeypatch.setattr(system.Lock, "acquire", acquire)
        monkeypatch.setattr(system.Lock, "release", lambda lock: None)
        return system.locks(place).state

    assert answer(["This drive has no file locks"]) == SLOWER
    assert answer(HeldElsewhere()) == FAILED
    assert answer(OSError(errno.EACCES, "no")) == FAILED


# -- torch and libraries


def test_a_gpu_that_this_torch_cannot_use_is_told(place, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts(monkeypatch)
    assert computing.torch_build(place).state == OK
    facts(monkeypatch, nvidia_card=True, driver="470.1")
    monkeypatch.setattr(torch.version, "cuda", None)
    told = computing.torch_build(place)
    assert told.state == SLOWER and "CPU" in told.reason
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    told = computing.torch_build(place)
    assert told.state == FAILED and "driver" in told.fix


def test_products_in_each_type_are_right_here_and_wrong_ones_are_told(place, monkeypatch):
    monkeypatch.setattr(computing, "gemm_rate", lambda *_: 1e12)
    for name in ("fp32", "bf16", "fp16", "fp8"):
        told = computing.dtype_products(name, place)
        assert told.state == OK, (name, told)
    assert computing.dtype_products("tf32", place).state == ABSENT
    slow = CheckContext("cpu", place.workspace, place.folder, {"fp32": {"flops_per_second": 3e12}})
    told = computing.dtype_products("bf16", slow)
    assert told.state == SLOWER and "3.0 times" in told.reason
    for wrong in (0.5, float("nan")):
        monkeypatch.setattr(computing, "product_error", lambda *_, wrong=wrong: wrong)
        assert computing.dtype_products("fp32", place).state == FAILED


def test_the_bounds_of_types_are_near_their_rounding():
    """Each lets its own type pass, and not the next coarser one's rounding."""
    import torch

    fp32, bf16, fp16 = (computing.product_error(each, "cpu") for each in (torch.float32, torch.bfloat16, torch.float16))
    bounds = computing.ROUNDING
    assert fp32 < bounds["fp32"] < fp16 < bounds["fp16"] and bf16 < bounds["bf16"]


def test_attention_with_one_kernel_is_a_slower_way(place, monkeypatch):
    assert computing.attention(place).state == OK
    real = computing._attention_seconds
    monkeypatch.setattr(computing, "REPEATS", 1)

    def only_math(q, k, v, place):
        import torch

        if torch.backends.cuda.flash_sdp_enabled():
            raise RuntimeError("No available kernel\nand more")
        return real(q, k, v, place)

    monkeypatch.setattr(computing, "_attention_seconds", only_math)
    told = computing.attention(place)
    assert told.state == SLOWER and told.facts["refused"]["flash_attention"] == "No available kernel"


def missing(monkeypatch, *names):
    find = computing.find_spec
    monkeypatch.setattr(computing, "find_spec", lambda name: None if name in names else find(name))


def test_packages_that_are_optional_are_not_there(place, monkeypatch):
    missing(monkeypatch, "xformers", "bitsandbytes", "onnxruntime")
    assert computing.xformers(place).state == ABSENT
    assert "not installed" in computing.xformers(on_cuda(place)).reason
    assert computing.bitsandbytes(place).state == ABSENT
    assert computing.onnxruntime(place).state == ABSENT


def test_bitsandbytes_that_does_not_train_is_told(place, monkeypatch):
    from core.optimization import trial

    monkeypatch.setattr(trial, "run_trial", lambda *_, **__: trial.Result("it moves nothing"))
    told = computing.bitsandbytes(place)
    assert told.state == FAILED and "it moves nothing" in told.reason


def test_onnxruntime_on_the_cpu_beside_a_gpu_and_twice(place, monkeypatch):
    spec = SimpleNamespace(name="onnxruntime")
    library = SimpleNamespace(__version__="1", __spec__=spec, get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setattr(computing, "installed", lambda name: name == "onnxruntime")
    assert computing.onnxruntime(place).state == OK
    assert computing.onnxruntime(on_cuda(place)).state == SLOWER
    monkeypatch.setattr(computing, "installed", lambda name: True)
    assert computing.onnxruntime(place).state == FAILED


def test_without_a_compiler_torch_compile_is_not_there(place, monkeypatch):
    from core.families import compiling
    from core.record.problems import ProblemsError

    monkeypatch.setattr(compiling, "_compiler_found", lambda device: False)
    told = computing.compiler(place)
    assert told.state == ABSENT and told.fix
    monkeypatch.setattr(compiling, "_compiler_found", lambda device: True)
    monkeypatch.setattr(compiling, "try_compiling", lambda *_: None)
    assert computing.compiler(place).state == SLOWER  # on a CPU

    def refuses(*_):
        raise ProblemsError.one("torch.compile does not work here: ld", "memory.torch_compile", "install ld")

    monkeypatch.setattr(compiling, "try_compiling", refuses)
    told = computing.compiler(place)
    assert told.state == FAILED and told.fix == "install ld"


# -- trainings


def trained(monkeypatch, losses, seconds=0.1, peak=1 << 30):
    monkeypatch.setattr(trainings, "train", lambda *_, **__: Trained(list(losses), seconds, peak, peak))


def test_losses_are_held_against_the_recorded_ones(place, monkeypatch):
    right = trainings.recorded()["losses"]["lora"]
    trained(monkeypatch, right)
    assert trainings.train_case("train_fp32", place).state == OK
    trained(monkeypatch, [*right[:-1], right[-1] * 1.01])
    assert trainings.train_case("train_fp32", place).state == FAILED
    assert trainings.train_case("train_bf16", place).state == OK  # its rounding is coarser
    trained(monkeypatch, [*right[:-1], float("nan")])
    assert trainings.train_case("train_bf16", place).state == FAILED
    trained(monkeypatch, right[:-1])
    assert trainings.train_case("train_fp32", place).state == FAILED
    trained(monkeypatch, right, seconds=0.3)
    told = trainings.train_case(
        "train_bf16", CheckContext("cpu", *_rest(place), {"train_fp32": {"seconds_per_step": 0.1}})
    )
    assert told.state == SLOWER and "3.0 times" in told.reason
    assert trainings.train_case("attention_xformers", place).state == ABSENT


def _rest(place):
    return place.workspace, place.folder


def test_every_case_has_a_recorded_series_and_a_bound_and_is_a_job():
    from core.settings.check import build
    from core.settings.job import TrainJob

    losses = trainings.recorded()["losses"]
    assert set(losses) == set(trainings.SERIES) and all(len(each) == trainings.STEPS for each in losses.values())
    for name, case in trainings.CASES.items():
        assert case.tolerance in trainings.TOLERANCE, name
        assert build(TrainJob, case.values()).schedule.max_train_steps == trainings.STEPS


@pytest.mark.slow
def test_a_training_that_moves_nothing_is_told_from_rounding(place):
    values = trainings.CASES["train_fp32"].values()
    still = trainings.train({**values, "optimizer": {"learning_rate": 1e-12}}, place)
    off = trainings.difference(still.losses, trainings.recorded()["losses"]["lora"])
    assert off > max(trainings.TOLERANCE.values())


# -- whole jobs


def test_a_sample_that_is_black_or_another_one_is_told(place, monkeypatch):
    right = trainings.recorded()["sample"]
    for found, state in (
        (right, OK),
        ([0.0] * len(right), FAILED),
        ([255 - tone for tone in right], FAILED),
    ):
        monkeypatch.setattr(jobs, "sample_tones", lambda place, found=found: (1.0, found))
        assert jobs.sample(place).state == state


@pytest.mark.parametrize(
    ("device", "proof", "state"),
    [
        ("cpu", Proof(4, 2, "a", "a", True), OK),
        ("cpu", Proof(4, 2, "a", "b", False, ("optimizer/0",), 1e-6), FAILED),
        ("cuda", Proof(4, 2, "a", "b", False, ("optimizer/0",), 1e-6), OK),
        ("cuda", Proof(4, 2, "a", "b", False, ("optimizer/0",), 0.2), FAILED),
    ],
)
def test_a_resumed_run_must_equal_an_unbroken_one_but_for_a_gpus_rounding(place, monkeypatch, device, proof, state):
    from core.training import prove

    monkeypatch.setattr(prove, "prove", lambda *_, **__: proof)
    assert jobs.resume(CheckContext(device, *_rest(place))).state == state


# -- the GPU


def _event(name, start, end=None):
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end or start + 1))


def test_waits_count_within_marked_steps_alone():
    events = [
        _event("cudaDeviceSynchronize", 5),  # the profiler's own
        _event(gpu.MARK, 10, 20),
        _event("cudaLaunchKernel", 11),
        _event("cudaMemcpyAsync", 12),
        _event(gpu.MARK, 30, 40),
        _event("cudaStreamSynchronize", 35),
        _event("cudaStreamSynchronize", 36),
        _event("cudaDeviceSynchronize", 45),
    ]
    assert gpu.waits_within(events) == {"cudaStreamSynchronize": 2}
    assert not gpu.waits_within(events[:4])


def test_the_places_of_waits_are_collected_and_no_other_warning_is(monkeypatch):
    import warnings

    import torch

    def mode(name):
        if name == "warn":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    with gpu.waiting_lines() as places:
        pass
    assert places == []
    with gpu.waiting_lines() as places:
        warnings.warn("something else", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert len(places) == 1


def test_a_switch_tells_what_it_saves_beside_the_forecast(place, monkeypatch):
    plain = {"reserved_bytes": 4 << 30, "forecast_bytes": 5 << 30, "seconds_per_step": 0.1}
    here = on_cuda(place, real_plain=plain)
    monkeypatch.setattr(gpu, "full_size_settings", lambda *_: {})
    monkeypatch.setattr(gpu, "forecast_of", lambda *_: 3 << 30)

    def told(losses=(1.0,), size=3 << 30):
        monkeypatch.setattr(gpu, "train", lambda *_, **__: Trained(list(losses), 0.2, size, size))
        return gpu.real_training("checkpointing", here)

    found = told()
    assert found.state == OK and found.facts["saves_bytes"] == 1 << 30 and found.facts["time_ratio"] == 2
    assert found.facts["forecast_saves_bytes"] == 2 << 30
    assert told(size=5 << 30).state == SLOWER  # far more than was forecast
    assert told(losses=(1.0, float("nan"))).state == FAILED


def test_a_full_disk_refuses_the_real_model(place, monkeypatch):
    monkeypatch.setattr(gpu.machine, "free_disk", lambda folder: 1_000_000_000)
    assert gpu.real_model(place).state == FAILED


def test_a_gpu_that_is_too_small_is_no_failure(place, monkeypatch):
    def runs_out(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(gpu, "full_size_settings", lambda *_: {})
    monkeypatch.setattr(gpu, "forecast_of", lambda *_: 9 << 30)
    monkeypatch.setattr(gpu.machine, "memory", lambda device: (0, 4 << 30))
    monkeypatch.setattr(gpu, "train", runs_out)
    told = gpu.real_training("plain", on_cuda(place))
    assert told.state == SLOWER and "4.0 GB" in told.reason and told.fix
    switched = gpu.real_training("fp8", on_cuda(place, real_plain=told.facts))  # nothing to hold it against
    assert switched.state == SLOWER


def test_errors_after_which_cuda_is_unusable_are_told_from_those_of_memory():
    from core.machine_check.run import is_cuda_error

    assert is_cuda_error(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_cuda_error(RuntimeError("cuBLAS: CUBLAS_STATUS_EXECUTION_FAILED"))
    assert not is_cuda_error(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_cuda_error(ValueError("no"))


@pytest.mark.parametrize(("free", "state"), [(75, OK), (74, SLOWER)])
def test_a_gpu_of_which_three_quarters_are_free_is_well(place, monkeypatch, free, state):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free << 20, 100 << 20))
    assert computing.vram(on_cuda(place)).state == state


# Each about three times what was measured of rounding
@pytest.mark.parametrize(("case", "bound"), [("train_fp32", 4e-3), ("train_bf16", 4e-2)])
def test_losses_at_the_bounds_of_rounding_and_times_at_theirs(place, monkeypatch, case, bound):
    right = trainings.recorded()["losses"]["lora"]
    for off, state in ((0.99, OK), (1.01, FAILED)):
        trained(monkeypatch, [*right[:-1], right[-1] * (1 + off * bound)])
        assert trainings.train_case(case, place).state == state
    for seconds, state in ((0.1249, OK), (0.1251, SLOWER)):
        trained(monkeypatch, right, seconds=seconds)
        before = CheckContext("cpu", *_rest(place), {"train_fp32": {"seconds_per_step": 0.1}})
        assert trainings.train_case("train_bf16", before).state == state


@pytest.mark.parametrize(
    ("outputs", "models", "pace", "state"),
    [(4 * 256_000_000 - 1, 10**11, 1e9, FAILED), (4 * 256_000_000, 10**11, 1e9, SLOWER), (10**10, 10**10, 1e9, OK)]
    + [(10**10 - 1, 10**11, 1e9, SLOWER), (10**11, 10**10 - 1, 1e9, SLOWER), (10**11, 10**11, 49e6, SLOWER)]
    + [(10**11, 10**11, 50e6, OK)],
)
def test_disks_at_the_edges_of_space_and_pace(place, monkeypatch, outputs, models, pace, state):
    free = {place.workspace.outputs: outputs, place.workspace.models: models}
    monkeypatch.setattr(system.machine, "free_disk", free.__getitem__)
    monkeypatch.setattr(system, "write_speed", lambda path: pace)
    assert system.disk(place).state == state
