"""What feeds a step: latents from the cache, text states from the cache or, while the text encoder learns, from itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from core.dataset.latent_cache import sample_latent

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.batches import Placed
    from core.dataset.text_cache import TextCache

DEVICE_BYTES = 2 << 30


class Latents:
    """The VAE's posteriors of all pictures, on the device when they are small, and addressed draws from them."""

    def __init__(
        self, posteriors: Mapping[tuple[str, str], tuple[Tensor, Tensor]], scale: float, seed: int, device: str
    ):
        size = sum(mean.nbytes + logvar.nbytes for mean, logvar in posteriors.values())
        place = device if size <= DEVICE_BYTES else "cpu"
        self._posteriors = {key: (mean.to(place), logvar.to(place)) for key, (mean, logvar) in posteriors.items()}
        self._scale, self._seed = scale, seed

    def draw(self, placed: Placed, epoch: int, repeat: int) -> Tensor:
        """Scaled latents [4, h, w], float32: one draw for each (epoch, picture, repeat)."""
        mean, logvar = self._posteriors[placed.key]
        return sample_latent(mean, logvar, self._seed, epoch, placed.key, repeat) * self._scale


class FrozenText:
    """Text states of an encoder that does not learn: encoded once per caption variant. The encoder is loaded only when needed."""

    def __init__(
        self, cache: TextCache, encode: Callable[[Sequence[str]], Tensor], release: Callable[[], None], device: str
    ):
        self._cache, self._encode, self._release, self._device = cache, encode, release, device

    def need(self, captions: Sequence[str]) -> None:
        """Encode what is missing of these captions; afterwards the encoder leaves the memory."""
        if self._cache.ensure(captions, self._encode):
            self._release()

    def states(self, captions: Sequence[str]) -> Tensor:
        """[B, T, C] on the device."""
        return self._cache.get(captions, self._encode).to(self._device, non_blocking=self._device.startswith("cuda"))


class LearningText:
    """Text states of an encoder that learns: computed at every step, with gradients."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor]):
        self._encode = encode

    def need(self, captions: Sequence[str]) -> None:
        return

    def states(self, captions: Sequence[str]) -> Tensor:
        return self._encode(captions)


Text = FrozenText | LearningText
