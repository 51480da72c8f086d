"""Every option of an sd-scripts dataset config: type, default, allowed tables, and the setting that it corresponds to.

Source: sd-scripts v0.9 to v0.10, config_util.py and train_util.py (reference: sections 1.3 to 1.6).
"""

from __future__ import annotations

import json
import math
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
CAPTION_FILES = frozenset((DREAMBOOTH, CONDITIONED))  # captions are next to the images

GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[datasets.subsets]]"
UP_TO_DATASET, ANYWHERE, IN_SUBSET = (GENERAL, DATASET), (GENERAL, DATASET, SUBSET), (SUBSET,)


@dataclass(frozen=True)
class Option:
    """An option of an sd-scripts dataset config.

    default  sd-scripts' default
    levels   tables that allow the option: GENERAL, DATASET, SUBSET
    methods  kinds of dataset that allow the option: DREAMBOOTH, FINE_TUNING, CONDITIONED
    setting  name of the corresponding setting; "": the same name; None: converted otherwise (to role, masks, ...)
    kind     key of KINDS; "": follows from the setting's declaration
    """

    name: str
    default: Any
    levels: tuple[str, ...] = ANYWHERE
    methods: frozenset[str] = ALL
    setting: str | None = ""
    kind: str = ""

    def completed(self) -> Option:
        """Return the option with an empty `setting` or `kind` filled in from the declaration of the setting."""
        setting = self.name if self.setting == "" else self.setting
        if setting is None or self.kind:
            return replace(self, setting=setting)
        entry = declaration(setting)
        kind = "path" if entry.names == "path" else {"pair": "size", "choice": "text"}.get(entry.kind, entry.kind)
        if kind == "float" and type(self.default) is int:
            kind = "number"  # sd-scripts takes whole numbers where its default is one
        return replace(self, setting=setting, kind=kind)


GROUPS: Mapping[str, type[Settings]] = {  # the job's groups that a folder can override
    "dataset": ImageSettings,
    "captions": CaptionSettings,
    "validation": ValidationSettings,
}


def declaration(setting: str) -> Declared:
    """Return the declaration of a setting, from the groups in GROUPS, else from `Source`."""
    for group, model in GROUPS.items():
        if setting in model.model_fields:
            return Declared(f"{group}.{setting}", group, setting, model.model_fields[setting])
    return Declared(f"sources.{setting}", "sources", setting, Source.model_fields[setting])


OPTIONS = {
    option.name: option.completed()
    for option in (
        Option("resolution", None, UP_TO_DATASET),
        Option("batch_size", 1, UP_TO_DATASET, setting="train_batch_size"),
        Option("enable_bucket", False, UP_TO_DATASET),
        Option("min_bucket_reso", 256, UP_TO_DATASET),
        Option("max_bucket_reso", 1024, UP_TO_DATASET),
        Option("bucket_reso_steps", 64, UP_TO_DATASET),
        Option("bucket_no_upscale", False, UP_TO_DATASET),
        Option("network_multiplier", 1.0, UP_TO_DATASET),
        Option("validation_split", 0.0, UP_TO_DATASET),
        Option("validation_seed", None, UP_TO_DATASET),
        Option("skip_image_resolution", 0, UP_TO_DATASET, kind="area"),
        Option("image_dir", None, IN_SUBSET, setting="folder"),
        Option("metadata_file", None, IN_SUBSET, frozenset((FINE_TUNING,))),
        Option("conditioning_data_dir", None, IN_SUBSET, frozenset((CONDITIONED,))),
        Option("is_reg", False, IN_SUBSET, frozenset((DREAMBOOTH,)), None, "bool"),
        Option("alpha_mask", False, IN_SUBSET, frozenset((DREAMBOOTH, FINE_TUNING))),
        Option("class_tokens", None, ANYWHERE, frozenset((DREAMBOOTH,))),
        Option("caption_extension", ".caption", ANYWHERE, CAPTION_FILES),
        Option("cache_info", False, ANYWHERE, CAPTION_FILES),
        Option("num_repeats", 1),
        Option("shuffle_caption", False),
        Option("caption_separator", ","),
        Option("keep_tokens", 0),
        Option("keep_tokens_separator", ""),
        Option("secondary_separator", None),
        Option("enable_wildcard", False),
        Option("caption_prefix", None),
        Option("caption_suffix", None),
        Option("caption_dropout_rate", 0),
        Option("caption_dropout_every_n_epochs", 0),
        Option("caption_tag_dropout_rate", 0),
        Option("token_warmup_min", 1),
        Option("token_warmup_step", 0),
        Option("color_aug", False),
        Option("flip_aug", False),
        Option("face_crop_aug_range", None, kind="range"),
        Option("random_crop", False),
        Option("custom_attributes", {}, kind="table"),
        Option("resize_interpolation", None),
    )
}
# Options that sd-scripts' scripts for a training method refuse; those for ControlNets stop where images are held out
REFUSED: dict[str, tuple[str, ...]] = {
    "embedding": ("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate"),
    **dict.fromkeys(("controlnet", "lllite"), ("validation_split",)),
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
    "area": (int | float | Annotated[list[int], TWO], "a number, or two whole ones in brackets: [512, 768]"),
    "range": (Annotated[list[int | float], TWO], "two numbers in brackets: [0.2, 0.6]"),
    "table": (dict, "a table: { name = value }"),
}


def fits(kind: str, value: Any) -> bool:
    """Return whether a value has the type that KINDS lists under `kind`."""
    try:
        TypeAdapter(KINDS[kind][0]).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def sd_scripts_refuses(kind: str, value: Any) -> bool:
    """Return whether sd-scripts refuses a value whose meaning is clear: a whole number where it requires a float. kind: a key of KINDS"""
    if kind == "float":
        return type(value) is int
    return kind == "range" and any(type(end) is int for end in value)


def to_setting(option: Option, value: Any) -> Any:
    """Convert an option's value to the value of its setting, in JSON types. Raises KeyError for an unknown interpolation."""
    if option.name in EMPTY_IS_NONE and value == "":
        return None
    if option.name == "resize_interpolation":
        return "auto" if value is None else INTERPOLATIONS[value]
    if option.name == "caption_extension" and not value.startswith("."):
        return "." + value
    if option.kind in ("size", "area") and isinstance(value, list) and value[0] == value[1]:
        return value[0]
    return side_of_area(*value) if option.kind == "area" and isinstance(value, list) else value


def side_of_area(width: int, height: int) -> float:
    """Return the side of a square of this many pixels, rounded up so that no other whole number of pixels fits into it."""
    return math.ceil(math.sqrt(width * height) * 1e5) / 1e5


def area_of_side(side: float) -> int | list[int]:
    """Return a side as sd-scripts takes a resolution: a whole number, else [1, pixels of the square]."""
    return int(side) if side == int(side) else [1, int(side * side)]


def range_fix(option: Option, value: Any) -> str:
    """Return the fix ("use 1 to 64") for a value that the option's setting does not allow; "" for an allowed one, and for an option without
    a setting.
    value: already converted by `to_setting`"""
    if option.setting is None:
        return ""
    model = GROUPS.get(declaration(option.setting).group, Source)
    needed = {"folder": "."} if model is Source else {}
    try:
        model.model_validate_json(json.dumps({**needed, option.setting: value}, default=str), strict=True)
    except ValidationError:
        return "use " + allowed(declaration(option.setting), empty="")
    return ""
