"""Rules on DeepSpeed: requirements, unsupported settings, and settings without effect."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec

from core.record.problems import Problem
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.needs import all_but, ignored, problems_if
from core.settings.optimization.optimizers import find
from core.settings.rules.noise import preserves_unmasked

DEEPSPEED, STAGE = "sharding.deepspeed", "sharding.zero_stage"
OPTIMIZER, PARAM = "sharding.offload_optimizer_device", "sharding.offload_param_device"
MASTERS = "sharding.fp16_master_weights_and_gradients"
INSTALL = (
    "run ./launch.sh deepspeed; elsewhere DS_BUILD_OPS=0 pip install --no-build-isolation -r requirements-deepspeed.txt"
)
SYSTEMS = {"win32": "Windows", "darwin": "macOS"}
# Element-wise optimizers, which give the same result on a partition of a tensor.
ELEMENTWISE = (
    "torch.optim.AdamW",
    "torch.optim.Adam",
    "torch.optim.Adamax",
    "torch.optim.NAdam",
    "torch.optim.RAdam",
    "torch.optim.RMSprop",
    "torch.optim.SGD",
    "lion_pytorch.Lion",
)
ADAM = ("torch.optim.AdamW", "torch.optim.Adam")  # those that DeepSpeed implements on the CPU
ADAM_ARGUMENTS = {"betas", "eps", "weight_decay"}


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on DeepSpeed: stage, operating system, installation, and unsupported settings."""
    if not job.sharding.deepspeed:
        return
    if job.sharding.zero_stage == 0:
        what = "ZeRO stage 0 partitions nothing, as without DeepSpeed"
        yield Problem(what, STAGE, "use 1 to 3, or turn DeepSpeed off", "advice", code="deepspeed.stage-0")
    elif sys.platform != "linux":
        system = SYSTEMS.get(sys.platform, sys.platform)
        what = f"DeepSpeed runs on Linux only, and this is {system}"
        yield Problem(what, DEEPSPEED, "turn it off, or use WSL", code="deepspeed.not-linux")
    elif find_spec("deepspeed") is None:
        yield Problem("DeepSpeed is not installed", DEEPSPEED, INSTALL, code="deepspeed.not-installed")
    yield from _offload(job)
    if job.sharding.active:
        yield from _method(job)
        yield from _optimizer(job)
        yield from _precision(job)


def _offload(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for offloading that the ZeRO stage does not support, or that lacks an NVMe folder."""
    settings = job.sharding
    stage, optimizer, param = settings.zero_stage, settings.offload_optimizer_device, settings.offload_param_device
    places = (("optimizer", optimizer), ("param", param))
    yield from problems_if(
        (optimizer is not None and stage == 0, "ZeRO stage 0 cannot offload the optimizer state", f"{STAGE}, {OPTIMIZER}",
         "use stage 2", "deepspeed.offload-optimizer-stage"),
        (optimizer == "nvme" and stage in (1, 2),
         f"Offloading the optimizer state to NVMe needs ZeRO stage 3, and this is stage {stage}", f"{STAGE}, {OPTIMIZER}",
         "use stage 3, or offload to RAM (cpu)", "deepspeed.offload-optimizer-stage"),
        (param is not None and stage != 3, f"Offloading parameters needs ZeRO stage 3, and this is stage {stage}",
         f"{STAGE}, {PARAM}", "use stage 3, or leave it empty", "deepspeed.offload-param-stage"),
        *((device == "nvme" and not getattr(settings, f"offload_{name}_nvme_path"), "Offloading to NVMe needs a folder",
           f"sharding.offload_{name}_nvme_path", "set one, such as /nvme/atelier", "deepspeed.no-nvme-path")
          for name, device in places),
    )  # fmt: skip


def _method(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for training methods and their settings that DeepSpeed does not support."""
    memory, method, network, sharding = job.memory, job.method, job.network, job.sharding
    if method.traits.new_words:
        what = "DeepSpeed does not support textual inversion"
        yield Problem(what, DEEPSPEED, "turn DeepSpeed off", code="deepspeed.textual-inversion")
        return
    trains_network, stage_3 = method.traits.uses_network, sharding.shares_weights
    stops = method.stops_text_encoder and (method.traits.base_trains or trains_network)
    stop = "training" if method.stop_text_encoder_training is not None else "epochs"
    keeps_base = (method.prior == "model" and not spec_of(job).preserves_class) or preserves_unmasked(job)
    yield from problems_if(
        (memory.fused_backward_pass or memory.fused_optimizer_groups, "DeepSpeed does not support a fused backward pass",
         "memory.fused_backward_pass, fused_optimizer_groups", "turn it or DeepSpeed off", "deepspeed.fused-backward"),
        (stops, "DeepSpeed cannot stop training the text encoder during a run", f"method.stop_text_encoder_{stop}",
         "empty it, or turn DeepSpeed off", "deepspeed.stop-text-encoder"),
        (trains_network and network.module_dropout > 0, "DeepSpeed does not support module dropout", "network.module_dropout",
         "set it to 0, or turn DeepSpeed off", "deepspeed.module-dropout"),
        (trains_network and network.scale_weight_norms is not None, "DeepSpeed does not support a max weight norm",
         "network.scale_weight_norms", "empty it, or turn DeepSpeed off", "deepspeed.max-weight-norm"),
        (stage_3 and memory.narrow_unet, "ZeRO stage 3 does not support fp8 weights", "memory.fp8_base, fp8_base_unet",
         "use stage 2, or turn fp8 off", "deepspeed.stage-3-fp8"),
        (stage_3 and memory.torch_compile, "ZeRO stage 3 does not support torch.compile", "memory.torch_compile",
         "use stage 2, or turn torch.compile off", "deepspeed.stage-3-compile"),
        (stage_3 and sharding.zero3_init_flag and keeps_base, "ZeRO-3 init does not support prior preservation with the base model",
         "sharding.zero3_init_flag", "turn it off, or use regularization images (method.prior)", "deepspeed.zero3-init-prior"),
        (method.ema and sharding.offload_optimizer_device == "nvme", "EMA does not work with weights offloaded to NVMe", "method.ema",
         "turn EMA off, or offload to RAM", "deepspeed.ema-nvme"),
    )  # fmt: skip


def _optimizer(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for optimizers and optimizer arguments that DeepSpeed does not support."""
    where = "optimizer.optimizer_type"
    entry = find(job.optimizer.optimizer_type)
    path = entry.path if entry is not None else ""
    if path not in ELEMENTWISE:
        names = ", ".join(name.rpartition(".")[2] for name in ELEMENTWISE)
        what = f"DeepSpeed needs an element-wise optimizer, which {job.optimizer.optimizer_type} is not"
        yield Problem(what, where, f"choose one of {names}", code="deepspeed.optimizer")
        return
    unknown = set(job.optimizer.optimizer_args) - ADAM_ARGUMENTS
    for needed, why in (
        (job.sharding.offload_optimizer_device == "nvme", "with NVMe offload"),
        (job.sharding.fp16_master_weights_and_gradients, "with fp16 master weights"),
    ):
        if needed and path not in ADAM:
            what = f"DeepSpeed {why} supports AdamW and Adam only"
            yield Problem(what, where, "choose AdamW", code="deepspeed.adam-only")
        elif needed and unknown:
            names = ", ".join(sorted(unknown))
            what = f"DeepSpeed's AdamW, used {why}, does not support {names}"
            yield Problem(what, "optimizer.optimizer_args", "remove it", code="deepspeed.adam-arguments")


def _precision(job: TrainJob) -> Iterator[Problem]:
    """Yield errors for full 16-bit training, and for fp16 master weights without their requirements."""
    memory, settings = job.memory, job.sharding
    if memory.full_precision != "fp32":
        what = f"DeepSpeed keeps fp32 master weights and does not support full {memory.full_precision} training"
        fix = "set it to fp32: the weights on the GPU use memory.mixed_precision anyway"
        yield Problem(what, "memory.full_precision", fix, code="deepspeed.full-precision")
    if not settings.fp16_master_weights_and_gradients:
        return
    if not job.method.traits.full_size:
        what = "fp16 master weights are for full models only"
        yield Problem(what, MASTERS, "turn it off", code="deepspeed.fp16-masters-network")
    elif memory.mixed_precision != "fp16":
        what = "fp16 master weights need mixed precision fp16"
        yield Problem(
            what, f"memory.mixed_precision, {MASTERS}", "set it to fp16", code="deepspeed.fp16-masters-precision"
        )
    if settings.zero_stage != 2 or settings.offload_optimizer_device != "cpu":
        what = "fp16 master weights need ZeRO stage 2 with the optimizer offloaded to RAM"
        fix = "use stage 2 and cpu, or turn it off"
        yield Problem(what, f"{STAGE}, {OPTIMIZER}, {MASTERS}", fix, code="deepspeed.fp16-masters-stage")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for sharding settings without effect."""
    settings = job.sharding
    in_fp32 = not job.method.traits.full_size or job.memory.mixed_precision == "no"
    saves_fp32 = settings.deepspeed and settings.shares_weights and in_fp32
    yield from ignored(
        (not settings.deepspeed, all_but(settings, "sharding", "deepspeed"), "DeepSpeed is off"),
        (saves_fp32, "sharding.zero3_save_16bit_model", "the weights are fp32 throughout"),
    )
