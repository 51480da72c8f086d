"""Model families: the parts of a model, loading, text encoding and layer names. Each family is a folder here."""

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
    """Register a model family for the page, presets, the command line and training.

    module       name of the Python module with `FAMILY`, a core.families.base.Family
    recognizes   (tensors, metadata of a file) -> the file's ModelKind, or None if it is not of this family
    traits       facts that are needed before the module is imported
    recognizes_folder   (folder) -> ModelKind or None, for diffusers folders; can read their JSON with detect.read_json
    lora_names   regular expression for the start of layer names that only LoRAs of this family have; "": their metadata decide
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
    """Import and return the family of this name. Raises ProblemsError if it is not registered."""
    modules = FAMILIES | STAGES
    if name not in modules:
        what = f"The model family '{name}' is unknown"
        raise ProblemsError.one(what, "model family", f"use one of: {', '.join(FAMILIES)}", "model.unknown-family")
    registered: Family = import_module(modules[name]).FAMILY
    return registered
