"""Rules on noise, timesteps and the loss."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.dataset.concepts import any_folder
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.needs import ignored
from core.settings.noise import OBJECTIVES, NoiseSettings

LAST_TIMESTEP = 999
MASKS = ("unmasked_weight", "unmasked_probability", "masked_prior_preservation_weight")  # for any objective


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on timestep limits, noise offsets, loss weights and the prediction type."""
    noise = job.noise
    low, high = noise.min_timestep, noise.max_timestep
    if low > high:
        what = f"The min timestep ({low}) is above the max timestep ({high})"
        fix = "lower it, or raise noise.max_timestep"
        yield Problem(what, "noise.min_timestep", fix, code="noise.timestep-order")
    if noise.adaptive_noise_scale is not None and not noise.noise_offset:
        what = "Adaptive noise scale needs a noise offset"
        fix = "set noise.noise_offset, such as 0.05, or leave both empty"
        yield Problem(what, "noise.adaptive_noise_scale", fix, code="noise.adaptive-without-offset")
    if noise.noise_offset and noise.multires_noise_iterations is not None:
        what = "Noise offset and multires noise are both on and add up"
        where = "noise.multires_noise_iterations"
        yield Problem(what, where, "use one of them", "advice", code="noise.offset-and-multires")
    if noise.min_snr_gamma is not None and noise.debiased_estimation_loss:
        what = "Min-SNR and debiased estimation are both on, and their loss weights are multiplied"
        where = "noise.debiased_estimation_loss"
        yield Problem(what, where, "use one of them", "advice", code="noise.min-snr-and-debiased")
    if noise.p2_gamma is not None and (noise.min_snr_gamma is not None or noise.debiased_estimation_loss):
        other = "Min-SNR" if noise.min_snr_gamma is not None else "debiased estimation"
        what = f"P2 and {other} are both on, and their loss weights are multiplied"
        yield Problem(what, "noise.p2_gamma", "use one of them", "advice", code="noise.p2-and-others")
    if noise.loss_type == "mixed" and not (noise.mse_weight or noise.mae_weight or noise.log_cosh_weight):
        what, fix = "The mixed loss has only weights of 0", "set noise.mse_weight, mae_weight or log_cosh_weight"
        yield Problem(what, "noise.mse_weight", fix, code="noise.no-loss-weight")
    if job.model.prediction != "auto":  # else checked once the model is known
        yield from prediction_problems(noise, job.model.prediction)


def prediction_problems(noise: NoiseSettings, prediction: str) -> Iterator[Problem]:
    """Yield problems of noise settings that do not fit the prediction type, "epsilon" or "v"."""
    if prediction == "v":
        if noise.v_pred_like_loss:
            what = "v-prediction-like loss is for noise-prediction models; this is a v-prediction model"
            yield Problem(what, "noise.v_pred_like_loss", "leave it empty", code="noise.v-like-loss-for-v")
        if noise.zero_terminal_snr and noise.min_timestep == LAST_TIMESTEP and noise.compatibility == "none":
            yield from _zero_weights(noise)
        return
    if noise.scale_v_pred_loss_like_noise_pred:
        what = "Scale v-prediction loss needs a v-prediction model; this one predicts noise"
        fix = "turn it off, or set model.prediction to v"
        yield Problem(what, "noise.scale_v_pred_loss_like_noise_pred", fix, code="noise.scale-v-loss-for-epsilon")
    if not noise.zero_terminal_snr:
        return
    if noise.compatibility == "none":
        yield from _infinite_weights(noise)
    what = "Zero terminal SNR is for v-prediction models; with noise prediction the last timestep has no effect"
    fix = "turn it off, or set model.prediction to v"
    yield Problem(what, "noise.zero_terminal_snr", fix, "advice", code="noise.zero-snr-for-epsilon")


def _zero_weights(noise: NoiseSettings) -> Iterator[Problem]:
    """Yield errors for loss weights of v-prediction that are 0 at SNR 0, where only this timestep is trained."""
    for name in ("min_snr_gamma", "scale_v_pred_loss_like_noise_pred"):
        if getattr(noise, name):
            what = f"With zero terminal SNR, '{NoiseSettings.title_of(name)}' gives the only timestep weight 0: nothing would be trained"
            yield Problem(what, f"noise.{name}", "turn it off, or lower noise.min_timestep", code="noise.zero-weight")


def _infinite_weights(noise: NoiseSettings) -> Iterator[Problem]:
    """Yield errors for loss weights that divide by the SNR, which is 0 at the last timestep of the rescaled schedule."""
    for name, on in (
        ("debiased_estimation_loss", noise.debiased_estimation_loss),
        ("v_pred_like_loss", bool(noise.v_pred_like_loss)),
    ):
        if on:
            what = f"With zero terminal SNR, '{NoiseSettings.title_of(name)}' gives the last timestep infinite weight"
            fix = "turn it or noise.zero_terminal_snr off"
            yield Problem(what, f"noise.{name}", fix, code="noise.infinite-weight")


def objective_of(job: TrainJob) -> str | None:
    """Return the name of the objective: the chosen one, else that of the model's family; None while the family is not known."""
    if job.noise.objective != "auto":
        return job.noise.objective
    return job.model.traits.objective if job.model.traits else None


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for noise settings that the objective, the loss or missing masks make ineffective."""
    noise = job.noise
    objective = OBJECTIVES.get(objective_of(job) or "")
    if objective is not None:
        others = NoiseSettings.model_fields.keys() - objective.uses - {"objective", "compatibility", *MASKS}
        for name in sorted(others):
            yield f"noise.{name}", f"ignored: the objective '{objective.title}' does not use it"
    kohya, masked = noise.compatibility != "none", _masked(job)
    huber = kohya and noise.huber_schedule == "snr" and noise.loss_type in ("huber", "smooth_l1")
    equal = noise.min_timestep == noise.max_timestep
    yield from ignored(
        (huber, "noise.huber_scale", "sd-scripts does not use it with the SNR schedule"),
        (equal, "noise.timestep_sampling timestep_shift stratified_timesteps", "min and max timestep are equal"),
        (not masked, f"noise.mask_mean {' '.join(MASKS)}", "there are no masks"),
        (masked and kohya, "noise.mask_mean", "sd-scripts averages over the whole image"),
        (spec_of(job).preserves_class, "noise.masked_prior_preservation_weight", "the model is frozen"),
    )


def preserves_unmasked(job: TrainJob) -> bool:
    """Return whether the base model's prediction is the training target outside of masks."""
    return job.noise.masked_prior_preservation_weight > 0 and not spec_of(job).preserves_class and _masked(job)


def _masked(job: TrainJob) -> bool:
    """Return whether any dataset folder has masks or uses the alpha channel as mask."""
    return any_folder(job, lambda each: each.images.masked_loss or each.images.alpha_mask)
