"""Settings of VAE slicing, offloading and models kept in memory."""

from typing import Literal

from core.settings.base import Settings, kohya_setting, setting


class GenerationMemorySettings(Settings):
    """VAE slicing, offloading, and models kept in memory."""

    vae_slices: int | None = kohya_setting(
        None,
        within=(1, 64),
        unit="strips",
        title="VAE slices",
        hint="auto",
        help="Encodes and decodes images in this many horizontal strips, which takes less memory. Each norm sees the whole image, so there are no seams. Empty slices only images that do not fit; 1 is off.",
        costs="4 strips take about half the memory of decoding and 15 to 35 % more time.",
    )
    offload: Literal["auto", "off", "parts", "layers"] = setting(
        "auto",
        title="Offload to RAM",
        labels={"parts": "VAE and text encoders", "layers": "U-Net too, layer by layer"},
        help="What is kept in RAM while the GPU does not need it. Auto picks the fastest that fits. Layer by layer needs the least VRAM, for GPUs with 4 GB, and is the slowest. With a refiner, base model and refiner are on the GPU in turn. The images are the same.",
    )
    keep_models_gb: float | None = setting(
        None,
        within=(0, 4096),
        unit="GB",
        title="Keep models up to",
        hint="half of the memory",
        help="Models stay loaded for the next images until this is full; the least recently used are unloaded first. Empty is half of the VRAM, without a GPU half of the RAM. 0 keeps only the last one.",
    )
