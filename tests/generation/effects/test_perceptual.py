"""CLIP and VGG guidance: the gradient against finite differences, its effect, and what is refused before the start."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.diffusion.samplers import SAMPLERS, clean_estimate, make_sampler, model_input, root_alpha_bar, start_scale
from core.diffusion.text_states import TextStates
from core.families import family
from core.generation.effects.perceptual.checks import CONVOLUTIONS
from core.generation.effects.perceptual.hook import Clip, Perceptual, Vgg16, _backward, _clip_text, spherical
from core.generation.images.metadata import read_image_metadata
from core.generation.model.parts import Parts
from core.generation.plan.forecast import needs_of, offload_of
from core.generation.plan.hooks import HookInputs
from core.generation.plan.plan import plan_of
from core.generation.prompt.states import PromptStates
from core.generation.run import run_generate
from core.generation.sample.guidance import UNGUIDED, Moment
from core.generation.sample.loop import Denoiser, Sampling, Stage, conditioning, denoise, noises_of
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.models import tiny_folder
from tests.prompts import encode_prompts

SIZE, STEPS = 64, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("perceptual")


def write_clip(folder):
    """A folder of a tiny CLIP of random numbers."""
    from transformers import CLIPConfig, CLIPModel

    half = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = half | {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=dict(half), vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    return folder


def write_vgg(file):
    """A file of a VGG16 with few channels."""
    draws, tensors, inputs = torch.Generator().manual_seed(0), {}, 3
    for number in CONVOLUTIONS:
        tensors[f"features.{number}.weight"] = torch.randn(4, inputs, 3, 3, generator=draws) / 3
        tensors[f"features.{number}.bias"] = torch.randn(4, generator=draws) / 3
        inputs = 4
    save_file(tensors | {"head.fc.weight": torch.ones(2)}, file)
    return file


@pytest.fixture(scope="module")
def clip(place):
    return write_clip(place / "clip")


@pytest.fixture(scope="module")
def vgg(place):
    return write_vgg(place / "vgg.safetensors")


@pytest.fixture(scope="module")
def guide(place):
    values = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(place / "guide.png")
    return place / "guide.png"


@pytest.fixture(scope="module")
def folders(place):
    """family -> the folder of a tiny model."""
    made = {}
    return lambda name: made.get(name) or made.setdefault(name, tiny_folder(name, place / name))


@pytest.fixture
def space(place):
    workspace = Workspace(place / "out", place / "models")
    workspace.runs.mkdir(parents=True, exist_ok=True)
    workspace.models.mkdir(exist_ok=True)
    return workspace


def job_of(model, clip=None, vgg=None, **groups):
    generate = {"prompt": "a (fox:1.2)", "seed": 7, "steps": STEPS, "width": SIZE, "height": SIZE, "guidance_scale": 4}
    generate |= groups.pop("generate", {})
    own = {"clip_model": clip and str(clip), "vgg16_model": vgg and str(vgg)} | groups.pop("perceptual", {})
    whole = {"model": {"base_model": str(model)}, "generate": generate, "perceptual": own}
    return build(GenerateJob, whole | {"memory": {"mixed_precision": "no"}} | groups)


def codes(job, space):
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, space)
    return {problem.code for problem in refused.value.problems}


def image_by(job, space, store):
    """float32 [1, 3, H, W] in 0..1."""
    (path,) = run_generate(job, space, store=store)
    return torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32).transpose(2, 0, 1)[None] / 255)


CLIP_TEXT, CLIP_IMAGE, VGG = "clip_guidance_scale", "clip_image_guidance_scale", "vgg16_guidance_scale"


class Asked:
    """A hook of one image in fp64, and the distance that its gradient is of, as section 5 of the reference has it."""

    def __init__(self, name, folder, clip, vgg, guide, sampler, velocity):
        exact = lambda vae, latents: vae.decode(latents / vae.config.scaling_factor).sample  # noqa: E731
        own = {CLIP_TEXT: 3, CLIP_IMAGE: 2, VGG: 5, "vgg16_guidance_layer": 8, "guide_image": str(guide)}
        job = job_of(folder, clip, vgg, perceptual=own, generate={"sampler": sampler})
        parts = family(name).load(folder)
        states, stage = encode_prompts(parts, "a fox", ""), Stage((SIZE, SIZE), STEPS)
        parts.denoiser.double(), parts.vae.double()
        kind, model = replace(family(name), decode_latents=exact), Denoiser.of(parts)
        lend = lambda file, load: nullcontext(load(Path(file)).double())  # noqa: E731
        inputs = HookInputs(job, stage, parts, kind, [None], None, None, (), print, prompts=["a (fox:1.2)"], lend=lend)
        self.hook, self.velocity, self.lms = Perceptual(inputs), velocity, sampler == "lms"
        self.vae, self.decode, self.way = parts.vae, exact, make_sampler(sampler, "v" if velocity else "epsilon")
        self.way.set_timesteps(STEPS)
        draws = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=draws, dtype=torch.float64)
        self.at = Moment(self.way, [None], 1, STEPS, self.way.timesteps[1], latents * start_scale(self.way))
        given = conditioning(model, states, stage, UNGUIDED, 1.0, 1)
        self.ask = lambda noisy: model.predict(noisy, self.at.timestep, given)
        image, read = Image.open(guide), Clip(Clip.load(clip, "cpu").double())
        features = Vgg16(Vgg16.load(vgg, "cpu").double()).to_image(image, 8, (SIZE, SIZE))
        self.measures = [(3, read.to_text("a fox")), (2, read.to_image(image)), (5, features)]

    def loss(self, noisy, root):
        spread = (1 - root**2) ** 0.5
        output = self.ask(noisy)
        clean = root * noisy - spread * output if self.velocity else (noisy - spread * output) / root
        shown = clean if self.lms else spread * clean + (1 - spread) * noisy
        pixels = (self.decode(self.vae, shown) / 2 + 0.5).clamp(0, 1)
        return sum(scale * measure(pixels) for scale, measure in self.measures)


@pytest.mark.slow(but=("sd1-ddim-False",))
@pytest.mark.parametrize(
    ("name", "sampler", "velocity"), [("sd1", "ddim", False), ("sd2", "euler", True), ("sdxl", "lms", False)]
)
def test_the_gradient_is_that_of_finite_differences(name, sampler, velocity, folders, clip, vgg, guide):
    case = Asked(name, folders(name), clip, vgg, guide, sampler, velocity)
    noisy, root = (
        model_input(case.way, case.at.latents, case.at.timestep),
        root_alpha_bar(case.at.scheduler, case.at.timestep),
    )
    share = 1.0 if case.lms else (1 - root**2) ** 0.5
    with torch.no_grad(), case.hook.around():
        found = case.hook.gradient(noisy, root, case.ask, velocity, share)
        for seed in range(3):
            way = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            ahead, behind = (case.loss(noisy + step * way, root) for step in (1e-6, -1e-6))
            assert float((found * way).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4)
    assert not case.vae.decoder.gradient_checkpointing, "as before"


@pytest.mark.parametrize("velocity", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "lms"])
def test_a_correction_moves_the_clean_latents_as_sd_scripts_does(sampler, velocity, folders, monkeypatch):
    """By (1 - alpha_bar) / sqrt(alpha_bar) of the gradient by what the model is shown."""
    way = make_sampler(sampler, "v" if velocity else "epsilon")
    way.set_timesteps(STEPS)
    latents, output, pull = torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    monkeypatch.setattr(Perceptual, "gradient", lambda *given: pull)
    hook = Perceptual(SimpleNamespace(job=job_of("any", generate={"sampler": sampler})))
    at = Moment(way, [None], 0, STEPS, way.timesteps[1], latents * start_scale(way))
    a = way.alphas_cumprod[int(at.timestep)]
    before, old = clean_estimate(way, output, at.timestep, at.latents), at.latents
    model_input(way, at.latents, at.timestep)
    corrected = hook.corrected(at, output, None)
    if sampler == "lms":
        root = root_alpha_bar(at.scheduler, at.timestep)
        assert torch.allclose(at.latents, old - (1 - root**2) / root * pull, atol=1e-4)
    else:
        assert at.latents is old
        moved = clean_estimate(way, corrected, at.timestep, at.latents) - before
        assert torch.allclose(moved, -(1 - a) / a**0.5 * pull, rtol=1e-2), "Euler's timesteps are fractions"


def test_a_step_of_pure_noise_is_not_guided():
    way = make_sampler("ddim", "v", zero_terminal_snr=True)
    way.set_timesteps(STEPS)
    output = torch.ones(1, 4, 8, 8)
    at = Moment(way, [None], 0, STEPS, way.timesteps[0], output)
    assert Perceptual(SimpleNamespace(job=job_of("any"))).corrected(at, output, None) is output


@pytest.mark.parametrize(("turned", "wanted"), [(0, 0), (90, 1.2337), (180, 4.9348)])
def test_the_spherical_distance_has_a_gradient_everywhere(turned, wanted):
    angle = torch.tensor(turned * torch.pi / 180, dtype=torch.float64)
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    found = spherical(one, torch.stack([angle.cos(), angle.sin()])[None])
    assert found.item() == pytest.approx(wanted, abs=4e-3)
    assert torch.autograd.grad(found, one)[0].isfinite().all()


def test_images_and_guides_are_shown_as_their_models_were_trained(clip, vgg, guide):
    """Guides by their nearest pixels, images made by triangles as Pillow; RGB in CLIP's and ImageNet's numbers; VGG's layer 20 is
    the ReLU after conv4_2 (reference: controlnet, section 5)."""
    pixels = np.asarray(Image.open(guide), dtype=np.float64) / 255  # 24 x 40

    def at(height, width):
        rows, columns = (np.floor((np.arange(n) + 0.5) * of / n).astype(int) for n, of in ((height, 24), (width, 40)))
        return pixels[rows][:, columns]

    def normal(image, mean, deviation):
        return torch.from_numpy(((image - mean) / deviation).transpose(2, 0, 1)[None]).float()

    def features(shown):
        file, number = load_file(vgg), 0
        for convolutions in (2, 2, 3, 2):
            shown = shown if number == 0 else torch.nn.functional.max_pool2d(shown, 2)
            number += number > 0
            for _ in range(convolutions):
                weight, bias = file[f"features.{number}.weight"], file[f"features.{number}.bias"]
                shown, number = torch.nn.functional.conv2d(shown, weight, bias, padding=1).relu(), number + 2
        assert number == 21
        return shown

    model = Clip.load(clip, "cpu")
    made = np.random.default_rng(1).random((128, 256, 3)).astype(np.float32)  # an image of 256 x 128
    given = torch.from_numpy(made.transpose(2, 0, 1)[None].copy())
    smaller = lambda size: np.stack(  # noqa: E731
        [np.asarray(Image.fromarray(made[..., each]).resize(size, Image.Resampling.BILINEAR)) for each in range(3)], -1
    )
    clips = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    u, v = (
        torch.nn.functional.normalize(model.get_image_features(normal(each, *clips)).pooler_output, dim=-1)
        for each in (at(32, 32), smaller((32, 32)))
    )
    found = Clip(model).to_image(Image.open(guide))(given)
    assert found.item() == pytest.approx(2 * float(((u - v).norm() / 2).arcsin()) ** 2, rel=1e-3)
    nets = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wanted = features(normal(at(32, 64), *nets)) - features(normal(smaller((64, 32)), *nets))
    found = Vgg16(Vgg16.load(vgg, "cpu")).to_image(Image.open(guide), 20, (256, 128))(given)
    assert found.item() == pytest.approx(float(wanted.square().mean()), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "scale", "share"), [(CLIP_TEXT, 100, 0.9), (CLIP_IMAGE, 100, 0.9), (VGG, 0.1, 0.9)])
def test_images_come_nearer_by_what_guides_them(which, scale, share, folders, clip, vgg, guide, space, store):
    read, image = Clip(Clip.load(clip, "cpu")), Image.open(guide)
    measure = {
        CLIP_TEXT: lambda: read.to_text("a fox"),
        CLIP_IMAGE: lambda: read.to_image(image),
        VGG: lambda: Vgg16(Vgg16.load(vgg, "cpu")).to_image(image, 20, (SIZE, SIZE)),
    }[which]()
    own = {"guide_image": str(guide)} if which != CLIP_TEXT else {}
    jobs = [job_of(folders("sd1"), clip, vgg, perceptual=own | {which: scale}) for scale in (0, scale)]
    plain, guided = (float(measure(image_by(job, space, store))) for job in jobs)
    assert guided < share * plain


@pytest.mark.slow
def test_every_sampler_is_guided_and_a_batch_is_its_images(clip):
    """By a model and a VAE that take no time."""
    upscale = torch.nn.Upsample(scale_factor=8, mode="bilinear")
    kind = replace(family("sd1"), decode_latents=lambda vae, latents: upscale(latents[:, :3]).tanh())
    parts = SimpleNamespace(denoiser=None, vae=torch.nn.Linear(1, 1), device="cpu")
    model = Denoiser(kind, lambda noisy, timestep, given: 0.8 * noisy)
    stage, read, texts = Stage((SIZE, SIZE), 8), Clip.load(clip, "cpu"), ["a fox", "a cup"]
    states = PromptStates(TextStates(torch.zeros(1, 77, 4)), TextStates(torch.zeros(1, 77, 4)))

    def distances(which, sampler, guided=True):
        job = job_of("any", generate={"sampler": sampler}, perceptual={CLIP_TEXT: 10 * guided})
        sampling, prompts = Sampling(sampler, 4.0), [texts[number] for number in which]
        noises = noises_of(model, stage, [5 + number for number in which], sampling)
        inputs = HookInputs(job, stage, parts, kind, noises, None, None, (), print, prompts=prompts)
        hooks = [Perceptual(replace(inputs, lend=lambda name, load: nullcontext(read)))] if guided else []
        pixels = kind.decode_latents(None, denoise(model, states, stage, noises, sampling, hooks=hooks)) / 2 + 0.5
        return [float(Clip(read).to_text(text)(one)) for text, one in zip(prompts, pixels.split(1), strict=True)]

    for sampler in SAMPLERS:
        (plain,), (guided,) = (distances([0], sampler, on) for on in (False, True))
        assert guided < plain, sampler
    assert distances([0, 1], "ddim") == pytest.approx(distances([0], "ddim") + distances([1], "ddim"), rel=1e-3)


@pytest.mark.slow
def test_a_prompt_brings_its_text_and_the_control_image_is_the_guide(folders, clip, guide, space, store):
    own = {CLIP_TEXT: 10, CLIP_IMAGE: 10}
    job = job_of(folders("sd1"), clip, perceptual=own, generate={"prompt": "a fox --c a red cup"})
    job = job.with_settings(controls={"control_image": str(guide)})
    assert not plan_of(job, space).notes
    (path,) = run_generate(job, space, store=store)
    kept = read_image_metadata(path).job.perceptual
    assert (kept.clip_prompt, kept.guide_image) == ("a red cup", "guide.png")
    assert kept.clip_model == clip.name and kept.vgg16_model is None
    assert _clip_text("a (fox:1.2) BREAK [red] AND a cup :0.5", True).split() == "a fox red a cup".split()


def test_what_is_missing_or_foreign_is_refused_before_the_start(folders, clip, vgg, guide, space, place):
    tiny, text, both = folders("sd1"), {CLIP_TEXT: 1}, {CLIP_IMAGE: 1, VGG: 1, "guide_image": str(guide)}
    assert codes(job_of(tiny, perceptual=text), space) == {"model.not-downloaded"}
    assert codes(job_of(tiny, place / "no", place / "no", perceptual=both), space) == {"model.not-found"}
    unet = tiny / "unet" / "diffusion_pytorch_model.safetensors"
    assert codes(job_of(tiny, tiny, unet, perceptual=both), space) == {"perceptual.not-clip", "perceptual.not-vgg"}
    other = place / "other"
    shutil.copytree(clip, other, dirs_exist_ok=True)
    config = json.loads((other / "config.json").read_text("utf-8"))
    config["vision_config"]["hidden_size"] = 24
    (other / "config.json").write_text(json.dumps(config), "utf-8")
    assert codes(job_of(tiny, other, perceptual=text), space) == {"model.other-sizes"}
    config["vision_config"]["patch_size"] = -1
    (other / "config.json").write_text(json.dumps(config), "utf-8")
    assert codes(job_of(tiny, other, perceptual=text), space) == {"model.bad-config"}
    assert codes(job_of(tiny, clip, vgg, perceptual={VGG: 1}), space) == {"perceptual.no-image"}
    broken = both | {"guide_image": str(vgg)}
    assert codes(job_of(tiny, clip, vgg, perceptual=broken), space) == {"image.unreadable"}
    layers = {"generation_memory": {"offload": "layers"}}
    assert codes(job_of(tiny, clip, perceptual=text, **layers), space) == {"perceptual.offload"}
    regions = {"regions": {"region_map": str(guide)}, "generate": {"prompt": "a fox AND a cup"}}
    assert codes(job_of(tiny, clip, perceptual=text, **regions), space) == {"perceptual.regions"}
    with pytest.raises(ProblemsError):
        job_of(tiny, clip, vgg, perceptual=both | {"vgg16_guidance_layer": 31})
    unused = job_of(tiny, perceptual={"clip_prompt": "a cup", "guide_image": str(guide)})
    assert {note.code for note in plan_of(unused, space).notes} == {"perceptual.prompt-alone", "perceptual.image-alone"}


@pytest.mark.slow
def test_memory_counts_the_gradient_and_the_models(folders, clip, vgg, guide, space, monkeypatch):
    big = {"width": 512, "height": 512}
    own = {CLIP_TEXT: 1, VGG: 1, "guide_image": str(guide)}
    jobs = [job_of(folders("sd1"), clip, vgg, perceptual=given, generate=big) for given in ({}, own)]
    parts = [Parts(job.memory, plan_of(job, space).sources, "cuda") for job in jobs]
    plain, guided = (needs_of(*each) for each in zip(jobs, parts, strict=True))
    weights = sum(4 * tensor.numel() for tensor in load_file(clip / "model.safetensors").values())
    assert guided.loras > weights and plain.gradient == plain.loras == 0
    assert guided.gradient > 1.5 * guided.decoding
    assert guided.peak("parts", sliced=True) > plain.peak("parts", sliced=True) + guided.gradient - plain.decoding
    monkeypatch.setattr("core.record.machine.memory", lambda device: (0, 1))
    assert [offload_of(*each) for each in zip(jobs, parts, strict=True)] == ["layers", "parts"]


def test_without_a_distance_the_gradient_is_0():
    inputs = torch.ones(2, requires_grad=True)
    assert torch.equal(_backward(inputs * 3, inputs, torch.zeros(2)), torch.zeros(2))
    assert torch.equal(_backward(inputs * 3, inputs, torch.full((2,), 1e-30)), torch.full((2,), 3e-30))
