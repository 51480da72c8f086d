"""Tiny models with ControlNets, and control images for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from core.control.controlnet import ZEROS, from_unet
from core.control.controlnet_file import write_control_net
from core.families import family
from core.record.workspace import PROJECT, Workspace
from tests.generation.effects.controls.parts import SIZE
from tests.models import tiny_folder


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="session")
def hints(place):
    """Two images at the size of the result."""
    made = []
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
        made.append(place / f"hint{number}.png")
        Image.fromarray(values).resize(SIZE, Image.Resampling.NEAREST).save(made[-1])
    return made


@pytest.fixture(scope="session")
def models(place):
    """family -> (its folder, ControlNet files of it that act)"""
    made = {}

    def of(name):
        if name not in made:
            folder = place / name
            tiny_folder(name, folder)
            unet, files = family(name).load(folder).denoiser, []
            for number in range(2):
                net = from_unet(unet, number)
                draws = torch.Generator().manual_seed(number)
                with torch.no_grad():
                    for key, weight in net.named_parameters():
                        if key.startswith(ZEROS):
                            weight.copy_(0.1 * torch.randn(weight.shape, generator=draws))
                files.append(place / f"{name}_{number}.safetensors")
                write_control_net(files[-1], dict(net.state_dict()), name, {})
            made[name] = folder, files
        return made[name]

    return of


@pytest.fixture
def space(place):
    workspace = Workspace(place / "out", PROJECT / "models")
    workspace.runs.mkdir(parents=True, exist_ok=True)
    return workspace


@pytest.fixture(scope="session")
def photo(place):
    """A soft image with one sharp disc, at another size than the result."""
    y, x = np.mgrid[0:128, 0:192]
    values = np.stack([x / 192, y / 128, np.full(x.shape, 0.4)], axis=-1)
    values[(x - 96) ** 2 + (y - 64) ** 2 < 900] = 0.9
    Image.fromarray((values * 255).astype(np.uint8)).save(place / "photo.png")
    return place / "photo.png"
