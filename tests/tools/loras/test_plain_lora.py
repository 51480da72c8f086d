"""Files of every network kind as a plain LoRA or a full difference: merged, they are what the file is."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.families import family
from core.families.loading import load
from core.formats.detect import identify
from core.formats.tensors.header import read_header
from core.networks.adapter_file import load_lora, save_lora
from core.networks.files import MergedFile, merge_files, targets_of
from core.networks.kinds import kind_named, kinds
from core.networks.network import Network
from core.settings.network import NetworkSettings
from tests.models import tiny_folder
from tests.networks.test_kinds import CASES
from tests.refusals import refused
from tests.tools.loras.test_convert_lora import convert
from tests.tools.test_tools import use

METADATA = {
    "ss_base_model_version": "sd_v1",
    "modelspec.title": "glyph",
    "ss_network_dim": "4",
    "ss_network_alpha": "3",
}
READS_WEIGHTS = {
    name
    for name, kind in kinds().items()
    if name in ("glora", "ia3", "oft", "diag_oft", "boft") or kind.needs_base_weight
}


VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return cache(lambda name: tiny_folder(name, place / name))


@pytest.fixture
def folder(folders):
    return folders("sd1")


@cache
def model(folder):
    return load(family(folder.name).layout, folder, parts=("text_encoders", "denoiser"))


def trained(folder, case, path, **network):
    """A file of a kind whose every weight has moved."""
    name, options = CASES[case]
    kind = kind_named(name)
    given = {"rank": 6 if name == "boft" else 4, "alpha": 3.0, "conv_rank": 4, "train_text_encoder": True} | network
    own = kind.settings(**options) if kind.settings is not None else None
    made = Network.create(
        targets_of(model(folder), norms="train_norm" in network),
        NetworkSettings(kind=name, **given),
        seed=0,
        kind_settings=own,
    )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return save_lora(path, made.saved(), METADATA | {"ss_base_model_version": VERSIONS[folder.name]})


def merged(folder, path):
    whole = deepcopy(model(folder))
    merge_files(whole, [MergedFile(path, 1.0)])
    return {
        f"{number} {key}": value
        for number, part in enumerate((*whole.text_encoders, whole.denoiser))
        for key, value in part.state_dict().items()
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-4, atol=2e-6, msg=lambda said, key=key: f"{key}: {said}")


@pytest.mark.slow(but=("sd1-ia3",))
@pytest.mark.parametrize(
    ("name", "case"),
    [
        *(("sd1", case) for case in CASES),
        *(("sdxl", case) for case in ("locon", "dora", "boft")),
        ("sd2", "dora"),
    ],
)
def test_a_file_of_every_kind_becomes_one_that_changes_the_same_weights(name, case, folders, tmp_path):
    """Of SDXL too: with its names, its two text encoders, and projections that are no convolutions. SD 2.x has one of each."""
    folder, kind = folders(name), CASES[case][0]
    path = trained(folder, case, tmp_path / "glyph.safetensors", train_norm=True)
    wanted = merged(folder, path)
    needed = {"base_model": folder} if kind in READS_WEIGHTS else {}
    for network_type, given in (("full", {}), ("lora", {"new_rank": 1024})):
        title = {"lora": "LoRA", "full": "Full difference"}[network_type]
        if identify(path).network == title:
            with refused("tools.nothing-to-convert"):
                convert(file=path, network_type=network_type)
            continue
        [made], lines = convert(file=path, network_type=network_type, **given, **needed)
        assert made.name == f"glyph_{network_type}.safetensors" and "left out" not in lines
        assert identify(made).network == title and identify(made).family == name
        assert_equal(merged(folder, made), wanted)
        assert "glyph" in read_header(made)[1]["modelspec.title"]


def test_a_lower_rank_says_what_it_keeps_and_a_loras_layers_keep_theirs(folder, tmp_path):
    path = trained(folder, "diag_oft", tmp_path / "turned.safetensors")
    [low], lines = convert(file=path, network_type="lora", base_model=folder, new_rank=2, new_conv_rank=3)
    assert "kept norm: " in lines
    sizes = {
        (key.endswith("conv1.lora_down.weight"), len(value))
        for key, value in load_file(low).items()
        if key.endswith("conv1.lora_down.weight") or key.endswith("to_q.lora_down.weight")
    }
    assert sizes == {(True, 3), (False, 2)}
    mixed = load_file(trained(folder, "locon", tmp_path / "locon.safetensors"))
    save_lora(tmp_path / "mixed.safetensors", mixed, METADATA)
    [made], _ = convert(file=tmp_path / "mixed.safetensors", network_type="lora", new_rank=1)
    ours, theirs = load_lora(made).tensors, load_lora(tmp_path / "mixed.safetensors").tensors
    linear = next(key for key in theirs if key.endswith("to_q.lora_up.weight"))
    assert torch.equal(ours[linear], theirs[linear])
    assert read_header(made)[1]["ss_network_module"] == "networks.lora"


def test_what_depends_on_the_base_model_is_refused_before_the_start_without_it(folder, tmp_path):
    path = trained(folder, "dora", tmp_path / "dora.safetensors")
    with refused("tools.needs-base-model", "DoRA"):
        convert(file=path, network_type="lora")
    other = tiny_folder("sdxl", tmp_path / "sdxl")
    with refused("tools.other-family"):
        convert(file=path, network_type="lora", base_model=other)
    [made], _ = convert(file=path, network_type="lora", names="diffusers", base_model=folder, new_rank=64)
    assert identify(made).layout == "peft" and identify(made).network == "LoRA"
    assert_equal(merged(folder, made), merged(folder, path))
    assert set(tmp_path.glob("*.safetensors")) == {path, made}


def test_a_plain_file_goes_where_tools_refuse_its_kind(folder, tmp_path):
    path = trained(folder, "ia3", tmp_path / "ia3.safetensors")
    with refused("tools.needs-base-model"):
        use(name="resize_lora", file=str(path), new_rank=2)
    [made], _ = convert(file=path, network_type="lora", base_model=folder)
    assert Path(use(name="resize_lora", file=str(made), new_rank=2)[0]).is_file()


def test_trained_norms_are_lost_in_diffusers_names_only_where_that_is_asked_for(folder, tmp_path):
    path = trained(folder, "lora", tmp_path / "normed.safetensors", train_norm=True)
    for names in ("diffusers", "diffusers_folded"):
        with refused("lora.norms-lost"):
            convert(file=path, names=names)
    [made], lines = convert(file=path, names="diffusers", drop_norms=True)
    assert "left out" in lines and not any("norm" in key for key in load_file(made))
