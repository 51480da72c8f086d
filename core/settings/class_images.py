"""Regularization images: what the base model draws of a class, to be shown beside the images of one subject."""

from __future__ import annotations

from core.settings.base import Settings, setting
from core.settings.samples import SAMPLER_LABELS, SAMPLERS


class ClassImageSettings(Settings):
    """Regularization images made with the base model, for who has none."""

    class_word: str | None = setting(
        None,
        title="Class",
        level="shown",
        help="What the subject is: dog, woman, house. Empty takes the class of the first folder that has one.",
    )
    folder: str | None = setting(
        None,
        title="Folder",
        level="shown",
        widget="folder",
        help="Where the images go. Empty is a folder named after the class among the datasets of this program.",
        names="path",
    )
    number: int | None = setting(
        None,
        ge=1,
        le=10000,
        unit="images",
        title="How many",
        level="shown",
        help="Only the missing ones are made. Empty is as many as an epoch has views of training images, up to 200.",
    )
    prompt: str = setting(
        "a photo of {class}",
        min_length=1,
        title="Prompt",
        level="shown",
        widget="text",
        help="{class} stands for the class.",
    )
    negative_prompt: str = setting("", title="Negative prompt", level="shown", widget="text", help="What not to draw.")
    caption: str = setting(
        "{class}",
        title="Caption",
        widget="text",
        help="Written beside each image; {class} and {prompt} are replaced. Empty writes no file, and the folder's class is used.",
    )
    seed: int = setting(
        1,
        ge=0,
        le=2**32 - 1,
        title="Seed",
        level="shown",
        help="Each image has a seed of its own that follows from this one, so the same settings make the same images.",
    )
    steps: int = setting(30, ge=1, le=1000, unit="steps", title="Steps", help="More steps draw finer and take longer.")
    guidance_scale: float | None = setting(
        None,
        ge=0,
        le=50,
        title="Guidance",
        help="How strictly the prompt is followed. Empty is the model's own: 4 for the starter, 7.5 for others. 1 or less switches guidance off.",
    )
    sampler: SAMPLERS = setting("ddim", title="Sampler", labels=SAMPLER_LABELS, help="The way from noise to image.")
    batch: int | None = setting(
        None,
        ge=1,
        le=64,
        unit="images",
        title="Drawn at once",
        help="Images of one size drawn together. Empty is what the machine has room for.",
        costs="Memory grows with it.",
    )
