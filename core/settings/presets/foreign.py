"""Recognize config files of other trainers that are opened as presets, and report how to import them."""

from collections.abc import Mapping
from typing import Any

from core.record.bounded_toml import bounded_loads
from core.record.bounded_yaml import bounded_yaml
from core.record.problems import Problem

KOHYA_GUI, SD_SCRIPTS, ONETRAINER = "kohya_ss", "sd-scripts", "OneTrainer"
AI_TOOLKIT, SIMPLETUNER = "AI Toolkit", "SimpleTuner"
# Top-level names of each program's files that Atelier's presets do not have; three matches identify the program.
MARKS = {
    AI_TOOLKIT: {"job", "config.name", "config.process"},
    SIMPLETUNER: {"model_family", "data_backend_config", "lora_type", "aspect_bucket_rounding", "resolution_type", "validation_prompt",
                  "checkpointing_steps", "checkpoint_step_interval", "caption_dropout_probability", "validation_resolution"},
    ONETRAINER: {"training_method", "model_type", "base_model_name", "learning_rate_scheduler", "concept_file_name",
                 "concepts", "workspace_dir", "lora_rank", "output_model_destination", "batch_size", "__version"},
    KOHYA_GUI: {"pretrained_model_name_or_path", "LoRA_type", "train_data_dir", "output_dir", "output_name", "network_dim",
                "train_batch_size", "learning_rate", "max_resolution", "lr_scheduler", "mixed_precision", "epoch",
                "network_module", "optimizer_type", "max_train_steps", "max_train_epochs", "resolution", "dataset_config"},
}  # fmt: skip
CONFIG_MARKS = {"_class_name", "_diffusers_version", "architectures", "transformers_version"}


def toml_values(text: str) -> dict[str, Any] | None:
    """Return the tables of a TOML text; None for invalid TOML."""
    try:
        return bounded_loads(text)
    except (RecursionError, ValueError):
        return None


def yaml_values(text: str) -> Any:
    """Return the content of a YAML text; None for invalid YAML."""
    try:
        return bounded_yaml(text)[0]
    except (RecursionError, ValueError):
        return None


def foreign_problem(raw: Any, where: str, *, toml: bool = False) -> Problem | None:
    """Return the problem that a file belongs to another program, with the way to import it, or to a model; None if neither is recognized.

    raw   the parsed content
    toml  whether the file was TOML, which tells sd-scripts' files from kohya_ss'
    """
    if not isinstance(raw, dict) or "schema_version" in raw:
        return None
    if isinstance(raw.get("datasets"), list):
        what = "This is a dataset config of sd-scripts, not a preset"
        fix = "import it on the Dataset tab, or with --dataset-config FILE"
        return Problem(what, where, fix, code="preset.is-dataset-config")
    values = {name.lstrip("-"): value for name, value in _flat(raw).items()}
    program = next((name for name, marks in MARKS.items() if len(marks & set(values)) >= 3), "")
    if not program and _is_model_config(raw):
        what = "This is a config file of a model, not a preset"
        return Problem(what, where, "give the model's folder", code="preset.is-model-config")
    if not program:
        return None
    program = SD_SCRIPTS if toml and program == KOHYA_GUI else program
    what = f"This is a preset of {program}, not of Atelier"
    fix = f"import it on Train, or with python webui.py import {where} --save preset.json"
    return Problem(what, where, fix, code="preset.other-program")


def _is_model_config(raw: Mapping[str, Any]) -> bool:
    """Return whether an object is a config of diffusers or transformers. OneTrainer has model_type too, in capitals."""
    return not CONFIG_MARKS.isdisjoint(raw) or str(raw.get("model_type")).islower()


def _flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested tables by one level: each inner value is under its bare name (as sd-scripts reads it) and under "table.name"."""
    flat: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
            flat = {inner: each for inner, each in value.items() if not isinstance(each, dict)} | flat
        else:
            flat[name] = value
    return flat
