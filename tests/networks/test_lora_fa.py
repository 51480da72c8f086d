"""LoRA-FA: a LoRA whose down matrix is frozen."""

from types import SimpleNamespace

import torch
from pytest import approx, fixture, mark
from torch import nn

from core.networks.kinds.lora_fa import LoraFaAdapter
from core.networks.network import Network, attached
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.network import NetworkSettings
from core.settings.rules import ineffective

WIDE = "lora_unet_down_blocks_0_resnets_0_conv1"
PLAIN = "lora_unet_down_blocks_0_attentions_0_proj_in"
SETTINGS = NetworkSettings(kind="lora_fa", rank=16, alpha=8.0, conv_rank=16, conv_alpha=8.0)


@fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"plain": nn.Linear(300, 40), "wide": nn.Conv2d(80, 24, 3, padding=1)}).requires_grad_(False)


def network_of(model, settings=SETTINGS, seed=1):
    targets = [
        SimpleNamespace(name=name, path="", parent=model, module=model[key])
        for name, key in ((PLAIN, "plain"), (WIDE, "wide"))
    ]
    return Network.create(targets, settings, seed)


@mark.parametrize(("name", "channels"), [(PLAIN, 300), (WIDE, 80)])
def test_down_starts_with_the_variance_of_sd_scripts(model, name, channels):
    """2 / (in + rank) (training.md, 3.10); 4,800 and 11,520 numbers give it to 5 %."""
    adapter = network_of(model).adapters[name]
    assert float(adapter.down.detach().var()) == approx(2 / (channels + 16), rel=0.05)
    assert float(adapter.down.detach().mean()) == approx(0, abs=0.01) and not adapter.up.any()


def test_only_up_trains_and_is_counted(model):
    network = network_of(model)
    assert sum(weight.numel() for weight in network.parameters()) == 16 * (40 + 24)
    before = {name: adapter.down.detach().clone() for name, adapter in network.adapters.items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with attached(network):
        for _ in range(2):
            (model["plain"](torch.ones(2, 300)).sum() + model["wide"](torch.ones(1, 80, 4, 4)).sum()).backward()
            optimizer.step()
    for name, adapter in network.adapters.items():
        assert torch.equal(adapter.down, before[name]) and adapter.down.grad is None
        assert adapter.up.any()


def test_up_gets_the_gradient_of_lora_with_the_same_down(model):
    fa = network_of(model)
    lora = network_of(model, SETTINGS.model_copy(update={"kind": "lora"}))
    x, grads = torch.randn(3, 300), []
    lora.load_state(fa.state_dict())
    for network in (fa, lora):
        with attached(network):
            model["plain"](x).square().sum().backward()
        grads.append(network.adapters[PLAIN].up.grad)
    assert torch.equal(*grads)


def test_the_max_norm_shortens_up_alone(model):
    network = network_of(model)
    adapter = network.adapters[PLAIN]
    assert isinstance(adapter, LoraFaAdapter)
    adapter.put(adapter.down.detach(), torch.ones_like(adapter.up))
    before = adapter.down.detach().clone()
    network.apply_max_norm(0.25)
    assert float(adapter.norm()) == approx(0.25, rel=1e-5) and torch.equal(adapter.down, before)


def test_lora_plus_has_no_effect_on_it_and_that_is_said():
    for kind, said in (("lora_fa", True), ("lora", False), ("dylora", False), ("loha", True)):
        job = build(TrainJob, {"network": {"kind": kind}, "optimizer": {"loraplus_lr_ratio": 16}})
        assert ("optimizer.loraplus_lr_ratio" in ineffective(job)) is said, kind


def test_it_keeps_no_input_for_the_backward_pass(model):
    """As the paper saves memory: the gradient of up needs down(x) alone."""
    x, kept = torch.randn(5, 300, requires_grad=True), {}
    for kind in ("lora", "lora_fa"):
        network = network_of(model, SETTINGS.model_copy(update={"kind": kind}))
        sizes = kept.setdefault(kind, [])
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.shape) or t, lambda t: t)
        with attached(network), hooks:
            model["plain"](x)
    assert x.shape in kept["lora"] and x.shape not in kept["lora_fa"]
