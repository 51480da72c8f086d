"""Numbers for other programs: TensorBoard files in the run's logs folder."""

from __future__ import annotations

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
    """TensorBoard event files. The library is loaded at the first number, so that it does not delay the first step."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    def add(self, name: str, value: float, step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def make_tracker(log_with: str, folder: Path) -> Tracker:
    return TensorBoard(folder) if log_with == "tensorboard" else NoTracker()
