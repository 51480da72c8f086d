"""The number type follows the machine where it may, and the person where they say."""

import numpy
import pytest
import torch
from PIL import Image

from core.families import precision
from core.families.precision import choose_precision, use_threads
from core.record.workspace import STARTER
from core.settings.memory import MemorySettings

LARGE, SMALL = 800 << 20, 14 << 20


@pytest.mark.parametrize(
    ("device", "fast", "bytes_", "trains", "wanted"),
    [
        ("cpu", True, SMALL, True, "no"),
        ("cpu", True, LARGE, True, "bf16"),
        ("cpu", False, LARGE, True, "no"),
        ("cuda", True, LARGE, True, "bf16"),
        ("cuda", False, LARGE, True, "fp16"),
        ("cuda:1", True, LARGE, False, "fp16"),
        ("mps", False, LARGE, True, "no"),
    ],
)
def test_auto_follows_the_machine(monkeypatch, device, fast, bytes_, trains, wanted):
    monkeypatch.setattr(precision.machine, "bf16_is_fast", lambda device: fast)  # asked of a GPU; a CPU is measured
    found = choose_precision(MemorySettings(), device, bytes_, trains=trains, bf16_pays=lambda: fast)
    assert found.name == wanted


def test_what_is_asked_for_is_taken():
    assert choose_precision(MemorySettings(mixed_precision="no"), "cuda", LARGE).compute is torch.float32
    assert choose_precision(MemorySettings(mixed_precision="bf16"), "cpu", 0).compute is torch.bfloat16


def test_losses_are_scaled_only_while_fp16_trains():
    half = MemorySettings(mixed_precision="fp16")
    assert choose_precision(half, "cpu", 0).scaled and not choose_precision(half, "cpu", 0, trains=False).scaled


def test_a_small_model_computes_on_one_thread_and_a_large_one_on_all(monkeypatch):
    set_to = []
    monkeypatch.setattr(precision.torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(precision.machine, "threads", lambda: 8)
    assert [use_threads("cpu", SMALL), use_threads("cpu", LARGE), use_threads("cuda", SMALL)] == set_to == [1, 8, 8]


@pytest.mark.slow(only=("dtype1-0.0002-0.001",))
@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.bfloat16, 0.002, 0.01), (torch.float16, 0.0002, 0.001)])
def test_latents_encoded_in_16_bits_differ_by_what_the_help_of_vae_precision_says(dtype, least, most):
    """0.46% and 0.05% RMS with 16 images by the starter's VAE; 1.4% with bf16 by a VAE of SD's size with random weights."""
    from diffusers import AutoencoderKL

    from core.families.vae import encode_image_latents

    vae = AutoencoderKL.from_pretrained(STARTER / "vae")
    pixels = torch.stack([_pixels(path) for path in sorted((STARTER / "images").rglob("*.png"))[:2]])
    exact, _ = encode_image_latents(vae, pixels)
    found, _ = encode_image_latents(vae.to(dtype), pixels)
    assert least < ((found - exact).square().mean().sqrt() / exact.std()).item() < most


def _pixels(path) -> torch.Tensor:
    with Image.open(path) as image:
        content = numpy.asarray(image.convert("RGB").resize((64, 64)))
    return torch.from_numpy(content.copy()).permute(2, 0, 1).float() / 127.5 - 1
