"""What is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from core.settings.base import Settings, setting

WHOLE_MODEL = ("dreambooth", "fine_tune")  # kinds that change the model itself, and save a whole one


class MethodSettings(Settings):
    """The kind of training. The form reshapes itself by it."""

    kind: Literal["lora", "dreambooth", "fine_tune", "embedding"] = setting(
        "lora",
        title="What to train",
        level="shown",
        labels={
            "lora": "LoRA: a small file beside the model",
            "dreambooth": "DreamBooth: the model, on one subject",
            "fine_tune": "Fine-tune: the model, on many images",
            "embedding": "Textual inversion: a new word",
        },
        help="A LoRA is a small file that adds a subject or a style to a model without changing the model itself. DreamBooth and fine-tune change the model, and save a whole one. Textual inversion trains a word, a few kilobytes.",
        source="Hu et al. 2021, arXiv:2106.09685; Ruiz et al. 2022, arXiv:2208.12242",
        costs="A whole model takes several times the memory of a LoRA, and 2 to 10 GB a file.",
    )
    train_text_encoder: Literal["auto", "yes", "no"] = setting(
        "auto",
        title="Whole model: text encoder",
        kohya="train_text_encoder",
        labels={"auto": "as usual", "yes": "trained", "no": "left as it is"},
        help="Whether the part that reads trains too. As usual: DreamBooth trains it, fine-tune does not. It helps with a new word, and forgets other words sooner.",
        costs="More memory and time: captions are encoded at every step.",
    )
    stop_text_encoder_training: int | None = setting(
        None,
        ge=0,
        unit="steps",
        title="Text encoder trains until step",
        kohya="stop_text_encoder_training",
        help="From this step on it stays as it is by then. A third of the steps keeps a word from being overfitted. Empty: to the end.",
    )
    prior: Literal["images", "model"] = setting(
        "images",
        title="What keeps the class",
        labels={
            "images": "regularization images, if any",
            "model": "the untrained model",
        },
        source="Ruiz et al. 2022, arXiv:2208.12242, section 3.3",
        help="Regularization images are folders of the regularization role. Without them, the untrained model says for each image what it would make of the class caption, and the training one is held to that; the prior's weight counts it.",
        costs="The second needs no images, but twice the time, and for a whole model a second U-Net in memory (SD 1.5: 1.7 GB, SDXL: 5.1 GB in 16 bits).",
    )
    class_caption: str | None = setting(
        None,
        max_length=1000,
        title="Class caption",
        help="What the untrained model is asked for, such as: a dog. Empty is the class word of each folder.",
    )
    block_lr: str | None = setting(
        None,
        title="Whole model: rates by block",
        kohya="block_lr",
        widget="numbers",
        help="A learning rate for each block of the U-Net instead of its rate: 23 numbers for SDXL (25 for SD 1.x and 2.x), embeddings first, then down, middle, up and the last layer. 0 leaves a block as it is.",
    )
    ema: bool = setting(
        False,
        title="Average of the weights",
        source="Polyak and Juditsky 1992; Ho et al. 2020, arXiv:2006.11239",
        help="Keeps a slow average (EMA) of the trained weights, which is smoother than the last step. For whole models (DreamBooth, fine-tune); a LoRA or embedding has none. Worth it above some thousand steps.",
        costs="Four bytes for each trained weight.",
    )
    ema_decay: float = setting(
        0.9999,
        ge=0,
        lt=1,
        title="Average: decay",
        help="Share of the average that each step keeps: 0.9999 looks back about 10000 steps, 0.999 about 1000.",
    )
    ema_warmup: bool = setting(
        True,
        title="Average: short memory at first",
        source="diffusers, EMAModel",
        help="Looks back only as far as there are steps: decay (1 + n) / (10 + n) while that is less.",
    )
    ema_update_every: int = setting(
        1,
        ge=1,
        le=1000,
        unit="steps",
        title="Average: taken every n steps",
        help="Less often is quicker. The average looks back as far as before.",
    )
    ema_device: Literal["device", "cpu"] = setting(
        "device",
        title="Average: kept",
        labels={"device": "on the training device", "cpu": "in RAM"},
        help="In RAM it takes none of the card's; each time it is taken then waits for the copy.",
    )
    ema_use: Literal["all", "files", "samples"] = setting(
        "all",
        title="Average: used for",
        labels={
            "all": "everything",
            "files": "saved models",
            "samples": "samples and validation",
        },
        help="Saved models, samples and validation, or some of these: the others show the weights as they are. What is needed to continue always holds both.",
    )

    @field_validator("block_lr", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """[1e-5, 0] is taken as "1e-05,0": what is no number is said by the rules."""
        if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
            return ",".join(f"{item:g}" for item in value)
        return value

    @property
    def whole_model(self) -> bool:
        """Whether the model itself trains."""
        return self.kind in WHOLE_MODEL

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders of a whole model train, unless their rate is 0."""
        wanted = self.kind == "dreambooth" if self.train_text_encoder == "auto" else self.train_text_encoder == "yes"
        return wanted and self.stop_text_encoder_training != 0
