"""The tables of docs/coming_from_*.md: the names of a program that are used most, and folded below all others that its importer knows."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.imports.projects import ai_toolkit, onetrainer_config, simpletuner
from core.imports.projects.kohya_ss import FAMILIES, FIELDS, LORA_PLUS, NETWORKS
from core.imports.projects.options import SCRIPTS, options_of
from core.imports.projects.report import known_settings
from core.imports.projects.rules import SECRETS, Reading
from core.imports.projects.table import IDLE, SECRET, Table
from core.imports.projects.to_job import IGNORED, settings_of
from core.record.workspace import PROJECT
from core.settings.elsewhere import ELSEWHERE
from core.settings.network import NETWORK_KINDS
from core.settings.presets.networks import settings_of_arguments

# What stands between two of these comments of a page is written here, all else by hand.
BLOCK = re.compile(r"(<!-- names: (used most|others) -->\n).*?(?=<!-- end of names -->)", re.DOTALL)
EXAMPLES = {
    "resolution": "512",
    "skip_image_resolution": "512",
    "face_crop_aug_range": "1,2",
    "optimizer_args": ["weight_decay=0.1"],
    "in_json": "a/b.json",
}
# Fields that kohya_ss combines with others: field -> what it becomes here
COMPUTED = {
    "sample_prompts": "`samples.sample_prompts`",
    "num_processes": "`memory.num_processes`",
    "sdxl": "`model.family`",
    "sdxl_checkbox": "`model.family`",
    "epoch": "`schedule.max_train_epochs`",
} | dict.fromkeys(
    ("image_folder", "train_dir", "caption_metadata_filename", "latent_metadata_filename"), "`dataset.sources`"
)
# Options that stand for many settings
WIDER = {
    "network_args": ("settings of the network type", ""),
    "dataset_config": ("`dataset.sources`", "a file that is found is read"),
    "config_file": ("each of its options", "a file that is found is read"),
}
OTHER_FAMILIES = ("anima_", "flux1_", "sd3_", "hunyuan_", "lumina_")
LENGTHS = {
    "max_train_steps": "",
    "max_train_epochs": "wins over max_train_steps",
    "epoch": "counts if max_train_steps and max_train_epochs are 0",
}


class Row(NamedTuple):
    """A row of a table: names of a program with the same meaning here, their settings, and remarks."""

    names: tuple[str, ...]
    here: str
    remarks: str = ""

    @property
    def line(self) -> str:
        return f"| {' '.join(f'`{name}`' for name in self.names)} | {self.here} | {self.remarks} |"


class Program(NamedTuple):
    title: str
    rows: Callable[[], list[Row]]
    used_most: str


def render(page: Path) -> str:
    """The page with its two tables as they are now."""
    text = page.read_text("utf-8")
    program = PROGRAMS[page.stem.removeprefix("coming_from_")]
    title, rows, used = program.title, program.rows(), program.used_most.split()
    by_name = {name: row for row in rows for name in row.names}
    most = [by_name[name]._replace(names=(name,)) for name in used]
    others = [row._replace(names=tuple(name for name in row.names if name not in used)) for row in rows]
    others = [row for row in others if row.names]
    summary = f"{sum(len(row.names) for row in others)} more names"
    tables = {
        "used most": f"\n{_table(title, most)}\n",
        "others": f"\n<details><summary>{summary}</summary>\n\n{_table(title, others)}\n</details>\n\n",
    }
    return BLOCK.sub(lambda block: block[1] + tables[block[2]], text)


def _table(title: str, rows: Iterable[Row]) -> str:
    return "\n".join([f"| {title} | here | remarks |", "|---|---|---|", *(row.line for row in rows)]) + "\n"


def _paths(settings: Iterable[str]) -> str:
    return ", ".join(f"`{path}`" for path in dict.fromkeys(settings))


# ---- programs whose importers read a table of keys


def _rows_of_table(table: Table) -> list[Row]:
    rows = []
    for written, cells in table.data["keys"].items():
        parts, _, keys = written.rpartition(":")
        names = tuple(f"{part}.{key}".removeprefix(".") for part in parts.split() or [""] for key in keys.split())
        here, sentence, notes = cells[1], (cells[2:3] or [""])[0], (cells[4:5] or [{}])[0]
        here = {IDLE: "no effect", SECRET: "never imported", "": "-"}.get(here) or _paths(
            here.removeprefix("=").split()
        )
        values = (f"{value if value != '*' else 'otherwise'}: {text[1:]}" for value, text in notes.items())
        rows.append(Row(names, here, "; ".join(filter(None, (sentence, *values)))))
    return rows


# ---- sd-scripts and kohya_ss


@cache
def settings_by_option() -> dict[str, tuple[str, ...]]:
    """{option: the settings that it becomes}, found by importing each option alone."""
    settings: dict[str, tuple[str, ...]] = {}
    for script in SCRIPTS.values():
        for name, option in script.options.items():
            plain = {"bool": True, "str": "a"}.get(option.type, 1)
            value = EXAMPLES.get(name) or next(iter(option.choices), None) or ([plain] if option.many else plain)
            read = Reading(script, {name: value}, frozenset([name]))
            paths = next((names[name] for names, _ in settings_of(read) if name in names), ())
            settings[name] = tuple(dict.fromkeys((*settings.get(name, ()), *paths)))
    return settings


def sd_scripts() -> list[Row]:
    return [Row((name,), *_option(name)) for name in sorted(options_of())]


def _option(name: str, left_out: str = "method.kind") -> tuple[str, str]:
    """(the settings of an option or "-", remarks). left_out: how settings begin that are not named"""
    if name in SECRETS:
        return "never imported", "enter it on Tools"
    if name in WIDER:
        return WIDER[name]
    settings = [path for path in settings_by_option().get(name, ()) if not path.startswith(left_out)]
    sentence = IGNORED[name][1] if name in IGNORED else ELSEWHERE.get(name, "") if not settings else ""
    return _paths(settings) or "-", LENGTHS.get(name, sentence.removeprefix("remove it: "))


def kohya_ss() -> list[Row]:
    arguments = {
        part.lstrip("?").partition("=")[2] or part.lstrip("?")
        for part in " ".join((*(row["arguments"] for row in NETWORKS.values()), *LORA_PLUS)).split()
    }
    rows = []
    for name, row in FIELDS.items():
        options = [each for each in (name, *row.get("options", ())) if each in options_of()]
        known = options or name in arguments or name in COMPUTED or {"taken", "idle"} & set(row)
        if name.startswith(OTHER_FAMILIES) or name in FAMILIES or not known:
            continue
        cells = [_option(option, "lllite.") for option in options if name not in COMPUTED]
        here = ", ".join(dict.fromkeys(text for text, _ in cells if text != "-")) or "-"
        here = COMPUTED.get(name, here)
        remark = next((text for _, text in cells if text), "")
        if name in arguments and not cells:
            here, remark = _argument(name), "by network type"
        reason = row.get("taken", row.get("idle", "")) if here == "-" else ""
        tabs = f"{', '.join(row['tabs'])} tab" if row.get("tabs") else ""
        rows.append(Row((name,), here, "; ".join(filter(None, (LENGTHS.get(name, remark or reason), tabs)))))
    return rows


def _argument(name: str) -> str:
    """The settings of one of network_args, by network type."""
    argument = {"LyCORIS_preset": "preset", "constrain": "constraint"}.get(name, name)
    known = known_settings()
    return (
        _paths(path for kind in NETWORK_KINDS for path in settings_of_arguments(kind, {argument: "1"}, known)[0]) or "-"
    )


# ---- the names used most, in the order in which a training is set up

KOHYA_SS_USED = """pretrained_model_name_or_path vae v2 v_parameterization sdxl train_data_dir reg_data_dir dataset_config output_dir
output_name save_model_as save_precision save_every_n_epochs LoRA_type network_dim network_alpha conv_dim conv_alpha network_dropout
network_weights max_resolution enable_bucket train_batch_size epoch max_train_epochs max_train_steps learning_rate unet_lr
text_encoder_lr optimizer optimizer_args lr_scheduler lr_warmup caption_extension shuffle_caption keep_tokens clip_skip noise_offset
min_snr_gamma mixed_precision gradient_checkpointing xformers cache_latents seed sample_prompts additional_parameters"""
SD_SCRIPTS_USED = """pretrained_model_name_or_path vae v2 v_parameterization train_data_dir reg_data_dir in_json dataset_config
config_file output_dir output_name save_model_as save_precision save_every_n_epochs network_module network_dim network_alpha network_args
network_train_unet_only network_weights resolution enable_bucket train_batch_size max_train_steps max_train_epochs learning_rate unet_lr
text_encoder_lr optimizer_type optimizer_args lr_scheduler lr_warmup_steps caption_extension shuffle_caption keep_tokens clip_skip
noise_offset min_snr_gamma mixed_precision gradient_checkpointing xformers sdpa cache_latents seed sample_prompts"""
ONETRAINER_USED = """training_method model_type base_model_name vae.model_name output_model_destination output_dtype concept_file_name
concepts.path concepts.balancing concepts.type concepts.text.prompt_source concepts.text.enable_tag_shuffling
concepts.text.keep_tags_count concepts.image.enable_random_flip peft_type lora_rank lora_alpha dropout_probability lora_model_name
layer_filter_preset resolution aspect_ratio_bucketing batch_size gradient_accumulation_steps epochs learning_rate unet.learning_rate
text_encoder.train text_encoder.learning_rate text_encoder.stop_training_after optimizer.optimizer learning_rate_scheduler
learning_rate_warmup_steps ema timestep_distribution loss_weight_fn offset_noise_weight masked_training train_dtype unet.weight_dtype
unet.gradient_checkpointing latent_caching save_every sample_after"""
AI_TOOLKIT_USED = """type name trigger_word model.name_or_path model.arch network.type network.linear network.linear_alpha network.conv
network.dropout save.save_every save.max_step_saves_to_keep save.dtype datasets.folder_path datasets.caption_ext
datasets.caption_dropout_rate datasets.shuffle_tokens datasets.keep_tokens datasets.resolution datasets.num_repeats
datasets.is_reg datasets.flip_x datasets.mask_path datasets.cache_latents_to_disk train.steps train.batch_size
train.gradient_accumulation train.lr train.optimizer train.optimizer_params train.lr_scheduler train.train_unet train.train_text_encoder
train.gradient_checkpointing train.dtype train.ema_config.use_ema train.min_snr_gamma train.noise_offset train.content_or_style
train.loss_type sample.sample_every sample.prompts sample.neg sample.guidance_scale sample.sample_steps"""
SIMPLETUNER_USED = """model_type model_family pretrained_model_name_or_path pretrained_vae_model_name_or_path prediction_type output_dir
data_backend_config data.instance_data_dir data.caption_strategy data.repeats data.resolution data.crop
data.is_regularisation_data resolution lora_rank lora_alpha lora_dropout lora_type lycoris_config init_lora train_batch_size
gradient_accumulation_steps max_train_steps num_train_epochs learning_rate text_encoder_lr optimizer optimizer_config lr_scheduler
lr_warmup_steps max_grad_norm mixed_precision base_model_precision gradient_checkpointing caption_dropout_probability snr_gamma
noise_offset use_ema train_text_encoder seed checkpoint_step_interval validation_step_interval validation_prompt
validation_negative_prompt validation_guidance report_to"""
PROGRAMS = {
    "kohya_ss": Program("kohya_ss", kohya_ss, KOHYA_SS_USED),
    "sd_scripts": Program("sd-scripts", sd_scripts, SD_SCRIPTS_USED),
    "onetrainer": Program("OneTrainer", lambda: _rows_of_table(onetrainer_config.TABLE), ONETRAINER_USED),
    "ai_toolkit": Program("AI Toolkit", lambda: _rows_of_table(ai_toolkit.TABLE), AI_TOOLKIT_USED),
    "simpletuner": Program("SimpleTuner", lambda: _rows_of_table(simpletuner.TABLE), SIMPLETUNER_USED),
}
PAGES = [PROJECT / "docs" / f"coming_from_{name}.md" for name in PROGRAMS]
