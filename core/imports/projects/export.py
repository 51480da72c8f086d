"""Export a job as a command line or config file of sd-scripts. Settings that are lost are found by importing the result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.families.locate import model_path
from core.formats.detect import identify
from core.imports.dataset_export import all_concepts, bucket_sides, method_of, toml_table, written_path
from core.imports.dataset_options import FINE_TUNING, OPTIONS, area_of_side, declaration
from core.imports.projects.options import METHODS, SCRIPTS, XTI, Script
from core.imports.projects.report import Source
from core.imports.projects.rules import SCHEDULERS, Reading, part_of_run
from core.imports.projects.to_job import direct_paths, to_import
from core.networks.kinds import KINDS
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, resolve_path
from core.settings.base import value_of
from core.settings.control import controlnet_of, lllite_of
from core.settings.job import TrainJob
from core.settings.model import traits_of
from core.settings.optimization.optimizer import COMMON, job_arguments
from core.settings.optimization.optimizers import OWN, find
from core.settings.optimization.rates import trains_text
from core.settings.presets.files import differences
from core.settings.presets.networks import LYCORIS
from core.settings.rules import ineffective

# Not compared: always written, implied by the script, how to compute, or without effect on the weights.
OURS = frozenset(
    "method.kind model.base_model model.family model.compatibility saving.save_state saving.save_state_on_train_end "
    "logging.logging_dir".split()
)
# Options that a dataset config replaces (sd-scripts falls back on them where it is silent), and the settings that it has
IN_DATASET_CONFIG = {*OPTIONS, "train_data_dir", "reg_data_dir", "in_json", "dataset_repeats"} - {
    "resolution",
    "validation_seed",
}
DATASET_SETTINGS = {declaration(option.setting).path for option in OPTIONS.values() if option.setting} | {
    f"dataset.{name}" for name in ("folder", "sources", "reg_data_dir")
}
SAMPLING = ("sample_at_first", "sample_every_n_steps", "sample_every_n_epochs")
SPANS = ("lr_warmup_steps", "lr_decay_steps")
ONLY_HERE = frozenset(("initialization", "dropout"))  # of network_args; the dropout is network_dropout
NOT_IN_SD_SCRIPTS = ONLY_HERE | {"rs_lora", "train_norm"}


@dataclass(frozen=True)
class Exported:
    """Options for a script of sd-scripts. lost: {setting that they cannot express: (the job's value, sd-scripts' value)}"""

    script: str
    options: dict[str, Any]
    lost: dict[str, tuple[Any, Any]]

    @property
    def command(self) -> str:
        """The command line, for bash."""
        words = [word for name, value in self.options.items() for word in option_words(name, value)]
        return shlex.join(["accelerate", "launch", f"{self.script}.py", *words])

    @property
    def toml(self) -> str:
        """The content of a file for --config_file, where percentages are written as fractions."""
        values = {name: part_of_run(value) if name in SPANS else value for name, value in self.options.items()}
        return "\n".join([f"# sd-scripts, {self.script}.py", *toml_table(values, "", "")]) + "\n"

    def with_dataset_config(self, path: str) -> Exported:
        """Return the export with the folders and their settings in the dataset config `path` instead; unchanged for "" (no folders)."""
        if not path:
            return self
        options = {name: value for name, value in self.options.items() if name not in IN_DATASET_CONFIG}
        lost = {name: values for name, values in self.lost.items() if name not in DATASET_SETTINGS}
        model = options.get("pretrained_model_name_or_path", "")
        if model and resolve_path(model).exists():
            options["pretrained_model_name_or_path"] = written_path(model)
        return replace(self, options=options | {"dataset_config": path}, lost=lost)


def option_words(name: str, value: Any) -> list[str]:
    """Return the command line words of an option: ["--name"] for True, ["--name=value"], or ["--name", "a", "b"] for a list; [] for None,
    False and []."""
    if value is None or value is False or value == []:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}" if value is True else f"--{name}={value}"]


def _method(job: TrainJob) -> dict[str, Any]:
    """Return {option: value} of the model ("pretrained_model_name_or_path", "v2", "v_parameterization"), the text encoders' training and
    rates, "control_net_lr", and the folders. None is off."""
    kind, rates = job.method, job.optimizer.text_encoder_lr
    pair = rates if isinstance(rates, tuple) else (rates, rates)
    return {
        "pretrained_model_name_or_path": job.model.base_model,
        "v2": job.model.family == "sd2",
        "v_parameterization": job.model.prediction == "v",
        "train_text_encoder": kind.train_text_encoder == "yes",
        "stop_text_encoder_training": -1 if kind.train_text_encoder == "no" else kind.stop_text_encoder_training,
        "text_encoder_lr": None if pair[0] is None else [pair[0]],
        "learning_rate_te": pair[0],
        "learning_rate_te1": pair[0],
        "learning_rate_te2": pair[1],
        "control_net_lr": controlnet_of(job).control_net_lr or job.optimizer.learning_rate,
        **_folders(job),
    }


def _folders(job: TrainJob) -> dict[str, Any]:
    """Return {"train_data_dir": folder}, for a single folder with a metadata file also "in_json" and "dataset_repeats"."""
    sources = job.dataset.sources
    if job.dataset.folder or len(sources) != 1 or not sources[0].metadata_file:
        return {"train_data_dir": job.dataset.folder}
    (source,) = sources
    return {"train_data_dir": source.folder, "in_json": source.metadata_file, "dataset_repeats": source.num_repeats}


def _arguments(values: Mapping[str, Any]) -> list[str]:
    """Return ["name=value", ...] with Python literals, as sd-scripts parses them."""
    arguments = []
    for name, value in values.items():
        items = value if isinstance(value, list) else []
        text = ",".join(map(repr, items)) + ("," if len(items) == 1 else "") if items else repr(value)
        arguments.append(f"{name}={text}")
    return arguments


def _network(job: TrainJob) -> dict[str, Any]:
    """Return {option: value} of the network: "network_module", "network_args", "network_dim", "network_alpha" ...; of a ControlNet-LLLite
    "cond_emb_dim", "network_dim" and "network_dropout". None is off."""
    network = job.network
    if not job.method.traits.uses_network:  # a ControlNet-LLLite, whose network_weights always fail there
        dims = lllite_of(job)
        sizes = {"cond_emb_dim": dims.cond_emb_dim, "network_dim": dims.hidden_dim}
        return sizes | {"network_dropout": dims.dropout or None, "network_weights": None}
    kind = KINDS[network.kind]
    unknown = ONLY_HERE if kind.module_name == LYCORIS else NOT_IN_SD_SCRIPTS
    arguments = {name: value for name, value in kind.network_args(job).items() if name not in unknown}
    return {
        "network_module": kind.module_name,
        "network_args": [f"{name}={value}" for name, value in arguments.items()],
        "network_dim": network.rank,
        "network_alpha": network.alpha,
        "network_dropout": network.network_dropout or None,
        "network_train_unet_only": not network.train_text_encoder,
        "network_train_text_encoder_only": not network.train_unet,
    }


def _optimizer(name: str) -> str | None:
    """Return the optimizer's name in sd-scripts, which is a path for most packages; None for Atelier's own optimizers."""
    entry = find(name)
    if entry is None or entry.package == OWN:
        return name if entry is None else None
    return entry.path if "." in name or entry.package == "pytorch_optimizer" else name


def same_optimizer(name: str, other: str) -> bool:
    """Return whether two names mean the same optimizer; sd-scripts reads them without regard to case."""
    return (_optimizer(name) or name).lower() == (_optimizer(other) or other).lower()


def same_training(path: str, job: TrainJob, other: TrainJob) -> bool:
    """Return whether two jobs train alike although they have different values of the setting `path`."""
    if path == "optimizer.optimizer_type":
        return same_optimizer(job.optimizer.optimizer_type, other.optimizer.optimizer_type)
    if path == "optimizer.optimizer_args" or path.removeprefix("optimizer.") in COMMON:
        arguments, others = (sorted(_arguments(job_arguments(each.optimizer))) for each in (job, other))
        return arguments == others
    if path in ("dataset.min_bucket_reso", "dataset.max_bucket_reso"):
        return bucket_sides(job.dataset) == bucket_sides(other.dataset)
    if path == "controlnet.control_net_lr":  # without one the learning rate
        return controlnet_of(job).control_net_lr is None and controlnet_of(other).control_net_lr is not None
    if path == "network.conv_alpha":  # without one the rank
        pair = (job.network, other.network)
        return len({each.conv_rank if each.conv_alpha is None else each.conv_alpha for each in pair}) == 1
    if path == "memory.cache_latents":  # they are the same wherever they are stored
        return "off" not in (job.memory.cache_latents, other.memory.cache_latents)
    if path == "model.prediction":  # which `with_prediction` decides
        return job.model.prediction == "auto"
    samples = job.samples
    return path.startswith("samples.") and not (samples.sample_prompts or samples.sample_prompts_file)


def _length(job: TrainJob) -> dict[str, Any]:
    """Return {option: value} of optimizer, training length and scheduler: "optimizer_type", "optimizer_args", "max_train_epochs",
    "max_train_steps", "lr_scheduler" ... None is off."""
    schedule, optimizer = job.schedule, _optimizer(job.optimizer.optimizer_type)
    return {
        "optimizer_type": optimizer,
        "optimizer_args": _arguments(job_arguments(job.optimizer)) if optimizer else None,
        "max_train_epochs": None if schedule.steps_in_force else schedule.max_train_epochs,
        "max_train_steps": schedule.steps_in_force,
        "lr_scheduler": schedule.lr_scheduler if schedule.lr_scheduler in SCHEDULERS else None,
        "lr_scheduler_type": schedule.lr_scheduler_type,
        "lr_scheduler_args": _arguments(schedule.lr_scheduler_args),
        "lr_warmup_steps": schedule.lr_warmup_steps,
    }


def _dataset(job: TrainJob) -> dict[str, Any]:
    """Return {option: value} of the dataset: "resolution", "min_bucket_reso", "caption_extension", "validation_split" ... None is off."""
    size, faces, validation = job.dataset.resolution, job.dataset.face_crop_aug_range, job.validation
    smallest = job.dataset.skip_image_resolution
    interpolation, template = job.dataset.resize_interpolation, job.captions.caption_template
    extension = job.captions.caption_extension
    steps, epochs = validation.validate_every_n_steps, validation.validate_every_n_epochs
    lowest, highest = bucket_sides(job.dataset)  # sd-scripts' defaults stop below 256 and above 1024 pixels
    return {
        "min_bucket_reso": lowest,
        "max_bucket_reso": highest,
        "resolution": ",".join(map(str, size if isinstance(size, tuple) else (size, size))),
        "skip_image_resolution": str(area_of_side(smallest)).strip("[]") if smallest else None,
        "face_crop_aug_range": f"{faces[0]},{faces[1]}" if faces else None,
        "resize_interpolation": None if interpolation == "auto" else interpolation,
        "caption_extention": None,  # the same, in its older spelling
        "caption_extension": ".txt" if extension == "auto" else extension,
        "use_object_template": template == "object",
        "use_style_template": template == "style",
        "validation_split": validation.validation_split,
        "validation_seed": validation.validation_seed
        if validation.validation_split
        else validation.validation_seed or None,
        "validate_every_n_epochs": epochs if steps or epochs != 1 else None,
        "validate_every_n_steps": steps,
    }


def _memory(job: TrainJob) -> dict[str, Any]:
    """Return {option: value} of memory, saving, samples, logging and uploads: "mixed_precision", "cache_latents", "save_model_as",
    "sample_prompts", "log_with" ... None is off."""
    memory, saving, logging = job.memory, job.saving, job.logging
    # Full 16-bit training needs the same mixed precision; auto is bf16 where the GPU has it, while sd-scripts' default is fp32.
    full = memory.full_precision if memory.full_precision != "fp32" else "bf16"
    fixed = not (job.dataset.random_crop or job.dataset.color_aug)  # else sd-scripts refuses to cache
    folder = f"outputs/{saving.output_name}"  # sd-scripts stops without one when it saves, and without one for TensorBoard's logs
    return {
        "output_dir": folder,
        "sdpa": memory.attention == "sdpa",
        "xformers": memory.attention == "xformers",
        "mem_eff_attn": memory.attention == "sliced",
        "cache_latents": memory.cache_latents in ("memory", "disk") or (memory.cache_latents != "off" and fixed),
        "cache_latents_to_disk": memory.cache_latents == "disk",
        "mixed_precision": full if memory.mixed_precision == "auto" else memory.mixed_precision,
        "full_bf16": memory.full_precision == "bf16",
        "full_fp16": memory.full_precision == "fp16",
        "no_half_vae": memory.vae_precision == "fp32",
        "save_precision": {"fp32": "float"}.get(saving.save_precision, saving.save_precision),
        "save_model_as": None if saving.save_model_as == "source" else saving.save_model_as,
        "save_state": saving.save_state,
        "save_state_on_train_end": saving.save_state_on_train_end,
        "output_name": saving.output_name,
        "metadata_is_negative_embedding": "true" if saving.metadata_is_negative_embedding else None,
        "sample_prompts": job.samples.sample_prompts_file,
        "log_with": None if logging.log_with == "none" else logging.log_with,
        "logging_dir": logging.logging_dir
        or (f"{folder}/logs" if logging.log_with in ("tensorboard", "all") else None),
        "huggingface_repo_visibility": "public" if job.hub.huggingface_repo_visibility == "public" else None,
    }


PARTS: tuple[Callable[[TrainJob], dict[str, Any]], ...] = (_method, _network, _length, _dataset, _memory)


def export_project(job: TrainJob, writes_prompts: bool = False) -> Exported:
    """Return the options with which sd-scripts trains the job. Raises ProblemsError for methods that sd-scripts does not have.
    writes_prompts: whether the program that starts sd-scripts passes the job's sample prompts as a file"""
    job = with_method_of_folders(job)
    script = _script(job)
    by_parts = {name: value for part in PARTS for name, value in part(job).items()}
    defaults = _imported(script, {})
    direct = {name: path for name, path in direct_paths(script.method).items() if name not in by_parts}
    values = by_parts | {
        name: value_of(job, path) for name, path in direct.items() if value_of(job, path) != value_of(defaults, path)
    }
    if not (writes_prompts or job.samples.sample_prompts_file):
        values |= dict.fromkeys(SAMPLING)  # sd-scripts stops at the first sample without a file of prompts
    if script.name == "train_control_net":
        values["min_snr_gamma"] = None  # which stops it at the first step
    options: dict[str, Any] = {}
    for name, option in script.options.items():
        value = values.get(name)
        # An older spelling of another option, as use_8bit_adam
        if option.type == "bool" and not isinstance(value, bool):
            value = None
        elif isinstance(value, tuple):
            value = list(value)
        elif option.many and isinstance(value, str):  # a list of numbers is a text here
            value = value.split(",")
        if option.type == "int" and isinstance(value, float):
            value = int(value) if value.is_integer() else None
        known = not option.choices or value in option.choices
        if value is not None and value is not False and value not in ("", []) and value != option.default and known:
            options[name] = value
    reimported = _imported(script, options)
    return Exported(script.name, options, lost_settings(job, reimported))


def lost_settings(job: TrainJob, other: TrainJob) -> dict[str, tuple[Any, Any]]:
    """Return {path: (the job's value, the other's)} of the settings by which two jobs train differently."""
    alike = OURS | (ineffective(job).keys() & ineffective(other).keys())
    pairs = differences(job, other).items()
    return {path: pair for path, pair in pairs if path not in alike and not same_training(path, job, other)}


def with_prediction(
    job: TrainJob, workspace: Workspace, check: Callable[[Path, str], Path] = lambda path, setting: path
) -> tuple[TrainJob, list[Problem]]:
    """Return (the job with its model's prediction type, a warning if that is unknown). sd-scripts does not detect it.

    The type is read from the model file, else follows from the family; v is assumed for SD 2.x at 768 pixels or more.

    check   (path, setting) -> path; raises ProblemsError for a path that must not be read
    """
    if job.model.prediction != "auto":
        return job, []
    model, known = job.model.base_model, None
    try:
        known = identify(check(model_path(model, workspace), "model.base_model")).prediction if model else None
    except (ProblemsError, OSError):
        pass
    size = job.dataset.resolution
    large = job.model.family == "sd2" and min(size if isinstance(size, tuple) else (size,)) >= 768
    known = known or traits_of(job.model.family).prediction or ("v" if large else None)
    if known is None:
        what = "sd-scripts does not detect the prediction type"
        fix = "for a v-prediction model add --v_parameterization"
        return job, [Problem(what, "model.prediction", fix, "warning", code="export.prediction")]
    return job.with_settings(model={"prediction": known}), []


def with_method_of_folders(job: TrainJob) -> TrainJob:
    """Return the job of a full model with the method whose script reads its folders; other jobs unchanged.

    fine_tune.py reads only metadata files and train_db.py only image folders; otherwise both train alike. Raises ProblemsError for
    both kinds of folders at once.
    """
    if METHODS.get(job.method.kind) not in (METHODS["dreambooth"], METHODS["fine_tune"]):
        return job
    kinds = {method_of(concept) for concept in all_concepts(job)}
    if FINE_TUNING in kinds and len(kinds) > 1 and job.model.family != "sdxl":
        what = "sd-scripts trains full SD 1.x and 2.x models from image folders or from metadata files, not from both"
        fix = "use caption files in each folder, or a metadata file for each"
        raise ProblemsError.one(what, "dataset.sources", fix, "export.mixed-folders")
    kind = "fine_tune" if kinds == {FINE_TUNING} else "dreambooth"
    method = {"kind": kind, "train_text_encoder": "yes" if trains_text(job) else "no"}
    return job.with_settings(method=method)


def _imported(script: Script, options: Mapping[str, Any]) -> TrainJob:
    """Return the job that the options of a script mean."""
    return to_import(Reading(script, dict(options), frozenset(options)), Source(""), "", "", {}, []).job


def _script(job: TrainJob) -> Script:
    """Return the sd-scripts script that trains the job. Raises ProblemsError if there is none."""
    scripts, sdxl = METHODS.get(job.method.kind, ("", "")), job.model.family == "sdxl"
    if not scripts[sdxl]:
        of_family = " for SD 1.x and 2.x, only for SDXL" if any(scripts) else ""
        what = f"sd-scripts has no script for '{job.method.label('kind')}'{of_family}"
        fix = "choose an SDXL model" if of_family else "choose another training method"
        raise ProblemsError.one(what, "method.kind", fix, "export.no-script")
    return SCRIPTS[XTI if job.method.traits.new_words and job.embedding.extended and not sdxl else scripts[sdxl]]
