"""Reports of a run's steps: losses read back from the device, written to the journal and the trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.record.events import Steps, Validated
from core.settings.methods import MethodSpec, spec_of
from core.training.loop.loss_readback import LossBuffer, ReadBack, damaged_weights

if TYPE_CHECKING:
    from core.dataset.buckets.plan import Plan
    from core.families.components import Components
    from core.optimization.schedules import Rates
    from core.record.context import JobContext
    from core.settings.job import TrainJob
    from core.training.loop.stepper import Stepper
    from core.training.loop.trackers import Tracker
    from core.training.loop.watching import Watch

AVERAGED_STEPS = 20.0  # of the running mean


class StepClock:
    """Seconds of the optimizer steps, without pauses, saves, samples and encoding for the caches.

    total      of all steps
    per_step   running mean, without the first step, which warms up
    """

    def __init__(self, total: float = 0.0):
        self.total = total
        self.per_step = 0.0
        self._count = 0

    def add(self, seconds: float) -> None:
        """Add the seconds of a step."""
        self.total += seconds
        self._count += 1
        if self._count == 2:
            self.per_step = seconds
            return
        self.per_step += (seconds - self.per_step) / min(self._count, AVERAGED_STEPS)


@dataclass
class Reports:
    """Reports the losses, learning rates and norms of a run's steps once they are read back from the device."""

    job: TrainJob
    context: JobContext
    plan: Plan
    stepper: Stepper
    rates: Rates
    components: Components
    tracker: Tracker
    watch: Watch
    losses: LossBuffer
    clock: StepClock = field(default_factory=StepClock)

    def report_all(self) -> None:
        """Report every step so far. Called before a save or sample. Raises ProblemsError at a non-finite loss that ends the run."""
        self.report(self.losses.read())

    def report(self, read: ReadBack | None) -> None:
        """Write the numbers of finished steps to the journal and the trackers; do nothing for None. Raises ProblemsError at a non-finite
        loss that ends the run."""
        if read is None:
            return
        for problem in read.skipped:
            self.context.say(f"Skipped: {problem.what} ({problem.where})", "warning", problem.fix)
        if read.steps:
            self._report_steps(read)
        if read.end is not None:
            raise damaged_weights(self.components) or read.end

    def _report_steps(self, read: ReadBack) -> None:
        """Write the numbers of finite steps to the journal, the trackers and watch.json. read: has at least one step"""
        step = read.steps[-1]
        corrected = self.watch.add(read)
        self.context.journal.put(
            Steps(
                read.steps,
                read.losses,
                self._rates(step),
                self.plan.epoch_of(step - 1) + 1,
                self.clock.per_step,
                read.norm,
                [round(value, 5) for value in corrected],
                read.weight_norm,
            )
        )
        self._track(read, corrected)
        self.watch.write(self.context.folder.path, at_once=step >= self.plan.total)

    def _rates(self, step: int) -> dict[str, float]:
        """Return {group: learning rate} of step `step`, counted from 1."""
        return self.rates.for_optimizer(self.stepper.optimizer, max(0, step - 1 - self.stepper.overflow_steps))

    def _track(self, read: ReadBack, corrected: Sequence[float]) -> None:
        """Pass the losses, learning rates and logged numbers of each step in `read` to the trackers, under sd-scripts' names if it has them
        (reference: section 7.6).
        corrected: corrected loss of each step"""
        from core.optimization.optimizers import step_sizes

        add, method = self.tracker.add, spec_of(self.job)
        step_name, epoch_name = method.losses_logged
        for number, loss, quotient, average, numbers in zip(
            read.steps, read.losses, corrected, self.watch.averages, read.numbers, strict=True
        ):
            add(step_name, loss, number)
            add("loss/corrected", quotient, number)
            if self.plan.ends_epoch(number) or number == self.plan.total:
                add(epoch_name, average, number)
            add("loss/average", average, number)
            for name, rate in self._rates(number).items():
                add(rate_name(method, name), rate, number)
            for name, value in numbers.items():
                add(name, value, number)
        # Of optimizers that find the step size themselves: known of the newest step alone
        for name, size in step_sizes(self.stepper.optimizer).items():
            add(rate_name(method, name).replace("lr", "lr/d*lr", 1), size, read.steps[-1])

    def report_validation(self, result: Validated) -> None:
        """Write a validation result to the journal and the trackers, in these also by epoch if an epoch ends with its step."""
        self.context.journal.put(result)
        loss_group = "validation" if result.measured_on == "held_out" else "training_images"
        for name in ("step", "epoch") if self.plan.ends_epoch(result.step) else ("step",):
            self.tracker.add(f"loss/{loss_group}/{name}_average", result.loss, result.step)
            if result.gap is not None:
                self.tracker.add(f"loss/{loss_group}/{name}_divergence", result.gap, result.step)
        if result.effect is not None:
            self.tracker.add("control/effect", result.effect, result.step)


def rate_name(method: MethodSpec, group: str) -> str:
    """Return the name under which sd-scripts logs the learning rate of a parameter group: for a network "text_encoder plus" is
    lr/textencoder plus, for a full model "unet_block3" is lr/block3."""
    part, space, role = group.partition(" ")
    if method.traits.base_trains:
        part = part.replace("unet_block", "block")
    return method.logged.get(part, f"lr/{part}") + space + role
