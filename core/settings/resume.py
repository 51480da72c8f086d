"""Where a training begins, when not at the beginning."""

from __future__ import annotations

from core.settings.base import Settings, setting


class ResumeSettings(Settings):
    """From a state of another run, or from a later step. A run that was interrupted needs none of this: it is continued."""

    resume: str | None = setting(
        None,
        title="Begin from a state",
        widget="folder",
        kohya="resume",
        help="A run, or one of its state folders: weights, optimizer and step are taken from it. With the next switch an address on the hub, owner/name/folder:revision:model. Empty begins anew.",
        names="state",
    )
    resume_from_huggingface: bool = setting(
        False,
        title="The state lies on the hub",
        kohya="resume_from_huggingface",
        help="Fetches it first. Written as owner/name/folder, with :revision and :model or :dataset behind it where needed.",
    )
    initial_step: int | None = setting(
        None,
        ge=0,
        le=10_000_000,
        unit="steps",
        title="Begin at step",
        kohya="initial_step",
        help="Counts the first so many steps as done: learning rate, names and numbers of files go on from there. Also with weights of an earlier LoRA. Empty is 0, or the step of the state.",
    )
    initial_epoch: int | None = setting(
        None,
        ge=1,
        le=100_000,
        unit="epochs",
        title="Begin at epoch",
        kohya="initial_epoch",
        help="The same by epoch, counted from 1: 3 counts two epochs as done.",
    )
    skip_until_initial_step: bool = setting(
        True,
        title="Images go on from there too",
        kohya="skip_until_initial_step",
        help="On shows the images that come after the beginning step. Off shows those of the first step first.",
    )
