"""DeepSpeed: what it needs, what it cannot serve, and what has no effect as the others stand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.job import TrainJob
from core.settings.optimizers import find

DEEPSPEED, STAGE = "sharding.deepspeed", "sharding.zero_stage"
OPTIMIZER, PARAM = "sharding.offload_optimizer_device", "sharding.offload_param_device"
MASTERS = "sharding.fp16_master_weights_and_gradients"
INSTALL = "./launch.sh deepspeed installs it; elsewhere DS_BUILD_OPS=0 pip install --no-build-isolation -r requirements-deepspeed.txt"
SYSTEMS = {"win32": "Windows", "darwin": "macOS"}
# Optimizers that treat each number by itself: a part of a tensor moves as it would within the whole.
BY_NUMBER = (
    "torch.optim.AdamW",
    "torch.optim.Adam",
    "torch.optim.Adamax",
    "torch.optim.NAdam",
    "torch.optim.RAdam",
    "torch.optim.RMSprop",
    "torch.optim.SGD",
    "lion_pytorch.Lion",
)
ADAM = ("torch.optim.AdamW", "torch.optim.Adam")  # those that DeepSpeed computes on the CPU itself
ADAM_ARGUMENTS = {"betas", "eps", "weight_decay"}


def problems(job: TrainJob) -> Iterator[Problem]:
    if not job.sharding.deepspeed:
        return
    if job.sharding.zero_stage == 0:
        what = "ZeRO stage 0 shares nothing: each card holds everything, as without DeepSpeed"
        yield Problem(what, STAGE, "use 1 to 3, or switch DeepSpeed off", "advice")
    elif sys.platform != "linux":
        system = SYSTEMS.get(sys.platform, sys.platform)
        yield Problem(f"DeepSpeed runs on Linux only, and this is {system}", DEEPSPEED, "switch it off, or use WSL")
    elif find_spec("deepspeed") is None:
        yield Problem("DeepSpeed is not installed", DEEPSPEED, INSTALL)
    yield from _offload(job)
    if job.sharding.active:
        yield from _method(job)
        yield from _optimizer(job)
        yield from _precision(job)


def _offload(job: TrainJob) -> Iterator[Problem]:
    settings = job.sharding
    stage, optimizer, param = settings.zero_stage, settings.offload_optimizer_device, settings.offload_param_device
    if optimizer is not None and stage == 0:
        yield Problem("ZeRO stage 0 leaves the optimizer on the GPU", f"{STAGE}, {OPTIMIZER}", "use stage 2")
    if optimizer == "nvme" and stage in (1, 2):
        what = f"The optimizer's memory lies on a disk with ZeRO stage 3 only, and this is stage {stage}"
        yield Problem(what, f"{STAGE}, {OPTIMIZER}", "use stage 3, or put it into RAM (cpu)")
    if param is not None and stage != 3:
        what = f"Weights leave the GPU with ZeRO stage 3 only, and this is stage {stage}"
        yield Problem(what, f"{STAGE}, {PARAM}", "use stage 3, or leave it empty")
    for name, place in (("optimizer", optimizer), ("param", param)):
        path = f"sharding.offload_{name}_nvme_path"
        if place == "nvme" and not getattr(settings, f"offload_{name}_nvme_path"):
            yield Problem("There is no folder on a fast disk to put it in", path, "give one, such as /nvme/atelier")


def _method(job: TrainJob) -> Iterator[Problem]:
    memory, method = job.memory, job.method
    if method.kind == "embedding":
        what = "Textual inversion trains a few rows of numbers: there is nothing to share"
        yield Problem(what, DEEPSPEED, "switch DeepSpeed off")
        return
    if memory.fused_backward_pass or memory.fused_optimizer_groups:
        what = "DeepSpeed gathers the whole gradient, and weights are to move within the backward pass"
        yield Problem(what, "memory.fused_backward_pass, fused_optimizer_groups", "switch that off, or DeepSpeed")
    if method.whole_model and method.stop_text_encoder_training is not None:
        what = "DeepSpeed moves all that trains at every step, and the text encoder is to stop"
        yield Problem(what, "method.stop_text_encoder_training", "empty it, or switch DeepSpeed off")
    if not method.whole_model and job.network.module_dropout > 0:
        what = "DeepSpeed moves all that trains at every step, and module dropout leaves layers out"
        yield Problem(what, "network.module_dropout", "set it to 0, or switch DeepSpeed off")
    if not method.whole_model and job.network.scale_weight_norms is not None:
        what = "The change of a weight is measured over the whole matrix, and DeepSpeed cuts it"
        yield Problem(what, "network.scale_weight_norms", "empty it, or switch DeepSpeed off")
    if job.sharding.shares_weights and memory.narrow_unet:
        what = "ZeRO stage 3 gathers weights in the type they compute in, and these lie in 8 bits"
        yield Problem(what, "memory.fp8_base, fp8_base_unet", "use stage 2, or switch 8 bits off")
    if job.sharding.shares_weights and memory.torch_compile:
        what = "ZeRO stage 3 gathers weights between layers, and compiled blocks know no layers"
        yield Problem(what, "memory.torch_compile", "use stage 2, or switch the compiler off")
    if job.sharding.shares_weights and job.sharding.zero3_init_flag and method.prior == "model":
        what = "The untrained model is asked before the parts are on the GPUs"
        yield Problem(what, "sharding.zero3_init_flag", "switch it off, or use regularization images (method.prior)")
    if method.whole_model and method.ema and job.sharding.offload_optimizer_device == "nvme":
        yield Problem("An average cannot be kept of weights on a disk", "method.ema", "switch it off, or use RAM")


def _optimizer(job: TrainJob) -> Iterator[Problem]:
    where = "optimizer.optimizer_type"
    entry = find(job.optimizer.optimizer_type)
    path = entry.path if entry is not None else ""
    if path not in BY_NUMBER:
        names = ", ".join(name.rpartition(".")[2] for name in BY_NUMBER)
        what = f"DeepSpeed cuts weights anywhere, and {job.optimizer.optimizer_type} looks at whole tensors or at all of them"
        yield Problem(what, where, f"choose one that takes each number by itself: {names}")
        return
    given = set(job.optimizer.optimizer_args) - ADAM_ARGUMENTS
    for needed, why in (
        (job.sharding.offload_optimizer_device == "nvme", "on a disk"),
        (job.sharding.fp16_master_weights_and_gradients, "with master weights in fp16"),
    ):
        if needed and path not in ADAM:
            yield Problem(f"DeepSpeed steps {why} with AdamW and Adam only", where, "choose AdamW")
        elif needed and given:
            names = ", ".join(sorted(given))
            what = f"DeepSpeed's own AdamW, which steps {why}, does not know {names}"
            yield Problem(what, "optimizer.optimizer_args", "leave that out")


def _precision(job: TrainJob) -> Iterator[Problem]:
    memory, settings = job.memory, job.sharding
    if memory.full_precision != "fp32":
        what = f"DeepSpeed shares fp32 weights that train, and they are to train in {memory.full_precision}"
        fix = "set it to fp32: a whole model lies on the card in the type of memory.mixed_precision all the same"
        yield Problem(what, "memory.full_precision", fix)
    if not settings.fp16_master_weights_and_gradients:
        return
    if not job.method.whole_model:
        yield Problem("A network's master weights are fp32", MASTERS, "switch it off: they are small")
    elif memory.mixed_precision != "fp16":
        yield Problem("Master weights in fp16 are for fp16", f"memory.mixed_precision, {MASTERS}", "set it to fp16")
    if settings.zero_stage != 2 or settings.offload_optimizer_device != "cpu":
        what = "Master weights in fp16 are for ZeRO stage 2 with the optimizer in RAM"
        yield Problem(what, f"{STAGE}, {OPTIMIZER}, {MASTERS}", "use stage 2 and cpu, or switch it off")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    settings = job.sharding
    if not settings.deepspeed:
        for entry in declared(TrainJob):
            if entry.group == "sharding" and entry.path != DEEPSPEED:
                yield entry.path, "ignored: DeepSpeed is off"
        return
    for name in ("optimizer", "param"):
        if getattr(settings, f"offload_{name}_device") != "nvme":
            yield f"sharding.offload_{name}_nvme_path", "ignored: nothing is put on a disk"
    if not settings.shares_weights:
        yield "sharding.zero3_init_flag", "ignored: only ZeRO stage 3 shares the weights"
        yield "sharding.zero3_save_16bit_model", "ignored: only ZeRO stage 3 shares the weights"
    elif not job.method.whole_model or job.memory.mixed_precision == "no":
        yield "sharding.zero3_save_16bit_model", "ignored: what trains is fp32 throughout"
