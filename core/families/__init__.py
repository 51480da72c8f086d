"""Model families: which parts a model has, how they are loaded and read. A family is a folder here."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.detect import FAMILY_NAMES, RECOGNIZERS, ModelKind, Recognizer, identify
from core.record.problems import ProblemsError
from core.settings.growth import add_choice
from core.settings.model import ModelSettings

if TYPE_CHECKING:
    from core.families.base import Family

# name -> the module whose FAMILY it is, imported when it is asked for: they load torch
FAMILIES = {name: f"core.families.{name}" for name in ("sd1", "sd2", "sdxl")}


def register(name: str, title: str, module: str, recognizes: Recognizer) -> None:
    """Offer a family: from now on the page, presets, the command line and trainings know it.

    module       whose FAMILY it is: a core.families.base.Family
    recognizes   (tensors and metadata of a file) -> what the file is, or None where it is not of this family
    """
    FAMILIES[name], FAMILY_NAMES[name] = module, title
    RECOGNIZERS.append(recognizes)
    add_choice(ModelSettings, "family", name, title)


def family(name: str) -> Family:
    """A family by its name. ProblemsError for one that is not registered."""
    if name not in FAMILIES:
        raise ProblemsError.one(
            f"The model family '{name}' is unknown",
            "model family",
            f"use one of: {', '.join(FAMILIES)}",
            code="model.unknown-family",
        )
    found: Family = import_module(FAMILIES[name]).FAMILY
    return found


def family_of(path: Path | str, wanted: str = "auto") -> str:
    """The family of the model at this path; ProblemsError for another or an unknown one.

    wanted  "auto", or the family that the settings name: it decides where the file does not say
    """
    return check_family(identify(path), path, wanted)


def check_family(kind: ModelKind, path: Path | str, wanted: str = "auto") -> str:
    """The same for a file that has been identified already."""
    handled = " or ".join(FAMILY_NAMES[name] for name in (FAMILIES if wanted == "auto" else [wanted]))
    if kind.kind != "checkpoint":
        fix = "choose a checkpoint or a diffusers folder as the base model"
        if kind.kind in ("lora", "vae", "embedding"):
            fix += f"; this file belongs among the {'LoRAs' if kind.kind == 'lora' else kind.kind + 's'}"
        what = f"This file is not a checkpoint but: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, str(path), fix, code="model.not-a-checkpoint")
    if kind.variant is not None:
        raise ProblemsError.one(
            f"This model variant is not supported: {kind} ({kind.evidence})",
            str(path),
            f"choose a plain {handled} model",
            code="model.unsupported-variant",
        )
    found = kind.family or (wanted if wanted != "auto" else None)
    if found is None:
        raise ProblemsError.one(
            f"The family of this model is unknown ({kind.evidence})",
            str(path),
            "set the model family if you know it",
            code="model.undetected-family",
        )
    if found not in FAMILIES or wanted not in ("auto", found):
        article = "an" if FAMILY_NAMES[found][:2] in ("SD", "ot") else "a"
        raise ProblemsError.one(
            f"This is {article} {kind}; this job works with {handled}",
            str(path),
            f"choose a {handled} model as the base model ({kind.evidence})",
            code="model.other-family",
        )
    return found
