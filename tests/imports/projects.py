"""Recorded texts of other trainers, and values of either side in one form."""

from __future__ import annotations

from pathlib import Path

from core.imports.projects.report import Source
from tests.recorded_json import recorded_json

VECTORS = Path(__file__).parents[1] / "vectors" / "import"


def cases(name):
    return recorded_json(f"import/{name}")


def plain(value):
    """Numbers as floats, also in texts and after name=; sd-scripts reads both alike."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, bool) or value is None:
        return value
    try:
        return float(value)
    except ValueError:
        name, sign, text = str(value).partition("=")
        return f"{name}={plain(text)}" if sign else value


def options(values):
    """Without empty lists, and keys and tokens, which are never imported."""
    secrets = ("wandb_api_key", "huggingface_token")
    return {name: plain(value) for name, value in values.items() if value != [] and name not in secrets}


def pasted(text, **more):
    return Source(text, **more)
