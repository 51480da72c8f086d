"""Noise, timesteps and the loss."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.concepts import anywhere
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings


def problems(job: TrainJob) -> Iterator[Problem]:
    noise = job.noise
    low, high = noise.min_timestep, noise.max_timestep
    if low > high:
        what = f"The lowest timestep ({low}) is above the highest ({high})"
        yield Problem(what, "noise.min_timestep", "lower it, or raise noise.max_timestep")
    if noise.adaptive_noise_scale is not None and not noise.noise_offset:
        what = "The adaptive scale adds to the noise offset, and that is off"
        yield Problem(what, "noise.adaptive_noise_scale", "set noise.noise_offset, such as 0.05, or leave both empty")
    if noise.noise_offset and noise.multires_noise_iterations is not None:
        what = "Noise offset and multi-resolution noise are both on; they serve the same end and add up"
        yield Problem(what, "noise.multires_noise_iterations", "use one of them", "advice")
    if noise.min_snr_gamma is not None and noise.debiased_estimation_loss:
        what = "Min-SNR and debiased estimation both weigh the timesteps, and their weights are multiplied"
        yield Problem(what, "noise.debiased_estimation_loss", "use one of them", "advice")
    if job.model.prediction != "auto":  # else asked again when the model is known
        yield from prediction_problems(noise, job.model.prediction)


def prediction_problems(noise: NoiseSettings, prediction: str) -> Iterator[Problem]:
    """What does not go with what the model predicts, "epsilon" or "v"."""
    if prediction == "v":
        if noise.v_pred_like_loss:
            what = "A share of a v loss is for models that predict noise; this one predicts v"
            yield Problem(what, "noise.v_pred_like_loss", "leave it empty")
        return
    if noise.scale_v_pred_loss_like_noise_pred:
        what = "Weighing the v loss like a noise loss needs a model that predicts v; this one predicts noise"
        yield Problem(what, "noise.scale_v_pred_loss_like_noise_pred", "switch it off, or set model.prediction to v")
    if not noise.zero_terminal_snr:
        return
    if not noise.as_kohya:
        yield from _infinite_weights(noise)
    what = "Zero terminal SNR is for models that predict v; a model that predicts noise trains nothing at the last timestep"
    yield Problem(what, "noise.zero_terminal_snr", "switch it off, or set model.prediction to v", "advice")


def _infinite_weights(noise: NoiseSettings) -> Iterator[Problem]:
    """Weights that divide by the SNR, which is 0 at the end of the stretched schedule."""
    for name, on in (
        ("debiased_estimation_loss", noise.debiased_estimation_loss),
        ("v_pred_like_loss", bool(noise.v_pred_like_loss)),
    ):
        if on:
            title = NoiseSettings.model_fields[name].title
            what = f"With zero terminal SNR, '{title}' would weigh the last timestep infinitely"
            yield Problem(what, f"noise.{name}", "switch it or noise.zero_terminal_snr off")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    noise = job.noise
    kohya = noise.as_kohya
    if not noise.noise_offset:
        yield "noise.noise_offset_random_strength", "ignored: there is no noise offset"
    if not noise.ip_noise_gamma:
        yield "noise.ip_noise_gamma_random_strength", "ignored: there is no input perturbation"
    if noise.multires_noise_iterations is None:
        yield "noise.multires_noise_discount", "ignored: there is no multi-resolution noise"
    if noise.loss_type not in ("huber", "smooth_l1"):
        for name in ("huber_schedule", "huber_c", "huber_scale"):
            yield f"noise.{name}", "ignored: the loss is neither Huber nor smooth l1"
    elif kohya and noise.huber_schedule == "snr":
        yield "noise.huber_scale", "ignored: sd-scripts leaves it out of the schedule snr"
    if not _masked(job):
        yield "noise.mask_mean", "ignored: there are no masks"
    elif kohya:
        yield "noise.mask_mean", "ignored: sd-scripts takes the mean over the image"
    if not kohya_differs(job):
        yield "noise.compatibility", "ignored: with these settings the step is the same"


def _masked(job: TrainJob) -> bool:
    return anywhere(job, lambda each: each.images.masked_loss or each.images.alpha_mask)


def kohya_differs(job: TrainJob) -> bool:
    """Whether the chosen compatibility, or one of them where none is, changes anything as the other settings stand."""
    noise = job.noise
    weighed = (
        noise.min_snr_gamma is not None
        or noise.debiased_estimation_loss
        or noise.scale_v_pred_loss_like_noise_pred
        or bool(noise.v_pred_like_loss)
    )
    scaled = noise.loss_type in ("huber", "smooth_l1") and noise.huber_schedule == "snr" and noise.huber_scale != 1
    shared = (
        (bool(noise.noise_offset) and noise.noise_offset_random_strength)
        or (bool(noise.ip_noise_gamma) and noise.ip_noise_gamma_random_strength)
        or noise.multires_noise_iterations is not None
    ) and anywhere(job, lambda each: each.images.train_batch_size > 1)
    halved = job.memory.mixed_precision != "no"
    if (
        job.method.kind == "lora"
    ):  # in 0.9 alone; "auto" is often bf16, but nobody who repeats old results leaves it to that
        asked = job.memory.mixed_precision in ("bf16", "fp16")
        halved = {"none": asked, "kohya": False, "kohya_0.9": halved}[noise.compatibility]
    gathered = job.schedule.gradient_accumulation_steps > 1
    return (noise.zero_terminal_snr and weighed) or scaled or shared or _masked(job) or halved or gathered
