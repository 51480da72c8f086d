"""Export a job as a preset of kohya_ss. Options without a field go into additional_parameters."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.imports.projects.export import (
    DATASET_SETTINGS,
    SPANS,
    export_project,
    lost_settings,
    option_words,
    same_optimizer,
    with_method_of_folders,
)
from core.imports.projects.kohya_ss import (
    DREAMBOOTH,
    EMBEDDING,
    FIELDS,
    FINE_TUNE,
    LORA,
    LORA_PLUS,
    NETWORKS,
    TABS,
    Form,
    Resolved,
    form_of,
    passes,
    read,
    resolve,
)  # fmt: skip
from core.imports.projects.options import SCRIPTS, Option, convert
from core.imports.projects.report import Source
from core.imports.projects.rules import SECRETS, Reading, part_of_run
from core.imports.projects.to_job import settings_of
from core.record.problems import ProblemsError
from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.presets.networks import arguments_of, is_on

SAFE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # kohya_ss passes other words with quotes around them
# Fields whose value is decided with others
COMBINED = frozenset(
    "LoRA_type lr_warmup lr_warmup_steps unet_lr text_encoder_lr learning_rate_te learning_rate_te1 learning_rate_te2 "
    "template xformers latent_metadata_filename max_train_steps max_train_epochs sample_prompts optimizer_args "
    "lr_scheduler_args save_model_as optimizer".split()
)
TITLES = {LORA: "LoRA", DREAMBOOTH: "Dreambooth", FINE_TUNE: "Finetuning", EMBEDDING: "Textual Inversion"}


@dataclass(frozen=True)
class KohyaPreset:
    """A preset of kohya_ss.

    tab      key of TABS
    fields   {field: value} of the tab, without keys and tokens
    options  {option of sd-scripts: value} that the preset passes
    lost     {setting that the preset cannot express: (the job's value, kohya_ss' value)}
    """

    tab: str
    fields: Form
    options: Mapping[str, Any]
    lost: dict[str, tuple[Any, Any]]

    @property
    def title(self) -> str:
        """Title of the tab."""
        return TITLES[self.tab]

    @property
    def text(self) -> str:
        """Content of the preset's file, as JSON."""
        return json.dumps(self.fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def export_preset(job: TrainJob, dataset_config: str = "") -> KohyaPreset:
    """Return the preset with which kohya_ss trains the job. Raises ProblemsError for methods that kohya_ss does not have.
    dataset_config: path of the file with the job's folders; "" for a job without folders"""
    job = with_method_of_folders(job)
    tab_job = job.with_settings(embedding={"extended": False})
    tab = _tab(tab_job)
    if not tab:
        what, fix = f"kohya_ss has no tab for '{job.method.label('kind')}'", "export it for sd-scripts"
        raise ProblemsError.one(what, "method.kind", fix, "export.no-script")
    exported = export_project(tab_job, writes_prompts=True).with_dataset_config(dataset_config)
    reading = Reading(SCRIPTS[exported.script], exported.options, frozenset(exported.options))
    fields = _fields(tab, reading) | _special(tab, reading, job) | {"dataset_config": dataset_config}
    resolved = resolve(fields, tab, "", lambda folder: None)
    fields["additional_parameters"] = " ".join(_additional_parameters(reading, resolved))
    reimported = read(Source(json.dumps(fields), choice=tab)).job
    pairs = lost_settings(job, reimported)
    known = DATASET_SETTINGS if dataset_config else ()
    lost = {
        path: pair
        for path, pair in pairs.items()
        if path not in known and not _trains_alike(path, *pair, job, reimported)
    }
    return KohyaPreset(tab, fields, resolved.options, lost)


def _tab(job: TrainJob) -> str:
    """Return the kohya_ss tab for the job's method; "" for methods that kohya_ss does not have."""
    return next((tab for tab, method in TABS.items() if method == job.method.kind), "")


# ---- fields


def _fields(tab: str, reading: Reading) -> Form:
    """Return {field: value} of a tab: the options' values for fields that are an option each, defaults for others."""
    fields = {name: value for name, value in form_of(tab).items() if name not in SECRETS}
    for name, default in fields.items():
        (option,) = FIELDS[name].get("options", [name])[:1]
        if option in reading.script.options and name not in COMBINED and tab not in FIELDS[name].get("withheld", ()):
            fields[name] = _field(name, default, reading.script.options[option], reading[option], tab)
    return fields


def _field(name: str, default: Any, option: Option, value: Any, tab: str) -> Any:
    """Return the value of a field that makes kohya_ss pass `value` to the option; the field's default if that does, or if no value does."""
    written = str(value) if isinstance(default, str) else value
    off = "" if isinstance(default, str) else type(default)()
    for candidate in (default, *([written] if value is not None else []), off):
        passed = passes(FIELDS[name].get("options", [name])[0], candidate, tab, sdxl=True)
        try:
            if _within(name, candidate) and (convert(option, candidate)[0] if passed else option.default) == value:
                return candidate
        except ValueError:
            continue
    return default


def _within(name: str, value: Any) -> bool:
    """Return whether the form accepts a field's value; kohya_ss refuses the whole preset otherwise."""
    row = FIELDS[name]
    if "choices" in row:
        return str(value) in row["choices"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return row.get("least", value) <= value <= row.get("most", value)


def _special(tab: str, reading: Reading, job: TrainJob) -> Form:
    """Return {field: value} of fields that depend on several options, or have another form than their option."""
    names = FIELDS["optimizer"]["choices"]
    fields = {
        "xformers": "xformers" if reading["xformers"] else "sdpa" if reading["sdpa"] else "none",
        "sample_prompts": "\n".join(job.samples.sample_prompts),
        "num_processes": job.memory.num_processes,
        "sdxl_checkbox" if tab == FINE_TUNE else "sdxl": reading.script.family == "sdxl",
        "noise_offset_type": "Multires" if reading["multires_noise_iterations"] else "Original",
        "optimizer": next((name for name in names if same_optimizer(name, reading["optimizer_type"])), "AdamW8bit"),
        "optimizer_args": _words(reading["optimizer_args"]),
        "lr_scheduler_args": _words(reading["lr_scheduler_args"]),
        **_length(tab, reading),
    }
    form = reading["save_model_as"]
    if tab == LORA:
        fields |= _network(reading) | _rates(reading)
    if tab in (LORA, EMBEDDING):
        return fields | _template(tab, reading) | {"save_model_as": form if form == "ckpt" else "safetensors"}
    if tab == FINE_TUNE:
        fields |= _metadata(reading)
    return fields | _full_rates(tab, reading) | {"save_model_as": form or "same as source model"}


def _words(arguments: list[str] | None) -> str:
    """Join arguments for a field; "" if a value has spaces, which kohya_ss refuses, or double quotes, which it drops."""
    words = arguments or []
    return " ".join(words) if all('"' not in word and len(word.split()) == 1 for word in words) else ""


def _length(tab: str, reading: Reading) -> Form:
    """Return the fields of training length and warmup: {"max_train_epochs", "epoch", "max_train_steps", "lr_warmup": percent,
    "lr_warmup_steps": value}."""
    epochs, steps = reading["max_train_epochs"], reading["max_train_steps"]
    warmup = part_of_run(reading["lr_warmup_steps"])
    if tab == FINE_TUNE and reading["flip_aug"]:
        steps *= 2  # which the tab halves
    percent = round(warmup * 100, 6) if isinstance(warmup, float) else 0
    return {
        "max_train_epochs": epochs or 0,
        "epoch": epochs or 1,
        "max_train_steps": 0 if epochs else steps,
        "lr_warmup": int(percent) if percent == int(percent) else 0,
        "lr_warmup_steps": warmup if isinstance(warmup, int) else 0,
    }


def _template(tab: str, reading: Reading) -> Form:
    """Return {"template": "object template", "style template" or "caption"} for the tab for textual inversion; {} for other tabs."""
    if tab != EMBEDDING:
        return {}
    kind = next((each for each in ("object", "style") if reading[f"use_{each}_template"]), "")
    return {"template": f"{kind} template" if kind else "caption"}


def _metadata(reading: Reading) -> Form:
    """Return {field: value} of the image folder and metadata file on the fine-tuning tab."""
    folder, _, name = (reading["in_json"] or "").replace("\\", "/").rpartition("/")
    source = {"train_dir": folder or ".", "caption_metadata_filename": name, "use_latent_files": "No"}
    return source | {"image_folder": reading["train_data_dir"] or ""}


def _rates(reading: Reading) -> Form:
    """Return {"unet_lr", "text_encoder_lr": value} of the LoRA tab: a 0 for one part leaves it untrained, 0 for both means the main
    rate."""
    unet, text = reading["unet_lr"], (reading["text_encoder_lr"] or [None])[0]
    without_text, without_unet = reading["network_train_unet_only"], reading["network_train_text_encoder_only"]
    if unet is None and text is None and not (without_text or without_unet):
        return {"unet_lr": 0, "text_encoder_lr": 0}
    unet, text = (reading["learning_rate"] if rate is None else rate for rate in (unet, text))
    return {"unet_lr": 0 if without_unet else unet, "text_encoder_lr": 0 if without_text else text}


def _full_rates(tab: str, reading: Reading) -> Form:
    """Return {field: value} of text encoder learning rates for a full model. The DreamBooth tab trains SDXL's if they are above 0."""
    rates = {name: reading[name] for name in ("learning_rate_te", "learning_rate_te1", "learning_rate_te2")}
    rates = {name: reading["learning_rate"] if rate is None else rate for name, rate in rates.items()}
    frozen = tab == DREAMBOOTH and reading.script.family == "sdxl" and not reading["train_text_encoder"]
    return dict.fromkeys(rates, 0) if frozen else rates


def _network(reading: Reading) -> Form:
    """Return {field: value} of the network type and its arguments; "Standard" if no type fits."""
    written, defaults = arguments_of(reading["network_args"] or []), form_of(LORA)
    convolutions = is_on(written.get("conv_dim"))
    named = {"networks.lora": "Kohya LoCon" if convolutions else "Standard"}
    algo = {"lora": "locon"}.get(written.get("algo", "lora"), written.get("algo"))
    module = reading["network_module"] or "networks.lora"
    kind = named.get(module) or next(
        (name for name, row in NETWORKS.items() if row["module"] == module and _algo(row) in ("", algo)), "Standard"
    )
    fields: Form = {"LoRA_type": kind}
    for part in (*NETWORKS[kind]["arguments"].split(), *LORA_PLUS):
        name, _, key = part.lstrip("?").partition("=")
        if not part.startswith("algo:"):
            field = key or name
            fields[field] = _argument(field, defaults[field], written.get(name))
    return fields


def _algo(row: Mapping[str, str]) -> str:
    """Return the algo in the arguments of a network type's row; "" if there is none."""
    return next((part.removeprefix("algo:") for part in row["arguments"].split() if part.startswith("algo:")), "")


def _argument(name: str, default: Any, text: str | None) -> Any:
    """Return the value of an argument's field, in the type of the field's default.
    text: the value in network_args; None if absent"""
    if text is None:
        return default if name in ("factor", "unit", "LyCORIS_preset") else type(default)()
    if isinstance(default, bool):
        return is_on(text)
    if isinstance(default, str):
        return text
    try:
        number = float(text)
    except ValueError:
        return default
    number = int(number) if number.is_integer() else number
    return number if _within(name, number) else default


# ---- additional_parameters


def _additional_parameters(job_reading: Reading, resolved: Resolved) -> Iterator[str]:
    """Yield words of additional_parameters for options whose value the fields cannot express, except for words that are not SAFE.

    job_reading  the options that the job needs
    resolved     the options that the fields give
    """
    preset_reading = Reading(job_reading.script, resolved.options, frozenset(), prompts=resolved.prompts)
    default_job, preset_groups = TrainJob(), {tuple(names): values for names, values in settings_of(preset_reading)}
    for names, job_values in settings_of(job_reading):
        preset_values = preset_groups.get(tuple(names), {})
        defaults = {path: value_of(default_job, path) for path in job_values | preset_values}
        different = {
            path
            for path, default in defaults.items()
            if not same_value(path, job_values.get(path, default), preset_values.get(path, default))
        }
        if different:  # options that one rule reads decide together
            for name in names:
                words = option_words(name, job_reading[name]) if job_reading[name] != preset_reading[name] else []
                if all(SAFE.fullmatch(word) for word in words):
                    yield from words


# ---- what is the same


def same_value(path: str, value: Any, other: Any) -> bool:
    """Return whether two values of the setting `path` mean the same."""
    if path.rpartition(".")[2] in SPANS:
        value, other = part_of_run(value), part_of_run(other)
    if path == "optimizer.optimizer_type":
        return same_optimizer(value, other)
    return value == other or (isinstance(value, tuple) and list(value) == other)


def _trains_alike(path: str, value: Any, other: Any, job: TrainJob, reimported: TrainJob) -> bool:
    """Return whether two jobs train alike although a setting differs.
    value, other: its values in `job`, and in `reimported`, the job read from the preset"""
    if same_value(path, value, other):
        return True
    if path == "optimizer.unet_lr":
        return job.optimizer.unet_rate == reimported.optimizer.unet_rate
    if path == "optimizer.text_encoder_lr":
        frozen = job.method.train_text_encoder == reimported.method.train_text_encoder == "no"
        return frozen or job.optimizer.text_rates == reimported.optimizer.text_rates
    if path == "logging.wandb_run_name":  # kohya_ss gives it the output's name
        return value is None and other == reimported.saving.output_name
    return (
        path == "saving.save_model_as"
        and _tab(job) in (LORA, EMBEDDING)
        and (value, other) == ("source", "safetensors")
    )
