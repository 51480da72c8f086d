"""Settings of the checkpoints and training states that a run saves."""

from typing import Literal

from core.record.units import number_text, period_text
from core.settings.base import SAME, Settings, every, kohya_setting, setting

# save_model_as -> file extension; a folder has none
EXTENSIONS = {"safetensors": ".safetensors", "ckpt": ".ckpt", "pt": ".pt", "diffusers": "", "diffusers_safetensors": ""}


class SavingSettings(Settings):
    """Names, intervals and formats of checkpoints and training states. In "every n" and "keep" fields, empty and 0 are off."""

    output_name: str = kohya_setting(
        "my_lora",
        min_length=1,
        max_length=100,
        first="result",
        brief="File name of the result.",
        level="shown",
        help="Name of the final file, without extension.",
        names="part",
        recorded=SAME,
    )
    save_every_n_epochs: int | None = kohya_setting(
        None, unit="epochs", hint="off", help="Empty or 0 is off.", level="shown"
    )
    save_every_n_steps: int | None = kohya_setting(
        None, unit="steps", hint="off", help="Empty or 0 is off.", level="shown"
    )
    checkpoint_every_minutes: float | None = setting(
        None,
        unit="minutes",
        title="Save every n minutes",
        hint="off",
        help="Saves a checkpoint when this many minutes have passed since the last one, besides those at epochs and steps. Empty or 0 is off.",
    )
    save_n_evenly: int | None = setting(
        None,
        unit="checkpoints",
        title="Evenly spaced checkpoints",
        hint="off",
        level="shown",
        help="Saves this many checkpoints over the run, the last at its end. Empty or 0 is off.",
    )
    save_n_epoch_ratio: int | None = kohya_setting(
        None,
        unit="checkpoints",
        title="Min epoch checkpoints",
        hint="off",
        section="Checkpoints",
        help="Saves at epoch ends, at an interval that gives at least this many checkpoints. Empty or 0 is off.",
    )
    save_last_n: int | None = setting(
        None,
        unit="checkpoints",
        title="Keep last n checkpoints",
        hint="keep all",
        help="Deletes older checkpoints, never the final one. An epoch checkpoint and a step checkpoint of the same step count once. Empty or 0 keeps all.",
    )
    save_last_n_epochs: int | None = kohya_setting(
        None,
        unit="checkpoints",
        title="Keep last n (epochs)",
        hint="keep all",
        help="Like 'Keep last n checkpoints', for epoch checkpoints only. Empty or 0 keeps all.",
    )
    save_last_n_steps: int | None = kohya_setting(
        None,
        unit="steps",
        title="Keep last n (steps)",
        hint="keep all",
        help="A number of steps, not of checkpoints: with a checkpoint every 10 steps, 30 keeps those of the last 30 steps. Empty or 0 keeps all.",
    )
    save_every_minutes: float | None = setting(
        10.0,
        unit="minutes",
        title="Back up every n minutes",
        hint="off",
        section="Training states",
        help="Saves a training state to resume from after a crash. Empty or 0 is off.",
    )
    save_state: bool = kohya_setting(
        True,
        title="Save training state",
        help="Saves a training state with every checkpoint and at the end. Off leaves only the timed backups, and a killed run loses the steps since the last one.",
    )
    save_state_on_train_end: bool = kohya_setting(
        True, title="Save state at end", help="Needed to continue training a finished run."
    )
    save_last_n_states: int = setting(
        2,
        within=(1, 1000),
        unit="states",
        title="Keep last n states",
        help="Older states are deleted. With 2, one is left if the newest is damaged.",
    )
    save_last_n_epochs_state: int | None = kohya_setting(
        None,
        unit="checkpoints",
        title="Keep states (epochs)",
        hint="off",
        help="Keeps the states of the last n epoch checkpoints, and those in between, instead of a fixed number. Without epoch checkpoints it counts epochs. Empty or 0 is off.",
    )
    save_last_n_steps_state: int | None = kohya_setting(
        None,
        unit="steps",
        title="Keep states (steps)",
        hint="off",
        help="Keeps the states of the last n steps instead of a fixed number. Empty or 0 is off.",
    )
    save_precision: Literal["fp32", "fp16", "bf16"] = kohya_setting(
        "fp16", level="shown", help="Dtype of the saved weights. fp16 is small and loads everywhere."
    )
    save_model_as: Literal["safetensors", "ckpt", "pt", "diffusers", "diffusers_safetensors", "source"] = setting(
        "safetensors",
        section="File format",
        kohya="save_model_as, use_safetensors",
        labels={
            "safetensors": ".safetensors",
            "ckpt": ".ckpt",
            "pt": ".pt",
            "diffusers": "diffusers (.bin)",
            "diffusers_safetensors": "diffusers (.safetensors)",
            "source": "same as base model",
        },
        help=".safetensors loads everywhere and cannot contain code; .ckpt, .pt and .bin are Python pickles and have no metadata. Diffusers folders are for full models and ControlNets, 'same as base model' for full models.",
    )
    sd2_projections: Literal["matrices", "convolutions"] = setting(
        "matrices",
        title="SD 2.x projections",
        labels={"matrices": "linear (diffusers)", "convolutions": "1x1 conv (sd-scripts)"},
        help="How a LoRA for SD 2.x stores proj_in and proj_out. diffusers reads linear layers only. sd-scripts' network_weights rejects them with a single-file base model, where these layers are 1x1 convolutions. Atelier reads both.",
    )
    copy_to: str | None = setting(
        None,
        title="Copy finished files to",
        hint="off",
        level="shown",
        widget="folder",
        help="A second folder, such as the models folder of another program. Blank: off.",
        names="path",
    )
    training_comment: str | None = kohya_setting(
        None, max_length=2000, help="Written to the file's metadata.", recorded=SAME
    )
    no_metadata: bool = kohya_setting(
        False,
        title="Minimal metadata",
        help="Leaves out settings and dataset details; keeps only what other programs need to load the file.",
    )
    metadata_title: str | None = kohya_setting(
        None, max_length=500, title="Title", hint="output name", section="Metadata", help="Empty is the output name."
    )
    metadata_author: str | None = kohya_setting(None, max_length=500, title="Author", help="Who made the model.")
    metadata_description: str | None = kohya_setting(
        None, max_length=10000, title="Description", help="What the model is for."
    )
    metadata_license: str | None = kohya_setting(
        None, max_length=500, title="License", help="What others may do with the model."
    )
    metadata_tags: str | None = kohya_setting(
        None, max_length=2000, title="Tags", help="Keywords, separated by commas."
    )
    metadata_usage_hint: str | None = kohya_setting(
        None, max_length=2000, title="Usage hint", help="How to use the model."
    )
    metadata_thumbnail: str | None = kohya_setting(
        None,
        title="Thumbnail",
        widget="file",
        help="An image of at most 1 MB that is embedded in the metadata.",
        names="path",
    )
    metadata_trigger_phrase: str | None = kohya_setting(
        None,
        max_length=2000,
        title="Trigger phrase",
        help="What to write in a prompt. Empty uses the trigger word and the folders' identifiers.",
    )
    metadata_merged_from: str | None = kohya_setting(
        None, max_length=2000, title="Merged from", help="Names of the models it was merged from."
    )
    metadata_preprocessor: str | None = kohya_setting(
        None, max_length=500, title="Preprocessor", help="For control models."
    )
    metadata_is_negative_embedding: bool = kohya_setting(
        False, title="Negative embedding", help="Marks an embedding that belongs in the negative prompt."
    )

    def summary(self) -> str:
        """Return when and how checkpoints and training states are saved in one line."""
        periods = ((self.save_every_n_epochs, "epoch"), (self.save_every_n_steps, "step"))
        parts = [period_text(period, unit) for period, unit in periods if period and every(period)]
        checkpoints = every(self.checkpoint_every_minutes)
        parts += [f"every {number_text(checkpoints)} min"] if checkpoints is not None else []
        parts += [f"{self.save_n_evenly} spread evenly"] if every(self.save_n_evenly) else []
        parts += [f"at least {self.save_n_epoch_ratio} at epoch ends"] if every(self.save_n_epoch_ratio) else []
        parts = parts or ["at the end"]
        parts += [f"keep last {self.save_last_n}"] if every(self.save_last_n) else []
        minutes = every(self.save_every_minutes)
        parts += [f"training state every {number_text(minutes)} min"] if minutes is not None else []
        parts += [self.save_precision] + ([f".{self.save_model_as}"] if self.save_model_as in ("ckpt", "pt") else [])
        return ", ".join(parts + (["copied to a second folder"] if self.copy_to else []))
