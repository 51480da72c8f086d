"""Recorded tensor shapes of the published models and the starter model, to check parts without building them.

Importing the libraries to build a part takes half as long as copying a file.
"""

import gzip
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from core.families.layout import Layout
from core.formats.detect import read_json
from core.formats.models.checkpoint import Part
from core.record.problems import ProblemsError
from core.record.workspace import STARTER

FILE = Path(__file__).with_name("published_shapes.json.gz")  # written by `python -m workshop.published_shapes`
# Config values that shapes depend on, of all kinds of parts.
DECIDING = (
    *("block_out_channels", "layers_per_block", "transformer_layers_per_block", "cross_attention_dim"),
    *("projection_class_embeddings_input_dim", "addition_time_embed_dim", "addition_embed_type"),
    *("in_channels", "out_channels", "latent_channels", "down_block_types", "up_block_types", "use_linear_projection"),
    *("hidden_size", "intermediate_size", "num_hidden_layers", "projection_dim", "vocab_size"),
    *("max_position_embeddings", "class_embed_type", "mid_block_type", "encoder_hid_dim"),
)
NOTES = {"_diffusers_version", "_name_or_path", "torch_dtype", "transformers_version"}  # no class is built by them
Shapes = dict[str, tuple[int, ...]]


@cache
def recorded() -> dict[str, dict[str, Shapes]]:
    """Return {family or "starter": {part: {tensor name without "text_model.": shape}}}."""
    content = json.loads(gzip.decompress(FILE.read_bytes()))
    return {
        family: {part: {name: tuple(shape) for name, shape in tensors.items()} for part, tensors in parts.items()}
        for family, parts in content.items()
    }


def published_shapes(layout: Layout, part: Part, whole: bool = False) -> Shapes | None:
    """Return {name without "text_model.": shape} if the part has the published or the starter model's config; else None.
    whole: compare all config values but NOTES, so that building the part is sure to succeed; False: only those that shapes depend on"""
    published = layout.config(part.name)
    config_of_part = part.full_config(published)
    models = {layout.family: published}
    if layout.family == "sd1":
        with suppress(ProblemsError):  # a damaged starter concerns no other model
            if starter := read_json(STARTER / part.name / "config.json"):
                models["starter"] = starter
    wanted = _compared(config_of_part, whole)
    for model, config in models.items():
        if _compared(config, whole) == wanted:
            return recorded().get(model, {}).get(part.name)
    return None


def _compared(config: Mapping[str, Any], whole: bool) -> str:
    """Return the compared values of a config as JSON text, in which 4.0 and true differ from 4 and 1.
    whole: all values but NOTES; False: those in DECIDING"""
    keys = config.keys() - NOTES if whole else DECIDING
    return json.dumps({key: config.get(key) for key in keys}, sort_keys=True)
