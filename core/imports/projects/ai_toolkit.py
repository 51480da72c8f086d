"""Import training settings of AI Toolkit (ostris/ai-toolkit): a job as YAML or JSON, one process of which is a training."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.imports.projects.report import Import, Source, choose
from core.imports.projects.table import (
    Config,
    Fixed,
    Values,
    arguments_of,
    chosen_optimizer,
    clamp,
    flattened,
    item_values,
    optimizer_settings,
    other_family,
    read_table,
    to_import,
    with_bounds,
)
from core.record.bounded_yaml import parse_yaml
from core.record.problems import ProblemsError
from core.settings.check import shorten

NAME, TITLE = "ai_toolkit", "AI Toolkit"
LINES = [re.compile(rf"^\s*(?:- )?['\"]?{name}['\"]?[ \t]*:", re.MULTILINE) for name in ("config", "process")]
VARIABLE, FLAG = re.compile(r"\$\{([^}]{1,100})\}"), re.compile(r"\s*--(\w+)")
PARTS = (
    "network", "save", "train", "model", "sample", "logging", "embedding", "adapter", "decorator", "guidance", "slider", "first_sample",
    "train.ema_config",
)  # fmt: skip
MOST, LONGEST = 500, 2_000  # folders or prompts, characters of a prompt
# Options of its prompts -> ours
FLAGS = {"n": "n", "w": "w", "h": "h", "d": "d", "seed": "d", "l": "l", "cfg": "l", "s": "s", "steps": "s"}
ITEM_FLAGS = {"neg": "n", "width": "w", "height": "h", "seed": "d", "guidance_scale": "l", "sample_steps": "s"}
ROUNDED = ("adafactor", "adam8", "adamw8", "prodigy8bit", "automagic")  # its own classes, which round at random
FIXED: Fixed = {
    "dataset.bucket_no_upscale": (True, "AI Toolkit does not enlarge images"),
    "captions.caption_lines": ("all", "AI Toolkit takes a caption file as a whole"),
    "samples.prompt_weights": (False, "AI Toolkit reads brackets as text"),
    "validation.best_checkpoint": ("off", "AI Toolkit does not compare checkpoints"),
}
TABLE = read_table(NAME, TITLE, ("datasets.", "sample.samples."))


def recognizes(source: Source) -> bool:
    """Return whether a text is a job of AI Toolkit."""
    if source.path is not None:
        return False
    if source.json is not None:
        job = source.json.get("config")
        return "schema_version" not in source.json and isinstance(job, dict) and "process" in job
    return all(line.search(source.text) for line in LINES)


def keys() -> Iterable[str]:
    """Return every key that the importer knows; keys of the parts of a process contain dots."""
    return TABLE.rows


def read(source: Source) -> Import:
    """Import a job of AI Toolkit as a job with a report. Raises ProblemsError as `resolve`."""
    config, choices, choice = resolve(source)
    settings = config.settings(RULES)
    folders, prompts = (_items(config, key) for key in ("datasets", "sample.samples"))
    settings |= datasets(config, folders) | samples(config, prompts)
    written = config.written | item_values([*folders, *prompts], TABLE)
    result = to_import(config, settings, written, FIXED, NAME, f"{config.method} of {settings['model.family']}")
    result.choices, result.choice = choices, choice
    return result


# ---- the text


def resolve(source: Source) -> tuple[Config, tuple[str, ...], str]:
    """Return (config of the chosen process, lines to choose from, chosen line); () and "" for a single process.

    Raises ChoiceNeeded if `source.choice` names none of several processes, and ProblemsError without a process and for models and
    methods that are not trained here.
    """
    content, repeated = (source.json, []) if source.json else parse_yaml(source.text, source.where, source.fix)
    job = content.get("config") if isinstance(content, dict) else None
    processes = job.get("process") if isinstance(job, dict) else None
    listed = [each for each in (processes if isinstance(processes, list) else [processes]) if isinstance(each, dict)]
    if not listed or not isinstance(job, dict):
        fix = "paste the whole job, with config and process"
        raise ProblemsError.one("The job has no process", source.where, fix, "import.no-process")
    index, choices = choose([_title(each) for each in listed], source, "processes")
    meta = content.get("meta")
    options = {key: value for key, value in content.items() if key not in ("config", "meta")}
    options |= {key: value for key, value in job.items() if key != "process"} | listed[index]
    options |= {f"meta.{key}": value for key, value in meta.items()} if isinstance(meta, dict) else {}
    options = _with_job_name(options, str(job.get("name") or ""))
    config = Config(TABLE, source, flattened(flattened(options, PARTS[:-1]), PARTS[-1:]))
    for each in dict.fromkeys(VARIABLE.findall(source.text)[:20]):
        what = f"The text uses ${{{each}}}, a variable of the other machine"
        config.warn(what, each, "enter the value in the project", "import.unset-variable")
    raw = {key: "" if (key, value) == ("sample.neg", False) else value for key, value in config.written.items()}
    config.values = config.read(raw)
    config.method = _method(config, source.where)
    for each in repeated[:20]:
        what = f"The key {each[:100]} is written twice; the last one counts"
        config.warn(what, each[:100], "delete one", "import.twice")
    return config, choices, choices[index] if choices else ""


def _title(process: Mapping[str, Any]) -> str:
    """Return the title of a process for the choice: "sd_trainer, runwayml/stable-diffusion-v1-5"."""
    model = process.get("model")
    name = model.get("name_or_path") if isinstance(model, dict) else ""
    return f"{str(process.get('type'))[:60]}, {str(name)[:100]}"


def _with_job_name(value: Any, name: str) -> Any:
    """Replace [name] by the job's name in all texts nested in a value."""
    if isinstance(value, dict):
        return {key: _with_job_name(each, name) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_job_name(each, name) for each in value]
    return value.replace("[name]", name[:100]) if isinstance(value, str) else value


def family(config: Config) -> str:
    """Return AI Toolkit's name of the model architecture."""
    arch = config["model.arch"].partition(":")[0].lower()
    return arch or next((name for flag, name in TABLE.data["flags"].items() if config[f"model.{flag}"]), "sd1")


def _method(config: Config, where: str) -> str:
    """Return the training method of the process, "lora", "embedding" or "fine_tune". Raises ProblemsError for processes and models that are
    not trained here."""
    arch, data, process = family(config), TABLE.data, config["type"]
    if arch not in data["families"]:
        raise other_family(config, arch)
    adapter = config.written.get("adapter.train")
    if process not in data["processes"] or adapter:
        what = "Training of adapters" if adapter else f"The process {shorten(process)}"
        fix = "open a config of a LoRA, a full model or an embedding (sd_trainer)"
        raise ProblemsError.one(f"{what} is not available", where, fix, "import.other-method")
    network, embedding = (
        any(key.startswith(f"{part}.") for key in config.written) for part in ("network", "embedding")
    )
    for key in config.written if network and embedding else ():
        if key.startswith("embedding."):
            config.note(key, "unavailable", "embeddings train alone, without a network")
    return "lora" if network else "embedding" if embedding else "fine_tune"


def _items(config: Config, key: str) -> list[Values]:
    """Return the items of the list `key` as {key with the list's prefix: value}; [] if it is missing."""
    listed = config.written.get(key)
    return config.items(key, listed if isinstance(listed, list) else [], f"{key}.")


# ---- rules


def model(config: Config) -> Values:
    """Return {setting: value} of method, model and run: "method.kind", "model.family", "model.prediction", "schedule.seed",
    "saving.output_name" ...; adds a warning if no model is named."""
    if not config["model.name_or_path"]:
        config.warn("The text names no model", "model.name_or_path", "choose the base model", "import.no-model")
    lora = config["model.lora_path"]
    return {
        "method.kind": config.method,
        "model.family": TABLE.data["families"][family(config)],
        "model.prediction": "v" if config["model.is_v_pred"] else "epsilon",
        "memory.attention": "xformers" if config["train.xformers"] else "auto",
        "schedule.seed": config["training_seed"] and clamp(0, 2**63, int(config["training_seed"])),
        "saving.output_name": config["name"].strip()[:100] or "my_model",
        "logging.log_with": "wandb" if config["logging.use_wandb"] else "tensorboard",
    } | ({"network.base_weights": [lora]} if lora and config.method == "lora" else {})


def network(config: Config) -> Values:
    """Return {setting: value} of a network ("network.kind", "network.rank", "network.train_unet" ...), or of the trained parts of a full
    model ("method.train_text_encoder", "optimizer.unet_lr"); {} for other methods."""
    kind, text, unet = config["network.type"].lower(), config["train.train_text_encoder"], config["train.train_unet"]
    if config.method == "fine_tune":
        return {"method.train_text_encoder": "yes" if text else "no"} | ({} if unet else {"optimizer.unet_lr": 0.0})
    if config.method != "lora":
        return {}
    kwargs = config["network.network_kwargs"]
    if isinstance(kwargs, dict) and not any(kwargs.values()):
        config.note("network.network_kwargs", "idle", "is empty")
    if kind == "lorm":
        kind = TABLE.rows["network.type"].default
    kind = config.choice("network.type", kind)
    rank = config["network.rank"] or config["network.linear"]
    if rank is None and not config["network.lokr_full_rank"]:
        config.note("network.linear", "changed", "AI Toolkit refuses a network without it; 16 is set")
    rank = int(rank or 16)
    stated = "network.linear_alpha" in config.written
    alpha = config["network.linear_alpha" if stated else "network.alpha"]
    conv = int(config["network.conv"] or 0) or None
    settings: Values = {"network.kind": kind, "network.rank": rank, "network.alpha": alpha, "network.conv_rank": conv}
    settings |= {"network.conv_alpha": (config["network.conv_alpha"] or conv) if conv else None}
    if kind == "lokr":
        whole = config["network.lokr_full_rank"]
        settings |= {"lokr.factor": config["network.lokr_factor"], "lokr.full_matrix": whole}
        settings |= {"network.conv_rank": rank, "network.conv_alpha": rank} if whole else {}
    if kind == "dora":
        settings["dora.wd_on_output"] = True
    return settings | {"network.train_unet": unet, "network.train_text_encoder": text}


def _per_step(config: Config) -> int:
    """Return the number of AI Toolkit's steps in an optimizer step: gradient_accumulation_steps, since its steps count batches.

    1 with `gradient_accumulation`, with which its steps are optimizer steps.
    """
    batches = config["train.gradient_accumulation_steps"]
    return 1 if config["train.gradient_accumulation"] > 1 else max(1, batches)


def length(config: Config) -> Values:
    """Return {setting: value} of training length, gradient accumulation, saving and sampling, in optimizer steps:
    "schedule.max_train_steps", "saving.save_every_n_steps", "saving.save_model_as", "samples.sample_every_n_steps" ...
    """
    batches, key = _per_step(config), "train.gradient_accumulation_steps"
    if config[key] < 0:
        config.note(key, "unavailable", "accumulates a whole epoch; 1 is set")
    steps = {name: config[name] // batches for name in ("train.steps", "save.save_every", "sample.sample_every")}
    for name in steps if batches > 1 else ():
        config.note(name, "changed", f"counts batches: {max(1, steps[name])} steps of {batches} ({key})")
    off = config["train.disable_sampling"]
    return {
        "schedule.max_train_steps": max(1, steps["train.steps"]),
        "schedule.gradient_accumulation_steps": max(batches, config["train.gradient_accumulation"]),
        "saving.save_every_n_steps": steps["save.save_every"] or None,
        "samples.sample_every_n_steps": None if off else steps["sample.sample_every"] or None,
        "samples.sample_at_first": not (config["train.skip_first_sample"] or off),
        "saving.save_model_as": "diffusers_safetensors"
        if config["save.save_format"] == "diffusers" and config.method == "fine_tune"
        else "safetensors",
    }


def optimizer(config: Config) -> Values:
    """Return {setting: value} of the optimizer, as `optimizer_settings`, "optimizer.learning_rate" and "optimizer.max_grad_norm"; adds
    notes where AI Toolkit itself uses other values."""
    name = config["train.optimizer"].lower()
    class_name, implied = chosen_optimizer(config, "train.optimizer", name)
    params = config["train.optimizer_params"]
    arguments = arguments_of(config, class_name, params, "train.optimizer_params") if isinstance(params, dict) else {}
    rate = config["train.embedding_lr"] if config.method == "embedding" else None
    rate = config["train.lr"] if rate is None else rate
    if name.startswith(("dadaptation", "prodigy")) and rate < 0.1:
        config.note("train.lr", "changed", "AI Toolkit takes 1 for rates below 0.1 with this optimizer")
        rate = 1.0
    if clips := name != "adafactor":
        settings = {"optimizer.max_grad_norm": config["train.max_grad_norm"]}
    else:
        settings = {"optimizer.max_grad_norm": 0.0}
        config.note("train.max_grad_norm", "changed", "AI Toolkit does not clip gradients with Adafactor")
    if config.method == "fine_tune":
        settings["memory.stochastic_rounding"] = not clips or name.startswith(ROUNDED)
    return optimizer_settings(class_name, implied | arguments) | settings | {"optimizer.learning_rate": rate}


def schedule(config: Config) -> Values:
    """Return {setting: value} of "schedule.lr_scheduler" (constant, constant with warmup, or cosine; a note for others),
    "schedule.lr_warmup_steps" and "schedule.lr_scheduler_min_lr_ratio"."""
    key, name, params = "train.lr_scheduler_params", config["train.lr_scheduler"], config["train.lr_scheduler_params"]
    numbers = {setting: _number(each) for setting, each in params.items()} if isinstance(params, dict) else {}
    warmup = int(numbers.get("num_warmup_steps") or 0)
    settings: Values = {"lr_scheduler": "constant", "lr_warmup_steps": warmup}
    if name == "constant_with_warmup":
        settings |= {"lr_scheduler": name, "lr_warmup_steps": warmup if "num_warmup_steps" in numbers else 1000}
    elif name in ("cosine", "cosine_with_restarts"):  # the first restart is after the last step
        low = clamp(0.0, 1.0, (numbers.get("eta_min") or 0) / max(config["train.lr"], 1e-12))
        settings |= {"lr_scheduler": "cosine", "lr_scheduler_min_lr_ratio": low or None}
    elif name not in ("constant", "none"):
        sentence = "constant is set; classes of torch are chosen in schedule.lr_scheduler_type"
        config.note("train.lr_scheduler", "unavailable", f"{shorten(name)} is not available; {sentence}")
    if unread := set(numbers) - {"num_warmup_steps", "eta_min", "total_iters", "T_max", "T_0"}:
        config.note(key, "unavailable", f"is not read: {', '.join(sorted(map(str, unread)))[:200]}")
    return {f"schedule.{setting}": value for setting, value in settings.items()}


def _number(value: Any) -> Any:
    """Return a number, also from a text such as "1e-4", which YAML does not read as a number; None for other values, booleans, and numbers
    of 1e30 or more."""
    try:
        number = value if isinstance(value, int) else float(value)
    except (ValueError, TypeError):
        return None
    return None if isinstance(value, bool) or not abs(number) < 1e30 else number


def noise(config: Config) -> Values:
    """Return {setting: value} of timesteps, precision, loss weights, EMA and prior preservation: "noise.min_timestep",
    "memory.mixed_precision", "method.ema", "method.prior" ..."""
    low, high = (clamp(0, 999, config[f"train.{end}_denoising_steps"]) for end in ("min", "max"))
    precision = config.choice("train.dtype")
    settings = {
        "noise.min_timestep": 999 - max(low, high),  # it counts from the noisiest
        "noise.max_timestep": 1000 - min(low, high),
        "memory.mixed_precision": precision,
        "dataset.prior_loss_weight": config["train.reg_weight"],
    }
    if config.method == "fine_tune":
        settings["memory.full_precision"] = {"no": "fp32"}.get(precision, precision)
    if config["train.ema_config.use_ema"]:
        decay = clamp(0.0, 0.999999, config["train.ema_config.ema_decay"])
        settings |= {"method.ema": True, "method.ema_decay": decay, "method.ema_warmup": False}
    if config["train.inverted_mask_prior"]:
        settings["noise.masked_prior_preservation_weight"] = config["train.inverted_mask_prior_multiplier"]
    if config["train.diff_output_preservation"]:
        word = config["train.diff_output_preservation_class"]
        settings |= {"method.prior": "model", "method.class_caption": word or None}
        settings["dataset.prior_loss_weight"] = config["train.diff_output_preservation_multiplier"]
    return settings


RULES = (model, network, length, optimizer, schedule, noise)


# ---- folders and prompts


def datasets(config: Config, listed: list[Values]) -> Values:
    """Return {setting: value} of "dataset.sources", "dataset.resolution", masks and latent caching; adds a warning if there is no folder.
    listed: the items of `datasets`"""
    items = [config.read(each, "datasets.") for each in listed]
    sources = [source for values in items for source in _source(config, values)]
    if not sources:
        config.warn("The text names no image folders", "datasets", "choose the image folders", "import.no-folders")
    disk, memory = (any(values[f"datasets.cache_latents{end}"] for values in items) for end in ("_to_disk", ""))
    cache = "disk" if disk else "memory" if memory else "off"
    if cache != "off" and any(values["datasets.random_crop"] for values in items):
        sentence = "is random in each epoch, without cached latents; AI Toolkit crops once"
        config.note("datasets.random_crop", "changed", sentence)
        cache = "off"
    mask_minimums = [values["datasets.mask_min_value"] for values in items if values["datasets.mask_path"]]
    return {
        "dataset.folder": None,
        "dataset.sources": sources,
        "dataset.resolution": sources[0]["resolution"] if sources else 512,
        "dataset.masked_loss": bool(mask_minimums),
        "noise.unmasked_weight": clamp(0.0, 1.0, max(mask_minimums, default=0.0)),
        "memory.cache_latents": cache,
        "memory.latent_draw": "sample" if cache == "off" else "frozen",
    }


def _source(config: Config, values: Values) -> Iterator[Values]:
    """Yield the settings {name: value} of a dataset's folder. A .json file or a dataset without a folder yields nothing and adds a note."""
    folder = values["datasets.dataset_path"] or values["datasets.folder_path"]
    if not folder.strip() or folder.lower().endswith(".json"):
        config.note("datasets.folder_path", "unavailable", "a dataset without a folder is left out")
        return
    ending = (values["datasets.caption_type"] or values["datasets.caption_ext"] or "txt").lstrip(".")
    sizes = _sizes(config, values["datasets.resolution"])
    source = config.folder_settings(values) | {"folder": folder, "caption_extension": f".{ending[:20]}"}
    source |= {"resolution": sizes[0], "more_resolutions": sizes[1:]}
    source["role"] = "regularization" if values["datasets.is_reg"] else "train"
    source["enable_bucket"] = source["enable_bucket"] and not values["datasets.square_crop"]
    optional = {"class_tokens", "trigger_word", "conditioning_data_dir"}
    yield with_bounds({name: (value or None) if name in optional else value for name, value in source.items()})


def _sizes(config: Config, value: Any) -> list[int]:
    """Return the sides in pixels that a dataset is trained at, without duplicates; [512] with a note if unreadable."""
    numbers = [_number(each) for each in (value if isinstance(value, list) else [value])]
    sizes = [clamp(64, 8192, int(number)) for number in numbers[:20] if number is not None]
    if not sizes or len(sizes) < len(numbers):
        config.note("datasets.resolution", "unavailable", "is neither a number nor a list of numbers; 512 is set")
    elif len(set(sizes)) < len(sizes):
        sentence = "has a size twice, which is trained once; width and height are not given so"
        config.note("datasets.resolution", "changed", sentence)
    return list(dict.fromkeys(sizes)) or [512]


def samples(config: Config, listed: list[Values]) -> Values:
    """Return {setting: value} of "samples.sample_prompts", "samples.negative_prompt" and "samples.seed".
    listed: the items of sample.samples, which replace sample.prompts"""
    prompts = config.written.get("sample.prompts")
    texts = [str(each) for each in (prompts if isinstance(prompts, list) else [])[:MOST]]
    items = listed or [{"sample.samples.prompt": text} for text in texts]
    walk_seed, seed = config["sample.walk_seed"], clamp(0, 2**32 - 1, config["sample.seed"])
    lines = [_line(config, each, None if walk_seed else seed) for each in items]
    return {
        "samples.sample_prompts": [line for line in lines if line],
        "samples.negative_prompt": " ".join(config["sample.neg"][:LONGEST].split()),
        "samples.seed": seed,
    }


def _line(config: Config, sample: Values, seed: int | None) -> str:
    """Return a sample prompt with options, such as "a cat --w 512 --d 1"; "" for an empty one. Unavailable options are left out with a
    note.
    seed: seed unless the sample has one; None: random"""
    values = {key.rpartition(".")[2]: value for key, value in sample.items()}
    text, *rest = FLAG.split(" ".join(str(values.get("prompt") or "")[:LONGEST].split()))
    options: Values = {} if seed is None else {"d": seed}
    options |= {flag: values[key] for key, flag in ITEM_FLAGS.items() if values.get(key) not in (None, "", False)}
    flags = dict(zip(rest[::2], rest[1::2], strict=False))
    options |= {FLAGS[flag]: value.strip() for flag, value in flags.items() if flag in FLAGS}
    unavailable = [flag for flag in flags if flag not in FLAGS]
    unavailable += [flag for flag, value in options.items() if flag != "n" and _number(value) is None]
    if unavailable:
        sentence = f"options that are not available are left out: --{' --'.join(unavailable[:10])[:200]}"
        config.note("sample.prompts", "changed", sentence)
    trigger = config["trigger_word"]
    text = text.replace("[trigger]", trigger) if trigger else text
    flag_words = [f"--{flag} {str(value)[:LONGEST]}" for flag, value in options.items() if flag not in unavailable]
    return " ".join([text.strip(), *flag_words]) if text.strip() else ""
