"""What lies next to the layers of a network's file and is used with it: changes of their biases (`diff_b`), and of norm layers
(`w_norm`, `b_norm`), which LyCORIS' train_norm trains. They act at the network's strength, without alpha / rank."""

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
    """The change of a bias alone; the weight stays."""

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


def use_beside(network: Network, parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> list[str]:
    """Give the network what lies next to its layers; returns the keys of what fits nothing.

    parts    "unet", "text_encoder" ... -> the loaded model        tensors    by kohya key
    """
    norms, left = _norms(parts) if tensors else {}, list[str]()
    for name, own in group_by_module(tensors).items():
        adapter, norm = network.adapters.get(name), norms.get(module_path(name))
        used: set[str] = set()
        if adapter is not None and BIAS in own and _fits(adapter.module.bias, own[BIAS]):
            adapter.bias, used = own[BIAS].float().flatten(), {BIAS}
        elif norm is not None and own.keys() <= {NORM, NORM_BIAS, BIAS} and _norm_fits(norm, own):
            network.adapters[name] = _norm_adapter(name, norm, own)
            used = set(own)
        elif adapter is None and own.keys() == {BIAS} and (layer := _layer(parts, name)) is not None:
            if _fits(layer.bias, own[BIAS]):
                network.adapters[name] = BiasAdapter(name, layer, own[BIAS])
                used = {BIAS}
        left += [f"{name}.{key}" for key in own if key not in used]
    return left


def _norm_adapter(name: str, module: nn.LayerNorm | nn.GroupNorm, own: Mapping[str, Tensor]) -> NormAdapter:
    zero = torch.zeros(as_weight(module.weight).shape)
    adapter = NormAdapter(name, module, own.get(NORM, zero), own.get(NORM_BIAS, own.get(BIAS, zero)))
    for parameter, _ in adapter.parameters():
        parameter.requires_grad_(False)
    return adapter


def _layer(parts: Mapping[str, nn.Module], name: str) -> nn.Linear | nn.Conv2d | None:
    """The layer that a file has only a bias for."""
    for part, model in parts.items():
        for path, module in model.named_modules():
            named = part, path if part == "unet" else full_name(path)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and named == module_path(name):
                return module
    return None


def _norms(parts: Mapping[str, nn.Module]) -> dict[tuple[str, str] | None, nn.LayerNorm | nn.GroupNorm]:
    """The norm layers of a model with weights, by part and path."""
    found: dict[tuple[str, str] | None, nn.LayerNorm | nn.GroupNorm] = {}
    for part, model in parts.items():
        for path, module in model.named_modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
                found[part, path if part == "unet" else full_name(path)] = module
    return found


def _fits(value: object, change: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() == change.numel()


def _norm_fits(module: nn.LayerNorm | nn.GroupNorm, own: Mapping[str, Tensor]) -> bool:
    return all(_fits(module.weight if key == NORM else module.bias, change) for key, change in own.items())
