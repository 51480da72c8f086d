"""A recorded sd-scripts training, replayed: its command, config file and kohya_ss preset are imported, and with the same model and
inputs these jobs give the same losses and weights, with the packed convolutions, the attention, the guard and the clipping of every run."""

import json
import shlex
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from pytest import approx, fixture, mark
from transformers import CLIPTextConfig, CLIPTextModel

from core.diffusion.noise import Noises
from core.diffusion.objective import Diffusion
from core.families.attention import set_attention
from core.families.sd1 import FAMILY as sd1
from core.imports.projects.export import export_project
from core.imports.projects.importers import import_project
from core.imports.projects.kohya_export import export_preset
from core.networks.frozen import can_pack, install
from core.networks.network import Network, attached
from core.optimization.clipping import NonFiniteGuard
from core.optimization.groups import parameter_groups
from core.optimization.optimizers import build_optimizer
from core.optimization.schedules import Rates
from core.record.processes import Processes
from core.training.loop.passes import training_loss
from core.training.loop.stepper import Stepper
from tests.recorded_tensors import recorded_tensors

VECTORS = Path(__file__).parents[1] / "vectors"


def by_formula(key, shape):
    """The base model's tensors are functions of their key and shape (tests/vectors/README.md)."""
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())), dtype=torch.float32)
    module, _, kind = key.rpartition(".")
    name = module.rpartition(".")[2]
    if kind == "bias" or name in ("token_embedding", "position_embedding"):
        return 0.02 * r
    return 1 + 0.1 * r if "norm" in name else r / (r.numel() / r.shape[0]) ** 0.5


def fill(model, prefix=""):
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(by_formula(prefix + key, tuple(parameter.shape)))
    return model.requires_grad_(False).eval()


def build_unet():
    return fill(
        UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            attention_head_dim=8,  # diffusers' name for the number of heads
            cross_attention_dim=64,
            norm_num_groups=32,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
    )


def build_text_encoder():
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPTextConfig(
        **sizes, vocab_size=49408, max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=64
    )
    model = CLIPTextModel(config)
    has_prefix = any(key.startswith("text_model.") for key, _ in model.named_parameters())
    return fill(model, "" if has_prefix else "text_model.")  # transformers 5.6 and later drop the prefix


def imported(as_what="command"):
    """The recorded training's job, imported from its command or from another file with the same settings."""
    job = import_project(shlex.join(["python", "train_network.py", *recorded()["arguments"]])).job
    texts = {"command": "", "config file": export_project(job).toml, "preset": export_preset(job).text}
    return import_project(texts[as_what]).job if texts[as_what] else job


def recorded():
    return json.loads((VECTORS / "trajectory_unet_only.json").read_text())["runs"]["unet_only"]


@fixture(scope="module")
def replay():
    return replayed(imported(), 20)


def replayed(job, steps):
    """The first steps as our own parts take them: (losses, rates, network, weights before, recorded)."""
    record = recorded()
    inputs = recorded_tensors(VECTORS / "trajectory_unet_only.safetensors")
    weights = recorded_tensors(VECTORS / "trajectory_unet_only_weights.safetensors")
    unet, text_encoder = build_unet().to(memory_format=torch.channels_last), build_text_encoder()

    network = Network.create(sd1.lora_targets(unet), job.network, seed=42)
    network.load_state({key.removeprefix("init."): value for key, value in weights.items() if key.startswith("init.")})
    optimizer = build_optimizer(job.optimizer, parameter_groups(job.optimizer, network.parameters_by_part()))
    stepper = Stepper(
        SimpleNamespace(steady_gradients=True),
        network.parameters(),
        optimizer,
        NonFiniteGuard("cpu"),
        Processes(),
        scaler=None,
        fused=None,
        max_grad_norm=job.optimizer.max_grad_norm,
    )
    objective, losses, rates = Diffusion(job.noise), [], []
    with attached(network):
        set_attention(unet, "auto")
        assert install(unet) or not can_pack(torch.float32)  # as every training on a CPU
        for number in range(steps):
            fed = {
                name: inputs[f"{number:02d}.{name}"]
                for name in ("latents", "noise", "timesteps", "input_ids", "loss_weights")
            }
            with torch.no_grad():
                context = text_encoder(fed["input_ids"].squeeze(1)).last_hidden_state

            def predict(noisy_latents, timesteps, context=context):
                return unet(noisy_latents, timesteps, context).sample

            in_force = Rates(job, len(record["steps"])).set(optimizer, number)
            rates.append(list(in_force.values()))
            noises, weights_B = Noises(fed["noise"]), fed["loss_weights"]

            def losses_of(fed=fed, noises=noises, weights_B=weights_B, predict=predict):
                return training_loss(
                    objective, predict, fed["latents"], noises, fed["timesteps"], sample_weights=weights_B
                )

            stepper.begin()
            loss = stepper.backward(losses_of, len(weights_B), last=True).mean()
            stepper.step(loss)
            losses.append(float(loss))
    return losses, rates, network, weights, record


def test_every_loss_equals_the_recorded_one(replay):
    losses, rates, _, _, record = replay
    assert len(losses) == 20
    assert losses == approx([step["loss"] for step in record["steps"]], rel=1e-5)
    assert rates == [step["lr"] for step in record["steps"]]


@mark.parametrize("as_what", ["config file", "preset"])
def test_other_files_with_its_settings_train_the_same(as_what):
    losses, rates, _, _, record = replayed(imported(as_what), 2)
    assert losses == approx([step["loss"] for step in record["steps"][:2]], rel=1e-5)
    assert rates == [step["lr"] for step in record["steps"][:2]]


def test_the_network_is_named_and_shaped_as_recorded(replay):
    _, _, network, weights, _ = replay
    recorded = {key.removeprefix("final."): value.shape for key, value in weights.items() if key.startswith("final.")}
    assert {key: value.shape for key, value in network.state_dict().items()} == recorded
    assert len(network.adapters) == 192  # the published count of SD 1


def test_the_weights_end_where_sd_scripts_ended(replay):
    _, _, network, weights, _ = replay
    ours = network.state_dict()
    moved = error = 0.0
    for key, value in ours.items():
        if key.endswith("weight"):
            moved += float((weights[f"final.{key}"] - weights[f"init.{key}"]).square().sum())
            error += float((value - weights[f"final.{key}"]).square().sum())
    assert moved > 0
    assert (error / moved) ** 0.5 < 1e-3  # the libraries differ in version; 3e-6 when written
