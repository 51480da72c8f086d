"""Settings to widgets: what each field of the Train form looks like, where it stands, and how a group sums itself up.

Everything is read from the declarations in core/settings; this file only says what they do not know: the order on the
screen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import gradio as gr

from core.settings.base import Declared, Settings, every
from core.settings.job import TrainJob
from tabs.project import FIELDS
from tabs.values import number_text, text_of

# On the first screen, without opening anything.
FIRST = (
    "method.kind",
    "model.base_model",
    "embedding.token_string",
    "embedding.init_word",
    "dataset.folder",
    "schedule.max_train_epochs",
    "schedule.max_train_steps",
    "optimizer.learning_rate",
    "dataset.resolution",
    "dataset.train_batch_size",
    "network.rank",
    "saving.output_name",
    "samples.sample_prompts",
)
# What stands there instead of the whole help, which the note on "?" keeps.
BRIEF = {
    "method.kind": "A LoRA is a good beginning.",
    "model.base_model": "A file, a diffusers folder, or owner/name of the hub.",
    "embedding.token_string": "A word that the model does not know.",
    "embedding.init_word": "A known word that is near to it, such as cat.",
    "dataset.folder": "Any folder of images.",
    "schedule.max_train_epochs": "Empty takes what is advised.",
    "schedule.max_train_steps": "Instead of passes.",
    "optimizer.learning_rate": "How far a step goes.",
    "dataset.resolution": "Of the training.",
    "dataset.train_batch_size": "Images of one step.",
    "network.rank": "Room in the LoRA.",
    "saving.output_name": "Of the finished file.",
    "samples.sample_prompts": "One a line. They are drawn while it trains.",
}
# Of the first screen, what only one method uses.
BY_METHOD = {"embedding.token_string": "embedding", "embedding.init_word": "embedding", "network.rank": "lora"}
# Drawn by another tab: {path: (tab, id of its element there)}.
ELSEWHERE = {"dataset.sources": ("Dataset", "ds-sources")}
# What stands above this field and those after it, where a group is long.
HEADINGS = {
    "dataset.more_resolutions": "Sizes",
    "dataset.flip_aug": "Changes by chance",
    "dataset.alpha_mask": "Masks",
    "dataset.network_multiplier": "How much images count",
    "dataset.short_batches": "Batches and reading",
    "captions.caption_extension": "Files",
    "captions.caption_prefix": "Words added",
    "captions.caption_separator": "Tags",
    "captions.enable_wildcard": "Changes by chance",
    "captions.weighted_captions": "How they are read",
    "network.alpha": "Size and reach",
    "network.network_dropout": "Against overfitting",
    "network.block_dims": "By block",
    "network.network_weights": "Other LoRAs to begin with",
    "optimizer.unet_lr": "Rates",
    "optimizer.loraplus_lr_ratio": "LoRA+",
    "optimizer.optimizer_args": "Of the optimizer",
    "optimizer.max_grad_norm": "Gradients",
    "noise.debiased_estimation_loss": "How timesteps count",
    "noise.huber_schedule": "How errors count",
    "noise.noise_offset_random_strength": "What the noise is made of",
    "noise.zero_terminal_snr": "Which timesteps",
    "noise.compatibility": "Old results",
    "memory.checkpoint_blocks": "Less memory",
    "memory.attention": "Computing",
    "memory.vae_precision": "Images and captions, encoded once",
    "memory.lowram": "The machine",
    "saving.save_n_epoch_ratio": "When, and what stays",
    "saving.save_every_minutes": "States to continue from",
    "saving.save_model_as": "The file",
    "saving.metadata_title": "What is written into it",
    "samples.sample_sampler": "How they are drawn",
    "logging.console_log_level": "In the terminal",
}
WIDE = {"lines", "sizes", "arguments"}
LONG = 220  # letters of help that are a tower in one column
RADIO_CHOICES = 4
RADIO_LETTERS = 34


def element_id(path: str) -> str:
    """The id of a field's element in the page."""
    return "field-" + path.replace(".", "-").replace("_", "-")


def groups() -> dict[str, list[Declared]]:
    """The groups below the first screen with their fields, in the order of declaration; empty groups are left out."""
    found: dict[str, list[Declared]] = {}
    for path, entry in FIELDS.items():
        if path not in FIRST and path not in ELSEWHERE:
            found.setdefault(entry.group, []).append(entry)
    return found


def group_title(group: str) -> str:
    return TrainJob.model_fields[group].title or group


def label(entry: Declared) -> str:
    """Title and unit: "Warm-up (steps)"."""
    told = entry.unit.lower().removesuffix("s") in entry.title.lower()
    return entry.title if told else f"{entry.title} ({entry.unit})"


def sections(paths: list[str]) -> list[tuple[str, list[str]]]:
    """[(heading or "", paths)], in the same order."""
    found: list[tuple[str, list[str]]] = []
    for path in paths:
        if path in HEADINGS or not found:
            found.append((HEADINGS.get(path, ""), []))
        found[-1][1].append(path)
    return found


def choices(entry: Declared) -> list[tuple[str, Any]]:
    """(words, value); of a setting that may be empty, that first."""
    none = [(entry.labels.get("", "off"), "")] if entry.optional else []
    return none + [(entry.labels.get(choice, str(choice)), choice) for choice in entry.choices]


def widget(entry: Declared, job: Settings, paths: Callable[[Declared], list[Any]] | None = None) -> Any:
    """The widget for one setting, chosen by its type. `paths` lists what a model or folder field may offer."""
    value = text_of(entry, getattr(getattr(job, entry.group), entry.name))
    about = BRIEF.get(entry.path, entry.help)
    wide = entry.widget in WIDE or len(about) > LONG
    common: dict[str, Any] = {
        "label": label(entry),
        "info": about,
        "elem_id": element_id(entry.path),
        "elem_classes": ["field", f"field-{entry.kind}"] + (["field-wide"] if wide else []),
        "interactive": True,
        "min_width": 120,
    }
    if entry.kind == "choice":
        options = choices(entry)
        if len(options) <= RADIO_CHOICES and sum(len(words) for words, _ in options) <= RADIO_LETTERS:
            return gr.Radio(options, value=value, **common)
        return gr.Dropdown(options, value=value, filterable=False, **common)
    if entry.kind == "bool":
        return gr.Checkbox(value=value, **common)
    if paths is not None and entry.widget in ("model", "folder", "optimizer"):
        return gr.Dropdown(offered(paths(entry), value), value=value, allow_custom_value=True, **common)
    if entry.widget in WIDE:
        lines = 3 if entry.path in FIRST else 2 if entry.widget == "sizes" else 3
        return gr.Textbox(value=value, lines=lines, max_lines=8, **common)
    number = entry.kind in ("int", "float", "pair")
    return gr.Textbox(
        value=value, max_lines=1, text_align="right" if number else "left", placeholder=placeholder(entry), **common
    )


def offered(options: list[Any], value: Any) -> list[Any]:
    """The list of a free field always holds its present value."""
    known = {option[1] if isinstance(option, tuple) else option for option in options}
    return options if value in known or not value else [value, *options]


def placeholder(entry: Declared) -> str:
    """What stands in an empty field: nothing is also a choice where the setting is optional."""
    if entry.optional:
        return "off" if "off" in entry.help else "empty"
    return "empty" if entry.default in ("", []) else ""


def events(component: Any) -> list[Any]:
    """The events that mean a person has changed the widget; never `change`, which a loaded preset fires too."""
    if isinstance(component, gr.Textbox):
        return [component.blur, component.submit]
    if isinstance(component, gr.Slider):
        return [component.release]
    return [component.input]


def facts() -> dict[str, dict[str, Any]]:
    """What the browser knows about every field: for search, for the note on hover, and for where to find it."""
    found = {}
    for path, entry in FIELDS.items():
        found[path] = {
            "id": ELSEWHERE[path][1] if path in ELSEWHERE else element_id(path),
            "tab": ELSEWHERE[path][0] if path in ELSEWHERE else "Train",
            "title": entry.title,
            "unit": entry.unit,
            "help": entry.help,
            "group": "" if path in FIRST else entry.group,
            "groupTitle": group_title(entry.group),
            "more": entry.level != "shown" and path not in FIRST,
            "method": BY_METHOD.get(path, ""),
            "default": shown_value(entry, entry.default),
            "range": entry.range_text,
            "costs": entry.costs,
            "kohya": entry.kohya,
            "source": entry.source,
        }
    return found


def shown_value(entry: Declared, value: Any) -> str:
    """A value in words, for notes: "empty", "on", "cosine to 0", "1e-4"."""
    if entry.kind == "bool":
        return "on" if value else "off"
    if entry.kind == "choice":
        return str(entry.labels.get(value or "", value or "off"))
    text = str(text_of(entry, value))
    return text.replace("\n", "; ") if text else "empty"


def places(where: str) -> list[str]:
    """The fields that a problem names: "memory.fp8_base, fp8_base_unet" are two of one group."""
    found, group = [], ""
    for name in where.split(", "):
        group = name.split(".")[0] if "." in name else group
        path = name if "." in name else f"{group}.{name}"
        found += [path] if path in FIELDS else []
    return found


# -- a group in one line


def summary(group: str, job: TrainJob) -> str:
    """What a closed group holds: "LoRA rank 16, alpha 16"."""
    return SUMMARIES[group](job) if group in SUMMARIES else _what_differs(group, job)


def _what_differs(group: str, job: TrainJob) -> str:
    """For a group without a sentence of its own: which of its settings are not as at first."""
    others = [entry for entry in FIELDS.values() if entry.group == group]
    told = [
        f"{entry.title} {shown_value(entry, value)[:30]}"
        for entry in others
        if (value := getattr(getattr(job, group), entry.name)) != entry.default
    ]
    more = f" and {len(told) - 2} more" if len(told) > 2 else ""
    return ", ".join(told[:2]) + more if told else "nothing set"


def _method(job: TrainJob) -> str:
    own = job.method
    parts = [str(FIELDS["method.kind"].labels.get(own.kind, own.kind))]
    parts += ["text encoder too"] if own.train_text_encoder == "yes" else []
    return ", ".join(parts + (["averaged weights"] if own.ema else []))


def _model(job: TrainJob) -> str:
    own = job.model
    parts = [f"VAE {own.vae}" if own.vae else "own VAE"]
    parts += [f"family {own.family}"] if own.family != "auto" else []
    parts += [f"{own.prediction} prediction"] if own.prediction != "auto" else []
    return ", ".join(parts + ([f"clip skip {own.clip_skip}"] if (own.clip_skip or 1) > 1 else []))


def _dataset(job: TrainJob) -> str:
    own = job.dataset
    size = own.resolution
    parts = [
        f"{size[0]} x {size[1]} pixels" if isinstance(size, tuple) else f"{size} pixels",
        f"batch {own.train_batch_size}",
    ]
    parts.append("shapes kept" if own.enable_bucket else "cropped to one size")
    more = len([source for source in own.sources if source.enabled])
    return ", ".join(parts + ([f"{more} more folder" + ("" if more == 1 else "s")] if more else []))


def _captions(job: TrainJob) -> str:
    own = job.captions
    parts = ["as written"]
    if own.shuffle_caption:
        parts = ["tags shuffled" + (f", first {own.keep_tokens} kept" if own.keep_tokens else "")]
    parts += [f"'{own.caption_prefix.strip()}' in front"] if own.caption_prefix else []
    parts += [f"{own.caption_dropout_rate:.0%} dropped"] if own.caption_dropout_rate else []
    return ", ".join([*parts, f"up to {own.max_token_length} tokens"])


def _validation(job: TrainJob) -> str:
    share = job.validation.validation_split
    held = sum(bool(source.validation_images) for source in job.dataset.sources if source.enabled)
    held += sum(source.role == "validation" for source in job.dataset.sources if source.enabled)
    best = job.validation.best_checkpoint
    ways = {"auto": "best checkpoint on held-out images", "training": "checkpoints measured on training images"}
    parts = [f"{share:.0%} of the images held out" if share else ways.get(best, "no share held out")]
    parts += [f"{held} folder{'' if held == 1 else 's'} with images for validation"] if held else []
    if share or held:
        own, periods = job.validation, (("validate_every_n_epochs", "epochs"), ("validate_every_n_steps", "steps"))
        moments = [f"every {getattr(own, name)} {unit}" for name, unit in periods if every(getattr(own, name))]
        parts += [f"measured {' and '.join(moments)}" if moments else "never measured"]
    return ", ".join(parts)


def _network(job: TrainJob) -> str:
    own = job.network
    parts = [f"LoRA rank {own.rank}", f"alpha {number_text(own.alpha)}"]
    parts += [f"3x3 convolutions rank {own.conv_rank}"] if own.conv_rank else []
    parts += ["by block"] if own.block_dims or own.conv_block_dims or own.has_block_rates else []
    parts += ["dropout"] if own.dropped_out else []
    parts += [f"from {PurePath(own.network_weights).stem}"] if own.network_weights else []
    trains = [name for name, on in (("U-Net", own.train_unet), ("text encoder", own.train_text_encoder)) if on]
    return ", ".join([*parts, " and ".join(trains) or "nothing trained"])


def _embedding(job: TrainJob) -> str:
    own = job.embedding
    parts = [f"new word '{own.token_string}'" if own.token_string else "no new word"]
    parts += [f"{own.num_vectors_per_token} vectors"] if own.num_vectors_per_token > 1 else []
    parts += [f"begins as '{own.init_word}'"] if own.init_word else []
    return ", ".join(parts + (["one for each layer"] if own.extended else []))


def _optimizer(job: TrainJob) -> str:
    own = job.optimizer
    name = FIELDS["optimizer.optimizer_type"].labels.get(own.optimizer_type, own.optimizer_type)
    parts = [name, f"rate {number_text(own.learning_rate)}"]
    parts += [f"U-Net {number_text(own.unet_lr)}"] if own.unet_lr is not None else []
    rate = text_of(FIELDS["optimizer.text_encoder_lr"], own.text_encoder_lr)  # one number, or two
    return ", ".join(parts + ([f"text encoder {rate}"] if rate else []))


def _schedule(job: TrainJob) -> str:
    own = job.schedule
    curve = FIELDS["schedule.lr_scheduler"].labels[own.lr_scheduler]
    parts = [f"{curve} rate" if own.lr_scheduler == "constant" else curve]
    parts += (
        [f"{own.lr_warmup_steps} {'steps of ' if isinstance(own.lr_warmup_steps, int) else ''}warm-up"]
        if own.lr_warmup_steps
        else []
    )
    parts += [f"{own.gradient_accumulation_steps} batches a step"] if own.gradient_accumulation_steps > 1 else []
    return ", ".join([*parts, f"seed {own.seed}" if own.seed is not None else "any seed"])


def _noise(job: TrainJob) -> str:
    own = job.noise
    loss = FIELDS["noise.loss_type"].labels[own.loss_type]
    parts = [loss] if own.loss_type != "l2" else []
    parts += [f"min-SNR {number_text(own.min_snr_gamma)}"] if own.min_snr_gamma else []
    parts += ["debiased"] if own.debiased_estimation_loss else []
    parts += ["weighed by v"] if own.scale_v_pred_loss_like_noise_pred or own.v_pred_like_loss else []
    parts = parts or ["plain loss"]
    parts += [f"offset {number_text(own.noise_offset)}"] if own.noise_offset else []
    parts += ["multi-resolution noise"] if own.multires_noise_iterations else []
    parts += [f"perturbation {number_text(own.ip_noise_gamma)}"] if own.ip_noise_gamma else []
    parts += ["zero terminal SNR"] if own.zero_terminal_snr else []
    parts += ["as sd-scripts"] if own.compatibility == "kohya" else []
    return ", ".join([*parts, _timesteps(own.min_timestep, own.max_timestep)])


def _timesteps(low: int, high: int) -> str:
    if (low, high) == (0, 1000):
        return "all timesteps"
    return f"timestep {low} alone" if low == high else f"timesteps {low} to {high}"


def _memory(job: TrainJob) -> str:
    own = job.memory
    precision = FIELDS["memory.mixed_precision"].labels[own.mixed_precision]
    first = "precision as the machine allows" if own.mixed_precision == "auto" else precision
    return f"{first}, {'gradient checkpointing' if own.gradient_checkpointing else 'no checkpointing'}"


def _sharding(job: TrainJob) -> str:
    own = job.sharding
    if not own.deepspeed:
        return "off: each card holds everything"
    places = [
        word
        for word, place in (("optimizer", own.offload_optimizer_device), ("weights", own.offload_param_device))
        if place
    ]
    return f"DeepSpeed, ZeRO stage {own.zero_stage}" + (f", {' and '.join(places)} off the card" if places else "")


def _saving(job: TrainJob) -> str:
    own = job.saving
    periods = (("save_every_n_epochs", "epochs"), ("save_every_n_steps", "steps"))
    parts = [f"every {getattr(own, name)} {unit}" for name, unit in periods if every(getattr(own, name))]
    parts += [f"{own.save_n_evenly} spread evenly"] if every(own.save_n_evenly) else []
    parts += [f"at least {own.save_n_epoch_ratio} at epoch ends"] if every(own.save_n_epoch_ratio) else []
    parts = parts or ["at the end"]
    parts += [f"keep last {own.save_last_n}"] if every(own.save_last_n) else []
    minutes = every(own.save_every_minutes)
    parts += [f"back up every {number_text(minutes)} min"] if minutes is not None else []
    parts += [own.save_precision] + ([f"as .{own.save_model_as}"] if own.save_model_as in ("ckpt", "pt") else [])
    return ", ".join(parts + (["copied to a second folder"] if own.copy_to else []))


def _resume(job: TrainJob) -> str:
    own = job.resume
    parts = ["from the state of another run"] if own.resume else []
    if own.initial_step is not None:
        parts += [f"at step {own.initial_step}"]
    elif own.initial_epoch is not None:
        parts += [f"at epoch {own.initial_epoch}"]
    return ", ".join(parts) or "at the beginning"


def _hub(job: TrainJob) -> str:
    own = job.hub
    return f"to {own.huggingface_repo_id}, {own.huggingface_repo_visibility}" if own.huggingface_repo_id else "off"


def _samples(job: TrainJob) -> str:
    own = job.samples
    if not (own.sample_prompts or own.sample_prompts_file):
        return "no prompts, none drawn"
    if every(own.sample_every_n_epochs):
        parts = [f"every {own.sample_every_n_epochs} epochs"]
    else:
        parts = [f"every {own.sample_every_n_steps} steps"] if every(own.sample_every_n_steps) else []
    parts = parts or ["not during training"]
    parts += ["base model first"] if own.sample_at_first else []
    return ", ".join(
        [*parts, f"{FIELDS['samples.sample_sampler'].labels[own.sample_sampler]}, {own.sample_steps} steps"]
    )


def _logging(job: TrainJob) -> str:
    own = job.logging
    words = FIELDS["logging.log_with"].labels[own.log_with]
    return f"{words}, with the settings" if own.log_config and own.log_with != "none" else words


SUMMARIES: dict[str, Callable[[TrainJob], str]] = {
    "method": _method,
    "model": _model,
    "dataset": _dataset,
    "captions": _captions,
    "validation": _validation,
    "network": _network,
    "embedding": _embedding,
    "optimizer": _optimizer,
    "schedule": _schedule,
    "noise": _noise,
    "memory": _memory,
    "sharding": _sharding,
    "saving": _saving,
    "resume": _resume,
    "hub": _hub,
    "samples": _samples,
    "logging": _logging,
}
