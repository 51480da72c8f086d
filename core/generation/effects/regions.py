"""Regional prompts and LoRAs: Attention Couple, and LoRAs that act in the region of their prompt.

The prompts joined by AND (here sub-prompts) each have a mask, and the LoRA with the same index in the list belongs to
each of them. In the U-Net, only cross-attention is computed once per sub-prompt (reference: generation, section 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from core.families.offload import replaced
from core.generation.plan.hooks import HookInputs
from core.generation.plan.initial import MAP, opened
from core.generation.plan.stages import as_sd_scripts, has_regions
from core.generation.prompt.runs import parts_of
from core.generation.sample.guidance import POSITIVE
from core.generation.sample.loop import Hook
from core.networks.adapter import STACK, Adapter, forward_through
from core.record.workspace import resolve_path
from core.settings.generation.regions import color_code

if TYPE_CHECKING:
    from PIL.Image import Image

# (output, output below the adapter, input, adapter) -> the output with the change in its region
Change = Callable[[Tensor, Tensor, Tensor, Adapter], Tensor]
EPSILON = 1e-4  # added to sums of masks before a division
LEVELS = 5  # resolutions of the U-Net, each half of the one before


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook if there is a region map and a prompt with AND, else None."""
    return Regions(inputs) if has_regions(inputs.job) else None


def masks_of(image: Image, count: int, color_codes: int | None = None) -> Tensor:
    """Return the masks of sub-prompts, float32 [count, H, W] in 0..1.

    Red, green and blue of the image are the masks of the first three; further and empty masks cover the whole image.

    color_codes   instead, the number of regions with one plain color each: red 1, green 2, yellow 3, blue 4 ...; None: by channel
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
    """Limits the sub-prompts of images, and the LoRA of each, to their masks. Further LoRAs act on the whole image.

    As in sd-scripts, with compatibility "kohya" sub-prompts without a LoRA get an empty mask, and for SDXL the LoRAs of the time
    embedding act at 1 / n of their strength, with n sub-prompts.
    """

    def __init__(self, inputs: HookInputs):
        """Read the masks and resize them to the resolutions of the U-Net's layers."""
        job, kohya, device = inputs.job, as_sd_scripts(inputs.job), inputs.components.device
        self._unet, self._networks, self._images = inputs.components.denoiser, inputs.by_use, len(inputs.noises)
        self._first_row = inputs.sides.index(POSITIVE) * self._images  # in the denoiser's batch
        self._count, self._weak_time = len(parts_of(job.generate.prompt)), kohya and inputs.family.name == "sdxl"
        image = opened(resolve_path(job.regions.region_map or ""), MAP)
        masks = masks_of(image, self._count, job.regions.network_regional_mask_max_color_codes).to(device)
        if kohya:
            with_lora = torch.tensor([float(index in self._networks) for index in range(self._count)])
            masks = masks * with_lora.to(device)[:, None, None]
        else:
            masks = torch.where(masks.sum(dim=0, keepdim=True) > 0, masks, torch.ones_like(masks))
        self._by_area: dict[int, Tensor] = {}
        height, width = inputs.family.latent_shape(inputs.stage.size)[1:]
        for _ in range(LEVELS):
            resized = interpolate(masks[None], size=(height, width), mode="bilinear")[0].to(device)
            self._by_area.setdefault(height * width, resized)
            height, width = -(-height // 2), -(-width // 2)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Context in which cross-attention and LoRAs of the U-Net are limited to the masks."""
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
        """Replace a cross-attention until the stack ends: computed once per sub-prompt, with outputs averaged by the masks."""
        original_forward = module.forward

        def couple(
            hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            """Compute the cross-attention with a row per sub-prompt, and average these rows by the masks."""
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
        """Return the masks for a layer with `area` positions, [n, area, 1]; for an unknown size of layer 1 / n each, [n, 1, 1].
        like: tensor whose dtype (and device) the result has"""
        masks = self._by_area.get(area)
        if masks is None:
            return torch.full((self._count, 1, 1), 1 / self._count, device=like.device, dtype=like.dtype)
        return masks.flatten(1)[..., None].to(like.dtype)

    # -- LoRAs

    def _limit(self, adapter: Adapter, number: int, name: str, stack: ExitStack) -> None:
        """Limit an adapter to the region of sub-prompt `number` until the stack ends.

        Adapters of the time embedding are only changed with `weak_time`.

        name   name of the adapter's module in the U-Net
        """
        if "time_emb" in name and not self._weak_time:
            return
        adapters = adapter.module.__dict__[STACK]
        index = adapters.index(adapter)
        adapters[index] = _InRegion(adapter, self._change_for(name, number))
        stack.callback(adapters.__setitem__, index, adapter)

    def _change_for(self, name: str, number: int) -> Change:
        """Return the function that limits the output change of a LoRA of sub-prompt `number` in the module `name`: (y without the LoRA,
        start, x, adapter) -> y with it."""
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
        """Return the output with the LoRA's change only in the batch rows of sub-prompt `number`.

        y        the module's output without the LoRA
        start    output of the layers below the adapter, for the input that the adapter may change
        x        the module's input
        factor   factor of the change, broadcastable to the rows; None: 1
        """
        rows = slice(self._first_row + number, self._first_row + self._images * self._count, self._count)
        output = y[rows]
        change = adapter.changed(start[rows], x[rows]) - output
        y = y.clone()
        y[rows] = output + (change if factor is None else change * factor)
        return y

    def _masked(self, y: Tensor, start: Tensor, x: Tensor, adapter: Adapter, number: int) -> Tensor:
        """Return the output `y` with the LoRA's change weighted by the mask of sub-prompt `number`.

        start   output of the layers below the adapter, for the input that the adapter may change
        x       the module's input
        """
        change = adapter.changed(start, x) - y
        if y.ndim == 4:
            weights = self._masks(y.shape[-2] * y.shape[-1], y)[number]
            mask = weights.view(1, 1, *y.shape[-2:]) if len(weights) > 1 else weights.view(1, 1, 1, 1)
        else:
            mask = self._masks(y.shape[1], y)[number]
        return y + change * mask


class _InRegion:
    """An adapter whose change of the output is limited to a region.

    If the adapter changes the module's input, the module is computed again for it: other regions keep the original input.
    """

    def __init__(self, adapter: Adapter, change: Change):
        self.limited, self._change = adapter, change

    def __getattr__(self, name: str) -> Any:
        """Return other attributes of the limited adapter."""
        return getattr(self.limited, name)

    def fused_output(self, x: Tensor) -> None:
        """Return None: with a region, the module's output cannot be computed in one product with the adapter."""
        return None

    def changed_input(self, x: Tensor) -> Tensor:
        """Return the input unchanged."""
        return x

    def changed(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the output `y` for the input `x` with the adapter's change in its region."""
        entered = self.limited.changed_input(x)
        start = (
            y if entered is x else forward_through(self.limited.module, list(self.limited.earlier_adapters()), entered)
        )
        return self._change(y, start, x, self.limited)
