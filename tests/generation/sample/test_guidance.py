"""Kinds of guidance: the numbers of diffusers' guiders and pipelines, and what does not fit together is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPAGPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    PerturbedAttentionGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from diffusers.hooks.layer_skip import LayerSkipConfig, _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
    _gaussian_blur_2d,
)

from core.diffusion.text_states import TextStates
from core.families import family
from core.generation.plan.checks import guidance_problems, problems_of
from core.generation.plan.plan import check_task, plan_of
from core.generation.prompt.states import PromptStates
from core.generation.sample.guidance import EMPTY, NEGATIVE, PERTURBED, POSITIVE, composed
from core.generation.sample.guidances import GUIDANCES, make_guidance
from core.generation.sample.guidances.layers import layers_of, sides_of, smoothed
from core.generation.sample.loop import Denoiser
from core.generation.sample.noise import ImageNoise
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation import guidance as settings
from core.settings.job import GenerateJob
from tests.models import tiny_folder
from tests.prompts import encode_prompts
from tests.sampling import sampled

SCALE, STEPS = 5.0, 4
OWN = {"pag": settings.PagSettings, "skip_layer": settings.SkipLayerSettings}
OWN |= {"smoothed_energy": settings.SmoothedEnergySettings}
HOW = {"seeds": [3], "width": 128, "height": 128, "steps": STEPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("sd1", tmp_path_factory.mktemp("guidance") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return family("sd1").load(folder)


@pytest.fixture(scope="module")
def states(model):
    return encode_prompts(model, "a fox", "red")


def at(index=0, size=(16, 16)):
    return SimpleNamespace(index=index, steps=STEPS, latents=torch.zeros(1, 4, *size))


def outputs(seed, *sides):
    generator = torch.Generator().manual_seed(seed)
    return {side: torch.randn(2, 4, 6, 5, generator=generator) for side in sides}


def theirs_at(guider, step, **given):
    guider.set_state(step, STEPS, torch.tensor(0))
    return guider.forward(**given).pred


@pytest.mark.parametrize("rescale", [0.0, 0.6])
@pytest.mark.parametrize(
    ("name", "own", "guider"),
    [
        ("classic", None, ClassifierFreeGuidance),
        (
            "apg",
            settings.ApgSettings(apg_eta=0.3, apg_threshold=4, apg_momentum=-0.4),
            lambda **how: AdaptiveProjectedGuidance(adaptive_projected_guidance_rescale=4, eta=0.3, **how),
        ),
        (
            "apg",
            settings.ApgSettings(apg_eta=0, apg_threshold=0, apg_momentum=0),
            lambda **how: AdaptiveProjectedGuidance(adaptive_projected_guidance_rescale=0, eta=0, **how),
        ),
        (
            "cfg_zero",
            settings.CfgZeroSettings(cfg_zero_steps=1),
            lambda **how: ClassifierFreeZeroStarGuidance(zero_init_steps=1, **how),
        ),
        ("tangential", None, TangentialClassifierFreeGuidance),
    ],
)
def test_outputs_become_one_as_in_diffusers(name, own, guider, rescale):
    ours, theirs = (
        make_guidance(name, SCALE, rescale=rescale, settings=own),
        guider(guidance_scale=SCALE, guidance_rescale=rescale),
    )
    if getattr(own, "apg_momentum", 0):
        theirs.momentum_buffer = MomentumBuffer(own.apg_momentum)
    for step in range(3):
        given = outputs(step, NEGATIVE, POSITIVE)
        wanted = theirs_at(theirs, step, pred_cond=given[POSITIVE], pred_uncond=given[NEGATIVE])
        made = ours.combine(given, at(step))
        if rescale and not step and name == "cfg_zero":
            assert not made.any()  # 0 / 0 there
            continue
        assert torch.allclose(made, wanted, atol=1e-6, rtol=1e-6), step


def test_apg_forgets_the_guidance_of_smaller_latents():
    grown, fresh = (make_guidance("apg", SCALE, settings=GUIDANCES["apg"].settings()) for _ in range(2))
    given = outputs(1, NEGATIVE, POSITIVE)
    grown.combine({side: output[..., :2, :2] for side, output in given.items()}, at(0))
    assert torch.equal(grown.combine(given, at(1)), fresh.combine(given, at(1)))


def test_each_image_is_guided_for_itself():
    for name in ("apg", "cfg_zero", "tangential"):
        kind = GUIDANCES[name]
        own = kind.settings() if kind.settings else None
        both, alone = (make_guidance(name, SCALE, settings=own) for _ in range(2))
        for step in range(2):
            given = outputs(step, NEGATIVE, POSITIVE)
            first = {side: output[:1] for side, output in given.items()}
            assert torch.allclose(both.combine(given, at(step))[:1], alone.combine(first, at(step)), atol=1e-5), name


@pytest.mark.parametrize("negative_scale", [None, 2.0])
@pytest.mark.parametrize("name", sorted(OWN))
def test_guidance_away_from_changed_layers_is_added(name, negative_scale):
    guided = make_guidance(name, SCALE, negative_scale, settings=OWN[name]())
    given = outputs(1, *guided.sides)
    scale = {"pag": 3.0, "skip_layer": 2.8, "smoothed_energy": 3.0}[name]
    plain = make_guidance("classic", SCALE, negative_scale).combine(given, at())
    assert torch.equal(guided.combine(given, at()), plain + scale * (given[POSITIVE] - given[PERTURBED]))
    assert guided.sides[-1] == PERTURBED and (EMPTY in guided.sides) == (negative_scale is not None)
    alone = make_guidance(name, 1.0, settings=OWN[name]())
    assert alone.sides == (POSITIVE, PERTURBED)
    if name == "pag" and negative_scale is None:
        theirs = PerturbedAttentionGuidance(SCALE, scale, 0.0, 1.0, [0])
        wanted = theirs_at(
            theirs, 1, pred_cond=given[POSITIVE], pred_uncond=given[NEGATIVE], pred_cond_skip=given[PERTURBED]
        )
        assert torch.allclose(guided.combine(given, at()), wanted, atol=1e-5)


def test_several_prompts_are_each_perturbed():
    base = make_guidance("pag", SCALE, settings=OWN["pag"]())
    guided = composed(base, [1.0, 0.5])
    assert guided.sides == (NEGATIVE, f"{POSITIVE} 0", f"{POSITIVE} 1", f"{PERTURBED} 0", f"{PERTURBED} 1")
    given = outputs(2, *guided.sides)
    away = given[NEGATIVE]
    whole = {
        side: away + (given[f"{side} 0"] - away) + 0.5 * (given[f"{side} 1"] - away) for side in (POSITIVE, PERTURBED)
    }
    wanted = base.combine({NEGATIVE: away, **whole}, at())
    assert torch.allclose(guided.combine(given, at()), wanted, atol=1e-5)


def theirs_changed(name, unet):
    """Let diffusers change the layer in the middle, for all rows."""
    block, config = unet.mid_block.attentions[0], {"indices": [0], "fqn": "transformer_blocks"}
    if name == "smoothed_energy":  # its two branches are the wrong way round: a small sigma averages
        _apply_smoothed_energy_guidance_hook(block, SmoothedEnergyGuidanceConfig(**config), 1.0, "theirs")
    elif name == "skip_layer":
        _apply_layer_skip_hook(block, LayerSkipConfig(**config), "theirs")
    else:
        skip = {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
        _apply_layer_skip_hook(block, LayerSkipConfig(**config, **skip), "theirs")


@pytest.mark.parametrize("name", sorted(OWN))
def test_only_the_perturbed_rows_see_the_layers_that_diffusers_changes(name, model):
    unet = model.denoiser
    changed = copy.deepcopy(unet)
    theirs_changed(name, changed)
    generator = torch.Generator().manual_seed(1)
    noisy, text = torch.randn(3, 4, 16, 16, generator=generator), torch.randn(3, 77, 32, generator=generator)
    guided, before = make_guidance(name, SCALE, settings=OWN[name]()), unet.state_dict()
    with torch.no_grad():
        plain, worse = unet(noisy, 500, text).sample, changed(noisy[2:], 500, text[2:]).sample
        with guided.around(unet, at()):
            ours = unet(noisy, 500, text).sample
        again = unet(noisy, 500, text).sample
    assert torch.allclose(ours[:2], plain[:2], atol=1e-5)
    assert torch.allclose(ours[2:], worse, atol=1e-5) and not torch.allclose(ours[2:], plain[2:], atol=1e-4)
    assert torch.equal(again, plain) and all(
        torch.equal(value, before[key]) for key, value in unet.state_dict().items()
    )
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in unet.modules())


def test_queries_are_blurred_as_in_diffusers_for_any_sigma():
    queries = torch.randn(2, 36, 8, generator=torch.Generator().manual_seed(1))
    for sigma, kernel in ((0.5, 3), (1.0, 7), (9.0, 55)):
        wanted = _gaussian_blur_2d(queries.clone(), kernel, sigma, 0.0)
        assert torch.allclose(smoothed(queries, (6, 6), sigma), wanted, atol=1e-5), sigma
    assert torch.allclose(smoothed(queries, (6, 6), None), queries.mean(1, keepdim=True).expand_as(queries))
    assert [sides_of(35, 13 / 10), sides_of(24, 2 / 3), sides_of(16, 1)] == [(7, 5), (4, 6), (4, 4)]


def test_layers_are_named_shortly_or_as_in_diffusers(model):
    unet = model.denoiser
    (middle,) = layers_of(unet, "mid", "attn1")
    assert middle == "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert list(layers_of(unet, "mid_block.attentions.0", "attn1")) == [middle]
    assert len(layers_of(unet, "mid, up.1", "attn1")) == 4 and not layers_of(unet, "up.0", "attn1")
    assert set(layers_of(unet, "down.1", "transformer_blocks.*")) == {
        f"down_blocks.1.attentions.{number}.transformer_blocks.0" for number in range(2)
    }


@pytest.mark.slow(but=("5.0",))
@pytest.mark.parametrize("scale", [SCALE, 1.0])
def test_perturbed_attention_makes_the_latents_of_diffusers_pipeline(scale, folder, model, states):
    schedule = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    pipeline = StableDiffusionPAGPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True, pag_applied_layers=["mid"]
    )
    pipeline.scheduler = schedule
    pipeline.set_progress_bar_config(disable=True)
    start = ImageNoise(3, (4, 16, 16), STEPS).start[None]
    theirs = pipeline(
        "a fox",
        negative_prompt="red",
        latents=start,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        pag_scale=2.5,
        output_type="latent",
    ).images
    own = settings.PagSettings(pag_scale=2.5)
    ours = sampled(model, states, guidance_scale=scale, guidance_kind="pag", guidance_settings=own, **HOW)
    assert (ours - theirs).abs().mean() < 1e-4


def test_guidance_in_a_part_of_the_steps_asks_for_the_prompt_alone_in_the_others():
    seen = []

    def predict(noisy, timesteps, given):
        seen.append(len(noisy))
        return torch.full_like(noisy, 0.1)

    text = TextStates(torch.ones(1, 77, 8))
    part = {"guidance_range": (0.25, 0.75), "guidance_scale": SCALE}
    sampled(Denoiser(family("sd1"), predict), PromptStates(text, text), **HOW, **part)
    assert seen == [1, 2, 2, 1]


@pytest.mark.slow(but=("apg",))
@pytest.mark.parametrize("name", [name for name in GUIDANCES if name != "classic"])
def test_every_kind_makes_an_image_of_its_own_that_is_the_same_alone_and_among_others(name, model, states):
    def made(seeds, **how):
        return sampled(model, states, **HOW | {"seeds": seeds, "guidance_scale": SCALE, "sampler": "euler_a"}, **how)

    kind = GUIDANCES[name]
    how = {"guidance_kind": name, "guidance_settings": kind.settings() if kind.settings else None}
    one, both = made([3], **how), made([9, 3], **how)
    assert torch.allclose(both[1:], one, atol=2e-3, rtol=1e-4), "random weights give latents of 20 and more"
    assert not torch.allclose(one, made([3]), atol=1e-3)


def test_cfg_pp_has_the_negative_prompt_at_every_scale_and_without_one_is_euler(model, states):
    def made(sampler, texts):
        return sampled(model, texts, **HOW | {"guidance_scale": 0.8, "sampler": sampler})

    assert not torch.allclose(made("euler_cfg_pp", states), made("euler", states), atol=1e-2)
    same = encode_prompts(model, "a fox", "a fox")
    # Latents of 20 and more
    assert torch.allclose(made("euler_cfg_pp", same), made("euler", same), atol=2e-3, rtol=1e-4)


def job_of(prompt="a fox", map=None, **generate):
    groups = {name: generate.pop(name) for name in ("pag",) if name in generate}
    return build(GenerateJob, {"generate": {"prompt": prompt, **generate}, "regions": {"region_map": map}} | groups)


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"guidance": "apg", "negative_scale": 2.0}, "guidance.negative-scale"),
        ({"guidance": "apg", "guidance_scale": 1.0}, "generate.no-guidance"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, "guidance.range"),
        ({"guidance": "pag", "prompt": "a AND b", "map": "x.png"}, "guidance.regions"),
        ({"guidance_end": 0.5, "prompt": "a AND b", "map": "x.png"}, "guidance.regions"),
        ({"pag": {"pag_scale": 2.0}}, "settings.no-effect"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_loads(job, code):
    assert code in [problem.code for problem in problems_of(job_of(**job))]


def test_the_check_names_the_kind(tmp_path):
    space, model = Workspace(tmp_path / "outputs", PROJECT / "models"), {"base_model": str(PROJECT / "models/starter")}
    job = build(GenerateJob, {"model": model, "generate": {"prompt": "a fox", "guidance": "pag"}})
    assert "guidance 4 (pag)" in check_task(job, space)


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "lcm", "tcd"])
@pytest.mark.parametrize(
    ("scale", "codes"), [(None, ["generate.sampler-scale"]), (2.01, ["generate.sampler-scale"]), (2, [])]
)
def test_a_scale_too_high_for_the_sampler_is_said_also_of_the_models_own(tmp_path, scale, codes, sampler):
    space, model = Workspace(tmp_path / "outputs", PROJECT / "models"), {"base_model": str(PROJECT / "models/starter")}
    generate = {"prompt": "a fox", "sampler": sampler, "guidance_scale": scale}
    assert [
        each.code for each in plan_of(build(GenerateJob, {"model": model, "generate": generate}), space).notes
    ] == codes


def test_what_fits_is_not_refused():
    assert not list(problems_of(job_of(sampler="euler_a_cfg_pp", guidance_scale=1.5)))
    for job in ({"guidance": "pag", "negative_scale": 2.0, "guidance_scale": 1.0}, {"guidance": "apg"}):
        codes = {problem.code for problem in problems_of(job_of(prompt="a AND b", **job)) if problem.level == "error"}
        assert not codes
    assert not list(guidance_problems(job_of(guidance="pag"), family("sd1")))
    wrong = job_of(guidance="pag", pag={"pag_layers": "mid, up.0"})
    assert [each.code for each in guidance_problems(wrong, family("sd1"))] == ["guidance.layers"]
    assert not list(guidance_problems(job_of(guidance="skip_layer"), family("sdxl")))
