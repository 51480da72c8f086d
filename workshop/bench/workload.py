"""What the benchmark trains: a few images, created once in its folder, and the settings of a LoRA."""

from pathlib import Path
from typing import Any

from core.record.draws import python_random

IMAGES = 8


def make_images(folder: Path, size: int, count: int = IMAGES) -> Path:
    """Colored images of `size` x `size` with captions; random, so that they do not compress well."""
    from PIL import Image

    images = folder / f"images_{size}"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = images / f"{number:03d}.png"
        if path.is_file():
            continue
        noise = python_random(0, "bench image", size, number).randbytes(16 * 16 * 3)
        Image.frombytes("RGB", (16, 16), noise).resize((size, size), Image.Resampling.BICUBIC).save(path)
        path.with_suffix(".txt").write_text(f"image number {number} of a set", encoding="utf-8")
    return images


def job_values(model: Path, images: Path, size: int, steps: int, precision: str) -> dict[str, Any]:
    """The measured job: LoRA of rank 16 on U-Net and text encoder, batch 1, AdamW."""
    return {
        "model": {"base_model": str(model)},
        "dataset": {"folder": str(images), "resolution": size},
        "network": {"rank": 16, "alpha": 16.0, "train_text_encoder": True},
        "schedule": {"max_train_steps": steps, "seed": 1},
        "memory": {"mixed_precision": precision},
        "saving": {"output_name": "bench", "save_every_minutes": None},
        "logging": {"log_with": "none"},
    }
