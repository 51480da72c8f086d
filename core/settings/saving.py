"""What is kept of a run."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


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
    )
    save_every_n_epochs: int | None = setting(
        None, unit="epochs", title="Save every n epochs", kohya="save_every_n_epochs", help="Empty or 0 is off."
    )
    save_every_n_steps: int | None = setting(
        None, unit="steps", title="Save every n steps", kohya="save_every_n_steps", help="Empty or 0 is off."
    )
    save_every_minutes: float | None = setting(
        10.0,
        unit="minutes",
        title="Back up every n minutes",
        help="Saves what is needed to continue after a crash. Empty or 0 is off.",
    )
    save_n_evenly: int | None = setting(
        None,
        unit="files",
        title="Saves spread evenly",
        kohya="save_n_epoch_ratio",
        help="This many files over the whole run, the last at its end. Empty or 0 is off.",
    )
    save_last_n: int | None = setting(
        None,
        unit="files",
        title="Keep the last n",
        kohya="save_last_n_epochs",
        help="Older saved files are removed, the final one never. Empty or 0 keeps all.",
    )
    save_precision: Literal["fp32", "fp16", "bf16"] = setting(
        "fp16",
        title="Saved as",
        kohya="save_precision",
        help="fp16 is small and loads everywhere.",
    )
    copy_to: str | None = setting(
        None,
        title="Copy finished files to",
        widget="folder",
        help="A second folder, such as the LoRA folder of another program. Empty is off.",
    )
    training_comment: str | None = setting(
        None, max_length=2000, title="Comment", kohya="training_comment", help="Written into the file's metadata."
    )
