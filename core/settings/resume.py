"""Settings of starting from a training state or at a later step."""

from core.settings.base import Settings, kohya_setting


class ResumeSettings(Settings):
    """Start from another run's training state or at a later step. An interrupted run can be resumed without these."""

    resume: str | None = kohya_setting(
        None,
        title="Resume from state",
        widget="folder",
        help="A run or one of its training states to load weights, optimizer and step from. With 'Resume from Hugging Face': owner/name/folder:revision:model. Empty starts from scratch.",
        names="state",
    )
    resume_from_huggingface: bool = kohya_setting(
        False,
        needs="resume",
        title="Resume from Hugging Face",
        help="Downloads the training state first. Written as owner/name/folder, followed by :revision and :model or :dataset where needed.",
    )
    initial_step: int | None = kohya_setting(
        None,
        within=(0, 10_000_000),
        unit="steps",
        help="Counts this many steps as done: learning rate, file names and numbers continue from there. Also works with initial LoRA weights. Empty is 0, or the step of the state.",
    )
    initial_epoch: int | None = kohya_setting(
        None,
        within=(1, 100_000),
        unit="epochs",
        help="Like 'Initial step', in epochs counted from 1: 3 counts two epochs as done.",
    )
    skip_until_initial_step: bool = kohya_setting(
        True,
        title="Skip to initial step",
        help="Continues with the images that follow the initial step. Off starts with the images of the first step.",
    )

    def summary(self) -> str:
        """Return where the run starts in one line."""
        parts = ["from a training state"] if self.resume else []
        if self.initial_step is not None:
            parts += [f"at step {self.initial_step}"]
        elif self.initial_epoch is not None:
            parts += [f"at epoch {self.initial_epoch}"]
        return ", ".join(parts) or "from the beginning"
