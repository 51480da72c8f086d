"""Whole files of lycoris-lora act here as in lycoris-lora, and those made here act there."""

import copy
import re
import tomllib
from types import SimpleNamespace

import pytest
import torch
from lycoris.kohya import LycorisNetworkKohya, create_network, create_network_from_weights
from safetensors.torch import save_file

from core.families import family
from core.families.components import Components
from core.formats.detect import identify
from core.methods.kinds.lora import trained_numbers
from core.networks.adapter_file import save_lora
from core.networks.files import MergedFile, merge_files, read_network, targets_of
from core.networks.kinds import kinds
from core.networks.network import Network, attached
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.network import NetworkSettings
from tests.models import tiny_configs
from tests.tools.test_tools import use

PRESET = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
text_encoder_target_name = []
"""
ALGOS = {"lokr": {"factor": "4"}, "loha": {"use_tucker": "True"}, "locon": {"use_tucker": "True"}, "full": {}}


@pytest.fixture(scope="module")
def components():
    sd1, configs = family("sd1"), tiny_configs("sd1")
    draw, parts = torch.Generator().manual_seed(0), {}
    for name in ("text_encoder", "unet"):
        parts[name] = sd1.make_empty(name, configs[name]).to_empty(device="cpu").requires_grad_(False).eval()
        for key, weight in parts[name].named_parameters():
            weight.normal_(1.0 if "norm" in key else 0.0, 0.05, generator=draw)
    parts["text_encoder"].embeddings.position_ids.copy_(torch.arange(77)[None])
    return Components(denoiser=parts["unet"], text_encoders=[parts["text_encoder"]])


@pytest.fixture
def theirs(components):
    """Copies that lycoris-lora may change; the text model has the level that its files' names have. Without a preset lycoris-lora
    finds the time embedding twice."""
    LycorisNetworkKohya.apply_preset(tomllib.loads(PRESET))
    encoder = torch.nn.Module()
    encoder.text_model = copy.deepcopy(components.text_encoders[0])
    return encoder, copy.deepcopy(components.denoiser)


def outputs(encoder, unet):
    encoder, draw = getattr(encoder, "text_model", encoder), torch.Generator().manual_seed(1)
    latents, states = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 7, 32, generator=draw)
    with torch.no_grad():
        return encoder(torch.arange(77)[None]).last_hidden_state, unet(latents, 500, states).sample


@pytest.mark.slow(only=("full", "loha"))
@pytest.mark.parametrize("algo", ALGOS)
def test_their_files_act_here_as_there(components, theirs, tmp_path, algo):
    (tmp_path / "preset.toml").write_text(PRESET)
    given = {"conv_dim": "2", "conv_alpha": "1", "preset": str(tmp_path / "preset.toml"), "algo": algo}
    given["train_norm"] = str(algo == "locon")  # changes of norm layers next to the network's
    network = create_network(1.0, 4, 2.0, None, *theirs, **given, **ALGOS[algo])
    network.apply_to(*theirs, True, True)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
    expected = outputs(*theirs)
    tensors = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert identify(tmp_path / "a.safetensors").network == kinds()[algo].title
    read = read_network(components, tmp_path / "a.safetensors", 1.0)
    assert not read.unmatched and len(read.adapters) == len(network.loras)
    plain = outputs(components.text_encoders[0], components.denoiser)
    with attached(read):
        found = outputs(components.text_encoders[0], components.denoiser)
    for one, other, before in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert (other - before).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGOS)
def test_our_files_act_there_as_here(components, theirs, tmp_path, algo):
    own = {name: True for name in ALGOS[algo] if name == "use_tucker"}
    network = {"kind": algo, "rank": 4, "alpha": 2.0, "conv_rank": 2, "train_text_encoder": True}
    network["train_norm"] = algo != "lokr"
    job = build(TrainJob, {"network": network} | ({algo: own} if own else {}))
    made = Network.create(
        targets_of(components, norms=job.network.train_norm),
        job.network,
        1,
        kind_settings=kinds()[algo].kind_settings(job),
    )
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
    path = save_lora(tmp_path / "a.safetensors", made.saved())
    with attached(made):
        expected = outputs(components.text_encoders[0], components.denoiser)
    merged = Components(
        denoiser=copy.deepcopy(components.denoiser), text_encoders=copy.deepcopy(components.text_encoders)
    )
    merge_files(merged, [MergedFile(path, 1.0)])
    for one, other in zip(outputs(merged.text_encoders[0], merged.denoiser), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    network, _ = create_network_from_weights(1.0, str(path), None, *theirs)
    assert len(network.unet_loras) + len(network.text_encoder_loras) == len(made.adapters)
    network.loras = network.unet_loras + network.text_encoder_loras
    for lora in network.loras:
        lora.apply_to()
    for one, other in zip(outputs(*theirs), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_merge_of_loras_with_norm_layers_acts_as_both_here_and_there(components, theirs, tmp_path):
    files, draw = [], torch.Generator().manual_seed(2)
    for number in range(2):
        settings = NetworkSettings(rank=4, conv_rank=2, train_text_encoder=True, train_norm=True)
        made = Network.create(targets_of(components, norms=True), settings, number)
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
        files.append(save_lora(tmp_path / f"{number}.safetensors", made.saved(), {"ss_base_model_version": "sd_v1"}))
    with attached(*(read_network(components, path, ratio) for path, ratio in zip(files, (0.6, -0.3), strict=True))):
        expected = outputs(components.text_encoders[0], components.denoiser)
    merged, _ = use(
        name="merge_loras", models=list(map(str, files)), ratios="0.6, -0.3", output=str(tmp_path / "m.safetensors")
    )
    whole, _ = use(name="resize_lora", file=str(merged), new_rank=8, output=str(tmp_path / "r.safetensors"))
    for path in (merged, whole):
        with attached(read_network(components, path, 1.0)):
            found = outputs(components.text_encoders[0], components.denoiser)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    network, _ = create_network_from_weights(1.0, str(merged), None, *theirs)
    network.loras = network.unet_loras + network.text_encoder_loras
    assert len(network.loras) == len(made.adapters)
    for lora in network.loras:
        lora.apply_to()
    for one, other in zip(outputs(*theirs), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow(but=("False",))
@pytest.mark.parametrize("wide", [True, False])
def test_norm_layers_are_trained_where_lycoris_trains_them(components, theirs, tmp_path, wide):
    """With train_norm, the same tensors as lycoris-lora's; the forecast counts them, and a fresh one changes no bit."""
    classes = '["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]'
    preset = PRESET.replace(classes, classes if wide else '["Transformer2DModel"]')
    (tmp_path / "preset.toml").write_text(
        preset if wide else re.sub("unet_target_name = .*", "unet_target_name = []", preset)
    )
    given = {"preset": str(tmp_path / "preset.toml"), "algo": "full", "train_norm": "True"}
    network = create_network(1.0, 4, 1, None, *theirs, **given)
    network.apply_to(*theirs, True, True)
    expected = {key: value.shape for key, value in network.state_dict().items()}
    chosen = ["full"] if wide else ["attn-mlp"]
    job = build(
        TrainJob, {"network": {"kind": "full", "layers": chosen, "train_norm": True, "train_text_encoder": True}}
    )
    made = Network.create(targets_of(components, norms=True), job.network, 1)
    assert {key: value.shape for key, value in made.saved().items() if "norm" in key} == {
        key: shape for key, shape in expected.items() if "norm" in key
    }
    assert len(made.saved()) == len(expected)
    parts = {name: SimpleNamespace(config=config) for name, config in tiny_configs("sd1").items() if name != "vae"}
    counted = trained_numbers(job, "sd1", parts)
    assert sum(counted.values()) == sum(weight.numel() for weight in made.parameters())
    plain = outputs(components.text_encoders[0], components.denoiser)
    with attached(made):
        assert all(map(torch.equal, outputs(components.text_encoders[0], components.denoiser), plain))
