"""Weights of a network in the compute dtype and their gradients: cast once per micro-batch, with the results of casts at each use."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from core.networks import low_rank
from core.networks.network import attached
from tests.networks import test_kinds as of_kinds

model, inputs = of_kinds.model, of_kinds.inputs
CAST_ALONE = ("lora", "lora_fa", "locon", "loha", "lokr", "full", "glora")  # others compute with their weights in fp32


class Casts(TorchDispatchMode):
    """Counts casts of tensors of these shapes to bf16 or from it, one by one and together."""

    def __init__(self, shapes):
        super().__init__()
        self._shapes, self.alone, self.together = shapes, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.together += func is torch.ops.aten._foreach_copy_.default
        if func is torch.ops.aten._to_copy.default and args[0].shape in self._shapes:
            self.alone += kwargs.get("dtype") in (torch.bfloat16, torch.float32)
        return func(*args, **kwargs)


def narrow(model, inputs):
    return (value.to(torch.bfloat16) for value in (model, *inputs))


def micro_batches(model, inputs, network, *, cached=True):
    """The losses of two and the sum of their gradients, with gradient checkpointing."""
    for weight in network.parameters():
        weight.grad = None
    losses = []
    for number in range(2):
        network.show(1, number, ["a", "b"])
        if not cached:
            network._casts.close()
        with attached(network):
            losses.append(checkpoint(model, *inputs, use_reentrant=False).float().square().sum())
            losses[-1].backward()
        network.hide()
    return [*losses, *(weight.grad for weight in network.parameters())]


def change(network):
    """As some optimizers do, which torch does not count as a new version of a weight."""
    for weight in network.parameters():
        weight.data.mul_(1.1)


@of_kinds.every_case
def test_losses_and_gradients_are_those_of_casts_at_each_use(model, inputs, case):
    model, images, words = narrow(model, inputs)
    model, images = (each.to(memory_format=torch.channels_last) for each in (model, images))
    network = of_kinds.trained(case, model)
    micro_batches(model, (images, words), network)
    change(network)
    found = micro_batches(model, (images, words), network)
    expected = micro_batches(model, (images, words), network, cached=False)
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in found)


@pytest.mark.parametrize("case", CAST_ALONE)
def test_no_weight_is_cast_alone_once_it_has_its_copy(model, inputs, case):
    model, *inputs = narrow(model, inputs)
    network = of_kinds.trained(case, model)
    shapes = {tensor.shape for tensor in network.state_dict().values()}
    with Casts(shapes) as first:
        micro_batches(model, inputs, network)
    with Casts(shapes) as second:
        micro_batches(model, inputs, network)
    assert first.alone > 0 and (second.alone, second.together) == (0, 4)


def test_gradients_are_cast_before_they_take_much_memory(model, inputs, monkeypatch):
    model, *inputs = narrow(model, inputs)
    network = of_kinds.trained("lora", model)
    micro_batches(model, inputs, network)
    expected = micro_batches(model, inputs, network)
    monkeypatch.setattr(low_rank, "KEPT_BYTES", 0)
    with Casts(()) as casts:
        found = micro_batches(model, inputs, network)
    assert casts.together == 2 + 2 * len(network.parameters())
    assert all(map(torch.equal, found, expected))


def test_after_a_micro_batch_weights_are_read_as_they_are(model, inputs):
    model, *inputs = narrow(model, inputs)
    network = of_kinds.trained("lora", model)
    micro_batches(model, inputs, network)
    before = of_kinds.output(model, inputs, network)
    change(network)
    assert not torch.equal(of_kinds.output(model, inputs, network), before)


def test_weights_that_are_gathered_for_each_module_are_not_copied_before(model, inputs):
    model, *inputs = narrow(model, inputs)
    network = of_kinds.trained("lora", model)
    with attached(network):
        network.register_in_modules()
    micro_batches(model, inputs, network)
    for weight in network.parameters():
        weight.data = weight.data.new_empty(0)  # as ZeRO stage 3 frees them
    network.show(2, 0, ["a", "b"])
