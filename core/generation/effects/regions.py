"""Regional prompts and LoRAs: Attention Couple, and LoRAs that act in the region of their prompt.

A prompt "a AND b" has sub-prompts, each with a mask; a LoRA belongs to the sub-prompt with its index in the list. In
the U-Net, only the cross-attention is computed once per sub-prompt (reference: generation, section 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from core.families.offload import replaced
from core.generation.plan.hooks import HookInputs
from core.generation.plan.initial import MAP, opened
from core.generation.plan.stages import as_generator, has_regions
from core.generation.prompt.runs import parts_of
from core.generation.sample.guidance import POSITIVE
from core.generation.sample.loop import Hook
from core.networks.adapter import STACK, Adapter, forward_through
from core.record.workspace import resolve_path
from core.settings.generation.regions import color_code

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.networks.network import Network

# (output, output below the adapter, input, adapter) -> the output with the change in its region
Change = Callable[[Tensor, Tensor, Tensor, Adapter], Tensor]
EPSILON = 1e-4  # added to sums of masks before a division
LEVELS = 5  # resolutions of the U-Net, each half of the one before


def hook_of(inputs: HookInputs) -> Hook | None:
    """The hook, if there is a region map and a prompt with AND; else None."""
    job = inputs.job
    if not has_regions(job):
        return None
    image, kohya = opened(resolve_path(job.regions.region_map or ""), MAP), as_generator(job)
    codes = job.regions.network_regional_mask_max_color_codes
    return Regions(
        inputs.components.denoiser,
        masks_of(image, len(parts_of(job.generate.prompt)), codes).to(inputs.components.device),
        inputs.by_use,
        len(inputs.noises),
        inputs.family.latent_shape(inputs.stage.size)[1:],
        before=inputs.sides.index(POSITIVE),
        kohya_masks=kohya,
        weak_time=kohya and inputs.family.name == "sdxl",
    )


def masks_of(image: Image, count: int, color_codes: int | None = None) -> Tensor:
    """The masks of sub-prompts, float32 [count, H, W] in 0..1.

    Red, green and blue are the masks of the first three; further ones, and those that would be empty, are the whole
    image.
    color_codes   the number of regions with one plain color each instead: red 1, green 2, both 3, blue 4 ...
    """
    import numpy as np

    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8))
    masks = []
    for number in range(count):
        if color_codes:
            code = torch.tensor(color_code(number + 1), dtype=torch.uint8)
            mask = (pixels == code).all(dim=-1).float() if number < color_codes else torch.ones(pixels.shape[:2])
        else:
            mask = pixels[..., number].float() / 255 if number < 3 else torch.ones(pixels.shape[:2])
        masks.append(mask if mask.any() else torch.ones_like(mask))
    return torch.stack(masks)


class Regions(Hook):
    """Limits an image's sub-prompts to their masks.

    masks      [n, H, W] of the sub-prompts                      size     (height, width) of the latents
    networks   {number of its sub-prompt: LoRA}; those without a sub-prompt act on the whole image        images   B
    before     sides of the guidance before the prompt's, of B rows each
    kohya_masks  sub-prompts without a LoRA get an empty mask, as in sd-scripts
    weak_time  LoRAs of the time embedding act at 1 / n of their strength, as in sd-scripts for SDXL
    """

    def __init__(
        self,
        unet: nn.Module,
        masks: Tensor,
        networks: Mapping[int, Network],
        images: int,
        size: tuple[int, int],
        *,
        before: int = 1,
        kohya_masks: bool = False,
        weak_time: bool = False,
    ):
        self._unet, self._networks, self._images, self._first_row = unet, networks, images, before * images
        self._count, self._weak_time = len(masks), weak_time
        device = masks.device
        if kohya_masks:
            masks = masks * torch.tensor([float(at in networks) for at in range(len(masks))]).to(device)[:, None, None]
        else:
            masks = torch.where(masks.sum(dim=0, keepdim=True) > 0, masks, torch.ones_like(masks))
        self._by_area: dict[int, Tensor] = {}
        height, width = size
        for _ in range(LEVELS):
            resized = interpolate(masks[None], size=(height, width), mode="bilinear")[0].to(device)
            self._by_area.setdefault(height * width, resized)
            height, width = -(-height // 2), -(-width // 2)

    @contextmanager
    def around(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._unet.named_modules():
                if name.endswith(".attn2"):
                    self._couple(module, stack)
            names = {id(module): name for name, module in self._unet.named_modules()}
            for number, network in self._networks.items():
                for adapter in network.adapters.values() if number < self._count else ():
                    if id(adapter.module) in names and network.attached:
                        self._limit(adapter, number, names[id(adapter.module)], stack)
            yield

    # -- the cross-attention

    def _couple(self, module: nn.Module, stack: ExitStack) -> None:
        """Until the stack ends, compute a cross-attention once per sub-prompt and average its outputs by the masks."""
        original_forward = module.forward

        def couple(
            hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            rows = slice(self._first_row, self._first_row + self._images)
            parts = hidden_states[rows].repeat_interleave(self._count, dim=0)
            hidden = torch.cat([hidden_states[: rows.start], parts, hidden_states[rows.stop :]])
            output = original_forward(hidden, encoder_hidden_states, *args, **kwargs)
            stop = rows.start + self._images * self._count
            parts = output[rows.start : stop].unflatten(0, (self._images, self._count))
            masks = self._masks(output.shape[1], output)  # [n, tokens, 1]
            combined = (parts * masks).sum(dim=1) / (masks.sum(dim=0) + EPSILON)
            return torch.cat([output[: rows.start], combined.to(output.dtype), output[stop:]])

        stack.enter_context(replaced(module, forward=couple))

    def _masks(self, area: int, like: Tensor) -> Tensor:
        """The masks for a layer of `area` positions, [n, area, 1]; equal shares, [n, 1, 1], for another size of layer."""
        masks = self._by_area.get(area)
        if masks is None:
            return torch.full((self._count, 1, 1), 1 / self._count, device=like.device, dtype=like.dtype)
        return masks.flatten(1)[..., None].to(like.dtype)

    # -- LoRAs

    def _limit(self, adapter: Adapter, number: int, name: str, stack: ExitStack) -> None:
        """Limit an adapter to the region of sub-prompt `number` until the stack ends, one of the time embedding only with
        `weak_time`. name: of its module"""
        if "time_emb" in name and not self._weak_time:
            return
        adapters = adapter.module.__dict__[STACK]
        index = adapters.index(adapter)
        adapters[index] = _InRegion(adapter, self._change_for(name, number))
        stack.callback(adapters.__setitem__, index, adapter)

    def _change_for(self, name: str, number: int) -> Change:
        """Return how a LoRA of sub-prompt `number` changes the output of the module `name`."""
        if ".attn2.to_k" in name or ".attn2.to_v" in name:
            return lambda y, start, x, adapter: self._prompt_rows(y, start, x, adapter, number, None)
        if "time_emb" in name:
            return lambda y, start, x, adapter: y + (adapter.changed(start, x) - y) / self._count
        if ".attn2.to_out" in name:
            return lambda y, start, x, adapter: self._prompt_rows(
                y, start, x, adapter, number, self._masks(y.shape[1], y).sum(dim=0) + EPSILON
            )
        return lambda y, start, x, adapter: self._masked(y, start, x, adapter, number)

    def _prompt_rows(
        self, y: Tensor, start: Tensor, x: Tensor, adapter: Adapter, number: int, factor: Tensor | None
    ) -> Tensor:
        """The output with the LoRA's change in the rows of its sub-prompt only. factor: of the change; None: 1"""
        rows = slice(self._first_row + number, self._first_row + self._images * self._count, self._count)
        output = y[rows]
        change = adapter.changed(start[rows], x[rows]) - output
        y = y.clone()
        y[rows] = output + (change if factor is None else change * factor)
        return y

    def _masked(self, y: Tensor, start: Tensor, x: Tensor, adapter: Adapter, number: int) -> Tensor:
        """The output with the LoRA's change weighted by the mask of its sub-prompt."""
        change = adapter.changed(start, x) - y
        if y.ndim == 4:
            weights = self._masks(y.shape[-2] * y.shape[-1], y)[number]
            mask = weights.view(1, 1, *y.shape[-2:]) if len(weights) > 1 else weights.view(1, 1, 1, 1)
        else:
            mask = self._masks(y.shape[1], y)[number]
        return y + change * mask


class _InRegion:
    """An adapter whose output change is limited to a region. If it changes the module's input, the module is computed
    again: other regions keep the original input."""

    def __init__(self, adapter: Adapter, change: Change):
        self.limited, self._change = adapter, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.limited, name)

    def fused_output(self, x: Tensor) -> None:
        return None

    def changed_input(self, x: Tensor) -> Tensor:
        return x

    def changed(self, y: Tensor, x: Tensor) -> Tensor:
        entered = self.limited.changed_input(x)
        start = (
            y if entered is x else forward_through(self.limited.module, list(self.limited.earlier_adapters()), entered)
        )
        return self._change(y, start, x, self.limited)
