"""Resolve a config of OneTrainer: update older versions, and fill in defaults for missing and invalid values.

The rules are those of Nerogar/OneTrainer 23df383; onetrainer.json is the table of its keys.
"""

from collections.abc import Mapping
from typing import Any

from core.imports.projects.report import Source
from core.imports.projects.table import Config as TableConfig
from core.imports.projects.table import Values, flattened, other_family, read_table
from core.record.problems import ProblemsError
from core.settings.check import shorten

NAME, TITLE = "onetrainer", "OneTrainer"
VERSION = 11
TRAINED = ("unet", "text_encoder", "text_encoder_2")
PARTS = (*TRAINED, "vae", "embedding", "optimizer")
# Keys that may be null although their default is not
NULLABLE = ("clip_grad_norm", "embedding.token_count", *(f"{part}.stop_training_after" for part in TRAINED))
OFF = (None, False, 0, "", "0", "0.0")
TABLE = read_table(NAME, TITLE, ("concepts.", "samples."), NULLABLE)


class Config(TableConfig):
    """A config of OneTrainer in the current version."""

    @property
    def encoders(self) -> list[str]:
        """Names of the model's text encoders: "text_encoder", and for SDXL "text_encoder_2"."""
        return list(TRAINED[1:] if TABLE.data["families"][self["model_type"]][0] == "sdxl" else TRAINED[1:2])

    @property
    def accumulation(self) -> int:
        """Gradient accumulation steps, at least 1."""
        return max(1, self["gradient_accumulation_steps"])

    def trains(self, encoder: str) -> bool:
        """Return whether a text encoder trains: it is on, and does not stop at step or epoch 0."""
        after, unit = (self[f"{encoder}.stop_training_after{end}"] for end in ("", "_unit"))
        return self[f"{encoder}.train"] and not (after == 0 and unit in ("EPOCH", "STEP"))


def resolve(source: Source) -> Config:
    """Return the resolved config. Raises ProblemsError for models and methods that are not trained here."""
    options = source.json or {}
    config = Config(TABLE, source, flattened(options, PARTS))
    config.values = config.read(_updated(config, _version(options)))
    model, method, where = config["model_type"], config["training_method"], source.where
    if model not in TABLE.data["families"]:
        raise other_family(config, model)
    if method not in TABLE.data["methods"]:
        fix = "open a preset for a LoRA, fine-tuning or an embedding"
        raise ProblemsError.one(f"The method {shorten(method)} is not available", where, fix, "import.other-method")
    config.method = TABLE.data["methods"][method]
    for key in config.written:
        if key in TABLE.data["former"]:
            config.note(key, "unavailable", "is read by OneTrainer only in older files")
    return config


def _version(options: Mapping[str, Any]) -> int:
    """Return the version of a file; without one 0 if the keys are those of the first version, else the current one."""
    stated = options.get("__version")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return stated
    first = isinstance(options.get("optimizer"), str) or {"train_unet", "unet_learning_rate"} & options.keys()
    return 0 if first else VERSION


def _updated(config: Config, version: int) -> Values:
    """Return {current key: value} of what the file states; renamed keys are noted in `config.current_keys`."""
    written, raw = config.written, Values()
    for key, value in written.items():
        before, name = TABLE.data["former"].get(key, (0, ""))
        if version < 1 and key.startswith("optimizer") and key != "optimizer_defaults" and "." not in key:
            before, name = 1, f"optimizer.{key.removeprefix('optimizer_')}"
        if version < before and name:
            config.current_keys[key] = name
        raw[config.current_keys.get(key, key)] = value
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
    method = written.get("training_method")
    if version < 11 and raw.get("output_model_format") == "SAFETENSORS" and method != "EMBEDDING":
        raw["output_model_format"] = "LEGACY_LORA" if method == "LORA" else "LEGACY_SAFETENSORS"
    if version < 11 and "gradient_checkpointing" in written:
        raw["unet.gradient_checkpointing"] = written["gradient_checkpointing"] not in (*OFF, "OFF")
        if version > 1 and not any(key.startswith("unet.") for key in written):  # it is set in parts that the file has
            del raw["unet.gradient_checkpointing"]
    return raw


def _timesteps(raw: Mapping[str, Any]) -> Values:
    """Return {current key: value} of "timestep_distribution", "noising_weight" and "noising_bias" for a config of a version before 4.
    raw: {former key: value}"""
    if raw.get("noising_weight") in OFF:
        return {"timestep_distribution": "UNIFORM", "noising_weight": 0.0, "noising_bias": 0.0}
    bias = raw.get("noising_bias", 0.5)
    is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
    return {"timestep_distribution": "SIGMOID", "noising_bias": bias - 0.5 if is_number else bias}
