"""Training with DeepSpeed: trained weights are partitioned over processes (ZeRO stages 1 to 3).

DeepSpeed wraps a module whose forward pass calls a function. It updates the weights through the run's optimizer, which gets
the partition of the process. The first process alone saves and samples; where it needs the partitions of the others, it
signals them (`follow`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from core.formats.tensors.pickles import load_state_file
from core.formats.tensors.writer import save_pickle
from core.methods.ema import WeightAverage
from core.optimization.clipping import NonFiniteGuard
from core.record import atomic
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path
from core.settings.sharding import ShardingSettings
from core.training.loop.stepper import DEEPSPEED_FIX, Stepper
from core.training.memory.shares import DISK_BUFFERS, DISK_GROUP, LARGEST_BUCKET
from core.training.sharding.compile_lock import wait_for_compilers
from core.training.sharding.shards import Shards, SharedWeights

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from core.methods import Method, Use
    from core.record.context import JobContext
    from core.settings.job import TrainJob

T = TypeVar("T")
FIRST_SCALE, GOOD_STEPS = 2.0**16, 2000  # of torch.amp.GradScaler


class WrappedWeights(nn.Module):
    """The module that DeepSpeed wraps. Its forward pass calls the function it is given."""

    def __init__(self, weights: Sequence[nn.Parameter], modules: Sequence[nn.Module]):
        super().__init__()
        self.weights, self.parts = nn.ParameterList(weights), nn.ModuleList(modules)

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """Return the result of `work`, a forward pass of the model."""
        return work()


class LossScale:
    """Scale of fp16 losses (`factor`): halved when a gradient overflows, doubled after GOOD_STEPS finite steps in a row."""

    def __init__(self) -> None:
        self.factor, self.good = FIRST_SCALE, 0

    def update(self, overflow: bool) -> None:
        """Adjust the scale after a step. overflow: whether its gradient was infinite or NaN"""
        self.good = 0 if overflow else self.good + 1
        if overflow:
            self.factor /= 2
        elif self.good == GOOD_STEPS:
            self.factor, self.good = self.factor * 2, 0


class ShardedStepper(Stepper):
    """Stepper of DeepSpeed. All processes call its methods together, except `weights_for`, `write_parts` and `tasks_done`: the first
    process calls these, and the others take part through `follow`.

    modules            of the model, whose frozen weights stage 3 partitions too
    compute            dtype of the weights of a full model
    scaled             scale the losses (fp16)
    counts_overflows   see `Stepper`
    """

    def __init__(
        self,
        job: TrainJob,
        context: JobContext,
        method: Method,
        modules: Sequence[nn.Module],
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        guard: NonFiniteGuard,
        *,
        compute: torch.dtype,
        scaled: bool,
        counts_overflows: bool = False,
    ):
        processes, max_grad_norm = context.processes, job.optimizer.max_grad_norm
        wait_for_compilers(job.sharding, context)
        optimizer = cpu_adam_if_needed(optimizer, job.sharding, context.device)
        super().__init__(
            method,
            parameters,
            optimizer,
            guard,
            processes,
            scaler=None,
            fused=None,
            max_grad_norm=max_grad_norm,
            counts_overflows=counts_overflows,
        )
        self._settings, self._full_model, self._device = job.sharding, job.method.traits.full_size, context.device
        self._scale = LossScale() if scaled else None
        shares_weights = self._settings.shares_weights
        if shares_weights:
            method.register_in_modules()
        fp32 = {weight: weight.data for weight in parameters if weight.dtype != compute} if self._full_model else {}
        if self._full_model:
            _cast(modules, compute)
        self._half_precision = bool(fp32)
        config = config_of(job, processes.count, parameters, compute)
        module = WrappedWeights([] if shares_weights else parameters, modules if shares_weights else [])
        self._engine = make_engine(config, module, optimizer, context.device, early=self._settings.zero3_init_flag)
        with ExitStack() as stack:
            stack.enter_context(process_group(context.device))  # stage 3 needs it in each pass
            stack.callback(self._engine.destroy)
            self._zero = self._engine.optimizer
            vars(optimizer)["step"] = self._guarded_step(optimizer.step)
            self._shards: Shards = (SharedWeights if shares_weights else Shards)(self._zero, optimizer)
            self._set_masters(fp32)
            for part in () if shares_weights else modules:  # frozen weights
                part.to(context.device)
            if job.method.ema:
                masters = {str(number): master for number, master in enumerate(self._shards.masters)}
                self.average = WeightAverage(masters, job.method)
            self._process_group = stack.pop_all()

    def _set_masters(self, fp32: Mapping[nn.Parameter, Tensor]) -> None:
        """Set the fp32 master weights to the model file's weights, instead of their 16-bit copy."""
        from deepspeed.utils import safe_set_full_fp32_param

        for weight, values in fp32.items():
            safe_set_full_fp32_param(weight, values.float())

    def _guarded_step(self, step: Callable[[], Any]) -> Callable[[], None]:
        """Return the optimizer step as a function that does nothing after a non-finite loss or gradient."""

        def unless_non_finite() -> None:
            if not self._guard.tripped():
                step()

        return unless_non_finite

    # -- a step

    def placeholder_items(self, items: Sequence[T]) -> Sequence[T]:
        """Return the first image of the batch: a process without images must compute one, as all take part in each collective operation."""
        return items[:1]

    def backward(self, losses_of: Callable[[], Tensor], images: float, last: bool) -> Tensor:
        """Compute the losses [B] of a micro-batch and accumulate their gradient; return the losses. Arguments: see `Stepper`."""
        self._engine.set_gradient_accumulation_boundary(last)
        if self._scale is not None:
            self._zero.override_loss_scale(self._scale.factor)
        losses_B: Tensor = self._engine(losses_of)
        # DeepSpeed averages over processes; each loss is already a summand of the mean.
        self._engine.backward(losses_B.sum() / images * self._processes.count, scale_wrt_gas=False)
        return losses_B.detach()

    def step(self, loss: Tensor) -> Tensor:
        """Update the weights by DeepSpeed, which clips the gradients and checks them for non-finite values; return the gradient norm,
        0-d."""
        self._guard.watch(loss)
        self._engine.step()
        norm = torch.as_tensor(self._zero._global_grad_norm, dtype=torch.float32, device=self._device)
        if self._scale is None:
            self._guard.watch(norm)
        elif not self._guard.tripped():
            overflow = bool(self._zero.overflow)
            self._scale.update(overflow)
            self.overflow_steps += overflow and self._counts_overflows
        return norm

    def weight_norm(self) -> Tensor:
        """Return the L2 norm of all trained weights of all processes, 0-d on the device."""
        squares = [master.detach().float().square().sum().to(self._device) for master in self._shards.each()]
        total = torch.stack(squares).sum()
        self._processes.sum_tensors([total])
        return total.sqrt()

    # -- training state

    def state_dict(self) -> dict[str, Any]:
        """Return the part of a training state that all processes share, {"sharded": `_partitioning()`, "paused": `overflow_steps`};
        `write_parts` writes the partitions."""
        return {"sharded": self._partitioning(), "paused": self.overflow_steps}

    def _partitioning(self) -> dict[str, Any]:
        """Return {"stage": ZeRO stage, "processes": their number, "optimizer": class name}, which must be equal for a resumed run."""
        kind = type(self.optimizer).__name__
        return {"stage": self._settings.zero_stage, "processes": self._processes.count, "optimizer": kind}

    def write_parts(self, folder: Path) -> None:
        """Make each process write its partition into the folder of the training state."""
        self._processes.broadcast(("write", str(folder)))
        self._write_partition(folder)

    def _write_partition(self, folder: Path) -> None:
        """Write this process's partition into the folder of the training state. The first process raises OSError if any process failed."""
        failed: OSError | None = None
        path = folder / self._partition_file()
        try:
            scale = vars(self._scale) if self._scale is not None else None
            average = self.average.state_dict() if self.average is not None else {}
            save_pickle({"parts": self._shards.state_dict(), "own": {"scale": scale, "average": average}}, path)
            atomic.sync_file(path)
        except OSError as error:
            failed = error
        failures = [
            each for each in self._processes.gather((failed.errno, failed.strerror) if failed else None) if each
        ]
        if failures and self._processes.first:
            raise OSError(*failures[0])

    def _partition_file(self) -> str:
        """Return the name of the file with this process's partition."""
        return f"part-{self._processes.rank + 1:05d}-of-{self._processes.count:05d}.pt"

    def load(self, content: Mapping[str, Any], folder: Path) -> None:
        """Load a training state with this process's partition. Raises ProblemsError if it does not fit."""
        saved, present = content.get("sharded"), self._partitioning()
        if saved is None:
            what = "This training state was saved without DeepSpeed"
            raise ProblemsError.one(what, str(folder), DEEPSPEED_FIX, "state.without-deepspeed")
        if saved != present:
            other = ", ".join(
                f"{name} {saved.get(name)} (now {present[name]})"
                for name in present
                if saved.get(name) != present[name]
            )
            fix = "resume with the same GPUs and ZeRO stage, or start from the final checkpoint"
            what = f"This training state was partitioned differently: {other}"
            raise ProblemsError.one(what, str(folder), fix, code="state.other-partitions")
        part = load_state_file(folder / self._partition_file())
        try:
            self._shards.load(part["parts"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "use the settings of the run that saved it"
            what = f"The partitions of this training state do not fit this run: {error}"
            raise ProblemsError.one(what, str(folder), fix, code="state.bad-partition") from None
        if self._scale is not None and part["own"]["scale"] is not None:
            vars(self._scale).update(part["own"]["scale"])
        if self.average is not None:
            self.average.load_state_dict(part["own"]["average"])
        self.overflow_steps = content.get("paused", 0)
        self._loaded = True

    _loaded = False

    def ready(self) -> None:
        """Copy loaded master weights to the model's weights, in all processes together."""
        if self._loaded:
            self._shards.push()

    # -- between steps

    @contextmanager
    def weights_for(self, use: Use) -> Iterator[None]:
        """A context in which the first process has all weights for this use; the others take part through `follow`."""
        self._processes.broadcast(("gather", use))
        with self._gathered_weights(use):
            try:
                yield
            finally:
                self._processes.broadcast(("release", ""))

    def tasks_done(self) -> None:
        """Tell the other processes to leave `follow`."""
        self._processes.broadcast(("done", ""))

    def follow(self) -> None:
        """Do what the first process asks for (write partitions, gather weights) until its `tasks_done`."""
        nothing: Any = None
        while True:
            command, argument = self._processes.broadcast(nothing)
            if command == "done":
                return
            if command == "write":
                self._write_partition(Path(argument))
            elif command == "gather":
                with self._gathered_weights(argument):
                    self._processes.broadcast(nothing)  # wait for "release"

    @contextmanager
    def _gathered_weights(self, use: Use) -> Iterator[None]:
        """A context in which each process has all weights for this use; weights for files in fp32 unless the settings save 16 bits."""
        with ExitStack() as stack:
            if self.average is not None and self.average.replaces(use):
                stack.enter_context(self._averaged_weights(self.average))
            if self._settings.shares_weights:
                stack.enter_context(all_weights(self._engine))
            if (
                use == "files"
                and self._half_precision
                and not (self._settings.shares_weights and self._settings.zero3_save_16bit_model)
            ):
                stack.enter_context(self._fp32_weights())
            yield

    @contextmanager
    def _averaged_weights(self, average: WeightAverage) -> Iterator[None]:
        """A context in which the EMA replaces the master weights and the model's weights."""
        try:
            with average.in_place():
                self._shards.push()
                yield
        finally:
            self._shards.push()

    @contextmanager
    def _fp32_weights(self) -> Iterator[None]:
        """A context in which, on the first process, fp32 master weights in RAM replace the 16-bit weights."""
        from deepspeed.utils import safe_get_full_fp32_param

        replaced = []
        for weight in self._parameters:
            values = safe_get_full_fp32_param(weight)
            if self._processes.first:
                replaced.append((weight, weight.data))
                weight.data = values.to("cpu", copy=True)
        try:
            yield
        finally:
            for weight, data in replaced:
                weight.data = data

    def release(self) -> None:
        """End DeepSpeed's engine and leave its process group context."""
        self._process_group.close()


# -- DeepSpeed


def config_of(
    job: TrainJob, processes: int, parameters: Sequence[nn.Parameter], compute: torch.dtype
) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a job.

    processes   number of processes
    parameters  trained weights
    compute     dtype of the weights of a full model
    """
    settings, accumulated = job.sharding, job.schedule.gradient_accumulation_steps
    bucket = min(LARGEST_BUCKET, max(2, sum(weight.numel() for weight in parameters) // 2 * 2))
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "memory_efficient_linear": False,  # it replaces torch's linear for the whole process
        "stage3_max_reuse_distance": 0,  # no layer is used twice in a row, and looking ahead takes longer than the pass
    }
    for name in ("optimizer", "param"):
        device, folder = getattr(settings, f"offload_{name}_device"), getattr(settings, f"offload_{name}_nvme_path")
        if device is not None:
            zero[f"offload_{name}"] = {"device": device, "pin_memory": torch.cuda.is_available()}
        if device == "nvme":
            zero[f"offload_{name}"] |= {"nvme_path": str(resolve_path(folder)), "buffer_count": DISK_BUFFERS}
            zero["sub_group_size"] = DISK_GROUP
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # without effect: `backward` divides the losses
        "gradient_accumulation_steps": accumulated,
        "train_batch_size": accumulated * processes,
        "gradient_clipping": job.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if job.method.traits.full_size and compute == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if job.method.traits.full_size and compute == torch.float16:
        # LossScale scales the losses.
        fp16_masters = settings.fp16_master_weights_and_gradients
        config["fp16"] = {"enabled": True, "loss_scale": 1.0, "fp16_master_weights_and_grads": fp16_masters}
    return config


def cpu_adam_if_needed(optimizer: Optimizer, settings: ShardingSettings, device: str) -> Optimizer:
    """Return DeepSpeed's CPU Adam if the optimizer state is on disk or master weights are fp16, else `optimizer`. Raises ProblemsError if
    CPU Adam cannot be compiled."""
    if settings.offload_optimizer_device != "nvme" and not settings.fp16_master_weights_and_gradients:
        return optimizer
    with process_group(device):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        groups = [
            {name: group[name] for name in ("params", "name", "lr", "initial_lr", "betas", "eps", "weight_decay")}
            for group in optimizer.param_groups
        ]
        try:
            adam: Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=isinstance(optimizer, torch.optim.AdamW))
        except Exception as error:  # the constructor compiles it
            what = (
                f"DeepSpeed's CPU Adam could not be compiled: {str(error).splitlines()[0] if str(error) else error!r}"
            )
            fix = "install a C++ compiler and Python's headers, or offload the optimizer state to RAM (cpu)"
            where = "sharding.offload_optimizer_device"
            raise ProblemsError.one(what, where, fix, code="deepspeed.adam-not-compiled") from error
    return adam


def make_engine(
    config: dict[str, Any], module: WrappedWeights, optimizer: Optimizer, device: str, *, early: bool
) -> Any:
    """Return DeepSpeed's engine for a module and an optimizer. early: partition the weights before they are moved to the GPU"""
    with process_group(device):
        import deepspeed

        # gloo is enough on one machine; DeepSpeed would first compile its communication ops, for minutes.
        deepspeed.ops.__compatible_ops__ = {}
        if early:
            deepspeed.zero.Init(module=module, config_dict_or_path=config)
        return deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A context in which DeepSpeed uses this device. Creates a process group of this process alone if none exists; the group remains."""
    import torch.distributed as dist

    cuda = device.startswith("cuda")
    index = device.partition(":")[2] or "0"
    variables = {"DS_ACCELERATOR": "cuda" if cuda else "cpu", "LOCAL_RANK": index if cuda else "0"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not dist.is_initialized():  # it stays: DeepSpeed remembers it for as long as the process lives
        dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def all_weights(engine: Any) -> Iterator[None]:
    """A context in which each process has all weights of stage 3, so that its forward passes need no other process."""
    from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

    with unwrap_model_for_generation(engine):
        yield


def _cast(modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
    """Convert the weights of the modules to a dtype, in place."""
    for module in modules:
        for weight in module.parameters():
            weight.data = weight.data.to(dtype)
