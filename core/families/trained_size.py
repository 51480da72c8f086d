"""The resolution and guidance scale that a model was trained for, from its header or folder; without weights or torch."""

import re
from pathlib import Path

from core.families.layouts import layout_of
from core.families.locate import GENERATED, family_of
from core.formats.detect import read_json
from core.formats.models.extra import GUIDANCE, STATED, extra_file
from core.formats.tensors.header import read_header, sniff
from core.record.stamps import cached_until_changed

USUAL_GUIDANCE = 7.5


def default_guidance(model: Path) -> float:
    """Return the guidance scale stated in a model's folder or metadata, else 7.5."""
    stated = (read_json(model / STATED) or {}) if model.is_dir() else {}
    value = stated.get("guidance_scale", _guidance_in_metadata(model))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 50:
        return float(value)
    return USUAL_GUIDANCE


def _guidance_in_metadata(model: Path) -> float | None:
    """Return the guidance scale in a model's metadata; None if it is missing or not a plain number."""
    file = extra_file(model)
    if file is None or not file.is_file() or sniff(file) != "safetensors":
        return None
    text = _stated_guidance(file)
    return float(text) if re.fullmatch(r"\d{1,2}(\.\d+)?", text) else None


@cached_until_changed(64, missing="")  # a checkpoint's header is long
def _stated_guidance(file: Path) -> str:
    """Return the guidance scale in a file's metadata as text; "" without one."""
    return read_header(file)[1].get(GUIDANCE, "")


def stated_size(model: Path) -> tuple[int, int] | None:
    """Return (width, height) of the training resolution in a safetensors file's metadata; None if it is missing or invalid."""
    if not model.is_file() or sniff(model) != "safetensors":
        return None
    stated = re.fullmatch(r"(\d{2,4})x(\d{2,4})", read_header(model)[1].get("modelspec.resolution", ""))
    size = (int(stated[1]), int(stated[2])) if stated else (0, 0)
    return size if all(64 <= side <= 4096 and side % 8 == 0 for side in size) else None


def trained_size(model: Path, family: str = "auto") -> tuple[int, int]:
    """Return (width, height) of a model's training resolution in pixels.

    As stated in the file, else the `sample_size` of the folder's denoiser, else the family's. Raises ProblemsError for an unknown family.
    """
    if stated := stated_size(model):
        return stated
    layout = layout_of(family_of(model, family, GENERATED))
    folders = [folder for folder in (model, layout.configs) if folder.is_dir()]
    configs = [read_json(folder / layout.denoiser / "config.json") for folder in folders]
    sides = [config["sample_size"] for config in configs if config and isinstance(config.get("sample_size"), int)]
    side = sides[0] * layout.latent_pixels if sides else layout.resolution
    return side, side
