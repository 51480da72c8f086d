"""The preprocessors: functions from an image to its control image (its hint), in one table. Without torch."""

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
    """Makes control images.

    make       (RGB uint8 [H, W, 3], settings) -> RGB uint8 [H, W, 3]
    settings   names of the settings in `HintSettings` that it reads
    """

    name: str
    title: str
    make: Make
    settings: tuple[str, ...] = ()


MOST_NAMES = 10  # images in a problem
PREPROCESSORS: dict[str, Preprocessor] = {}


def register(preprocessor: Preprocessor) -> None:
    """Register a preprocessor: it can then be chosen wherever there is a choice."""
    PREPROCESSORS[preprocessor.name] = preprocessor
    for group in groups_of(HintSettings):
        add_choice(group, "preprocessor", preprocessor.name, preprocessor.title)


def groups_of(group: type[HintSettings]) -> Iterator[type[HintSettings]]:
    """The class of a settings group and its subclasses."""
    yield group
    for each in group.__subclasses__():
        yield from groups_of(each)


def preprocessors() -> dict[str, Preprocessor]:
    """All registered preprocessors, by name."""
    extensions.load()
    return PREPROCESSORS


def make_hint(image: ndarray, settings: HintSettings) -> ndarray:
    """The control image of an image, both RGB uint8 [H, W, 3]."""
    return preprocessors()[settings.preprocessor].make(image, settings)


def black_hints(names: Sequence[str], where: str) -> Problem:
    """Advice about control images that are all black because nothing was detected. names: of the images; where: a
    setting"""
    subject = "control image is" if len(names) == 1 else "control images are"
    what = f"Nothing was found in {listed(names, MOST_NAMES)}: {len(names)} {subject} all black"
    fix = "leave these images out, or try other settings or another model"
    return Problem(what, where, fix, "advice", code="hints.all-black")


def settings_of(name: str) -> tuple[str, ...]:
    """Names of the settings that a preprocessor reads. name: may be "model" too, or "none" where that can be chosen"""
    preprocessor = preprocessors().get(name)
    return preprocessor.settings if preprocessor else ("hint_model",) if name == BY_MODEL else ()


def unused_settings(values: Mapping[str, Any]) -> set[str]:
    """The settings in `values` that the preprocessor chosen there does not read."""
    name = values.get("preprocessor", HintSettings.model_fields["preprocessor"].default)
    return set(AnyHintSettings.model_fields) - {"preprocessor", *settings_of(name)}
