"""Reads the training settings of OneTrainer: a preset, a saved config, or the one that a LoRA file has in it."""

from __future__ import annotations

from collections.abc import Iterable

from core.imports.projects.onetrainer_config import NAME, TITLE, data, resolve, rows, table
from core.imports.projects.onetrainer_lists import concepts, items, samples
from core.imports.projects.onetrainer_rules import FIXED, RULES
from core.imports.projects.report import Import, Source
from core.imports.projects.table import first_other, to_import
from core.settings.presets.foreign import MARKS, ONETRAINER

__all__ = ["NAME", "TITLE", "keys", "read", "recognizes"]


def recognizes(source: Source) -> bool:
    given = source.json
    if given is None or "schema_version" in given:
        return False
    return "training_method" in given or len(MARKS[ONETRAINER] & given.keys()) > 2


def keys() -> Iterable[str]:
    """Every key that it knows; those of parts, concepts and samples with dots."""
    return [*rows(), *data()["former"]]


def read(source: Source) -> Import:
    config = resolve(source)
    settings = config.ruled(RULES)
    folders = items(config, "concepts", "concept_file_name")
    prompts = items(config, "samples", "sample_definition_file_name")
    settings |= concepts(config, folders) | samples(config, prompts)
    written = config.written | first_other([*folders, *prompts], table())
    return to_import(config, settings, written, FIXED, NAME, f"{config['training_method']} of {config['model_type']}")
