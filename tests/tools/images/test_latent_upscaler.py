"""The latent upscaler: what it makes of images, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from core.families import family
from core.families.loading import load
from core.families.vae import encode_image_latents
from core.generation.model.upscaling_networks import LatentUpscaler
from core.generation.sample.canvas import pixels_of
from core.record.draws import normal
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from tests.models import tiny_folder
from tests.tools.test_tools import use

STARTER = PROJECT / "models/starter"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that adds a bias to the latents, and no more."""
    torch.manual_seed(0)
    network = LatentUpscaler().eval()
    torch.nn.init.zeros_(network.conv_final.weight)
    path = tmp_path_factory.mktemp("weights") / "latent.safetensors"
    save_file(network.state_dict(), path)
    return path, network


def images(folder, *sizes):
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        values = np.random.default_rng(number).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_an_image_is_the_decoded_correction_of_its_enlarged_latents(tmp_path, weights):
    path, network = weights
    folder = images(tmp_path / "in", (38, 32), (38, 32), (16, 24))
    (folder / "broken.png").write_bytes(b"no image")
    given = {"images": str(folder), "vae": str(STARTER), "weights": str(path), "output_dir": str(tmp_path / "out")}
    facts, lines = use(name="latent_upscaler", **given, batch_size=2, vae_batch_size=2)
    assert [Image.open(each).size for each in facts["written"]] == [(64, 64), (64, 64), (32, 48)]
    assert "broken.png" in facts["skipped"][0] and "3 images upscaled" in lines[-1]
    vae = load(family("sd1").layout, STARTER, parts=("vae",)).vae
    with Image.open(folder / "1.png") as image:
        large = image.convert("RGB").crop((0, 0, 32, 32)).resize((64, 64), Image.Resampling.LANCZOS)
    mean, logvar = encode_image_latents(vae, pixels_of(large))
    latents = mean + torch.exp(logvar / 2) * normal(mean.shape, 0, "latent_upscaler", "1_upscaled")
    with torch.no_grad():
        pixels = vae.decode(latents + network.conv_final.bias[:, None, None]).sample[0]
    wanted = ((pixels.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    found = np.asarray(Image.open(tmp_path / "out" / "1_upscaled.png"), np.float32)
    assert np.abs(found - wanted).max() <= 1  # batches of two round otherwise than one
    again = tmp_path / "again"
    use(name="latent_upscaler", **given | {"output_dir": str(again)}, batch_size=1)
    other = np.asarray(Image.open(again / "1_upscaled.png"), np.float32)
    assert np.abs(other - found).max() <= 1
    use(name="latent_upscaler", **given | {"output_dir": str(again / "seed"), "images": f"{folder}/1*"}, seed=5)
    assert not np.array_equal(np.asarray(Image.open(again / "seed" / "1_upscaled.png")), found)


def test_what_cannot_be_upscaled_is_told_at_once(tmp_path, weights):
    path, _ = weights
    sdxl = str(tiny_folder("sdxl", tmp_path / "sdxl"))
    folder = images(tmp_path / "in", (32, 32))
    (folder / "0_upscaled.png").write_bytes(b"")
    given = {"images": str(folder), "vae": str(STARTER), "weights": str(path)}
    for asked, codes in (
        ({"images": None, "vae": None, "weights": None}, ["upscale.no-images", "upscale.no-vae", "upscale.no-weights"]),
        (given | {"images": str(tmp_path / "*.jpg")}, ["upscale.no-images"]),
        (given, ["tools.output-exists"]),
        (given | {"weights": str(STARTER / "vae/diffusion_pytorch_model.safetensors")}, ["tools.output-exists", "upscaler.unknown-kind"]),
        (given | {"vae": sdxl}, ["tools.output-exists", "vae.other-family"]),
    ):  # fmt: skip
        with pytest.raises(ProblemsError) as refused:
            use(name="latent_upscaler", **asked)
        assert sorted(refused.value.codes) == codes
        assert not any("hires." in each.what for each in refused.value.problems), "no setting of Generate is named"
