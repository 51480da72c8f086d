"""Registry of guidance kinds by name. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core import extensions
from core.generation.sample.guidance import UNGUIDED, Guidance, with_rescale
from core.settings.base import Settings
from core.settings.generation.generate import GenerateSettings
from core.settings.growth import add_choice, add_group


@dataclass(frozen=True)
class GuidanceKind:
    """A kind of guidance.

    name, title      in settings and on the page
    make             (guidance scale, negative scale or None, its settings) -> Guidance; called for each stage
    settings         settings class to add to generate jobs under `name`
    negative_scale   whether it supports a negative scale
    alone            whether it also guides at scales up to 1
    layers           (its settings) -> (setting that names layers, its value, suffix of the layers' names); None: no layers
    """

    name: str
    title: str
    make: Callable[[float, float | None, Any], Guidance]
    settings: type[Settings] | None = None
    negative_scale: bool = False
    alone: bool = False
    layers: Callable[[Any], tuple[str, str, str]] | None = None


GUIDANCES: dict[str, GuidanceKind] = {}


def register(kind: GuidanceKind) -> None:
    """Register a guidance kind: add it to the choices of guidance, and its settings group to generate jobs."""
    GUIDANCES[kind.name] = kind
    add_choice(GenerateSettings, "guidance", kind.name, kind.title)
    if kind.settings is not None:
        add_group(GenerateSettings, kind.name, kind.settings, kind.title, chosen_by="generate.guidance")


def kind_of(name: str) -> GuidanceKind:
    """Return the registered guidance kind of this name, also of extensions."""
    extensions.load()
    return GUIDANCES[name]


def make_guidance(
    name: str, scale: float, negative_scale: float | None = None, rescale: float = 0.0, settings: Any = None
) -> Guidance:
    """Create a guidance for one stage; kinds may keep state over its steps. UNGUIDED at scales up to 1 unless the kind is `alone`.

    negative_scale   None: classifier-free guidance with the negative prompt
    rescale          guidance rescale (`with_rescale`)
    settings         the kind's settings group
    """
    kind = kind_of(name)
    if scale <= 1 and not kind.alone:
        return UNGUIDED
    return with_rescale(kind.make(scale, negative_scale, settings), rescale)
