"""Changes of biases (`diff_b`) and of norm layers (`w_norm`, `b_norm`, trained by LyCORIS' train_norm) that a network's
file has next to its layers. They act at the network's strength, without alpha / rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.formats.lora.names import BIAS, NORM, NORM_BIAS, group_by_module, module_path
from core.formats.models.text_keys import full_name
from core.networks.adapter import Adapter, as_weight
from core.networks.network import Network
from core.networks.norm_adapter import NormAdapter


class BiasAdapter(Adapter):
    """A change of the bias only; the weight is unchanged."""

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d, bias: Tensor):
        super().__init__(name, module)
        self.bias = bias.float().flatten()

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return []

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
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


def use_bias_norm(network: Network, parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> list[str]:
    """Add a file's bias and norm changes to its network; returns the keys of those that fit nothing.

    parts    "unet", "text_encoder" ... -> the loaded model        tensors    by kohya key
    """
    norms, unused = _norms(parts) if tensors else {}, list[str]()
    for name, changes in group_by_module(tensors).items():
        adapter, norm = network.adapters.get(name), norms.get(module_path(name))
        used: set[str] = set()
        if adapter is not None and BIAS in changes and _fits(adapter.module.bias, changes[BIAS]):
            adapter.bias, used = changes[BIAS].float().flatten(), {BIAS}
        elif norm is not None and changes.keys() <= {NORM, NORM_BIAS, BIAS} and _norm_fits(norm, changes):
            network.adapters[name] = _norm_adapter(name, norm, changes)
            used = set(changes)
        elif adapter is None and changes.keys() == {BIAS} and (layer := _layer(parts, name)) is not None:
            if _fits(layer.bias, changes[BIAS]):
                network.adapters[name] = BiasAdapter(name, layer, changes[BIAS])
                used = {BIAS}
        unused += [f"{name}.{key}" for key in changes if key not in used]
    return unused


def _norm_adapter(name: str, module: nn.LayerNorm | nn.GroupNorm, changes: Mapping[str, Tensor]) -> NormAdapter:
    zero = torch.zeros(as_weight(module.weight).shape)
    adapter = NormAdapter(name, module, changes.get(NORM, zero), changes.get(NORM_BIAS, changes.get(BIAS, zero)))
    for parameter, _ in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter


def _layer(parts: Mapping[str, nn.Module], name: str) -> nn.Linear | nn.Conv2d | None:
    """The layer for which a file has only a bias."""
    for part, model in parts.items():
        for path, module in model.named_modules():
            named = part, path if part == "unet" else full_name(path)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and named == module_path(name):
                return module
    return None


def _norms(parts: Mapping[str, nn.Module]) -> dict[tuple[str, str] | None, nn.LayerNorm | nn.GroupNorm]:
    """A model's norm layers that have weights, by part and path."""
    norms: dict[tuple[str, str] | None, nn.LayerNorm | nn.GroupNorm] = {}
    for part, model in parts.items():
        for path, module in model.named_modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
                norms[part, path if part == "unet" else full_name(path)] = module
    return norms


def _fits(value: object, change: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() == change.numel()


def _norm_fits(module: nn.LayerNorm | nn.GroupNorm, changes: Mapping[str, Tensor]) -> bool:
    return all(_fits(module.weight if key == NORM else module.bias, change) for key, change in changes.items())
