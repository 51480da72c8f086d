"""A ControlNet's passes are those that sd-scripts recorded; from a U-Net it is a copy of its own that changes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.control.controlnet import ControlNet, from_unet
from core.diffusion.text_states import Conditioning, TextStates
from core.families import family
from core.families.components import Components
from tests.control.conftest import net_of
from tests.recorded_tensors import recorded_tensors

VECTORS = Path(__file__).parents[1] / "vectors" / "controlnet"


@pytest.fixture(scope="module")
def recorded():
    return recorded_tensors(VECTORS / "control_forward.safetensors")


@pytest.fixture(scope="module")
def facts():
    return json.loads((VECTORS / "control_forward.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def nets(unets):
    return {name: net_of(unet) for name, unet in unets.items()}


def close(found, expected, tolerance=1e-5):
    """Relative to the largest number: fp32 sums of another library version differ by 1e-6."""
    assert found.shape == expected.shape
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < tolerance, error


def given_sd1(recorded):
    return Conditioning(TextStates(recorded["sd1.context"]), control=recorded["sd1.hint_u8"].float() / 255)


def given_xl(recorded):
    return Conditioning(
        TextStates(recorded["xl.context"], recorded["xl.y"][:, :32]),
        sizes=torch.zeros(2, 6),
        control=recorded["sd1.hint_u8"].float() / 255,
    )


def predicted(name, unet, noisy, timesteps, given, added):
    whole = Components(denoiser=unet, family=name)
    with torch.no_grad():
        return family(name).predict(whole, noisy, timesteps, replace(given, added=added))


def same_residuals(found, recorded, prefix, shown):
    """Every second or eighth channel is recorded."""
    for name, residual in [*((f"down{number}", each) for number, each in enumerate(found.down)), ("mid", found.mid)]:
        expected = recorded[f"{prefix}.{name}"]
        close(residual[:, :: residual.shape[1] // expected.shape[1]], expected)
    assert len(found.down) == shown


def test_sd1_as_sd_scripts_trains_it(unets, nets, recorded, facts):
    timesteps, given = torch.tensor(facts["sd1"]["timesteps"]), given_sd1(recorded)
    side = ControlNet(nets["sd1"], kohya=True)
    with torch.no_grad():
        same_residuals(side.residuals(recorded["sd1.x"], timesteps, given), recorded, "sd1", 12)
        hint = 2 * given.control - 1
        close(side.net.controlnet_cond_embedding(hint), recorded["sd1.hint_embedding"])
        added = side(recorded["sd1.x"], timesteps, given)
        wide = ControlNet(nets["sd1"]).residuals(recorded["sd1.x"], timesteps, given).added(into_mid=True)
    plain = predicted("sd1", unets["sd1"], recorded["sd1.x"], timesteps, given, {})
    close(plain, recorded["sd1.unet_plain"])
    close(predicted("sd1", unets["sd1"], recorded["sd1.x"], timesteps, given, added), recorded["sd1.unet_controlled"])
    shown01 = predicted("sd1", unets["sd1"], recorded["sd1.x"], timesteps, given, wide)
    close(shown01, recorded["sd1.unet_controlled_hint01"])


def test_sd1_as_other_programs_use_it(unets, nets, recorded, facts):
    """sd-scripts' generator: control images in 0..1, and the middle block reads what the U-Net made."""
    timesteps, given, other = torch.tensor([500, 500]), given_sd1(recorded), unets["sd1"]
    side = ControlNet(nets["sd1"])
    plain = predicted("sd1", other, recorded["sd1.x"], timesteps, given, {})
    close(plain, recorded["sd1.generator.plain_500"])
    close(plain, recorded["sd1.generator.step3"])
    for step, net in enumerate(facts["generator"]["nets"]):
        side.strength = net["weight"]
        with torch.no_grad():
            added = side(recorded["sd1.x"], timesteps, given)
        found = predicted("sd1", other, recorded["sd1.x"], timesteps, given, added)
        close(found, recorded[f"sd1.generator.step{step}"])


def test_strength_and_several_add_up(nets, recorded, facts):
    timesteps, given = torch.tensor(facts["sd1"]["timesteps"]), given_sd1(recorded)
    with torch.no_grad():
        found = ControlNet(nets["sd1"]).residuals(recorded["sd1.x"], timesteps, given)
    weights = [0.825 ** (12 - number) for number in range(13)]
    soft = found.scaled(weights)
    torch.testing.assert_close(soft.mid, found.mid * weights[-1])
    torch.testing.assert_close(soft.down[3], found.down[3] * weights[3])
    both = found.plus(found.scaled(0.5)).added()
    torch.testing.assert_close(both["down_block_additional_residuals"][0], 1.5 * found.down[0])
    torch.testing.assert_close(both["mid_block_additional_residual"], 1.5 * found.mid)


def test_sdxl(unets, nets, recorded, facts):
    noisy, timesteps, side = recorded["xl.x"], torch.tensor(facts["xl"]["timesteps"]), ControlNet(nets["sdxl"])
    given, vector = given_xl(recorded), recorded["xl.y"]
    with _vector_of(side.net, vector), _vector_of(unets["sdxl"], vector), torch.no_grad():
        found = side.residuals(noisy, timesteps, given)
        same_residuals(found, recorded, "xl", 9)
        close(predicted("sdxl", unets["sdxl"], noisy, timesteps, given, {}), recorded["xl.unet_plain"])
        added = side(noisy, timesteps, given)
        close(predicted("sdxl", unets["sdxl"], noisy, timesteps, given, added), recorded["xl.unet_controlled"])


class _vector_of:
    """Inside, a model reads this vector in place of pooled texts and the waves of sizes, which are not recorded."""

    def __init__(self, model, vector):
        self._layer, self._vector = model.add_embedding, vector

    def __enter__(self):
        self._hook = self._layer.register_forward_pre_hook(lambda layer, given: (self._vector,))

    def __exit__(self, *_):
        self._hook.remove()


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_from_a_unet_it_is_a_copy_that_changes_nothing_and_shares_nothing(name, unets, recorded):
    net, again = from_unet(unets[name], 7), from_unet(unets[name], 7)
    own = dict(net.named_parameters())
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in own.values())
    storages = {weight.untyped_storage().data_ptr() for weight in own.values()}
    assert len(storages) == len(own)
    assert not storages & {weight.untyped_storage().data_ptr() for weight in unets[name].parameters()}
    zero = {key for key, weight in own.items() if not weight.any()}
    count = 12 if name == "sd1" else 9
    assert zero == {
        f"{module}.{kind}"
        for module in (
            *(f"controlnet_down_blocks.{number}" for number in range(count)),
            "controlnet_mid_block",
            "controlnet_cond_embedding.conv_out",
        )
        for kind in ("weight", "bias")
    }
    base = dict(unets[name].named_parameters())
    copied = [key for key in own if not key.startswith("controlnet_")]
    assert all(torch.equal(own[key], base[key]) for key in copied)
    assert all(torch.equal(own[key], weight) for key, weight in again.named_parameters())
    hint = own["controlnet_cond_embedding.blocks.1.weight"]
    assert float(hint.detach().abs().max()) <= 1 / (16 * 9) ** 0.5, (
        "torch's initial values: uniform up to 1 / sqrt(fan in)"
    )
    other = dict(from_unet(unets[name], 8).named_parameters())
    assert not torch.equal(other["controlnet_cond_embedding.blocks.1.weight"], hint)


def test_narrow_unets_are_copied_as_they_act(unets):
    import copy

    from core.networks.fp8 import to_fp8

    unet = copy.deepcopy(unets["sd1"])
    assert to_fp8(unet) > 0
    net, plain = from_unet(unet, 0).requires_grad_(False), dict(unets["sd1"].named_parameters())
    for key, weight in net.named_parameters():
        if key in plain:
            assert float((weight - plain[key]).abs().max()) <= 0.07 * float(plain[key].abs().max()), key
