"""A run: its progress and the parts that the training loop uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.dataset.buckets.plan import Plan
    from core.optimization.schedules import Rates
    from core.record.context import JobContext
    from core.settings.job import TrainJob
    from core.training.loop.passes import Passes
    from core.training.loop.reports import Reports
    from core.training.loop.stepper import Stepper


@dataclass
class RunState:
    """Progress of a run.

    step     optimizer steps done, which also determine the position in the data
    start_step    step at which the run was started; 0 after resuming
    """

    step: int = 0
    seconds: float = 0.0
    start_step: int = 0


@dataclass
class Run:
    """The state and the parts that the training loop uses.

    passes    computes losses
    stepper   does backward passes and optimizer steps
    rates     learning rates by step
    reports   reports the steps' losses
    stop_at   step after which to save and stop, as if the user had stopped it; None trains to the end
    """

    job: TrainJob
    context: JobContext
    plan: Plan
    passes: Passes
    stepper: Stepper
    rates: Rates
    reports: Reports
    state: RunState = field(default_factory=RunState)
    stop_at: int | None = None

    @property
    def total(self) -> int:
        """Number of optimizer steps of the run."""
        return self.plan.total

    @property
    def stop_wanted(self) -> bool:
        """Whether the user has stopped the run, or step `stop_at` is reached."""
        return self.context.token.wanted or (self.stop_at is not None and self.state.step >= self.stop_at)
