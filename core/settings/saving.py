"""What is kept of a run."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting

# save_model_as -> the end of a file's name; a folder has none
EXTENSIONS = {"safetensors": ".safetensors", "ckpt": ".ckpt", "pt": ".pt", "diffusers": "", "diffusers_safetensors": ""}


class SavingSettings(Settings):
    """Names, moments and forms of the saved files. In every "every n" and "keep" field, empty and 0 are off."""

    output_name: str = setting(
        "my_lora",
        min_length=1,
        max_length=100,
        title="Output name",
        level="shown",
        kohya="output_name",
        help="Name of the finished file, without extension.",
        names="part",
    )
    save_every_n_epochs: int | None = setting(
        None,
        unit="epochs",
        title="Save every n epochs",
        kohya="save_every_n_epochs",
        help="Empty or 0 is off.",
        level="shown",
    )
    save_every_n_steps: int | None = setting(
        None,
        unit="steps",
        title="Save every n steps",
        kohya="save_every_n_steps",
        help="Empty or 0 is off.",
        level="shown",
    )
    save_n_evenly: int | None = setting(
        None,
        unit="files",
        title="Saves spread evenly",
        level="shown",
        help="This many files over the whole run, the last at its end. Empty or 0 is off.",
    )
    save_n_epoch_ratio: int | None = setting(
        None,
        unit="files",
        title="Saves at epoch ends, at least n",
        kohya="save_n_epoch_ratio",
        help="Saves at the end of every so many epochs that there are at least this many files. Empty or 0 is off.",
    )
    save_last_n: int | None = setting(
        None,
        unit="saves",
        title="Keep the last n",
        help="Older saved files are removed, the final one never. An epoch's file and a step's of the same moment count once. Empty or 0 keeps all.",
    )
    save_last_n_epochs: int | None = setting(
        None,
        unit="files",
        title="Keep the last n epoch files",
        kohya="save_last_n_epochs",
        help="Counts files saved at epoch ends alone. Empty or 0 keeps all.",
    )
    save_last_n_steps: int | None = setting(
        None,
        unit="steps",
        title="Keep step files of the last n steps",
        kohya="save_last_n_steps",
        help="A number of steps, not of files: with a file every 10 steps, 30 keeps those of the last 30 steps. Empty or 0 keeps all.",
    )
    save_every_minutes: float | None = setting(
        10.0,
        unit="minutes",
        title="Back up every n minutes",
        help="Saves what is needed to continue after a crash. Empty or 0 is off.",
    )
    save_state: bool = setting(
        True,
        title="A state with every file",
        kohya="save_state",
        help="Saves what is needed to continue beside every saved file, and at the end. Off leaves the back-ups by minutes; a kill then loses the steps since the last.",
    )
    save_state_on_train_end: bool = setting(
        True,
        title="A state at the end",
        kohya="save_state_on_train_end",
        help="Needed to train a finished run further.",
    )
    save_last_n_states: int = setting(
        2,
        ge=1,
        le=1000,
        unit="states",
        title="States kept",
        help="Older ones are removed. Two, so that a damaged newest one leaves another.",
    )
    save_last_n_epochs_state: int | None = setting(
        None,
        unit="saves",
        title="States of the last n epoch saves",
        kohya="save_last_n_epochs_state",
        help="Keeps the states of so many epoch saves, and those in between, instead of a number of them. Without epoch saves it counts epochs. Empty or 0 is off.",
    )
    save_last_n_steps_state: int | None = setting(
        None,
        unit="steps",
        title="States of the last n steps",
        kohya="save_last_n_steps_state",
        help="Keeps the states of so many steps instead of a number of them. Empty or 0 is off.",
    )
    save_precision: Literal["fp32", "fp16", "bf16"] = setting(
        "fp16",
        title="Saved as",
        level="shown",
        kohya="save_precision",
        help="fp16 is small and loads everywhere.",
    )
    save_model_as: Literal["safetensors", "ckpt", "pt", "diffusers", "diffusers_safetensors", "source"] = setting(
        "safetensors",
        title="Form of the file",
        kohya="save_model_as, use_safetensors",
        labels={
            "safetensors": "one .safetensors file",
            "ckpt": "one .ckpt file",
            "pt": "one .pt file",
            "diffusers": "diffusers folder, .bin",
            "diffusers_safetensors": "diffusers folder",
            "source": "as the base model is",
        },
        help="safetensors loads everywhere and cannot hold programs, in a diffusers folder too; .ckpt, .pt and .bin are Python pickles and have no metadata. Folders, and the form of the base model, are for whole models.",
    )
    sd2_projections: Literal["matrices", "convolutions"] = setting(
        "matrices",
        title="SD 2.x projections",
        labels={"matrices": "matrices (diffusers)", "convolutions": "1x1 conv (sd-scripts)"},
        help="How a LoRA for SD 2.x holds proj_in and proj_out. diffusers reads matrices only. sd-scripts' network_weights refuses them with a base model in a single file, where these layers are 1x1 convolutions. Atelier reads both.",
    )
    copy_to: str | None = setting(
        None,
        title="Copy finished files to",
        level="shown",
        widget="folder",
        help="A second folder, such as the models folder of another program. Empty is off.",
        names="path",
    )
    training_comment: str | None = setting(
        None, max_length=2000, title="Comment", kohya="training_comment", help="Written into the file's metadata."
    )
    no_metadata: bool = setting(
        False,
        title="Little metadata",
        kohya="no_metadata",
        help="Leaves out everything about settings and images but what other programs need to load the file.",
    )
    metadata_title: str | None = setting(
        None, max_length=500, title="Title", kohya="metadata_title", help="Empty is the output name."
    )
    metadata_author: str | None = setting(
        None, max_length=500, title="Author", kohya="metadata_author", help="Who made it."
    )
    metadata_description: str | None = setting(
        None, max_length=10000, title="Description", kohya="metadata_description", help="What it is for."
    )
    metadata_license: str | None = setting(
        None, max_length=500, title="License", kohya="metadata_license", help="What others may do with it."
    )
    metadata_tags: str | None = setting(
        None,
        max_length=2000,
        title="Tags",
        kohya="metadata_tags",
        help="Words to find it by, with commas between them.",
    )
    metadata_usage_hint: str | None = setting(
        None, max_length=2000, title="Usage hint", kohya="metadata_usage_hint", help="How it is best used."
    )
    metadata_thumbnail: str | None = setting(
        None,
        title="Thumbnail",
        widget="file",
        kohya="metadata_thumbnail",
        help="An image, at most 1 MB, that is put into the file's metadata.",
        names="path",
    )
    metadata_trigger_phrase: str | None = setting(
        None,
        max_length=2000,
        title="Trigger words",
        kohya="metadata_trigger_phrase",
        help="What to write in a prompt. Empty takes the trigger word and the identifiers of the folders.",
    )
    metadata_merged_from: str | None = setting(
        None, max_length=2000, title="Merged from", kohya="metadata_merged_from", help="Names of models it was made of."
    )
    metadata_preprocessor: str | None = setting(
        None, max_length=500, title="Preprocessor", kohya="metadata_preprocessor", help="For control models."
    )
    metadata_is_negative_embedding: bool = setting(
        False,
        title="For negative prompts",
        kohya="metadata_is_negative_embedding",
        help="Says that a trained word belongs into the negative prompt.",
    )
