"""The size of pictures that a model was made for, from its header or configuration: no weights are read, no torch loaded."""

from __future__ import annotations

import re
from pathlib import Path

from core.dataset.buckets import LATENT_PIXELS
from core.families import family_of
from core.formats.detect import read_json
from core.formats.header import read_header, sniff


def stated_size(model: Path) -> tuple[int, int] | None:
    """(width, height) that a model in one file says it was trained at, which may be another than its family's."""
    if not model.is_file() or sniff(model) != "safetensors":
        return None
    stated = re.fullmatch(r"(\d{2,4})x(\d{2,4})", read_header(model)[1].get("modelspec.resolution", ""))
    size = (int(stated[1]), int(stated[2])) if stated else (0, 0)
    return size if all(64 <= side <= 4096 and side % 8 == 0 for side in size) else None


def trained_size(model: Path, family: str = "auto") -> tuple[int, int]:
    """(width, height): as the file states, else of the folder's U-Net, else of the family's published one."""
    if stated := stated_size(model):
        return stated
    published = Path(__file__).parent / family_of(model, family) / "configs"
    configs = [read_json(folder / "unet" / "config.json") for folder in (model, published) if folder.is_dir()]
    side = next(config["sample_size"] for config in configs if config and isinstance(config.get("sample_size"), int))
    return side * LATENT_PIXELS, side * LATENT_PIXELS
