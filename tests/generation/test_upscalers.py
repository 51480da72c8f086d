"""Upscalers of hires fix: registered ones by what they make of latents and images, networks of files by their formulas."""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from core.families.counting import LiveBytes
from core.formats import other_files
from core.formats.detect import identify
from core.generation import making
from core.generation.images.metadata import read_image_metadata
from core.generation.model import upscaling_networks
from core.generation.model.other_files import upscaler_kind
from core.generation.model.store import make_store
from core.generation.model.upscaling_networks import (
    LARGEST_TILE,
    LEFT_OUT,
    LIBRARY_FACTOR,
    MARGIN,
    SMALLEST_TILE,
    TRIAL,
    ImageUpscaler,
    LatentUpscaler,
    architectures,
    load_network,
    tiled,
    upscaling_bytes,
)
from core.generation.plan.plan import plan_of
from core.generation.plan.stages import stages_of
from core.generation.plan.upscalers import UPSCALERS
from core.generation.run import run_generate
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from tests.generation.esrgan import esrgan, upscaled
from tests.generation.test_image_to_image import STARTER, job_of, shown
from tests.models import tiny_folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    space = Workspace(folder, folder / "models")
    (space.models / "upscalers").mkdir(parents=True)
    space.runs.mkdir(parents=True)
    return space


def hires(model=STARTER, picture=None, **given):
    given = {"highres_fix_scale": 1.5, "highres_fix_steps": 2, **given}
    generate = {"width": 64, "height": 64, "steps": 2}
    return job_of(model, picture, generate=generate, hires=given)


@pytest.fixture
def begun(monkeypatch):
    """What each stage begins with, and what the first made; nothing is denoised."""
    seen = []

    def kept(model, states, stage, noises, sampling, *, latents=None, **more):
        seen.append(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) if latents is None else latents)
        return seen[-1]

    monkeypatch.setattr(making, "denoise", kept)
    return seen


@pytest.mark.parametrize(
    "name, how",
    [
        ("latent", {"mode": "bilinear"}),
        ("latent_antialiased", {"mode": "bilinear", "antialias": True}),
        ("latent_bicubic", {"mode": "bicubic"}),
        ("latent_nearest_exact", {"mode": "nearest-exact"}),
    ],
)
def test_latent_upscalers_are_torchs(name, how, workspace, store, begun):
    run_generate(hires(highres_fix_upscaler=name), workspace, store=store)
    torch.testing.assert_close(begun[1], interpolate(begun[0], size=(12, 12), **how), rtol=0, atol=0)


def test_upscale_latents_is_the_bicubic_one_and_has_no_effect_beside_another(workspace, store, begun):
    run_generate(hires(highres_fix_latents_upscaling=True), workspace, store=store)
    torch.testing.assert_close(begun[1], interpolate(begun[0], size=(12, 12), mode="bicubic"), rtol=0, atol=0)
    both = hires(highres_fix_latents_upscaling=True, highres_fix_upscaler="nearest")
    assert [stage.begins for stage in stages_of(both)] == ["noise", "previous image"]
    assert "generate.two-upscalers" in [problem.code for problem in plan_of(both, workspace).notes]


def test_upscalers_of_images_resize_them(workspace, store, begun):
    run_generate(hires(), workspace, store=store)
    (nearest,) = run_generate(hires(highres_fix_upscaler="nearest"), workspace, store=store)
    assert not torch.equal(begun[1], begun[3]) and begun[1].shape == begun[3].shape == (1, 4, 12, 12)
    assert read_image_metadata(nearest).job.hires.highres_fix_upscaler == "nearest"
    assert "Hires upscaler: Nearest" in Image.open(nearest).text["parameters"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8))
    found = np.asarray(UPSCALERS["nearest"].images(image, (8, 8)))
    np.testing.assert_array_equal(found, np.asarray(image).repeat(2, 0).repeat(2, 1))


def test_hires_fix_of_an_initial_image_uses_the_upscaler_too(workspace, store, begun, tmp_path):
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    run_generate(hires(picture=tmp_path / "a.png", highres_fix_upscaler="latent"), workspace, store=store)
    torch.testing.assert_close(begun[1], interpolate(begun[0], size=(12, 12), mode="bilinear"), rtol=0, atol=0)


def test_a_first_stage_that_runs_no_step_hands_on_the_initial_image_without_noise(
    workspace, store, monkeypatch, tmp_path
):
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(tmp_path / "a.png")
    given, denoise = [], making.denoise

    def watched(*asked, latents=None, **more):
        given.append((latents, denoise(*asked, latents=latents, **more)))
        return given[-1][1]

    monkeypatch.setattr(making, "denoise", watched)
    run_generate(hires(picture=tmp_path / "a.png", highres_fix_strength=0), workspace, store=store)
    (before, after), second = given
    assert torch.equal(before, after) and not torch.equal(*second)


def test_a_strength_of_0_only_enlarges_the_image_and_loads_no_model(workspace, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (72, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    alone = {"highres_fix_scale": 3, "highres_fix_strength": None, "picture": tmp_path / "a.png"}
    store = make_store()
    save_file(esrgan(), workspace.models / "upscalers" / "only_4x.safetensors")
    large, of_file = (
        run_generate(still(**alone, **given), workspace, store=store)[0]
        for given in ({}, {"highres_fix_upscaler_file": "only_4x"})
    )
    assert [held.slot for held in store.loaded()] == ["upscaler"]
    expected = np.asarray(Image.fromarray(noise).resize((192, 216), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(np.asarray(Image.open(large)), expected)
    network = load_network(workspace.models / "upscalers" / "only_4x.safetensors", "images", "cpu")
    expected = network.images([Image.fromarray(noise)], (192, 216))[0]
    np.testing.assert_array_equal(np.asarray(Image.open(of_file)), np.asarray(expected))
    assert read_image_metadata(large).job.image_to_image.strength == 0
    assert codes(still(**alone, highres_fix_upscaler="latent"), workspace) == ["generate.no-steps"]


def still(**given):
    """The job that only enlarges."""
    picture = given.pop("picture")
    size = {"width": 64, "height": 72, "steps": 2}
    return job_of(STARTER, picture, generate=size, image_to_image={"strength": 0}, hires=given)


# -- networks of files


def old_keys(state, doublings=2):
    """As the first ESRGAN files have them."""
    last = 3 * doublings + 4
    places = {"conv_first": 0, "conv_hr": last - 2, "conv_last": last}
    places |= {f"conv_up{number}": 3 * number for number in range(1, doublings + 1)}
    found = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "body":
            number, block, conv, kind = rest
            name = f"model.1.sub.{number}.{block.upper()}.{conv}.0.{kind}"
        elif first == "conv_body":
            name = f"model.1.sub.2.{rest[0]}"
        else:
            name = f"model.{places[first]}.{rest[0]}"
        found[name] = tensor
    return found


def between_keys(state):
    names = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    found = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "body":
            name = f"RRDB_trunk.{rest[0]}.{rest[1].upper()}.{rest[2]}.{rest[3]}"
        else:
            name = ".".join([names.get(first, first), *rest])
        found[name] = tensor
    return found


def loaded_net(state, path, save=save_file):
    save(state, path)
    assert upscaler_kind(path) == "images"
    return load_network(path, "images", "cpu")


def test_files_with_keys_of_all_ages_are_one_network(tmp_path):
    state, x = esrgan(), torch.rand(1, 3, 12, 10)
    nets = [
        loaded_net(keyed, tmp_path / f"{name}.safetensors")
        for name, keyed in {"new": state, "old": old_keys(state), "between": between_keys(state)}.items()
    ]
    both = {"params_ema": state, "params": {name: value + 1 for name, value in state.items()}}
    for net in (*nets, loaded_net(both, tmp_path / "real.pth", torch.save)):
        torch.testing.assert_close(net.network(x), upscaled(state, x))
    assert upscaled(state, x).shape == (1, 3, 48, 40)


@pytest.mark.parametrize("doublings, folds", [(0, 1), (1, 1), (3, 1), (4, 1), (2, 2), (2, 4)])
def test_networks_of_other_scales_than_4_are_read(doublings, folds, tmp_path):
    state, x = esrgan(doublings=doublings, folds=folds), torch.rand(1, 3, 8, 4)
    image, scale = (
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (7, 6, 3), dtype=np.uint8)),
        2**doublings // folds,
    )
    for name, keyed in {"new": state, "old": old_keys(state, doublings)}.items():
        net = loaded_net(keyed, tmp_path / f"{name}.safetensors")
        torch.testing.assert_close(net.network(x), upscaled(state, x, folds))
        assert net._enlarged(image).size == (6 * scale, 7 * scale)
        assert net.images([image], (9, 9))[0].size == (9, 9)


SWIN = {"embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4, "upscale": 2, "img_size": 16}
SWIN_OF_THREE = SWIN | {"upsampler": "pixelshuffledirect", "num_heads": (3,)}
HAT = SWIN | {"upsampler": "pixelshuffle", "compress_ratio": 2, "squeeze_factor": 4}
DAT = {"embed_dim": 16, "depth": [2], "num_heads": [2], "expansion_factor": 2, "upscale": 2, "split_size": [2, 4]}
NETWORKS = {
    "ATD": ("ATD", SWIN | {"upsampler": "pixelshuffledirect", "num_tokens": 8, "reducted_dim": 2}),
    "Compact": ("Compact", {"num_feat": 8, "num_conv": 2, "upscale": 2}),
    "DAT": ("DAT", DAT | {"img_size": 16}),
    "HAT": ("HAT", HAT),
    "OmniSR": ("OmniSR", {"num_feat": 8, "window_size": 4, "up_scale": 2}),
    "PLKSR": ("RealPLKSR", {"dim": 8, "n_blocks": 2, "upscaling_factor": 2, "kernel_size": 5}),
    "SPAN": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2}),
    "Swin2SR": ("Swin2SR", SWIN | {"upsampler": "pixelshuffledirect"}),
    "SwinIR": ("SwinIR", SWIN | {"upsampler": "pixelshuffledirect"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_spandrels_architectures_upscale_as_they_do(name, tmp_path):
    architectures()
    kind, sizes = NETWORKS[name]
    torch.manual_seed(0)
    network = getattr(import_module(f"spandrel.architectures.{name}"), kind)(**sizes).eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    found = loaded_net(state, tmp_path / "net.safetensors")
    assert (str(identify(tmp_path / "net.safetensors")), found.scale) == (f"{name} upscaler", 2)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    enlarged = np.asarray(found._enlarged(Image.fromarray(pixels))) / 255
    np.testing.assert_allclose(enlarged, expected.clamp(0, 1), atol=0.004)
    assert found._enlarged(Image.fromarray(pixels[:7, :9])).size == (18, 14)


def test_tiles_are_the_largest_within_their_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(upscaling_networks, "TILE_BYTES", most := 30_000_000)
    found = loaded_net(esrgan(), tmp_path / "net.safetensors")

    def peak(tile):
        side = tile + 2 * MARGIN
        with LiveBytes(()) as live:
            found._upscale(torch.empty(1, 3, side, side))
        return LIBRARY_FACTOR * live.peak

    assert SMALLEST_TILE < found.tile < LARGEST_TILE
    assert peak(found.tile) <= most < peak(found.tile + SMALLEST_TILE)
    assert upscaling_bytes((64, 32), 5) == 5 + most + 4 * 3 * (1 + 1 + 16) * 64 * 32


def test_spandrels_modules_that_need_torchvision_are_not_imported():
    """So files load alike with and without it, and nobody else sees a stand-in for it."""
    known = {each.architecture.id for each in architectures()}
    left_out = [sys.modules[f"spandrel.architectures.{name}"] for name in LEFT_OUT]
    assert [module.__spec__ for module in left_out] == [None, None]
    # It restores faces
    assert {*other_files.UPSCALERS.values(), *other_files.CHAINS.values()} == known - {*LEFT_OUT, "GFPGAN"}


@torch.no_grad()
def test_parts_are_what_the_whole_is():
    """Within the margin that a network sees; beyond it nothing of the image has an influence here."""
    torch.manual_seed(0)
    blur = torch.nn.Conv2d(3, 3, 5, padding=2)

    def network(x):
        return interpolate(blur(x), scale_factor=4, mode="nearest")

    image = torch.rand(1, 3, 50, 37)
    torch.testing.assert_close(tiled(network, image, 4, tile=16, margin=4), network(image))
    with pytest.raises(RuntimeError):  # it is not left with numbers of unwritten memory
        tiled(lambda x: network(x)[..., 1:], image, 4, tile=64, margin=4)


def test_the_network_of_a_file_enlarges_between_the_stages(workspace, store, begun, monkeypatch):
    folder = workspace.models / "upscalers"
    save_file(esrgan(), folder / "random_4x.safetensors")
    seen = []
    monkeypatch.setattr(
        ImageUpscaler, "images", lambda self, images, size: seen.append(size) or [Image.new("RGB", size)]
    )
    (file,) = run_generate(hires(highres_fix_upscaler_file="random_4x"), workspace, store=store)
    assert seen == [TRIAL, (96, 96)] and begun[1].shape == (1, 4, 12, 12)
    assert [held.name for held in store.loaded() if held.slot == "upscaler"] == ["random_4x.safetensors"]
    assert "Hires upscaler: random_4x" in Image.open(file).text["parameters"]
    assert shown(file).shape == (96, 96, 3)


@torch.no_grad()
def test_sd_scripts_latent_upscaler_corrects_the_latents_of_the_enlarged_image(workspace, store, begun, tmp_path):
    torch.manual_seed(0)
    network = LatentUpscaler().eval()
    assert len(network.state_dict()) == 1 + 5 + 20 * 12 + 6 + 6 + 2  # BatchNorm has five, a block two of each
    x = torch.randn(1, 4, 6, 6)
    network.conv_final.weight.zero_()
    torch.testing.assert_close(network(x), x + network.conv_final.bias[:, None, None])
    save_file(network.state_dict(), workspace.models / "upscalers" / "latent.safetensors")
    run_generate(hires(), workspace, store=store)
    run_generate(hires(highres_fix_upscaler_file="latent.safetensors"), workspace, store=store)
    scaling = 0.18215
    torch.testing.assert_close(begun[3], begun[1] + network.conv_final.bias[:, None, None] * scaling, rtol=0, atol=1e-5)


def codes(job, workspace):
    try:
        plan_of(job, workspace)
    except ProblemsError as error:
        return [problem.code for problem in error.problems]
    return []


def test_files_that_are_none_are_refused_before_the_start(workspace, tmp_path):
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert codes(hires(highres_fix_upscaler_file="missing"), workspace) == ["upscaler.not-found"]
    other = str(tmp_path / "other.safetensors")
    assert codes(hires(highres_fix_upscaler_file=other), workspace) == ["upscaler.unknown-kind"]
    save_file(LatentUpscaler().state_dict(), tmp_path / "latent.safetensors")
    sdxl = tiny_folder("sdxl", tmp_path / "tiny")
    latent = str(tmp_path / "latent.safetensors")
    assert codes(hires(sdxl, highres_fix_upscaler_file=latent), workspace) == ["upscaler.other-family"]


def gray():
    """Of images with one channel."""
    changed = {"conv_first.weight": torch.zeros(4, 1, 3, 3), "conv_last.weight": torch.zeros(1, 4, 3, 3)}
    return esrgan() | changed | {"conv_last.bias": torch.zeros(1)}


def uneven_heads():
    """A network that loads and fails to upscale: three heads do not divide eight channels."""
    architectures()
    return import_module("spandrel.architectures.SwinIR").SwinIR(**SWIN_OF_THREE).state_dict()


@pytest.mark.parametrize("state", [gray, uneven_heads])
def test_a_network_that_cannot_upscale_images_is_refused_before_the_first_stage(
    state, workspace, store, begun, tmp_path
):
    save_file(state(), tmp_path / "other.safetensors")
    with pytest.raises(ProblemsError) as raised:
        run_generate(hires(highres_fix_upscaler_file=str(tmp_path / "other.safetensors")), workspace, store=store)
    assert raised.value.codes == ["upscaler.other-build"] and not begun


def test_a_network_with_nan_is_refused(tmp_path):
    state = esrgan()
    save_file(state | {"conv_hr.bias": state["conv_hr.bias"] * torch.nan}, tmp_path / "nan.safetensors")
    with pytest.raises(ProblemsError) as raised:
        load_network(tmp_path / "nan.safetensors", "images", "cpu")
    assert raised.value.codes == ["weights.not-finite"]


@pytest.mark.parametrize(
    "changed",
    [
        {"body.99999999.rdb1.conv1.weight": torch.zeros(1)},
        {"conv_first.weight": torch.zeros(100_000, 3, 1, 1), "body.0.rdb1.conv1.weight": torch.zeros(100_000, 1)},
        {"conv_last.weight": torch.zeros(0, 8, 3, 3)},
    ],
)
def test_a_network_of_sizes_that_the_file_does_not_hold_is_named_and_not_made(tmp_path, changed):
    save_file(esrgan() | changed, tmp_path / "large.safetensors")
    with pytest.raises(ProblemsError) as raised:
        load_network(tmp_path / "large.safetensors", "images", "cpu")
    assert raised.value.problems[0].code == "upscaler.other-build"


def test_a_latent_upscaler_needs_no_counters_of_batches(tmp_path):
    state = {name: value for name, value in LatentUpscaler().state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "latent.safetensors")
    found = load_network(tmp_path / "latent.safetensors", "latents", "cpu").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
