"""Reads a preset of kohya_ss: its own tabs and command builder resolve the form into sd-scripts' options, which become the job.

The rules are those of bmaltais/kohya_ss 45088f0: what a missing or empty field means, which fields a tab passes on, what it computes.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from core.imports.projects.options import SCRIPTS, options_of, parse_words, unknown
from core.imports.projects.report import Entry, Import, Source
from core.imports.projects.rules import SECRETS, Reading
from core.imports.projects.to_job import to_import
from core.record.problems import ProblemsError
from core.settings.elsewhere import ELSEWHERE

NAME, TITLE = "kohya_ss", "kohya_ss"
FILE = Path(__file__).with_name("kohya_ss.json")
LORA, DREAMBOOTH, FINE_TUNE, EMBEDDING = TABS = ("lora", "dreambooth", "finetune", "ti")
Form = dict[str, Any]
# Folder -> images in it ("") and in its subfolders; None if it is not there
Counts = Callable[[str], Mapping[str, int] | None]

# Former keys -> the field that they fill today, "" for those that no field reads.
FORMER = {
    "lora_network_weights": "network_weights", "sdxl_checkbox": "sdxl", "use_8bit_adam": "optimizer", "use_wandb": "log_with",
    "create_caption": "", "create_buckets": "", "conv_dims": "", "conv_alphas": "",
    "save_as_bool": "", "save_as": "", "file_path": "", "headless": "", "print_only": "", "network_train_unet_only": "",
    "stop_text_encoder_training_pct": "",
}  # fmt: skip
FAMILIES = {
    "flux1_checkbox": "FLUX", "sd3_checkbox": "Stable Diffusion 3", "hunyuan_image_checkbox": "HunyuanImage",
    "anima_checkbox": "Anima", "lumina_checkbox": "Lumina", "Flux1": "FLUX", "Flux1 OFT": "FLUX",
    "HunyuanImage-2.1": "HunyuanImage", "Anima": "Anima", "Lumina": "Lumina",
}  # fmt: skip
# Loading makes these numbers; what is none becomes 0, or the value here.
WHOLE = dict.fromkeys(
    """clip_skip epoch gradient_accumulation_steps keep_tokens lr_warmup max_data_loader_n_workers max_train_epochs
    save_every_n_epochs seed max_train_steps caption_dropout_every_n_epochs""".split(), 0,
) | {"lr_scheduler_num_cycles": 1, "max_token_length": 75}  # fmt: skip
DECIMAL = dict.fromkeys("learning_rate unet_lr text_encoder_lr noise_offset adaptive_noise_scale".split(), 0.0) | {
    "lr_scheduler_power": 1.0
}
# Fields of sd-scripts' options that a tab does not pass on, besides those of other families and those that it computes.
NOT_PASSED = {
    LORA: {"stop_text_encoder_training", "cpu_offload_checkpointing", "fp8_base_unet"},
    DREAMBOOTH: {"cpu_offload_checkpointing"},
    FINE_TUNE: {"cpu_offload_checkpointing"},
    EMBEDDING: {"cpu_offload_checkpointing", "caption_dropout_rate", "no_token_padding"},
}
ONLY_SDXL = frozenset(
    "learning_rate_te1 learning_rate_te2 block_lr fused_optimizer_groups disable_mmap_load_safetensors".split()
)
# The DreamBooth and fine-tuning tabs pass a 0 of these on, all other tabs and fields leave it out.
ZERO_COUNTS = frozenset(
    """caption_dropout_every_n_epochs caption_dropout_rate keep_tokens persistent_data_loader_workers lr_warmup_steps max_grad_norm
    prior_loss_weight lr_scheduler_power huber_c huber_scale multires_noise_discount learning_rate learning_rate_te
    learning_rate_te1 learning_rate_te2 lr_scheduler_num_cycles max_data_loader_n_workers""".split()
)
# LoRA_type -> its network_args in order: a field's name, name=field where they differ, ?field if it is on, or algo:words.
BLOCKS = (
    "?down_lr_weight ?mid_lr_weight ?up_lr_weight ?block_lr_zero_threshold ?block_dims ?block_alphas ?conv_block_dims "
    "?conv_block_alphas ?rank_dropout ?module_dropout"
)
LYCORIS = "preset=LyCORIS_preset conv_dim conv_alpha"
PRODUCT = f"{LYCORIS} use_tucker rank_dropout bypass_mode dora_wd module_dropout"
LOCON = f"{PRODUCT} use_tucker use_scalar rank_dropout_scale"
TURN = f"{LYCORIS} module_dropout use_tucker rank_dropout rank_dropout_scale"
MODULES = {
    "Standard": "networks.lora", "Kohya LoCon": "networks.lora", "Kohya DyLoRA": "networks.dylora", "LoRA-FA": "networks.lora_fa",
    "Kohya LoHa": "networks.loha", "Kohya LoKr": "networks.lokr",
}  # fmt: skip
NETWORKS = {
    "Standard": BLOCKS,
    "Kohya LoCon": f"conv_dim conv_alpha {BLOCKS}",
    "Kohya DyLoRA": f"conv_dim conv_alpha unit {BLOCKS}",
    "LoRA-FA": BLOCKS,
    "Kohya LoHa": "?conv_dim ?conv_alpha ?use_tucker ?rank_dropout ?module_dropout",
    "Kohya LoKr": "?conv_dim ?conv_alpha ?use_tucker ?factor ?rank_dropout ?module_dropout",
    "LyCORIS/LoCon": f"{LOCON} algo:locon train_norm",
    "LyCORIS/LoHa": f"{LOCON} algo:loha train_norm",
    "LyCORIS/LoKr": f"{PRODUCT} factor use_cp use_scalar decompose_both rank_dropout_scale algo:lokr train_norm",
    "LyCORIS/GLoRA": f"{LYCORIS} use_tucker rank_dropout module_dropout rank_dropout_scale algo:glora train_norm",
    "LyCORIS/DyLoRA": f"{LYCORIS} use_tucker block_size=unit rank_dropout module_dropout algo:dylora train_norm",
    "LyCORIS/iA3": f"{LYCORIS} train_on_input algo:ia3",
    "LyCORIS/Diag-OFT": f"{TURN} constraint=constrain rescaled algo:diag-oft train_norm",
    "LyCORIS/BOFT": f"{TURN} algo:boft train_norm",
    "LyCORIS/Native Fine-Tuning": (
        "preset=LyCORIS_preset rank_dropout module_dropout rank_dropout_scale algo:full train_norm"
    ),
}
PLUS = " ?loraplus_lr_ratio ?loraplus_unet_lr_ratio ?loraplus_text_encoder_lr_ratio"
# option -> its field, where that has another name
KEYS = {
    "resolution": "max_resolution", "optimizer_type": "optimizer", "lr_warmup_steps": "lr_warmup", "network_module": "LoRA_type",
    "no_half_vae": "sdxl_no_half_vae", "cache_text_encoder_outputs": "sdxl_cache_text_encoder_outputs", "sdpa": "xformers",
    "network_train_unet_only": "text_encoder_lr", "network_train_text_encoder_only": "unet_lr", "use_object_template": "template",
    "use_style_template": "template", "in_json": "latent_metadata_filename",
}  # fmt: skip
# Fields that are read in another way -> how
HOW = {
    "sdxl": "chooses the script", "sdxl_checkbox": "chooses the script", "additional_parameters": "each of its options is listed",
    "use_8bit_adam": "chooses the optimizer", "use_wandb": "chooses log_with", "lora_network_weights": "is network_weights today",
}  # fmt: skip
# Fields that are no options -> what became of them
OWN = dict.fromkeys(
    """num_cpu_threads_per_process num_machines multi_gpu main_process_port dynamo_mode dynamo_use_fullgraph dynamo_use_dynamic
    extra_accelerate_launch_args gpu_ids num_processes""".split(),
    "is accelerate's; choose the GPU with --device, several with memory.num_processes",
) | dict.fromkeys(
    """model_list training_preset save_as_bool save_as file_path headless print_only lowvram full_path train_dir
    generate_caption_database generate_image_buckets create_caption create_buckets batch_size use_latent_files
    caption_metadata_filename conv_dims conv_alphas stop_text_encoder_training_pct network_train_unet_only""".split(),
    "is of kohya_ss' own form and reaches no training",
)  # fmt: skip
OWN |= {
    "LyCORIS_preset": "only LyCORIS networks read it",
    "epoch": "is used only where max_train_steps and max_train_epochs are 0",
    "stop_text_encoder_training": "is not passed on by this tab",
}


@cache
def fields() -> dict[str, dict[str, Any]]:
    """The fields of the form: default, defaults of single tabs, and tabs if not all have it."""
    return json.loads(FILE.read_text("utf-8"))["fields"]


def form_of(tab: str) -> Form:
    """The fields of a fresh tab with their values."""
    own = {name: each for name, each in fields().items() if tab in each.get("tabs", TABS)}
    return {name: each.get("defaults", {}).get(tab, each["default"]) for name, each in own.items()}


def keys() -> Iterable[str]:
    return [*fields(), *FORMER]


def recognizes(source: Source) -> bool:
    raw = source.json
    if raw is None or "schema_version" in raw or {"datasets", "__version", "training_method"} & set(raw):
        return False
    known = sum(name in fields() or name in FORMER for name in raw)
    return known > 1 and (2 * known >= len(raw) or known > 9)


def tab_of(preset: Mapping[str, Any]) -> str:
    """The tab that a preset was saved on, which it does not say."""
    return next((tab for tab, names in MARKS.items() if any(name in preset for name in names)), DREAMBOOTH)


MARKS = {
    LORA: ("LoRA_type", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "lora_network_weights"),
    EMBEDDING: ("num_vectors_per_token", "token_string"),
    FINE_TUNE: ("image_folder", "train_dir", "caption_metadata_filename"),
}


def read(source: Source) -> Import:
    preset = source.json or {}
    tab = source.choice if source.choice in TABS else tab_of(preset)
    resolved = resolve(preset, tab, source.where, counted if source.folder is not None else lambda folder: None)
    reading = Reading(
        SCRIPTS[resolved.script], resolved.options, frozenset(resolved.written(preset)), resolved.keys, resolved.prompts
    )
    reading.extra += resolved.entries
    for option in resolved.options:
        sentence = resolved.notes.get(option) or resolved.changed.get(resolved.keys.get(option, option))
        if sentence and option not in reading.notes:
            reading.note(option, "changed", sentence)
    for problem in resolved.problems:
        reading.warn(*problem)
    title = f"{TITLE}, {resolved.script}.py"
    result = to_import(reading, source, NAME, title, resolved.options, _of_launcher(resolved.form, preset))
    result.report += _rest(preset, resolved, {entry.key for entry in result.report if entry.kind != "default"})
    result.choices, result.choice = TABS, tab
    return result


# ---- what the form makes of a file


@dataclass
class Resolved:
    """What kohya_ss would run.

    options   sd-scripts' options, those of the command line on top      used     fields whose value is part of an option, by option
    notes     option -> a sentence on how it was computed                entries  on words of additional_parameters
    keys      option -> field                                            prompts  sample prompts as text
    """

    tab: str
    script: str
    form: Form
    options: dict[str, Any] = field(default_factory=dict)
    used: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=lambda: dict(KEYS))
    entries: list[Entry] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)  # field -> how loading changes its value
    problems: list[tuple[str, str, str, str]] = field(default_factory=list)
    prompts: list[str] | None = None
    typed: frozenset[str] = frozenset()  # options of additional_parameters

    def written(self, preset: Mapping[str, Any]) -> Iterable[str]:
        """The options that the file states, the form's own defaults left out."""
        stated = {FORMER.get(name, name) for name, value in preset.items() if value is not None}
        for name in self.options:
            sources = [self.keys.get(name, name), *self.used.get(name, ())]
            if name in self.typed or not stated.isdisjoint(sources):
                yield name


def resolve(preset: Mapping[str, Any], tab: str, where: str, counts: Counts) -> Resolved:
    """The options that kohya_ss gives to sd-scripts for a preset on a fresh form. Raises ProblemsError for other model families."""
    form, changed = _loaded(preset, tab)
    family = next((FAMILIES[name] for name in FAMILIES if form.get(name) or form.get("LoRA_type") == name), "")
    if family:
        what, fix = f"This preset trains {family} models", "open a preset for SD 1.x, SD 2.x or SDXL"
        raise ProblemsError.one(what, where, fix, "import.other-family")
    sdxl = _on(form.get("sdxl"))
    scripts = {
        LORA: ("train_network", "sdxl_train_network"), DREAMBOOTH: ("train_db", "sdxl_train"),
        FINE_TUNE: ("fine_tune", "sdxl_train"), EMBEDDING: ("train_textual_inversion", "sdxl_train_textual_inversion"),
    }  # fmt: skip
    resolved = Resolved(tab, scripts[tab][sdxl], form)
    resolved.changed = changed
    for name, sentence in changed.items():
        if isinstance(preset.get(name), str) and "," in preset[name]:
            resolved.problems.append(
                (f"{name}: {sentence}", name, "write numbers with a point", "import.decimal-comma")
            )
    options = {name: form[name] for name in form if name in options_of() and name not in NOT_PASSED[tab]}
    options |= {"epoch": form["epoch"]} if tab != FINE_TUNE else {}
    options |= _computed(resolved, sdxl) | _network(resolved) | _rates(resolved, sdxl)
    options |= _length(resolved, counts)
    options |= _warmup(resolved, options)
    if not sdxl:
        options = {name: value for name, value in options.items() if name not in ONLY_SDXL}
    resolved.options = {name: value for name, value in options.items() if _passed(name, value, tab)}
    resolved.options["max_data_loader_n_workers"] = form["max_data_loader_n_workers"]
    _additional(resolved)
    return resolved


def _loaded(preset: Mapping[str, Any], tab: str) -> tuple[Form, dict[str, str]]:
    """The form with a preset loaded: null keeps the field; and sentences on values that loading changes."""
    form, changed = form_of(tab), dict[str, str]()
    stated = {name: value for name, value in preset.items() if value is not None}
    form |= {name: value for name, value in stated.items() if name in form}
    form |= {"sdxl": stated["sdxl_checkbox"]} if "sdxl_checkbox" in stated else {"sdxl": form.get("sdxl", False)}
    if "lora_network_weights" in stated and "network_weights" in form:
        form["network_weights"] = stated["lora_network_weights"]
    if "optimizer" not in preset:
        form["optimizer"] = "AdamW8bit" if _on(stated.get("use_8bit_adam")) else "AdamW"
    if stated.get("use_wandb") == "True":
        form["log_with"] = "wandb"
    if form.get("LoRA_type") == "LoCon":
        form["LoRA_type"] = "LyCORIS/LoCon"
    if tab in (LORA, EMBEDDING) and form["save_model_as"] not in ("ckpt", "safetensors"):
        form["save_model_as"] = "safetensors"
        changed["save_model_as"] = "kohya_ss saves this as safetensors"
    for kind, names in ((int, WHOLE), (float, DECIMAL)):
        for name in names.keys() & form.keys():
            form[name], sentence = _number(kind, form[name], names[name])
            if sentence and name in stated:
                changed[name] = sentence
    return form, changed


def _number(kind: Callable[[Any], Any], value: Any, fallback: Any) -> tuple[Any, str]:
    """A field's number as loading makes it, and a sentence where it is another than the file's."""
    try:
        number = kind(value) if not isinstance(value, (dict, list)) and len(str(value)) < 40 else fallback
        number = number if math.isfinite(number) else fallback
    except (TypeError, ValueError, OverflowError):
        number = fallback
    if isinstance(value, str) and not value.strip():
        return number, ""
    same = str(value).strip() == str(number) or (isinstance(value, (int, float)) and value == number)
    same = same or (isinstance(value, str) and _same(value, number))
    comma = ", since it has a decimal comma" if isinstance(value, str) and "," in value else ""
    return number, "" if same else f"kohya_ss reads it as {number}{comma}"


def _same(text: str, number: Any) -> bool:
    try:
        return bool(float(text) == number)
    except ValueError:
        return False


def _on(value: Any) -> bool:
    return value not in (None, False, "", 0, "False", "false", "0")


def _passed(name: str, value: Any, tab: str) -> bool:
    """Whether a value reaches sd-scripts."""
    if value is None or value is False or (isinstance(value, str) and value == ""):
        return False
    zero = not isinstance(value, (list, dict, str, bool)) and value == 0
    return not zero or (tab in (DREAMBOOTH, FINE_TUNE) and name in ZERO_COUNTS)


# ---- what the command builder computes


def _computed(resolved: Resolved, sdxl: bool) -> dict[str, Any]:
    """Options that have another name or form than their field."""
    form, tab = resolved.form, resolved.tab
    options: dict[str, Any] = {
        "resolution": form["max_resolution"], "optimizer_type": form["optimizer"],
        "enable_bucket": True if tab == FINE_TUNE else form["enable_bucket"], "noise_offset_type": form["noise_offset_type"],
        "cache_text_encoder_outputs": sdxl and form.get("sdxl_cache_text_encoder_outputs"),
        "no_half_vae": form["sdxl_no_half_vae"] if sdxl or tab == EMBEDDING else None,
        "sample_prompts": f"{form['output_dir']}/sample/prompt.txt", "wandb_run_name": form["wandb_run_name"] or form["output_name"],
        "xformers": form["xformers"] in ("xformers", True, "True", "true"), "sdpa": form["xformers"] == "sdpa",
        "lr_scheduler_args": _words(form["lr_scheduler_args"]),
        "optimizer_args": _words(form["optimizer_args"]) or (None if tab == DREAMBOOTH else []),
    }  # fmt: skip
    resolved.prompts = [
        line for line in str(form["sample_prompts"]).splitlines() if line.strip() and line.strip()[0] != "#"
    ]
    if form.get("train_inpainting"):
        options |= {"train_inpainting": True, "cache_latents": None, "cache_latents_to_disk": None}
    if tab in (DREAMBOOTH, FINE_TUNE):
        options["persistent_data_loader_workers"] = int(_on(form["persistent_data_loader_workers"]))
    if tab == LORA and form["noise_offset_type"] == "Multires":
        options |= dict.fromkeys(("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"))
    elif tab == LORA:
        options |= dict.fromkeys(("multires_noise_iterations", "multires_noise_discount"))
    if tab == FINE_TUNE:
        metadata = "latent_metadata_filename" if form["use_latent_files"] == "Yes" else "caption_metadata_filename"
        options |= {"train_data_dir": form["image_folder"], "in_json": f"{form['train_dir']}/{form[metadata]}"}
        resolved.keys |= {"train_data_dir": "image_folder", "in_json": metadata}
        resolved.used["in_json"] = ["train_dir", "use_latent_files"]
    if tab == EMBEDDING:
        options |= {f"use_{kind}_template": form["template"] == f"{kind} template" for kind in ("object", "style")}
    return options


def _words(value: Any) -> list[str]:
    """A field of several words; double quotes do not count."""
    return str(value or "").replace('"', "").split()


def _network(resolved: Resolved) -> dict[str, Any]:
    """The network's module and arguments."""
    form = resolved.form
    if resolved.tab != LORA:
        return {}
    kind = str(form["LoRA_type"])
    module = "lycoris.kohya" if kind.startswith("LyCORIS/") else MODULES.get(kind, kind)
    names = NETWORKS.get(kind, "")
    words = []
    for part in (names + PLUS).split():
        name, _, key = part.lstrip("?").partition("=")
        value = form.get(key or name)
        if part.startswith("algo:"):
            words.append(part.replace(":", "="))
            continue
        resolved.used.setdefault("network_args", []).append(key or name)
        if not part.startswith("?") or (value and (name, value) != ("factor", -1)):
            words.append(f"{name}={value}")
    if not _on(form["conv_dim"]):  # conv_alpha goes with it
        words = [word for word in words if not (word.startswith("conv_alpha=") and "?conv_dim" in names)]
    return {"network_module": module, "network_args": words}


def _rates(resolved: Resolved, sdxl: bool) -> dict[str, Any]:
    """Learning rates; of the LoRA tab a 0 of one part leaves it untrained."""
    form, rates = resolved.form, dict[str, Any]()
    if resolved.tab == LORA:
        unet, text = form["unet_lr"], form["text_encoder_lr"]
        rates = {"unet_lr": unet or None, "text_encoder_lr": [text, text] if text else None}
        rates |= {"network_train_unet_only": bool(unet and not text)}
        rates |= {"network_train_text_encoder_only": bool(text and not unet)}
        if not (unet or text or form["learning_rate"]):
            what = "All learning rates are 0, which kohya_ss refuses"
            resolved.problems.append((what, "learning_rate", "set a learning rate", "import.no-learning-rate"))
    elif resolved.tab in (DREAMBOOTH, FINE_TUNE):
        rates = {"learning_rate_te": None if sdxl else form["learning_rate_te"]}
    if resolved.tab == DREAMBOOTH and sdxl:
        both = [_value(form[name]) for name in ("learning_rate_te1", "learning_rate_te2")]
        rates["train_text_encoder"] = any(rate > 0 for rate in both)
        resolved.used["train_text_encoder"] = ["learning_rate_te1", "learning_rate_te2"]
    return rates


def _value(raw: Any) -> float:
    """A field's number; 0 for none."""
    return float(_number(float, raw, 0.0)[0])


def _length(resolved: Resolved, counts: Counts) -> dict[str, Any]:
    """The steps: those of the form, else of `epoch` epochs by the images in the folders."""
    form, tab = resolved.form, resolved.tab
    steps, halves = form["max_train_steps"], tab == FINE_TUNE and _on(form["flip_aug"])
    if form["dataset_config"]:
        return {"max_train_steps": steps or None}
    if not steps:
        images = _images(form, tab, counts)
        if images is None:
            resolved.notes["epoch"] = resolved.notes["max_train_epochs"] = (
                f"epoch {form['epoch']}, since max_train_steps is 0: about the same length"
            )
            resolved.used["max_train_epochs"] = ["max_train_steps", "epoch"]
            resolved.keys["max_train_epochs"] = "epoch"
            return {"max_train_steps": None} | ({} if form["max_train_epochs"] else {"max_train_epochs": form["epoch"]})
        batches = images / max(_value(form["train_batch_size"]), 1) / max(form["gradient_accumulation_steps"], 1)
        doubled = 2 if form.get("reg_data_dir") else 1
        steps = math.ceil(batches * form["epoch"] * doubled)
        resolved.notes["epoch"] = resolved.notes["max_train_steps"] = (
            f"{form['epoch']} epochs of the {images:g} images are {steps} steps"
        )
        resolved.used["max_train_steps"] = ["epoch"]
    if halves:
        steps = math.ceil(steps / 2)
        resolved.notes["max_train_steps"] = f"kohya_ss halves the steps with flip_aug: {steps}"
    return {"max_train_steps": steps}


def _images(form: Form, tab: str, counts: Counts) -> float | None:
    """Images of an epoch, with their repeats; None where the folder is not here."""
    here = counts(str(form["image_folder"] if tab == FINE_TUNE else form["train_data_dir"]))
    if here is None:
        return None
    if tab == FINE_TUNE:
        return here.get("", 0) * _value(form["dataset_repeats"])
    repeats = ((name.split("_")[0], number) for name, number in here.items() if name)
    return float(sum(int(first[:9]) * number for first, number in repeats if first.isdecimal()))


def counted(folder: str) -> dict[str, int] | None:
    """The images in a folder and in each of its subfolders, as kohya_ss counts them."""
    try:
        root = Path(folder).expanduser()
        if not folder or not root.is_dir():
            return None
        folders = {"": root} | {each.name: each for each in root.iterdir() if each.is_dir()}
        endings = (".jpg", ".jpeg", ".png", ".webp")
        return {
            name: sum(each.name.lower().endswith(endings) for each in path.iterdir()) for name, path in folders.items()
        }
    except (OSError, RuntimeError, ValueError):
        return None


def _warmup(resolved: Resolved, options: Mapping[str, Any]) -> dict[str, Any]:
    """Warmup steps: those of the form, else a percentage of the run."""
    form, tab = resolved.form, resolved.tab
    percent, steps = form["lr_warmup"], form["lr_warmup_steps"]
    steps = int(_value(steps))
    if tab == LORA and form["dataset_config"]:
        total = options.get("max_train_steps")
        steps = 0 if not total else steps or round(percent * total / 100)
        if total:
            return {"lr_warmup_steps": steps}
    if steps > 0:
        resolved.keys["lr_warmup_steps"] = "lr_warmup_steps"
        resolved.used["lr_warmup_steps"] = ["lr_warmup"]
        return {"lr_warmup_steps": steps}
    return {"lr_warmup_steps": percent / 100 if percent else 0}


def _additional(resolved: Resolved) -> None:
    """additional_parameters, which win. Words are read as they are meant; kohya_ss passes those with special signs in quotes."""
    values, entries = parse_words(resolved.script, _typed(str(resolved.form["additional_parameters"] or "")))
    resolved.options |= values
    resolved.typed = frozenset(values)
    resolved.keys |= {name: f"additional_parameters --{name}" for name in values}
    resolved.entries += entries


def _typed(text: str) -> list[str]:
    """Words between spaces, without their quotes."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError:  # a quotation mark that is not closed
        return _words(text)


# ---- the report of fields that are no options


def _of_launcher(form: Form, preset: Mapping[str, Any]) -> list[Entry]:
    number = int(_value(form["num_processes"]))
    if "num_processes" in preset and 1 < number <= 64:
        return [Entry("taken", "num_processes", number, ("memory.num_processes",))]
    return []


def _rest(preset: Mapping[str, Any], resolved: Resolved, reported: set[str]) -> list[Entry]:
    """An entry for each key of the file that has none yet."""
    parts = {name: option for option, names in resolved.used.items() for name in names}
    usual, strangers = form_of(resolved.tab), 0
    entries = []
    for key, value in preset.items():
        name = FORMER.get(key) or key
        if key in reported:
            continue
        if key in SECRETS and value:
            entries.append(Entry("secret", key, sentence=ELSEWHERE[key]))
        elif key not in fields() and key not in FORMER:
            strangers += 1
            entries.append(Entry("unavailable", key, value, sentence=unknown(key, fields(), strangers)))
        elif value is None or value == "" or (name in usual and value == usual[name] and name not in resolved.options):
            entries.append(Entry("taken", key, "", sentence="not set"))
        elif parts.get(name) in resolved.options:
            entries.append(Entry("taken", key, value, sentence=f"part of {parts[name]}"))
        elif key in resolved.changed:
            entries.append(Entry("changed", key, value, sentence=resolved.changed[key]))
        elif key in HOW:
            entries.append(Entry("taken", key, value, sentence=HOW[key]))
        elif key in OWN:
            entries.append(Entry("idle", key, value, sentence=OWN[key]))
        else:
            entries.append(_not_passed(key, value, name, resolved))
    return entries


def _not_passed(key: str, value: Any, name: str, resolved: Resolved) -> Entry:
    """A field that this tab, these choices or its value keep from sd-scripts."""
    if name not in resolved.form:
        return Entry("idle", key, value, sentence="is not on the tab of this preset")
    if name not in options_of():
        return Entry("idle", key, value, sentence="is read only with other network types, tabs or model families")
    default = SCRIPTS[resolved.script].options[name].default if name in SCRIPTS[resolved.script].options else None
    if not _on(value) and default not in (None, False, "", 0):
        return Entry("changed", key, value, sentence=f"kohya_ss does not pass 0 on, so that sd-scripts takes {default}")
    if not _on(value):
        return Entry("taken", key, value, sentence="not set")
    return Entry("idle", key, value, sentence="is not passed on with these choices")
