"""Model families: which parts a model has, how they are loaded and read. A family is a folder here."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

from core.families.locate import FAMILIES, STAGES
from core.formats.detect import FAMILY_NAMES, FOLDER_RECOGNIZERS, LORA_NAMES, RECOGNIZERS, FolderRecognizer, Recognizer
from core.record.problems import ProblemsError
from core.settings.growth import add_choice
from core.settings.model import FAMILIES as TRAITS
from core.settings.model import OTHER_FAMILY, FamilyTraits, ModelSettings

if TYPE_CHECKING:
    from core.families.base import Family


def register(
    name: str,
    title: str,
    module: str,
    recognizes: Recognizer,
    traits: FamilyTraits = OTHER_FAMILY,
    recognizes_folder: FolderRecognizer | None = None,
    lora_names: str = "",
) -> None:
    """Offer a family: from now on the page, presets, the command line and trainings know it.

    module       whose FAMILY it is: a core.families.base.Family
    recognizes   (tensors and metadata of a file) -> what the file is, or None where it is not of this family
    traits       what rules ask before anything is loaded
    lora_names   regular expression for the beginning of a layer's name that only its LoRAs have; without one their family is
                 what the metadata say
    recognizes_folder   (folder) -> the same, for families that come as folders; it may read their JSON with detect.read_json
    """
    FAMILIES[name], FAMILY_NAMES[name] = module, title
    TRAITS[name] = traits
    RECOGNIZERS.append(recognizes)
    if lora_names:
        LORA_NAMES[name] = re.compile(lora_names)
    if recognizes_folder is not None:
        FOLDER_RECOGNIZERS.append(recognizes_folder)
    add_choice(ModelSettings, "family", name, title)


def family(name: str) -> Family:
    """A family by its name. ProblemsError for one that is not registered."""
    modules = FAMILIES | STAGES
    if name not in modules:
        what = f"The model family '{name}' is unknown"
        raise ProblemsError.one(what, "model family", f"use one of: {', '.join(FAMILIES)}", "model.unknown-family")
    found: Family = import_module(modules[name]).FAMILY
    return found
