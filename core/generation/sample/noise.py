"""The random numbers of one image, all from its seed, so that it is the same alone and in any batch.

The order is that of sd-scripts' generator (reference: generation, section 7): initial noise, draws of pyramid and
offset noise, one draw for each evaluation of the sampler, the noise of image to image, the draw of the VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from core.record.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

LEVELS = 6  # of pyramid noise


@dataclass(frozen=True)
class StartNoise:
    """Changes to the initial noise of an image.

    pyramid_prob, offset_prob   probabilities of pyramid noise and noise offset, 0..1
    pyramid_discount            range of the discount per level
    offset                      range of the noise offset: low + (high - low) times a standard normal number
    chance                      seed -> generator of the numbers that decide about both
    """

    pyramid_prob: float = 0.0
    pyramid_discount: tuple[float, float] = (0.4, 0.4)
    offset_prob: float = 0.0
    offset: tuple[float, float] = (0.0, 0.0)
    chance: Callable[[int], Random] = Random


PLAIN = StartNoise()


@dataclass(frozen=True)
class Variation:
    """A variation of an image: the seed of other noise, and its fraction in the mix, 0..1."""

    seed: int
    strength: float


class ImageNoise:
    """The noise of one image, float32 [C, h, w], on the device that generates it.

    start     initial noise, before the sampler's scale
    sampler   torch generator for the noise of the sampler's steps
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        max_draws: int,
        settings: StartNoise = PLAIN,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        variation: Variation | None = None,
    ):
        """Draw the initial noise.

        shape       (C, h, w) of the latents
        max_draws   highest number of noise tensors that the sampler draws
        dtype       dtype in which noise is drawn (None: float32); device and dtype change the values
        variation   noise of another seed to mix in
        """
        self._shape, self._max_draws, self._dtype = tuple(shape), max_draws, dtype or torch.float32
        self.sampler = torch.Generator(device).manual_seed(seed)
        self._share = 0.0 if variation is None else variation.strength
        self._other = None if variation is None else ImageNoise(variation.seed, shape, max_draws, PLAIN, device, dtype)
        start = self._draw(self.sampler)
        start = start if self._other is None else slerp(self._share, start, self._other.start)
        self.start: Tensor = _with_offset_and_pyramid(start, settings, settings.chance(seed), self.sampler)
        self._after_start = self.sampler.get_state()

    def _draw(self, generator: Generator) -> Tensor:
        """Draw standard normal noise [C, h, w], converted to float32."""
        drawn = torch.randn(self._shape, generator=generator, dtype=self._dtype, device=generator.device)
        return drawn.float()

    def generator_after_sampling(self) -> Generator:
        """Return a new generator in its state after the noise of all `max_draws` steps."""
        generator = torch.Generator(self.sampler.device)
        generator.set_state(self._after_start)
        for _ in range(self._max_draws):
            self._draw(generator)
        return generator

    def image_noise(self) -> tuple[Tensor, Tensor]:
        """Return (noise to add to an initial image's latents, noise for the sample of the VAE's posterior), [C, h, w] each."""
        generator = self.generator_after_sampling()
        added, vae_noise = self._draw(generator), self._draw(generator)
        added = added if self._other is None else slerp(self._share, added, self._other.image_noise()[0])
        return added, vae_noise


def mixed_noise(noises: Sequence[ImageNoise], device: torch.device) -> Tensor:
    """Return the noise to add to the initial latents of a batch, [B, C, h, w]."""
    return torch.stack([each.image_noise()[0] for each in noises]).to(device)


def slerp(fraction: float, low: Tensor, high: Tensor) -> Tensor:
    """Interpolate spherically from `low` to `high`, [C, h, w] each, along the height of each channel, as in A1111.

    Nearly parallel tensors are mixed linearly, with `fraction` as the share of `low` instead of `high`, also as in A1111.
    """
    dot = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    if dot.mean() > 0.9995:
        return low * fraction + high * (1 - fraction)
    angle = torch.acos(dot)
    return (torch.sin((1 - fraction) * angle) * low + torch.sin(fraction * angle) * high) / torch.sin(angle)


def _with_offset_and_pyramid(noise: Tensor, settings: StartNoise, chance: Random, generator: Generator) -> Tensor:
    """Return the initial noise with pyramid noise and noise offset, each added with its probability."""
    if settings.pyramid_prob and chance.random() < settings.pyramid_prob:
        low, high = settings.pyramid_discount
        discount = low + (high - low) * float(torch.rand(1, generator=generator, device=generator.device))
        noise = pyramid_noise(noise, discount, chance, generator)
    if settings.offset_prob and chance.random() < settings.offset_prob:
        low, high = settings.offset
        noise = noise + (low + (high - low) * torch.randn(1, generator=generator, device=generator.device))
    return noise


def pyramid_noise(noise: Tensor, discount: float, chance: Random, generator: Generator) -> Tensor:
    """Return multi-resolution noise (Whitaker 2023) with standard deviation 1.

    `noise` [C, h, w] plus upsampled smaller levels, level n weighted by discount ** n.

    chance      decides the sizes of the levels
    generator   draws them
    """
    from torch.nn.functional import interpolate

    channels, height, width = noise.shape
    total = noise[None]
    for level in range(LEVELS):
        ratio = (2 + 2 * chance.random()) ** level
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        small = torch.randn((1, channels, *size), generator=generator, device=generator.device)
        total = total + interpolate(small, size=(height, width), mode="bilinear") * discount**level
        if 1 in size:
            break
    return (total / total.std())[0]
