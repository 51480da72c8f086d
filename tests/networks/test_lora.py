import copy
from types import SimpleNamespace

import torch
from pytest import approx, fixture, mark, raises
from torch import nn
from torch.nn.functional import conv2d, linear

from core.networks.kinds.lora import LoraAdapter
from core.networks.layer_sizes import part_of
from core.networks.network import Network, attached
from core.record.problems import ProblemsError
from core.settings.network import NetworkSettings


class ResnetBlock2D(nn.Module):
    """Only the class name matters: it says that what is inside is hooked together with 3x3 convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.time_emb_proj = nn.Linear(16, 12)
        self.conv_shortcut = nn.Conv2d(8, 12, 1)

    def forward(self, x, embedding):
        return self.conv1(x) + self.time_emb_proj(embedding)[:, :, None, None] + self.conv_shortcut(x)


class Tiny(nn.Module):
    """A Linear with and one without bias, 1x1, 3x3 and strided convolutions, and a text part."""

    def __init__(self):
        super().__init__()
        self.resnet = ResnetBlock2D()
        self.down = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.proj_in = nn.Conv2d(12, 10, 1)
        self.to_q = nn.Linear(10, 6, bias=False)
        self.to_out = nn.Linear(6, 10)
        self.text = nn.Linear(5, 16)

    def forward(self, x, words):
        x = self.proj_in(self.down(self.resnet(x, self.text(words).mean(1))))
        tokens = x.flatten(2).transpose(1, 2)
        return self.to_out(torch.tanh(self.to_q(tokens)))


NAMES = {
    "text": "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "resnet.conv1": "lora_unet_down_blocks_0_resnets_0_conv1",
    "resnet.time_emb_proj": "lora_unet_down_blocks_0_resnets_0_time_emb_proj",
    "resnet.conv_shortcut": "lora_unet_down_blocks_0_resnets_0_conv_shortcut",
    "down": "lora_unet_down_blocks_0_downsamplers_0_conv",
    "proj_in": "lora_unet_down_blocks_0_attentions_0_proj_in",
    "to_q": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "to_out": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
}
EVERYTHING = NetworkSettings(rank=4, alpha=2.0, conv_rank=3, conv_alpha=1.5, train_unet=True, train_text_encoder=True)


def targets_of(model):
    for path, name in NAMES.items():
        yield SimpleNamespace(
            name=name, path=path, parent=model.get_submodule(path.rpartition(".")[0]), module=model.get_submodule(path)
        )


@fixture
def model():
    torch.manual_seed(0)
    return Tiny().requires_grad_(False)


@fixture
def inputs():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 8, 6, 4, generator=draw), torch.randn(2, 7, 5, generator=draw)


def with_random_up(network, seed=2):
    """As if trained: up is no longer zero."""
    draw = torch.Generator().manual_seed(seed)
    for layer in network.adapters.values():
        with torch.no_grad():
            layer.up.copy_(torch.randn(layer.up.shape, generator=draw) * 0.3)
    return network


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_lora_changes_no_output_bit(model, inputs, dtype):
    model, inputs = model.to(dtype), [value.to(dtype) for value in inputs]
    before = model(*inputs)
    network = Network.create(targets_of(model), EVERYTHING, seed=1)
    with attached(network):
        assert torch.equal(model(*inputs), before)


def test_each_kind_of_module_computes_its_own_output_plus_scale_times_up_of_down(model, inputs):
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    images, words = inputs
    layers = {path: network.adapters[name] for path, name in NAMES.items()}
    wide = torch.randn(2, 12, 6, 4).to(memory_format=torch.channels_last)
    plain = {
        "text": model.text(words),
        "resnet.conv1": model.resnet.conv1(images),
        "down": model.down(wide),
        "proj_in": model.proj_in(wide),
    }
    expected = {
        "text": linear(linear(words, layers["text"].down), layers["text"].up) * 0.5,
        "resnet.conv1": conv2d(conv2d(images, layers["resnet.conv1"].down, padding=1), layers["resnet.conv1"].up) * 0.5,
        "down": conv2d(conv2d(wide, layers["down"].down, stride=2, padding=1), layers["down"].up) * 0.5,
        "proj_in": conv2d(conv2d(wide, layers["proj_in"].down), layers["proj_in"].up) * 0.5,
    }
    given = {"text": words, "resnet.conv1": images, "down": wide, "proj_in": wide}
    with attached(network):
        for path, value in expected.items():
            torch.testing.assert_close(model.get_submodule(path)(given[path]), plain[path] + value)


def test_only_large_kernels_get_conv_rank_and_conv_alpha(model):
    layers = Network.create(targets_of(model), EVERYTHING, seed=1).adapters
    sizes = {path: (layers[name].rank, layers[name].alpha) for path, name in NAMES.items()}
    large = {"resnet.conv1", "down"}
    assert sizes == {path: (3, 1.5) if path in large else (4, 2.0) for path in NAMES}


def test_without_conv_rank_the_residual_and_resampling_blocks_are_left_alone(model):
    settings = NetworkSettings(rank=4, alpha=4, train_text_encoder=True)
    names = set(Network.create(targets_of(model), settings, seed=1).adapters)
    assert names == {NAMES[path] for path in ("text", "proj_in", "to_q", "to_out")}


def test_after_a_merge_sd_scripts_trains_residual_blocks_without_their_large_kernels(model):
    """Reference, section 3.6: the list of layers that a merge widened is used for the new LoRA."""
    settings = {"rank": 4, "alpha": 4, "train_text_encoder": True, "base_weights_layers": "kohya"}
    merged, alone = (NetworkSettings(**settings, base_weights=files) for files in (["a"], []))
    own, kohya = (set(Network.create(targets_of(model), each, seed=1).adapters) for each in (alone, merged))
    assert own == {NAMES[path] for path in ("text", "proj_in", "to_q", "to_out")}
    assert kohya == {NAMES[path] for path in NAMES if path not in ("resnet.conv1", "down")} > own


def test_conv_alpha_left_empty_is_the_conv_rank(model):
    layers = Network.create(targets_of(model), NetworkSettings(rank=4, alpha=1, conv_rank=8), seed=1).adapters
    assert layers[NAMES["down"]].scale == 1.0 and layers[NAMES["to_q"]].scale == 0.25


def test_parts_that_do_not_train_are_not_in_the_network(model):
    unet_only = Network.create(targets_of(model), NetworkSettings(train_text_encoder=False), seed=1)
    text_only = Network.create(targets_of(model), NetworkSettings(train_unet=False, train_text_encoder=True), seed=1)
    assert unet_only.parameters_by_part()["text_encoder"] == [] and len(unet_only.parameters_by_part()["unet"]) == 6
    assert text_only.parameters_by_part()["unet"] == [] and len(text_only.parameters_by_part()["text_encoder"]) == 2


def test_names_tell_the_part():
    assert [part_of(name) for name in ("lora_unet_x", "lora_te_x", "lora_te1_x", "lora_te2_x")] == ["unet"] + 3 * [
        "text_encoder"
    ]


def test_the_start_of_a_module_depends_on_seed_and_name_alone(model):
    whole = Network.create(targets_of(model), EVERYTHING, seed=1)
    part = Network.create(list(targets_of(model))[::-1], NetworkSettings(rank=4, alpha=1), seed=1)
    name = NAMES["to_q"]
    assert torch.equal(whole.adapters[name].down, part.adapters[name].down)
    assert not torch.equal(
        whole.adapters[name].down, Network.create(targets_of(model), EVERYTHING, seed=2).adapters[name].down
    )


def test_down_starts_uniform_within_one_over_the_root_of_its_inputs():  # kaiming, a = sqrt 5
    layer = LoraAdapter.fresh("lora_unet_x", nn.Linear(400, 8), 64, 1.0, seed=3)
    down = layer.down.detach()
    assert float(down.abs().max()) == approx(1 / 20, rel=1e-2)
    assert float(down.std()) == approx(1 / 20 / 3**0.5, rel=2e-2)  # 25,600 draws
    assert not layer.up.any()


@mark.parametrize("dtype", [torch.float32, torch.float64])
@mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_gradients_are_those_of_the_written_out_formula(model, inputs, dtype, memory_format):
    model = model.to(dtype).to(memory_format=memory_format)
    images, words = (value.to(dtype) for value in inputs)
    images, words = images.to(memory_format=memory_format).requires_grad_(), words.requires_grad_()
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    merged = copy.deepcopy(model)
    changes = {}
    for path, name in NAMES.items():
        layer, module = network.adapters[name], merged.get_submodule(path)
        layer.down.data, layer.up.data = layer.down.data.to(dtype), layer.up.data.to(dtype)
        down, up = (value.detach().clone().requires_grad_() for value in (layer.down, layer.up))
        changes[path] = (down, up)
        weight = module.weight + layer.scale * (up.flatten(1) @ down.flatten(1)).view(module.weight.shape)
        del module.weight
        module.weight = weight
    expected = torch.autograd.grad(
        merged(images, words).square().sum(), [images, words, *(v for pair in changes.values() for v in pair)]
    )
    with attached(network):
        given = [v for name in NAMES.values() for v in (network.adapters[name].down, network.adapters[name].up)]
        got = torch.autograd.grad(model(images, words).square().sum(), [images, words, *given])
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_masters_stay_float32_and_get_float32_gradients_under_bfloat16(model, inputs):
    model, inputs = model.bfloat16(), [value.bfloat16() for value in inputs]
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    with attached(network):
        model(*inputs).float().square().sum().backward()
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32 and parameter.grad.dtype == torch.float32
        assert float(parameter.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in model.parameters())


def test_merged_weight_is_weight_plus_scale_times_up_at_down(model):
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    before = bits(model)
    network.merge_to()
    for path, name in NAMES.items():
        layer = network.adapters[name]
        scale = layer.alpha / layer.rank
        change = torch.einsum("or,ri->oi", layer.up.flatten(1).double(), layer.down.flatten(1).double()).view(
            before[f"{path}.weight"].shape
        )
        torch.testing.assert_close(
            model.get_submodule(path).weight.double(),
            before[f"{path}.weight"].double() + scale * change,
            rtol=1e-6,
            atol=1e-6,
        )


@mark.parametrize("strength", [1.0, 0.4, -1.0])
def test_merged_model_draws_what_the_attached_one_draws(model, inputs, strength):
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    network.set_multiplier(strength)
    with attached(network):
        live = model(*inputs)
    network.merge_to()
    torch.testing.assert_close(model(*inputs), live, rtol=1e-5, atol=2e-6)


def test_a_compiled_model_draws_and_trains_what_the_plain_one_does(model, inputs):
    """torch.compile reads the adapters as it traces: what it misread would not train, and no error would say so."""
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    weights = [weight for adapter in network.adapters.values() for weight, _ in adapter.parameters()]
    with attached(network):
        plain = torch.autograd.grad(model(*inputs).square().sum(), weights)
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-6)
        found = torch.autograd.grad(compiled(*inputs).square().sum(), weights)
    torch._dynamo.reset()
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_multiplier_0_is_exactly_the_model_without_it(model, inputs):
    before = model(*inputs)
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    network.set_multiplier(0.0)
    with attached(network):
        assert torch.equal(model(*inputs), before)


def test_attach_and_detach_leave_the_model_bit_identical_also_after_an_error(model, inputs):
    weights, before, attributes = (
        bits(model),
        model(*inputs),
        {path: set(model.get_submodule(path).__dict__) for path in NAMES},
    )
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    with raises(RuntimeError), attached(network):
        assert not torch.equal(model(*inputs), before)
        assert list(model.state_dict()) == list(weights)  # an attached network adds no keys to the model
        raise RuntimeError
    assert torch.equal(model(*inputs), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert attributes == {path: set(model.get_submodule(path).__dict__) for path in NAMES}


def test_two_loras_add_and_leave_in_any_order(model, inputs):
    one = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1), 5)
    other = with_random_up(
        Network.create(targets_of(model), NetworkSettings(rank=2, alpha=4, train_text_encoder=True), seed=2), 6
    )
    one.set_multiplier(0.7)
    with attached(one):
        only_one = model(*inputs)
    merged = copy.deepcopy(model)
    one.attach()
    other.attach()
    both = model(*inputs)
    one.detach()
    only_other = model(*inputs)
    one.attach()
    other.detach()
    assert torch.equal(model(*inputs), only_one)
    one.detach()
    for network, multiplier in ((one, 0.7), (other, 1.0)):
        copied = Network.from_tensors(network.state_dict(), targets_of(merged), multiplier)
        copied.merge_to()
    torch.testing.assert_close(both, merged(*inputs), rtol=1e-5, atol=1e-5)
    assert not torch.equal(only_other, both)


def test_state_has_kohya_names_and_shapes(model):
    network = Network.create(targets_of(model), EVERYTHING, seed=1)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    q, conv = NAMES["to_q"], NAMES["down"]
    assert len(shapes) == 3 * len(NAMES)
    assert (shapes[f"{q}.lora_down.weight"], shapes[f"{q}.lora_up.weight"], shapes[f"{q}.alpha"]) == (
        (4, 10),
        (6, 4),
        (),
    )
    assert (shapes[f"{conv}.lora_down.weight"], shapes[f"{conv}.lora_up.weight"]) == ((3, 12, 3, 3), (12, 3, 1, 1))
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


def test_a_saved_network_comes_back_to_the_bit(model, inputs):
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    saved = {key: value.clone() for key, value in network.state_dict().items()}
    fresh = Network.create(targets_of(model), EVERYTHING, seed=9)
    fresh.load_state(saved)
    from_file = Network.from_tensors(saved, targets_of(model))
    outputs = []
    for each in (network, fresh, from_file):
        assert all(torch.equal(value, saved[key]) for key, value in each.state_dict().items())
        with attached(each), torch.no_grad():
            outputs.append(model(*inputs))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert from_file.unmatched == ()


def test_the_alpha_of_a_file_decides_the_scale(model):  # sd-scripts keeps the scale of the command line's alpha
    network = Network.create(targets_of(model), EVERYTHING, seed=1)
    tensors = {key: value.clone() for key, value in network.state_dict().items()}
    tensors[f"{NAMES['to_q']}.alpha"] = torch.tensor(8.0)
    network.load_state(tensors)
    assert network.adapters[NAMES["to_q"]].scale == 2.0


def test_a_file_without_alpha_acts_at_scale_1(model):
    tensors = {
        key: value
        for key, value in Network.create(targets_of(model), EVERYTHING, seed=1).state_dict().items()
        if "alpha" not in key
    }
    loaded = Network.from_tensors(tensors, targets_of(model))
    assert {layer.scale for layer in loaded.adapters.values()} == {1.0}


def test_weights_of_a_1x1_convolution_fit_a_linear_and_the_reverse(model, inputs):
    network = with_random_up(Network.create(targets_of(model), EVERYTHING, seed=1))
    tensors = dict(network.state_dict())
    for key in [key for key in tensors if key.startswith((NAMES["to_q"], NAMES["proj_in"])) and "weight" in key]:
        tensors[key] = tensors[key][:, :, None, None] if tensors[key].dim() == 2 else tensors[key][:, :, 0, 0]
    loaded = Network.from_tensors(tensors, targets_of(model))
    assert loaded.unmatched == () and len(loaded.adapters) == len(NAMES)
    with attached(network), torch.no_grad():
        expected = model(*inputs)
    with attached(loaded), torch.no_grad():
        assert torch.equal(model(*inputs), expected)


def test_modules_of_a_file_that_the_model_lacks_or_that_are_no_lora_are_named(model):
    tensors = dict(Network.create(targets_of(model), EVERYTHING, seed=1).state_dict())
    tensors["lora_unet_no_such_module.lora_down.weight"] = torch.zeros(4, 10)
    tensors["lora_unet_no_such_module.lora_up.weight"] = torch.zeros(6, 4)
    tensors[f"{NAMES['text']}.w_norm"] = torch.ones(16)
    tensors[f"{NAMES['to_q']}.lora_down.weight"] = torch.zeros(4, 11)  # a model of another width
    loaded = Network.from_tensors(tensors, targets_of(model))
    assert set(loaded.unmatched) == {"lora_unet_no_such_module", NAMES["text"], NAMES["to_q"]}
    assert set(loaded.adapters) == set(NAMES.values()) - set(loaded.unmatched)


def test_load_state_lists_everything_that_does_not_fit_and_changes_nothing(model):
    network = Network.create(targets_of(model), EVERYTHING, seed=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = {key: value.clone() + 1 for key, value in before.items() if not key.startswith(NAMES["text"])}
    tensors[f"{NAMES['to_q']}.lora_down.weight"] = torch.zeros(2, 10)
    tensors[f"{NAMES['to_q']}.lora_up.weight"] = torch.zeros(6, 2)
    tensors["lora_unet_other.alpha"] = torch.tensor(1.0)
    with raises(ProblemsError) as caught:
        network.load_state(tensors)
    said = str(caught.value)
    assert (
        "lora_unet_other" in said
        and f"{NAMES['text']} is missing" in said
        and f"{NAMES['to_q']} has rank 2, not 4" in said
    )
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
