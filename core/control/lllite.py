"""ControlNet-LLLite (kohya-ss): small networks that change the inputs of a U-Net's attention layers by a control image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.control.controlnet import repeat_for_batch
from core.control.shapes import LLLiteTarget, conditioning_layers, targets_among
from core.record.draws import address

if TYPE_CHECKING:
    from core.networks.dropout import Dropout


def lllite_targets(unet: nn.Module, family: str) -> list[LLLiteTarget]:
    """Return the layers of a U-Net that an LLLite changes."""
    linears = ((path, module) for path, module in unet.named_modules() if isinstance(module, nn.Linear))
    return targets_among({path: module.in_features for path, module in linears}, family)


class LayerNet(nn.Module):
    """LLLite's network for one layer: adds up(mid([hint, relu(down(x))])) to the layer's input x.

    width         features of the layer's input
    depth         1, 2 or 3: how far the hint is shrunk, see `LLLiteTarget`
    cond_emb_dim  features of the hint's tokens
    network_dim   features of the hidden layers
    shrinks       pixels of the control image per token, along each side
    """

    def __init__(self, width: int, depth: int, cond_emb_dim: int, network_dim: int):
        super().__init__()
        self.shrinks = 4 * 2**depth
        layers: list[nn.Module] = []
        for before, after, size in conditioning_layers(depth, cond_emb_dim):
            layers += [nn.Conv2d(before, after, size, size), nn.ReLU()]
        self.conditioning1 = nn.Sequential(*layers[:-1])
        self.down = nn.Sequential(nn.Linear(width, network_dim), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(network_dim + cond_emb_dim, network_dim), nn.ReLU())
        self.up = nn.Sequential(nn.Linear(network_dim, width))

    def tokens(self, hint: Tensor) -> Tensor:
        """Embed a control image [B, 3, H, W] in -1..1 as [B, h * w, cond_emb_dim]; h, w = H, W divided by `shrinks`, rounded up.

        The border is repeated up to a multiple of `shrinks`: a U-Net rounds up when it halves, the convolutions here round down.
        """
        pad_height, pad_width = (-side % self.shrinks for side in hint.shape[2:])
        if pad_height or pad_width:
            hint = nn.functional.pad(hint, (0, pad_width, 0, pad_height), mode="replicate")
        tokens: Tensor = self.conditioning1(hint.to(self.up[0].weight.dtype))
        return tokens.flatten(2).transpose(1, 2)

    def hidden(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return mid([hint, relu(down(x))]), [rows, h * w, network_dim], for x [rows, h * w, width] and the hint's `tokens`."""
        hidden: Tensor = self.down(x.to(self.up[0].weight.dtype))
        mixed: Tensor = self.mid(torch.cat([repeat_for_batch(tokens, len(x)).to(hidden.dtype), hidden], dim=2))
        return mixed


def empty(targets: list[LLLiteTarget], cond_emb_dim: int, network_dim: int) -> LLLite:
    """Create an LLLite on the "meta" device: shapes without weights."""
    with torch.device("meta"):
        return LLLite({each.name: LayerNet(each.width, each.depth, cond_emb_dim, network_dim) for each in targets})


class LLLite(nn.ModuleDict):
    """An LLLite: a `LayerNet` for each layer, by the names in files. It acts while attached to a U-Net and given a control image.

    If several are attached to a U-Net, the last one attached acts first, and the others get the input it changed.

    multiplier   strength; 0 leaves the U-Net's outputs unchanged
    dropout      on the hidden layer, active while the `Dropout` has a batch's images; None for none
    """

    def __init__(self, modules: Mapping[str, LayerNet]):
        """Create an LLLite, not attached and without a control image. modules: name of a layer in files -> its network"""
        super().__init__(dict(modules))
        self.multiplier = 1.0
        self.dropout: Dropout | None = None
        self._control: Tensor | None = None
        self._hint: Tensor | None = None
        self._tokens: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    @classmethod
    def create(
        cls, targets: list[LLLiteTarget], cond_emb_dim: int, network_dim: int, seed: int, zero_bias: bool = True
    ) -> LLLite:
        """Create an LLLite in fp32 with torch's default initialization, except that its outputs are zero.

        seed        of the random weights
        zero_bias   False: the output's bias is random too, as sd-scripts starts; a new net then shifts each input
        """
        modules = {}
        for target in targets:
            with torch.random.fork_rng([]):
                torch.manual_seed(address(seed, "lllite", target.name))
                modules[target.name] = module = LayerNet(target.width, target.depth, cond_emb_dim, network_dim)
            nn.init.zeros_(module.up[0].weight)
            if zero_bias:
                nn.init.zeros_(module.up[0].bias)
        return cls(modules)

    # -- control images

    def set_control(self, control: Tensor | None) -> None:
        """Set the control images for the next forward passes, [B, 3, H, W] in 0..1; None turns the LLLite off."""
        if control is not self._control:
            self._control, self._hint = control, None if control is None else 2 * control - 1
            self._tokens = {}

    def _tokens_of(self, name: str, module: LayerNet) -> Tensor:
        """Return the hint's tokens for one layer: cached for a control image during inference, computed in each pass with gradients."""
        assert self._hint is not None
        if self.training or torch.is_grad_enabled():
            return module.tokens(self._hint)
        if name not in self._tokens:
            self._tokens[name] = module.tokens(self._hint)
        return self._tokens[name]

    def shift(self, name: str, x: Tensor) -> Tensor:
        """Return a layer's input x [rows, h * w, width] with the LLLite's change added."""
        if self._hint is None or self.multiplier == 0:
            return x
        module = self[name]
        assert isinstance(module, LayerNet)
        hidden = module.hidden(x, self._tokens_of(name, module))
        if self.dropout is not None and self.dropout.drops_values:
            hidden, factor = self.dropout.drop_values(hidden, name, hidden.dim() - 1)
            hidden = hidden * factor
        return x + (module.up(hidden) * self.multiplier).to(x.dtype)

    # -- on the model

    def attach(self, unet: nn.Module, targets: list[LLLiteTarget]) -> None:
        """Register hooks on the U-Net's layers, in front of hooks registered earlier."""
        assert not self._hooks
        for target in targets:
            if target.name in self:
                layer = unet.get_submodule(target.path)
                self._hooks.append(layer.register_forward_pre_hook(_Hook(self, target.name), prepend=True))

    def detach(self) -> None:
        """Remove the hooks and forget the control image."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.set_control(None)


class _Hook:
    """Forward pre-hook of a layer: replaces its first input x by `LLLite.shift(x)`."""

    def __init__(self, net: LLLite, name: str):
        self._net, self._name = net, name

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self._net.shift(self._name, inputs[0]), *inputs[1:])
