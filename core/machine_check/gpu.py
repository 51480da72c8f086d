"""Items for CUDA GPUs: no step waits for the GPU, and SD 1.5 (random weights) trained at full size with each memory option."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from typing import Any

from core.machine_check.item import FAILED, OK, SLOWER, CheckContext, Finding
from core.machine_check.random_model import make_model
from core.machine_check.trainings import BF16, check_workspace, memory, ready_run, starter, take_steps, train
from core.record import machine
from core.record.lazy_torch import torch
from core.record.machine import RUNTIME_BYTES
from core.record.memory import is_out_of_memory
from core.record.units import memory_text
from core.settings.check import build
from core.settings.job import TrainJob

SIZE = 512
STEPS = 6
WARM = 4  # steps before: the first ones allocate optimizer state, and may wait for that
PROFILED_STEPS = 2  # a step has tens of thousands of events, which take seconds to sort
MARK = "atelier step"
# What the host calls to wait for the GPU, in CUDA and ROCm.
WAITS = {
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    *("hipStreamSynchronize", "hipDeviceSynchronize", "hipEventSynchronize", "hipMemcpyWithStream", "hipMemcpy"),
}
SYNC_WARNING = "called a synchronizing"  # torch's message in the mode that warns of each
FORECAST_MARGIN = 0.25  # relative to the forecast: a larger difference is reported

# name: (title, settings it changes); each is measured against `plain`
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("LoRA in fp32", {}),
    "bf16": ("bf16 instead of fp32", BF16),
    "checkpointing": ("gradient checkpointing", memory(gradient_checkpointing=True)),
    "fp8": ("base model in fp8", memory(fp8_base=True)),
    "adamw8bit": ("8-bit AdamW", {"optimizer": {"optimizer_type": "AdamW8bit"}}),
    "attention_plain": ("math attention instead of SDPA", memory(attention="plain")),
    "no_text": ("text encoder frozen", {"network": {"train_text_encoder": False}}),
    "all": (
        "bf16, checkpointing and fp8 together",
        memory(gradient_checkpointing=True, fp8_base=True, mixed_precision="bf16"),
    ),
}


# -- no step waits


def no_waits(context: CheckContext) -> Finding:
    """Check that the host does not wait for the GPU in steps after the first ones, by torch's profiler and its synchronization warnings."""
    profiler = torch.profiler
    with ready_run(starter(BF16), context) as run:
        take_steps(run, WARM)
        machine.synchronize(context.device)
        with waiting_lines() as lines:
            take_steps(run, 1)
        machine.synchronize(context.device)
        with profiler.profile(activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(PROFILED_STEPS):
                with profiler.record_function(MARK):
                    take_steps(run, 1)
        waits = waits_within(profile.events() or [])
    facts = {"waits": dict(waits), "places": lines, "steps": PROFILED_STEPS}
    if waits or lines:
        reason = f"the host waits for the GPU during a step: {', '.join(waits) or lines[0]}"
        return Finding(SLOWER, "", reason, "report this: steps take longer than necessary", facts)
    return Finding(OK, f"{PROFILED_STEPS} steps under the profiler without a wait", facts=facts)


def waits_within(events: Iterable[Any]) -> Counter[str]:
    """Count the calls of each function of WAITS within the ranges named MARK. `events`: of torch's profiler."""
    all_events = list(events)
    ranges = [(each.time_range.start, each.time_range.end) for each in all_events if each.name == MARK]
    return Counter(
        each.name
        for each in all_events
        if each.name in WAITS and any(start <= each.time_range.start <= end for start, end in ranges)
    )


@contextmanager
def waiting_lines() -> Iterator[list[str]]:
    """Context that yields a list of the code lines at which torch waited for the GPU: "inner:12 < outer:34", filled while it is open."""
    lines: list[str] = []

    def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        """Add the code lines of a synchronization warning; ignores other warnings."""
        if SYNC_WARNING not in str(message):  # torch also warns once that this mode is a prototype
            return
        ours = [line for line in traceback.extract_stack() if "/core/" in line.filename.replace("\\", "/")]
        outside = [line for line in ours if "/machine_check/" not in line.filename.replace("\\", "/")]
        lines.append(" < ".join(f"{line.name}:{line.lineno}" for line in reversed(outside[-4:])) or f"line {lineno}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode("default")


# -- SD 1.5 at full size


def full_size_settings(context: CheckContext, change: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a rank 16 SD 1.5 LoRA at 512 px, batch size 1, in fp32 without memory savings, changed by `change`."""
    job = {
        "model": {"base_model": str(make_model(context.folder))},
        "dataset": {"resolution": SIZE, "train_batch_size": 1},
        "network": {"rank": 16, "alpha": 16.0, "train_text_encoder": True},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"max_train_steps": STEPS},
    }
    return starter(job, change)


def real_model(context: CheckContext) -> Finding:
    """Write the SD 1.5 model with random weights (2.1 GB) for the next items, if the disk has space."""
    free = machine.free_disk(context.folder)
    if free < 4_000_000_000:
        fix = "free 4 GB temporarily, or start with --outputs DIR on another disk"
        return Finding(FAILED, "", "the disk has no space for this check's model", fix)
    model = make_model(context.folder)
    size = sum(each.stat().st_size for each in model.rglob("*") if each.is_file())
    return Finding(OK, f"SD 1.5's architecture with random weights, {size / 1e9:.1f} GB", facts={"bytes": size})


def real_training(option: str, context: CheckContext) -> Finding:
    """Train with `option` (a key of OPTIONS); compare time and memory with the "plain" training, and memory with the forecast."""
    values = full_size_settings(context, OPTIONS[option][1])
    forecast = forecast_of(context, values)
    try:
        trained = train(values, context, warm_up=3)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _too_large(context, forecast)
    facts = asdict(trained) | {"forecast_bytes": forecast}
    if not all(map(isfinite, trained.losses)):
        fix = "avoid this option here, and report this"
        return Finding(FAILED, trained.text(), "losses are not finite", fix, facts)
    summary = f"{trained.text()} of tensors, {memory_text(trained.reserved_bytes)} in all"
    baseline = context.earlier.get("real_plain", {})
    if "reserved_bytes" in baseline:
        facts["saves_bytes"] = baseline["reserved_bytes"] - trained.reserved_bytes
        facts["forecast_saves_bytes"] = baseline["forecast_bytes"] - forecast
        facts["time_ratio"] = trained.seconds_per_step / baseline["seconds_per_step"]
        saved = facts["saves_bytes"]
        saving = f"saves {memory_text(saved)}" if saved >= 0 else f"takes {memory_text(-saved)} more"
        summary += f"; {saving}, {facts['time_ratio']:.2f} of the time"
    # The forecast includes the driver's context, which torch's allocator does not count.
    excess = (trained.reserved_bytes + RUNTIME_BYTES["cuda"]) / forecast - 1
    facts["forecast_off"] = excess
    if excess > FORECAST_MARGIN:
        reason = f"it takes {excess:.0%} more than the forecast of {memory_text(forecast)}"
        fix = "report this; leave a margin when a forecast is close to the GPU's memory"
        return Finding(SLOWER, summary, reason, fix, facts)
    return Finding(OK, f"{summary} (forecast {memory_text(forecast)})", facts=facts)


def _too_large(context: CheckContext, forecast: int) -> Finding:
    """Return the finding for an option that does not fit into VRAM: limited, as a small GPU is not a failure."""
    vram = machine.memory(context.device)[1]
    facts = {"forecast_bytes": forecast, "device_bytes": vram}
    reason = f"it does not fit: {memory_text(vram)} VRAM, forecast {memory_text(forecast)}"
    fix = "train with bf16, gradient checkpointing or fp8, which are measured too"
    return Finding(SLOWER, "", reason, fix, facts)


def forecast_of(context: CheckContext, values: dict[str, Any]) -> int:
    """Return the total memory, in bytes, that the memory plan predicts for a training with the settings `values`."""
    from core.training.memory.plan import facts_of, memory_plan

    job = build(TrainJob, values)
    return memory_plan(job, facts_of(job, check_workspace(context), context.device)).total
