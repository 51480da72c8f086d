"""The way from noise to image: diffusers' schedulers, made from explicit numbers.

Nothing is read from a model's scheduler config: those differ between copies of one model, and one that lacks
`clip_sample: false` turns every DDIM image magenta.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.diffusion.schedule import BETA_END, BETA_START, TIMESTEPS, schedule_in_force
from core.record.problems import Problem
from core.settings.dataset.class_images import ClassImageSettings
from core.settings.generation.generate import GenerateSettings
from core.settings.growth import add_choice
from core.settings.noise import OBJECTIVES
from core.settings.samples import SAMPLER_LABELS, SampleSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIFFUSERS_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}


def _schedule(prediction: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """What every sampler is told about the model; `steps_offset` only acts with the "leading" spacing of DDIM."""
    return {
        "num_train_timesteps": TIMESTEPS,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "scaled_linear",
        "prediction_type": DIFFUSERS_PREDICTION[prediction],
        "steps_offset": 1,
        "rescale_betas_zero_snr": zero_terminal_snr,
    }


def _ddim(prediction: str, zero_terminal_snr: bool, last_alpha_one: bool = True) -> Any:
    """Song et al. 2020, arXiv:2010.02502, eta 0.

    last_alpha_one   the last step ends at alpha 1, without noise; else at the schedule's first alpha, 0.9991
    "leading" never asks for the last timestep, where a stretched schedule begins: it is "trailing" there (Lin et al.
    2023, arXiv:2305.08891, section 3.3).
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    spacing = "trailing" if zero_terminal_snr else "leading"
    return DDIMScheduler(
        **_schedule(prediction, zero_terminal_snr),
        clip_sample=False,
        set_alpha_to_one=last_alpha_one,
        timestep_spacing=spacing,
    )


def _ddim_first_alpha(prediction: str, zero_terminal_snr: bool) -> Any:
    """DDIM as SD 1.5's own scheduler config has it (`set_alpha_to_one: false`)."""
    return _ddim(prediction, zero_terminal_snr, last_alpha_one=False)


def _euler(prediction: str, zero_terminal_snr: bool) -> Any:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 2 without churn."""
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**_schedule(prediction, zero_terminal_snr), timestep_spacing="linspace")


def _euler_a(prediction: str, zero_terminal_snr: bool) -> Any:
    """Euler with fresh noise at every step (k-diffusion's sample_euler_ancestral)."""
    from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

    return EulerAncestralDiscreteScheduler(**_schedule(prediction, zero_terminal_snr), timestep_spacing="linspace")


def _dpmsolver_pp(prediction: str, zero_terminal_snr: bool) -> Any:
    """DPM-Solver++ (2M): Lu et al. 2022, arXiv:2211.01095, algorithm 2."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        **_schedule(prediction, zero_terminal_snr),
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="linspace",
    )


def _dpmsolver(prediction: str, zero_terminal_snr: bool) -> Any:
    """DPM-Solver, second order (Lu et al. 2022, arXiv:2206.00927): it predicts the noise, and ends at the smallest sigma."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers advises another one; a person asked for this
        return DPMSolverMultistepScheduler(
            **_schedule(prediction, zero_terminal_snr),
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
            solver_order=2,
            timestep_spacing="linspace",
        )


def _dpmsolver_pp_2m_sde(prediction: str, zero_terminal_snr: bool) -> Any:
    """DPM-Solver++ (2M) with fresh noise at every step. (diffusers' third order of it spreads too much noise: 36 % more at
    200 steps, so there is none.)"""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        **_schedule(prediction, zero_terminal_snr),
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        timestep_spacing="linspace",
    )


def _dpmsolver_pp_3m(prediction: str, zero_terminal_snr: bool) -> Any:
    """DPM-Solver++ of third order."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        **_schedule(prediction, zero_terminal_snr),
        algorithm_type="dpmsolver++",
        solver_order=3,
        timestep_spacing="linspace",
    )


def _dpmsingle_sde(prediction: str, zero_terminal_snr: bool) -> Any:
    """DPM-Solver++ (2S) with fresh noise at every step."""
    from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler

    return DPMSolverSinglestepScheduler(
        **_betas(prediction, zero_terminal_snr),
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        lower_order_final=True,
    )


def _unipc(prediction: str, zero_terminal_snr: bool) -> Any:
    """UniPC of second order: Zhao et al. 2023, arXiv:2302.04867."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(**_schedule(prediction, zero_terminal_snr), solver_order=2)


def _deis(prediction: str, zero_terminal_snr: bool) -> Any:
    """DEIS of second order: Zhang and Chen 2022, arXiv:2204.13902."""
    from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler

    return DEISMultistepScheduler(**_betas(prediction, zero_terminal_snr), solver_order=2)


def _ddpm(prediction: str, zero_terminal_snr: bool) -> Any:
    """Ho et al. 2020, arXiv:2006.11239: the training's own process backwards, with fresh noise at every step."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    spacing = "trailing" if zero_terminal_snr else "leading"
    return DDPMScheduler(**_schedule(prediction, zero_terminal_snr), clip_sample=False, timestep_spacing=spacing)


def _lcm(prediction: str, zero_terminal_snr: bool) -> Any:
    """Latent consistency: Luo et al. 2023, arXiv:2310.04378. For models and LoRAs distilled so, with 2 to 8 steps."""
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    return _any_number(LCMScheduler)(**_schedule(prediction, zero_terminal_snr))


def _tcd(prediction: str, zero_terminal_snr: bool) -> Any:
    """Trajectory consistency: Zheng et al. 2024, arXiv:2402.19159. For models and LoRAs distilled so."""
    from diffusers.schedulers.scheduling_tcd import TCDScheduler

    return _any_number(TCDScheduler)(**_schedule(prediction, zero_terminal_snr))


def _any_number(kind: Any) -> Any:
    """The scheduler of distilled models, which knows as many timesteps as it was distilled with (50), with more where asked."""

    def set_timesteps(self: Any, num_inference_steps: int, device: Any = None) -> None:
        more = num_inference_steps > self.config.original_inference_steps
        # Only where it is needed: told a number, TCD takes other timesteps than those it was distilled with.
        known = {"original_inference_steps": num_inference_steps} if more else {}
        kind.set_timesteps(self, num_inference_steps, device=device, **known)

    return type(f"{kind.__name__}OfAnyNumber", (kind,), {"set_timesteps": set_timesteps})


def _dpmsingle(prediction: str, zero_terminal_snr: bool) -> Any:
    """DPM-Solver++ (2S): Lu et al. 2022, arXiv:2211.01095, algorithm 1."""
    from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler

    return DPMSolverSinglestepScheduler(
        **_betas(prediction, zero_terminal_snr), algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True
    )


def _pndm(prediction: str, zero_terminal_snr: bool) -> Any:
    """Liu et al. 2022, arXiv:2202.09778, without the Runge-Kutta start, as Stable Diffusion has it (PLMS)."""
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    spacing = "trailing" if zero_terminal_snr else "leading"
    own = {"skip_prk_steps": True, "set_alpha_to_one": False, "timestep_spacing": spacing, "steps_offset": 1}
    return PNDMScheduler(**_betas(prediction, zero_terminal_snr), **own)


def _lms(prediction: str, zero_terminal_snr: bool) -> Any:
    """The linear multistep method of k-diffusion's sample_lms, fourth order."""
    from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

    class Lms(LMSDiscreteScheduler):
        """diffusers' integrates by scipy, which is not installed; the polynomials of degree 3 have an exact sum."""

        def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
            if self.config.counts_derivatives:
                order = min(order, len(self.derivatives))  # fewer where sampling began in the middle of the schedule
            if current_order >= order:
                return 0.0
            low, high = float(self.sigmas[t]), float(self.sigmas[t + 1])
            at = [float(self.sigmas[t - k]) for k in range(order)]
            return lms_coefficient(at, current_order, low, high)

    sampler = Lms(**_betas(prediction, zero_terminal_snr), timestep_spacing="linspace")
    sampler.register_to_config(counts_derivatives=True)
    return sampler


def lms_coefficient(sigmas: Sequence[float], which: int, low: float, high: float) -> float:
    """The integral from `low` to `high` of the Lagrange polynomial that is 1 at sigmas[which] and 0 at the others.

    Gauss' rule with two points is exact up to degree 3, that is for at most four sigmas.
    """
    middle, half = (high + low) / 2, (high - low) / 2

    def polynomial(at: float) -> float:
        return math.prod((at - other) / (sigmas[which] - other) for k, other in enumerate(sigmas) if k != which)

    return half * (polynomial(middle - half / math.sqrt(3)) + polynomial(middle + half / math.sqrt(3)))


def _heun(prediction: str, zero_terminal_snr: bool) -> Any:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 1: two passes a step."""
    from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

    return HeunDiscreteScheduler(
        **_betas(prediction, zero_terminal_snr), clip_sample=False, timestep_spacing="linspace"
    )


def _dpm_2(prediction: str, zero_terminal_snr: bool) -> Any:
    """k-diffusion's sample_dpm_2: two passes a step."""
    from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler

    return KDPM2DiscreteScheduler(**_betas(prediction, zero_terminal_snr), timestep_spacing="linspace")


def _dpm_2_a(prediction: str, zero_terminal_snr: bool) -> Any:
    """The same with fresh noise at every step (k-diffusion's sample_dpm_2_ancestral)."""
    from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler

    return KDPM2AncestralDiscreteScheduler(**_betas(prediction, zero_terminal_snr), timestep_spacing="linspace")


def _betas(prediction: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """As `_schedule`, for those that cannot stretch the schedule themselves. The last alpha_bar is 2 ** -24 where it would
    be 0, as diffusers' own are: a sigma has to be finite."""
    told = {"num_train_timesteps": TIMESTEPS, "prediction_type": DIFFUSERS_PREDICTION[prediction]}
    if not zero_terminal_snr:
        return told | {"beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "scaled_linear"}
    table = schedule_in_force(True).double()
    table[-1] = 2.0**-24
    return told | {"trained_betas": [float(1 - table[0]), *(1 - table[1:] / table[:-1]).tolist()]}


SAMPLERS: dict[str, Callable[[str, bool], Any]] = {
    "ddim": _ddim,
    "ddim_first_alpha": _ddim_first_alpha,
    "euler": _euler,
    "euler_a": _euler_a,
    "dpmsolver++": _dpmsolver_pp,
    "dpmsolver": _dpmsolver,
    "dpmsingle": _dpmsingle,
    "pndm": _pndm,
    "lms": _lms,
    "heun": _heun,
    "dpm_2": _dpm_2,
    "dpm_2_a": _dpm_2_a,
    "dpmsolver++_sde": _dpmsingle_sde,
    "dpmsolver++_2m_sde": _dpmsolver_pp_2m_sde,
    "dpmsolver++_3m": _dpmsolver_pp_3m,
    "unipc": _unipc,
    "deis": _deis,
    "ddpm": _ddpm,
    "lcm": _lcm,
    "tcd": _tcd,
}
DISTILLED = ("lcm", "tcd")  # their timesteps are those they were distilled with
# schedule type -> what it sets of a scheduler; only those that have all of it know the type
SCHEDULES: dict[str, dict[str, Any]] = {
    "own": {},
    "uniform": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "sgm": {"timestep_spacing": "trailing"},
    "beta": {"use_beta_sigmas": True},
}


FOR_DIFFUSION = frozenset({"diffusion"})
OTHERS: dict[str, frozenset[str]] = {}  # sampler -> the objectives whose models it samples, where they are others


def register(
    name: str, title: str, make: Callable[[str, bool], Any], objectives: frozenset[str] = FOR_DIFFUSION
) -> None:
    """Offer a sampler: from now on samples, generation, presets and the command line know it.

    make         (what the model predicts, zero terminal SNR) -> a fresh scheduler with diffusers' interface
    objectives   names of those whose models it samples; with any other it is refused before the start
    """
    SAMPLERS[name], SAMPLER_LABELS[name], OTHERS[name] = make, title, objectives
    add_choice(SampleSettings, "sample_sampler", name, title)
    add_choice(GenerateSettings, "sampler", name, title)
    add_choice(ClassImageSettings, "sampler", name, title)


def sampler_problem(name: str, objective: str, where: str) -> Problem | None:
    """The problem of a sampler that does not fit models of this objective."""
    fitting = [each for each in SAMPLERS if objective in OTHERS.get(each, FOR_DIFFUSION)]
    if name in fitting or name not in SAMPLERS:
        return None
    title = OBJECTIVES[objective].title if objective in OBJECTIVES else objective
    what = f"The sampler {SAMPLER_LABELS[name]} does not fit models of the objective '{title}'"
    fix = f"choose {', '.join(SAMPLER_LABELS[each] for each in fitting) or 'another model'}"
    return Problem(what, where, fix, code="sampler.other-objective")


def noise_problem(name: str, where: str) -> Problem | None:
    """The problem of a sampler that does not say how an image is noised, where a stage begins with one."""
    if name not in SAMPLERS or any(hasattr(make_sampler(name), way) for way in ("add_noise", "scale_noise")):
        return None
    what = f"The sampler {SAMPLER_LABELS[name]} cannot begin with an image"
    return Problem(what, where, "choose another sampler, or begin with noise", code="sampler.no-images")


def schedules_of(name: str) -> list[str]:
    """The schedule types that a sampler knows."""
    if name not in SAMPLERS or name in DISTILLED:
        return ["own"]
    known = config_of(make_sampler(name)).keys()
    return [title for title, own in SCHEDULES.items() if own.keys() <= known]


def schedule_problem(name: str, schedule: str, where: str) -> Problem | None:
    """The problem of a schedule type that a sampler does not know."""
    known = schedules_of(name)
    if name not in SAMPLERS or schedule in known:
        return None
    what = f"The sampler {SAMPLER_LABELS[name]} has no schedule type '{schedule}'"
    return Problem(what, where, f"choose {', '.join(known)}", code="sampler.no-schedule")


def beta_quantiles(count: int, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """Quantiles of the beta distribution at `count` equal steps from 1 to 0, as diffusers asks scipy for.

    Its density is integrated over the angle whose squared sine is the variable, where it has no pole.
    """
    import torch

    angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    density = angle.sin() ** (2 * alpha - 1) * angle.cos().clamp_min(0) ** (2 * beta - 1)
    total = torch.cumulative_trapezoid(density, angle)
    total = torch.cat([total.new_zeros(1), total]) / total[-1]
    at = torch.linspace(1, 0, count, dtype=torch.float64)
    above = torch.searchsorted(total, at).clamp(1, len(total) - 1)
    share = (at - total[above - 1]) / (total[above] - total[above - 1])
    return ((angle[above - 1] + share * (angle[above] - angle[above - 1])).sin() ** 2).tolist()


def _betas_of_sigmas(in_sigmas: Any, num_inference_steps: int, alpha: float = 0.6, beta: float = 0.6) -> Any:
    import numpy as np

    low, high = float(in_sigmas[-1]), float(in_sigmas[0])
    return np.array([low + at * (high - low) for at in beta_quantiles(num_inference_steps, alpha, beta)])


def make_sampler(
    name: str,
    prediction: str = "epsilon",
    zero_terminal_snr: bool = False,
    *,
    program: str = "",
    schedule: str = "own",
) -> Any:
    """A fresh diffusers scheduler for one run of `set_timesteps` and `sampler_step`; it remembers how far it is.

    name          a key of SAMPLERS
    prediction    what the U-Net predicts: "epsilon" or "v"
    zero_terminal_snr
                  for a model trained on the stretched schedule (`schedule.zero_terminal`)
    program       "trainer": as sd-scripts' trainers sample: x0 is cut to -1..1 where the sampler knows that (DDIM, Heun),
                  timesteps have no offset, and the schedule is never stretched; "generator": as its generator does
    schedule      a key of SCHEDULES
    """
    sampler = SAMPLERS[name](prediction, zero_terminal_snr and program != "trainer")
    theirs = AS_PROGRAM[program] | SCHEDULES[schedule]
    if schedule == "beta":
        sampler._convert_to_beta = _betas_of_sigmas
    config = config_of(sampler)
    if program == "generator" and config.get("timestep_spacing") == "trailing":
        theirs["timestep_spacing"] = "leading"  # also of a stretched schedule
    if own := {key: value for key, value in theirs.items() if key in config}:
        sampler.register_to_config(**own)
    return sampler


def config_of(sampler: Any) -> Mapping[str, Any]:
    """A scheduler's config; a package's sampler may have none."""
    found: Mapping[str, Any] = getattr(sampler, "config", {})
    return found


AS_PROGRAM: dict[str, dict[str, Any]] = {
    "": {},
    "trainer": {"clip_sample": True, "steps_offset": 0, "skip_prk_steps": False},
    "generator": {"skip_prk_steps": False, "counts_derivatives": False},
}


def start_scale(sampler: Any) -> float:
    """The size of the noise that sampling starts from; call after `set_timesteps`. Schedulers of flow matching start from 1."""
    return float(getattr(sampler, "init_noise_sigma", 1.0))


def add_noise(sampler: Any, latents: Tensor, noise: Tensor, index: int) -> Tensor:
    """Latents as noisy as they are before the evaluation `index` of `sampler.timesteps`."""
    timestep = sampler.timesteps[index].repeat(len(latents))
    if hasattr(sampler, "scale_noise"):  # flow matching
        return sampler.scale_noise(latents, timestep, noise)
    return sampler.add_noise(latents, noise, timestep)


def clean_estimate(sampler: Any, output: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
    """What the latents are without noise, going by the model's output for them at this timestep."""
    if not hasattr(sampler, "alphas_cumprod"):  # flow matching
        return latents - timestep / TIMESTEPS * output
    a = sampler.alphas_cumprod[min(int(timestep), len(sampler.alphas_cumprod) - 1)].clamp(min=1e-6)
    a = a.to(latents.device)
    scaled = latents * a**0.5 if start_scale(sampler) > 1 else latents  # those begin with noise of the size sigma
    if sampler.config.prediction_type == "v_prediction":
        return a**0.5 * scaled - (1 - a) ** 0.5 * output
    return (scaled - (1 - a) ** 0.5 * output) / a**0.5


def model_input(sampler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """The latents as the model is shown them; schedulers of flow matching leave them as they are."""
    scaled: Tensor = sampler.scale_model_input(latents, timestep) if hasattr(sampler, "scale_model_input") else latents
    return scaled


def sampler_step(
    sampler: Any, output: Tensor, timestep: Tensor, latents: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """The latents one step nearer to an image, [B, C, H, W]; samplers that add noise draw it per image.

    output    the U-Net's (guided) prediction at `timestep`, which must be the next of `sampler.timesteps`
    """
    draws = {"generator": list(generators)} if "generator" in inspect.signature(sampler.step).parameters else {}
    after: Tensor = sampler.step(output, timestep, latents, return_dict=False, **draws)[0]
    return after
