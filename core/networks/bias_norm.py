"""Changes of norm layers (`w_norm`, `b_norm`, trained by LyCORIS' train_norm) and of biases (`diff_b`) in network files.

Files of any network kind may have them. They act at the network's strength, without alpha / rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from core.families.targets import Target
from core.formats.lora.names import BIAS, NORM, NORM_BIAS, group_by_module, module_path
from core.formats.models.text_keys import full_name
from core.networks.adapter import Adapter, as_weight


class NormAdapter(Adapter):
    """The change of a LayerNorm or GroupNorm: y + multiplier * (normalized(x) * weight + shift), as in LyCORIS' NormModule.
    weight, shift: float32 [C]"""

    def __init__(self, name: str, module: nn.LayerNorm | nn.GroupNorm, weight: Tensor, shift: Tensor):
        super().__init__(name, module)
        device = as_weight(module.weight).device
        self.weight, self.shift = (nn.Parameter(each.float().to(device)) for each in (weight, shift))

    @classmethod
    def fresh(cls, target: Target) -> NormAdapter:
        """Return an untrained change (zeros) of a norm layer."""
        zero = torch.zeros_like(as_weight(target.module.weight), dtype=torch.float32)
        return cls(target.name, target.module, zero, zero.clone())

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(self.weight, "plain"), (self.shift, "plain")]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y plus the change of the norm layer's weight and bias, for its input x."""
        weight, shift = ((each * self.multiplier).to(y.dtype) for each in (self.weight, self.shift))
        if isinstance(self.module, nn.GroupNorm):
            if weight.requires_grad and not x.requires_grad:
                # Torch's backward pass (2.13, CPU) ends the process here for an x in channels_last layout.
                plain, shape = group_norm(x, self.module.num_groups, eps=self.module.eps), (-1, *(1,) * (x.dim() - 2))
                return y + torch.addcmul(shift.view(shape), plain, weight.view(shape))
            return y + group_norm(x, self.module.num_groups, weight, shift, self.module.eps)
        assert isinstance(self.module, nn.LayerNorm)
        return y + layer_norm(x, self.module.normalized_shape, weight, shift, self.module.eps)

    def delta(self) -> Tensor:
        return self.weight.detach()

    def bias_delta(self) -> Tensor | None:
        return self.shift.detach()

    def tensors(self) -> dict[str, Tensor]:
        return {NORM: self.weight.detach(), NORM_BIAS: self.shift.detach()}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        sizes = {name: tensor.numel() for name, tensor in tensors.items()}
        fits = NORM in sizes and sizes.keys() <= {NORM, NORM_BIAS} and set(sizes.values()) == {self.weight.numel()}
        return "" if fits else "has a different shape"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of a file; a missing `b_norm` is 0."""
        with torch.no_grad():
            self.weight.copy_(tensors[NORM].flatten())
            self.shift.copy_(tensors[NORM_BIAS].flatten() if NORM_BIAS in tensors else torch.zeros(()))

    def shorten(self, ratio: Tensor) -> None:
        for each in (self.weight, self.shift):
            each.mul_(ratio)


class BiasAdapter(Adapter):
    """A change of the bias [out] of a layer whose weight is unchanged."""

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d, bias: Tensor):
        super().__init__(name, module)
        self.bias = bias.float().flatten()

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return []

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y unchanged; `changed` adds the bias."""
        return y

    def tensors(self) -> dict[str, Tensor]:
        assert self.bias is not None
        return {BIAS: self.bias}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        return ""

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        self.bias = tensors[BIAS].float().flatten()

    def shorten(self, ratio: Tensor) -> None:
        self.bias = self.tensors()[BIAS] * ratio

    def merged(self, weight: Tensor) -> Tensor:
        return weight


def add_bias_norm(
    adapters: dict[str, Adapter], parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> list[str]:
    """Add a file's changes of biases and norm layers to `adapters`, in place; return the keys that the model has no place for.

    adapters   the network's, by kohya's layer name
    parts      {"unet", "text_encoder" ...: the loaded model}
    tensors    by kohya's key
    """
    modules, unused = _modules(parts) if tensors else {}, list[str]()
    for name, changes in group_by_module(tensors).items():
        adapter, module = adapters.get(name), modules.get(module_path(name))
        norm = module if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module.weight is not None else None
        used: set[str] = set()
        if adapter is not None and BIAS in changes and _fits(adapter.module.bias, changes[BIAS]):
            adapter.bias, used = changes[BIAS].float().flatten(), {BIAS}
        elif norm is not None and changes.keys() <= {NORM, NORM_BIAS, BIAS} and _norm_fits(norm, changes):
            adapters[name] = _norm_adapter(name, norm, changes)
            used = set(changes)
        elif adapter is None and changes.keys() == {BIAS} and isinstance(module, (nn.Linear, nn.Conv2d)):
            if _fits(module.bias, changes[BIAS]):
                adapters[name] = BiasAdapter(name, module, changes[BIAS])
                used = {BIAS}
        unused += [f"{name}.{key}" for key in changes if key not in used]
    return unused


def _norm_adapter(name: str, module: nn.LayerNorm | nn.GroupNorm, changes: Mapping[str, Tensor]) -> NormAdapter:
    """Return a frozen adapter of a norm layer with a file's changes; missing ones are 0.
    changes: {"w_norm", "b_norm" or "diff_b": tensor}"""
    zero = torch.zeros(as_weight(module.weight).shape)
    adapter = NormAdapter(name, module, changes.get(NORM, zero), changes.get(NORM_BIAS, changes.get(BIAS, zero)))
    for parameter, _ in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter


def _modules(parts: Mapping[str, nn.Module]) -> dict[tuple[str, str] | None, nn.Module]:
    """Return {(part, path as in `module_path`): module} of all modules of the parts."""
    return {
        (part, path if part == "unet" else full_name(path)): module
        for part, model in parts.items()
        for path, module in model.named_modules()
    }


def _fits(value: object, change: Tensor) -> bool:
    """Return whether `value` is a tensor with as many elements as `change`."""
    return isinstance(value, Tensor) and value.numel() == change.numel()


def _norm_fits(module: nn.LayerNorm | nn.GroupNorm, changes: Mapping[str, Tensor]) -> bool:
    """Return whether all changes have the size of the norm layer's weight and bias."""
    return all(_fits(module.weight if key == NORM else module.bias, change) for key, change in changes.items())
