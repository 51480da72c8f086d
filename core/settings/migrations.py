"""Migrates the values of older presets, queues and projects from one schema version to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]

# old name -> current name, by schema version
_TASKS_2 = {"class_pictures": "class_images", "pictures": "images"}
_NAMES_2 = {"validation_pictures": "validation_images"}
_CHOICES_2 = {
    "prior": {"pictures": "images"},
    "mask_mean": {"picture": "image"},
    "role": {"regularisation": "regularization"},
}
_FOLDERS_2 = {"models/starter/pictures": "models/starter/images"}


def to_version_2(task: str, values: Mapping[str, Any]) -> tuple[str, Values]:
    """The task and its groups of settings under their names in version 2; current names are kept."""
    return _TASKS_2.get(task, task), {_TASKS_2.get(name, name): _renamed(value) for name, value in values.items()}


def _renamed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            _NAMES_2.get(name, name): _chosen(name, held) if name in _CHOICES_2 else _renamed(held)
            for name, held in value.items()
        }
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return _FOLDERS_2.get(value, value) if isinstance(value, str) else value


def _chosen(name: str, value: Any) -> Any:
    return _CHOICES_2[name].get(value, value) if isinstance(value, str) else value
