"""Recorded trainings of sd-scripts' ControlNet and LLLite scripts, replayed: the same model, inputs and settings give the same
losses, gradient norms and weights."""

from functools import cache
from pathlib import Path

import pytest
import torch

from core.control.controlnet import ZEROS
from core.diffusion.noise import Noises
from core.diffusion.objective import Diffusion
from core.diffusion.text_states import Conditioning, TextStates
from core.families import family
from core.families.components import Components
from core.methods import MethodInputs
from core.networks.files import NetworkFiles
from core.optimization.clipping import clip_grad_norm
from core.optimization.groups import parameter_groups
from core.optimization.optimizers import build_optimizer
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.training.loop.passes import training_loss
from tests.control.conftest import by_formula, unet_of
from tests.recorded_json import recorded_json
from tests.recorded_tensors import recorded_tensors

VECTORS = Path(__file__).parents[1] / "vectors" / "controlnet"
CASES = {
    "sd1_a": {"method": {"kind": "controlnet"}, "optimizer": {"learning_rate": 1e-3}},
    "xl_a": {
        "method": {"kind": "controlnet"},
        "controlnet": {"control_net_lr": 2e-3},
        "optimizer": {"learning_rate": 1e-3},
    },
    "lllite_a": {
        "method": {"kind": "lllite"},
        "lllite": {"cond_emb_dim": 8, "hidden_dim": 16, "zero_bias": False},
        "optimizer": {"learning_rate": 5e-3},
    },
}
# The same shift of all keys changes no attention, and these groups of one channel are normalized next: gradients are 0, and Adam
# makes steps of what rounding leaves of them.
WITHOUT_GRADIENT = "attn1_to_k.up.0.bias"
BEFORE_A_NORM = tuple(
    f"down_blocks.0.resnets.{layer}.{part}." for layer in (0, 1) for part in ("conv1", "time_emb_proj")
)
KOHYA = {"model": {"compatibility": "sd-scripts-0.10"}}


def given_of(step, inputs):
    """What the model read in a recorded step."""
    stacked = {
        kind: torch.stack([inputs[name] for name in step[kind]]) for kind in ("hint", "context", "pool") if kind in step
    }
    rows = zip(step["original_hw"], step["crop_top_left"], step["target_hw"], strict=True)
    sizes = torch.tensor([[*original, *crop, *target] for original, crop, target in rows]).float()
    control = stacked["hint"].float() / 255
    return Conditioning(TextStates(stacked["context"], stacked.get("pool")), sizes, control=control)


def begin(method, name):
    """The start weights of the recording, which are functions of keys."""
    state = {}
    for key, value in method.state_dict().items():
        zero = key.startswith(ZEROS) or key.endswith("up.0.weight")
        if key.startswith("controlnet_cond_embedding.") and not zero:
            state[key] = by_formula("controlnet." + key, tuple(value.shape))
        elif name == "lllite_a" and not zero:
            state[key] = by_formula("lllite." + key, tuple(value.shape))
        else:
            assert not zero or not value.any()
            state[key] = value.clone()
    method.load_state_dict(state)
    return state


@cache
def replay(name, compatible=True):
    """(losses, gradient norms, weights before, weights after, recorded facts, recorded inputs)"""
    record = recorded_json(f"controlnet/{name}")
    inputs = recorded_tensors(VECTORS / f"{name}.safetensors")
    own = "sd1" if name == "sd1_a" else "sdxl"
    job = build(TrainJob, {**CASES[name], **(KOHYA if compatible else {})})
    method = spec_of(job).make(MethodInputs(job, None, 0, Path(), None, NetworkFiles()))
    whole = Components(denoiser=unet_of(own), family=own)
    parts = method.build(whole)
    before = begin(method, name)
    optimizer = build_optimizer(job.optimizer, parameter_groups(job.optimizer, parts))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    objective, losses, norms = Diffusion(job.noise), [], []
    for number, step in enumerate(record["steps"]):
        given = given_of(step, inputs)

        def predict(noisy, timesteps, given=given):
            return family(own).predict(whole, noisy, timesteps, method.conditioned(given, noisy, timesteps))

        latents, noise = inputs[f"{number:02d}.latents"], inputs[f"{number:02d}.noise"]
        loss = training_loss(objective, predict, latents, Noises(noise), torch.tensor(step["timesteps"])).mean()
        loss.backward()
        norms.append(float(clip_grad_norm(weights, job.optimizer.max_grad_norm)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    after = {key: value.clone() for key, value in method.state_dict().items()}
    method.release()
    return losses, norms, before, after, record, inputs


@pytest.mark.slow(but=("sd1_a",))
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradient_norms_are_the_recorded_ones(name):
    losses, norms, _, _, record, _ = replay(name)
    assert losses == pytest.approx([step["loss"] for step in record["steps"]], rel=2e-6)
    # Adam divides by what is nearly 0 at first: processors that add in another order are 3e-5 apart after five steps.
    assert norms == pytest.approx(record["grad_norm_at_sync_before_clip"], rel=1e-4)


@pytest.mark.slow(only=("xl_a",))
@pytest.mark.parametrize("name", CASES)
def test_weights_end_where_sd_scripts_ended(name):
    _, _, before, after, record, inputs = replay(name)
    kept = {key.removeprefix("final."): value for key, value in inputs.items() if key.startswith("final.")}
    assert kept.keys() <= after.keys() == record["final_norm_and_change"].keys()
    all_moved = all_off = 0.0
    for key, value in kept.items():
        if key.endswith(WITHOUT_GRADIENT):
            continue
        moved, off = float((value - before[key]).norm()), float((after[key] - value).norm())
        all_moved, all_off = all_moved + moved**2, all_off + off**2
        assert off < 1e-2 * moved, key
    assert all_off**0.5 < 2e-3 * all_moved**0.5
    for key, (norm, change) in record["final_norm_and_change"].items():
        if not key.endswith(WITHOUT_GRADIENT) and not key.startswith(BEFORE_A_NORM):
            assert float(after[key].norm()) == pytest.approx(norm, rel=1e-3), key
            assert float((after[key] - before[key]).norm()) == pytest.approx(change, rel=1e-2), key


@pytest.mark.slow
def test_by_default_sd1_is_trained_as_other_programs_use_it():
    """Control images in 0..1, and a middle block that reads what the U-Net made: another training than sd-scripts'."""
    ours, theirs = replay("sd1_a", compatible=False)[0], replay("sd1_a")[0]
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6), "a fresh one changes nothing"
    assert abs(ours[-1] - theirs[-1]) > 1e-5
