"""Device operations of training steps, by group, as tests/card sees them.

An operation is a call that torch launches at least one kernel for: no views, no allocations. One for many tensors
(`_foreach_...`, a fused optimizer) counts once.
"""

import sys
from collections import Counter
from functools import cache

import torch
from torch.utils._pytree import tree_iter

aten = torch.ops.aten
NO_KERNEL = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(aten._unsafe_view, aten._reshape_alias, aten.set_, aten.resize_, aten.record_stream, torch.ops.prim.device),
}
CASTS = {aten._to_copy, aten.copy_, aten._foreach_copy_}
LORA, CAST, OPTIMIZER, CLIPPING, LOSS = "LoRA products", "casts of LoRA", "optimizer", "clipping", "noise and loss"
FORWARD, AGAIN, BACKWARD = "base forward", "base forward, repeated", "base backward"
GROUPS = {LORA, OPTIMIZER, CLIPPING, LOSS, FORWARD}
STEP, CHECKPOINT = "the step", "gradient checkpointing"
# Part of a source file's path -> what its calls belong to; the first that fits.
PLACES = {
    "/torch/optim/": OPTIMIZER,
    "/bitsandbytes/": OPTIMIZER,
    "/core/optimization/undo.py": OPTIMIZER,
    "/core/optimization/": CLIPPING,
    "/core/networks/": LORA,
    "/diffusers/": FORWARD,
    "/transformers/": FORWARD,
    "/core/families/": FORWARD,
    "/core/training/loop/update.py": STEP,
    "/core/diffusion/": LOSS,
    "/core/training/": LOSS,
    "/torch/utils/checkpoint.py": CHECKPOINT,
}


class Operations:
    """Counts by group, in `counts`. Backward passes run in a thread of torch's, without the frames of the step."""

    def __init__(self):
        self.counts = Counter()
        self._trained, self._frozen, self._counts = set(), set(), False

    def begin(self, method):
        """Count from here on. method: tells which tensors are a network's weights by their shapes."""
        network = getattr(method, "network", None)
        for adapter in network.adapters.values() if network is not None else ():
            self._trained |= _shapes(weight for weight, _ in adapter.parameters())
            self._frozen |= _shapes([adapter.module.weight])
        self._counts = True

    def __call__(self, func, args, kwargs, made):
        if not self._counts or func.is_view or func.overloadpacket in NO_KERNEL:
            return
        tensors = [thing for thing in tree_iter((args, kwargs, made)) if isinstance(thing, torch.Tensor)]
        if any(tensor.device.type == "cuda" for tensor in tensors):
            self.counts[self._group(func.overloadpacket, {tuple(tensor.shape) for tensor in tensors})] += 1

    def _group(self, packet, shapes):
        places = _places()
        place = next((place for place in places if place in GROUPS), "")
        if place in (OPTIMIZER, CLIPPING):
            return place
        if shapes & self._trained or (place == LORA and not shapes & self._frozen):
            return CAST if packet in CASTS else LORA
        if STEP in places:
            return LOSS if place == LOSS else FORWARD
        return AGAIN if CHECKPOINT in places else BACKWARD


def _shapes(weights):
    """Of weights as they are, flat and transposed."""
    found = set()
    for weight in weights:
        rows, columns = len(weight), weight.numel() // len(weight)
        found |= {tuple(weight.shape), (rows, columns), (columns, rows)}
    return found


def _places():
    """The places of the calls, the innermost first."""
    places, frame = [], sys._getframe(3)
    while frame is not None:
        places.append(_place(frame.f_code.co_filename))
        frame = frame.f_back
    return places


@cache
def _place(file):
    file = file.replace("\\", "/")
    return next((place for part, place in PLACES.items() if part in file), "")
