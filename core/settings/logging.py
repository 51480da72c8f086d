"""Where numbers are written besides the run's own journal."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class LoggingSettings(Settings):
    """Trackers, and what the terminal says."""

    log_with: Literal["tensorboard", "wandb", "all", "none"] = setting(
        "tensorboard",
        title="Also write",
        kohya="log_with",
        labels={
            "tensorboard": "TensorBoard files",
            "wandb": "to Weights & Biases",
            "all": "both",
            "none": "nothing",
        },
        help="TensorBoard files lie in the run's logs folder and can be opened from Monitor. For wandb its package must be installed; the key comes from WANDB_API_KEY or from the keys of this machine.",
        names="tracker",
    )
    logging_dir: str | None = setting(
        None,
        title="Folder of the logs",
        widget="folder",
        kohya="logging_dir",
        help="Logs go into a folder of their own in there, named by prefix and time. Empty is the run's logs folder.",
        names="path",
    )
    log_prefix: str | None = setting(
        None,
        max_length=100,
        title="Prefix",
        kohya="log_prefix",
        help="Stands before the time in the name of the logs' folder.",
        names="part",
    )
    log_tracker_name: str | None = setting(
        None,
        max_length=200,
        title="Tracker's name",
        kohya="log_tracker_name",
        help="The project at wandb, a folder in TensorBoard's. Empty is sd-scripts' name of the method: network_train, dreambooth, finetuning or textual_inversion.",
        names="part",
    )
    wandb_run_name: str | None = setting(
        None, max_length=200, title="Run's name at wandb", kohya="wandb_run_name", help="Empty lets wandb choose one."
    )
    log_tracker_config: str | None = setting(
        None,
        title="Trackers' own settings",
        widget="file",
        kohya="log_tracker_config",
        help="A .toml with a table for each tracker, [wandb] or [tensorboard]: given to it as it begins, in place of the run's name.",
        names="tracker settings",
    )
    log_config: bool = setting(
        False,
        title="Write the settings too",
        kohya="log_config",
        help="Sends all settings of the run to the trackers, but for folders and files of this machine. Keys are never among them.",
    )
    console_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = setting(
        "INFO",
        title="Say in the terminal",
        kohya="console_log_level",
        labels={
            "DEBUG": "everything",
            "INFO": "what is done",
            "WARNING": "warnings and errors",
            "ERROR": "errors",
            "CRITICAL": "nothing",
        },
        help="How much a training on the command line says; everything includes what libraries say. The journal always has it all.",
    )
    console_log_file: str | None = setting(
        None,
        title="Into a file instead",
        widget="file",
        kohya="console_log_file",
        help="What the terminal would say goes into this file; the progress bar stays.",
        names="path",
    )
    console_log_simple: bool = setting(
        False,
        title="Plain lines",
        kohya="console_log_simple",
        help="No progress bar that draws over itself: for consoles that show every line, and for files.",
    )
