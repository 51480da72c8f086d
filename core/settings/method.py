"""The training method (LoRA, DreamBooth, fine-tuning, textual inversion ...) and its settings."""

from dataclasses import dataclass
from typing import Literal

from core.settings.base import NumberList, Settings, kohya_setting, setting

Changes = Literal["network", "model", "embedding", "side model", "inner network"]


@dataclass(frozen=True)
class MethodTraits:
    """Facts about a training method, so that rules, forecasts and the page never compare method names.

    base_trains     the base model's weights train: a whole model is saved, and settings for prior preservation and freezing apply
    full_size       the trained weights are as large as a model, so settings for full models apply: dtype, fused steps, ZeRO
    uses_network    adapters of the group `network` train on the frozen model
    as_folder       the result can be saved as a diffusers folder
    new_words       new tokens of the text encoders train
    control_images  each image needs a control image of the same name in `dataset.conditioning_data_dir`, each sample prompt one in --cn
    initial         dotted path of the setting that names weights to start from; "" for none
    """

    base_trains: bool = False
    full_size: bool = False
    uses_network: bool = False
    as_folder: bool = False
    new_words: bool = False
    control_images: bool = False
    initial: str = ""


TRAITS: dict[Changes, MethodTraits] = {
    "network": MethodTraits(uses_network=True, initial="network.network_weights"),
    "model": MethodTraits(base_trains=True, full_size=True, as_folder=True),
    "embedding": MethodTraits(new_words=True),
    "side model": MethodTraits(full_size=True, as_folder=True),
    "inner network": MethodTraits(),
}
OF_METHODS: dict[str, MethodTraits] = {}  # core/settings/methods.py registers


class MethodSettings(Settings):
    """Training method, text encoder training, prior preservation and EMA; the form shows those that the method uses."""

    kind: Literal["lora"] = setting(
        "lora",
        title="Training method",
        first="method",
        brief="LoRA is a good start.",
        level="shown",
        help="A LoRA is a small file that adds a subject or style to a model. DreamBooth and fine-tuning train the model itself and save a full checkpoint. Textual inversion trains an embedding of a few kilobytes.",
        source="Hu et al. 2021, arXiv:2106.09685; Ruiz et al. 2022, arXiv:2208.12242",
        costs="A full model takes several times the memory of a LoRA, and 2 to 10 GB per file.",
    )
    train_text_encoder: Literal["auto", "yes", "no"] = kohya_setting(
        "auto",
        title="Text encoder (full model)",
        labels={"yes": "train", "no": "frozen"},
        help="Whether the text encoder is trained; auto trains it for DreamBooth only. Training helps with a new trigger word but makes the model forget other words sooner.",
        costs="More memory and time: captions are encoded at every step.",
    )
    stop_text_encoder_training: int | None = kohya_setting(
        None,
        ge=0,
        unit="steps",
        title="Stop training the text encoder at step",
        hint="never",
        help="For full models and LoRAs: freezes the text encoder, or its part of the LoRA, from this step on; a third of the steps helps against overfitting. Empty trains it to the end.",
    )
    stop_text_encoder_epochs: int | None = setting(
        None,
        ge=0,
        unit="epochs",
        title="Stop training the text encoder after epoch",
        hint="never",
        source="OneTrainer",
        help="The same by epochs: freezes the text encoder, or its part of the LoRA, after this many epochs. Set the step or the epochs, not both.",
    )
    prior: Literal["images", "model"] = setting(
        "images",
        title="Prior preservation",
        labels={"images": "regularization images", "model": "frozen base model"},
        source="Ruiz et al. 2022, arXiv:2208.12242, section 3.3",
        help="Regularization images are in folders with that role. 'Frozen base model' needs none: the prior loss compares with its prediction for the class caption. The prior loss weight applies to both.",
        costs="The base model takes twice the time and, for full-model training, a second U-Net in memory (SD 1.5: 1.7 GB, SDXL: 5.1 GB in 16 bits).",
    )
    class_caption: str | None = setting(
        None,
        max_length=1000,
        help="The caption given to the frozen base model, such as: a dog. Empty uses the class of each folder.",
    )
    block_lr: NumberList = kohya_setting(
        None,
        title="Block learning rates",
        widget="numbers",
        help="A learning rate for each U-Net block, for full models: 23 numbers for SDXL, 25 for SD 1.x and 2.x, in the order embeddings, down, middle, up, last layer. 0 freezes a block.",
    )
    ema: bool = setting(
        False,
        title="EMA",
        source="Polyak and Juditsky 1992; Ho et al. 2020, arXiv:2006.11239",
        help="Keeps an exponential moving average of the trained weights, which is smoother than the last step. For every method: full models in runs of several thousand steps, LoRAs also in short runs with a lower decay.",
        costs="Four bytes per trained weight.",
    )
    ema_decay: float = setting(
        0.9999,
        needs="ema",
        ge=0,
        lt=1,
        title="EMA decay",
        help="Fraction of the average that each step keeps: 0.9999 averages over about 10,000 steps, 0.999 over about 1,000, 0.98 over about 50. 0.98 to 0.999 is usual for LoRAs.",
    )
    ema_warmup: bool = setting(
        True,
        needs="ema",
        title="EMA warmup",
        source="diffusers, EMAModel",
        help="Limits the decay to (1 + n) / (10 + n) at step n, so that early weights do not linger in short runs.",
    )
    ema_update_every: int = setting(
        1,
        needs="ema",
        within=(1, 1000),
        unit="steps",
        title="EMA update interval",
        help="Updates the average every n steps. Larger is faster and averages over the same number of steps.",
    )
    ema_device: Literal["device", "cpu"] = setting(
        "device",
        needs="ema",
        title="EMA device",
        labels={"device": "training device", "cpu": "CPU (RAM)"},
        help="RAM saves VRAM, but each update waits for a copy.",
    )
    ema_use: Literal["all", "files", "samples"] = setting(
        "all",
        needs="ema",
        title="Use EMA for",
        labels={"all": "everything", "files": "saved files", "samples": "samples and validation"},
        help="Where the averaged weights are used; the rest uses the current weights. Training states always hold both.",
    )

    def old_ema_weight(self, updates: int) -> float:
        """Return the weight of the old average in EMA update `updates`, counted from 1: ema_decay ** ema_update_every; with warmup (1 + n) /
        (10 + n) while that is less (diffusers, EMAModel)."""
        decay = self.ema_decay**self.ema_update_every
        return min(decay, (1 + updates) / (10 + updates)) if self.ema_warmup else decay

    @property
    def stops_text_encoder(self) -> bool:
        """Whether a step or an epoch is set at which text encoder training stops."""
        return self.stop_text_encoder_training is not None or self.stop_text_encoder_epochs is not None

    @property
    def traits(self) -> MethodTraits:
        """Traits of the chosen method."""
        return OF_METHODS[self.kind]

    def summary(self) -> str:
        """Return the method, text encoder training and EMA in one line."""
        parts = [self.label("kind")]
        parts += ["text encoder too"] if self.train_text_encoder == "yes" else []
        return ", ".join(parts + (["EMA"] if self.ema else []))
