"""Import a preset of kohya_ss: resolve its form into sd-scripts' options as kohya_ss does, and convert those to a job.

The rules are those of bmaltais/kohya_ss 45088f0: what a missing or empty field means, which fields a tab passes on, what it computes.
`kohya_ss.json` has a row for each field, former key and network type.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.imports.projects.options import METHODS, SCRIPTS, options_of, parse_words, unknown
from core.imports.projects.report import Entry, Import, Source
from core.imports.projects.rules import SECRETS, Reading, listed_words
from core.imports.projects.to_job import to_import
from core.record.problems import ProblemsError
from core.settings.elsewhere import ELSEWHERE

NAME, TITLE = "kohya_ss", "kohya_ss"
_DATA = json.loads(Path(__file__).with_name("kohya_ss.json").read_text("utf-8"))
FIELDS, FORMER, FAMILIES, NETWORKS = (_DATA[name] for name in ("fields", "former", "families", "networks"))
# tab -> the method that it trains
TABS = {"lora": "lora", "dreambooth": "dreambooth", "finetune": "fine_tune", "ti": "embedding"}
LORA, DREAMBOOTH, FINE_TUNE, EMBEDDING = TABS
MARKS = {  # by which a preset shows its tab, which it does not say
    LORA: ("LoRA_type", "network_dim", "network_alpha", "unet_lr", "text_encoder_lr", "lora_network_weights"),
    EMBEDDING: ("num_vectors_per_token", "token_string"),
    FINE_TUNE: ("image_folder", "train_dir", "caption_metadata_filename"),
}
LORA_PLUS = ("?loraplus_lr_ratio", "?loraplus_unet_lr_ratio", "?loraplus_text_encoder_lr_ratio")  # of all networks
Form = dict[str, Any]
# Folder -> images in it ("") and in its subfolders; None if it is not there
Counts = Callable[[str], Mapping[str, int] | None]


def form_of(tab: str) -> Form:
    """Return {field: default value} of a tab."""
    fields = {name: row for name, row in FIELDS.items() if tab in row.get("tabs", TABS)}
    return {name: row.get("defaults", {}).get(tab, row["default"]) for name, row in fields.items()}


def keys() -> Iterable[str]:
    """Return every key that the importer knows: fields and former keys."""
    return [*FIELDS, *FORMER]


def recognizes(source: Source) -> bool:
    """Return whether a text is a preset of kohya_ss, by its keys: not one with options that only sd-scripts has, and no others."""
    raw = source.json
    if raw is None or "schema_version" in raw or {"datasets", "__version", "training_method"} & set(raw):
        return False
    known = {name for name in raw if name in FIELDS or name in FORMER}
    options = raw.keys() & options_of()
    of_sd_scripts = known <= options and not options <= known
    return not of_sd_scripts and len(known) > 1 and (2 * len(known) >= len(raw) or len(known) > 9)


def read(source: Source) -> Import:
    """Import a preset of kohya_ss as a job with a report. Raises ProblemsError for other model families."""
    preset = source.json or {}
    marked_tabs = (tab for tab, names in MARKS.items() if any(name in preset for name in names))
    tab = source.choice if source.choice in TABS else next(marked_tabs, DREAMBOOTH)
    resolved = resolve(preset, tab, source.where, count_images if source.folder is not None else lambda folder: None)
    script, written = SCRIPTS[resolved.script], frozenset(resolved.written(preset))
    reading = Reading(script, resolved.options, written, resolved.keys, resolved.prompts)
    reading.extra += resolved.entries
    for option in resolved.options:
        sentence = resolved.notes.get(option) or resolved.changed.get(resolved.keys.get(option, option))
        if sentence and option not in reading.notes:
            reading.note(option, "changed", sentence)
    for problem in resolved.problems:
        reading.warn(*problem)
    title = f"{TITLE}, {resolved.script}.py"
    result = to_import(reading, source, NAME, title, resolved.options, _launcher_entries(resolved.form, preset))
    in_settings = {entry.key for entry in result.report if entry.settings and entry.kind != "default"}
    result.report = [
        _with_file_value(entry, preset.get(entry.key), resolved.form)
        for entry in result.report
        if entry.settings or entry.key not in in_settings
    ]
    result.report += _remaining_entries(
        preset, resolved, {entry.key for entry in result.report if entry.kind != "default"}
    )
    result.choices, result.choice = tuple(TABS), tab
    return result


# ---- what the form makes of a file


@dataclass
class Resolved:
    """The options that kohya_ss passes to sd-scripts for a preset.

    form      {field: value} with the preset loaded
    changed   {field: sentence on how loading changes its value}
    options   {option of sd-scripts: value}
    used      {option: further fields that its value depends on}
    notes     {option: sentence on how it was computed}
    keys      {option: field or key in the file}
    entries   report entries on words of additional_parameters
    problems  (what, field, fix, code) of warnings
    prompts   sample prompts as text
    typed     options in additional_parameters
    """

    tab: str
    script: str
    form: Form
    changed: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    used: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(
        default_factory=lambda: {option: name for name, row in FIELDS.items() for option in row.get("options", ())}
    )
    entries: list[Entry] = field(default_factory=list)
    problems: list[tuple[str, str, str, str]] = field(default_factory=list)
    prompts: list[str] | None = None
    typed: frozenset[str] = frozenset()

    def written(self, preset: Mapping[str, Any]) -> Iterator[str]:
        """Yield the options that follow from fields stated in the file, not from the form's defaults."""
        stated = {_field_of(name) for name, value in preset.items() if value is not None}
        for name in self.options:
            sources = [self.keys.get(name, name), *self.used.get(name, ())]
            if name in self.typed or not stated.isdisjoint(sources):
                yield name


def _field_of(key: str) -> str:
    """Return the form's field for a key of a file, also for former keys; "" for a former key without a field."""
    return FORMER[key].get("field", "") if key in FORMER else key


def resolve(preset: Mapping[str, Any], tab: str, where: str, counts: Counts) -> Resolved:
    """Return the options that kohya_ss passes to sd-scripts for a preset on a fresh form. Raises ProblemsError for other model families.
    counts: folder -> {subfolder: number of images}, None if the folder is missing; see `count_images`"""
    form, changed = _loaded(preset, tab)
    shown = {**preset, **form}
    family = next((FAMILIES[name] for name in FAMILIES if shown.get(name) or shown.get("LoRA_type") == name), "")
    if family:
        what, fix = f"This preset trains {family} models", "open a preset for SD 1.x, SD 2.x or SDXL"
        raise ProblemsError.one(what, where, fix, "import.other-family")
    sdxl = _is_on(form["sdxl"])
    resolved = Resolved(tab, METHODS[TABS[tab]][sdxl], form, changed)
    for name, sentence in changed.items():
        if isinstance(preset.get(name), str) and "," in preset[name]:
            what, fix = f"{name}: {sentence}", "write numbers with a point"
            resolved.problems.append((what, name, fix, "import.decimal-comma"))
    passed = (name for name in form if name in options_of() and tab not in FIELDS[name].get("withheld", ()))
    options = {name: form[name] for name in passed}
    options |= {"epoch": form["epoch"]} if tab != FINE_TUNE else {}
    options |= _computed(resolved, sdxl) | _network(resolved) | _rates(resolved, sdxl) | _length(resolved, counts)
    steps, epochs = options.get("max_train_steps"), form["epoch"]
    both = steps and epochs > 1 and not form["max_train_epochs"] and tab != FINE_TUNE
    if both and preset.get("max_train_steps") is None:
        what = f"max_train_steps is not in this file: kohya_ss trains {steps:,} steps, its versions before that field {epochs:,} epochs"
        fix = f"set Epochs to {epochs:,} if the file is that old"
        resolved.problems.append((what, "epoch", fix, "import.steps-or-epochs"))
    options["lr_warmup_steps"] = _warmup(resolved, options.get("max_train_steps"))
    resolved.options = {name: value for name, value in options.items() if passes(name, value, tab, sdxl)}
    resolved.options["max_data_loader_n_workers"] = form["max_data_loader_n_workers"]
    # additional_parameters win. Words are read as they are meant; kohya_ss passes those with special signs in quotes.
    typed, resolved.entries = parse_words(resolved.script, _split_parameters(str(form["additional_parameters"] or "")))
    resolved.options |= typed
    resolved.typed = frozenset(typed)
    if "sample_prompts" in typed:
        resolved.prompts = None
    resolved.keys |= {name: f"additional_parameters --{name}" for name in typed}
    return resolved


def _loaded(preset: Mapping[str, Any], tab: str) -> tuple[Form, dict[str, str]]:
    """Return (the form with a preset loaded, {field: sentence on how loading changes its value}). null keeps the form's default."""
    form, changed = form_of(tab), dict[str, str]()
    stated = {name: value for name, value in preset.items() if value is not None}
    form |= {name: value for name, value in stated.items() if name in form}
    form["sdxl"] = stated.get("sdxl_checkbox", form.get("sdxl", False))
    if "lora_network_weights" in stated and "network_weights" in form:
        form["network_weights"] = stated["lora_network_weights"]
    if "optimizer" not in preset:
        form["optimizer"] = "AdamW8bit" if _is_on(stated.get("use_8bit_adam")) else "AdamW"
    if stated.get("use_wandb") == "True":
        form["log_with"] = "wandb"
    if form.get("LoRA_type") == "LoCon":
        form["LoRA_type"] = "LyCORIS/LoCon"
    if tab in (LORA, EMBEDDING) and form["save_model_as"] not in ("ckpt", "safetensors"):
        form["save_model_as"] = "safetensors"
        changed["save_model_as"] = "kohya_ss saves this as safetensors"
    for name, value in form.items():
        if "number" not in FIELDS[name]:
            continue
        kind = {"int": int, "float": float}[FIELDS[name]["number"]]
        form[name] = number = _number(value, kind, kind(FIELDS[name].get("unread", 0)))
        unchanged = str(value).strip() in ("", str(number)) or _number(value, float, math.nan) == number
        if name in stated and not unchanged:
            comma = ", since it has a decimal comma" if isinstance(value, str) and "," in value else ""
            changed[name] = f"kohya_ss reads it as {number}{comma}"
    return form, changed


def _number(value: Any, kind: Callable[[Any], Any] = float, fallback: Any = 0.0) -> Any:
    """Convert a field's value to a number as loading does; `fallback` if that fails."""
    try:
        number = kind(value) if len(str(value)) < 40 else fallback
        return number if math.isfinite(number) else fallback
    except (TypeError, ValueError, OverflowError):
        return fallback


def _is_on(value: Any) -> bool:
    """Return whether a field's value means on."""
    return value not in (None, False, "", 0, "False", "false", "0")


def passes(name: str, value: Any, tab: str, sdxl: bool) -> bool:
    """Return whether kohya_ss passes a field's value on to sd-scripts. name: the option or field; sdxl: whether SDXL is trained"""
    row = FIELDS.get(name, {})
    if value is None or value is False or (isinstance(value, str) and value == "") or ("sdxl" in row and not sdxl):
        return False
    zero = not isinstance(value, (list, dict, str, bool)) and value == 0
    return not zero or (tab in (DREAMBOOTH, FINE_TUNE) and "zero" in row)


# ---- what the command builder computes


def _computed(resolved: Resolved, sdxl: bool) -> dict[str, Any]:
    """Return {option: value} of options with another name or form than their field. Sets `resolved.prompts`."""
    form, tab = resolved.form, resolved.tab
    lines = str(form["sample_prompts"]).splitlines()
    resolved.prompts = [line for line in lines if line.strip()[:1] not in ("", "#")]
    options: dict[str, Any] = {
        "resolution": form["max_resolution"],
        "optimizer_type": form["optimizer"],
        "enable_bucket": True if tab == FINE_TUNE else form["enable_bucket"],
        "noise_offset_type": form["noise_offset_type"],
        "cache_text_encoder_outputs": sdxl and form.get("sdxl_cache_text_encoder_outputs"),
        "no_half_vae": form["sdxl_no_half_vae"] if sdxl or tab == EMBEDDING else None,
        "sample_prompts": f"{form['output_dir']}/sample/prompt.txt",
        "wandb_run_name": form["wandb_run_name"] or form["output_name"],
        "xformers": form["xformers"] in ("xformers", True, "True", "true"),
        "sdpa": form["xformers"] == "sdpa",
        "lr_scheduler_args": _words(form["lr_scheduler_args"]),
        "optimizer_args": _words(form["optimizer_args"]) or (None if tab == DREAMBOOTH else []),
    }
    if form.get("train_inpainting"):
        options |= {"train_inpainting": True, "cache_latents": None, "cache_latents_to_disk": None}
    if tab in (DREAMBOOTH, FINE_TUNE):
        options["persistent_data_loader_workers"] = int(_is_on(form["persistent_data_loader_workers"]))
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
    """Split a field at spaces outside of brackets into words, without double quotes: betas=(0.9, 0.99) is one. See also `listed_words`."""
    text = str(value or "").strip()
    if (listed := listed_words(text)) != [text]:
        return listed
    words = re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|\S)+", text.replace('"', ""))
    return [word.rstrip(",") for word in words]


def _network(resolved: Resolved) -> dict[str, Any]:
    """Return {"network_module": module, "network_args": ["name=value", ...]} of the LoRA tab; {} for other tabs."""
    form = resolved.form
    if resolved.tab != LORA:
        return {}
    kind = str(form["LoRA_type"])
    row = NETWORKS.get(kind, {"module": "lycoris.kohya" if kind.startswith("LyCORIS/") else kind, "arguments": ""})
    arguments, used = [], []
    for part in (*row["arguments"].split(), *LORA_PLUS):
        name, _, key = part.lstrip("?").partition("=")
        value = form.get(key or name)
        if part.startswith("algo:"):
            arguments.append(part.replace(":", "="))
            continue
        used.append(key or name)
        without_rank = part == "?conv_alpha" and not _is_on(form["conv_dim"])
        if not part.startswith("?") or (value and (name, value) != ("factor", -1) and not without_rank):
            arguments.append(f"{name}={value}")
    resolved.used["network_args"] = used
    return {"network_module": row["module"], "network_args": arguments}


def _rates(resolved: Resolved, sdxl: bool) -> dict[str, Any]:
    """Return {option: value} of the tab's learning rates, {} for others. On the LoRA tab a 0 for one part leaves that untrained
    ("network_train_unet_only", "network_train_text_encoder_only")."""
    form, tab, rates = resolved.form, resolved.tab, dict[str, Any]()
    if tab == LORA:
        unet, text = form["unet_lr"], form["text_encoder_lr"]
        rates = {"unet_lr": unet or None, "text_encoder_lr": [text, text] if text else None}
        rates |= {"network_train_unet_only": bool(unet and not text)}
        rates |= {"network_train_text_encoder_only": bool(text and not unet)}
        if not (unet or text or form["learning_rate"]):
            what = "All learning rates are 0, which kohya_ss refuses"
            resolved.problems.append((what, "learning_rate", "set a learning rate", "import.no-learning-rate"))
    elif tab in (DREAMBOOTH, FINE_TUNE):
        rates = {"learning_rate_te": None if sdxl else form["learning_rate_te"]}
    if tab == DREAMBOOTH and sdxl:
        resolved.used["train_text_encoder"] = encoder_rates = ["learning_rate_te1", "learning_rate_te2"]
        rates["train_text_encoder"] = any(_number(form[name]) > 0 for name in encoder_rates)
    return rates


def _length(resolved: Resolved, counts: Counts) -> dict[str, Any]:
    """Return {"max_train_steps": value}: the form's steps, else `epoch` epochs of the images in the folders.

    With a dataset config it is the form's steps or None. If the folders are missing it is None, and "max_train_epochs" is added unless
    the form sets it.
    """
    form, tab, notes = resolved.form, resolved.tab, resolved.notes
    steps, epochs = form["max_train_steps"], form["epoch"]
    if form["dataset_config"]:
        return {"max_train_steps": steps or None}
    if not steps:
        images = _images(form, tab, counts)
        if images is None:
            sentence = f"epoch {epochs}, since max_train_steps is 0: about the same length"
            notes["epoch"] = notes["max_train_epochs"] = sentence
            resolved.used["max_train_epochs"] = ["max_train_steps", "epoch"]
            resolved.keys["max_train_epochs"] = "epoch"
            return {"max_train_steps": None} | ({} if form["max_train_epochs"] else {"max_train_epochs": epochs})
        batches = images / max(_number(form["train_batch_size"]), 1) / max(form["gradient_accumulation_steps"], 1)
        steps = math.ceil(batches * epochs * (2 if form.get("reg_data_dir") else 1))
        notes["epoch"] = notes["max_train_steps"] = f"{epochs} epochs of the {images:g} images are {steps} steps"
        resolved.used["max_train_steps"] = ["epoch"]
    if tab == FINE_TUNE and _is_on(form["flip_aug"]):
        steps = math.ceil(steps / 2)
        notes["max_train_steps"] = f"kohya_ss halves the steps with flip_aug: {steps}"
    return {"max_train_steps": steps}


def _images(form: Form, tab: str, counts: Counts) -> float | None:
    """Return the number of images in an epoch, including repeats; None if the folder does not exist here."""
    counted_folders = counts(str(form["image_folder"] if tab == FINE_TUNE else form["train_data_dir"]))
    if counted_folders is None:
        return None
    if tab == FINE_TUNE:
        return counted_folders.get("", 0) * _number(form["dataset_repeats"])
    repeats = ((name.split("_")[0], number) for name, number in counted_folders.items() if name)
    return float(sum(int(repeats_text[:9]) * number for repeats_text, number in repeats if repeats_text.isdecimal()))


def count_images(folder: str) -> dict[str, int] | None:
    """Return {"": number of images in a folder, name of a subfolder: number of images in it}, counted as kohya_ss does; None for a folder
    that cannot be read."""
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


def _warmup(resolved: Resolved, total: int | None) -> float:
    """Return lr_warmup_steps: the form's steps, else its percentage as a fraction of the run.

    With a dataset config on the LoRA tab the percentage is converted to steps by `total`; without `total` only the percentage counts.
    total: steps of the run; None or 0 if unknown
    """
    form = resolved.form
    percent, steps = form["lr_warmup"], int(_number(form["lr_warmup_steps"]))
    if resolved.tab == LORA and form["dataset_config"]:
        if total:
            return steps or round(percent * total / 100)
    elif steps > 0:
        resolved.keys["lr_warmup_steps"] = "lr_warmup_steps"
        resolved.used["lr_warmup_steps"] = ["lr_warmup"]
        return steps
    return percent / 100 if percent else 0


def _split_parameters(text: str) -> list[str]:
    """Split the text of additional_parameters into words, without their quotes."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        return list(lexer)
    except ValueError:  # a quotation mark that is not closed
        return _words(text)


# ---- the report of fields that are not options


def _with_file_value(entry: Entry, value: Any, form: Form) -> Entry:
    """Return the entry with `value`, the value in the file. Entries of kind "default" become "taken" or "changed" if the file sets the
    field."""
    if value is None or entry.kind == "secret":
        return entry
    if entry.kind != "default":
        return replace(entry, value=value)
    if value is False:  # not passed, and off in sd-scripts too
        return replace(entry, kind="taken" if entry.settings else "changed", value=value)
    return replace(entry, kind="taken", value=value) if _is_on(form.get(_field_of(entry.key))) else entry


def _launcher_entries(form: Form, preset: Mapping[str, Any]) -> list[Entry]:
    """Return the report entry for the number of processes, as a list; [] if the preset does not set several."""
    number = int(_number(form["num_processes"]))
    if "num_processes" in preset and 1 < number <= 64:
        return [Entry("taken", "num_processes", number, ("memory.num_processes",))]
    return []


def _remaining_entries(preset: Mapping[str, Any], resolved: Resolved, reported: set[str]) -> Iterator[Entry]:
    """Yield a report entry for each key of the file that has none yet. reported: keys that have one"""
    parts = {name: option for option, names in resolved.used.items() for name in names if option in resolved.options}
    fresh, unknown_keys = form_of(resolved.tab), 0
    for key, value in preset.items():
        name, row = _field_of(key) or key, FORMER.get(key) or FIELDS.get(key)
        if key in reported:
            continue
        if key in SECRETS and value:
            yield Entry("secret", key, sentence=ELSEWHERE[key])
        elif row is None:
            unknown_keys += 1
            yield Entry("unavailable", key, value, sentence=unknown(key, FIELDS, unknown_keys))
        elif value is None or value == "" or (name in fresh and value == fresh[name] and name not in resolved.options):
            yield Entry("taken", key, "", sentence="not set")
        elif name in parts:
            yield Entry("taken", key, value, sentence=f"part of {parts[name]}")
        elif key in resolved.changed:
            yield Entry("changed", key, value, sentence=resolved.changed[key])
        elif "taken" in row:
            yield Entry("taken", key, value, sentence=row["taken"])
        else:
            yield _not_passed(key, value, name, resolved, row.get("idle", ""))


def _not_passed(key: str, value: Any, name: str, resolved: Resolved, sentence: str) -> Entry:
    """Return the report entry of a field that is not passed to sd-scripts.

    key, name  key in the file, field of the form
    sentence   the reason; "": found from the tab, the choices and the value
    """
    if not sentence and name not in resolved.form:
        sentence = "belongs to another tab of kohya_ss"
    if not sentence and name not in options_of():
        sentence = "is read only with other network types, tabs or model families"
    if sentence or _is_on(value):
        return Entry("idle", key, value, sentence=sentence or "is not passed to sd-scripts with these choices")
    options = SCRIPTS[resolved.script].options
    default = options[name].default if name in options else None
    if default in (None, False, "", 0):
        return Entry("taken", key, value, sentence="not set")
    return Entry("changed", key, value, sentence=f"kohya_ss does not pass 0 on, so that sd-scripts takes {default}")
