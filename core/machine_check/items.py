"""The items of the check in order: prerequisites first, the slowest last."""

from functools import partial

from core.machine_check import computing, gpu, jobs, system, trainings
from core.machine_check.item import Item

MACHINE, TYPES, LIBRARIES = "Machine", "Dtypes", "Attention and libraries"
WHOLE, REAL, COMPILING = "Whole jobs", "On the GPU, SD 1.5 at 512 px", "Compiling"
BASIS = ("torch", "device")
DTYPES = {"fp32": "fp32", "tf32": "TF32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}


def all_items() -> list[Item]:
    """Return all items of the check. Each follows the items that it needs."""
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
        *(
            Item(name, title, TYPES, partial(computing.dtype_products, name), needs=BASIS)
            for name, title in DTYPES.items()
        ),
        Item("attention", "SDPA kernels", LIBRARIES, computing.attention, needs=BASIS),
        Item("xformers", "xFormers", LIBRARIES, computing.xformers, 45.0, BASIS),
        Item("bitsandbytes", "bitsandbytes", LIBRARIES, computing.bitsandbytes, 45.0, BASIS),
        Item("onnxruntime", "onnxruntime", LIBRARIES, computing.onnxruntime, needs=BASIS),
        *_twelve_steps("12 steps of the starter", trainings.PRECISIONS),
        *_twelve_steps("Memory modes", trainings.MODES),
        Item("sample", "One sample", WHOLE, jobs.sample, 60.0, BASIS),
        Item("save_and_load", "Save and load", WHOLE, jobs.save_and_load, 60.0, BASIS),
        Item("resume", "Resume", WHOLE, jobs.resume, 60.0, BASIS),
        Item("no_waits", "No GPU waits in a step", REAL, gpu.no_waits, 60.0, BASIS, gpu=True),
        Item("real_model", "Model", REAL, gpu.real_model, 90.0, BASIS, gpu=True),
        *_full_size_trainings(),
        Item("compiler", "Compiler and triton", COMPILING, computing.compiler, 60.0, BASIS),
        *_twelve_steps(COMPILING, trainings.COMPILED),
    ]


def _twelve_steps(group: str, cases: dict[str, trainings.Case]) -> list[Item]:
    """Return an item for each case, {name: case}: a training of 12 steps."""
    return [
        Item(
            name, case.title, group, partial(trainings.train_case, name), case.seconds, (*BASIS, *case.needs), case.gpu
        )
        for name, case in cases.items()
    ]


def _full_size_trainings() -> list[Item]:
    """Return an item for each of gpu.OPTIONS. The first has a longer time limit, as it also encodes the images and captions."""
    return [
        Item(
            name=f"real_{name}",
            title=title,
            group=REAL,
            run=partial(gpu.real_training, name),
            seconds=90.0 if name == "plain" else 60.0,
            needs=("real_model",),
            gpu=True,
        )
        for name, (title, _) in gpu.OPTIONS.items()
    ]
