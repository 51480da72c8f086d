"""Memory advice: settings that lower the memory of a job, and the bytes that each of them saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from core.record.context import JobContext
from core.record.machine import bf16_is_fast
from core.record.problems import ProblemsError
from core.record.units import memory_text
from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import ADAFACTOR, adapts, find
from core.settings.optimization.rates import trains_text
from core.settings.presets.files import with_values
from core.settings.presets.levels import GROUPS, USUAL, Level, levels
from core.settings.rules import training_problems
from core.training.memory.plan import MemoryFacts, MemoryPlan, encodes_each_time, facts_of, largest_batch, memory_plan

SHOWN = 3
MIN_SHARE = 0.03  # smallest share of the total that a suggested setting saves
Change = dict[str, Any]  # dotted path -> value


@dataclass(frozen=True)
class Saving:
    """A change of a setting that saves memory.

    path          dotted name of the setting
    bytes         bytes saved for the job
    description   of the change
    also          (setting, value) pairs to change with it, so that the result of the training stays the same
    """

    path: str
    value: Any
    bytes: int
    description: str
    also: tuple[tuple[str, Any], ...] = ()

    def sentence(self) -> str:
        """Return the change and its saving as text."""
        return f"{self.description} saves about {memory_text(self.bytes)}"


def advise(job: TrainJob, facts: MemoryFacts, count: int | None = SHOWN) -> list[Saving]:
    """Return settings that each save at least MIN_SHARE of the job's memory, first those that cost least in speed and quality.
    count: maximum number; None returns all"""
    total = memory_plan(job, facts).total
    existing = {problem.what for problem in training_problems(job)}
    savings: list[Saving] = []
    for title, change in candidates(job, facts):
        alternative = with_values(job, change)
        if any(each.level == "error" and each.what not in existing for each in training_problems(alternative)):
            continue
        saved = total - memory_plan(alternative, scaled_facts(facts, job, alternative)).total
        if saved >= MIN_SHARE * total:
            (path, value), *also = change.items()
            savings.append(Saving(path, value, saved, title, tuple(also)))
        if count is not None and len(savings) == count:
            break
    return savings


def candidates(job: TrainJob, facts: MemoryFacts) -> Iterator[tuple[str, Change]]:
    """Yield (description, change) of the settings that could lower this job's memory, first those that cost least in speed and quality."""
    memory, full_model, cuda = job.memory, job.method.traits.full_size, facts.device.startswith("cuda")
    if encodes_each_time(job) and memory.cache_latents == "off":
        yield "caching latents", {"memory.cache_latents": "auto"}
    if memory.cache_latents == "device":
        yield "keeping latents off the device", {"memory.cache_latents": "memory"}
    if memory.attention in ("plain", "sliced"):
        yield "torch's own attention (SDPA)", {"memory.attention": "sdpa"}
    if memory.mixed_precision in ("no", "auto") and (cuda or bf16_is_fast(facts.device)):
        yield "computing in bf16", {"memory.mixed_precision": "bf16"}
    entry = find(job.optimizer.optimizer_type)
    if full_model and entry is not None and entry.path == ADAFACTOR and not memory.fused_optimizer_groups:
        yield "the fused backward pass", {"memory.fused_backward_pass": True}
    if not memory.gradient_checkpointing:
        yield "gradient checkpointing", {"memory.gradient_checkpointing": True}
    elif memory.checkpoint_blocks != "all":
        yield "checkpointing of all blocks", {"memory.checkpoint_blocks": "all"}
    if cuda and entry is not None and entry.path == "torch.optim.AdamW" and find_spec("bitsandbytes") is not None:
        yield "the 8-bit optimizer AdamW8bit", {"optimizer.optimizer_type": "AdamW8bit"}
    if not full_model and not memory.narrow_unet:
        yield "the U-Net in fp8", {"memory.fp8_base_unet": True}
    batch, steps = job.dataset.train_batch_size, job.schedule.gradient_accumulation_steps
    if batch > 1 and facts.batch > 1 and not memory.fused_backward_pass:
        half = -(-batch // 2)
        title = f"a batch of {half} with twice the gradient accumulation"
        yield title, {"dataset.train_batch_size": half, "schedule.gradient_accumulation_steps": 2 * steps}
    if cuda and job.sharding.active:
        if job.sharding.offload_optimizer_device is None:
            yield "offloading the optimizer state to RAM", {"sharding.offload_optimizer_device": "cpu"}
        if memory.num_processes > 1 and job.sharding.zero_stage < 3:
            yield "ZeRO stage 3", {"sharding.zero_stage": 3}
    if full_model and memory.full_precision == "fp32":
        yield "training in full bf16", {"memory.full_precision": "bf16", "memory.mixed_precision": "bf16"}
    if trains_text(job) and not job.method.traits.new_words:
        path, value = ("method.train_text_encoder", "no") if full_model else ("network.train_text_encoder", False)
        yield "freezing the text encoder", {path: value}
    if job.method.traits.uses_network and job.network.rank > 8:
        yield f"rank {job.network.rank // 2}", {"network.rank": job.network.rank // 2}
    smaller = smaller_resolution(job)
    if smaller is not None:
        yield f"a resolution of {smaller}", {"dataset.resolution": smaller}


def scaled_facts(facts: MemoryFacts, before: TrainJob, after: TrainJob) -> MemoryFacts:
    """Return the facts with sides and batch scaled by the ratio of the settings of `after` to those of `before`."""
    (width, height), batch = largest_batch(before)
    (new_width, new_height), new_batch = largest_batch(after)
    factor = (new_width * new_height / (width * height)) ** 0.5
    first, second = (max(64, int(side * factor) // 8 * 8) for side in facts.sides)
    return replace(facts, sides=(first, second), batch=max(1, facts.batch * new_batch // batch))


def smaller_resolution(job: TrainJob) -> int | None:
    """Return 3/4 of the shorter side of the resolution in pixels, rounded down to a multiple of 64; None if that is 0."""
    value = value_of(job, "dataset.resolution")
    side = min(value) if isinstance(value, (tuple, list)) else value
    smaller = side * 3 // 4 // 64 * 64
    return smaller if smaller >= 64 else None


def out_of_memory_advice(job: TrainJob, context: JobContext) -> str:
    """Return a text of up to SHOWN settings that lower memory, for after the device ran out of memory; "" if none helps."""
    try:
        savings = advise(job, facts_of(job, context.workspace, context.device))
    except Exception:  # memory is short, or the model's file is gone: there is general advice, and a training continues
        return ""
    return "; ".join(saving.sentence() for saving in savings)


# -- the slider


@dataclass(frozen=True)
class LevelPlan:
    """The job's memory at a level of the memory and speed slider. saved: bytes less than at the usual level; negative for more"""

    level: Level
    plan: MemoryPlan
    saved: int


def level_plans(job: TrainJob, facts: MemoryFacts) -> list[LevelPlan]:
    """Return the memory of the job at each level of the memory and speed slider."""
    plans = [(level, memory_plan(with_values(job, level.values), facts)) for level in levels(job, facts.device)]
    usual = next((plan.total for level, plan in plans if level.number == USUAL), memory_plan(job, facts).total)
    return [LevelPlan(level, plan, usual - plan.total) for level, plan in plans]


def switch_savings(job: TrainJob, facts: MemoryFacts) -> dict[str, int]:
    """Return {setting: bytes that turning it on saves in this job} for the settings of `switches` that save memory."""
    savings: dict[str, int] = {}
    for path, (off, on) in switches(job).items():
        try:
            plain, saving = with_values(job, {path: off}), with_values(job, {path: on})
        except ProblemsError:
            continue
        saved = memory_plan(plain, facts).total - memory_plan(saving, facts).total
        if saved > 0:
            savings[path] = saved
    return savings


def switches(job: TrainJob) -> dict[str, tuple[Any, Any]]:
    """Return {setting: (value that saves nothing, value that saves memory)} of the memory group, for this job."""
    choices: dict[str, tuple[Any, Any]] = {
        "memory.gradient_checkpointing": (False, True),
        "memory.mixed_precision": ("no", "bf16"),
    }
    if job.method.traits.full_size:
        entry = find(job.optimizer.optimizer_type)
        choices["memory.full_precision"] = ("fp32", "bf16")
        if entry is not None and entry.path == ADAFACTOR:
            choices["memory.fused_backward_pass"] = (False, True)
        elif not adapts(job.optimizer.optimizer_type):
            choices["memory.fused_optimizer_groups"] = (None, GROUPS)
    else:
        choices |= {f"memory.{name}": (False, True) for name in ("fp8_base", "fp8_base_unet")}
    if encodes_each_time(job):
        choices["memory.vae_precision"] = ("fp32", "bf16")
        choices["memory.cache_latents"] = ("off", "auto")
    if job.memory.attention != "auto":
        choices["memory.attention"] = ("plain", "auto")
    return choices
