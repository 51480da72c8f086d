"""(IA)^3 (Liu et al. 2022, arXiv:2205.05638) with LyCORIS' keys: one vector for each layer that it changes, which multiplies the
layer's output, or its input, by 1 + vector. No rank, no alpha; most layers stay as they are."""

from core.networks.kinds import NetworkKind, register
from core.settings.blocks import BlockSize

WEIGHT, ON_INPUT = "weight", "on_input"
OUTPUTS, INPUTS = ("_to_k", "_to_v", "_k_proj", "_v_proj"), ("_ff_net_2", "_mlp_fc2")


def _adapter(target, weight, on_input):
    import torch
    from torch import nn
    from torch.nn.functional import linear

    from core.networks.adapter import Adapter

    class IA3(Adapter):
        def __init__(self):
            super().__init__(target.name, target.module)
            self.weight = nn.Parameter(weight.detach().float().clone().to(target.module.weight.device))

        def parameters(self):
            return [(self.weight, "plain")]

        def add_to(self, y, x):
            scale, layer = (self.weight * self.multiplier).to(y.dtype), self.module
            if on_input:
                return y + linear(x.to(y.dtype) * scale, layer.weight.to(y.dtype))
            return y + (y if layer.bias is None else y - layer.bias.to(y.dtype)) * scale

        def delta(self):
            own = self.weight.detach()
            return self.module.weight.detach().float() * (own[None, :] if on_input else own[:, None])

        def tensors(self):
            return {WEIGHT: self.weight.detach(), ON_INPUT: torch.tensor(on_input)}

        def misfit(self, given):
            same = given[WEIGHT].numel() == self.weight.numel() and bool(given[ON_INPUT]) == on_input
            return "" if same else "is of another layer or of its other side"

        def take(self, given):
            with torch.no_grad():
                self.weight.copy_(given[WEIGHT].reshape(-1))

        def shorten(self, ratio):
            self.weight.mul_(ratio)

    return IA3()


def _fresh(target, size, own, seed):
    import torch

    if not target.name.endswith((*OUTPUTS, *INPUTS)):
        return None
    weight, on_input = target.module.weight, target.name.endswith(INPUTS)
    return _adapter(target, torch.zeros(weight.shape[int(on_input)], device=weight.device), on_input)


def _from_tensors(target, tensors):
    on_input, weight = bool(tensors[ON_INPUT]), target.module.weight
    fits = weight.ndim == 2 and tensors[WEIGHT].numel() == weight.shape[int(on_input)]
    return _adapter(target, tensors[WEIGHT].reshape(-1), on_input) if fits else None


def _flaw(name, tensors):
    for key in (WEIGHT, ON_INPUT):
        if key not in tensors:
            return f"{name} has no {key}"
    return "" if tensors[ON_INPUT].numel() == 1 else f"{name}.{ON_INPUT} is neither true nor false"


register(
    NetworkKind(
        name="ia3",
        title="(IA)^3",
        forms=((WEIGHT, ON_INPUT),),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=lambda tensors: BlockSize(1, 1.0),
        flaw=_flaw,
        module_name="lycoris.kohya",
        network_args=lambda job: {"algo": "ia3"},
        uses=frozenset(),
        idle=lambda tensors: not tensors[WEIGHT].any(),
        needs_base_weight=True,
    )
)
