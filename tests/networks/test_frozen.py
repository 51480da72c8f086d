import copy
from types import SimpleNamespace

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pytest import fixture, mark, skip
from torch import nn

from core.families.sd1 import FAMILY as sd1
from core.networks import frozen
from core.networks.network import Network, attached
from core.settings.network import NetworkSettings

BF16, FP32 = torch.bfloat16, torch.float32


def rough(dtype):
    """Sums in another order: a few last places of numbers near 1."""
    return {"rtol": 2e-2, "atol": 2e-2} if dtype == BF16 else {"rtol": 1e-4, "atol": 1e-5}


def build_unet(dtype=FP32):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.to(dtype).requires_grad_(False).eval().to(memory_format=torch.channels_last)


@fixture(autouse=True)
def _packing_works_here():
    """Where oneDNN and its bf16 are, the private calls must work; elsewhere nothing is installed."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        skip("no oneDNN with bf16 on this CPU")
    assert frozen.can_pack(FP32) and frozen.can_pack(BF16)


def weights_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@mark.parametrize("dtype", [FP32, BF16])
@mark.parametrize("kernel", [1, 3, 5])
@mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_frozen_convolution_gives_the_plain_output_and_gradient_at_every_size(dtype, kernel, memory_format):
    torch.manual_seed(1)
    conv = nn.Conv2d(32, 48, kernel, padding=kernel // 2).to(dtype).requires_grad_(False)
    model, before = nn.Sequential(conv), copy.deepcopy(conv)
    assert frozen.install(model) == 1
    for batch, height, width in ((1, 8, 8), (2, 4, 6), (3, 16, 8), (1, 5, 7), (1, 1, 1)):  # the first decides the packs
        x = torch.randn(batch, 32, height, width).to(dtype).to(memory_format=memory_format).requires_grad_()
        plain, fast = before(x), model(x)
        grad = torch.randn_like(plain)
        (plain_grad,) = torch.autograd.grad(plain, x, grad)
        (fast_grad,) = torch.autograd.grad(fast, x, grad)
        torch.testing.assert_close(fast, plain, **rough(dtype))
        torch.testing.assert_close(fast_grad, plain_grad, **rough(dtype))


@mark.parametrize("dtype", [FP32, BF16])
def test_a_whole_unet_predicts_and_teaches_a_lora_as_before(dtype):
    unet = build_unet(dtype)
    settings = NetworkSettings(rank=4, alpha=4, conv_rank=4)
    network = Network.create(sd1.lora_targets(unet, conv=True), settings, seed=1)
    for layer in network.adapters.values():
        nn.init.normal_(layer.up, std=0.1, generator=torch.Generator().manual_seed(2))
    latents, text = torch.randn(2, 4, 8, 8).to(dtype), torch.randn(2, 5, 16).to(dtype)

    def run():
        with attached(network):
            output = unet(latents, torch.tensor([10, 900]), text).sample
            return output.detach().float(), torch.autograd.grad(output.float().square().mean(), network.parameters())

    plain, plain_grads = run()
    assert frozen.install(unet) > 0
    fast, fast_grads = run()
    apart = 1e-5 if dtype == FP32 else 3e-2  # of the whole's size; bf16 keeps 3 digits a layer
    assert float((fast - plain).norm() / plain.norm()) < apart
    difference = sum(float((one - other).square().sum()) for one, other in zip(fast_grads, plain_grads, strict=True))
    size = sum(float(one.square().sum()) for one in plain_grads)
    assert (difference / size) ** 0.5 < 3 * apart


def test_gradient_checkpointing_gives_the_same_gradients():
    unet = build_unet()
    frozen.install(unet)
    network = Network.create(sd1.lora_targets(unet, conv=True), NetworkSettings(rank=4, alpha=4, conv_rank=4), seed=1)
    for layer in network.adapters.values():
        nn.init.normal_(layer.up, std=0.1, generator=torch.Generator().manual_seed(2))
    given = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 5, 16)
    with attached(network):
        whole = torch.autograd.grad(unet(*given).sample.square().mean(), network.parameters())
        unet.enable_gradient_checkpointing()
        unet.train()  # it has no dropout; diffusers checkpoints in training mode only
        again = torch.autograd.grad(unet(*given).sample.square().mean(), network.parameters())
    for one, other in zip(whole, again, strict=True):
        torch.testing.assert_close(one, other)


def test_a_fresh_lora_on_a_frozen_unet_changes_no_output_bit():
    unet = build_unet(BF16)
    frozen.install(unet)
    given = torch.randn(1, 4, 8, 8).to(BF16), torch.tensor([500]), torch.randn(1, 5, 16).to(BF16)
    before = unet(*given).sample
    settings = NetworkSettings(rank=4, alpha=4, conv_rank=4)
    with attached(Network.create(sd1.lora_targets(unet, conv=True), settings, seed=1)):
        assert torch.equal(unet(*given).sample, before)


@mark.parametrize("dtype", [FP32, BF16])
def test_taking_it_off_puts_every_weight_and_output_back_to_the_bit(dtype):
    unet = build_unet(dtype)
    given = torch.randn(1, 4, 8, 8).to(dtype), torch.tensor([500]), torch.randn(1, 5, 16).to(dtype)
    weights, before = weights_of(unet), unet(*given).sample
    strides = {key: value.stride() for key, value in unet.state_dict().items()}
    frozen.install(unet)
    unet(given[0].requires_grad_(), *given[1:]).sample.sum().backward()  # both packs are made
    frozen.uninstall(unet)
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())
    assert all(value.stride() == strides[key] for key, value in unet.state_dict().items())  # channels_last stays so
    assert torch.equal(unet(*given).sample, before)


@mark.parametrize("dtype", [FP32, BF16])
def test_a_unet_of_any_order_of_memory_computes_with_the_channels_together(dtype, monkeypatch):
    """Its first convolution is not packed, and its order went through every sum: all 1x1 ones were then plain ones."""
    unet = build_unet(dtype).to(memory_format=torch.contiguous_format)
    given = torch.randn(1, 4, 8, 8).to(dtype), torch.tensor([500]), torch.randn(1, 5, 16).to(dtype)
    before, orders, products = unet(*given).sample, [], []
    packed, over = frozen.PackedConv.product, frozen.channel_product
    monkeypatch.setattr(
        frozen.PackedConv,
        "product",
        lambda conv, x: orders.append(x.is_contiguous(memory_format=torch.channels_last)) or packed(conv, x),
    )
    monkeypatch.setattr(frozen, "channel_product", lambda *given: products.append(given) or over(*given))
    frozen.install(unet)
    after = unet(*given).sample
    pointwise = [m for m in unet.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(products) == len(pointwise) > 2 and orders and all(orders)
    torch.testing.assert_close(
        after, before, rtol=2e-2 if dtype == BF16 else 1e-4, atol=2e-2 if dtype == BF16 else 1e-4
    )


def test_inside_packed_copies_convolutions_that_train_keep_their_own_weights():
    unet = build_unet(FP32).to(memory_format=torch.contiguous_format).requires_grad_(True)
    kept = {key: value.data_ptr() for key, value in unet.state_dict().items()}
    with frozen.packed_copies(unet):
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert {key: value.data_ptr() for key, value in unet.state_dict().items()} == kept


def test_the_plain_weight_takes_no_memory_meanwhile_and_cannot_be_used_by_mistake():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))
    expected = 32 * 32 * 9 * 4
    assert frozen.extra_bytes(model) == expected
    frozen.install(model)
    model(torch.randn(1, 32, 8, 8))
    weight = model[0].weight
    assert weight.shape == (32, 32, 3, 3) and weight.dtype == FP32
    assert weight.untyped_storage().nbytes() == 4 and bool(weight.isnan().all())


@mark.parametrize(
    "conv",
    [
        nn.Conv2d(32, 32, 3, padding=1),  # trains
        nn.Conv2d(32, 32, 3, padding=1, stride=2).requires_grad_(False),
        nn.Conv2d(32, 32, 3, padding=0).requires_grad_(False),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2).requires_grad_(False),
        nn.Conv2d(32, 32, 3, padding=1, groups=2).requires_grad_(False),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect").requires_grad_(False),
        nn.Conv2d(4, 32, 3, padding=1).requires_grad_(False),
        nn.Conv2d(32, 32, 3, padding=1).half().requires_grad_(False),
    ],
    ids=["training", "strided", "shrinking", "dilated", "grouped", "reflecting", "first layer", "float16"],
)
def test_other_convolutions_are_left_alone(conv):
    assert frozen.install(nn.Sequential(conv)) == 0
    assert "_conv_forward" not in conv.__dict__


def test_where_the_private_calls_are_missing_nothing_changes(monkeypatch):
    def gone(*args):
        raise AttributeError("no such call")

    monkeypatch.setattr(frozen.PackedConv, "_pack", gone)
    frozen.can_pack.cache_clear()
    try:
        model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))
        weight = model[0].weight.clone()
        assert frozen.install(model) == 0
        assert torch.equal(model[0].weight, weight)
    finally:
        frozen.can_pack.cache_clear()


def test_where_memory_is_short_nothing_is_installed(monkeypatch):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))
    for free, expected in ((frozen.extra_bytes(model) * 2 - 1, 0), (frozen.extra_bytes(model) * 2, 1)):
        monkeypatch.setattr(frozen.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert frozen.install(model) == expected


def test_where_packing_gives_other_numbers_nothing_is_installed(monkeypatch):
    right = frozen.PackedConv._convolve
    monkeypatch.setattr(frozen.PackedConv, "_convolve", lambda self, x, pack, bias: right(self, x, pack, bias) * 1.5)
    frozen.can_pack.cache_clear()
    try:
        assert frozen.install(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))) == 0
    finally:
        frozen.can_pack.cache_clear()
