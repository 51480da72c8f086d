"""Drift of the base model: how much a checkpoint changes predictions for prompts outside of the dataset, against those in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from core.assess.statistics import Interval, ratio_of
from core.assess.target import BAND, TIMESTEPS

if TYPE_CHECKING:
    from core.assess.bench import Bench, Subject

NOTHING = {"why": "the checkpoint changes nothing"}
MUCH = 0.8  # of the change inside


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    from core.assess.bench import relative_change

    inside, outside = (relative_change(subject.predicted(name), bench.base[name]) for name in ("inside", "outside"))
    return drift_of(inside, outside)


def drift_of(inside: Sequence[float], outside: Sequence[float]) -> dict[str, Any]:
    """The ratio of the changes, whole and by band of timesteps. inside, outside: relative changes, each image at each timestep"""
    from core.assess.bench import by_image

    if min(inside) <= 0 or min(outside) <= 0:
        return dict(NOTHING)
    number = len(TIMESTEPS)
    bands = [fmean(outside[at::number]) / fmean(inside[at::number]) for at in range(number)]
    whole = ratio_of(by_image(outside), by_image(inside)).to_dict()
    means = {"inside": float(f"{fmean(inside):.4g}"), "outside": float(f"{fmean(outside):.4g}")}
    return whole | means | {"bands": [round(band, 4) for band in bands]}


def brief(data: Mapping[str, Any]) -> str:
    return f"{data['value']:.2f}"


def sentence(data: Mapping[str, Any]) -> str:
    most = max(range(len(TIMESTEPS)), key=data["bands"].__getitem__)
    change = f"Predictions for other prompts change {Interval.of(data).words} times as much as those for the dataset"
    part = f"most at timesteps {most * BAND} to {(most + 1) * BAND - 1} ({data['bands'][most]:.2f} times)"
    return f"{change} ({data['outside']:.0%} against {data['inside']:.0%}), {part}."


def warning(data: Mapping[str, Any]) -> str:
    return "changes other prompts as much as the dataset's" if (data["low"] or 0) > MUCH else ""
