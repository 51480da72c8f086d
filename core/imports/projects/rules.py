"""Convert sd-scripts' options to settings.

An option whose name a setting declares becomes that setting. Functions with `@rule` convert the others: options that count
together, and values that have another form here. Options that are not set have sd-scripts' default, so that the job trains the same
there and here.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from core.imports.dataset_options import INTERPOLATIONS, side_of_area
from core.imports.projects.options import DecimalComma, Option, Script, convert
from core.imports.projects.report import Entry, Remarks, known_settings
from core.imports.projects.shells import unresolved
from core.record.units import number_text
from core.settings.elsewhere import ELSEWHERE
from core.settings.layers import PRESETS
from core.settings.optimization.optimizer import COMMON
from core.settings.optimization.optimizers import literal, parse_arguments
from core.settings.optimization.schedule import FLOORED
from core.settings.presets.networks import LYCORIS, arguments_of, is_on, kind_of, settings_of_arguments
from core.settings.values import value_typed

Values = dict[str, Any]  # by path
READ_HERE = ("dataset_config",)  # of ELSEWHERE
SECRETS = frozenset(("wandb_api_key", "huggingface_token"))
SCHEDULERS = [name for name in known_settings()["schedule.lr_scheduler"].choices if name != "rex"]  # of sd-scripts
WITHOUT_WARMUP = ("constant", "adafactor")
# Networks of newer sd-scripts that are LyCORIS' in its own form
ALSO_NETWORKS = {"networks.loha": "loha", "networks.lokr": "lokr"}
FULL = 10_000  # a rank from here up asks LyCORIS for whole matrices
CONVOLUTIONS = r"(^|\.)conv(_in|_out|1|2)?$"  # paths of 3x3 ones
TUCKER = ("use_conv_cp", "use_cp", "use_tucker")  # LyCORIS reads the first of them that is written
FLAGS = ("dora_wd", "rs_lora", "train_norm", "use_scalar", "full_matrix", *TUCKER)
SAME_HERE = frozenset(("bypass_mode", *TUCKER))  # arguments that are computed so where it gives the same result


@dataclass
class Reading(Remarks):
    """The options of one training with sd-scripts, converted to their types.

    raw      {option: value as written}, including defaults of kohya_ss
    written  options that the file itself states
    keys     {option: key in the file} if it has another name there
    prompts  sample prompts, if the file contains them as text
    dataset  content of the dataset config, if the file contains it
    values   {option: value in effect} of all options of the script
    extra    report entries on anything but options
    """

    script: Script
    raw: dict[str, Any]
    written: frozenset[str]
    keys: Mapping[str, str] = field(default_factory=dict)
    prompts: list[str] | None = None
    dataset: dict[str, Any] | None = None
    values: dict[str, Any] = field(init=False)
    extra: list[Entry] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Convert `raw` to `values`, starting from sd-scripts' defaults."""
        self.values = {name: option.default for name, option in self.script.options.items()}
        for name, value in self.raw.items():
            if name in self.values and name not in SECRETS:
                self._store(self.script.options[name], value)

    def _store(self, option: Option, raw: Any) -> None:
        """Convert and store an option's value. A value that cannot be read becomes a note, sometimes with a warning."""
        words = [word for word in (raw if isinstance(raw, list) else [raw]) if isinstance(word, str)]
        missing = [each for word in words for each in unresolved(word)]
        if missing and option.name in ELSEWHERE and not any(option.name in names for names in (*RULES, READ_HERE)):
            return  # no setting would have its value
        if missing:
            text = ", ".join(missing)
            self.note(option.name, "unavailable", f"needs {text}, whose value the text does not give; enter it")
            what = f"--{option.name} uses {text}, whose value the text does not give"
            self.warn(what, option.name, "enter the value in the project", "import.unset-variable")
            return
        try:
            value, sentence = convert(option, raw)
        except ValueError as error:
            self.note(option.name, "unavailable", f"{error}; sd-scripts' default is set")
            if isinstance(error, DecimalComma):
                self.warn(str(error), option.name, "write numbers with a point", "import.decimal-comma")
            return
        if value is not None:
            self.values[option.name] = value
        if sentence:
            self.note(option.name, "changed", sentence)

    def __getitem__(self, name: str) -> Any:
        """Return the option's value in effect; None also for options that the script does not have."""
        return self.values.get(name)

    def key(self, name: str) -> str:
        """Return the option's key in the file, by default its name."""
        return self.keys.get(name, name)

    @property
    def lora(self) -> bool:
        """Whether a network is trained (train_network.py)."""
        return self.script.method == "lora"


# setting -> ({option: value while it is on}, of which the first counts; the value while all are off)
CHOICES: dict[str, tuple[dict[str, str], str]] = {
    "memory.attention": (
        {"mem_eff_attn": "sliced", "xformers": "xformers", "diffusers_xformers": "xformers", "sdpa": "sdpa"},
        "auto",
    ),
    "memory.cache_latents": ({"cache_latents_to_disk": "disk", "cache_latents": "memory"}, "off"),
    "memory.vae_precision": ({"no_half_vae": "fp32"}, "auto"),
    "captions.caption_template": ({"use_object_template": "object", "use_style_template": "style"}, "none"),
}
# option -> its setting, and the value there
VALUES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "resize_interpolation": ("dataset.resize_interpolation", lambda name: INTERPOLATIONS.get(name, "auto")),
    "lr_scheduler_type": ("schedule.lr_scheduler_type", lambda name: name or None),
    "output_name": ("saving.output_name", lambda name: name or "last"),
    "huggingface_repo_visibility": (
        "hub.huggingface_repo_visibility",
        lambda text: "public" if text == "public" else "private",
    ),
    "metadata_is_negative_embedding": (
        "saving.metadata_is_negative_embedding",
        lambda text: str(text or "").lower() in ("true", "1", "yes"),
    ),
}


def part_of_run(value: Any) -> Any:
    """Return a span in steps as int, one as part of the run ("5%" or 0.05) as float; 0 for None."""
    return float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else value or 0


def _chosen(path: str, reading: Reading) -> Values:
    """Return {path: value of the first option that is on} for a setting `path` in CHOICES, which also has the value if none is on."""
    values, otherwise = CHOICES[path]
    return {path: next((value for option, value in values.items() if reading[option]), otherwise)}


def _converted(option: str, reading: Reading) -> Values:
    """Return {path: value} of the setting that the option becomes by VALUES. option: a key of VALUES"""
    path, value = VALUES[option]
    return {path: value(reading[option])}


RULES: dict[tuple[str, ...], Callable[[Reading], Values]] = {
    **{tuple(values): partial(_chosen, path) for path, (values, _) in CHOICES.items()},
    **{(option,): partial(_converted, option) for option in VALUES},
}


def rule(*names: str) -> Callable[[Callable[[Reading], Values]], Callable[[Reading], Values]]:
    """Decorate a function from a Reading to {path: value}: register it as the conversion of the options `names`."""

    def register(function: Callable[[Reading], Values]) -> Callable[[Reading], Values]:
        RULES[names] = function
        return function

    return register


# ---- model and method


@rule("v2", "v_parameterization")
def _model(reading: Reading) -> Values:
    """Return {path: value} of "model.family" ("auto" if the script is guessed) and "model.prediction" ("v" or "epsilon")."""
    plain = "auto" if reading.script.guessed else "sd1"
    family = reading.script.family or ("sd2" if reading["v2"] else plain)
    return {"model.family": family, "model.prediction": "v" if reading["v_parameterization"] else "epsilon"}


@rule("train_text_encoder", "stop_text_encoder_training")
def _text_encoder(reading: Reading) -> Values:
    """Return {path: value} of "method.train_text_encoder" and "method.stop_text_encoder_training" for a full model, else {}."""
    if reading.script.method not in ("dreambooth", "fine_tune"):
        return {}
    if "train_text_encoder" in reading.values:
        return {"method.train_text_encoder": "yes" if reading["train_text_encoder"] else "no"}
    stop = reading["stop_text_encoder_training"]
    trains = stop is None or stop >= 0
    return {
        "method.train_text_encoder": "yes" if trains else "no",
        "method.stop_text_encoder_training": stop if trains else None,
    }


@rule("train_data_dir", "in_json", "dataset_repeats")
def _folders(reading: Reading) -> Values:
    """Return {path: value} of "dataset.folder", or with a metadata file (in_json) of "dataset.sources"."""
    folder, metadata = reading["train_data_dir"], reading["in_json"]
    if not metadata:
        reading.note("dataset_repeats", "idle", "counts only with in_json")
        return {"dataset.folder": folder}
    repeats = min(max(reading["dataset_repeats"] or 1, 1), 10_000)
    source = {"folder": folder or ".", "metadata_file": metadata, "num_repeats": repeats}
    return {"dataset.folder": None, "dataset.sources": [source]}


@rule("dataset_class", "cache_info", "train_inpainting")
def _not_taken(reading: Reading) -> Values:
    """Add notes on options that are not imported; returns {}."""
    if reading["dataset_class"]:
        sentence = "names Python code, which is never imported; set dataset.dataset_class if you trust its module"
        reading.note("dataset_class", "unavailable", sentence)
    if reading["cache_info"]:
        reading.note("cache_info", "unavailable", "is a setting of each folder: turn it on there")
    if reading["train_inpainting"]:
        fix = "start from a model that does not inpaint, or train it with sd-scripts"
        reading.warn("Inpainting models are not trained here", "train_inpainting", fix, "import.inpainting")
    return {}


# ---- network


@rule("network_train_unet_only", "network_train_text_encoder_only")
def _parts(reading: Reading) -> Values:
    """Return {path: value} of "network.train_text_encoder" and "network.train_unet"; {} for methods without a network."""
    if not reading.lora:
        return {}
    text, unet = not reading["network_train_unet_only"], not reading["network_train_text_encoder_only"]
    return {"network.train_text_encoder": text, "network.train_unet": unet}


@rule("network_module", "network_args", "network_dim", "network_alpha", "network_dropout")
def _network(reading: Reading) -> Values:
    """Return {path: value} of "network.kind", "network.rank", "network.alpha", "network.network_dropout" and network_args; for a
    ControlNet-LLLite of the "lllite" group; {} for methods without a network."""
    if reading.script.method == "lllite":
        rank, dropout = reading["network_dim"] or 64, reading["network_dropout"] or 0.0
        return {"lllite.hidden_dim": rank, "lllite.dropout": dropout, "lllite.zero_bias": False}
    if not reading.lora:
        return {}
    module = reading["network_module"] or "networks.lora"
    words = _argument_words(reading, "network_args")
    written = arguments_of(words)
    for word in words:
        if "=" not in word:
            reading.extra.append(
                Entry("unavailable", reading.key("network_args"), word, sentence="is not in the form name=value")
            )
    kind = ALSO_NETWORKS.get(module) or kind_of({"network_module": module, **written})
    if not kind:
        algo = f" with algo={written['algo']}" if "algo" in written else ""
        what = f"The network {module}{algo} is not available; the settings are those of a LoRA"
        reading.warn(what, "network_module", "choose a network type before you train", "import.unknown-network")
        reading.note("network_module", "unavailable", "is not known here; LoRA is set instead, with its rank and alpha")
        kind, module = "lora", "networks.lora"
    settings = _network_argument_values(reading, module, kind, written)
    rank, alpha = reading["network_dim"] or 4, reading["network_alpha"] or 0
    settings |= {"network.kind": kind, "network.rank": rank, "network.alpha": alpha}
    if reading["network_dropout"] is not None:
        settings["network.network_dropout"] = reading["network_dropout"]
    elif "network.network_dropout" in settings:
        reading.values.pop("network_dropout", None)  # network_args have it
    if module in ALSO_NETWORKS and settings.pop("network.network_dropout", None):
        reading.note("network_dropout", "changed", "has no effect in sd-scripts with LoHa and LoKr")
    if kind.endswith("lokr") and rank >= FULL:
        reading.note("network_dim", "changed", f"{rank} makes LoKr's large matrix whole: {kind}.full_matrix")
        settings |= {f"{kind}.full_matrix": True, "network.rank": 16, "network.alpha": 16.0}
        settings = {path: value for path, value in settings.items() if not path.startswith("network.conv_")}
    return settings


def _network_argument_values(reading: Reading, module: str, kind: str, written: Mapping[str, str]) -> Values:
    """Return {path: value} of network_args. Arguments that are not set have LyCORIS' defaults for its module, not those of the settings."""
    known = known_settings()
    arguments = dict(written)
    if module == LYCORIS:
        tucker = str(is_on(next(filter(None, map(written.get, TUCKER)), "")))
        defaults = {"preset": "full", "rank_dropout_scale": "False", "use_tucker": tucker}
        defaults |= {"conv_alpha": number_text(reading["network_alpha"] or 1)} if "conv_dim" in written else {}
        arguments = defaults | {name: value for name, value in written.items() if name not in TUCKER}
        conv_dim, preset = arguments.get("conv_dim"), PRESETS.get(arguments["preset"])
        if not is_on(conv_dim):  # without it LyCORIS takes the rank
            arguments.pop("conv_dim", None)
            if conv_dim != "0" and is_on(written.get("conv_alpha")):
                arguments["conv_dim"] = number_text(reading["network_dim"] or 4)
        for name in FLAGS:
            if name in written and not is_on(written[name]) and written[name].lower() != "false":
                sentence = "is off here; some versions of LyCORIS read everything but False as on"
                reading.extra.append(
                    Entry("changed", reading.key("network_args"), f"{name}={written[name]}", sentence=sentence)
                )
        if conv_dim == "0" and preset is not None and preset.conv:  # LyCORIS leaves out 3x3 convolutions
            full = arguments["preset"] == "full"
            arguments |= {"preset": "full-lin"} if full else {"exclude_patterns": CONVOLUTIONS}
        if kind == "ia3":
            arguments["all_layers"] = str(arguments.pop("preset") != "ia3")
        elif arguments["preset"].endswith(".toml"):
            sentence = f"preset={arguments.pop('preset')} is a file of layers; write them into network.layers"
            reading.note("network_args", "unavailable", sentence)
    elif is_on(written.get("conv_dim")):
        arguments.setdefault("conv_alpha", "1")
    if "block_size" in arguments:
        arguments["unit"] = arguments.pop("block_size")
    settings, unknown = settings_of_arguments(kind, arguments, known)
    for name in unknown:
        if name in written and name not in SAME_HERE:
            sentence = f"{name} is no argument of {module} that is known here"
            reading.extra.append(
                Entry("unavailable", reading.key("network_args"), f"{name}={written[name]}", sentence=sentence)
            )
    return {path: value_typed(known[path], str(value)) for path, value in settings.items()}


def listed_words(text: str) -> list[str]:
    """Return the words of a text that is a whole list, such as '["a=1", "b=2"]' in notebooks; else the text as the only word."""
    words = literal(text) if text.startswith("[") else text
    return [str(word) for word in words] if isinstance(words, list) else [text]


def _unquoted(word: str) -> str:
    """Return the word without quotes around it."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word


def _argument_words(reading: Reading, name: str) -> list[str]:
    """Return the arguments of the option `name`, name=value each. Several in one word are separated, with a note."""
    words = [_unquoted(word) for text in reading[name] or [] for word in listed_words(text)]
    separate = [part for word in words for part in re.split(r"\s+(?=\w+=)", word)]
    if len(separate) > len(words):
        reading.note(name, "changed", "has several arguments in one word, which sd-scripts refuses; they are separated")
    return separate


# ---- optimizer and length


@rule("optimizer_type", "use_8bit_adam", "use_lion_optimizer")
def _optimizer(reading: Reading) -> Values:
    """Return {path: value} of "optimizer.optimizer_type", also from the older switches."""
    older = "AdamW8bit" if reading["use_8bit_adam"] else "Lion" if reading["use_lion_optimizer"] else "AdamW"
    return {"optimizer.optimizer_type": reading["optimizer_type"] or older}


@rule("optimizer_args")
def _optimizer_arguments(reading: Reading) -> Values:
    """Return {path: value} of "optimizer.optimizer_args" and of arguments that are settings of their own (COMMON)."""
    arguments = _arguments(reading, "optimizer_args")
    common = {name: arguments.pop(name) for name in COMMON if _numbers(arguments.get(name), pair=name == "betas")}
    return {"optimizer.optimizer_args": arguments} | {f"optimizer.{name}": value for name, value in common.items()}


def _numbers(value: Any, pair: bool) -> bool:
    """Return whether a value is a list of two numbers (`pair`) or a single number."""
    items = value if isinstance(value, list) else [value]
    fits = isinstance(value, list) == pair and len(items) == 1 + pair
    return fits and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in items)


@rule("lr_scheduler_args")
def _scheduler_arguments(reading: Reading) -> Values:
    """Return {"schedule.lr_scheduler_args": {name: value}}."""
    return {"schedule.lr_scheduler_args": _arguments(reading, "lr_scheduler_args")}


def _arguments(reading: Reading, name: str) -> Values:
    """Return {argument: value} of the option `name`, whose words are argument=value; words in another form become report entries."""
    arguments: Values = {}
    for word in _argument_words(reading, name):
        try:
            argument = parse_arguments([word])
            json.dumps(argument, allow_nan=False)
            arguments |= argument
        except (ValueError, TypeError) as error:
            reading.extra.append(Entry("unavailable", reading.key(name), word, sentence=str(error)))
    return arguments


@rule("text_encoder_lr", "learning_rate_te", "learning_rate_te1", "learning_rate_te2")
def _text_rates(reading: Reading) -> Values:
    """Return {path: value} of "optimizer.text_encoder_lr": None (main rate), one rate, or a list of two for SDXL."""
    rate: Any = reading["learning_rate_te"]
    if reading.lora:
        rates = reading["text_encoder_lr"] or [None]
        rate = rates[0]
        if any(each != rate for each in rates):
            reading.note(
                "text_encoder_lr", "changed", f"has several rates, of which sd-scripts' LoRA uses the first: {rate}"
            )
    elif reading.script.family == "sdxl":
        both = [reading["learning_rate_te1"], reading["learning_rate_te2"]]
        any_set = any(each is not None for each in both)
        both = [reading["learning_rate"] if each is None else each for each in both]
        rate = None if not any_set else both[0] if both[0] == both[1] else both
    return {"optimizer.text_encoder_lr": rate}


@rule("max_train_epochs", "max_train_steps")
def _length(reading: Reading) -> Values:
    """Return {path: value} of "schedule.max_train_epochs" and "schedule.max_train_steps"; sd-scripts ignores steps if epochs are set."""
    epochs, steps = reading["max_train_epochs"] or None, reading["max_train_steps"] or None
    if epochs and "max_train_steps" in reading.raw:
        reading.note("max_train_steps", "changed", f"has no effect: sd-scripts trains max_train_epochs, {epochs}")
    return {"schedule.max_train_epochs": epochs, "schedule.max_train_steps": None if epochs else steps}


def _scheduler(reading: Reading) -> str:
    """Return the name of the learning rate scheduler, without the initial rate after a colon."""
    return str(reading["lr_scheduler"] or "constant").partition(":")[0]


@rule("lr_scheduler", "lr_scheduler_min_lr_ratio")
def _schedulers(reading: Reading) -> Values:
    """Return {path: value} of "schedule.lr_scheduler" and "schedule.lr_scheduler_min_lr_ratio"; constant, with a note, for an unknown
    scheduler."""
    name, ratio = _scheduler(reading), reading["lr_scheduler_min_lr_ratio"]
    if name not in SCHEDULERS:
        reading.note("lr_scheduler", "unavailable", f"'{name}' is no scheduler of sd-scripts; constant is set")
    elif ":" in str(reading["lr_scheduler"]):
        reading.note("lr_scheduler", "changed", "the initial rate after the colon is only logged by sd-scripts")
    plain = name if name in SCHEDULERS else "constant"
    if ratio is not None and plain in FLOORED:
        reading.note("lr_scheduler_min_lr_ratio", "changed", f"has no effect in sd-scripts with {plain}")
        ratio = None
    return {"schedule.lr_scheduler": plain, "schedule.lr_scheduler_min_lr_ratio": ratio}


@rule("lr_warmup_steps")
def _warmup(reading: Reading) -> Values:
    """Return {"schedule.lr_warmup_steps": steps, or a part of the run}; 0, with a note, with schedulers for which sd-scripts refuses a
    warmup."""
    steps = reading["lr_warmup_steps"] or 0
    refused = reading["lr_scheduler_type"] or (_scheduler(reading) if _scheduler(reading) in WITHOUT_WARMUP else "")
    if steps and refused:
        reading.note("lr_warmup_steps", "changed", f"is 0 here: sd-scripts refuses to warm up with {refused}")
        steps = 0
    total = None if reading["max_train_epochs"] else reading["max_train_steps"]
    part = float(steps.rstrip("%")) if isinstance(steps, str) else steps * 100 if isinstance(steps, float) else 0
    if part and "lr_warmup_steps" not in reading.notes:
        length = f"{total} steps = {int(part * total / 100)} steps" if total else "the run"
        reading.note("lr_warmup_steps", "changed", f"warmup {number_text(part)}% of {length}")
    return {"schedule.lr_warmup_steps": steps}


# ---- dataset and captions


@rule("resolution")
def _resolution(reading: Reading) -> Values:
    """Return {"dataset.resolution": side in pixels or [width, height]}; {}, with a note, if it is unreadable."""
    size = _size(reading["resolution"])
    if size is None:
        if reading["resolution"]:
            reading.note("resolution", "unavailable", "is neither one number nor width,height")
        return {}
    return {"dataset.resolution": size[0] if size[0] == size[1] else list(size)}


def _size(text: Any) -> tuple[int, int] | None:
    """Return (width, height) of "512" or "512,768"; None for other texts."""
    parts = [part.strip() for part in str(text or "").replace("x", ",").strip("()[] ").split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in parts) or len(parts) > 2:
        return None
    return int(parts[0]), int(parts[-1])


@rule("skip_image_resolution")
def _smallest(reading: Reading) -> Values:
    """Return {"dataset.skip_image_resolution": side of a square as large as the resolution}; {}, with a note, if it is unreadable."""
    size = _size(reading["skip_image_resolution"] or "0")
    if size is None:
        reading.note("skip_image_resolution", "unavailable", "is neither one number nor width,height")
        return {}
    return {"dataset.skip_image_resolution": side_of_area(*size)}


@rule("caption_extension", "caption_extention")
def _extension(reading: Reading) -> Values:
    """Return {"captions.caption_extension": extension with a dot}, also from the option's older spelling."""
    text = reading["caption_extention"] or reading["caption_extension"] or ".caption"
    return {"captions.caption_extension": text if text.startswith(".") else f".{text}"}


@rule("face_crop_aug_range")
def _face_crop(reading: Reading) -> Values:
    """Return {"dataset.face_crop_aug_range": [low, high]}; {} if it is not set, and with a note if it is unreadable."""
    if not reading["face_crop_aug_range"]:
        return {}
    try:
        low, high = (float(part) for part in reading["face_crop_aug_range"].split(","))
    except ValueError:
        reading.note("face_crop_aug_range", "unavailable", "is not two numbers with a comma between them")
        return {}
    return {"dataset.face_crop_aug_range": [low, high]}


@rule("validation_seed", "validate_every_n_epochs", "validate_every_n_steps", "validation_split")
def _validation(reading: Reading) -> Values:
    """Return {path: value} of "validation.validation_split", "validation.validation_seed" (by default the training's) and the interval (by
    default every epoch)."""
    epochs, steps, seed = (
        reading[name] for name in ("validate_every_n_epochs", "validate_every_n_steps", "validation_seed")
    )
    split = reading["validation_split"] or 0.0
    settings: Values = {"validation.validation_split": split, "validation.validate_every_n_steps": steps}
    if epochs is not None or steps is not None:
        settings["validation.validate_every_n_epochs"] = epochs
    if split or seed is not None:
        settings["validation.validation_seed"] = (reading["seed"] if seed is None else seed) or 0
    return settings


# ---- memory, saving, logging


@rule("full_bf16", "full_fp16")
def _full(reading: Reading) -> Values:
    """Return {"memory.full_precision": "bf16", "fp16" or "fp32"}; {}, with a note, for networks and embeddings, which stay in fp32."""
    name = "full_bf16" if reading["full_bf16"] else "full_fp16" if reading["full_fp16"] else ""
    if name and reading.script.method in ("lora", "embedding"):
        reading.note(name, "changed", "what trains stays in fp32, which is more accurate and small enough")
        return {}
    return {"memory.full_precision": name.removeprefix("full_") or "fp32"}


@rule("save_precision")
def _save_precision(reading: Reading) -> Values:
    """Return {"saving.save_precision": dtype of saved weights}, by default that of full 16-bit training, else fp32."""
    full = {"full_bf16": "bf16", "full_fp16": "fp16"} if reading.script.method in ("dreambooth", "fine_tune") else {}
    plain = next((name for option, name in full.items() if reading[option]), "fp32")
    named = {"float": "fp32"}.get(reading["save_precision"], reading["save_precision"])
    return {"saving.save_precision": named or plain}


@rule("save_model_as", "use_safetensors")
def _save_as(reading: Reading) -> Values:
    """Return {"saving.save_model_as": format}, by default safetensors with use_safetensors, else as the base model ("source")."""
    usual = "safetensors" if reading["use_safetensors"] else "source"
    return {"saving.save_model_as": reading["save_model_as"] or usual}


@rule("save_state", "save_state_on_train_end")
def _states(reading: Reading) -> Values:
    """Return {path: value} of those settings for saving training states, "saving.save_state" and so on, that the file sets."""
    names = ("save_state", "save_state_on_train_end")  # ours stay on where the file is silent: they change no weight
    return {f"saving.{name}": reading[name] for name in names if name in reading.written}


@rule("sample_prompts")
def _prompts(reading: Reading) -> Values:
    """Return {"samples.sample_prompts": prompts} if they are known, else {"samples.sample_prompts_file": file}."""
    if reading.prompts is not None:
        return {"samples.sample_prompts": reading.prompts}
    return {"samples.sample_prompts_file": reading["sample_prompts"]}


@rule("log_with", "logging_dir")
def _logging(reading: Reading) -> Values:
    """Return {path: value} of "logging.log_with" and "logging.logging_dir"; a folder alone means TensorBoard."""
    folder = reading["logging_dir"]
    return {
        "logging.log_with": reading["log_with"] or ("tensorboard" if folder else "none"),
        "logging.logging_dir": folder,
    }
