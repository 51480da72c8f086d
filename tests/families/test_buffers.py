"""Buffers that are in no file: a class that computes them has them when its weights come from a file."""

import json

import torch
from safetensors.torch import save_file

from core.families.loading import load_part, part_problems
from core.formats.models.checkpoint import Part, TensorLocation
from core.formats.models.part_kinds import PartKind
from core.formats.tensors.header import read_header

CONFIG = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 1,
    "cross_attention_dim": 16,
    "sample_size": 8,
    "patch_size": 2,
    "caption_channels": 12,
    "use_additional_conditions": False,
}
KIND = PartKind(
    "PixArtTransformer2DModel", "diffusers.models.transformers.pixart_transformer_2d", needed=("num_layers",)
)


def test_a_position_table_that_is_computed_is_that_of_the_class(tmp_path):
    made = KIND.module_builder()(CONFIG).eval()
    outside = {name for name, _ in made.named_buffers()} - made.state_dict().keys()
    assert outside == {"pos_embed.pos_embed"}
    path = tmp_path / "model.safetensors"
    save_file(made.state_dict(), path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    entries, _ = read_header(path)
    part = Part(
        "transformer", path, {name: TensorLocation(path, name, entry) for name, entry in entries.items()}, CONFIG
    )
    assert part_problems(part, KIND, "PixArt") == []
    loaded = load_part(part, CONFIG, KIND, "PixArt", "cpu")
    assert not any(each.is_meta for each in (*loaded.buffers(), *loaded.parameters()))
    assert torch.equal(loaded.pos_embed.pos_embed, made.pos_embed.pos_embed)
    given = {"timestep": torch.tensor([5]), "encoder_hidden_states": torch.randn(1, 3, 12)}
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(latents, **given).sample, made(latents, **given).sample)
