"""A tiny model of each family with weights that stand for trained ones, for tests of writing whole models."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from core.families import family, loading
from core.formats.models.whole_model import write_model
from tests.models import random_state, tiny_configs, tiny_file, tiny_folder, tiny_layout

FAMILIES = ("sd1", "sd2", "sdxl")


class Model:
    """A tiny model of a family: its folder, its file, and other weights that stand for trained ones."""

    def __init__(self, name: str, root: Path):
        self.name = name
        self.folder = tiny_folder(name, root / "folder")
        self.file = tiny_file(name, root / "model.safetensors")
        # A square of the encoder's width, as in the published files: diffusers reads the width off it
        if name == "sd2":
            projection = {"cond_stage_model.model.text_projection": torch.rand(32, 32)}
            save_file(load_file(self.file) | projection, self.file, {"format": "pt"})
        self.layout = tiny_layout(name, root / "layout")
        configs = family(name).layout.configs
        for inside in ("scheduler", "model_index.json", *(path.name for path in configs.glob("tokenizer*"))):
            path = configs / inside
            (shutil.copytree if path.is_dir() else shutil.copy)(path, self.layout.configs / inside)
        self.published = self.layout.published
        self.trained = {
            part: random_state(part, config, torch.float32, seed=1) for part, config in tiny_configs(name).items()
        }

    def write(self, target, parts=None, form="safetensors", **named):
        named.setdefault("source", self.file)
        return write_model(
            target,
            self.trained if parts is None else parts,
            family=self.name,
            form=form,
            published=self.published,
            **named,
        )

    def load(self, path, **named):
        return loading.load(self.layout, path, **named)

    def assert_equal(self, path, expected=None, dtype=torch.float32):
        """Every tensor that is read from there is the trained one, in every bit."""
        found = self.load(path, parts=["denoiser", "vae", "text_encoders"])
        modules = {"unet": found.denoiser, "vae": found.vae}
        modules |= dict(zip(self.layout.text_encoders, found.text_encoders, strict=True))
        for part, module in modules.items():
            state = module.state_dict()
            wanted = (expected or self.trained)[part]
            assert len(state) == len(wanted)
            for key, value in wanted.items():
                assert torch.equal(state[key].reshape(value.shape), value.to(dtype).float()), f"{part} {key}"


def left_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def assert_texts_equal(pipeline, model):
    """The text encoders hold the trained weights. In SDXL's second that includes the projection, the right way round."""
    for part in model.layout.text_encoders:
        state = {key.removeprefix("text_model."): value for key, value in getattr(pipeline, part).state_dict().items()}
        wanted = {key.removeprefix("text_model."): value for key, value in model.trained[part].items()}
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], value) for key, value in wanted.items())
