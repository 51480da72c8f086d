"""Noise, timesteps, objectives, samplers and guidance on tensors of a few numbers."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from core.diffusion import noise_levels, samplers
from core.diffusion.noise import draw_noises
from core.diffusion.objective import PREDICTIONS, Diffusion
from core.diffusion.schedule import TIMESTEPS, schedule_in_force, sd_alpha_bar, sigmas, snr
from core.diffusion.text_states import TextStates, join_texts, stack_texts
from core.diffusion.timesteps import DISTRIBUTIONS, density, position, timestep_of
from core.generation.effects.regions import masks_of
from core.generation.grids.export import _scale_to_limits
from core.generation.plan.upscalers import UPSCALERS
from core.generation.sample.guidance import NEGATIVE, POSITIVE, composed, rescaled
from core.generation.sample.guidances import GUIDANCES, make_guidance
from core.generation.sample.loop import Sampling, Stage, evaluation_count, steps_of, total_steps
from core.generation.sample.noise import ImageNoise, StartNoise, Variation
from core.settings.noise import NoiseSettings
from core.settings.samples import SAMPLER_LABELS
from tests.facts.store import Facts, producer, refused

AT = torch.tensor([0, 1, 5, 6, 250, 500, 998, 999])
ADDRESSES = [(7, 1, ("set", "fox.png"), 0), (7, 2, ("set", "bear.png"), 1)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"noise_offset": 0.05}, {"noise_offset": 0.1, "noise_offset_random_strength": True},
    {"noise_offset": 0.1, "adaptive_noise_scale": -0.3}, {"multires_noise_iterations": 6, "multires_noise_discount": 0.4},
    {"multires_noise_iterations": 2}, {"ip_noise_gamma": 0.1}, {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
    {"loss_type": "huber"}, {"loss_type": "smooth_l1", "huber_schedule": "exponential", "huber_c": 0.2}, {"loss_type": "l1"},
    {"loss_type": "huber", "huber_schedule": "constant", "huber_scale": 2.0}, {"loss_type": "log_cosh"},
    {"loss_type": "mixed", "mse_weight": 0.5, "mae_weight": 0.25, "log_cosh_weight": 2.0}, {"min_snr_gamma": 5.0},
    {"min_snr_gamma": 1.0, "zero_terminal_snr": True}, {"scale_v_pred_loss_like_noise_pred": True}, {"v_pred_like_loss": 0.5},
    {"debiased_estimation_loss": True}, {"debiased_estimation_loss": True, "min_snr_gamma": 3.0}, {"zero_terminal_snr": True},
)  # fmt: skip


@producer
def objectives() -> Facts:
    """Noise, noisy latents, targets, losses and weights of each option, for both predictions, plain and as sd-scripts."""
    latents, output = draw(2, 4, 12, 8), draw(2, 4, 12, 8, seed=1)
    for values in SETTINGS:
        for compatibility in ("none", "kohya"):
            settings = NoiseSettings(**values).model_copy(update={"compatibility": compatibility})
            noises = draw_noises(settings, latents, ADDRESSES)
            rows: dict[str, Any] = {"noises": [each for each in vars(noises).values() if isinstance(each, Tensor)]}
            for prediction in PREDICTIONS:
                objective = Diffusion(settings, prediction)
                x0, noise, perturbed = objective.mixed(latents, noises)
                times = torch.tensor([100, 900])
                target = objective.target(x0, noise, times)
                noisy = objective.noised(x0, perturbed, times)
                weight = objective.weight(AT[1:])
                weights = weight.tolist() if isinstance(weight, Tensor) else weight
                rows[prediction] = [noisy, target, objective.loss(output, target, times), weights, objective.mask_mean]
            yield f"{values} {compatibility}", rows
    for name in PREDICTIONS:
        yield (
            f"debiased as {name}",
            Diffusion(NoiseSettings(debiased_estimation_loss=True), "epsilon", debiased_as=name).weight(AT).tolist(),
        )
    for zero in (False, True):
        table = schedule_in_force(zero)
        yield f"schedule {zero}", [table[AT].tolist(), snr(table[AT]).tolist(), sigmas(table[AT[:-1]]).tolist()]
    yield "schedule", sd_alpha_bar()


@producer
def timesteps() -> Facts:
    """Positions, drawn timesteps and densities of each distribution."""
    options: tuple[dict[str, Any], ...] = (
        {}, {"timestep_shift": 3.0}, {"min_timestep": 100, "max_timestep": 300}, {"stratified_timesteps": True},
    )  # fmt: skip
    for name in DISTRIBUTIONS:
        own = {
            "logit_normal": {"logit_mean": 0.5, "logit_std": 0.7},
            "beta": {"timestep_alpha": 0.6, "timestep_beta": 2.0},
        }
        for values in (*options, {"mode_scale": 0.8, **own.get(name, {})}):
            settings = NoiseSettings(timestep_sampling=name, **values)
            places = [position(settings, u) for u in (0.0, 0.01, 0.25, 0.5, 0.9, 0.999)]
            drawn = [timestep_of(settings, (3, epoch, ("a", "b.png"), epoch % 3)) for epoch in range(8)]
            yield f"{name} {values}", [places, drawn, density(settings, 6, 300)]


@producer
def levels() -> Facts:
    """Noise levels of each schedule type, and the timesteps and levels of each sampler at 5 steps."""
    for zero in (False, True):
        table = noise_levels.level_table(zero)
        for name, function in noise_levels.LEVELS.items():
            yield f"{name} {zero}", [function(table, 5).tolist(), function(table, 1).tolist()]
        inside = torch.tensor([0.02, 0.5, 3.0, 14.0, 20.0], dtype=torch.float64)
        yield f"timestep at {zero}", noise_levels.timestep_at(table, inside).tolist()
    yield "schedules", {name: samplers.schedules_of(name) for name in samplers.SAMPLERS}
    yield "labels", SAMPLER_LABELS
    for name in [*samplers.SAMPLERS, "nonsense"]:
        found = [samplers.sampler_problem(name, "diffusion", "x"), samplers.sampler_problem(name, "flow", "x")]
        yield (
            f"problems {name}",
            [*found, samplers.noise_problem(name, "x"), samplers.schedule_problem(name, "nonsense", "x")],
        )


@producer
def sampled() -> Facts:
    """Five steps of each sampler and schedule type with a model that is a formula: levels, timesteps and result."""
    for name, sampler in samplers.SAMPLERS.items():
        for schedule in samplers.schedules_of(name):
            yield f"{name} {schedule}", _run(name, schedule=schedule)
        for prediction, zero, program in (
            ("v", False, ""),
            ("v", True, ""),
            ("epsilon", False, "trainer"),
            ("v", True, "generator"),
        ):
            yield f"{name} {prediction} {zero} {program}", refused(_run, name, prediction, zero, program)
        facts = [sampler.order, sampler.draws, sampler.brownian, sampler.skips, sampler.cfg_pp, sampler.all_schedules]
        yield f"{name} facts", [*facts, sampler.default_levels, sorted(sampler.objectives)]


def _run(
    name: str, prediction: str = "epsilon", zero: bool = False, program: str = "", schedule: str = "own"
) -> list[Any]:
    scheduler = samplers.make_sampler(name, prediction, zero, program=program, schedule=schedule)
    scheduler.set_timesteps(5)
    kind = torch.float64 if zero else torch.float32  # float32 rounds the highest noise by as much as the result
    for levels in ("sigmas", "sigmas_interpol"):
        if zero and isinstance(getattr(scheduler, levels, None), torch.Tensor):
            setattr(scheduler, levels, getattr(scheduler, levels).to(kind))
    start, noise = draw(1, 4, 4, 6).to(kind), draw(1, 4, 4, 6, seed=1).to(kind)
    x = start * samplers.start_scale(scheduler)
    generator = torch.Generator().manual_seed(5)
    times = [round(float(each), 4) for each in scheduler.timesteps]
    for timestep in scheduler.timesteps:
        given = samplers.model_input(scheduler, x, timestep)
        output = (given + 0.3 * torch.cos(given * 2)) * (0.5 + float(timestep) / 2500)
        clean = samplers.clean_estimate(scheduler, output, timestep, x)
        x = samplers.sampler_step(scheduler, output, timestep, x, [generator], unguided=output * 0.8)
    noised = []
    if hasattr(scheduler, "add_noise"):
        other = samplers.make_sampler(name, prediction, zero, program=program, schedule=schedule)
        other.set_timesteps(5)
        noised = [samplers.add_noise(other, start, noise, 2)]
    found = getattr(scheduler, "sigmas", None)
    return [times, [] if found is None else [float(each) for each in found], x, clean, *noised]


@producer
def guidances() -> Facts:
    """Each guidance on the outputs of two steps."""
    shape = (2, 4, 3, 5)
    for name, kind in GUIDANCES.items():
        settings = kind.settings() if kind.settings else None
        for scale, negative, rescale in ((5.0, None, 0.0), (5.0, 2.0, 0.0), (3.0, None, 0.7), (1.0, None, 0.0)):
            guidance = make_guidance(name, scale, negative, rescale, settings)
            results: list[Any] = [list(guidance.sides)]
            for step in (0, 1, 3):
                outputs = {side: draw(*shape, seed=10 * step + at) for at, side in enumerate(guidance.sides)}
                results.append(
                    refused(guidance.combine, outputs, SimpleNamespace(index=step, steps=4, latents=outputs[POSITIVE]))
                )
            yield f"{name} {scale} {negative} {rescale}", results
        facts = [kind.negative_scale, kind.alone, kind.layers and kind.layers(settings)]
        yield name, [kind.title, settings and settings.model_dump(), *facts]
    for weights in ((1.0, 0.5), (2.0, -1.0, 1.0)):
        base = composed(make_guidance("classic", 4.0), weights)
        outputs = {side: draw(*shape, seed=at) for at, side in enumerate(base.sides)}
        yield f"composed {weights}", [list(base.sides), base.combine(outputs, SimpleNamespace(index=0, steps=4))]  # type: ignore[arg-type]
    yield "rescaled", [rescaled(draw(*shape) * 3, draw(*shape, seed=1), phi) for phi in (0.2, 1.0)]
    assert NEGATIVE != POSITIVE


@producer
def images() -> Facts:
    """Initial noise, masks of regions, stages and upscalers."""
    for settings in (
        StartNoise(), StartNoise(pyramid_prob=1.0, pyramid_discount=(0.2, 0.6)), StartNoise(offset_prob=1.0, offset=(0.1, 0.3)),
        StartNoise(pyramid_prob=0.5, offset_prob=0.5, chance=lambda seed: Random(seed + 1)),
    ):  # fmt: skip
        for variation in (None, Variation(9, 0.3), Variation(9, 1.0)):
            noise = ImageNoise(3, (4, 12, 8), 2, settings, variation=variation)
            about = [settings.pyramid_prob, settings.offset_prob, variation and variation.strength]
            yield f"noise {about}", [noise.start, *noise.image_noise()]
    from PIL import Image

    picture = Image.new("RGB", (6, 4), (255, 0, 0))
    picture.paste((0, 255, 0), (0, 0, 2, 4))
    picture.paste((255, 255, 0), (2, 0, 3, 2))
    picture.paste((100, 7, 50), (5, 0, 6, 4))
    for count, codes in ((2, None), (4, None), (3, 3), (4, 2)):
        yield f"masks {count} {codes}", list(masks_of(picture, count, codes))
    for stage in (
        Stage((64, 64), 20), Stage((64, 64), 20, 7, "image"), Stage((64, 64), 20, switch_at=0.8), Stage((64, 64), 5, 0, "image"),
        Stage((64, 64), 20, begins="unfinished latents", switch_at=0.8), Stage((64, 64), 20, 15, "previous image", switch_at=0.5),
    ):  # fmt: skip
        counts = [
            refused(evaluation_count, Sampling(sampler=name), stage) for name in ("ddim", "heun", "dpm_2", "euler_a")
        ]
        yield (
            f"stage {stage.steps} {stage.run} {stage.begins} {stage.switch_at}",
            [steps_of(stage), total_steps(stage), stage.refines, counts],
        )
    sampling = Sampling(guidance_range=(0.2, 0.7))
    yield "guides", [[sampling.guides(index, steps) for index in range(steps)] for steps in (5, 10)]
    yield (
        "fitting",
        [
            _scale_to_limits(*each)
            for each in ((2, 3, 512, 512), (40, 2, 512, 512), (3, 60, 768, 1024), (30, 30, 1024, 1024))
        ],
    )
    gradient = Image.linear_gradient("L").resize((16, 24)).convert("RGB")
    for name, upscaler in UPSCALERS.items():
        small = draw(1, 4, 3, 4)
        if upscaler.latents is not None:
            yield f"upscaler {name}", upscaler.latents(small, (6, 10))
        elif upscaler.images is not None:
            yield f"upscaler {name}", _pixels(upscaler.images(gradient, (24, 40)))


def _pixels(image: Any) -> Any:
    import numpy

    return numpy.asarray(image)


@producer
def texts() -> Facts:
    """Text states stacked and joined, padded where a mask says so."""
    short = TextStates(draw(3, 4), draw(5), {"words": draw(2, 4), "words_mask": torch.ones(2, dtype=torch.bool)})
    long = TextStates(
        draw(3, 4, seed=1), draw(5, seed=1), {"words": draw(4, 4), "words_mask": torch.ones(4, dtype=torch.bool)}
    )
    both = stack_texts([short, long])
    yield "stacked", both.tensors
    yield (
        "joined",
        join_texts([both, both.each(lambda tensor: tensor * 2 if tensor.is_floating_point() else tensor)]).tensors,
    )
    yield "constants", TIMESTEPS
