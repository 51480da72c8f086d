"""Numbers for other programs: TensorBoard files in the run's logs folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


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


def make_tracker(log_with: str, folder: Path, say: Callable[[str, str], None]) -> Tracker:
    return TensorBoard(folder, say) if log_with == "tensorboard" else NoTracker()
