"""The whole loss against a second writing of sd-scripts' step, in its order, with diffusers' scheduler, for any options."""

import copy
import math

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx, mark

from core.diffusion.noise import Noises
from core.diffusion.objective import Diffusion
from core.diffusion.schedule import schedule_in_force, sd_alpha_bar
from core.settings.noise import NoiseSettings
from core.training.loop.passes import training_loss

TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}
SIZE = (4, 8, 6)


def scheduler(zero_terminal):
    """DDPMScheduler as sd-scripts sets it up, with the SNR of the schedule before it was stretched."""
    made = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
    )
    made.snr = made.alphas_cumprod / (1 - made.alphas_cumprod)
    if zero_terminal:
        root = made.alphas_cumprod.sqrt()
        first, last = root[0].clone(), root[-1].clone()
        root = (root - last) * (first / (first - last))
        bars = root**2
        alphas = torch.cat([bars[0:1], bars[1:] / bars[:-1]])
        made.betas = 1 - alphas
        made.alphas = 1 - made.betas
        made.alphas_cumprod = torch.cumprod(made.alphas, dim=0)
    return made


def predict(noisy, timesteps):
    """Any function of both will do: it stands for the U-Net."""
    return torch.tanh(noisy) * (1 + timesteps.view(-1, 1, 1, 1) / 1000)


def drawn(timesteps, seed=3, dtype=torch.float32):
    """A batch, and every random tensor that any option may ask for."""
    source = torch.Generator().manual_seed(seed)
    count = len(timesteps)

    def normal(*shape):
        return torch.randn(*shape, generator=source)

    return {
        "latents": normal(count, *SIZE).to(dtype),
        "noise": normal(count, *SIZE).to(dtype),
        "timesteps": torch.tensor(timesteps),
        "offset": normal(count, SIZE[0], 1, 1),
        "perturbation": normal(count, *SIZE).to(dtype),
        "levels": [normal(count, SIZE[0], max(1, SIZE[1] // 3**i), max(1, SIZE[2] // 3**i)) for i in range(3)],
        "masks": torch.rand(count, 1, SIZE[1] * 8, SIZE[2] * 8, generator=source),
        "weights": torch.rand(count, generator=source) * 2,
        "offset_share": 0.37,
        "perturbation_share": 0.71,
    }


def huber_c(options, schedule, timesteps):
    c, scale = options.huber_c, options.huber_scale
    if options.huber_schedule == "constant":
        return torch.full((len(timesteps),), c * scale)
    if options.huber_schedule == "exponential":
        return torch.tensor([scale * math.exp(int(t) * math.log(c) / 1000) for t in timesteps])
    bars = schedule.alphas_cumprod[timesteps]
    sigma = ((1 - bars) / bars) ** 0.5
    return (1 - c) / (1 + sigma) ** 2 + c


def timestep_weights(options, snr, v):
    """In sd-scripts' order; each is multiplied onto a loss of ones."""
    loss = torch.ones_like(snr)
    if options.min_snr_gamma:
        least = torch.minimum(snr, torch.full_like(snr, options.min_snr_gamma))
        loss = loss * least / (snr + 1 if v else snr)
    capped = torch.minimum(snr, torch.full_like(snr, 1000.0))
    if options.scale_v_pred_loss_like_noise_pred:
        loss = loss * (capped / (capped + 1))
    if options.v_pred_like_loss:
        loss = loss + loss / (capped / (capped + 1)) * options.v_pred_like_loss
    if options.debiased_estimation_loss:
        loss = loss * (1 / (capped + 1) if v else 1 / torch.sqrt(capped))
    return loss


def sd_scripts_loss(batch, options, *, v, masked, weighted):
    """training.md 2.2 to 2.6, line by line. Loss per image; sd-scripts takes their mean next."""
    schedule = scheduler(options.zero_terminal_snr)
    latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
    if options.noise_offset:
        strength = options.noise_offset * (batch["offset_share"] if options.noise_offset_random_strength else 1)
        if options.adaptive_noise_scale is not None:  # also 0, which rounds the strength to the latents' type
            brightness = torch.abs(latents.mean(dim=(2, 3), keepdim=True))
            strength = torch.clamp(strength + options.adaptive_noise_scale * brightness, 0.0, None)
        noise = noise + strength * batch["offset"]
    if options.multires_noise_iterations:
        enlarge = torch.nn.Upsample(size=SIZE[1:], mode="bilinear")
        for i, level in enumerate(batch["levels"]):
            noise = noise + enlarge(level) * options.multires_noise_discount**i
        noise = noise / noise.std()
    seen = noise
    if options.ip_noise_gamma:
        share = batch["perturbation_share"] if options.ip_noise_gamma_random_strength else 1
        seen = noise + options.ip_noise_gamma * share * batch["perturbation"]
    noisy = schedule.add_noise(latents, seen, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps) if v else noise
    error = predict(noisy.float(), timesteps).float() - target.float()
    if options.loss_type in ("huber", "smooth_l1"):
        c = huber_c(options, schedule, timesteps).view(-1, 1, 1, 1)
        loss = 2 * (torch.sqrt(error**2 + c**2) - c) * (c if options.loss_type == "huber" else 1)
    else:
        loss = error**2 if options.loss_type == "l2" else error.abs()
    if masked:
        loss = loss * torch.nn.functional.interpolate(batch["masks"], size=loss.shape[2:], mode="area")
    loss = loss.mean([1, 2, 3])
    if weighted:
        loss = loss * batch["weights"]
    return loss * timestep_weights(options, schedule.snr[timesteps], v)


def our_loss(batch, options, *, v, masked, weighted):
    levels = [
        torch.nn.functional.interpolate(level, size=SIZE[1:], mode="bilinear") * options.multires_noise_discount**i
        for i, level in enumerate(batch["levels"])
    ]
    noises = Noises(
        batch["noise"],
        offset=batch["offset"],
        offset_strength=batch["offset_share"] if options.noise_offset_random_strength else 1.0,
        multires=sum(levels),
        perturbation=batch["perturbation"],
        perturbation_strength=batch["perturbation_share"] if options.ip_noise_gamma_random_strength else 1.0,
    )
    return training_loss(
        Diffusion(options, "v" if v else "epsilon"),
        predict,
        batch["latents"],
        noises,
        batch["timesteps"],
        sample_weights=batch["weights"] if weighted else None,
        masks=batch["masks"] if masked else None,
    )


ALONE = [
    {},
    {"noise_offset": 0.1},
    {"noise_offset": 0.0},
    {"noise_offset": 0.1, "noise_offset_random_strength": True},
    {"noise_offset": 0.05, "adaptive_noise_scale": 0.05},
    {"noise_offset": 0.01, "adaptive_noise_scale": -0.5},
    {"multires_noise_iterations": 6},
    {"multires_noise_iterations": 8, "multires_noise_discount": 0.8},
    {"noise_offset": 0.1, "multires_noise_iterations": 6},
    {"ip_noise_gamma": 0.1},
    {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
    {"zero_terminal_snr": True},
    {"min_snr_gamma": 5},
    {"debiased_estimation_loss": True},
    {"loss_type": "l1"},
    *({"loss_type": kind, "huber_schedule": at} for kind in ("huber", "smooth_l1") for at in ("snr", "exponential")),
    *({"loss_type": kind, "huber_schedule": "constant"} for kind in ("huber", "smooth_l1")),
    {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.02, "huber_scale": 1.7},
    {"loss_type": "huber", "huber_schedule": "constant", "huber_c": 0.5, "huber_scale": 0.3},
    {"loss_type": "smooth_l1", "huber_schedule": "snr", "huber_c": 0.3, "huber_scale": 3, "compatibility": "kohya"},
    {"zero_terminal_snr": True, "min_snr_gamma": 5, "compatibility": "kohya"},
    {"zero_terminal_snr": True, "loss_type": "huber"},
]
FOR_V = [
    {"scale_v_pred_loss_like_noise_pred": True},
    {"scale_v_pred_loss_like_noise_pred": True, "min_snr_gamma": 1, "debiased_estimation_loss": True},
]
FOR_EPSILON = [
    {"v_pred_like_loss": 0.5},
    {"v_pred_like_loss": 0.5, "min_snr_gamma": 5, "debiased_estimation_loss": True},
]
CASES = [
    *((v, case) for v in (False, True) for case in ALONE),
    *((True, case) for case in FOR_V),
    *((False, case) for case in FOR_EPSILON),
]


def named(value):
    if isinstance(value, dict):
        return "-".join(f"{key}={each}" for key, each in value.items())
    return "v" if value else "epsilon"


@mark.parametrize(("v", "case"), CASES, ids=named)
def test_each_option_alone_gives_sd_scripts_loss(v, case):
    one = 0 if "multires_noise_iterations" in case else 4  # the deviation is each image's own, unless asked: one image
    timesteps = [500] if one == 0 else [0, 17, 500, 999]
    batch, options = drawn(timesteps), NoiseSettings(**case)
    expected = sd_scripts_loss(batch, options, v=v, masked=False, weighted=False)
    assert bool(expected.isfinite().all()) and float(expected.sum()) > 0
    torch.testing.assert_close(our_loss(batch, options, v=v, masked=False, weighted=False), expected, **TOLERANCE)


def maybe(values):
    return st.none() | values


OPTIONS = st.fixed_dictionaries(
    {
        "noise_offset": maybe(st.floats(0, 0.5)),
        "noise_offset_random_strength": st.booleans(),
        "adaptive_noise_scale": maybe(st.floats(-1, 1)),
        "multires_noise_iterations": maybe(st.integers(1, 10)),
        "multires_noise_discount": st.floats(0, 1),
        "ip_noise_gamma": maybe(st.floats(0, 0.5)),
        "ip_noise_gamma_random_strength": st.booleans(),
        "min_snr_gamma": maybe(st.floats(0.1, 20)),
        "debiased_estimation_loss": st.booleans(),
        "loss_type": st.sampled_from(["l2", "l1", "huber", "smooth_l1"]),
        "huber_schedule": st.sampled_from(["snr", "exponential", "constant"]),
        "huber_c": st.floats(0.01, 1),
        "huber_scale": st.floats(0.1, 3),
        "zero_terminal_snr": st.booleans(),
    }
)
FOR_THE_PREDICTION = {True: "scale_v_pred_loss_like_noise_pred", False: "v_pred_like_loss"}
CASE = {
    "case": OPTIONS,
    "v": st.booleans(),
    "masked": st.booleans(),
    "weighted": st.booleans(),
    "by_prediction": st.booleans(),
    "timesteps": st.lists(st.integers(0, 999), min_size=1, max_size=4),
    "seed": st.integers(0, 99),
}


def with_prediction(case, v, by_prediction):
    return {**case, FOR_THE_PREDICTION[v]: True if v else 0.7} if by_prediction else case


@settings(max_examples=150, deadline=None)
@given(**CASE, half=st.sampled_from([None, torch.bfloat16, torch.float16]))
def test_any_options_together_give_sd_scripts_loss_when_it_is_to_be_repeated(
    case, v, masked, weighted, by_prediction, timesteps, seed, half
):
    options = NoiseSettings(**with_prediction(case, v, by_prediction), compatibility="kohya")
    batch = drawn(timesteps, seed, half or torch.float32)
    ours = our_loss(batch, options, v=v, masked=masked, weighted=weighted)
    expected = sd_scripts_loss(batch, options, v=v, masked=masked, weighted=weighted)
    # in half precision each sum is rounded anew, so the order of multi-resolution levels shows
    tolerance = TOLERANCE if half is None or options.multires_noise_iterations is None else {"rtol": 2e-2, "atol": 1e-3}
    torch.testing.assert_close(ours, expected, **tolerance)


@settings(max_examples=100, deadline=None)
@given(**CASE)
def test_by_default_each_image_has_the_loss_sd_scripts_gives_it_alone(
    case, v, masked, weighted, by_prediction, timesteps, seed
):
    """Alone, and without what the default does otherwise: Huber's scale, the SNR of the stretched schedule, masks."""
    case = {**with_prediction(case, v, by_prediction), "mask_mean": "image"}
    case["huber_scale"] = 1.0 if case["huber_schedule"] == "snr" else case["huber_scale"]
    weighing = case["min_snr_gamma"] or case["debiased_estimation_loss"] or by_prediction
    case["zero_terminal_snr"] = case["zero_terminal_snr"] and not weighing
    options, batch = NoiseSettings(**case), drawn(timesteps, seed)
    ours = our_loss(batch, options, v=v, masked=masked, weighted=weighted)
    for i in range(len(timesteps)):
        alone = {name: value[i : i + 1] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        alone["levels"] = [level[i : i + 1] for level in batch["levels"]]
        expected = sd_scripts_loss(alone, options, v=v, masked=masked, weighted=weighted)
        torch.testing.assert_close(ours[i : i + 1], expected, **TOLERANCE)


def test_half_precision_rounds_the_schedule_only_where_sd_scripts_is_repeated():
    batch = drawn([999], dtype=torch.bfloat16)
    kohya = our_loss(batch, NoiseSettings(compatibility="kohya"), v=True, masked=False, weighted=False)
    exact = our_loss(batch, NoiseSettings(), v=True, masked=False, weighted=False)
    single = {**batch, "latents": batch["latents"].float(), "noise": batch["noise"].float()}
    assert torch.equal(exact, our_loss(single, NoiseSettings(), v=True, masked=False, weighted=False))
    assert float(kohya) != float(exact) and float(kohya) == approx(float(exact), rel=0.02)


def test_weights_follow_the_stretched_schedule_by_default_and_the_old_one_where_sd_scripts_is_repeated():
    batch, case = drawn([0, 500, 999]), {"zero_terminal_snr": True, "min_snr_gamma": 5}
    plain = our_loss(batch, NoiseSettings(zero_terminal_snr=True), v=True, masked=False, weighted=False)

    def weights(**more):
        return our_loss(batch, NoiseSettings(**case, **more), v=True, masked=False, weighted=False) / plain

    for table, found in ((schedule_in_force(True), weights()), (sd_alpha_bar(), weights(compatibility="kohya"))):
        snr = (table / (1 - table))[batch["timesteps"]]
        torch.testing.assert_close(found, snr.clip(max=5) / (snr + 1))
    assert float(weights()[-1]) == 0.0  # pure noise says nothing about x0


def test_what_sd_scripts_shares_in_a_batch_is_each_images_own_by_default():
    batch = drawn([10, 400, 800])
    loud = copy.copy(batch)
    loud["levels"] = [torch.cat([level[:1], 5 * level[1:]]) for level in batch["levels"]]
    options = {"multires_noise_iterations": 6}

    def first(of, **more):
        return our_loss(of, NoiseSettings(**options, **more), v=False, masked=False, weighted=False)[0]

    assert torch.equal(first(batch), first(loud))  # another image's noise is nothing to the first
    assert not torch.equal(first(batch, compatibility="kohya"), first(loud, compatibility="kohya"))


@mark.parametrize("option", ["offset", "perturbation"])
def test_a_strength_for_each_image_is_that_share_of_the_setting(option):
    batch = drawn([10, 400, 800])
    shares = torch.tensor([0.0, 0.25, 1.0])
    setting = {"offset": "noise_offset", "perturbation": "ip_noise_gamma"}[option]

    def loss(strength, value=0.4):
        noises = Noises(batch["noise"], **{option: batch[option], f"{option}_strength": strength})
        objective = Diffusion(NoiseSettings(**{setting: value}))
        return training_loss(objective, predict, batch["latents"], noises, batch["timesteps"])

    mixed = loss(shares)
    assert torch.equal(mixed[0], loss(1.0, None)[0]) and torch.equal(mixed[2], loss(1.0)[2])
    torch.testing.assert_close(mixed[1], loss(1.0, 0.1)[1])
