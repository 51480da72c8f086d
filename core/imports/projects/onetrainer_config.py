"""A config of OneTrainer as it resolves it: older versions are brought up to date, and what is missing or wrong has its defaults.

The rules are those of Nerogar/OneTrainer 23df383; onetrainer.json is the table of its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from core.imports.projects.options import DecimalComma, Option, convert
from core.imports.projects.report import Kind, Source
from core.record.problems import Problem, ProblemsError
from core.settings.check import shorten

T = TypeVar("T")
Values = dict[str, Any]
FILE = Path(__file__).with_name("onetrainer.json")
VERSION = 11
TRAINED = ("unet", "text_encoder", "text_encoder_2")
PARTS = (*TRAINED, "vae", "embedding", "optimizer")
LISTS = ("concepts.", "samples.")
IDLE, SECRET = "-", "secret"
TYPES = {bool: "bool", int: "int", float: "float", type(None): "float"}
# Keys that may be null although their default is not
NULLABLE = ("clip_grad_norm", "embedding.token_count", *(f"{part}.stop_training_after" for part in TRAINED))
OFF = (None, False, 0, "", "0", "0.0")
KINDS: dict[str, Kind] = {"~": "changed", "!": "unavailable"}


@dataclass(frozen=True)
class Row:
    """One key, as the table describes it."""

    default: Any
    here: str
    sentence: str = ""
    choices: Mapping[str, Any] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        """The settings that it becomes."""
        paths = [] if self.here in (IDLE, SECRET) else self.here.removeprefix("=").split()
        return list(dict.fromkeys("dataset.sources" if path.startswith("sources.") else path for path in paths))

    def note(self, value: Any) -> str:
        """What the table says of a value."""
        return self.notes.get(str(value)) or ("" if value == self.default else self.notes.get("*", ""))


@cache
def data() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text("utf-8"))


@cache
def rows() -> dict[str, Row]:
    """Every key; those of parts, concepts and samples with dots."""
    found: dict[str, Row] = {}
    for names, cells in data()["keys"].items():
        parts, colon, keys = names.rpartition(":")
        starts = [f"{part}." for part in parts.split()] if colon else [""]
        found |= {start + key: Row(*cells) for start in starts for key in keys.split()}
    return found


@cache
def _below(prefix: str) -> dict[str, Row]:
    """The rows of concepts or samples; "" is the config itself."""
    found = {key: row for key, row in rows().items() if row.here != SECRET}
    return {key: row for key, row in found.items() if (key.startswith(prefix) if prefix else not key.startswith(LISTS))}


@dataclass
class Config:
    """What OneTrainer makes of a file, by key: those of a part with a dot ("unet.train").

    written   the file's own keys and values          today   key of the file -> its key of today, where that is another
    """

    source: Source
    written: Values
    values: Values = field(default_factory=dict)
    today: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[Kind, str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def note(self, key: str, kind: Kind, sentence: str) -> None:
        self.notes[key] = (kind, sentence)

    def warn(self, what: str, key: str, fix: str, code: str) -> None:
        self.problems.append(Problem(what, key, fix, "warning", code=code))

    def among(self, key: str, choices: Mapping[str, T], value: Any = None) -> T:
        """What a key's value stands for; that of its default, with a note, where it is none of the choices."""
        value, default = str(self[key] if value is None else value), str(rows()[key].default)
        if value not in choices:
            self.note(key, "unavailable", f"{shorten(value)} is none of {', '.join(choices)}; {default} is set")
        return choices[value if value in choices else default]

    @property
    def method(self) -> str:
        return data()["methods"][self["training_method"]]

    @property
    def encoders(self) -> list[str]:
        """The text encoders of the model."""
        return list(TRAINED[1:] if data()["families"][self["model_type"]][0] == "sdxl" else TRAINED[1:2])

    @property
    def accumulation(self) -> int:
        return max(1, self["gradient_accumulation_steps"])

    def trains(self, encoder: str) -> bool:
        """Whether a text encoder trains at all."""
        after, unit = (self[f"{encoder}.stop_training_after{end}"] for end in ("", "_unit"))
        return self[f"{encoder}.train"] and not (after == 0 and unit in ("EPOCH", "STEP"))

    def take(self, raw: Mapping[str, Any], prefix: str = "") -> Values:
        """The values of all keys below a prefix; what is wrong keeps its default. Notes what the table says of them."""
        values = {}
        for key, row in _below(prefix).items():
            values[key] = row.default
            try:
                values[key] = _converted(key, row, raw[key]) if key in raw else row.default
            except ValueError as error:
                self.note(key, "unavailable", f"{error}; OneTrainer's default is set: {shorten(row.default)}")
                if isinstance(error, DecimalComma):
                    self.warn(str(error), key, "write numbers with a point", "import.decimal-comma")
            else:
                if sentence := row.note(values[key]):
                    self.note(key, KINDS[sentence[0]], sentence[1:])
        return values


def _converted(key: str, row: Row, value: Any) -> Any:
    """A value in the type of the key's default. Raises ValueError."""
    kind = type(row.default)
    if row.here == IDLE or kind is list:
        return value
    if value is None:
        return None if row.default is None or key in NULLABLE else row.default
    if kind is not str:
        found = convert(Option(key, TYPES[kind]), value)[0]
        return row.default if found is None else found
    if isinstance(value, (dict, list)):
        raise ValueError(f"{shorten(value)} is not a text")
    return str(value)


def resolve(source: Source) -> Config:
    """The config. Raises ProblemsError for models and methods that are not trained here."""
    given = source.json or {}
    config = Config(source, flattened(given, PARTS))
    config.values = config.take(_updated(config, _version(given)))
    model, method, where = config["model_type"], config["training_method"], source.where
    if model not in data()["families"]:
        family = next((title for part, title in data()["others"].items() if part in model), shorten(model))
        fix = "open a preset for SD 1.x, SD 2.x or SDXL"
        raise ProblemsError.one(f"This preset trains {family} models", where, fix, "import.other-family")
    if method not in data()["methods"]:
        fix = "open a preset for a LoRA, fine-tuning or an embedding"
        raise ProblemsError.one(f"The method {shorten(method)} is not available", where, fix, "import.other-method")
    return config


def flattened(given: Mapping[str, Any], parts: tuple[str, ...]) -> Values:
    """{"unet.train": True} of {"unet": {"train": True}} for these parts."""
    flat: Values = {}
    for key, value in given.items():
        inside = key in parts and isinstance(value, dict)
        flat |= {f"{key}.{name}": each for name, each in value.items()} if inside else {key: value}
    return flat


def _version(given: Mapping[str, Any]) -> int:
    """The version of a file; 0 for one without, if its keys are those of the first version, else today's."""
    stated = given.get("__version")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return stated
    return (
        0 if isinstance(given.get("optimizer"), str) or {"train_unet", "unet_learning_rate"} & given.keys() else VERSION
    )


def _updated(config: Config, version: int) -> Values:
    """What is written, under the keys of today."""
    written, raw = config.written, Values()
    for key, value in written.items():
        before, name = data()["former"].get(key, (0, ""))
        if version < 1 and key.startswith("optimizer") and key != "optimizer_defaults" and "." not in key:
            before, name = 1, f"optimizer.{key.removeprefix('optimizer_')}"
        if version < before and name:
            config.today[key] = name
        raw[config.today.get(key, key)] = value
    for part in TRAINED:
        if version < 2 and f"train_{part}_epochs" in written:
            raw[f"{part}.stop_training_after_unit"] = "EPOCH"
        if version < 10 and raw.get(f"{part}.weight_dtype") == "NONE":
            raw[f"{part}.weight_dtype"] = written.get("weight_dtype", "FLOAT_32")
    if version < 3 and written.get("min_snr_gamma") in OFF:
        raw.pop("loss_weight_strength", None)
    elif version < 3:
        raw["loss_weight_fn"] = "MIN_SNR_GAMMA"
    if version < 4:
        raw |= _timesteps(raw)
    if version < 7 and raw.get("layer_filter_preset", "") is None:
        raw["layer_filter_preset"] = "full"
    if (
        version < 11
        and raw.get("output_model_format") == "SAFETENSORS"
        and written.get("training_method") != "EMBEDDING"
    ):
        raw["output_model_format"] = "LEGACY_LORA" if written.get("training_method") == "LORA" else "LEGACY_SAFETENSORS"
    if version < 11 and "gradient_checkpointing" in written:
        raw["unet.gradient_checkpointing"] = written["gradient_checkpointing"] not in (*OFF, "OFF")
        if version > 1 and not any(key.startswith("unet.") for key in written):  # it is set in parts that the file has
            del raw["unet.gradient_checkpointing"]
    return raw


def _timesteps(raw: Mapping[str, Any]) -> Values:
    """The timestep distribution of versions before 4."""
    if raw.get("noising_weight") in OFF:
        return {"timestep_distribution": "UNIFORM", "noising_weight": 0.0, "noising_bias": 0.0}
    bias = raw.get("noising_bias", 0.5)
    plain = isinstance(bias, (int, float)) and not isinstance(bias, bool)
    return {"timestep_distribution": "SIGMOID", "noising_bias": bias - 0.5 if plain else bias}
