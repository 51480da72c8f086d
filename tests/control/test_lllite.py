"""LLLite's passes are those that sd-scripts recorded, alone and chained; a fresh one changes nothing."""

import json
from pathlib import Path

import pytest
import torch

from core.control.files import write_tensors
from core.control.lllite import LayerNet, LLLite, LLLiteTarget, lllite_targets
from core.control.lllite_file import file_problems, load_lllite, sizes_of
from core.families import family
from core.record.problems import ProblemsError
from tests.control.conftest import by_formula
from tests.control.test_controlnet import _vector_of, close
from tests.control.test_controlnet_file import shapes_of
from tests.recorded_json import recorded_json
from tests.recorded_tensors import recorded_tensors

VECTORS = Path(__file__).parents[1] / "vectors" / "controlnet"
EMB, HIDDEN = 8, 16


@pytest.fixture(scope="module")
def recorded():
    return recorded_tensors(VECTORS / "lllite_forward.safetensors")


@pytest.fixture(scope="module")
def facts():
    return json.loads((VECTORS / "lllite_forward.json").read_text("utf-8"))


def filled(net, prefix):
    with torch.no_grad():
        for key, weight in net.named_parameters():
            own = by_formula(prefix + key, tuple(weight.shape))
            weight.copy_(0.3 * own if key.endswith("up.0.weight") else own)
    return net.requires_grad_(False)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_module(depth, recorded, facts):
    wanted = facts[f"module{depth}"]
    module = filled(LayerNet(48, depth, EMB, HIDDEN), f"lllite.module{depth}.")
    assert {key: list(weight.shape) for key, weight in module.state_dict().items()} == wanted["shapes"]
    hint, x = recorded[f"module{depth}.hint_u8"].float() / 255, recorded[f"module{depth}.x"]
    layer = torch.nn.Linear(48, 40)
    with torch.no_grad():
        layer.weight.copy_(by_formula(f"module{depth}.weight", (40, 48)))
        layer.bias.copy_(by_formula(f"module{depth}.bias", (40,)))
        net = LLLite({"one": module})
        net.multiplier = wanted["multiplier"]
        net.attach(torch.nn.ModuleDict({"layer": layer}), [LLLiteTarget("one", "layer", depth, 48)])
        net.set_control(hint)
        close(module.tokens(2 * hint - 1), recorded[f"module{depth}.cond_emb"])
        close(layer(x), recorded[f"module{depth}.y"])
        net.detach()
        close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), 1e-7)


@pytest.mark.parametrize(("depth", "shrinks"), [(1, 8), (2, 16), (3, 32)])
def test_at_other_sizes_the_border_of_the_control_image_is_repeated_below_and_on_the_right(depth, shrinks):
    module = filled(LayerNet(48, depth, EMB, HIDDEN), f"lllite.module{depth}.")
    hint = torch.randn(2, 3, shrinks + 1, 3 * shrinks - 1, generator=torch.Generator().manual_seed(0))
    rows, columns = (
        torch.arange(size).clamp(max=last) for size, last in ((2 * shrinks, shrinks), (3 * shrinks, 3 * shrinks - 2))
    )
    wanted = module.conditioning1(hint[:, :, rows][:, :, :, columns])
    assert wanted.shape == (2, EMB, 2, 3)
    close(module.tokens(hint), wanted.flatten(2).transpose(1, 2), 1e-7)
    whole = hint[:, :, :shrinks, : 2 * shrinks]
    close(module.tokens(whole), module.conditioning1(whole).flatten(2).transpose(1, 2), 1e-7)


@pytest.fixture
def passes(unets, recorded, facts):
    """(nets, rows) -> what the tiny SDXL U-Net predicts of the recorded latents."""
    from core.diffusion.text_states import Conditioning, TextStates
    from core.families.components import Components

    whole = Components(denoiser=unets["sdxl"], family="sdxl")

    def predict(noisy=recorded["unet.x"], timesteps=facts["unet"]["timesteps"]):
        given = Conditioning(TextStates(recorded["unet.context"], torch.zeros(2, 32)), sizes=torch.zeros(2, 6))
        with torch.no_grad(), _vector_of(unets["sdxl"], recorded["unet.y"]):
            return family("sdxl").predict(whole, noisy, torch.tensor(timesteps), given)

    return predict


@pytest.fixture
def net_on(unets):
    made = []

    def make(prefix="lllite."):
        places = lllite_targets(unets["sdxl"], "sdxl")
        net = filled(LLLite.create(places, EMB, HIDDEN, 0), prefix)
        net.attach(unets["sdxl"], places)
        made.append(net)
        return net

    yield make
    for net in made:
        net.detach()


def test_in_a_unet_alone_and_at_half_strength(passes, net_on, recorded, facts):
    plain = passes()
    close(plain, recorded["unet.plain"])
    net, hint = net_on(), recorded["unet.hint_u8"].float() / 255
    assert list(net) == [each["name"] for each in facts["tiny_modules"]]
    assert torch.equal(passes(), plain)
    net.set_control(hint)
    close(passes(), recorded["unet.one"])
    net.multiplier = 0.5
    close(passes(), recorded["unet.one_mult05"])
    net.multiplier = 0.0
    assert torch.equal(passes(), plain)


def test_of_two_the_last_acts_first(passes, net_on, recorded):
    first, second, hint = net_on(), net_on("lllite.second."), recorded["unet.hint_u8"].float() / 255
    first.set_control(hint)
    second.set_control(hint.flip(3))
    close(passes(), recorded["unet.two_second_flipped"])
    second.set_control(None)
    close(passes(), recorded["unet.one"])


def test_one_control_image_for_both_rows_of_guidance(passes, net_on, recorded):
    net_on().set_control(recorded["unet.hint_u8"][:1].float() / 255)
    twice = recorded["unet.x"][:1].repeat(2, 1, 1, 1)
    close(passes(twice, [37, 37]), recorded["unet.cfg_one_hint"])


def test_a_control_image_is_read_once_for_all_steps(passes, net_on, recorded, monkeypatch):
    """Of a net that does not train, whose weights stay."""
    net, hint, made, real = net_on(), recorded["unet.hint_u8"].float() / 255, [], LayerNet.tokens
    monkeypatch.setattr(LayerNet, "tokens", lambda *each: made.append(1) or real(*each))

    def of_two_steps(*shown):
        made.clear()
        for each in shown:
            net.set_control(each)
            passes()
        return len(made)

    assert of_two_steps(hint, hint) == 2 * len(net)
    net.eval()
    assert of_two_steps(hint, hint) == len(net)
    assert of_two_steps(hint.flip(3), hint) == 2 * len(net)


@pytest.mark.parametrize("zero_bias", [True, False])
def test_a_fresh_one_changes_nothing_unless_its_bias_is_drawn(zero_bias, unets, passes, recorded):
    places = lllite_targets(unets["sdxl"], "sdxl")
    net, again = (LLLite.create(places, EMB, HIDDEN, 3, zero_bias) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), again.parameters(), strict=True))
    plain = passes()
    net.attach(unets["sdxl"], places)
    net.set_control(recorded["unet.hint_u8"].float() / 255)
    assert torch.equal(passes(), plain) == zero_bias
    net.detach()


def test_gradients_reach_every_weight_and_repeated_passes_too(unets, recorded):
    """With gradient checkpointing, which repeats each block."""
    unet, places = unets["sdxl"], lllite_targets(unets["sdxl"], "sdxl")
    grads = []
    for checkpointed in (False, True):
        net = filled(LLLite.create(places, EMB, HIDDEN, 3), "lllite.").requires_grad_(True)
        net.attach(unet, places)
        net.set_control(recorded["unet.hint_u8"].float() / 255)
        unet.enable_gradient_checkpointing() if checkpointed else unet.disable_gradient_checkpointing()
        unet.train(checkpointed)
        more = {"text_embeds": torch.zeros(2, 32), "time_ids": torch.zeros(2, 6)}
        found = unet(recorded["unet.x"], torch.tensor([5, 900]), recorded["unet.context"], added_cond_kwargs=more)
        found.sample.square().mean().backward()
        grads.append([weight.grad for weight in net.parameters()])
        net.detach()
    unet.disable_gradient_checkpointing()
    unet.eval()
    for one, other in zip(*grads, strict=True):
        assert one is not None and one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-9)


def test_places_and_keys_of_the_published_sdxl():
    listed = recorded_json("controlnet/lllite_sdxl_modules")
    places = lllite_targets(family("sdxl").make_empty("unet"), "sdxl")
    found = [{"name": each.name, "depth": each.depth, "in": each.width} for each in places]
    assert found == [{key: each[key] for key in ("name", "depth", "in")} for each in listed["modules"]]
    with torch.device("meta"):
        made = {p.name: LayerNet(p.width, p.depth, listed["cond_emb_dim"], listed["network_dim"]) for p in places}
        state = LLLite(made).state_dict()
    keys = listed.get("keys") or listed["tensors"]
    assert {key: list(value.shape) for key, value in state.items()} == (keys if isinstance(keys, dict) else dict(keys))
    assert len(state) == 1600 and sum(value.numel() for value in state.values()) == 22_969_600


def test_of_sd1_the_middle_block_is_left_out(unets):
    places = lllite_targets(unets["sd1"], "sd1")
    assert len(places) == 24 and {each.depth for each in places} == {1, 2, 3}
    assert not any("middle_block" in each.name for each in places)
    net = LLLite.create(places, EMB, HIDDEN, 0)
    net.attach(unets["sd1"], places)
    net.set_control(torch.rand(1, 3, 128, 192))
    with torch.no_grad():
        unets["sd1"](torch.zeros(1, 4, 16, 24), torch.tensor([5]), torch.zeros(1, 77, 64))
    net.detach()


@pytest.mark.slow(but=("sd1-.safetensors",))
@pytest.mark.parametrize(("name", "ending"), [("sdxl", ".safetensors"), ("sd1", ".safetensors"), ("sdxl", ".pt")])
def test_a_file_gives_the_same_again(name, ending, unets, tmp_path):
    places = lllite_targets(unets[name], name)
    net = filled(LLLite.create(places, EMB, HIDDEN, 0), "lllite.")
    path = tmp_path / f"net{ending}"
    assert write_tensors(path, net.state_dict(), {}, torch.float32) == []
    assert sizes_of(path) == (EMB, HIDDEN)
    again = load_lllite(path, places, name)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_files_that_do_not_fit_are_named(unets, tmp_path):
    def codes(path, name):
        return [each.code for each in file_problems(path, shapes_of(unets[name]), name)]

    path, state = tmp_path / "xl.safetensors", {}
    net = LLLite.create(lllite_targets(unets["sdxl"], "sdxl"), EMB, HIDDEN, 0)
    state = net.state_dict()
    write_tensors(path, state, {}, None)
    assert codes(path, "sdxl") == [] and codes(path, "sd1") == ["lllite.other-family"]
    some = dict(list(state.items())[:-1])
    write_tensors(path, some, {}, None)
    assert codes(path, "sdxl") == ["lllite.other-tensors"]
    write_tensors(path, {"a.lora_down.weight": torch.zeros(2, 2)}, {}, None)
    assert codes(path, "sdxl") == ["lllite.not-an-lllite"]
    bad = {
        key: value.clone().fill_(float("nan")) if key.endswith("down.0.bias") else value for key, value in state.items()
    }
    from safetensors.torch import save_file

    save_file(bad, path)
    with pytest.raises(ProblemsError) as refused:
        load_lllite(path, lllite_targets(unets["sdxl"], "sdxl"), "sdxl")
    assert [each.code for each in refused.value.problems] == ["weights.not-finite"]
