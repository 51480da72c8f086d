"""The distribution of training timesteps of the form's settings, as points for the chart next to them."""

from __future__ import annotations

from typing import Any

from core.diffusion.timesteps import density
from core.settings.noise import NoiseSettings

BANDS = 50


def timestep_facts(noise: NoiseSettings) -> dict[str, Any]:
    """Data of the chart; "steps" is empty for uniform timesteps, and where the range is empty."""
    if noise.uniform_timesteps or noise.min_timestep >= noise.max_timestep:
        return {"steps": [], "lines": [], "about": ""}
    middles = [(number + 0.5) * 1000 / BANDS for number in range(BANDS)]
    values = [round(value, 3) for value in density(noise, BANDS)]
    line = {"name": "times as often as uniform", "values": values}
    return {"steps": middles, "lines": [line], "total": 1000, "across": "timestep", "about": ""}
