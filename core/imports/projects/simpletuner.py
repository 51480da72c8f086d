"""Import training settings of SimpleTuner: a config.json with the data backends that it names, or the backends alone."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from core.imports.projects.report import Import, Source
from core.imports.projects.table import (
    Config,
    Fixed,
    Values,
    arguments_of,
    chosen_optimizer,
    clamp,
    item_values,
    optimizer_settings,
    other_family,
    read_table,
    to_import,
    with_bounds,
)
from core.record.bounded_json import json_or_none
from core.record.problems import ProblemsError
from core.record.workspace import last_part
from core.settings.check import shorten
from core.settings.optimization.optimizers import averages

NAME, TITLE = "simpletuner", "SimpleTuner"
ALIASES = {"checkpointing_steps": "checkpoint_step_interval", "validation_steps": "validation_step_interval"}
BACKENDS, MOST, LONGEST = "data_backend_config", 500, 2_000
UNREAD = ".no_captions"  # an ending that no caption file has
ALGORITHMS = {name: name for name in "lora locon loha lokr full glora ia3 boft".split()} | {"diag-oft": "diag_oft"}
LAYERS = {"Attention": "attn", "FeedForward": "ff"}  # LyCORIS' names of modules -> parts of names of layers
# What is read of the LyCORIS config file
LYCORIS = frozenset("algo linear_dim linear_alpha factor full_matrix apply_preset bypass_mode".split())
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
FIXED: Fixed = {"validation.best_checkpoint": ("off", "SimpleTuner does not compare checkpoints")}
TABLE = read_table(NAME, TITLE, ("data.",))


def recognizes(source: Source) -> bool:
    """Return whether a text is a config of SimpleTuner, or a list of its data backends."""
    if source.json is not None:
        bare = {key.lstrip("-") for key in _content(source.json)}
        return "schema_version" not in bare and bool({"model_family", BACKENDS} & bare)
    return bool(_backends_alone(source))


def _content(config: Values) -> Values:
    """Return the options: those in "config", where SimpleTuner's web UI saves them, else the whole content. AI Toolkit's "config" has
    "process"."""
    inside = config.get("config")
    return inside if isinstance(inside, dict) and "process" not in inside else config


def _backends_alone(source: Source) -> list[Any]:
    """Return the data backends of a text that is only a list of them; [] for other texts."""
    content = json_or_none(source.text) if source.text.lstrip("\ufeff \t\r\n").startswith("[") else None
    backends, marks = (
        content if isinstance(content, list) else [],
        {"instance_data_dir", "instance_data_root", "dataset_type", "caption_strategy"},
    )
    return backends if any(isinstance(each, dict) and marks & each.keys() for each in backends) else []


def keys() -> Iterable[str]:
    """Return every key that the importer knows; keys of data backends begin with "data.", those that stand for several end with *."""
    return [*TABLE.rows, *ALIASES]


def read(source: Source) -> Import:
    """Import a config of SimpleTuner as a job with a report. Raises ProblemsError as `resolve`."""
    config = resolve(source)
    settings = config.settings(RULES)
    listed = _backends(config)
    settings |= folders(config, listed)
    images = [each for each in listed if each.get("data.dataset_type", "image") in ("image", "eval")]
    written = config.written | item_values(listed, TABLE) | item_values(images, TABLE)
    return to_import(
        config, settings, written, FIXED, NAME, f"{config['model_type']} of {config['model_family'] or 'a model'}"
    )


def resolve(source: Source) -> Config:
    """Return the config. Raises ProblemsError for models and methods that are not trained here."""
    config = Config(TABLE, source, _content(source.json) if source.json else {BACKENDS: _backends_alone(source)})
    bare = {key: key.lstrip("-") for key in config.written}
    config.current_keys = {key: ALIASES.get(name, name) for key, name in bare.items()}
    raw = {config.current_keys[key]: value for key, value in config.written.items() if value not in (None, "")}
    config.values = config.read({key: value for key, value in raw.items() if key != BACKENDS})
    family, data, where = config["model_family"].lower(), TABLE.data, source.where
    if family not in data["families"]:
        raise other_family(config, family)
    if config.values["model_type"] not in ("lora", "full") or str(raw.get("controlnet")).lower() == "true":
        what = "Training of ControlNets" if raw.get("controlnet") else f"The type {shorten(config['model_type'])}"
        fix = "open a config of a LoRA or a full model; ControlNets train with the method controlnet"
        raise ProblemsError.one(f"{what} is not imported", where, fix, "import.other-method")
    config.method = "lora" if config["model_type"] == "lora" else "fine_tune"
    return config


# ---- rules


def model(config: Config) -> Values:
    """Return {setting: value} of method, model and run: "method.kind", "model.family", "model.base_model", "model.prediction",
    "schedule.seed", "saving.output_name" ...; adds a warning if no model is named."""
    family, flavour, key = config["model_family"].lower(), config["model_flavour"], "pretrained_model_name_or_path"
    base = config[key] or TABLE.data["models"].get(family, {}).get(flavour, "")
    if not base:
        config.warn("The text names no model", key, "choose the base model", "import.no-model")
    kind, is_sd2 = config["prediction_type"], TABLE.data["families"][family] == "sd2"
    if kind and kind not in PREDICTIONS:
        config.note("prediction_type", "unavailable", f"is none of {', '.join(PREDICTIONS)}; the model's own is set")
    if is_sd2 and not config["rescale_betas_zero_snr"]:
        config.note("rescale_betas_zero_snr", "changed", "SimpleTuner turns it on for SD 2.x")
    default = "v" if is_sd2 else "epsilon" if family else "auto"
    vae = config["pretrained_vae_model_name_or_path"]
    return {
        "method.kind": config.method,
        "model.family": TABLE.data["families"][family],
        "model.prediction": PREDICTIONS.get(kind, default),
        "model.base_model": base,
        "model.vae": vae if family == "sdxl" else None,
        "noise.zero_terminal_snr": config["rescale_betas_zero_snr"] or is_sd2,
        "schedule.seed": int(config["seed"]) if config["seed"] and config["seed"] > 0 else None,
        "saving.output_name": last_part(config["output_dir"])[:100] or "my_model",
    }


def machine(config: Config) -> Values:
    """Return {setting: value} of attention, torch.compile, precision, EMA and trackers: "memory.attention", "memory.torch_compile",
    "method.ema", "logging.log_with" ..."""
    attention, backend, report = config["attention_mechanism"], config["dynamo_backend"], config["report_to"]
    if attention not in ("diffusers", "xformers") and not attention.startswith("native"):
        config.note("attention_mechanism", "unavailable", "is not available; SDPA is used")
    trackers = ("tensorboard", "wandb", "all", "none")
    if report not in trackers:
        config.note("report_to", "unavailable", f"is none of {', '.join(trackers)}")
    settings = {"memory.torch_compile": True, "memory.dynamo_backend": backend} if backend not in ("no", "") else {}
    if report in ("wandb", "all"):
        settings |= {
            "logging.log_tracker_name": config["tracker_project_name"],
            "logging.wandb_run_name": config["tracker_run_name"],
        }
    if config["mixed_precision"] == "no":
        settings["memory.allow_tf32"] = not config["disable_tf32"]
    if config["use_ema"]:
        device = {"accelerator": "device"}.get(config["ema_device"], "cpu")
        names = {"method.ema_decay": "ema_decay", "method.ema_update_every": "ema_update_interval"}
        settings |= {"method.ema": True, "method.ema_device": device} | {
            path: config[key] for path, key in names.items()
        }
    sliced = "sliced" if config["unet_attention_slice"] else "auto"
    return settings | {
        "memory.attention": "xformers" if attention == "xformers" else sliced,
        "memory.fp8_base_unet": config["base_model_precision"].startswith("fp8") and config.method == "lora",
        "logging.log_with": report if report in trackers else "none",
    }


def length(config: Config) -> Values:
    """Return {setting: value} of "schedule.max_train_steps", "schedule.max_train_epochs" and "saving.save_every_n_epochs"."""
    steps, epochs = config["max_train_steps"], config["num_train_epochs"]
    if steps > 0 and epochs > 0:
        config.note("num_train_epochs", "idle", "max_train_steps counts")
    epochs_between = config["checkpoint_epoch_interval"]
    return {
        "schedule.max_train_steps": steps if steps > 0 else None,
        "schedule.max_train_epochs": None if steps > 0 else max(1, epochs),
        "saving.save_every_n_epochs": epochs_between and max(1, int(epochs_between)),
    }


def network(config: Config) -> Values:
    """Return {setting: value} of the network ("network.kind", "network.rank", "network.layers" ...) and of whether text encoders train; for
    a full model "method.train_text_encoder"."""
    text, rate = config["train_text_encoder"], config["text_encoder_lr"]
    rates = {"optimizer.text_encoder_lr": rate} if rate else {}
    if config.method != "lora":
        return rates | {"method.train_text_encoder": "yes" if text else "no"}
    rates |= {"network.train_text_encoder": text}
    if config["lora_type"] == "lycoris":
        return rates | _lycoris(config)
    parts = config["peft_lora_target_modules"]
    layers = [re.escape(str(each)[:200]) for each in parts[:100]] if isinstance(parts, list) and parts else ["attn"]
    kind, rank = "dora" if config["use_dora"] else "lora", config["lora_rank"]
    settings = {"network.kind": kind, "network.rank": rank, "network.layers": layers}
    settings |= {"network.alpha": rank if config["lora_alpha"] is None else config["lora_alpha"]}
    return rates | settings | ({"dora.wd_on_output": True} if kind == "dora" else {})


def _lycoris(config: Config) -> Values:
    """Return {setting: value} of the LyCORIS config file: "network.kind", "network.rank", "network.alpha", "network.layers" ...; LoKr, with
    a note, if it is missing or its algo unknown."""
    key, lycoris = "lycoris_config", config.source.json_of(config["lycoris_config"])
    if not isinstance(lycoris, dict) or lycoris.get("algo") not in ALGORITHMS:
        sentence = "is not found here, or has an unknown algo; LoKr is set: enter its rank and factor"
        config.note(key, "unavailable", sentence)
        return {"network.kind": "lokr", "network.layers": ["attn"], "network.network_dropout": 0.0}
    kind = ALGORITHMS[lycoris["algo"]]
    numeric = ("linear_dim", "linear_alpha", "factor")
    numbers = {name: lycoris[name] for name in numeric if type(lycoris.get(name)) in (int, float)}
    rank, preset = numbers.get("linear_dim", 16), lycoris.get("apply_preset")
    full_matrix = kind == "lokr" and (lycoris.get("full_matrix") is True or rank > 1024)
    modules = preset.get("target_module") if isinstance(preset, dict) else None
    layers = [str(each) for each in modules] if isinstance(modules, list) else ["Attention"]
    unread = [each for each in layers if each not in LAYERS]
    unread += [name for name, value in lycoris.items() if name not in LYCORIS and (name, value) != ("multiplier", 1)]
    unread += _unread_modules(preset, lycoris)
    config.note(key, "changed", f"{kind}; not taken: {', '.join(unread)[:200]}" if unread else f"is read: {kind}")
    settings = {"network.kind": kind, "network.rank": 16 if full_matrix else int(rank), "network.network_dropout": 0.0}
    settings |= {"network.layers": [LAYERS[each] for each in layers if each in LAYERS]}
    settings |= {"network.alpha": numbers.get("linear_alpha", 1)}
    lokr = {"lokr.factor": int(numbers.get("factor", -1)), "lokr.full_matrix": full_matrix}
    return settings | (lokr if kind == "lokr" else {})


def _unread_modules(preset: Any, lycoris: Values) -> list[str]:
    """Return the module types for which the LyCORIS config file overrides values, which are not imported."""
    algorithms = preset.get("module_algo_map") if isinstance(preset, dict) else None
    modules = algorithms.items() if isinstance(algorithms, dict) else ()
    return [
        name
        for name, algorithm in modules
        if not isinstance(algorithm, dict) or algorithm != {key: lycoris.get(key) for key in algorithm}
    ]


def optimizer(config: Config) -> Values:
    """Return {setting: value} of the optimizer, as `optimizer_settings`, "optimizer.max_grad_norm" and "optimizer.scale_lr"."""
    name = config["optimizer"]
    class_name, implied = chosen_optimizer(config, "optimizer", name)
    pairs = [each.partition("=") for each in config["optimizer_config"].split(",") if each.strip()]
    written = {argument.strip(): value.strip() for argument, _, value in pairs}
    betas = [config["optimizer_beta1"], config["optimizer_beta2"]]
    arguments = implied | arguments_of(config, class_name, written, "optimizer_config")
    if not written and None not in betas:
        arguments |= arguments_of(config, class_name, {"betas": betas}, "optimizer_beta1")
    if name == "prodigy" and config["prodigy_steps"]:
        arguments["prodigy_steps"] = config["prodigy_steps"]
    if name.startswith("adamw_schedulefree") and config["lr_warmup_steps"]:
        arguments["warmup_steps"] = config["lr_warmup_steps"]
    by_norm = config["grad_clip_method"] == "norm"
    if not by_norm:
        sentence = "gradients are clipped by their norm only; they are not clipped here"
        config.note("grad_clip_method", "changed", sentence)
    return optimizer_settings(class_name, arguments) | {
        "optimizer.max_grad_norm": config["max_grad_norm"] if by_norm else 0.0,
        "optimizer.scale_lr": config["lr_scale"],
    }


def schedule(config: Config) -> Values:
    """Return {setting: value} of "schedule.lr_scheduler", "schedule.lr_warmup_steps" and the scheduler's settings."""
    key, name, rate, end = "lr_scheduler", config["lr_scheduler"], config["learning_rate"], config["lr_end"]
    warmup = max(0, config["lr_warmup_steps"])
    settings: Values = {"lr_scheduler": name, "lr_warmup_steps": warmup}
    if averages(optimizer(config)["optimizer.optimizer_type"]) and config["optimizer"] != "prodigy":
        settings = {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    elif name in ("constant", "constant_with_warmup"):
        settings["lr_scheduler"] = "constant_with_warmup" if warmup else "constant"
    elif name == "polynomial":
        settings |= {"lr_scheduler_power": config["lr_power"], "lr_scheduler_args": {"lr_end": end}}
    elif name in ("sine", "cosine", "cosine_with_restarts"):
        low = clamp(0.0, 1.0, end / max(rate, 1e-12))
        settings = {"lr_scheduler": "cosine", "lr_warmup_steps": 0, "lr_scheduler_min_lr_ratio": low}
        config.note(
            key, "changed", "falls once over the run; SimpleTuner repeats it with lr_warmup_steps as its period"
        )
    elif name != "linear":
        config.note(key, "unavailable", f"{shorten(name)} is not available; constant is set")
        settings["lr_scheduler"] = "constant"
    if config["lr_scale_sqrt"]:
        config.note("lr_scale_sqrt", "unavailable", "rates are multiplied by the whole product")
    return {f"schedule.{setting}": value for setting, value in settings.items()}


def loss(config: Config) -> Values:
    """Return {setting: value} of "noise.noise_offset", "noise.unmasked_probability" and "dataset.skip_image_resolution"."""
    on = str(config.written.get("offset_noise", config.written.get("--offset_noise"))).lower() == "true"
    if on and config["noise_offset_probability"] < 1:
        config.note("noise_offset_probability", "changed", "noise offset is added to all images")
    strength = 0.1 if config["noise_offset"] is None else config["noise_offset"]
    return {
        "noise.noise_offset": strength if on else None,
        "noise.unmasked_probability": 1 - clamp(0.0, 1.0, config["masked_loss_probability"]),
        "dataset.skip_image_resolution": _min_pixels_side(config["minimum_image_size"]),
    }


def samples(config: Config) -> Values:
    """Return {setting: value} of the sample prompts and their settings: "samples.sample_prompts", "samples.width",
    "samples.sample_sampler", "samples.sample_every_n_steps" ..."""
    prompts, library = [config["validation_prompt"]], config["user_prompt_library"]
    content = config.source.json_of(library) if library else {}
    if isinstance(content, dict):
        prompts += [str(each.get("prompt", "") if isinstance(each, dict) else each) for each in content.values()]
    else:
        config.note("user_prompt_library", "unavailable", "is not found here; enter its prompts")
    sizes = [size for text in config["validation_resolution"].split(",")[:10] if (size := _size(text))] or [(256, 256)]
    seed = config["validation_seed"]
    seed = None if seed is None else clamp(0, 2**32 - 1, int(seed))
    prompts = [] if config["validation_disable"] else prompts[:MOST]
    lines = [" ".join(each[:LONGEST].split()) for each in prompts if each.strip()]
    end = "" if seed is None else f" --d {seed}"
    flags = {size: f" --w {size[0]} --h {size[1]}" for size in sizes} | {sizes[0]: ""}
    return {
        "samples.sample_prompts": [f"{line}{flags[size]}{end}" for line in lines for size in sizes],
        "samples.negative_prompt": " ".join(config["validation_negative_prompt"][:LONGEST].split()),
        "samples.width": sizes[0][0],
        "samples.height": sizes[0][1],
        "samples.sample_sampler": config.choice("validation_noise_scheduler"),
        "samples.sample_every_n_steps": config["validation_step_interval"],
        "samples.sample_every_n_epochs": config["validation_epoch_interval"]
        and int(config["validation_epoch_interval"]),
        "samples.sample_at_first": config["validation_on_startup"] or not config["disable_benchmark"],
    }


def _size(text: str) -> tuple[int, int] | None:
    """Return (width, height) in pixels of "1024x768", "1024" or "1.0" (megapixels); None for other texts."""
    parts = text.lower().strip().split("x")
    try:
        sides = [_side_of(float(part), "" if float(part) > 10 else "area") for part in parts]
    except (ValueError, OverflowError):
        return None
    width, height = (clamp(64, 4096, side // 8 * 8) for side in (sides[0], sides[-1]))
    return width, height


RULES = (model, machine, length, network, optimizer, schedule, loss, samples)


# ---- data backends


def _side_of(value: float, kind: str) -> int:
    """Return the side in pixels for a resolution, from 64 to 8192: of a square with `value` megapixels if `kind` is "area", else `value`
    itself."""
    return clamp(64, 8192, round(math.sqrt(value * 1e6) / 64) * 64 if kind == "area" else int(value))


def _min_pixels_side(value: float | None) -> int:
    """Return the value of skip_image_resolution for a minimum image size: one pixel less, since SimpleTuner keeps images of that size."""
    return _side_of(value, "area" if value <= 10 else "") - 1 if value and 0 < value < 1e6 else 0


def _backends(config: Config) -> list[Values]:
    """Return the data backends as {"data.crop": value}, from the config or the file that it names; [] with a warning if missing."""
    stated = next((value for key, value in config.written.items() if config.current_keys[key] == BACKENDS), None)
    content = config.source.json_of(stated) if isinstance(stated, str) and stated else stated
    if not isinstance(content, list):
        config.note(BACKENDS, "unavailable", "is not found here")
        bring = config.source.bring(stated if isinstance(stated, str) else "", "the file of the data backends")
        fix = f"{bring}, or choose the image folders"
        config.warn("The image folders are not found", BACKENDS, fix, "import.no-folders")
        return []
    return config.items(BACKENDS, content, "data.")


def folders(config: Config, listed: list[Values]) -> Values:
    """Return {setting: value} of "dataset.sources", "dataset.resolution", the validation interval and latent caching; adds a warning if
    there is no folder.
    listed: the data backends, as from `_backends`"""
    backends = [config.read(each, "data.") for each in listed]
    ids = {str(values["data.id"]): _folder(values) for values in backends}
    sources = [source for values in backends for source in _source(config, values, ids)]
    if listed and not sources:
        what, fix = "No data backend is a folder with images", "choose the image folders"
        config.warn(what, BACKENDS, fix, "import.no-folders")
    first = next((source["resolution"] for source in sources), None)
    area = config["resolution"]
    settings: Values = {"dataset.folder": None, "dataset.sources": sources}
    settings |= {"dataset.resolution": first or _resolution(config, area, config["resolution_type"], "resolution")}
    interval = config["eval_steps_interval"]
    if interval and any(source["role"] == "validation" for source in sources):
        settings |= {"validation.validate_every_n_steps": int(interval), "validation.validate_every_n_epochs": None}
    if any(source.get("conditioning_data_dir") for source in sources):
        settings["dataset.masked_loss"] = True
    if any(source["random_crop"] for source in sources):
        return settings | {"memory.cache_latents": "off"}
    return settings | ({} if config["vae_cache_disable"] else {"memory.latent_draw": "frozen"})


def _resolution(config: Config, value: Any, kind: str, key: str) -> int:
    """Return the resolution in pixels for a value in pixels or megapixels; 1024 with a note at `key` if it is not a size.
    kind: the resolution type; "pixel" means the shorter side"""
    try:
        number = float(value or 1024)
    except (ValueError, TypeError):
        number = -1.0
    if not 0 < number < 1e6:
        config.note(key, "unavailable", "is not a size; 1024 is set")
        return 1024
    if kind == "pixel":
        sentence = "is the side of a square with as many pixels; SimpleTuner takes it as the shorter side"
        config.note(key, "changed", sentence)
    return _side_of(number, "area" if number <= 10 else "")


def _folder(values: Values) -> str:
    """Return a data backend's folder, also by the key of early versions; "" if it has none."""
    return str(values["data.instance_data_dir"] or values["data.instance_data_root"])


def _source(config: Config, values: Values, ids: dict[str, str]) -> Iterator[Values]:
    """Yield the settings {name: value} of a data backend's folder.

    Backends of other kinds of data, and those that are not local, yield nothing; videos, audio and remote ones add a note.
    ids: {id: folder} of all backends
    """
    kind = values["data.dataset_type"]
    role = (TABLE.rows["data.dataset_type"].choices or {}).get(kind, "")
    if not role:  # embeds, conditioning, videos
        if kind in ("video", "audio"):
            config.note("data.dataset_type", "unavailable", "only images are trained")
        return
    folder = _folder(values)
    if values["data.type"] != "local" or not folder.strip():
        config.note("data.type", "unavailable", "is no local folder: download its images; it is left out")
        return
    crops = values["data.crop"]
    buckets, random = (config.choice(key, values[key]) for key in ("data.crop_aspect", "data.crop_style"))
    resolution = config["resolution"] if values["data.resolution"] is None else values["data.resolution"]
    size = _resolution(
        config, resolution, values["data.resolution_type"] or config["resolution_type"], "data.resolution"
    )
    mask = ids.get(str(values["data.conditioning_data"])) if values["data.conditioning_data"] else None
    yield with_bounds(
        {
            "folder": folder,
            "role": role,
            "enabled": not (values["data.disabled"] or values["data.disable"]),
            "num_repeats": values["data.repeats"] + 1,
            "resolution": size,
            "skip_image_resolution": None
            if values["data.minimum_image_size"] is None
            else _min_pixels_side(values["data.minimum_image_size"]),
            "enable_bucket": not crops or buckets,
            "random_crop": crops and random,
            "conditioning_data_dir": mask or None,
            "diff_output_preservation": values["data.is_regularisation_data"] or values["data.is_regularization_data"],
        }
        | _captions(config, values)
    )


def _captions(config: Config, values: Values) -> Values:
    """Return {name: value} of "caption_extension", "caption_lines" and "caption_prefix" of a folder by its caption strategy; for an
    instance prompt alone of "caption_extension" and "class_tokens"."""
    strategy = values["data.caption_strategy"] or config["caption_strategy"] or "filename"
    prompt = values["data.instance_prompt"] or config["instance_prompt"]
    if strategy.replace("_", "") == "instanceprompt" or values["data.only_instance_prompt"]:
        sentence = "caption files are not read: their extension is one that no file has"
        config.note("data.caption_strategy", "changed", sentence)
        return {"caption_extension": UNREAD, "class_tokens": prompt or None}
    if strategy != "textfile":
        sentence = (
            f"write captions on the Captions tab, which makes them from names too; {shorten(strategy)} is not read"
        )
        config.note("data.caption_strategy", "unavailable", sentence)
    lines = "all" if values["data.disable_multiline_split"] or config["disable_multiline_split"] else "random"
    prefix = prompt if values["data.prepend_instance_prompt"] else ""
    return {"caption_extension": ".txt", "caption_lines": lines, "caption_prefix": prefix or None}
