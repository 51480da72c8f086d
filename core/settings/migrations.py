"""Migrates the values of older presets, queues and projects from one schema version to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.record.problems import Problem

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


# Version 1 had a switch for each thing that follows sd-scripts: path -> its value when off
_SWITCHES_1 = {
    "model.compatibility": "none",
    "dataset.reg_balance": "rotate",
    "dataset.crop_conditioning": "true",
    "captions.compatibility": "none",
    "network.weights_scale": "file",
    "network.base_weights_layers": "own",
    "optimizer.compatibility": "none",
    "schedule.compatibility": "none",
    "noise.compatibility": "none",
    "samples.compatibility": "none",
}
_WHERE = "model.compatibility"


def to_version_2(task: str, values: Mapping[str, Any]) -> tuple[str, Values]:
    """The task and its groups of settings under their names in version 2; current names are kept."""
    found = {_TASKS_2.get(name, name): _renamed(value) for name, value in values.items()}
    return _TASKS_2.get(task, task), _with_one_compatibility(found)


def switches_lost(values: Mapping[str, Any]) -> list[Problem]:
    """Advice where version 1 followed sd-scripts in some things and not in others, which one setting cannot."""
    on = _switched_on(values)
    off = [path for path in _SWITCHES_1 if path not in on and isinstance(values.get(path.split(".")[0]), Mapping)]
    if not on or not off:
        return []
    what = (
        f"{_WHERE} is now one setting for all that follows sd-scripts: {', '.join(on)} had it on, {', '.join(off)} off"
    )
    fix = f"{_WHERE} is set to {_version(on)}; choose none to follow it in nothing"
    return [Problem(what, _WHERE, fix, "advice", code="preset.compatibility-merged")]


def _with_one_compatibility(groups: Values) -> Values:
    """The switches of version 1 taken out, and `model.compatibility` set where one of them was on."""
    on = _switched_on(groups)
    for path in _SWITCHES_1:
        group, name = path.split(".")
        if path != _WHERE and isinstance(groups.get(group), dict):
            groups[group] = {key: value for key, value in groups[group].items() if key != name}
    if on and isinstance(groups.get("model"), dict):
        groups["model"] = groups["model"] | {"compatibility": _version(on)}
    return groups


def _switched_on(groups: Mapping[str, Any]) -> dict[str, str]:
    """{path: value} of the switches of version 1 that are on."""
    found = {}
    for path, off in _SWITCHES_1.items():
        group, name = path.split(".")
        fields = groups.get(group)
        value = fields.get(name, off) if isinstance(fields, Mapping) else off
        if value != off and isinstance(value, str) and value.startswith("kohya"):
            found[path] = value
    return found


def _version(on: Mapping[str, str]) -> str:
    return "sd-scripts-0.9" if "kohya_0.9" in on.values() else "sd-scripts-0.10"


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
