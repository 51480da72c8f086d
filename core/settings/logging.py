"""Settings of trackers and console output, in addition to the run's journal."""

from typing import Literal

from core.settings.base import Settings, kohya_setting


class LoggingSettings(Settings):
    """Trackers and console output."""

    log_with: Literal["tensorboard", "wandb", "all", "none"] = kohya_setting(
        "tensorboard",
        title="Trackers",
        labels={"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "all": "both", "none": "none"},
        help="TensorBoard logs are saved in the run's logs folder and can be opened from Monitor. Weights & Biases needs the wandb package; its key comes from WANDB_API_KEY or the keys saved on this machine.",
        names="tracker",
    )
    logging_dir: str | None = kohya_setting(
        None,
        title="Logging folder",
        widget="folder",
        help="Logs go into a new subfolder named by prefix and time. Empty is the run's logs folder.",
        names="path",
    )
    log_prefix: str | None = kohya_setting(
        None,
        max_length=100,
        help="Put before the time in the name of the log folder.",
        names="part",
        needs="logging_dir",
    )
    log_tracker_name: str | None = kohya_setting(
        None,
        max_length=200,
        title="Tracker name",
        help="The wandb project, or a folder in TensorBoard. Empty is sd-scripts' name of the method: network_train, dreambooth, finetuning or textual_inversion.",
        names="part",
    )
    wandb_run_name: str | None = kohya_setting(
        None,
        max_length=200,
        title="wandb run name",
        help="Empty lets wandb choose one.",
        needs="log_with=wandb, all",
    )
    log_tracker_config: str | None = kohya_setting(
        None,
        title="Tracker config file",
        widget="file",
        help="A .toml with a table [wandb] or [tensorboard] that is passed to the tracker when it starts, instead of the run name.",
        names="tracker settings",
    )
    log_config: bool = kohya_setting(
        False,
        title="Log all settings",
        help="Sends the settings of the run to the trackers, except local files and folders. Keys are never included.",
    )
    console_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = kohya_setting(
        "INFO",
        section="Terminal",
        labels={"DEBUG": "debug", "INFO": "info", "WARNING": "warning", "ERROR": "error", "CRITICAL": "nothing"},
        help="How much training prints on the command line; debug includes messages of libraries. The run's own log is always complete.",
    )
    console_log_file: str | None = kohya_setting(
        None,
        widget="file",
        help="Writes console messages to this file instead; the progress bar stays in the terminal.",
        names="path",
    )
    console_log_simple: bool = kohya_setting(
        False,
        title="Simple console output",
        help="Prints plain lines instead of a progress bar. For log files and consoles that cannot redraw a line.",
    )

    def summary(self) -> str:
        """Return the trackers, and whether they get the settings, in one line."""
        label = self.label("log_with")
        return f"{label}, with the settings" if self.log_config and self.log_with != "none" else label
