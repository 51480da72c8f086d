"""The items of the check in order: first what everything else depends on, last what takes longest."""

from __future__ import annotations

from functools import partial

from core.machine_check import computing, gpu, lives, system, trainings
from core.machine_check.item import Item

MACHINE, TYPES, LIBRARIES = "Machine", "Dtypes", "Attention and libraries"
TRAINING, MODES, WHOLE, REAL = "12 steps of the starter", "Memory modes", "Whole jobs", "On the GPU, SD 1.5 at 512 px"
COMPILING = "Compiling"
BASIS = ("torch", "device")


def all_items() -> list[Item]:
    return [*_machine(), *_types(), *_libraries(), *_trainings(), *_whole(), *_gpu(), *_compiling()]


def _machine() -> list[Item]:
    return [
        Item("python", "Python", MACHINE, system.python),
        Item("packages", "Packages", MACHINE, system.packages),
        Item("memory", "RAM and CPU", MACHINE, system.memory),
        Item("driver", "GPU driver", MACHINE, system.driver),
        Item("torch", "PyTorch", MACHINE, computing.torch_build, 90.0),
        Item("device", "Device", MACHINE, computing.device, 60.0, ("torch",)),
        Item("vram", "VRAM", MACHINE, computing.vram, needs=BASIS),
        Item("disk", "Disk", MACHINE, system.disk),
        Item("locks", "File locks", MACHINE, system.locks),
    ]


def _types() -> list[Item]:
    names = {"fp32": "fp32", "tf32": "TF32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
    return [
        Item(name, title, TYPES, partial(computing.number_type, name), needs=BASIS) for name, title in names.items()
    ]


def _libraries() -> list[Item]:
    return [
        Item("attention", "SDPA kernels", LIBRARIES, computing.attention, needs=BASIS),
        Item("xformers", "xFormers", LIBRARIES, computing.xformers, 45.0, BASIS),
        Item("bitsandbytes", "bitsandbytes", LIBRARIES, computing.bitsandbytes, 45.0, BASIS),
        Item("onnxruntime", "onnxruntime", LIBRARIES, computing.onnxruntime, needs=BASIS),
    ]


def _trainings() -> list[Item]:
    return [
        Item(
            name,
            case.title,
            TRAINING if name in trainings.PRECISIONS else MODES,
            partial(trainings.look, name),
            case.seconds,
            (*BASIS, *case.needs),
            case.gpu,
        )
        for name, case in trainings.CASES.items()
        if name != "compiled"
    ]


def _whole() -> list[Item]:
    return [
        Item("sample", "One sample", WHOLE, lives.sample, 60.0, BASIS),
        Item("save_and_load", "Save and load", WHOLE, lives.save_and_load, 60.0, BASIS),
        Item("resume", "Resume", WHOLE, lives.resume, 60.0, BASIS),
    ]


def _gpu() -> list[Item]:
    switches = [
        Item(name, title, REAL, look, 60.0, ("real_model",), gpu=True) for name, title, look in gpu.switch_items()
    ]
    return [
        Item("no_waits", "No GPU waits in a step", REAL, gpu.no_waits, 60.0, BASIS, gpu=True),
        Item("real_model", "Model", REAL, gpu.real_model, 90.0, BASIS, gpu=True),
        Item("real_plain", "LoRA in fp32", REAL, gpu.real_plain, 90.0, ("real_model",), gpu=True),
        *switches,
    ]


def _compiling() -> list[Item]:
    """Last: compiling takes long."""
    compiled = trainings.CASES["compiled"]
    return [
        Item("compiler", "Compiler and triton", COMPILING, computing.compiler, 60.0, BASIS),
        Item(
            "compiled", compiled.title, COMPILING, partial(trainings.look, "compiled"), 90.0, compiled.needs, gpu=True
        ),
    ]
