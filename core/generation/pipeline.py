"""From a prompt to images: encode the text, denoise step by step, decode.

Three parts shared by a training's samples and generated images: `encode_texts`, `denoise` and `decode`; `generate` is the
last two together. torch's global random generator is not used: all noise of an
image comes from a generator seeded with that image's seed on the CPU, as in diffusers, so a seed gives the same
image alone and in a batch, and on every device up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.diffusion.samplers import image_generators, make_sampler, model_input, sampler_step, start_latents
from core.diffusion.text_states import Conditioning, TextStates, join_texts
from core.families import family
from core.families.components import Components
from core.generation.prompt.states import PromptStates
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


MAX_AT_ONCE = 4
# Memory the U-Net needs per image, in tensors of its first level; 24 to 42 were measured at 512 to 1024 px in fp32.
LIVE_TENSORS = 64
CPU_LATENT_PIXELS = 64 * 64  # a CPU gains no speed from larger batches

# (noisy latents [B, 4, h, w], timesteps, conditioning) -> [B, 4, h, w], as the families' `predict`
Predict = Callable[["Tensor", "Tensor", Conditioning], "Tensor"]
OnStep = Callable[[int, int], None]  # (steps done, total steps)


def plain_sizes(width: int, height: int, count: int) -> Tensor:
    """SDXL's size conditioning for a generated image: its own size, no crop; float32 [count, 6], heights first."""
    import torch

    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(count, -1)


def denoise(
    predict: Predict,
    positive: TextStates,
    negative: TextStates | None,
    *,
    seeds: Sequence[int],
    width: int,
    height: int,
    sampler: str = "ddim",
    steps: int = 20,
    guidance_scale: float = 7.5,
    prediction: str = "epsilon",
    zero_terminal_snr: bool = False,
    as_kohya: bool = False,
    channels: int = 4,
    pixels_per_latent: int = 8,
    reads_guidance: bool = False,
    control: Tensor | None = None,
    on_step: OnStep | None = None,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Latents of one image per seed, scaled for the model: float32 [B, channels, height / 8, width / 8].

    channels, pixels_per_latent   of the family's latents

    predict      (noisy latents [B, 4, h, w], timesteps, Conditioning) -> noise or v, [B, 4, h, w]
    positive     one text for all images or one each, on the U-Net's device
    negative     the same for the negative prompt; not used if guidance_scale <= 1
    width, height in pixels, multiples of `pixels_per_latent`
    zero_terminal_snr  for a model trained with it: the sampler uses the rescaled schedule
    as_kohya     see `make_sampler`
    reads_guidance   the model reads the scale, and the negative prompt is not used
    control      one control image for all, float32 [3, H, W] in 0..1; both sides of the guidance see it
    Guidance (Ho and Salimans 2022, arXiv:2207.12598): output = n + guidance_scale * (p - n), in float32.
    """
    import torch

    shape = (channels, height // pixels_per_latent, width // pixels_per_latent)
    assert (shape[2] * pixels_per_latent, shape[1] * pixels_per_latent) == (width, height), "sizes are multiples"
    device, count = positive.context.device, len(seeds)
    texts = [positive.each(lambda tensor: tensor.expand(count, *tensor.shape[1:]))]
    guided = guidance_scale > 1 and negative is not None and not reads_guidance
    if guided and negative is not None:
        texts.insert(0, negative.each(lambda tensor: tensor.expand(count, *tensor.shape[1:])))
    states = join_texts(texts)
    rows = len(states.context)
    guidance = torch.full((rows,), guidance_scale, device=device) if reads_guidance else None
    shown = None if control is None else control.expand(rows, *control.shape)
    given = Conditioning(states, plain_sizes(width, height, rows).to(device), guidance, shown)
    way = make_sampler(sampler, prediction, zero_terminal_snr, as_kohya=as_kohya)
    way.set_timesteps(steps, device=device)
    generators = image_generators(seeds)
    with torch.no_grad():
        latents = start_latents(way, shape, generators, device)
        for done, timestep in enumerate(way.timesteps):
            if cancel is not None:
                cancel.check()
            noisy = torch.cat([latents, latents]) if guided else latents
            output = predict(model_input(way, noisy, timestep), timestep, given).float()
            if guided:
                unwanted, wanted = output.chunk(2)
                output = unwanted + guidance_scale * (wanted - unwanted)
            latents = sampler_step(way, output, timestep, latents, generators)
            if on_step is not None:
                on_step((done + 1) * steps // len(way.timesteps), steps)  # some samplers take two evaluations per step
    return latents


Decode = Callable[[Any, "Tensor"], "Tensor"]  # (VAE, scaled latents) -> pixels in -1..1: a family's


def decode(vae: Any, latents: Tensor, by: Decode | None = None, *, cancel: CancelToken | None = None) -> list[Image]:
    """Images from scaled latents [B, C, h, w], decoded one at a time: the VAE needs more memory than the U-Net.

    by   the family's `decode_latents`; None: that of Stable Diffusion
    """
    from PIL import Image

    images = []
    for one in latents.split(1):
        if cancel is not None:
            cancel.check()
        pixels = decode_pixels(vae, one, by)[0]
        images.append(Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()))
    return images


def decode_pixels(vae: Any, latents: Tensor, by: Decode | None = None) -> Tensor:
    """float32 [B, 3, 8h, 8w] in [0, 1] from scaled latents [B, C, h, w]."""
    from core.families.vae import decode_latents

    pixels = (by or decode_latents)(vae, latents)
    if not bool(pixels.isfinite().all()):
        fix = "set mixed precision to bf16 or fp32; if that does not help, the model or a LoRA is damaged"
        raise ProblemsError.one("The image contains NaN values and would be black", "generation", fix, "image.nan")
    return (pixels / 2 + 0.5).clamp(0, 1)


def images_at_once(components: Components, width: int, height: int) -> int:
    """How many images of this size to generate together, 1 to 4: on a CPU as long as it gains speed, else what fits in
    half of the device's free memory."""
    import torch

    weight = next(components.denoiser.parameters())
    latent_pixels = width * height // family(components.family).latent_pixels ** 2
    if weight.device.type == "cpu":
        return max(1, min(MAX_AT_ONCE, CPU_LATENT_PIXELS // latent_pixels))
    if weight.device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(weight.device)
    needed = 2 * LIVE_TENSORS * latent_pixels * weight.shape[0] * weight.element_size()  # twice, for guidance
    return max(1, min(MAX_AT_ONCE, free // 2 // needed))


def generate(
    components: Components,
    states: PromptStates,
    *,
    seeds: Sequence[int],
    width: int,
    height: int,
    sampler: str = "ddim",
    steps: int = 20,
    guidance_scale: float = 7.5,
    prediction: str | None = None,
    zero_terminal_snr: bool = False,
    on_step: OnStep | None = None,
    cancel: CancelToken | None = None,
) -> list[Image]:
    """One image per seed, in one batch. `prediction` None uses the model's own."""
    kind = family(components.family)

    def predict(noisy: Tensor, timesteps: Tensor, given: Conditioning) -> Tensor:
        return kind.predict(components, noisy, timesteps, given)

    latents = denoise(
        predict,
        states.positive,
        states.negative,
        seeds=seeds,
        width=width,
        height=height,
        sampler=sampler,
        steps=steps,
        guidance_scale=guidance_scale,
        prediction=prediction or components.prediction,
        zero_terminal_snr=zero_terminal_snr,
        channels=kind.latent_channels,
        pixels_per_latent=kind.latent_pixels,
        reads_guidance=kind.reads_guidance,
        on_step=on_step,
        cancel=cancel,
    )
    return decode(components.vae, latents, kind.decode_latents, cancel=cancel)
