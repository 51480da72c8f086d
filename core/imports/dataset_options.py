"""Every option of an sd-scripts dataset config: type, default there, allowed tables, and our setting for it.

Source: sd-scripts v0.9 to v0.10, config_util.py and train_util.py (reference: sections 1.3 to 1.6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.settings.base import Declared, Settings
from core.settings.check import allowed
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import Source
from core.settings.dataset.validation import ValidationSettings

DREAMBOOTH, FINE_TUNING, CONDITIONED = "DreamBooth", "fine-tuning", "conditioned"
ALL = frozenset((DREAMBOOTH, FINE_TUNING, CONDITIONED))
BESIDE = frozenset((DREAMBOOTH, CONDITIONED))  # captions are next to the images

GENERAL, DATASET, SUBSET = "general", "dataset", "subset"
UP_TO_DATASET = frozenset((GENERAL, DATASET))
ANYWHERE = frozenset((GENERAL, DATASET, SUBSET))
IN_SUBSET = frozenset((SUBSET,))


@dataclass(frozen=True)
class Option:
    """One option.

    kind      int, float (sd-scripts refuses a whole number), number, bool, text, path, size (one whole number or two),
              range (two floats) or table
    default   of sd-scripts
    levels    tables that allow it             methods   kinds of dataset that allow it
    setting   our name; None: there is none and it becomes something else (role, masks, ...)
    """

    name: str
    kind: str
    default: Any
    levels: frozenset[str] = ANYWHERE
    methods: frozenset[str] = ALL
    setting: str | None = None


def _options() -> dict[str, Option]:
    def named(
        name: str,
        kind: str,
        default: Any,
        levels: frozenset[str] = ANYWHERE,
        methods: frozenset[str] = ALL,
        setting: str = "",
    ) -> Option:
        return Option(name, kind, default, levels, methods, setting or name)

    listed = [
        named("resolution", "size", None, UP_TO_DATASET),
        named("batch_size", "int", 1, UP_TO_DATASET, setting="train_batch_size"),
        named("enable_bucket", "bool", False, UP_TO_DATASET),
        named("min_bucket_reso", "int", 256, UP_TO_DATASET),
        named("max_bucket_reso", "int", 1024, UP_TO_DATASET),
        named("bucket_reso_steps", "int", 64, UP_TO_DATASET),
        named("bucket_no_upscale", "bool", False, UP_TO_DATASET),
        named("network_multiplier", "float", 1.0, UP_TO_DATASET),
        named("validation_split", "float", 0.0, UP_TO_DATASET),
        named("validation_seed", "int", None, UP_TO_DATASET),
        named("skip_image_resolution", "number", 0, UP_TO_DATASET),
        named("image_dir", "path", None, IN_SUBSET, setting="folder"),
        named("metadata_file", "path", None, IN_SUBSET, frozenset((FINE_TUNING,))),
        named("conditioning_data_dir", "path", None, IN_SUBSET, frozenset((CONDITIONED,))),
        Option("is_reg", "bool", False, IN_SUBSET, frozenset((DREAMBOOTH,))),
        named("alpha_mask", "bool", False, IN_SUBSET, frozenset((DREAMBOOTH, FINE_TUNING))),
        named("class_tokens", "text", None, ANYWHERE, frozenset((DREAMBOOTH,))),
        named("caption_extension", "text", ".caption", ANYWHERE, BESIDE),
        named("cache_info", "bool", False, ANYWHERE, BESIDE),
        named("num_repeats", "int", 1),
        named("shuffle_caption", "bool", False),
        named("caption_separator", "text", ","),
        named("keep_tokens", "int", 0),
        named("keep_tokens_separator", "text", ""),
        named("secondary_separator", "text", None),
        named("enable_wildcard", "bool", False),
        named("caption_prefix", "text", None),
        named("caption_suffix", "text", None),
        named("caption_dropout_rate", "number", 0),
        named("caption_dropout_every_n_epochs", "int", 0),
        named("caption_tag_dropout_rate", "number", 0),
        named("token_warmup_min", "int", 1),
        named("token_warmup_step", "number", 0),
        named("color_aug", "bool", False),
        named("flip_aug", "bool", False),
        named("face_crop_aug_range", "range", None),
        named("random_crop", "bool", False),
        named("custom_attributes", "table", {}),
        named("resize_interpolation", "text", None),
    ]
    return {option.name: option for option in listed}


OPTIONS = _options()
PATHS = tuple(name for name, option in OPTIONS.items() if option.kind == "path")
REQUIRED = {
    DREAMBOOTH: ("image_dir",),
    FINE_TUNING: ("metadata_file",),
    CONDITIONED: ("image_dir", "conditioning_data_dir"),
}
# Empty text means "not set" in sd-scripts; these settings are None then.
EMPTY_IS_NONE = ("keep_tokens_separator", "secondary_separator", "caption_prefix", "caption_suffix")
INTERPOLATIONS = {
    **{name: name for name in ("lanczos", "nearest", "bilinear", "bicubic", "area", "box")},
    "linear": "bilinear",
    "cubic": "bicubic",
}
# Names of the same options on sd-scripts' command line.
COMMAND_LINE_NAMES = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}

EXPECTED = {
    "int": "a whole number",
    "float": "a number with a decimal point, such as 1.0",
    "number": "a number",
    "bool": "true or false",
    "text": "text in quotes",
    "path": "a path in quotes",
    "size": "a whole number, or two in brackets: [768, 1024]",
    "range": "two numbers in brackets: [0.2, 0.6]",
    "table": "a table: { name = value }",
}


def fits(kind: str, value: Any) -> bool:
    """Whether a value has the type. A whole number is accepted as a float; true is not 1."""
    whole = type(value) is int
    number = whole or type(value) is float
    if kind == "size":
        return whole or (isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value))
    if kind == "range":
        return isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)
    checks = {
        "int": whole,
        "float": number,
        "number": number,
        "bool": type(value) is bool,
        "text": isinstance(value, str),
        "path": isinstance(value, str),
        "table": isinstance(value, dict),
    }
    return checks[kind]


def refused_there(kind: str, value: Any) -> bool:
    """Whether sd-scripts refuses this value although its meaning is clear: a whole number for a float."""
    if kind == "float":
        return type(value) is int
    return kind == "range" and any(type(end) is int for end in value)


def to_setting(option: Option, value: Any) -> Any:
    """An option's value as our setting takes it, in JSON types. Raises KeyError for an unknown interpolation."""
    if option.name in EMPTY_IS_NONE and value == "":
        return None
    if option.name == "resize_interpolation":
        return "auto" if value is None else INTERPOLATIONS[value]
    if option.name == "caption_extension" and not value.startswith("."):
        return "." + value
    if option.kind == "size" and isinstance(value, list) and value[0] == value[1]:
        return value[0]
    return value


def range_of(option: Option, value: Any) -> str:
    """What our setting allows, in words, if the value is outside it; else empty. value: as a setting."""
    if option.setting is None:
        return ""
    model = groups().get(declaration(option.setting).group, Source)
    needed = {"folder": "."} if model is Source else {}
    try:
        model.model_validate_json(json.dumps({**needed, option.setting: value}, default=str), strict=True)
    except ValidationError:
        return "use " + allowed(declaration(option.setting)).split(", or leave it empty")[0]
    return ""


def declaration(setting: str) -> Declared:
    """The declaration of a setting: from the common groups, else the folder's own."""
    for group, model in groups().items():
        if setting in model.model_fields:
            return Declared(f"{group}.{setting}", group, setting, model.model_fields[setting])
    return Declared(f"sources.{setting}", "sources", setting, Source.model_fields[setting])


def groups() -> Mapping[str, type[Settings]]:
    """The job's groups that a folder can override."""
    return {"dataset": ImageSettings, "captions": CaptionSettings, "validation": ValidationSettings}
