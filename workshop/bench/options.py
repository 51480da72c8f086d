"""One LoRA training with one option at a time: seconds per step, peak of memory and the forecast of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from core.machine_check.gpu import forecast_of
from core.machine_check.item import CheckContext
from core.machine_check.random_model import make_model
from core.machine_check.trainings import train
from core.record.memory import is_out_of_memory
from core.record.units import memory_text
from core.record.workspace import STARTER, Workspace
from core.settings.flags import merge
from workshop.bench import workload

STEPS, WARM_UP = 12, 4
JOBS = {  # name: (what it says, family, pixels, text encoder trains)
    "sdxl_lora": ("SDXL LoRA, rank 16, U-Net, 1024 px, batch 1", "sdxl", 1024, False),
    "sd15_lora": ("SD 1.5 LoRA, rank 16, U-Net and text encoder, 512 px, batch 1", "sd1", 512, True),
    "starter_lora": ("starter LoRA, rank 16, U-Net and text encoder, 128 px, batch 1", "", 128, True),
}
BASE = {"memory": {"mixed_precision": "bf16", "gradient_checkpointing": True}}
OPTIONS: dict[str, dict[str, Any]] = {  # what each changes in BASE
    "bf16, gradient checkpointing, AdamW": {},
    "no gradient checkpointing": {"memory": {"gradient_checkpointing": False}},
    "8-bit AdamW": {"optimizer": {"optimizer_type": "AdamW8bit"}},
    "AdamW with foreach in place of fused": {"optimizer": {"optimizer_args": {"foreach": True}}},
    "base model in fp8": {"memory": {"fp8_base": True}},
    "U-Net in channels_last layout": {},
    "cuDNN benchmark": {},
    "torch.compile": {"memory": {"torch_compile": True, "gradient_checkpointing": False}},
    "torch.compile, gradient checkpointing": {"memory": {"torch_compile": True}},
}


@contextmanager
def _channels_last() -> Iterator[None]:
    """A context in which the U-Net's convolutions have the channels_last layout on a GPU too; on a CPU they always have."""
    import torch

    from core.training.building.models import Models

    load = Models.load

    def load_in_channels_last(models: Models) -> Any:
        components = load(models)
        components.denoiser.to(memory_format=torch.channels_last)
        return components

    with mock.patch.object(Models, "load", load_in_channels_last):
        yield


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """A context in which cuDNN tries its algorithms at each new shape. Not a setting, since two runs may then differ."""
    import torch

    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


# What no setting changes.
CONTEXTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "U-Net in channels_last layout": _channels_last,
    "cuDNN benchmark": _cudnn_benchmark,
}


def measure_options(folder: Path, device: str, case: str, say: Callable[[str], None]) -> dict[str, Any]:
    """{"what": the training, "options": {option: its numbers, or {"error": text}}} for one of JOBS. An option that fails does
    not stop the next."""
    what, family, size, text = JOBS[case]
    place = CheckContext(device, Workspace(folder / "outputs"), folder)
    model = make_model(folder, family) if family else STARTER
    base = workload.job_values(model, workload.make_images(folder, size, 2), size, STEPS, "bf16")
    base = merge(merge(base, BASE), {"network": {"train_text_encoder": text}})
    result: dict[str, Any] = {}
    for name, change in OPTIONS.items():
        say(f"{what}: {name}")
        values = merge(base, change)
        try:
            with CONTEXTS.get(name, nullcontext)():
                trained = train(values, place, warm_up=WARM_UP)
            numbers = {key: value for key, value in asdict(trained).items() if key != "losses"}
            result[name] = numbers | {"forecast_bytes": forecast_of(place, values)}
        except Exception as error:
            kind = "out of memory" if is_out_of_memory(error) else type(error).__name__
            result[name] = {"error": f"{kind}: {str(error)[:300]}"}
        say(f"  {_text(result[name])}")
    return {"what": what, "options": result}


def option_rows(measured: dict[str, Any]) -> list[tuple[str, str]]:
    return [("job", measured["what"]), *((name, _text(each)) for name, each in measured["options"].items())]


def _text(numbers: dict[str, Any]) -> str:
    if "error" in numbers:
        return numbers["error"].splitlines()[0]
    peak = memory_text(numbers["reserved_bytes"] or numbers["peak_bytes"])
    return f"{numbers['seconds_per_step']:.3f} s per step, {peak} (forecast {memory_text(numbers['forecast_bytes'])})"
