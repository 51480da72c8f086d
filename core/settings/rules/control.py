"""Rules on ControlNet and ControlNet-LLLite: conflicts with settings of other groups."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.methods import spec_of

FAMILIES = ("auto", "sd1", "sdxl")  # of LLLite


def controlnet_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for a ControlNet or LLLite training with DeepSpeed, or of a model without a U-Net."""
    words = spec_of(job).words
    if job.sharding.active:
        what = f"DeepSpeed cannot train {words}"
        yield Problem(what, "sharding.deepspeed", "turn it off", code="control.sharding")
    if job.model.traits and not job.model.traits.unet:
        what = f"{words[0].upper()}{words[1:]} needs a model with a U-Net, such as SDXL"
        yield Problem(what, "method.kind", "choose another method, or another model", code="control.no-unet")


def lllite_problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for a ControlNet-LLLite training: those of ControlNet, unsupported model families and torch.compile."""
    yield from controlnet_problems(job)
    if job.model.family not in FAMILIES:
        what = "ControlNet-LLLite is for SD 1.x and SDXL"
        yield Problem(what, "model.base_model", "choose ControlNet, or another model", code="lllite.family")
    if job.memory.torch_compile:
        what = "torch.compile does not support ControlNet-LLLite"
        yield Problem(what, "memory.torch_compile", "turn it off", code="lllite.compile")
