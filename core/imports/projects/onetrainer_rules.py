"""Convert keys of a OneTrainer config to settings, where several count together or a value has another form here."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from core.imports.projects.onetrainer_config import TABLE, Config
from core.imports.projects.table import Values, clamp, optimizer_settings
from core.record.units import number_text
from core.settings.check import shorten
from core.settings.optimization.optimizers import Entry, averages, find, literal

BATCH, ACCUMULATION = "batch_size", "gradient_accumulation_steps"
SCALERS = {
    "NONE": (), "BATCH": (BATCH,), "GLOBAL_BATCH": (BATCH,), "GRADIENT_ACCUMULATION": (ACCUMULATION,),
    "BOTH": (BATCH, ACCUMULATION), "GLOBAL_BOTH": (BATCH, ACCUMULATION),
}  # fmt: skip
WEIGHTS = {"FLOAT_32": "fp32", "TFLOAT_32": "fp32", "FLOAT_16": "fp16", "BFLOAT_16": "bf16"}
PEFT = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr"}
DECOMPOSED = {"lora": ("lora_decompose", "dora"), "lokr": ("lokr_weight_decompose", "dora_lokr")}
# A network's kind -> its settings' keys
OF_LOKR = {"factor": "lokr_decompose_factor"} | {
    name: f"lokr_{name}" for name in ("decompose_both", "use_tucker", "full_matrix")
}
OF_KINDS = {
    "lokr": OF_LOKR,
    "dora": {"wd_on_output": "lora_decompose_output_axis"},
    "dora_lokr": OF_LOKR | {"wd_on_output": "lokr_dora_on_output"},
}
LOSSES = {"mse_strength": "l2", "mae_strength": "l1", "log_cosh_strength": "log_cosh", "huber_strength": "huber"}
SCHEDULERS = {
    "CONSTANT": "constant", "ADAFACTOR": "adafactor", "LINEAR": "linear", "COSINE": "cosine", "COSINE_WITH_RESTARTS": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts", "REX": "rex",
}  # fmt: skip
FILTERS = {"attn-mlp": "attentions", "attn-only": "attn"}
SIZE, MOST_SIZES = re.compile(r"\d{1,5}(x\d{1,5})?"), 20
ALL_TEXT = "^lora_te"  # finds all layers of the text encoders, which OneTrainer does not filter
# Arguments that are one of a pair or triple in some classes, and those that have another name
PAIRS = {"betas": ("beta1", "beta2", "beta3"), "eps": ("eps", "eps2")}
OTHER_NAMES = {"decoupled_decay": "weight_decouple", "eps": "eps1", "beta1": "beta", "muon_adam_lr": "adamw_lr"}
MINUTES = {"SECOND": 1 / 60, "MINUTE": 1.0, "HOUR": 60.0}
# A period -> its settings for epochs, steps and minutes
PERIODS = {
    "sample_after": ("samples.sample_every_n_epochs", "samples.sample_every_n_steps", "samples.sample_every_minutes"),
    "save_every": ("saving.save_every_n_epochs", "saving.save_every_n_steps", "saving.checkpoint_every_minutes"),
    "validate_after": ("validation.validate_every_n_epochs", "validation.validate_every_n_steps", ""),
}
TORCH = "torch.optim.lr_scheduler."
FILES = (".safetensors", ".ckpt", ".pt", ".bin")
# What OneTrainer does and has no key for, where our default differs.
FIXED: dict[str, tuple[Any, str]] = {
    "dataset.short_batches": ("drop", "OneTrainer leaves out batches that are not full"),
    "captions.caption_lines": ("random", "OneTrainer takes a random line of a caption file"),
    "captions.caption_extension": (".txt", ""),
    "memory.latent_draw": ("mean", "OneTrainer caches the mean of the VAE's distribution"),
    "validation.best_checkpoint": ("off", "OneTrainer does not compare checkpoints"),
    "samples.prompt_weights": (False, "OneTrainer reads brackets as text"),
}


# ---- model, precision, files


def model(config: Config) -> Values:
    """Return {setting: value} of "method.kind", "model.family", "model.prediction", "model.clip_skip" and "memory.num_processes"; adds a
    warning if no model is named."""
    family, prediction = TABLE.data["families"][config["model_type"]]
    skip, forced = config["text_encoder_layer_skip"], {"v": config["force_v_prediction"]}
    forced["epsilon"] = config["force_epsilon_prediction"]
    if "base_model_name" not in config.written:
        config.warn("The file names no model", "base_model_name", "choose the base model", "import.no-model")
    if family == "sdxl" and skip:
        config.note("text_encoder_layer_skip", "unavailable", TABLE.rows["text_encoder_2_layer_skip"].sentence)
    for key in TABLE.rows:
        if key.startswith("text_encoder_2") and family != "sdxl":
            config.note(key, "idle", "is of SDXL's second text encoder")
    return {
        "method.kind": config.method,
        "model.family": family,
        "model.prediction": next((name for name, on in forced.items() if on), prediction),
        "model.clip_skip": skip + 1 if skip and family != "sdxl" else None,
        "memory.num_processes": devices(config),
    }


def devices(config: Config) -> int:
    """Return the number of GPUs that the config trains on; 1 with a note if it takes all."""
    listed = [each for each in config["device_indexes"].split(",") if each.strip()]
    if config["multi_gpu"] and not listed:
        config.note("multi_gpu", "changed", "enter the number of GPUs; OneTrainer takes all")
    return max(1, len(listed)) if config["multi_gpu"] else 1


def memory(config: Config) -> Values:
    """Return {setting: value} of TF32, latent caching, weight dtypes and stochastic rounding; for fine-tuning also of the fused backward
    pass."""
    eight_bit = [config[f"{part}.weight_dtype"] == "FLOAT_8" for part in ("unet", "text_encoder")]
    settings = {
        "memory.allow_tf32": config["train_dtype"] == "TFLOAT_32",
        "memory.cache_latents": "auto" if config["latent_caching"] else "off",
    }
    if config.method != "fine_tune":
        settings |= {"memory.fp8_base": all(eight_bit), "memory.fp8_base_unet": eight_bit == [True, False]}
        return settings | _trained_dtype(config)
    fused, adafactor = config["optimizer.fused_back_pass"], config["optimizer.optimizer"] == "ADAFACTOR"
    if fused and not adafactor:
        sentence = "memory.fused_optimizer_groups is for this optimizer"
        config.note("optimizer.fused_back_pass", "unavailable", sentence)
    return settings | {
        "memory.full_precision": config.choose_from("unet.weight_dtype", WEIGHTS),
        "memory.stochastic_rounding": config["optimizer.stochastic_rounding"],
        "memory.fused_backward_pass": fused and adafactor,
    }


def _trained_dtype(config: Config) -> Values:
    """Return {"memory.full_precision": "bf16", "memory.stochastic_rounding": value} for a network or embedding in bf16, if training
    computes in bf16 too; else {}, with a note if the dtype is not fp32."""
    key = f"{config.method}_weight_dtype"
    if (config[key], config["train_dtype"]) == ("BFLOAT_16", "BFLOAT_16"):
        return {"memory.full_precision": "bf16", "memory.stochastic_rounding": config["optimizer.stochastic_rounding"]}
    if config[key] != "FLOAT_32":
        config.note(key, "unavailable", TABLE.rows[key].sentence)
    return {}


def output(config: Config) -> Values:
    """Return {setting: value} of "saving.output_name", "saving.copy_to" (folder, None for a relative path) and "saving.save_model_as"."""
    text, full = config["output_model_destination"], config.method == "fine_tune"
    windows = "\\" in text or text[1:2] == ":"
    path: PurePath = PureWindowsPath(text) if windows else PurePosixPath(text)
    if not path.is_absolute():
        config.note("output_model_destination", "changed", "saved in the run's folder, and not copied elsewhere")
    return {
        "saving.output_name": (path.stem if path.suffix in FILES else path.name).strip()[:100] or "my_model",
        "saving.copy_to": str(path.parent) if path.is_absolute() else None,
        "saving.save_model_as": "diffusers_safetensors"
        if full and config["output_model_format"] == "DIFFUSERS"
        else "safetensors",
    }


# ---- network, embedding, EMA


def network(config: Config) -> Values:
    """Return {setting: value} of a network: "network.kind", "network.rank", its layers and the kind's options; for embeddings of
    "embedding.num_vectors_per_token"; else {}."""
    if config.method == "embedding":
        return {"embedding.num_vectors_per_token": config["embedding.token_count"] or 1}
    if config.method != "lora":
        return {}
    kind = PEFT.get(config["peft_type"], "")
    if not kind:
        what = f"The network {shorten(config['peft_type'])} is not available; the settings are those of a LoRA"
        config.warn(what, "peft_type", "choose a network type before you train", "import.unknown-network")
        config.note("peft_type", "unavailable", "is not available; LoRA is set, with its rank and alpha")
    switch, decomposed = DECOMPOSED.get(kind, ("lora_decompose", kind))
    kind = (decomposed if config[switch] else kind) or "lora"
    rank = config["lokr_dim" if kind.endswith("lokr") else "lora_rank"]
    settings = {f"{kind}.{name}": config[key] for name, key in OF_KINDS.get(kind, {}).items()}
    trains = any(map(config.trains, config.encoders))
    settings |= {"network.kind": kind, "network.rank": rank, "network.train_text_encoder": trains}
    return settings | {"network.train_unet": config.trains("unet"), **_layers(config, rank, trains)}


def _layers(config: Config, rank: int, text_trains: bool) -> Values:
    """Return {setting: value} of "network.layers", "network.conv_rank" and "network.conv_alpha" for the trained layers.

    OneTrainer filters layers of the U-Net by parts of their names and trains all of the text encoders.
    """
    text, regex = config["layer_filter"].strip(), config["layer_filter_regex"]
    text = text or FILTERS.get(config["layer_filter_preset"], "")
    if text == "attentions" and not regex:  # what a LoRA has without a conv rank
        return {"network.layers": [], "network.conv_rank": None}
    names = [name if regex else re.escape(name) for name in map(str.strip, text.split(",")) if name]
    chosen = [*names, *([ALL_TEXT] if text_trains else [])] if names else ["full"]
    return {"network.layers": chosen, "network.conv_rank": rank, "network.conv_alpha": config["lora_alpha"]}


def ema(config: Config) -> Values:
    """Return {setting: value} of EMA; {} if it is off."""
    device = config.choose_from("ema", {"OFF": "", "GPU": "device", "CPU": "cpu"})
    if not device:
        return {}
    interval = max(1, config["ema_update_step_interval"])
    if interval > 1:
        config.note("ema_decay", "changed", f"is applied once in {interval} steps: each step has its root")
    decay = clamp(0.0, 1.0, config["ema_decay"]) ** (1 / interval)
    settings = {"method.ema": True, "method.ema_device": device, "method.ema_decay": decay}
    return settings | {"method.ema_update_every": interval}


# ---- learning rates


def _scale(config: Config, key: str) -> int:
    """Return the factor by which a scaler (`key`) multiplies learning rates or loss: a product of batch size, accumulation and GPUs."""
    scale = math.prod(max(1, config[each]) for each in config.choose_from(key, SCALERS))
    return scale * (devices(config) if config[key].startswith("GLOBAL") else 1)


def rates(config: Config) -> Values:
    """Return {setting: value} of "optimizer.learning_rate", "optimizer.unet_lr" and "optimizer.text_encoder_lr", and for a full model of
    "method.train_text_encoder"; for an embedding only of the first."""
    scale = _scale(config, "learning_rate_scaler")
    keys = (
        "learning_rate",
        "embedding_learning_rate",
        *(f"{part}.learning_rate" for part in ("unet", *config.encoders)),
    )
    scaled = {key: None if config[key] is None else config[key] * math.sqrt(scale) for key in keys}
    for key in keys if scale > 1 else ():
        if config[key] is not None:
            config.note(key, "changed", f"is multiplied by the square root of {scale} (learning_rate_scaler)")
    main = scaled["learning_rate"] or 0.0
    if config.method == "embedding":
        rate = scaled["embedding_learning_rate"]
        return {"optimizer.learning_rate": main if rate is None else rate}
    text = [scaled[f"{part}.learning_rate"] if config.trains(part) else 0.0 for part in config.encoders]
    filled = [main if rate is None else rate for rate in text]
    trains = any(map(config.trains, config.encoders))
    unset = set(text) == {None} or not trains
    frozen = config.method == "fine_tune" and not config.trains("unet")
    return {
        "optimizer.learning_rate": main,
        "optimizer.unet_lr": 0.0 if frozen else scaled["unet.learning_rate"],
        "optimizer.text_encoder_lr": None if unset else filled[0] if len(set(filled)) == 1 else filled,
    } | ({"method.train_text_encoder": "yes" if trains else "no"} if config.method == "fine_tune" else {})


def stops(config: Config) -> Values:
    """Return {setting: value} of where the text encoders stop training: for SDXL both stop where the first trained one does."""
    if config.method == "embedding":
        return {}
    _stop(config, "unet")  # has no setting: a note
    trained = [part for part in config.encoders if config.trains(part)]
    ends = [_stop(config, part) for part in trained]
    if len(ends) == 2 and ends[0] != ends[1]:
        sentence = "both text encoders stop where the first one does"
        config.note("text_encoder_2.stop_training_after", "unavailable", sentence)
    return ends[0] if ends else {}


def _stop(config: Config, part: str) -> Values:
    """Return {"method.stop_text_encoder_epochs" or "method.stop_text_encoder_training": value} for where a part stops training; {} if it
    trains to the end, or with a note if it is to stop after a time.
    part: name of the part in the config, before the dot"""
    key, unit = f"{part}.stop_training_after", config[f"{part}.stop_training_after_unit"]
    after = config[key]
    if unit == "NEVER" or not after:
        config.notes.pop(key, None)
        return {}
    if unit == "EPOCH" and after >= config["epochs"]:
        config.note(key, "taken", "is not reached before the end")
        return {}
    if unit == "EPOCH":
        return {"method.stop_text_encoder_epochs": after}
    if unit == "STEP":
        return {"method.stop_text_encoder_training": max(1, after // config.accumulation)}
    config.note(key, "unavailable", f"is by time ({unit.lower()}s): it trains to the end")
    return {}


# ---- schedule


def schedule(config: Config) -> Values:
    """Return {setting: value} of "schedule.max_train_epochs", "schedule.lr_scheduler", "schedule.lr_warmup_steps" and the scheduler's
    settings."""
    key, name = "learning_rate_warmup_steps", config["learning_rate_scheduler"]
    warmup = config[key]
    steps: Any = int(max(0, warmup) // config.accumulation)
    if 0 < warmup <= 1:
        steps = f"{number_text(warmup * 100)}%"
        config.note(key, "changed", f"is a part of the run: {steps}")
    elif warmup and config.accumulation > 1:
        config.note(key, "changed", f"counts batches: {steps} steps of {config.accumulation}")
    if averages(_optimizer_name(config)[0]):
        if name != "CONSTANT":
            config.note("learning_rate_scheduler", "changed", "a schedule-free optimizer has a constant rate")
        name, steps = "CONSTANT", 0
    elif name in ("ADAFACTOR", "CUSTOM") and steps:
        config.note(key, "unavailable", f"there is no warmup with {name}")
        steps = 0
    scheduler = _torch_scheduler(config) if name == "CUSTOM" else _named_scheduler(config, name, bool(steps))
    settings = {"lr_scheduler": "constant", "lr_warmup_steps": steps} | scheduler
    return {"schedule.max_train_epochs": max(1, config["epochs"])} | {
        f"schedule.{name}": value for name, value in settings.items()
    }


def _named_scheduler(config: Config, name: str, warmup: bool) -> Values:
    """Return {name in the schedule group: value} for a scheduler of OneTrainer: "lr_scheduler" (constant, with a note, for an unknown
    one, as OneTrainer does), and options such as "lr_scheduler_num_cycles".

    name     OneTrainer's ("COSINE")
    warmup   whether there are warmup steps
    """
    low, cycles = clamp(0.0, 1.0, config["learning_rate_min_factor"]), clamp(0.0, 1e4, config["learning_rate_cycles"])
    if name not in SCHEDULERS:
        sentence = f"{shorten(name)} is no scheduler of OneTrainer, which trains with its default: CONSTANT"
        config.note("learning_rate_scheduler", "unavailable", sentence)
        name = "CONSTANT"
    settings: Values = {"lr_scheduler": SCHEDULERS[name]}
    if name == "CONSTANT" and warmup:
        settings["lr_scheduler"] = "constant_with_warmup"
    elif name == "REX":
        settings["rex_d"] = 0.9
    elif name == "COSINE_WITH_RESTARTS":
        settings["lr_scheduler_args"] = {"num_cycles": cycles}
    elif name == "COSINE_WITH_HARD_RESTARTS":
        settings["lr_scheduler_num_cycles"] = float(max(1, round(cycles)))
        if cycles != round(cycles):
            config.note("learning_rate_cycles", "changed", "restarts are whole")
    return settings | ({"lr_scheduler_min_lr_ratio": low} if low and name not in ("CONSTANT", "ADAFACTOR") else {})


def _torch_scheduler(config: Config) -> Values:
    """Return {"lr_scheduler_type": class, "lr_scheduler_args": {name: value}} for one of torch's schedulers; {} with a note for other
    classes."""
    name, params = config["custom_learning_rate_scheduler"].removeprefix(TORCH), config["scheduler_params"]
    if not name.isidentifier():
        sentence = "is no class of torch.optim.lr_scheduler; constant is set"
        config.note("custom_learning_rate_scheduler", "unavailable", sentence)
        return {}
    arguments: Values = {}
    for each in params if isinstance(params, list) else ():
        pair = each if isinstance(each, dict) else {}
        key, text = (str(pair.get(part, ""))[:200] for part in ("key", "value"))
        value = literal(text)
        if not key or "%" in text or not _is_json(value):
            sentence = f"enter {shorten(key)} {shorten(text)}, which OneTrainer computes"
            config.note("scheduler_params", "changed", sentence)
        else:
            arguments[key] = value
    return {"lr_scheduler_type": name, "lr_scheduler_args": arguments}


def _is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON."""
    try:
        return bool(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError):
        return False


# ---- optimizer


def _optimizer_name(config: Config) -> tuple[str, Mapping[str, Any], bool]:
    """Return (optimizer, {argument: value that OneTrainer uses for null or false}, whether it is the same optimizer, not the nearest)."""
    known, name = TABLE.data["optimizers"], config["optimizer.optimizer"]
    near = name.removesuffix("_ADV").removesuffix("_8BIT")
    chosen, *nulls = known.get(name) or known.get(near) or known["ADAMW"]
    package, _, last = chosen.rpartition(".")
    paged = f"{package}.Paged{last}".lstrip(".")
    chosen = paged if config["optimizer.is_paged"] and find(paged) else chosen
    return chosen, nulls[0] if nulls else {}, name in known


def optimizer(config: Config) -> Values:
    """Return {setting: value} of the optimizer, as `optimizer_settings`, and "optimizer.max_grad_norm"."""
    name, nulls, exact = _optimizer_name(config)
    if not exact:
        what = f"The optimizer {shorten(config['optimizer.optimizer'])} is not available"
        config.note("optimizer.optimizer", "unavailable", f"is not available; {name} is set")
        config.warn(what, "optimizer.optimizer", "choose an optimizer before you train", "import.unknown-optimizer")
    entry = find(name)
    arguments = {} if entry is None else _arguments(config, entry, nulls)
    scale = _scale(config, "loss_scaler")
    if scale > 1:
        sentence = f"optimizer.max_grad_norm is divided by {scale} instead, which has the same effect with Adam and similar optimizers"
        config.note("loss_scaler", "changed", sentence)
    return optimizer_settings(name, arguments) | {"optimizer.max_grad_norm": (config["clip_grad_norm"] or 0.0) / scale}


def _arguments(config: Config, entry: Entry, nulls: Mapping[str, Any]) -> Values:
    """Return {argument: value} of arguments that differ from the class's default; adds notes on arguments that the class lacks.
    nulls: {argument: value that OneTrainer uses for null or false}"""
    arg_rows = {
        key: row for key, row in TABLE.rows.items() if "optimizer.optimizer_args" in row.settings and "." in key
    }
    values = {key.partition(".")[2]: config[key] for key in arg_rows}
    unset = {name for name, value in values.items() if value is None or value is False}
    values |= {name: value for name, value in nulls.items() if name in unset}
    arguments: Values = {}
    for target, names in PAIRS.items():
        default = entry.arguments[target].default if target in entry.arguments else None
        if isinstance(default, list):
            whole = [each if values[name] is None else values[name] for name, each in zip(names, default, strict=False)]
            arguments |= {target: whole} if whole != default else {}
            values = {name: value for name, value in values.items() if name not in names[: len(default)]}
    if "warmup_steps" in entry.arguments and config["learning_rate_warmup_steps"] > 1:
        arguments["warmup_steps"] = int(config["learning_rate_warmup_steps"])
        config.note("learning_rate_warmup_steps", "changed", "is an argument of schedule-free optimizers: warmup_steps")
    for name, value in values.items():
        argument = entry.arguments.get(name) or entry.arguments.get(OTHER_NAMES.get(name, ""))
        default = arg_rows[f"optimizer.{name}"].default if argument is None else argument.default
        if value is None or value == default or (argument is None and name == "stochastic_rounding"):
            continue
        if isinstance(value, float) and value.is_integer() and isinstance(default, int):
            value = int(value)
        if argument is not None and argument.accepts(value):
            arguments[argument.name] = value
        else:
            config.note(f"optimizer.{name}", "unavailable", f"{entry.name} has no such argument or value")
    return arguments


# ---- loss, sizes, periods


def loss(config: Config) -> Values:
    """Return {setting: value} of loss type, loss weights and masks: "noise.loss_type", "noise.min_snr_gamma", "dataset.masked_loss" ..."""
    strengths = {name: config[name] for name in LOSSES if config[name] > 0} or {"mse_strength": 1.0}
    weight, huber = config["loss_weight_fn"], strengths.get("huber_strength")
    if huber and (len(strengths) > 1 or huber != 1):
        config.note("huber_strength", "unavailable", "the Huber loss counts 1, alone")
    single = len(strengths) == 1 and (huber or set(strengths.values()) == {1.0})
    settings: Values = {"noise.loss_type": LOSSES[next(iter(strengths))] if single else "mixed"}
    if not single:
        settings |= {
            f"noise.{name.replace('strength', 'weight')}": config[name] for name in LOSSES if name != "huber_strength"
        }
    if huber and single:
        settings |= {"noise.huber_schedule": "constant", "noise.huber_c": config["huber_delta"]}
        config.note("huber_delta", "changed", "the Huber loss is smooth here, and about twice as large below the delta")
    if config["masked_training"]:
        mean = "area" if config["normalize_masked_area_loss"] else "image"
        settings |= {"dataset.masked_loss": True, "dataset.conditioning_suffix": "-masklabel", "noise.mask_mean": mean}
        settings |= {f"noise.{name}": config[name] for name in ("unmasked_weight", "masked_prior_preservation_weight")}
    return settings | {
        "noise.min_snr_gamma": config["loss_weight_strength"] if weight == "MIN_SNR_GAMMA" else None,
        "noise.p2_gamma": config["loss_weight_strength"] if weight == "P2" else None,
        "noise.debiased_estimation_loss": weight == "DEBIASED_ESTIMATION",
    }


def timesteps(config: Config) -> Values:
    """Return {setting: value} of "noise.min_timestep", "noise.max_timestep" and the timestep distribution ("noise.logit_mean" ...)."""
    distribution, weight, bias = config["timestep_distribution"], config["noising_weight"], config["noising_bias"]
    low, high = (clamp(0.0, 1.0, config[f"{end}_noising_strength"]) for end in ("min", "max"))
    settings: Values = {"noise.min_timestep": int(1000 * low), "noise.max_timestep": int(1000 * high)}
    if distribution == "LOGIT_NORMAL":
        settings |= {"noise.logit_mean": bias, "noise.logit_std": weight + 1.0}
    elif distribution == "HEAVY_TAIL":
        settings["noise.mode_scale"] = weight
    elif distribution == "BETA":
        settings |= {"noise.timestep_alpha": weight, "noise.timestep_beta": bias}
    elif distribution in ("SIGMOID", "INVERTED_PARABOLA"):
        settings |= {"noise.noising_weight": weight, "noise.noising_bias": bias}
    if config["timestep_shift"] == 1:
        return settings
    if distribution == "SIGMOID":
        config.note("timestep_shift", "changed", "moves the ramp once; OneTrainer does so twice")
    elif distribution not in ("COS_MAP", "INVERTED_PARABOLA") and (low > 0 or high < 1):
        config.note("timestep_shift", "changed", "is of the trained timesteps, not of all")
    return settings


def sizes(config: Config) -> Values:
    """Return {setting: value} of "dataset.resolution", "dataset.more_resolutions", "dataset.enable_bucket", and "dataset.resolution_choice"
    if there are several resolutions."""
    parts = [part.strip().lower() for part in config["resolution"].split(",") if part.strip()]
    if not 0 < len(parts) < MOST_SIZES or not all(map(SIZE.fullmatch, parts)):
        config.note("resolution", "unavailable", "is neither a number, a width x height nor a list; 512 is set")
        parts = ["512"]
    first, *more = [size_of(part) for part in parts]
    choice = {"dataset.resolution_choice": "drawn"} if more else {}
    buckets = config["aspect_ratio_bucketing"] and not any("x" in part for part in parts)
    settings: Values = {"dataset.resolution": first, "dataset.more_resolutions": more, "dataset.enable_bucket": buckets}
    settings |= choice
    chances = {config[f"{part}.dropout_probability"] for part in config.encoders}
    if len(chances) > 1:
        config.note("text_encoder_2.dropout_probability", "unavailable", "captions are dropped for both text encoders")
    return settings


def size_of(text: str) -> int | list[int]:
    """Parse a resolution: "512" -> 512, "512x768" -> [512, 768], in pixels limited to 64 to 8192."""
    sides = [clamp(64, 8192, int(side)) for side in text.split("x")]
    return sides if len(sides) > 1 else sides[0]


def periods(config: Config) -> Values:
    """Return {setting: value} of when to save, sample, validate and back up."""
    settings: Values = {}
    for key, (epochs, steps, minutes) in PERIODS.items():
        number, unit = config[key], config[f"{key}_unit"]
        settings |= {epochs: None, steps: None}
        if unit == "NEVER" or number <= 0 or (key == "validate_after" and not config["validation"]):
            continue
        if unit == "STEP":
            settings[steps] = max(1, number // config.accumulation)
        elif unit in MINUTES and minutes:
            settings[minutes] = number * MINUTES[unit]
        else:
            settings[epochs] = number if unit == "EPOCH" else 1
            if unit != "EPOCH":
                config.note(key, "unavailable", f"{unit.lower()}s cannot be counted; each epoch is set")
    number, unit = config["backup_after"], config["backup_after_unit"]
    epochs, steps, _ = PERIODS["save_every"]
    if unit in MINUTES and number > 0:
        settings["saving.save_every_minutes"] = number * MINUTES[unit]
    elif unit in ("EPOCH", "STEP") and number > 0 and not settings[epochs] and not settings[steps]:
        settings |= {epochs: number} if unit == "EPOCH" else {steps: max(1, number // config.accumulation)}
        config.note("backup_after", "changed", "a checkpoint is saved with each training state")
    if config["rolling_backup"]:
        settings["saving.save_last_n_states"] = max(1, config["rolling_backup_count"])
    return settings


RULES = (model, memory, output, network, ema, rates, stops, schedule, optimizer, loss, timesteps, sizes, periods)
