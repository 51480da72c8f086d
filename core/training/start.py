"""Runs a training from its job to its end, or only fills its caches."""

import secrets
from contextlib import nullcontext
from typing import TypeVar

from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.events import MemoryUsed, Planned
from core.record.heap import keep_freed_memory
from core.record.memory import PeakMemory
from core.settings.job import PrepareJob, TrainJob
from core.settings.presets.files import dump

Job = TypeVar("Job", bound=TrainJob)

MEMORY_SECONDS = 0.25  # between samples of the resident memory; a GPU records its peak


def run_task(job: TrainJob, context: JobContext) -> Outcome:
    """Run a training as a task of the engine; the outcome's state is "done" or "stopped". Raises as `run_training`."""
    return Outcome(run_training(job, context))


def run_training(job: TrainJob, context: JobContext, stop_at: int | None = None) -> str:
    """Train from the start, or from the newest complete training state in the run's folder. Returns "done" or "stopped". Raises
    ProblemsError for problems that prevent or end the training.
    stop_at: step after which to save and stop, as if the user had stopped it; None trains to the end"""
    peak = PeakMemory(context.device, MEMORY_SECONDS)
    try:
        with peak:
            return _train(job, context, stop_at)
    finally:
        context.journal.put(MemoryUsed(peak.bytes, context.device))


def _train(job: TrainJob, context: JobContext, stop_at: int | None) -> str:
    """Do the work of `run_training`, without measuring memory."""
    from core.training.building.setup import build_training
    from core.training.loop.train import train
    from core.training.saving.resume import begin

    processes = context.processes
    if processes.first:
        context.folder.remove_half_written()
    job = processes.broadcast(with_seed(job, context) if processes.first else job)
    training = build_training(job, context)
    run, plan = training.run, training.run.plan
    run.stop_at = stop_at
    try:
        with processes.main_process_first():
            resumed = training.states.load()
            if not resumed:
                begin(run, training.states)
        run.stepper.ready()
        if resumed:
            context.say(f"Resuming from step {run.state.step}")
            named, used = context.folder.job().get("model", {}).get("base_model", ""), job.model.base_model
            if named not in ("", used):
                context.say(f"The base model is no longer at {named}; {used} has its name and its hash")
            if processes.first:
                training.checkpoints.rename_final(run.state.step)
        if training.inputs.report.held_out:
            context.say(training.inputs.report.held_out)
        report = training.inputs.report
        epochs, updates = plan.epoch_of(run.total - 1) + 1, plan.epochs.steps_in(0)
        context.journal.put(Planned(run.total, epochs, updates, report.trained, report.sentence))
        context.stage("training")
        # A full model's optimizer repeatedly allocates tensors as large as each weight.
        with keep_freed_memory() if job.method.traits.full_size and context.device.startswith("cpu") else nullcontext():
            return train(run, training.timetable)
    finally:
        training.release()


def with_seed(job: Job, context: JobContext) -> Job:
    """Return the job with a seed. A missing seed is drawn at random and written to the run's job.json, so that resuming uses it."""
    if job.schedule.seed is not None:
        return job
    seeded = job.with_settings(schedule={"seed": secrets.randbelow(2**32)})
    atomic.write_json(context.folder.job_file, dump(seeded, preset=context.folder.preset))
    return seeded


def prepare_caches(job: PrepareJob, context: JobContext) -> Outcome:
    """Fill the caches of a prepare job, a task of the engine, so that a training with these settings starts at once.

    Writes latents and text states to disk; also the metadata file and .npz caches if the settings ask for them. Raises ProblemsError
    for problems of the job, and if text states cannot be written.
    """
    from core.dataset.caches.metadata_writing import write_metadata
    from core.dataset.sources.files import printable
    from core.record.problems import ProblemsError
    from core.record.workspace import resolve_path
    from core.training.building.inputs import read_inputs
    from core.training.building.latents import prepare_latents, write_npz_caches
    from core.training.building.models import Models
    from core.training.building.texts import Texts

    inputs = read_inputs(with_seed(job, context), context)
    models = Models(inputs)
    if job.prepare.write_metadata:  # first, so that its errors are not reported after an hour of caching
        path = resolve_path(job.prepare.write_metadata)
        written = write_metadata(path, inputs.plan.placed, full_path=job.prepare.full_path)
        context.say(f"{written} images written to {printable(path)}")
    prepare_latents(inputs, models)
    if job.prepare.write_npz:
        write_npz_caches(inputs, models)
    if not inputs.method.trains_text and (problem := Texts(inputs, models).frozen()[0].unwritten):
        raise ProblemsError([problem])
    context.say(f"The caches are ready: {inputs.report.sentence}")
    return Outcome()
