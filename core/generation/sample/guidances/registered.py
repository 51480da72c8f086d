"""The built-in guidance kinds, one call each. Listed in core/extensions.py."""

from collections.abc import Callable
from typing import Any

import core.settings.job  # noqa: F401  groups are added to its jobs
from core import extensions
from core.generation.sample.guidance import Guidance, classic
from core.generation.sample.guidances import GuidanceKind, register
from core.settings.base import Settings
from core.settings.generation import guidance as settings


def _differences(name: str) -> Callable[[float, float | None, Any], Guidance]:
    """Return a function in `differences` that is imported when called."""
    return extensions.later("core.generation.sample.guidances.differences", name)


def _layers(name: str, title: str, group: type[Settings], layers: tuple[str, str]) -> None:
    """Register a guidance kind in `layers`, with the function `name`. layers: (setting that names the layers, suffix of their names)"""
    make = extensions.later("core.generation.sample.guidances.layers", name)
    where, suffix = layers
    path = f"{name}.{where}"
    register(
        GuidanceKind(
            name, title, make, group, True, True, lambda settings: (path, str(getattr(settings, where)), suffix)
        )
    )


register(
    GuidanceKind(
        "classic", "Classifier-free guidance", lambda scale, other, settings: classic(scale, other), None, True
    )
)
register(GuidanceKind("apg", "Adaptive projected (APG)", _differences("apg"), settings.ApgSettings))
register(GuidanceKind("cfg_zero", "CFG-Zero*", _differences("cfg_zero"), settings.CfgZeroSettings))
register(GuidanceKind("tangential", "Tangential (TCFG)", _differences("tangential")))
_layers("pag", "Perturbed attention (PAG)", settings.PagSettings, ("pag_layers", "attn1"))
_layers("skip_layer", "Skip-layer (SLG)", settings.SkipLayerSettings, ("slg_layers", "transformer_blocks.*"))
_layers("smoothed_energy", "Smoothed energy (SEG)", settings.SmoothedEnergySettings, ("seg_layers", "attn1"))
