"""Statistics of a run's losses by timestep and by image, and losses corrected for their timesteps.

A loss depends far more on its timestep than on the progress of the training. So each loss is divided by the run's mean loss so far
in its band of 50 timesteps: a quotient below 1 is better than the run's average there. The corrected loss and the table of the
images that train worst are computed from these quotients.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record import atomic
from core.record.former import with_current_names

if TYPE_CHECKING:
    from core.training.loop.loss_readback import ReadBack, StepImage

BAND = 50  # timesteps
BANDS = 1000 // BAND
MEMORY = 50.0  # views in the running mean of an image
RECENT = 100.0  # losses in the recent mean of a band
FILE = "watch.json"
WRITE_SECONDS = 10.0
WORST = 200  # images in the file


class Mean:
    """Mean of all values (`mean`), and a running mean of the last values (`recent`), of about as many as `add` states."""

    __slots__ = ("count", "recent", "total")

    def __init__(self, total: float = 0.0, count: int = 0, recent: float = 0.0):
        self.total, self.count, self.recent = total, count, recent

    def add(self, value: float, memory: float) -> None:
        """Add a value. memory: number of values after which a value's weight in `recent` has fallen to 1/e"""
        self.count += 1
        self.total += value
        self.recent += (value - self.recent) / min(self.count, memory)

    @property
    def mean(self) -> float:
        """Mean of all values; 0 without any."""
        return self.total / self.count if self.count else 0.0

    def state(self) -> list[float]:
        """Return [total, count, recent], as stored in training states."""
        return [self.total, self.count, self.recent]


class Watch:
    """Statistics of the losses of a run. Saved in training states, so that a resumed run continues them.
    averages: `average` after each of the steps added last"""

    def __init__(self, steps_per_epoch: int = 1):
        self.step = 0
        self._bands = [Mean() for _ in range(BANDS)]
        self._images: dict[tuple[str, ...], Mean] = {}
        self._epoch: deque[float] = deque(maxlen=max(1, steps_per_epoch))
        self.averages: list[float] = []  # `average` after each of the steps added last
        self._written = 0.0

    def add(self, read: ReadBack) -> list[float]:
        """Add the losses of finished steps; return each step's corrected loss: 1 is average at its timesteps, less is better."""
        corrected, self.averages = [], []
        for step, loss, images, losses in zip(read.steps, read.losses, read.step_images, read.by_image, strict=True):
            self.step = step
            self._epoch.append(loss)
            self.averages.append(self.average)
            quotients = [self._quotient(each, value) for each, value in zip(images, losses, strict=True)]
            loss_quotients = [quotient for quotient in quotients if quotient is not None]
            corrected.append(sum(loss_quotients) / len(loss_quotients) if loss_quotients else 1.0)
        return corrected

    def _quotient(self, image: StepImage, loss: float) -> float | None:
        """Add an image's loss to the statistics; return it divided by the mean loss of its timestep's band. Returns None and adds nothing
        if its loss weight is 0 or its mask is empty."""
        if image.weight == 0 or loss == 0:
            return None
        loss /= image.weight
        band = self._bands[min(int(image.timestep // BAND), BANDS - 1)]
        band.add(loss, RECENT)
        quotient = loss / band.mean if band.mean > 0 else 1.0
        self._images.setdefault(image.key, Mean()).add(quotient, MEMORY)
        return quotient

    @property
    def average(self) -> float:
        """Mean loss of about the last epoch, as sd-scripts' loss/average."""
        return sum(self._epoch) / len(self._epoch) if self._epoch else 0.0

    # -- for the page

    def snapshot(self) -> dict[str, Any]:
        """Return the content of watch.json.

        bands    [{"from", "to": timesteps, "mean": loss, "recent": running mean, "count"}], bands without losses left out
        images   [{"source", "name", "corrected": running mean of the corrected loss, "count"}], the WORST with the highest, highest first
        """
        bands = [
            {
                "from": number * BAND,
                "to": (number + 1) * BAND,
                "mean": band.mean,
                "recent": band.recent,
                "count": band.count,
            }
            for number, band in enumerate(self._bands)
            if band.count
        ]
        worst = sorted(self._images.items(), key=lambda entry: (-entry[1].recent, entry[0]))
        images = [
            {"source": key[0], "name": " ".join(key[1:]), "corrected": mean.recent, "count": mean.count}
            for key, mean in worst[:WORST]
        ]
        return {"step": self.step, "bands": bands, "images": images, "images_seen": len(self._images)}

    def write(self, folder: Path, at_once: bool = False) -> None:
        """Write watch.json at most once in WRITE_SECONDS, or at each call with `at_once`. Errors are ignored: a full disk must not end a
        training."""
        if not at_once and time.monotonic() - self._written < WRITE_SECONDS:
            return
        self._written = time.monotonic()
        try:
            atomic.write_json(folder / FILE, self.snapshot())
        except (OSError, ValueError):
            return

    # -- with the state

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "bands": [band.state() for band in self._bands],
            "images": [[list(key), mean.state()] for key, mean in self._images.items()],
            "epoch": list(self._epoch),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = with_current_names(state)
        self.step = state["step"]
        self._bands = [_mean(values) for values in state["bands"]]
        self._images = {tuple(key): _mean(values) for key, values in state["images"]}
        self._epoch.clear()
        self._epoch.extend(state["epoch"])


def _mean(values: Sequence[float]) -> Mean:
    """Return a Mean from the values of `Mean.state`."""
    return Mean(values[0], int(values[1]), values[2])
