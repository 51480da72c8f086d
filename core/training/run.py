"""A run: what the loop works on, and the way from a job to its end."""

from __future__ import annotations

import secrets
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from core.record import atomic
from core.record.context import JobContext
from core.record.events import MemoryUsed, Planned
from core.record.heap import kept
from core.settings.job import TrainJob
from core.settings.presets import dump
from core.training.clock import StepClock
from core.training.losses import LossBuffer
from core.training.watching import Watch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.diffusion.objective import Objective
    from core.diffusion.text_states import TextStates
    from core.families.compiling import CompiledBlocks
    from core.families.components import Components
    from core.families.precision import Precision
    from core.formats.hub_upload import Uploads
    from core.generation.sample_prompts import SamplePrompt
    from core.methods import Method
    from core.optimization.clipping import NonFiniteGuard
    from core.training.plan import Plan
    from core.training.prior import ModelPrior
    from core.training.samples import PromptTexts
    from core.training.sources import Latents, Text
    from core.training.stepper import Stepper
    from core.training.tasks import Tasks
    from core.training.trackers import Tracker
    from core.training.validation import Validation


Job = TypeVar("Job", bound=TrainJob)

MEMORY_SECONDS = 0.25  # between looks at the resident memory; a GPU keeps its own highest


@dataclass
class RunState:
    """Where a run stands: step = optimizer updates done; the place in the data follows from it. begun: its first life's
    first step, known in that life only."""

    step: int = 0
    seconds: float = 0.0
    begun: int = 0


@dataclass
class Run:
    """Everything of a running training. Built by setup.build_run, driven by loop.train."""

    job: TrainJob
    context: JobContext
    seed: int
    plan: Plan
    total: int
    precision: Precision
    components: Components
    method: Method
    latents: Latents
    text: Text
    prompts: list[SamplePrompt]
    prompt_texts: PromptTexts
    parameters: list[nn.Parameter]
    optimizer: Any
    guard: NonFiniteGuard
    stepper: Stepper
    objective: Objective
    tracker: Tracker
    facts: dict[str, Any]
    validation: Validation
    uploads: Uploads
    tasks: Tasks = field(init=False)
    stop_at: int | None = None
    prior: ModelPrior | None = None
    compiled: CompiledBlocks | None = None
    state: RunState = field(default_factory=RunState)
    losses: LossBuffer = field(default_factory=LossBuffer)
    clock: StepClock = field(default_factory=StepClock)
    watch: Watch = field(default_factory=Watch)

    @property
    def stop_wanted(self) -> bool:
        return self.context.token.wanted or (self.stop_at is not None and self.state.step >= self.stop_at)

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, text: TextStates, sizes: Tensor | None) -> Tensor:
        from core.families import family

        with self.precision.autocast(self.context.device):
            return family(self.components.family).predict(self.components, noisy_latents, timesteps, text, sizes)

    def release(self) -> None:
        """Free everything large; also after an error, or the next job starts with less memory."""
        self.tracker.close()
        self.uploads.close()
        if self.latents is not None:
            self.latents.close()
        if self.stepper is not None:
            self.stepper.release()
        if self.compiled is not None:
            self.compiled.release()
        self.method.release()
        self.parameters = []
        for name in ("components", "optimizer", "stepper", "latents", "text", "prompt_texts", "tasks"):
            vars(self)[name] = None


def run_training(job: TrainJob, context: JobContext, stop_at: int | None = None) -> str:
    """Train from the start, or from the folder's newest whole state. Returns "done" or "stopped".

    stop_at   a step after which it saves and stops, as on request
    """
    from core.training.probe import PeakMemory

    peak = PeakMemory(context.device, MEMORY_SECONDS)
    try:
        with peak:
            return _train(job, context, stop_at)
    finally:
        context.journal.put(MemoryUsed(peak.bytes, context.device))


def _train(job: TrainJob, context: JobContext, stop_at: int | None) -> str:
    from core.training.checkpoint import load_state
    from core.training.loop import train
    from core.training.resume import begin
    from core.training.saving import keep_finished
    from core.training.setup import build_run

    processes = context.processes
    if processes.first:
        context.folder.remove_half_written()
    job = processes.tell(with_seed(job, context) if processes.first else job)
    run = build_run(job, context)
    run.stop_at = stop_at
    try:
        with processes.first_does():
            resumed = load_state(run)
            if not resumed:
                begin(run)
        run.stepper.ready()
        if resumed:
            context.say(f"Resuming from step {run.state.step}")
            run.clock = StepClock(run.state.seconds)
            if processes.first:
                keep_finished(run)
        context.journal.put(
            Planned(
                run.total,
                run.plan.epoch_of(run.total - 1) + 1,
                run.plan.epochs.updates_in(0),
                len(run.plan.placed),
                run.facts["sentence"],
            )
        )
        context.stage("training")
        # A whole model's optimizer makes tensors as large as each weight, again and again.
        with kept() if job.method.whole_model and context.device.startswith("cpu") else nullcontext():
            return train(run)
    finally:
        run.release()


def with_seed(job: Job, context: JobContext) -> Job:
    """The job with a seed: an empty one is set at random and written to the run's job.json, so that resuming finds it."""
    if job.schedule.seed is not None:
        return job
    seeded = job.model_copy(update={"schedule": job.schedule.model_copy(update={"seed": secrets.randbelow(2**32)})})
    atomic.write_json(context.folder.job_file, dump(seeded, preset=context.folder.preset))
    return seeded
