"""Samplers: schedulers with diffusers' interface, built from explicit settings.

A model's scheduler config is never read: it differs between copies of one model, and one without `clip_sample: false`
turns every DDIM image magenta. Samplers that A1111 has too give k-diffusion's values; with sd-scripts compatibility,
diffusers' values, as in sd-scripts itself.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.diffusion import k_diffusion as k
from core.diffusion.noise_levels import LEVELS, OF_FAMILIES, TINY, level_table, timestep_at
from core.diffusion.schedule import BETA_END, BETA_START, TIMESTEPS, schedule_in_force
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem
from core.settings.dataset.class_images import ClassImageSettings
from core.settings.generation.generate import GenerateSettings
from core.settings.growth import add_choice
from core.settings.noise import OBJECTIVES
from core.settings.samples import SAMPLER_LABELS, SampleSettings

DIFFUSERS_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}
FOR_DIFFUSION = frozenset({"diffusion"})
Make = Callable[[str, bool], Any]  # (prediction, zero terminal SNR) -> a new scheduler


@dataclass(frozen=True)
class Sampler:
    """A sampler.

    scheduler       name of a diffusers class, or a function that makes a scheduler; None: the sampler has only `algorithm`
    config          of the diffusers class, except what depends on the model
    algorithm       k-diffusion's algorithm, used for every schedule type; for the type "own" only if `default_levels` names levels.
                    None: the scheduler is used, set to the levels of the schedule type
    default_levels  schedule type of `algorithm` for "own", a key of LEVELS; "" uses the scheduler
    order           evaluations per step
    draws           maximum number of noise tensors drawn per step
    brownian        noise comes from a path determined by the seed (`BrownianPath`)
    skips           leave out the lowest level above 0, of a schedule that is one step longer, as A1111 does
    cfg_pp          CFG++, which needs the unguided output at every guidance scale (`KDiffusion`)
    scales          (lowest, highest) usual guidance scale, if higher ones oversaturate
    objectives      names of the objectives whose models the sampler can sample
    all_schedules   whether the sampler supports every schedule type; False: only its default, "own", is supported
    """

    scheduler: str | Make | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    algorithm: k.Algorithm | None = None
    default_levels: str = ""
    order: int = 1
    draws: int = 1
    brownian: bool = False
    skips: bool = False
    cfg_pp: bool = False
    scales: tuple[float, float] | None = None
    objectives: frozenset[str] = FOR_DIFFUSION
    all_schedules: bool = True

    def make(self, prediction: str, zero_terminal_snr: bool) -> Any:
        """Return a new scheduler for a prediction type, "epsilon" or "v", and a noise schedule with or without zero terminal SNR."""
        assert self.scheduler is not None, "a sampler without a scheduler has levels"
        if not isinstance(self.scheduler, str):
            return self.scheduler(prediction, zero_terminal_snr)
        return _diffusers_scheduler(self.scheduler, self.config, prediction, zero_terminal_snr)


def _diffusers_scheduler(name: str, config: Mapping[str, Any], prediction: str, zero_terminal_snr: bool) -> Any:
    """Return a new scheduler of diffusers, by class name and config.

    The spacing "leading" never uses the last timestep, where a schedule of zero terminal SNR begins: there it becomes "trailing" (Lin
    et al. 2023, arXiv:2305.08891, section 3.3).
    """
    import diffusers

    kind = getattr(diffusers, name)
    leads = zero_terminal_snr and config.get("timestep_spacing") == "leading"
    spacing = {"timestep_spacing": "trailing"} if leads else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it recommends another scheduler; the user chose this one
        scheduler = kind(**{**_model_config(kind, prediction, zero_terminal_snr), **config, **spacing})
    if zero_terminal_snr and prediction == "epsilon" and not scheduler.alphas_cumprod[-1]:
        scheduler.alphas_cumprod[-1] = TINY  # x0 is divided by its root
    return scheduler


def _model_config(kind: Any, prediction: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """Return the part of a scheduler's config that depends on the model. kind: diffusers' class

    `steps_offset` affects the "leading" spacing, and sd-scripts' generator when it starts from an image.
    """
    parameters = inspect.signature(kind.__init__).parameters
    config = {"num_train_timesteps": TIMESTEPS, "prediction_type": DIFFUSERS_PREDICTION[prediction]}
    config |= {"steps_offset": 1} if "steps_offset" in parameters else {}
    if not zero_terminal_snr or "rescale_betas_zero_snr" in parameters:
        config |= {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
        return config | {"beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear"}
    table = schedule_in_force(True).double()
    table[-1] = TINY
    return config | {"trained_betas": [float(1 - table[0]), *(1 - table[1:] / table[:-1]).tolist()]}


def _lms(prediction: str, zero_terminal_snr: bool) -> Any:
    """Return a new LMS scheduler of diffusers that needs no scipy."""
    from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

    class Lms(LMSDiscreteScheduler):
        """diffusers' LMS integrates with scipy, which is not installed; polynomials of degree 3 have an exact sum."""

        def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
            levels = [float(self.sigmas[t - back]) for back in range(order)]
            return k.lms_coefficient(levels, current_order, float(self.sigmas[t]), float(self.sigmas[t + 1]))

    return Lms(**_model_config(LMSDiscreteScheduler, prediction, zero_terminal_snr), timestep_spacing="linspace")


def _distilled(name: str) -> Make:
    """Return a maker of diffusers' scheduler `name` with the timesteps of the distillation (50), or as many as there are steps if those are
    more."""

    def make(prediction: str, zero_terminal_snr: bool) -> Any:
        scheduler = _diffusers_scheduler(name, {}, prediction, zero_terminal_snr)
        set_original = scheduler.set_timesteps

        def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
            longer = num_inference_steps > scheduler.config.original_inference_steps
            # Only if needed: with this argument, TCD uses other timesteps than those of the distillation.
            set_original(
                num_inference_steps, device, **{"original_inference_steps": num_inference_steps} if longer else {}
            )

        scheduler.set_timesteps = set_timesteps
        return scheduler

    return make


_LEADING = {"timestep_spacing": "leading"}
_LINSPACE = {"timestep_spacing": "linspace"}
_DDIM = _LEADING | {"clip_sample": False}
_PNDM = _LEADING | {"skip_prk_steps": True, "set_alpha_to_one": False}
_DPM = _LINSPACE | {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 2}
_DPMPP = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_DPMPP_2M, _DPMPP_3M = _DPMPP | _LINSPACE, _DPMPP | _LINSPACE | {"solver_order": 3}
_SECOND_ORDER = {"solver_order": 2}
_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_DPM_2, _DPM_2_A = "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"

SAMPLERS: dict[str, Sampler] = {
    # Song et al. 2020, arXiv:2010.02502, eta 0. The last step ends at alpha 1, without noise.
    "ddim": Sampler("DDIMScheduler", _DDIM | {"set_alpha_to_one": True}, k.euler),
    # As in SD 1.5's scheduler config: it ends at the schedule's first alpha, 0.9991.
    "ddim_first_alpha": Sampler("DDIMScheduler", _DDIM | {"set_alpha_to_one": False}, k.euler_to_first_alpha),
    # Liu et al. 2022, arXiv:2202.09778, without the Runge-Kutta start, as Stable Diffusion has it (PLMS). With steps of
    # unequal size its method is LMS.
    "pndm": Sampler("PNDMScheduler", _PNDM, k.lms),
    "lms": Sampler(_lms, {}, k.lms, "uniform"),
    "euler": Sampler("EulerDiscreteScheduler", _LINSPACE, k.euler, "uniform"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", _LINSPACE, k.euler_ancestral, "uniform"),
    "heun": Sampler("HeunDiscreteScheduler", _LINSPACE | {"clip_sample": False}, k.heun, "uniform", order=2),
    "dpm_2": Sampler(_DPM_2, _LINSPACE, k.dpm_2, "uniform", order=2, skips=True),
    "dpm_2_a": Sampler(_DPM_2_A, _LINSPACE, k.dpm_2_ancestral, "uniform", order=2, draws=2, skips=True),
    # Lu et al. 2022, arXiv:2206.00927: it predicts the noise, and ends at the smallest sigma.
    "dpmsolver": Sampler(_MULTISTEP, _DPM),
    # Lu et al. 2022, arXiv:2211.01095
    "dpmsolver++": Sampler(_MULTISTEP, _DPMPP_2M, k.dpmpp_2m, "uniform"),
    "dpmsingle": Sampler(_SINGLESTEP, _DPMPP | {"lower_order_final": True}),
    "dpmsolver++_sde": Sampler(None, {}, k.dpmpp_sde, "uniform", order=2, brownian=True),
    "dpmsolver++_2s_a": Sampler(None, {}, k.dpmpp_2s_ancestral, "uniform", order=2),
    "dpmsolver++_2m_sde": Sampler(None, {}, k.dpmpp_2m_sde, "uniform", brownian=True),
    "dpmsolver++_3m": Sampler(_MULTISTEP, _DPMPP_3M),
    "dpmsolver++_3m_sde": Sampler(None, {}, k.dpmpp_3m_sde, "uniform", brownian=True, skips=True),
    "er_sde": Sampler(None, {}, k.er_sde, "uniform"),
    "euler_cfg_pp": Sampler(None, {}, k.euler, "uniform", cfg_pp=True, scales=(0.5, 2)),
    "euler_a_cfg_pp": Sampler(None, {}, k.euler_ancestral, "uniform", cfg_pp=True, scales=(0.5, 2)),
    "unipc": Sampler("UniPCMultistepScheduler", _SECOND_ORDER),  # Zhao et al. 2023, arXiv:2302.04867
    "deis": Sampler("DEISMultistepScheduler", _SECOND_ORDER),  # Zhang and Chen 2022, arXiv:2204.13902
    # Ho et al. 2020, arXiv:2006.11239: the training process reversed, with fresh noise at every step
    "ddpm": Sampler("DDPMScheduler", _LEADING | {"clip_sample": False}, k.euler_ancestral),
    # for models and LoRAs distilled for them, with 2 to 8 steps
    "lcm": Sampler(_distilled("LCMScheduler"), {}, k.lcm, scales=(1, 2)),
    "tcd": Sampler(_distilled("TCDScheduler"), {}, k.tcd, scales=(1, 2)),
}


def register(name: str, title: str, make: Make, objectives: frozenset[str] = FOR_DIFFUSION, draws: int = 1) -> None:
    """Register a sampler for samples, generation, presets and the command line.

    make         (prediction, zero terminal SNR) -> a new scheduler with diffusers' interface
    objectives   names of the objectives whose models it samples; models of others are refused before the start
    draws        maximum number of noise tensors drawn per step
    """
    SAMPLERS[name] = Sampler(make, draws=draws, objectives=objectives, all_schedules=False)
    SAMPLER_LABELS[name] = title
    add_choice(SampleSettings, "sample_sampler", name, title)
    add_choice(GenerateSettings, "sampler", name, title)
    add_choice(ClassImageSettings, "sampler", name, title)


def sampler_problem(name: str, objective: str, where: str) -> Problem | None:
    """Return the problem of a sampler that does not fit models of this objective; None if it fits or is unknown. where: its setting"""
    fitting = [each for each, sampler in SAMPLERS.items() if objective in sampler.objectives]
    if name in fitting or name not in SAMPLERS:
        return None
    title = OBJECTIVES[objective].title if objective in OBJECTIVES else objective
    what = f"The sampler {SAMPLER_LABELS[name]} does not fit models of the objective '{title}'"
    fix = f"choose {', '.join(SAMPLER_LABELS[each] for each in fitting) or 'another model'}"
    return Problem(what, where, fix, code="sampler.other-objective")


def noise_problem(name: str, where: str) -> Problem | None:
    """Return the problem of a sampler that cannot begin with a noised image (img2img); None if it can or is unknown. where: its setting"""
    if name not in SAMPLERS or any(hasattr(make_sampler(name), method) for method in ("add_noise", "scale_noise")):
        return None
    what = f"The sampler {SAMPLER_LABELS[name]} cannot begin with an image"
    return Problem(what, where, "choose another sampler, or begin with noise", code="sampler.no-images")


def schedules_of(name: str) -> list[str]:
    """Return the names of the schedule types that a sampler supports, "own" first."""
    all_types = [each for each in LEVELS if each not in OF_FAMILIES.values()]
    return ["own", *(all_types if name in SAMPLERS and SAMPLERS[name].all_schedules else ())]


def schedule_problem(name: str, schedule: str, where: str) -> Problem | None:
    """Return the problem of a schedule type that a sampler does not support; None if it does or the sampler is unknown."""
    schedules = schedules_of(name)
    if name not in SAMPLERS or schedule in schedules:
        return None
    what = f"The sampler {SAMPLER_LABELS[name]} has no schedule type '{schedule}'"
    return Problem(what, where, f"choose {', '.join(schedules)}", code="sampler.no-schedule")


def make_sampler(
    name: str,
    prediction: str = "epsilon",
    zero_terminal_snr: bool = False,
    *,
    program: str = "",
    schedule: str = "own",
) -> Any:
    """Return a new scheduler with diffusers' interface, for one run of `set_timesteps` and `sampler_step`: it is stateful.

    name          a key of SAMPLERS
    prediction    of the U-Net: "epsilon" or "v"
    zero_terminal_snr
                  for a model trained on the rescaled schedule (`schedule.zero_terminal`)
    program       "trainer": sample as sd-scripts' trainers: x0 is clipped to -1..1 by samplers that can (DDIM, Heun),
                  timesteps have no offset, and the schedule is never rescaled; "generator": as its generator; "": neither
    schedule      one of `schedules_of`, or a value of OF_FAMILIES
    """
    sampler = SAMPLERS[name]
    levels = sampler.default_levels if schedule == "own" and not (program and sampler.scheduler) else schedule
    stretched = zero_terminal_snr and program != "trainer"
    if sampler.algorithm and levels in LEVELS:
        prediction_type = DIFFUSERS_PREDICTION[prediction]
        options = sampler.order, sampler.brownian, sampler.skips, sampler.cfg_pp
        return k.KDiffusion(sampler.algorithm, levels, prediction_type, stretched, *options)
    scheduler = _with_attributes(sampler.make(prediction, stretched), sampler, prediction, stretched)
    changes, config = AS_PROGRAM[program], scheduler.config
    if program == "generator" and config.get("timestep_spacing") == "trailing":
        changes = changes | {"timestep_spacing": "leading"}  # also of a stretched schedule
    if supported := {key: value for key, value in changes.items() if key in config}:
        scheduler.register_to_config(**supported)
    return scheduler if schedule == "own" else _at_levels(scheduler, schedule, stretched)


def _with_attributes(scheduler: Any, sampler: Sampler, prediction: str, zero_terminal_snr: bool) -> Any:
    """Return the scheduler with attributes that one of another package may lack: `config`, and `alphas_cumprod` if the sampler samples only
    diffusion models."""
    from diffusers.configuration_utils import FrozenDict

    if not hasattr(scheduler, "config"):
        scheduler.config = FrozenDict(
            prediction_type=DIFFUSERS_PREDICTION.get(prediction, prediction), num_train_timesteps=TIMESTEPS
        )
    if not hasattr(scheduler, "alphas_cumprod") and sampler.objectives == FOR_DIFFUSION:
        scheduler.alphas_cumprod = schedule_in_force(zero_terminal_snr)
    return scheduler


def _at_levels(scheduler: Any, schedule: str, zero_terminal_snr: bool) -> Any:
    """Make a diffusers scheduler with one evaluation per step use the levels of a schedule type; return the scheduler."""
    original_set_timesteps, table = scheduler.set_timesteps, level_table(zero_terminal_snr)

    def set_timesteps(num_inference_steps: int, device: Any = None) -> None:
        original_set_timesteps(num_inference_steps, device=device)
        levels = LEVELS[schedule](table, num_inference_steps)
        levels[-1] = max(float(levels[-1]), float(scheduler.sigmas[-1]))  # some cannot end at 0
        scheduler.sigmas = levels.float()
        scheduler.timesteps = timestep_at(table, levels[:-1]).float().to(device)

    scheduler.set_timesteps = set_timesteps
    return scheduler


AS_PROGRAM: dict[str, dict[str, Any]] = {
    "": {},
    "trainer": {"clip_sample": True, "steps_offset": 0, "skip_prk_steps": False},
    "generator": {"skip_prk_steps": False},
}


def start_scale(scheduler: Any) -> float:
    """Return the standard deviation of the initial noise; 1 for flow matching. Call after `set_timesteps`."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def add_noise(scheduler: Any, latents: Tensor, noise: Tensor, index: int) -> Tensor:
    """Return latents with noise of the level before evaluation `index` of `scheduler.timesteps`."""
    timestep = scheduler.timesteps[index].repeat(len(latents))
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return scheduler.scale_noise(latents, timestep, noise)
    return scheduler.add_noise(latents, noise, timestep)


def root_alpha_bar(scheduler: Any, timestep: Tensor) -> float:
    """Return alpha_bar ** .5, the factor of the clean latents in the model's input at this timestep."""
    if start_scale(scheduler) > 1:  # latents with noise of the size sigma, which are divided for the model
        return float(model_input(scheduler, torch.ones(1, 1, 1, 1, device=timestep.device), timestep))
    return float(scheduler.alphas_cumprod[min(int(timestep), len(scheduler.alphas_cumprod) - 1)] ** 0.5)


def clean_estimate(scheduler: Any, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """Return the clean latents estimated from the model's output at this timestep, [B, C, H, W]. latents: noisy, as the sampler has them"""
    if not hasattr(scheduler, "alphas_cumprod"):  # flow matching
        return latents - timestep / TIMESTEPS * output
    a = max(root_alpha_bar(scheduler, timestep), 1e-3)
    s = (1 - a**2) ** 0.5
    scaled = latents * a if start_scale(scheduler) > 1 else latents
    if scheduler.config["prediction_type"] == "v_prediction":
        return a * scaled - s * output
    return (scaled - s * output) / a


def model_input(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """Return the latents scaled for the model's input; unchanged for flow matching."""
    x: Tensor = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
    return x


def sampler_step(
    scheduler: Any,
    output: Tensor,
    timestep: Tensor,
    latents: Tensor,
    generators: Sequence[torch.Generator],
    unguided: Tensor | None = None,
) -> Tensor:
    """Return the latents after one step, [B, C, H, W].

    output      the U-Net's (guided) prediction at `timestep`, which must be the next of `scheduler.timesteps`
    generators  one for each image, for samplers that add noise
    unguided    the U-Net's prediction for the negative prompt, for CFG++; None without
    """
    parameters = inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators), "unguided": unguided}
    options = {name: value for name, value in options.items() if name in parameters}
    next_latents: Tensor = scheduler.step(output, timestep, latents, return_dict=False, **options)[0]
    return next_latents
