"""Settings of the SDXL refiner, a second model that finishes an image."""

from core.settings.base import Settings, setting


class RefinerSettings(Settings):
    """SDXL's refiner: takes over from the base model for the last steps and adds fine detail."""

    refiner_checkpoint: str | None = setting(
        None,
        title="Refiner model",
        widget="model",
        names="path or name",
        holds="refiner",
        hint="off",
        source="Podell et al. 2023, arXiv:2307.01952",
        help="An SDXL refiner: a file, a folder or a name under models/. It continues the image without new noise; with hires fix, that of the second stage. LoRAs and embeddings are the base model's alone. Blank: off.",
        costs="With both models on the GPU about 6 GB more VRAM; offloaded, a second or two of moving for each batch.",
    )
    refiner_switch_at: float = setting(
        0.8,
        gt=0,
        lt=1,
        title="Switch at",
        source="A1111",
        help="Share of the noise that the base model removes before the refiner takes over. 0.8 leaves it the last fifth of the steps; lower values change more.",
    )
    aesthetic_score: float = setting(
        6.0,
        within=(0, 10),
        help="The score that the refiner reads with the prompt, as its training images were rated. 6 is usual.",
    )
    negative_aesthetic_score: float = setting(
        2.5,
        within=(0, 10),
        help="The score that it reads with the negative prompt. 2.5 is usual.",
    )
