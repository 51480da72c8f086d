"""Recorded tensor shapes of the published models and the starter model, so that a conversion can check parts without building
them: importing the libraries for that takes half as long as copying a file."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from core.families.layout import Layout
from core.formats.detect import read_json
from core.formats.models.checkpoint import Part
from core.record.workspace import PROJECT

STARTER = PROJECT / "models" / "starter"
FILE = Path(__file__).with_name("published_shapes.json.gz")  # written by `python -m workshop.published_shapes`
# Config values that shapes depend on, of all kinds of parts.
DECIDING = (
    *("block_out_channels", "layers_per_block", "transformer_layers_per_block", "cross_attention_dim"),
    *("projection_class_embeddings_input_dim", "addition_time_embed_dim", "addition_embed_type"),
    *("in_channels", "out_channels", "latent_channels", "down_block_types", "up_block_types", "use_linear_projection"),
    *("hidden_size", "intermediate_size", "num_hidden_layers", "projection_dim", "vocab_size"),
    *("max_position_embeddings", "class_embed_type", "mid_block_type", "encoder_hid_dim"),
)
Shapes = dict[str, tuple[int, ...]]


@cache
def recorded() -> dict[str, dict[str, Shapes]]:
    """{family, or "starter": {part: shapes of that model}}"""
    content = json.loads(gzip.decompress(FILE.read_bytes()))
    return {
        family: {part: {name: tuple(shape) for name, shape in tensors.items()} for part, tensors in parts.items()}
        for family, parts in content.items()
    }


def published_shapes(layout: Layout, part: Part) -> Shapes | None:
    """{name without `text_model.`: shape} of a part with the config of the published or the starter model; None for others."""
    published = layout.config(part.name)
    config_of_part = part.config_after(published)
    models = {layout.family: published}
    if layout.family == "sd1" and (starter := read_json(STARTER / part.name / "config.json")):
        models["starter"] = starter
    for model, config in models.items():
        if all(config_of_part.get(key) == config.get(key) for key in DECIDING):
            return recorded().get(model, {}).get(part.name)
    return None
