"""LoHa (Hyeon-Woo et al. 2022, arXiv:2108.06098) with LyCORIS' keys: the change is (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank,
the convolutions' kernels flattened. As a package outside of the product would bring it: this file and its line."""

from core.networks.kinds import NetworkKind, register
from core.settings.blocks import BlockSize
from core.settings.network import SIZES

KEYS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def _adapter(target, tensors, alpha):
    import torch
    from torch import nn
    from torch.nn import functional

    from core.networks.adapter import Adapter

    class LoHa(Adapter):
        def __init__(self):
            rank = tensors[KEYS[1]].shape[0]
            super().__init__(target.name, target.module, rank, alpha)
            self.weights = {key: nn.Parameter(tensors[key].float().to(target.module.weight.device)) for key in KEYS}

        def _change(self):
            w1_a, w1_b, w2_a, w2_b = self.weights.values()
            return ((w1_a @ w1_b) * (w2_a @ w2_b) * (self.alpha / self.rank)).view(self.module.weight.shape)

        def parameters(self):
            return [(weight, "plain") for weight in self.weights.values()]

        def add_to(self, y, x):
            change = (self._change() * self.multiplier).to(y.dtype)
            conv = self.module
            if isinstance(conv, nn.Conv2d):
                return y + functional.conv2d(x.to(y.dtype), change, None, conv.stride, conv.padding, conv.dilation)
            return y + functional.linear(x.to(y.dtype), change)

        def delta(self):
            return self._change().detach()

        def tensors(self):
            return {key: weight.detach() for key, weight in self.weights.items()} | {"alpha": torch.tensor(self.alpha)}

        def misfit(self, given):
            same = all(key in given and given[key].shape == self.weights[key].shape for key in KEYS)
            return "" if same else "has other shapes"

        def take(self, given):
            with torch.no_grad():
                for key in KEYS:
                    self.weights[key].copy_(given[key])
            self.alpha = _size(given).alpha

        def shorten(self, ratio):
            for weight in self.weights.values():
                weight.mul_(ratio**0.25)

    return LoHa()


def _fresh(target, size, own, seed):
    """As LyCORIS begins: w1 and w2_b normal, w1_a a tenth of it, w2_a zero."""
    import torch

    from core.record.draws import generator

    weight = target.module.weight
    rows, columns = weight.shape[0], weight[0].numel()
    place = torch.device("meta" if weight.is_meta else "cpu")
    shapes = {"hada_w1_a": (rows, size.rank), "hada_w1_b": (size.rank, columns)}
    shapes |= {"hada_w2_a": (rows, size.rank), "hada_w2_b": (size.rank, columns)}
    tensors = {key: torch.zeros(shape, device=place) for key, shape in shapes.items()}
    if not weight.is_meta:
        drawn = generator(seed, "network_init", target.name)
        for key, spread in (("hada_w1_b", 1.0), ("hada_w1_a", 0.1), ("hada_w2_b", 1.0)):
            tensors[key].normal_(0.0, spread, generator=drawn)
    return _adapter(target, tensors, size.alpha)


def _from_tensors(target, tensors):
    rows, columns = target.module.weight.shape[0], target.module.weight[0].numel()
    fits = tensors["hada_w1_a"].shape[0] == rows and tensors["hada_w1_b"].shape[1] == columns
    return _adapter(target, tensors, _size(tensors).alpha) if fits else None


def _size(tensors):
    rank = tensors["hada_w1_b"].shape[0]
    return BlockSize(rank, float(tensors["alpha"]) if "alpha" in tensors else float(rank))


def _flaw(name, tensors):
    missing = [key for key in KEYS if key not in tensors]
    if missing:
        return f"{name} has no {missing[0]}"
    ranks = {tensors[key].shape[0 if key.endswith("b") else -1] for key in KEYS}
    return "" if len(ranks) == 1 and all(tensors[key].ndim == 2 for key in KEYS) else f"{name} has several ranks"


register(
    NetworkKind(
        name="loha",
        title="LoHa",
        forms=(KEYS,),
        optional=("alpha",),
        input_keys=("hada_w1_b",),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=_size,
        flaw=_flaw,
        module_name="lycoris.kohya",
        network_args=lambda job: {"algo": "loha"},
        uses=SIZES,
        idle=lambda tensors: not tensors["hada_w2_a"].any(),
    )
)
