"""docs/coming_from_kohya_ss.md and coming_from_sd_scripts.md: every field and option that the importers know, and what it is here."""

from __future__ import annotations

from functools import cache

from core.imports.projects.kohya_ss import FAMILIES, FIELDS, NETWORKS, PLUS
from core.imports.projects.options import SCRIPTS, options_of
from core.imports.projects.rules import SECRETS, Reading
from core.imports.projects.to_job import IGNORED, settings_of
from core.record.workspace import PROJECT
from core.settings.base import declared
from core.settings.elsewhere import ELSEWHERE
from core.settings.job import TrainJob
from core.settings.network import NETWORK_KINDS
from core.settings.presets.networks import settings_of_arguments

KOHYA_SS = PROJECT / "docs" / "coming_from_kohya_ss.md"
SD_SCRIPTS = PROJECT / "docs" / "coming_from_sd_scripts.md"
EXAMPLES = {
    "resolution": "512",
    "face_crop_aug_range": "1,2",
    "optimizer_args": ["weight_decay=0.1"],
    "in_json": "a/b.json",
}
# Fields that kohya_ss turns into something else first
OWN = {
    "sample_prompts": "`samples.sample_prompts`",
    "num_processes": "`memory.num_processes`",
    "sdxl": "`model.family`",
    "sdxl_checkbox": "`model.family`",
} | dict.fromkeys(
    ("image_folder", "train_dir", "caption_metadata_filename", "latent_metadata_filename"), "`dataset.sources`"
)
NETWORK = "a setting of the network type"  # network_args, which differ by type
OTHER_FAMILIES = ("anima_", "flux1_", "sd3_", "hunyuan_", "lumina_")
LENGTHS = {
    "max_train_steps": "",
    "max_train_epochs": "wins over max_train_steps",
    "epoch": "counts if max_train_steps and max_train_epochs are 0",
}

KOHYA_HEAD = """# Coming from kohya_ss

Written by `./launch.sh docs` from the tables of the importer and the exporter. [Coming from another trainer](coming_from.md) says
more of files, the report and the terminal.

1. Save your settings in kohya_ss (*Configuration*, *Save*), or take the `.json` next to a trained model.
2. Drop the file on **Train**. If the form shows another tab than it was saved on, choose it at *Read as*.
3. Read the report above the form, choose what it did not find on this machine, and press *Start training*.

## What is different here

- A field that a file does not have keeps in kohya_ss what the form held before. Here it has kohya_ss's default, and the report lists it.
- A 0 in most fields of the LoRA tab never reaches sd-scripts, which then takes its own default (`max_grad_norm` 0 trains with 1). The
  import does the same and says so; here 0 means 0 when you enter it.
- A learning rate of 0 freezes a part there. Here each part has a switch: `network.train_unet`, `network.train_text_encoder`.
- One choice replaces several fields: `network.kind` for LoRA_type, `memory.attention`, `memory.cache_latents`.
- Results differ from sd-scripts' in details, which *Compute as sd-scripts* undoes: [the list](sd_scripts.md).
- There is no FLUX, SD3, Lumina, HunyuanImage or Anima, no LECO tab and no inpainting training. Keys for wandb and Hugging Face are never
  imported; enter them on Tools.

## The way back

*Preset menu*, *Export for kohya_ss ...* on Train, or `python webui.py export PRESET --to kohya_ss --save FILE.json`, writes a preset of
the right tab: LoRA, Dreambooth (also for fine-tuning on folders), Finetuning (with a metadata file) or Textual Inversion. Open it on
that tab of kohya_ss, and choose the output folder there. The preset states every field. Options without a field, and values that a
field does not take (a rank above 512), are in *Additional parameters*. Words with spaces or quotation marks do not pass through
that field, so they are listed, as is all else that would not be the same. Several folders with settings of their own go into
*Dataset config*, which kohya_ss reads in *Dataset config file*.

## Its fields

The names in the file are nearly those on the form. Without an own tab in the second column, a field is on all four.

| kohya_ss | tabs | here | remarks |
|---|---|---|---|
"""
SD_HEAD = """# Coming from sd-scripts

Written by `./launch.sh docs` from the tables of the importer. [Coming from another trainer](coming_from.md) says more of files, the
report and the terminal.

1. Copy the training command with its options, or find your script (`.sh`, `.bat`, `.ps1`) or config file (`.toml`).
2. Paste the text or drop the file on **Train**. A config file does not say its script: choose it at *Read as*.
3. Read the report above the form, choose what it did not find on this machine, and press *Start training*.

## What is different here

- Options and file formats are the same where both have them. `--group.name` is the name here: `--noise.min_snr_gamma 5`.
- An imported job has sd-scripts' defaults (rank 4, learning rate 2e-6, 1600 steps), a new one Atelier's.
- Some arithmetic differs, by default where sd-scripts is questionable. *Compute as sd-scripts* or
  `model.compatibility` reproduces it: [the list](sd_scripts.md). No seed gives the same noise in both.
- Launching needs no accelerate: `memory.num_processes` starts several GPUs, `--device` chooses one.
- Only SD 1.x, 2.x and SDXL train here. Folders named `10_name` and [dataset configs](datasets.md) are read as they are.

## The way back

*Preset menu*, *Export for sd-scripts ...* on Train, or `python webui.py export PRESET --save FILE.toml`, writes a command line, a file for
`--config_file` and the folders for `--dataset_config`, and lists each setting that would not be the same there.

## Its options

| sd-scripts | here | remarks |
|---|---|---|
"""


@cache
def settings_by_option() -> dict[str, tuple[str, ...]]:
    """{option: the settings that it becomes}, found by importing each option alone."""
    by_option: dict[str, tuple[str, ...]] = {}
    for script in SCRIPTS.values():
        for name, option in script.options.items():
            plain = {"bool": True, "str": "a"}.get(option.type, 1)
            value = EXAMPLES.get(name) or next(iter(option.choices), None) or ([plain] if option.many else plain)
            read = Reading(script, {name: value}, frozenset([name]))
            of_name = next((names[name] for names, _ in settings_of(read) if name in names), ())
            by_option[name] = tuple(dict.fromkeys((*by_option.get(name, ()), *of_name)))
    return by_option


def render_sd_scripts() -> str:
    rows = []
    for name in sorted(options_of()):
        here, remark = _cells(name)
        rows.append(f"| `{name}` | {here} | {remark} |")
    return SD_HEAD + "\n".join(rows) + "\n"


def _cells(option: str) -> tuple[str, str]:
    """(the settings of an option or "-", a remark)."""
    if option in SECRETS:
        return "never imported", "enter it on Tools"
    if option == "network_args":
        return NETWORK, ""
    settings = [path for path in settings_by_option().get(option, ()) if not path.startswith("method.kind")]
    sentence = IGNORED[option][1] if option in IGNORED else ELSEWHERE.get(option, "") if not settings else ""
    return ", ".join(f"`{path}`" for path in settings) or "-", LENGTHS.get(option, sentence.removeprefix("remove it: "))


def render_kohya_ss() -> str:
    arguments = {
        part.lstrip("?").partition("=")[2] or part.lstrip("?")
        for part in " ".join((*(row["arguments"] for row in NETWORKS.values()), *PLUS)).split()
    }
    rows = []
    for name, row in FIELDS.items():
        options = [each for each in (name, *row.get("options", ())) if each in options_of()]
        known = options or name in arguments or name in OWN or {"taken", "idle"} & set(row)
        if name.startswith(OTHER_FAMILIES) or name in FAMILIES or not known:
            continue
        cells = [_cells(option) for option in options if name not in OWN]
        here = ", ".join(dict.fromkeys(text for text, _ in cells if text != "-")) or "-"
        here = OWN.get(name, here)
        remark = next((text for _, text in cells if text), "")
        if name in arguments and not cells:
            here, remark = _of_argument(name), "by network type"
        other = row.get("taken", row.get("idle", "")) if here == "-" else ""
        remark = LENGTHS.get(name, remark or other)
        rows.append(f"| `{name}` | {', '.join(row.get('tabs', ()))} | {here} | {remark} |")
    return KOHYA_HEAD + "\n".join(rows) + "\n"


def _of_argument(name: str) -> str:
    known = {entry.path: entry for entry in declared(TrainJob)}
    argument = {"LyCORIS_preset": "preset", "constrain": "constraint"}.get(name, name)
    paths = [path for kind in NETWORK_KINDS for path in settings_of_arguments(kind, {argument: "1"}, known)[0]]
    return ", ".join(f"`{path}`" for path in dict.fromkeys(paths)) or "-"
