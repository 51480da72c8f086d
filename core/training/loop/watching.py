"""Losses of a run by timestep and by image, and corrected for the sampled timesteps.

A loss depends far more on its timestep than on how much was trained. So each is divided by the mean that this run has
seen in its band of 50 timesteps: below 1 is better than the run has been there so far. From these quotients follow the
corrected loss and the table of the images that train worst.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.record import atomic
from core.record.former import renewed

if TYPE_CHECKING:
    from core.training.loop.losses import ReadBack, Seen

BAND = 50  # timesteps
BANDS = 1000 // BAND
MEMORY = 50.0  # views that an image's running mean looks back on
RECENT = 100.0  # losses that a band's recent mean looks back on
FILE = "watch.json"
WRITE_SECONDS = 10.0
WORST = 200  # images in the file


class Mean:
    """A mean over everything, and one over about the last `memory` values."""

    __slots__ = ("count", "recent", "total")

    def __init__(self, total: float = 0.0, count: int = 0, recent: float = 0.0):
        self.total, self.count, self.recent = total, count, recent

    def add(self, value: float, memory: float) -> None:
        self.count += 1
        self.total += value
        self.recent += (value - self.recent) / min(self.count, memory)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def state(self) -> list[float]:
        return [self.total, self.count, self.recent]


class Watch:
    """Gathers the losses of a run as they are read back. Saved in the training states, so a resumed run keeps it."""

    def __init__(self, steps_per_epoch: int = 1):
        self.step = 0
        self._bands = [Mean() for _ in range(BANDS)]
        self._images: dict[tuple[str, ...], Mean] = {}
        self._epoch: deque[float] = deque(maxlen=max(1, steps_per_epoch))
        self._written = 0.0

    def add(self, read: ReadBack) -> list[float]:
        """Take in what was read back; returns each step's loss divided by what was to be expected of its timesteps."""
        corrected = []
        for step, loss, seen, losses in zip(read.steps, read.losses, read.seen, read.by_image, strict=True):
            self.step = step
            self._epoch.append(loss)
            quotients = [self._one(each, value) for each, value in zip(seen, losses, strict=True)]
            known = [quotient for quotient in quotients if quotient is not None]
            corrected.append(sum(known) / len(known) if known else 1.0)
        return corrected

    def _one(self, seen: Seen, loss: float) -> float | None:
        """An image's loss by what is expected at its timestep; None for one that does not count."""
        if seen.weight == 0:
            return None
        loss /= seen.weight
        band = self._bands[min(int(seen.timestep // BAND), BANDS - 1)]
        band.add(loss, RECENT)
        quotient = loss / band.mean if band.mean > 0 else 1.0
        self._images.setdefault(seen.key, Mean()).add(quotient, MEMORY)
        return quotient

    @property
    def average(self) -> float:
        """Mean loss of about the last epoch (sd-scripts' loss/average)."""
        return sum(self._epoch) / len(self._epoch) if self._epoch else 0.0

    # -- for the page

    def snapshot(self) -> dict[str, Any]:
        """bands: from, to, mean, recent, count, of those that were seen. images: source, name, corrected (running
        mean, 1 is usual), count; the worst first."""
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
        """watch.json, a few times a minute. It can be lost: a disk that is full must not end a training."""
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
        state = renewed(state)
        self.step = state["step"]
        self._bands = [_mean(values) for values in state["bands"]]
        self._images = {tuple(key): _mean(values) for key, values in state["images"]}
        self._epoch.clear()
        self._epoch.extend(state["epoch"])


def _mean(values: Sequence[float]) -> Mean:
    return Mean(values[0], int(values[1]), values[2])
