"""The table of preprocessors: functions that make a control image (hint) from an image. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core import extensions
from core.dataset.sources.image_info import listed
from core.record.problems import Problem
from core.settings.growth import add_choice
from core.settings.hints import BY_MODEL, AnyHintSettings, HintSettings

if TYPE_CHECKING:
    from numpy import ndarray

Make = Callable[["ndarray", HintSettings], "ndarray"]


@dataclass(frozen=True)
class Preprocessor:
    """A registered way to make control images.

    make       (image, settings) -> control image, both RGB uint8 [H, W, 3]
    settings   names of the fields of `HintSettings` that `make` reads
    """

    name: str
    title: str
    make: Make
    settings: tuple[str, ...] = ()


MOST_NAMES = 10  # images in a problem
PREPROCESSORS: dict[str, Preprocessor] = {}


def register(preprocessor: Preprocessor) -> None:
    """Register a preprocessor and add it to the choices of every `preprocessor` setting."""
    PREPROCESSORS[preprocessor.name] = preprocessor
    for group in groups_of(HintSettings):
        add_choice(group, "preprocessor", preprocessor.name, preprocessor.title)


def groups_of(group: type[HintSettings]) -> Iterator[type[HintSettings]]:
    """Yield a settings class and, recursively, its subclasses."""
    yield group
    for each in group.__subclasses__():
        yield from groups_of(each)


def preprocessors() -> dict[str, Preprocessor]:
    """Return all registered preprocessors by name, after loading extensions."""
    extensions.load()
    return PREPROCESSORS


def make_hint(image: ndarray, settings: HintSettings) -> ndarray:
    """Return the control image of `image` by the chosen preprocessor, both RGB uint8 [H, W, 3]."""
    return preprocessors()[settings.preprocessor].make(image, settings)


def black_hints(names: Sequence[str], where: str) -> Problem:
    """Return advice about control images that are all black because nothing was detected.

    names   of the images
    where   the setting to point to
    """
    subject = "control image is" if len(names) == 1 else "control images are"
    what = f"Nothing was found in {listed(names, MOST_NAMES)}: {len(names)} {subject} all black"
    fix = "leave these images out, or try other settings or another model"
    return Problem(what, where, fix, "advice", code="hints.all-black")


def settings_of(name: str) -> tuple[str, ...]:
    """Return the names of the settings that a preprocessor reads: ("hint_model",) for "model", () for "none" or an unknown name."""
    preprocessor = preprocessors().get(name)
    return preprocessor.settings if preprocessor else ("hint_model",) if name == BY_MODEL else ()


def unused_settings(values: Mapping[str, Any]) -> set[str]:
    """Return the names of the hint settings that have no effect with the preprocessor in `values`."""
    name = values.get("preprocessor", HintSettings.model_fields["preprocessor"].default)
    return set(AnyHintSettings.model_fields) - {"preprocessor", *settings_of(name)}
