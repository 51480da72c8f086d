"""Numbers for other programs: TensorBoard files in the run's logs folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from core.optimization.optimizers import step_sizes

if TYPE_CHECKING:
    from core.record.events import Validated
    from core.training.losses import ReadBack
    from core.training.run import Run

LR_NAMES = {"text_encoder": "textencoder", "text_encoder_2": "textencoder2"}  # sd-scripts' spelling


class Tracker(Protocol):
    def add(self, name: str, value: float, step: int) -> None: ...
    def close(self) -> None: ...


class NoTracker:
    """Writes nothing."""

    def add(self, name: str, value: float, step: int) -> None:
        return

    def close(self) -> None:
        return


class TensorBoard:
    """TensorBoard event files. The library is loaded at the first number, so that it does not delay the first step.

    What goes wrong with them (a full disk, a missing library) is said once and ends no training: the journal has it all.
    """

    def __init__(self, folder: Path, say: Callable[[str, str], None]):
        self._folder, self._say = folder, say
        self._writer: Any = None
        self._broken = False

    def add(self, name: str, value: float, step: int) -> None:
        if self._broken:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._folder))
            self._writer.add_scalar(name, value, step)
        except Exception as error:
            self._broken = True
            self._say(f"TensorBoard files cannot be written, training goes on without them: {error}", "warning")

    def close(self) -> None:
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()


def rate_name(group: str) -> str:
    """A group's name as sd-scripts logs it: "text_encoder plus" is textencoder plus."""
    part, space, rest = group.partition(" ")
    return LR_NAMES.get(part, part) + space + rest


def track_steps(run: Run, read: ReadBack, corrected: Sequence[float], rates: Mapping[str, float]) -> None:
    """Numbers of steps whose losses have arrived, under sd-scripts' names where it has them (reference: section 7.6)."""
    add, step = run.tracker.add, read.steps[-1]
    for number, loss, quotient in zip(read.steps, read.losses, corrected, strict=True):
        add("loss/current", loss, number)
        add("loss/corrected", quotient, number)
        if run.plan.ends_epoch(number) or number == run.total:
            add("loss/epoch_average", run.watch.average, number)
    add("loss/average", run.watch.average, step)
    for name, rate in rates.items():
        add(f"lr/{rate_name(name)}", rate, step)
    for name, size in step_sizes(run.optimizer).items():  # of optimizers that find the step size themselves
        add(f"lr/d*lr/{rate_name(name)}", size, step)
    add("norm/gradient", read.norm, step)
    if read.weight_norm is not None:
        add("norm/weights", read.weight_norm, step)
    for name, value in read.numbers.items():
        add(name, value, step)


def track_validation(run: Run, found: Validated) -> None:
    """A validation's numbers, once more where it ends an epoch."""
    for name in ("step", "epoch") if run.plan.ends_epoch(found.step) else ("step",):
        run.tracker.add(f"loss/validation/{name}_average", found.loss, found.step)
        run.tracker.add(f"loss/validation/{name}_divergence", found.gap, found.step)


def make_tracker(log_with: str, folder: Path, say: Callable[[str, str], None]) -> Tracker:
    return TensorBoard(folder, say) if log_with == "tensorboard" else NoTracker()
