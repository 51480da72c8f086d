"""Migrate the values of presets, queues and projects from each schema version to the next."""

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
_FOLDER_SWITCH_1 = "compatibility"  # a folder could have its own way to read captions
# Version 2 has a task for each tool. Former task: its group of settings, the setting that chose the tool, its default, what
# the chosen tool read next to the folder.
_COPIES = {"output", "recursive", "copy_captions"}
_ENCODED = _COPIES | {"format", "quality"}
_FACES = {
    "crop_size", "interpolation", "face_rotate", "face_crop", "face_crop_ratio", "face_resize", "resize_face_size",
    "face_min_size", "face_max_size", "multiple_faces", "face_min_score",
}  # fmt: skip
FORMER_TOOLS: dict[str, tuple[str, str, dict[str, set[str]]]] = {
    "tool": (
        "name",
        "inspect",
        {"inspect": {"file"}, "export_diffusers": {"file", "output"}, "download": {"hub_id"}},
    ),
    "images": (
        "action",
        "resize",
        {
            "resize": {"folder", "max_resolution", "divisible_by", "interpolation"} | _ENCODED,
            "crop": {"folder", "crop_size", "crop_scaled", "interpolation"} | _ENCODED,
            "convert": {"folder"} | _ENCODED,
            "number": {"folder", "number_in_place", "number_prefix", "number_start", "number_digits"} | _COPIES,
            "undo_number": {"folder"},
            "faces": {"folder"} | _FACES | _COPIES,
            "edges": {"folder", "output", "recursive", "edge_low", "edge_high"},
        },
    ),
}

_DECOMPOSED_2 = ("dora", "dora_loha", "dora_lokr")

# Tools that another one replaced: former name -> its name now, and the settings by which it does the same
REPLACED_TOOLS: dict[str, tuple[str, Values]] = {
    "export_diffusers": ("convert_lora", {"names": "diffusers_folded"}),
    "edges": ("make_hints", {"preprocessor": "canny", "edge_low": 32, "edge_high": 224}),
}


def with_present_tool(task: str, values: Mapping[str, Any]) -> tuple[str, Values]:
    """Return (task, values) with a replaced tool and its settings under their current names; other tasks unchanged."""
    if task not in REPLACED_TOOLS:
        return task, dict(values)
    name, settings = REPLACED_TOOLS[task]
    group = values.get(task, {})
    others = {key: value for key, value in values.items() if key != task}
    return name, others | {name: settings | dict(group) if isinstance(group, Mapping) else group}


def tool_reads(task: str, tool: str, key: str) -> bool:
    """Return whether `tool`, one of the tools of the former task `task`, reads the setting `key`; true if no tool knows it, so that it is
    refused later."""
    chooser, _, tools = FORMER_TOOLS[task]
    return key in tools.get(tool, ()) or key not in {chooser}.union(*tools.values())


def _tool_as_task(task: str, values: Mapping[str, Any]) -> tuple[str, Values]:
    """Return (task, values) with a tool of the former tasks `tool` and `images` as a task of its own, with the settings that it reads. An
    unknown tool is left unchanged, to be refused later."""
    if task not in FORMER_TOOLS or not isinstance(group := values.get(task, {}), Mapping):
        return task, dict(values)
    chooser, usual, tools = FORMER_TOOLS[task]
    name = group.get(chooser, usual)
    if not isinstance(name, str) or name not in tools:
        return task, dict(values)
    effective = {key: value for key, value in group.items() if tool_reads(task, name, key)}
    return name, {key: value for key, value in values.items() if key != task} | {name: effective}


def to_version_2(task: str, values: Mapping[str, Any]) -> tuple[str, Values]:
    """Return (task, values) of schema version 1 with the names of version 2; current names are unchanged."""
    groups = {_TASKS_2.get(name, name): _renamed(value) for name, value in values.items()}
    return with_present_tool(*_tool_as_task(_TASKS_2.get(task, task), _with_one_compatibility(groups)))


def to_version_3(task: str, values: Mapping[str, Any]) -> tuple[str, Values]:
    """Return (task, values) of schema version 3 from version 2: DoRA without `wd_on_output` gets true, the default of version 2."""
    network = values.get("network")
    kind = network.get("kind") if isinstance(network, Mapping) else None
    kind_values = values.get(kind, {}) if kind in _DECOMPOSED_2 else None
    if not isinstance(kind_values, Mapping):
        return task, dict(values)
    return task, dict(values) | {str(kind): {"wd_on_output": True} | dict(kind_values)}


def switches_lost(values: Mapping[str, Any]) -> list[Problem]:
    """Return advice if values of version 1 follow sd-scripts only in part, since `model.compatibility` is all or nothing; else []."""
    on = _switched_on(values)
    off = [path for path in _SWITCHES_1 if path not in on and isinstance(values.get(path.split(".")[0]), Mapping)]
    if not on or not off:
        return []
    what = f"{_WHERE} now covers everything that follows sd-scripts: {', '.join(on)} had it on, {', '.join(off)} off"
    fix = f"{_WHERE} is set to {_compatibility_version(on)}; choose none to turn it off"
    return [Problem(what, _WHERE, fix, "advice", code="preset.compatibility-merged")]


def _with_one_compatibility(groups: Values) -> Values:
    """Remove the compatibility switches of version 1, in place, and set `model.compatibility` if one of them was on."""
    on = _switched_on(groups)
    for path in _SWITCHES_1:
        group, name = path.split(".")
        if path != _WHERE and isinstance(groups.get(group), dict):
            groups[group] = {key: value for key, value in groups[group].items() if key != name}
    for source in _sources(groups):
        source.pop(_FOLDER_SWITCH_1, None)
    if on and isinstance(groups.get("model"), dict):
        groups["model"] = groups["model"] | {"compatibility": _compatibility_version(on)}
    return groups


def _sources(groups: Mapping[str, Any]) -> list[Values]:
    """Return the dataset folders among a job's raw values, without malformed ones."""
    dataset = groups.get("dataset")
    sources = dataset.get("sources") if isinstance(dataset, Mapping) else None
    return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []


def _switched_on(groups: Mapping[str, Any]) -> dict[str, str]:
    """Return {dotted path: value} of the compatibility switches of version 1 that are on."""
    switched = {}
    for path, off in _SWITCHES_1.items():
        group, name = path.split(".")
        fields = groups.get(group)
        value = fields.get(name, off) if isinstance(fields, Mapping) else off
        if value != off and isinstance(value, str) and value.startswith("kohya"):
            switched[path] = value
    if any(str(source.get(_FOLDER_SWITCH_1, "")).startswith("kohya") for source in _sources(groups)):
        switched.setdefault("captions.compatibility", "kohya")
    return switched


def _compatibility_version(on: Mapping[str, str]) -> str:
    """Return the value of `model.compatibility` for the switches {dotted path: value} that are on."""
    return "sd-scripts-0.9" if "kohya_0.9" in on.values() else "sd-scripts-0.10"


def _renamed(value: Any) -> Any:
    """Rename settings, choices and folders of version 1 in nested JSON values."""
    if isinstance(value, Mapping):
        return {
            _NAMES_2.get(name, name): _renamed_choice(name, item) if name in _CHOICES_2 else _renamed(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    return _FOLDERS_2.get(value, value) if isinstance(value, str) else value


def _renamed_choice(name: str, value: Any) -> Any:
    """Return the current name of a choice of version 1 for the setting `name`; other values unchanged."""
    return _CHOICES_2[name].get(value, value) if isinstance(value, str) else value
