"""Deep Shrink (Kohya Hires fix): downscales hidden states at high noise levels, so that large images do not repeat content."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode

from core.generation.plan.hooks import HookInputs
from core.generation.sample.guidance import Moment
from core.generation.sample.loop import Hook
from core.settings.generation.high_resolution import DeepShrinkSettings


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook if depth 1 is set and the model has input blocks, else None."""
    if inputs.job.deep_shrink.ds_depth_1 is None or inputs.family.input_blocks is None:
        return None
    unet = inputs.components.denoiser
    return DeepShrink(inputs.job.deep_shrink, unet, inputs.family.input_blocks(unet))


class DeepShrink(Hook):
    """Downscales hidden states before an input block at high noise levels, and upscales them to the next larger skip connection.
    blocks: input blocks of the U-Net that depths count (`Family.input_blocks`)"""

    def __init__(self, settings: DeepShrinkSettings, unet: nn.Module, blocks: Sequence[nn.Module]):
        self._settings, self._unet, self._blocks = settings, unet, blocks
        self._timestep = 0.0
        self._full: Any = None

    def before(self, at: Moment) -> None:
        """Store the timestep and the latents' size of this step."""
        self._timestep, self._full = float(at.timestep), at.latents.shape[-2:]

    def _in_effect(self, depth: int) -> bool:
        """Return whether the block at `depth` downscales at the current timestep."""
        settings, t = self._settings, self._timestep
        first = t >= settings.ds_timesteps_1
        return (depth == settings.ds_depth_1 and first) or (
            depth == settings.ds_depth_2 and not first and t >= settings.ds_timesteps_2
        )

    @contextmanager
    def around(self) -> Iterator[None]:
        """Context in which the U-Net's forward pass is changed."""
        with ExitStack() as stack:
            for depth, block in enumerate(self._blocks):
                if depth in (self._settings.ds_depth_1, self._settings.ds_depth_2):
                    stack.callback(block.register_forward_pre_hook(self._shrink(depth), with_kwargs=True).remove)
            head: Any = self._unet.conv_norm_out
            stack.callback(head.register_forward_pre_hook(self._restore).remove)
            stack.enter_context(_MatchesSkipSizes())
            yield

    def _shrink(self, depth: int) -> Any:
        """Return a forward pre-hook for the input block at `depth` that downscales its hidden states while the depth is in effect."""

        def change(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """Downscale the block's hidden states, its first argument or `hidden_states`; None changes nothing."""
            if not self._in_effect(depth):
                return None
            states = kwargs["hidden_states"] if not args else args[0]
            if min(states.shape[-2:]) * self._settings.ds_ratio < 1:
                return None  # nothing would be left
            small = resized(states, factor=self._settings.ds_ratio)
            return ((small, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": small})

        return change

    def _restore(self, head: nn.Module, args: tuple[Any, ...]) -> Any:
        """Forward pre-hook of the output layers: upscale the hidden states, args[0], to the latents' size if they are smaller."""
        return (resized(args[0], self._full),) if args[0].shape[-2:] != self._full else None


def resized(states: Tensor, size: Any = None, factor: float | None = None) -> Tensor:
    """Resize hidden states [B, C, H, W] by bicubic interpolation in float32, keeping their dtype. size: (height, width), or `factor`"""
    return interpolate(states.float(), size=size, scale_factor=factor, mode="bicubic").to(states.dtype)


class _MatchesSkipSizes(TorchFunctionMode):
    """Context that makes torch.cat of two maps resize the first, hidden states, to the size of the second, a skip connection."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`; for torch.cat of two maps of different sizes, first resize the first map."""
        if func is torch.cat and len(args) and len(args[0]) == 2:
            hidden, skip = args[0]
            if hidden.ndim == skip.ndim == 4 and hidden.shape[-2:] != skip.shape[-2:]:
                args = ([resized(hidden, skip.shape[-2:]), skip], *args[1:])
        return func(*args, **(kwargs or {}))
