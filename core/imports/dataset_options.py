"""Every option of an sd-scripts dataset config: type, default there, allowed tables, and our setting for it.

Source: sd-scripts v0.9 to v0.10, config_util.py and train_util.py (reference: sections 1.3 to 1.6).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from core.settings.base import Declared, Settings
from core.settings.check import allowed
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import Source
from core.settings.dataset.validation import ValidationSettings

DREAMBOOTH, FINE_TUNING, CONDITIONED = "DreamBooth", "fine-tuning", "conditioned"
ALL = frozenset((DREAMBOOTH, FINE_TUNING, CONDITIONED))
BESIDE = frozenset((DREAMBOOTH, CONDITIONED))  # captions are next to the images

GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[datasets.subsets]]"
UP_TO_DATASET, ANYWHERE, IN_SUBSET = (GENERAL, DATASET), (GENERAL, DATASET, SUBSET), (SUBSET,)


@dataclass(frozen=True)
class Option:
    """One option.

    kind      of `KINDS`
    default   of sd-scripts
    levels    tables that allow it             methods   kinds of dataset that allow it
    setting   our name, where it is another one; None: there is none and it becomes something else (role, masks, ...)
    """

    name: str
    kind: str
    default: Any
    levels: tuple[str, ...] = ANYWHERE
    methods: frozenset[str] = ALL
    setting: str | None = ""


GROUPS: Mapping[str, type[Settings]] = {  # the job's groups that a folder can override
    "dataset": ImageSettings,
    "captions": CaptionSettings,
    "validation": ValidationSettings,
}
OPTIONS = {
    option.name: replace(option, setting=option.name) if option.setting == "" else option
    for option in (
        Option("resolution", "size", None, UP_TO_DATASET),
        Option("batch_size", "int", 1, UP_TO_DATASET, setting="train_batch_size"),
        Option("enable_bucket", "bool", False, UP_TO_DATASET),
        Option("min_bucket_reso", "int", 256, UP_TO_DATASET),
        Option("max_bucket_reso", "int", 1024, UP_TO_DATASET),
        Option("bucket_reso_steps", "int", 64, UP_TO_DATASET),
        Option("bucket_no_upscale", "bool", False, UP_TO_DATASET),
        Option("network_multiplier", "float", 1.0, UP_TO_DATASET),
        Option("validation_split", "float", 0.0, UP_TO_DATASET),
        Option("validation_seed", "int", None, UP_TO_DATASET),
        Option("skip_image_resolution", "number", 0, UP_TO_DATASET),
        Option("image_dir", "path", None, IN_SUBSET, setting="folder"),
        Option("metadata_file", "path", None, IN_SUBSET, frozenset((FINE_TUNING,))),
        Option("conditioning_data_dir", "path", None, IN_SUBSET, frozenset((CONDITIONED,))),
        Option("is_reg", "bool", False, IN_SUBSET, frozenset((DREAMBOOTH,)), None),
        Option("alpha_mask", "bool", False, IN_SUBSET, frozenset((DREAMBOOTH, FINE_TUNING))),
        Option("class_tokens", "text", None, ANYWHERE, frozenset((DREAMBOOTH,))),
        Option("caption_extension", "text", ".caption", ANYWHERE, BESIDE),
        Option("cache_info", "bool", False, ANYWHERE, BESIDE),
        Option("num_repeats", "int", 1),
        Option("shuffle_caption", "bool", False),
        Option("caption_separator", "text", ","),
        Option("keep_tokens", "int", 0),
        Option("keep_tokens_separator", "text", ""),
        Option("secondary_separator", "text", None),
        Option("enable_wildcard", "bool", False),
        Option("caption_prefix", "text", None),
        Option("caption_suffix", "text", None),
        Option("caption_dropout_rate", "number", 0),
        Option("caption_dropout_every_n_epochs", "int", 0),
        Option("caption_tag_dropout_rate", "number", 0),
        Option("token_warmup_min", "int", 1),
        Option("token_warmup_step", "number", 0),
        Option("color_aug", "bool", False),
        Option("flip_aug", "bool", False),
        Option("face_crop_aug_range", "range", None),
        Option("random_crop", "bool", False),
        Option("custom_attributes", "table", {}),
        Option("resize_interpolation", "text", None),
    )
}
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

TWO = Field(min_length=2, max_length=2)
KINDS: dict[str, tuple[Any, str]] = {  # kind -> its type, and what to write; true is not 1
    "int": (int, "a whole number"),
    "float": (int | float, "a number with a decimal point, such as 1.0"),  # sd-scripts refuses a whole number
    "number": (int | float, "a number"),
    "bool": (bool, "true or false"),
    "text": (str, "text in quotes"),
    "path": (str, "a path in quotes"),
    "size": (int | Annotated[list[int], TWO], "a whole number, or two in brackets: [768, 1024]"),
    "range": (Annotated[list[int | float], TWO], "two numbers in brackets: [0.2, 0.6]"),
    "table": (dict, "a table: { name = value }"),
}


def fits(kind: str, value: Any) -> bool:
    """Whether a value has the type."""
    try:
        TypeAdapter(KINDS[kind][0]).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


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
    model = GROUPS.get(declaration(option.setting).group, Source)
    needed = {"folder": "."} if model is Source else {}
    try:
        model.model_validate_json(json.dumps({**needed, option.setting: value}, default=str), strict=True)
    except ValidationError:
        return "use " + allowed(declaration(option.setting)).split(", or leave it empty")[0]
    return ""


def declaration(setting: str) -> Declared:
    """The declaration of a setting: from the common groups, else the folder's own."""
    for group, model in GROUPS.items():
        if setting in model.model_fields:
            return Declared(f"{group}.{setting}", group, setting, model.model_fields[setting])
    return Declared(f"sources.{setting}", "sources", setting, Source.model_fields[setting])
