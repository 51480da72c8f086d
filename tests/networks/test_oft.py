"""OFT in sd-scripts' and LyCORIS' formats, and BOFT: formulas, keys, layers, limits, sizes that do not divide."""

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from pytest import approx, mark, raises

from core.formats.detect import identify
from core.networks.adapter_file import load_lora, save_lora
from core.networks.kinds import kinds
from core.networks.kinds.oft import split_in_powers
from core.networks.layers import meta_targets
from core.networks.network import Network
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import ineffective, training_problems
from core.tools.models.inspect import inspect
from tests.networks.oracle import LAYERS, NAME, check_equal, input_of, layer_of, live, network_of, target_of
from tests.recorded_json import recorded_json
from tests.refusals import refused

KEYS = {name: case for name, case in recorded_json("network_keys")["cases"].items() if case["module"] == "networks.oft"}
KOHYA = NAME.replace("lora_unet", "oft_unet")
FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}


def job_of(kind="oft", own=None, **network):
    return build(TrainJob, {"network": {"kind": kind} | network} | ({kind: own} if own else {}))


def kohyas_weight(weight, blocks, alpha, multiplier):
    """As sd-scripts' networks/oft.py computes it (training.md, 3.9)."""
    k, size, _ = blocks.shape
    q = blocks - blocks.transpose(1, 2)
    norm = q.flatten().norm()
    q = q * ((norm.clamp(max=alpha * k * size) + 1e-8) / (norm + 1e-8))
    eye = torch.eye(size)
    r = multiplier * ((eye + q) @ (eye - q).inverse() - eye) + eye
    return torch.einsum("knm,kn...->km...", r, weight.view(k, size, *weight.shape[1:])).reshape(weight.shape)


@mark.parametrize("layer", LAYERS)
@mark.parametrize("alpha", [1e-3, 1.0])
@mark.parametrize("multiplier", [1.0, 0.4])
def test_is_kohyas_oft(layer, alpha, multiplier):
    module = layer_of(layer)
    x, out = input_of(module), module.weight.shape[0]
    tensors = {"oft_blocks": torch.randn(4, out // 4, out // 4) * 0.3, "alpha": torch.tensor(alpha)}
    network = network_of(module, tensors, multiplier, KOHYA)
    assert network.saved().keys() == {f"{KOHYA}.oft_blocks", f"{KOHYA}.alpha"}
    found, expected = live(module, x, network), kohyas_weight(module.weight, tensors["oft_blocks"], alpha, multiplier)
    network.merge_to()
    torch.testing.assert_close(module.weight, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, module(x), rtol=1e-5, atol=1e-5)


@mark.parametrize("layer", LAYERS)
@mark.parametrize("constraint", [0, 1e-3])
@mark.parametrize("kind", [DiagOFTModule, ButterflyOFTModule])
def test_is_lycoris_oft(layer, constraint, kind):
    check_equal(lambda module: kind("x", module, lora_dim=6, constraint=constraint, rescaled=True), layer)


@mark.parametrize("layer", LAYERS)
@mark.parametrize("kind", [DiagOFTModule, ButterflyOFTModule])
def test_the_multiplier_interpolates_each_turn_as_in_lycoris(layer, kind):
    check_equal(lambda module: kind("x", module, lora_dim=6), layer, 0.4)


@mark.parametrize("kind", ["oft", "diag_oft", "boft"])
def test_a_turned_weight_keeps_all_products_of_its_columns(kind):
    """R is orthogonal, of BOFT the product of all stages: W^T W stays."""
    module = layer_of("linear")
    job = job_of(kind, rank=6, alpha=100)
    network = Network.create([target_of(module)], job.network, 0, kind_settings=kinds()[kind].kind_settings(job))
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))
    before = module.weight.clone()
    network.merge_to()
    assert not torch.allclose(module.weight, before, atol=0.1)
    torch.testing.assert_close(module.weight.t() @ module.weight, before.t() @ before, rtol=1e-4, atol=1e-5)


@mark.parametrize("case", KEYS)
def test_its_files_have_sd_scripts_keys_and_shapes_of_each_family(case):
    told = KEYS[case]
    own = {name: value == "True" for name, value in told["network_args"].items()}
    job = job_of("oft", own, rank=told["dim"], alpha=told["alpha"])
    targets = meta_targets(FAMILIES[case.partition("/")[0]])
    network = Network.create(targets, job.network, 0, kind_settings=job.oft)
    assert {key: list(value.shape) for key, value in network.saved().items()} == told["keys"]
    assert kinds()["oft"].network_args(job) == told["network_args"]


def test_a_file_of_sd_scripts_is_named_inspected_and_read_with_its_convolutions(tmp_path):
    path = tmp_path / "kohya.safetensors"
    names = (KOHYA, "oft_unet_down_blocks_0_resnets_0_conv1")
    layers = [layer_of("linear"), layer_of("3x3")]
    tensors = {f"{names[0]}.oft_blocks": torch.randn(4, 6, 6), f"{names[1]}.oft_blocks": torch.randn(4, 4, 4)}
    tensors |= {f"{name}.alpha": torch.tensor(1e-3) for name in names}
    save_lora(path, tensors, {"ss_base_model_version": "sd_v1"})
    found, facts = identify(path), inspect(path)["lora"]
    assert (found.kind, found.family, found.network, found.variant) == ("lora", "sd1", "OFT", None)
    assert facts["layers"] == {"unet": 2} and facts["ranks"] == {4: 2} and list(facts["alphas"]) == [approx(1e-3)]
    targets = [target_of(layer, name.replace("oft_", "lora_")) for name, layer in zip(names, layers, strict=True)]
    network = Network.from_tensors(load_lora(path).tensors, targets)
    assert not network.unmatched and network.saved().keys() == tensors.keys()


@mark.parametrize(("kind", "module"), [("Diag-OFT", DiagOFTModule), ("BOFT", ButterflyOFTModule)])
def test_lycoris_files_are_told_apart_by_their_blocks(tmp_path, kind, module):
    tensors = module("x", layer_of("linear"), lora_dim=6).state_dict()
    save_lora(tmp_path / "x.safetensors", {f"{NAME}.{key}": value for key, value in tensors.items()})
    assert identify(tmp_path / "x.safetensors").network == kind
    assert inspect(tmp_path / "x.safetensors")["lora"]["untrained"] == [NAME]


def test_ranks_that_divide_no_layer_are_refused_with_the_nearest_that_divides_all(tmp_path):
    targets = [target_of(layer_of("linear")), target_of(layer_of("without bias"), NAME.replace("to_k", "to_v"))]
    for kind, rank, good in (("oft", 7, 8), ("boft", 5, 6)):
        job = job_of(kind, rank=rank)
        with refused("network.unfit-rank", NAME, f"rank {good}"):
            Network.create(targets, job.network, 0, kind_settings=kinds()[kind].kind_settings(job))
    job = job_of("diag_oft", rank=7)
    made = Network.create(targets, job.network, 0, kind_settings=job.diag_oft)
    assert {tuple(value.shape) for value in made.parameters()} == {(6, 4, 4), (4, 4, 4)}, "as LyCORIS factorizes"


def test_boft_divides_as_lycoris():
    from lycoris.functional import power2factorization

    for width in (24, 320, 640, 768, 1280, 10240):
        for largest in range(1, 40):
            theirs = power2factorization(width, largest)
            assert split_in_powers(width, largest) == (None if theirs[1] == 0 else theirs), (width, largest)


def test_what_does_not_go_with_sd_scripts_oft_is_said():
    codes = [each.code for each in training_problems(job_of(alpha=16, train_text_encoder=True))]
    assert {"network.oft-text-encoder", "network.oft-alpha"} <= set(codes)
    assert not {code for code in (each.code for each in training_problems(job_of(alpha=1e-3))) if "oft" in code}
    assert {"network.conv_rank", "network.rank_dropout"} <= ineffective(job_of(conv_rank=4)).keys()


def test_an_early_lycoris_file_is_named_but_not_read(tmp_path):
    save_lora(tmp_path / "x.safetensors", {f"{NAME}.oft_diag": torch.zeros(4, 6, 6)})
    assert identify(tmp_path / "x.safetensors").variant == "OFT of an early LyCORIS"
    with raises(ProblemsError):
        load_lora(tmp_path / "x.safetensors")
