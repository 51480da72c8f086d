"""Disk forecast of a training, and the warning that its files do not fit. Samples, masks, control images and logs are not counted."""

from core.dataset.buckets.plan import Plan
from core.dataset.caches.latents import LatentCache
from core.dataset.caches.store import LATENTS
from core.dataset.report import Report
from core.families import family
from core.families.locate import model_path
from core.formats.hashes import HashMemo
from core.record import machine
from core.record.problems import Problem, ProblemsError
from core.record.space import RESERVE
from core.record.units import count, size_text
from core.record.workspace import Workspace, display_path
from core.settings.base import every
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.optimization.rates import trains_text
from core.settings.rules.dataset import random_augmentations
from core.settings.saving import SavingSettings
from core.training.loop.validation import unaugmented
from core.training.memory.plan import MemoryFacts, facts_of, optimizer_bytes
from core.training.memory.shares import FP32
from core.training.saving.checkpoints import epochs_between_saves


def disk_problems(job: TrainJob, workspace: Workspace, report: Report, written: int = 0) -> list[Problem]:
    """Return the warning that a run's files need more than the free space less the reserve; else []. A disk without the reserve, a
    missing model and an empty dataset are reported by other checks.
    written: bytes of the files that the run, which is resumed, has already"""
    free = machine.free_disk(workspace.outputs)
    planned, files = disk_plan(job, workspace, report) if free >= RESERVE else (0, "")
    needed = planned - written
    if needed + RESERVE <= max(free, RESERVE):
        return []
    more = " more" if written else ""
    needs = f"needs up to {size_text(needed)}{more} on the disk ({files}) and a reserve of {size_text(RESERVE)}"
    fix = "free some space, keep fewer files (saving.save_last_n, saving.save_last_n_states), or start with --outputs on another disk"
    what = f"The training {needs}, but only {size_text(free)} are free"
    return [Problem(what, display_path(workspace.outputs), fix, "warning", code="disk.space")]


def disk_plan(job: TrainJob, workspace: Workspace, report: Report) -> tuple[int, str]:
    """Return (bytes, description) of the most files that a new run has at once; (0, "") for a missing or unknown model and no images."""
    if not report.total_steps:
        return 0, ""
    try:
        facts, saving, spec = facts_of(job, workspace, "cpu"), job.saving, spec_of(job)
        trained = sum(spec.trained_numbers(job, facts.family, facts.parts).values())
        caches = _cache_bytes(job, workspace, facts, report)
    except (ProblemsError, OSError):
        return 0, ""
    saved = sum(part.numbers for part in facts.parts.values()) if spec.saves == "model" else trained
    checkpoint = saved * (FP32 if saving.save_precision == "fp32" else 2)
    item = FP32 if job.memory.full_precision == "fp32" else 2
    per_weight = item + FP32 * job.method.ema + item * (job.memory.kahan_summation and item < FP32)
    state = trained * per_weight + optimizer_bytes(job, facts, trained)
    plan = Plan(report.placed, job, 0, report.total_steps)
    written, remaining = checkpoint_counts(saving, plan)
    states = state_count(saving, plan, written)
    files = [f"{count(remaining + 1, 'checkpoint')} of {size_text(checkpoint)}"]
    files += [f"{count(states, 'training state')} of {size_text(state)}"] if states else []
    files += [f"{size_text(caches)} of caches"] if caches else []
    return (remaining + 1) * checkpoint + states * state + caches, ", ".join(files)


def checkpoint_counts(saving: SavingSettings, plan: Plan) -> tuple[int, int]:
    """Return how many checkpoints are (saved, kept at once) before the final one, without those of `checkpoint_every_minutes`."""
    epochs, steps = epochs_between_saves(saving, plan, plan.total), every(saving.save_every_n_steps)
    by_epoch = plan.epoch_of(plan.total - 1) // epochs if epochs else 0
    by_step = (plan.total - 1) // int(steps) if steps else 0
    even = max(0, min(int(every(saving.save_n_evenly) or 0), plan.total) - 1)
    last_steps = every(saving.save_last_n_steps)
    kept = min(by_epoch, int(every(saving.save_last_n_epochs) or by_epoch)) + even
    kept += min(by_step, int(last_steps) // int(steps) + 1) if steps and last_steps else by_step
    return by_epoch + by_step + even, min(kept, int(every(saving.save_last_n) or kept))


def state_count(saving: SavingSettings, plan: Plan, checkpoints: int) -> int:
    """Return the most training states at once: a new one is saved before an old one is removed. With timed backups, the run is assumed to
    be long enough for all that it keeps. checkpoints: number saved before the final one"""
    steps, epochs = every(saving.save_last_n_steps_state), every(saving.save_last_n_epochs_state)
    most = saving.save_last_n_states + 1
    if steps or epochs:
        of_epochs = int(epochs or 0) * (epochs_between_saves(saving, plan, plan.total) or 1) * plan.epochs.steps_in(0)
        most = (checkpoints + 1) * max(int(steps or 0), of_epochs) // plan.total + 2
    elif every(saving.save_every_minutes) is not None:
        return most
    return min(most, checkpoints + 1 if saving.save_state else int(saving.save_state_on_train_end))


def _cache_bytes(job: TrainJob, workspace: Workspace, facts: MemoryFacts, report: Report) -> int:
    """Return the bytes of the latents to cache that are not on disk yet, and of text states for these images."""
    module, model = family(facts.family), model_path(job.model.base_model, workspace)
    vae = model_path(job.model.vae, workspace, "model.vae") if job.model.vae else None
    cache = LatentCache(
        workspace.cache / LATENTS.folder,
        module.digest(model, "vae", vae=vae, memo=HashMemo.of(workspace)),
        "fp32" if job.memory.vae_precision == "auto" else job.memory.vae_precision,
        memo_path=workspace.private / "index.sqlite",
        shape_of=module.latent_shape,
    )
    images = [*report.placed, *map(unaugmented, report.validation)]
    writes = job.memory.cache_latents in ("auto", "disk")
    fixed = [each for each in images if writes and not random_augmentations(each.concept.images)]
    missing = [side.placed for side in cache.missing_sides(fixed, reads=False)]
    captions = {each.caption.text for each in (missing if fixed else images)}
    width = sum(int(facts.parts[name].config.get("hidden_size", 0)) for name in facts.text_parts())
    tokens = 0 if trains_text(job) else (job.captions.max_token_length or 75) + 2
    item = FP32 if job.memory.mixed_precision in ("no", "auto") else 2
    return sum(map(cache.bytes_of, missing)) + len(captions) * tokens * width * item
