"""Trainings of twelve steps on the starter, in each precision and memory mode, compared with recorded losses.

`python -m workshop.recorded_losses` records the losses, on a CPU in fp32 on one thread. They change only when the computation of a
step changes; the changelog then explains it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import reduce
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.attention import memory_problems
from core.machine_check.item import OK, CheckContext, Finding, absent
from core.record import machine
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import SilentJournal
from core.record.lazy_torch import torch
from core.record.memory import PeakMemory, free_memory
from core.record.problems import errors
from core.record.run_folder import RunFolder
from core.record.units import memory_text
from core.record.workspace import PROJECT, STARTER, Workspace
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets.files import dump

if TYPE_CHECKING:
    from core.training.loop.run import Run

STEPS = 12
WARM_UP = 2  # steps that are not timed: the first ones choose kernels and allocate optimizer state
RECORDED = Path(__file__).with_name("recorded.json")
SLOWER_BY = 1.25  # relative to a step's time: less can be caused by other programs
# Largest relative difference of a step's loss. Measured on a CPU against the recorded ones, over the twelve steps:
#   fp32   5e-5 with other kernels (no oneDNN) or two threads
#   16     6e-3 in bf16 and fp16, 1.5e-2 if bf16 weights train
#   fp8    2.5e-2
#   apart  4.4e-3 and 1.2e-2 with a fused backward pass, which clips each group or tensor by itself
# Each bound is about three times that, more for fp32: a GPU sums in another order, and Adam makes a full step of a gradient
# near 0. They must detect a training that changes nothing (off by 0.1) and 1.1 times the learning rate (off by 0.013).
TOLERANCE = {"fp32": 4e-3, "tf32": 1e-2, "16": 4e-2, "fp8": 6e-2, "apart": 6e-2}
ADAFACTOR = {
    "optimizer_type": "Adafactor",
    "optimizer_args": {"scale_parameter": False, "relative_step": False, "warmup_init": False},
}
TUNE = {"kind": "fine_tune"}
SERIES: dict[str, dict[str, Any]] = {
    "lora": {},
    "fine_tune": {"method": TUNE, "optimizer": {"learning_rate": 6e-5}},
    "adafactor": {"method": TUNE, "optimizer": {**ADAFACTOR, "learning_rate": 1e-4}},
}


@dataclass(frozen=True)
class Case:
    """A training mode to check.

    settings              changes to the series' settings
    tolerance             key of TOLERANCE
    series                key of SERIES, whose recorded losses the training must match
    baseline              name of the case whose step time is compared, "" for none
    needs, gpu, seconds   see `Item`
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: str = "fp32"
    series: str = "lora"
    baseline: str = ""
    needs: tuple[str, ...] = ()
    gpu: bool = False
    seconds: float = 60.0

    def values(self) -> dict[str, Any]:
        """Return the settings of the training."""
        return starter(SERIES[self.series], self.settings)


def memory(**values: Any) -> dict[str, Any]:
    """Return {"memory": values}, to be merged into a job's settings."""
    return {"memory": values}


BF16, FULL_BF16 = memory(mixed_precision="bf16"), memory(mixed_precision="bf16", full_precision="bf16")
PRECISIONS = {
    "train_fp32": Case("LoRA in fp32"),
    "train_bf16": Case("LoRA in bf16", BF16, "16", baseline="train_fp32"),
    "train_fp16": Case("LoRA in fp16", memory(mixed_precision="fp16"), "16", baseline="train_fp32"),
    "train_tf32": Case("LoRA in TF32", memory(allow_tf32=True), "tf32", needs=("tf32",), gpu=True),
    "train_fp8": Case(
        "LoRA on a base model in fp8", memory(mixed_precision="auto", fp8_base=True), "fp8", needs=("fp8",)
    ),
    "tune_fp32": Case("Fine-tune in fp32", series="fine_tune"),
    "tune_bf16": Case("Fine-tune in full bf16", FULL_BF16, "16", "fine_tune", baseline="tune_fp32"),
}
MODES = {
    "checkpointing": Case("Gradient checkpointing", memory(gradient_checkpointing=True)),
    "attention_plain": Case("Attention: math", memory(attention="plain")),
    "attention_sliced": Case("Attention: sliced", memory(attention="sliced")),
    "attention_xformers": Case("Attention: xFormers", memory(attention="xformers"), needs=("xformers",)),
    "latents_memory": Case("Latents in RAM", memory(cache_latents="memory")),
    "latents_device": Case("Latents on the device", memory(cache_latents="device")),
    "latents_off": Case("Latents not cached", memory(cache_latents="off")),
    "adamw8bit": Case("8-bit AdamW", {"optimizer": {"optimizer_type": "AdamW8bit"}}, needs=("bitsandbytes",)),
    "fused_groups": Case("Fused backward pass in groups", memory(fused_optimizer_groups=4), "apart", "fine_tune"),
    "fused_backward": Case("Fused backward pass, AdaFactor", memory(fused_backward_pass=True), "apart", "adafactor"),
}
COMPILED = {
    "compiled": Case(
        "torch.compile",
        memory(torch_compile=True, mixed_precision="bf16"),
        "16",
        needs=("compiler",),
        gpu=True,
        seconds=90.0,
    ),
}
CASES = PRECISIONS | MODES | COMPILED


def starter(*changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a small training, merged with `changes`: the starter's images at 64 px, batch size 2, in fp32."""
    job = {
        "model": {"base_model": str(STARTER)},
        "dataset": {"folder": str(STARTER / "images"), "resolution": 64, "train_batch_size": 2},
        "network": {"rank": 8, "alpha": 8.0},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"max_train_steps": STEPS, "seed": 7},
        "memory": {"mixed_precision": "no"},
        "saving": {"output_name": "check", "save_every_minutes": None},
        "logging": {"log_with": "none"},
    }
    return reduce(merge, changes, job)


@dataclass(frozen=True)
class Trained:
    """Result of a short training.

    losses             one per step
    seconds_per_step   without the warm-up steps
    peak_bytes         peak of tensors on the GPU; on other devices growth of the process's resident memory
    reserved_bytes     peak of GPU memory reserved by torch's allocator; 0 on other devices
    """

    losses: list[float]
    seconds_per_step: float
    peak_bytes: int
    reserved_bytes: int

    def text(self) -> str:
        """Return the step time and the peak memory as text."""
        return f"{1000 * self.seconds_per_step:.0f} ms per step, {memory_text(self.peak_bytes)}"


def check_workspace(context: CheckContext) -> Workspace:
    """Return a workspace with runs and caches in the check's temporary folder, and the project's models and presets."""
    workspace = Workspace(context.folder / "outputs", PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True, exist_ok=True)
    return workspace


def job_context(context: CheckContext, job: TrainJob) -> JobContext:
    """Return the context of a training in a new run folder of the check's workspace, without journal and commands."""
    workspace = check_workspace(context)
    folder = RunFolder.create(workspace.runs, "check", dump(job))
    return JobContext(workspace, folder, SilentJournal(), NoCommands(), context.device)


@contextmanager
def ready_run(values: dict[str, Any], context: CheckContext) -> Iterator[Run]:
    """Context with the run of a training, images and captions encoded, ready for its first step; released at the end.

    Raises ProblemsError.
    """
    from core.training.building.setup import build_training

    job = build(TrainJob, values)
    training = build_training(job, job_context(context, job), at_once=True)  # its steps and their memory are measured
    try:
        training.run.stepper.ready()
        yield training.run
    finally:
        training.release()


def take_steps(run: Run, count: int) -> None:
    """Take `count` optimizer steps as a training does, without saving and reporting."""
    from core.training.loop.update import optimizer_update

    for _ in range(count):
        optimizer_update(run)
        run.state.step += 1


def train(values: dict[str, Any], context: CheckContext, warm_up: int = WARM_UP) -> Trained:
    """Train with the settings `values` and return losses, time and memory. Raises ProblemsError, also for a loss of NaN or infinity.
    warm_up: number of steps at the start that are not timed"""
    free_memory()
    before = machine.memory("cpu")[0]
    with PeakMemory(context.device) as peak, ready_run(values, context) as run:
        take_steps(run, warm_up)
        machine.synchronize(context.device)
        begun = time.perf_counter()
        take_steps(run, run.total - warm_up)
        machine.synchronize(context.device)
        seconds = (time.perf_counter() - begun) / (run.total - warm_up)
        read = run.reports.losses.read()
        assert read is not None, "steps were taken"
        if read.end is not None:
            raise read.end
    if context.cuda:
        return Trained(read.losses, seconds, torch.cuda.max_memory_allocated(context.device), peak.bytes)
    return Trained(read.losses, seconds, max(0, peak.bytes - before), 0)


def train_case(name: str, context: CheckContext) -> Finding:
    """Train the case `name`; compare its losses with the recorded ones and its step time with that of the case `baseline`."""
    case = CASES[name]
    job = build(TrainJob, case.values())
    if unusable := errors(memory_problems(job.memory, context.device)):
        return absent(unusable[0].what, unusable[0].fix)
    trained = train(case.values(), context)
    deviation = difference(trained.losses, recorded()["losses"][case.series])
    allowed = TOLERANCE[case.tolerance]
    facts = asdict(trained) | {"difference": deviation, "tolerance": allowed}
    finding = Finding(OK, f"{trained.text()}, losses within {deviation:.1e} of the recorded ones", facts=facts)
    if not deviation <= allowed:
        reason = f"losses differ from the recorded ones by {deviation:.1e}, more than the {allowed:.0e} that rounding explains"
        return finding.failed(reason, "avoid this mode here, and report this")
    compared = context.earlier.get(case.baseline, {}).get("seconds_per_step")
    if compared and trained.seconds_per_step > SLOWER_BY * compared:
        reason = f"a step takes {trained.seconds_per_step / compared:.1f} times as long as in fp32"
        return finding.limited(reason, "leave mixed precision on auto")
    return finding


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of a step's loss; infinity if a step is missing or a loss is not finite."""
    if len(losses) != len(expected) or not all(map(isfinite, losses)):
        return inf
    return max(abs(loss - target) / abs(target) for loss, target in zip(losses, expected, strict=True))


def recorded() -> dict[str, Any]:
    """Return the shipped recorded.json: {"losses": {series: loss of each step}, "sample": `tones` of the sample image}."""
    return json.loads(RECORDED.read_text("utf-8"))
