"""Drift of the base model: the relative change of predictions for unrelated prompts, over that for the dataset's captions."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from core.assess.statistics import Interval, ratio_of
from core.assess.target import BAND, TIMESTEPS, by_image

MAX_DRIFT = 0.8


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return `drift_of` for the checkpoint's changes of the dataset's predictions and of unrelated prompts'."""
    return drift_of(bench.changes(subject, "inside"), bench.changes(subject, "outside"))


def drift_of(inside: Sequence[float], outside: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of relative changes, outside over inside: {value, low, high, inside, outside: means, bands: ratio per timestep}.
    inside, outside: relative changes of each image at each of TIMESTEPS, image by image"""
    whole, number = ratio_of(by_image(outside), by_image(inside)), len(TIMESTEPS)
    bands = [round(fmean(outside[at::number]) / fmean(inside[at::number]), 4) for at in range(number)]
    return whole.data | {"inside": round(fmean(inside), 5), "outside": round(fmean(outside), 5), "bands": bands}


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the ratio, both changes and the timesteps that change most."""
    most = max(range(len(TIMESTEPS)), key=data["bands"].__getitem__)
    part = f"{data['bands'][most]:.2f} times at timesteps {most * BAND} to {(most + 1) * BAND - 1}"
    shares = f"{data['outside']:.1%} against {data['inside']:.1%}"
    return f"Other prompts' predictions change {Interval.of(data)} times as much as the dataset's ({shares}), {part}."


def warning(data: Mapping[str, Any]) -> str:
    """Return the warning if the lower bound of the ratio is above MAX_DRIFT; otherwise ""."""
    return "changes other prompts as much as the dataset's" if (data["low"] or 0) > MAX_DRIFT else ""
