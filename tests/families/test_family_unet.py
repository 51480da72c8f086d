"""SD 2.x and SDXL: what the U-Net is given and gives, against diffusers and the formula of the size conditions."""

import copy
import math
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.diffusion.text_states import Conditioning
from core.families.attention import FACTORS, NoDivision, skip_divisions

SIZES = torch.tensor([[1024.0, 1536.0, 0.0, 37.0, 832.0, 1216.0], [500.0, 333.0, 8.0, 0.0, 512.0, 512.0]])


def inputs():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 16, 24, generator=draw), torch.tensor([10, 900])


def test_the_prediction_is_that_of_diffusers(tiny):
    latents, times = inputs()
    with torch.no_grad():
        text = tiny.family.encode_captions(tiny.components, ["a fox", "a house"])
        ours = tiny.family.predict(tiny.components, latents, times, Conditioning(text, SIZES))
        added = {"text_embeds": text.pooled, "time_ids": SIZES} if tiny.name == "sdxl" else None
        theirs = tiny.pipeline.unet(latents, times, text.context, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # equal to the bit on most CPUs


def sinusoid(value):
    """e(v) of the reference, section 1.6: 128 cosines, then 128 sines."""
    angles = [value * math.exp(-math.log(10000) * k / 128) for k in range(128)]
    return [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]


def test_sdxls_vector_is_the_pooled_text_and_the_sinusoids_of_six_numbers(tiny_models):
    model = tiny_models("sdxl")
    latents, times = inputs()
    given = []
    watch = model.components.denoiser.add_embedding.register_forward_pre_hook(
        lambda module, args: given.append(args[0])
    )
    with torch.no_grad():
        text = model.family.encode_captions(model.components, ["a fox", "a house"])
        model.family.predict(model.components, latents, times, Conditioning(text, SIZES))
    watch.remove()
    sinusoids = torch.tensor([[x for number in row for x in sinusoid(number)] for row in SIZES.tolist()])
    expected = torch.cat([text.pooled, sinusoids], dim=1)
    assert given[0].shape == (2, 48 + 6 * 256)
    torch.testing.assert_close(given[0], expected, rtol=0, atol=3e-4)  # angles up to 1536 in fp32: 1.2e-4 each


def test_sizes_stay_exact_in_a_16_bit_model(tiny_models):
    """bf16 knows no 1001: the sinusoids are made of fp32 numbers and only then rounded."""
    model = tiny_models("sdxl")
    loaded = model.family.load(model.folder, parts=("denoiser",), dtype=torch.bfloat16)
    latents, times = inputs()
    with torch.no_grad():
        text = model.family.encode_captions(model.components, ["a fox"] * 2)
        one, other = (
            model.family.predict(loaded, latents, times, Conditioning(text, SIZES + step))
            for step in (torch.zeros(6), torch.ones(6))
        )
    assert one.dtype == torch.bfloat16 and not torch.equal(one, other)


def test_sizes_change_nothing_in_the_families_that_read_none(tiny_models):
    model = tiny_models("sd2")
    latents, times = inputs()
    with torch.no_grad():
        text = model.family.encode_captions(model.components, ["a fox"] * 2)
        one, other = (
            model.family.predict(model.components, latents, times, Conditioning(text, sizes)) for sizes in (None, SIZES)
        )
    assert torch.equal(one, other) and not model.family.reads_sizes


class Divisions(TorchDispatchMode):
    """Counts divisions of tensors."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket is torch.ops.aten.div] += 1
        return func(*args, **(kwargs or {}))


def test_divisions_by_one_are_skipped_and_results_and_gradients_stay_the_same(tiny_models):
    ours = copy.deepcopy(tiny_models("sd1").components.denoiser)
    dividing = copy.deepcopy(ours)
    blocks = [(block, name) for block in dividing.modules() for name in FACTORS if hasattr(block, name)]
    for block, name in blocks:
        setattr(block, name, 1.0)
    results, counts = [], []
    for unet in (ours, dividing):
        latents, times = inputs()
        latents.requires_grad_()
        with Divisions() as seen:
            made = unet(latents, times, torch.ones(2, 77, unet.config.cross_attention_dim)).sample
            made.square().sum().backward()
        results.append((made, latents.grad))
        counts.append(seen.counts[True])
    assert all(map(torch.equal, *results))
    assert counts[1] - counts[0] == 2 * len(blocks) > 0  # forward and backward


def test_a_factor_other_than_one_divides(tiny_models):
    vae = copy.deepcopy(tiny_models("sd1").components.vae)
    block = vae.decoder.mid_block.resnets[0]
    assert isinstance(block.output_scale_factor, NoDivision)  # a VAE's blocks too
    block.output_scale_factor = 2.0
    skip_divisions(vae)
    assert block.output_scale_factor == 2.0
