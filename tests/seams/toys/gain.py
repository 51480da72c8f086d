"""A toy network kind: each output channel of a layer is multiplied by 1 + gain."""

from core.networks.kinds import NetworkKind, register
from core.settings.base import Settings, setting
from core.settings.blocks import BlockSize

KEY = "gain"


class GainSettings(Settings):
    """A gain for each output channel."""

    start: float = setting(0.0, title="Initial gain", help="The gain of each channel at the first step.", ge=-1, le=1)


def _adapter(target, gain):
    import torch
    from torch import nn

    from core.networks.adapter import Adapter
    from core.networks.fp8 import base_weight

    class Gain(Adapter):
        def __init__(self):
            super().__init__(target.name, target.module)
            self.gain = nn.Parameter(gain.float())

        def _wide(self, value, dims):
            return value.view(-1, *(1 for _ in range(dims)))

        def parameters(self):
            return [(self.gain, "plain")]

        def add_to(self, y, x):
            dims = 2 if isinstance(self.module, nn.Conv2d) else 0
            bias = 0.0 if self.module.bias is None else self._wide(self.module.bias, dims)
            return y + self.multiplier * self._wide(self.gain, dims).to(y.dtype) * (y - bias)

        def delta(self):
            weight = base_weight(self.module)
            return self._wide(self.gain.detach(), weight.dim() - 1) * weight

        def tensors(self):
            return {KEY: self.gain.detach()}

        def misfit(self, tensors):
            return "" if tensors[KEY].shape == self.gain.shape else "has another shape"

        def take(self, tensors):
            with torch.no_grad():
                self.gain.copy_(tensors[KEY])

        def shorten(self, ratio):
            self.gain.mul_(ratio)

    return Gain()


def _fresh(target, size, own, seed):
    import torch

    weight = target.module.weight
    return _adapter(target, torch.full(weight.shape[:1], own.start, device=weight.device))


def _from_tensors(target, tensors):
    fits = tensors[KEY].shape == target.module.weight.shape[:1]
    return _adapter(target, tensors[KEY].to(target.module.weight.device)) if fits else None


register(
    NetworkKind(
        name="gain",
        title="Gain per channel",
        forms=((KEY,),),
        fresh=_fresh,
        from_tensors=_from_tensors,
        size=lambda tensors: BlockSize(1, 1.0),
        flaw=lambda name, tensors: "" if tensors[KEY].ndim == 1 else f"{name}.{KEY} is not one number a channel",
        module_name="tests.seams.toys.gain",
        network_args=lambda job: {"start": str(job.gain.start)},
        settings=GainSettings,
        uses=frozenset(),
        idle=lambda tensors: not tensors[KEY].any(),
        needs_base_weight=True,
    )
)
