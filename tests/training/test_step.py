"""Each option of the step against sd-scripts' own operations, written out with diffusers' scheduler."""

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pytest import fixture, mark, raises

from core.diffusion.noise import Noises
from core.diffusion.objective import Diffusion
from core.settings.noise import NoiseSettings
from core.training.loop.batch import Batch
from core.training.loop.passes import training_loss

KOHYA = DDPMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
)
TOLERANCE = {"rtol": 1e-5, "atol": 0.0}


@fixture
def batch():
    draw = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    return {
        "latents": make(4, 4, 8, 6),
        "noise": make(4, 4, 8, 6),
        "timesteps": torch.tensor([0, 17, 500, 999]),
        "offset": make(4, 4, 1, 1),
        "perturbation": make(4, 4, 8, 6),
    }


def predict(noisy_latents, timesteps):
    """Any function of both will do: it stands for the U-Net."""
    return torch.tanh(noisy_latents) * (1 + timesteps.view(-1, 1, 1, 1) / 1000)


def kohya_loss(batch, *, v=False, gamma=None, noise_offset=None, ip=None, weights=None):
    noise = batch["noise"] if noise_offset is None else batch["noise"] + noise_offset * batch["offset"]
    seen = noise if ip is None else noise + ip * batch["perturbation"]
    noisy = KOHYA.add_noise(batch["latents"], seen, batch["timesteps"])
    target = KOHYA.get_velocity(batch["latents"], noise, batch["timesteps"]) if v else noise
    loss = torch.nn.functional.mse_loss(predict(noisy, batch["timesteps"]), target, reduction="none").mean([1, 2, 3])
    if weights is not None:
        loss = loss * weights
    if gamma is not None:
        alpha, sigma = KOHYA.alphas_cumprod.sqrt(), (1 - KOHYA.alphas_cumprod).sqrt()
        snr = ((alpha / sigma) ** 2)[batch["timesteps"]]
        loss = loss * torch.minimum(snr, torch.full_like(snr, gamma)) / (snr + 1 if v else snr)
    return loss


def our_loss(batch, settings=None, prediction="epsilon", offset=None, perturbation=None, **options):
    objective = Diffusion(settings or NoiseSettings(), prediction)
    noises = Noises(batch["noise"], offset=offset, perturbation=perturbation)
    return training_loss(objective, predict, batch["latents"], noises, batch["timesteps"], **options)


@mark.parametrize("v", [False, True])
@mark.parametrize("gamma", [None, 1.0, 5.0])
def test_loss_equals_sd_scripts_for_both_predictions_with_and_without_min_snr(batch, v, gamma):
    ours = our_loss(batch, NoiseSettings(min_snr_gamma=gamma), prediction="v" if v else "epsilon")
    torch.testing.assert_close(ours, kohya_loss(batch, v=v, gamma=gamma), **TOLERANCE)


@mark.parametrize("v", [False, True])
def test_noise_offset_shifts_noise_and_target(batch, v):
    ours = our_loss(batch, NoiseSettings(noise_offset=0.1), prediction="v" if v else "epsilon", offset=batch["offset"])
    torch.testing.assert_close(ours, kohya_loss(batch, v=v, noise_offset=0.1), **TOLERANCE)


@mark.parametrize("v", [False, True])
def test_input_perturbation_changes_what_is_seen_and_not_the_target(batch, v):
    ours = our_loss(
        batch,
        NoiseSettings(ip_noise_gamma=0.1),
        prediction="v" if v else "epsilon",
        perturbation=batch["perturbation"],
    )
    torch.testing.assert_close(ours, kohya_loss(batch, v=v, ip=0.1), **TOLERANCE)


def test_all_options_together_equal_sd_scripts(batch):
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0])
    settings = NoiseSettings(min_snr_gamma=5.0, noise_offset=0.05, ip_noise_gamma=0.1)
    ours = our_loss(batch, settings, sample_weights=weights, offset=batch["offset"], perturbation=batch["perturbation"])
    torch.testing.assert_close(
        ours, kohya_loss(batch, gamma=5.0, noise_offset=0.05, ip=0.1, weights=weights), **TOLERANCE
    )


def test_extra_draws_act_only_when_their_setting_is_on(batch):
    plain = our_loss(batch)
    assert torch.equal(our_loss(batch, offset=batch["offset"], perturbation=batch["perturbation"]), plain)


def test_offset_already_in_the_noise_is_not_added_twice(batch):
    with_offset = {**batch, "noise": batch["noise"] + 0.1 * batch["offset"]}
    ours = our_loss(with_offset, NoiseSettings(noise_offset=0.1))
    torch.testing.assert_close(ours, kohya_loss(batch, noise_offset=0.1), **TOLERANCE)


def test_a_full_mask_changes_nothing(batch):
    torch.testing.assert_close(our_loss(batch, masks=torch.ones(4, 1, 8, 6)), our_loss(batch), **TOLERANCE)


def test_a_mask_gives_the_mean_over_its_own_area(batch):
    masks = torch.zeros(4, 1, 8, 6)
    masks[:, :, 2:5, 1:3] = 1.0
    error = (
        predict(KOHYA.add_noise(batch["latents"], batch["noise"], batch["timesteps"]), batch["timesteps"])
        - batch["noise"]
    ) ** 2
    torch.testing.assert_close(our_loss(batch, masks=masks), error[:, :, 2:5, 1:3].mean(dim=(1, 2, 3)), **TOLERANCE)


def test_a_mask_at_image_size_is_averaged_to_the_latents(batch):
    masks = torch.rand(4, 1, 64, 48, generator=torch.Generator().manual_seed(1))
    small = masks.view(4, 1, 8, 8, 6, 8).mean(dim=(3, 5))
    torch.testing.assert_close(our_loss(batch, masks=masks), our_loss(batch, masks=small), **TOLERANCE)


def test_an_empty_mask_gives_no_loss_and_no_nan(batch):
    masks = torch.ones(4, 1, 8, 6)
    masks[2] = 0.0
    loss = our_loss(batch, masks=masks)
    assert float(loss[2]) == 0.0 and bool(loss.isfinite().all())


def test_an_image_has_the_same_loss_in_any_batch(batch):
    settings = NoiseSettings(min_snr_gamma=5.0)
    whole = our_loss(batch, settings)
    for i in range(4):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        torch.testing.assert_close(our_loss(one, settings), whole[i : i + 1], **TOLERANCE)


def test_half_precision_latents_are_mixed_in_float32(batch):
    halved = {**batch, "latents": batch["latents"].bfloat16(), "noise": batch["noise"].bfloat16()}
    exact = {**batch, "latents": halved["latents"].float(), "noise": halved["noise"].float()}
    assert torch.equal(our_loss(halved), our_loss(exact))
    assert our_loss(halved).dtype == torch.float32


def test_a_mask_over_the_image_is_sd_scripts_mean(batch):
    masks = torch.rand(4, 1, 8, 6, generator=torch.Generator().manual_seed(2))
    error = (
        predict(KOHYA.add_noise(batch["latents"], batch["noise"], batch["timesteps"]), batch["timesteps"])
        - batch["noise"]
    ) ** 2
    loss = our_loss(batch, NoiseSettings(mask_mean="image"), masks=masks)
    torch.testing.assert_close(loss, (error * masks).mean(dim=(1, 2, 3)), **TOLERANCE)


def test_preserved_images_train_what_the_base_model_predicts(batch):
    def base(noisy_latents, timesteps):
        return predict(noisy_latents, timesteps) + 0.5

    kept = torch.tensor([True, False, False, True])
    loss = our_loss(batch, preserved=(base, kept))
    plain = our_loss(batch)
    torch.testing.assert_close(loss[kept], torch.full((2,), 0.25), **TOLERANCE)  # half a unit off everywhere
    torch.testing.assert_close(loss[~kept], plain[~kept], **TOLERANCE)


@mark.parametrize("over", ["area", "image"])
@mark.parametrize("inside", [0.0, 0.3, 1.0])
def test_outside_of_masks_the_base_model_is_the_target(batch, over, inside):
    """OneTrainer's masked_losses_with_prior, with `inside` as the mask of the right half."""

    def base(noisy_latents, timesteps):
        return predict(noisy_latents, timesteps) + 0.5

    masks = torch.ones(4, 1, 8, 6)
    masks[..., 3:] = inside
    settings = NoiseSettings(mask_mean=over)
    prior = our_loss(batch, settings, masks=masks, unmasked_prior=(base, 3.0)) - our_loss(batch, settings, masks=masks)
    outside = 1 - masks
    share = outside.mean(dim=(1, 2, 3)) if over == "image" or inside == 1 else torch.ones(4)
    torch.testing.assert_close(prior, 3.0 * 0.25 * share, rtol=1e-4, atol=1e-6)
    without = our_loss(batch, settings, unmasked_prior=(base, 3.0))
    assert torch.equal(without, our_loss(batch, settings)), "an image without a mask has no outside"


def test_the_target_outside_of_masks_has_no_gradient(batch):
    factor = torch.ones((), requires_grad=True)
    masks = torch.zeros(4, 1, 8, 6)

    def same(noisy_latents, timesteps):
        return factor * predict(noisy_latents, timesteps)

    noises = Noises(batch["noise"])
    loss = training_loss(
        Diffusion(NoiseSettings()),
        same,
        batch["latents"],
        noises,
        batch["timesteps"],
        masks=masks,
        unmasked_prior=(lambda noisy, at: same(noisy, at) + 1, 1.0),
    )
    (gradient,) = torch.autograd.grad(loss.sum(), factor)
    noisy = KOHYA.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    expected = (-2 * predict(noisy, batch["timesteps"])).mean(dim=(1, 2, 3)).sum()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.0, 0.4]),
        ({"unmasked_weight": 0.1}, [0.1, 0.4]),
        ({"unmasked_weight": 1.0}, [1.0, 1.0]),
        ({"unmasked_probability": 1.0}, [1.0, 1.0]),
        ({"unmasked_probability": 1.0, "training": False}, [0.0, 0.4]),
    ],
)
def test_unmasked_areas_have_a_least_weight_and_masks_are_left_out_by_chance_in_training(settings, expected):
    settings = {"training": True, **settings}
    training = settings.pop("training")
    masks = torch.tensor([0.0, 0.4]).view(1, 1, 1, 2).repeat(2, 1, 1, 1)
    addresses = [(7, 0, ("f", name), 0) for name in "ab"]
    own = Batch((), (), addresses, (), torch.zeros(2, 4, 1, 2), masks)
    found = own.loss_masks(NoiseSettings(**settings), training=training)
    torch.testing.assert_close(found, torch.tensor(expected).view(1, 1, 1, 2).repeat(2, 1, 1, 1))
    assert Batch((), (), addresses, (), torch.zeros(2, 4, 1, 2)).loss_masks(NoiseSettings(), training=True) is None


def test_which_masks_are_left_out_depends_on_image_epoch_and_repeat_alone():
    settings, count = NoiseSettings(unmasked_probability=0.3), 400

    def left_out(epoch, numbers):
        addresses = [(7, epoch, ("f", str(number)), 0) for number in numbers]
        own = Batch((), (), addresses, (), torch.zeros(1), torch.zeros(len(addresses), 1, 1, 1))
        return own.loss_masks(settings, training=True).flatten().bool().tolist()

    whole = left_out(0, range(count))
    assert 0.2 < sum(whole) / count < 0.4
    assert left_out(0, range(100, 200)) == whole[100:200] and left_out(1, range(count)) != whole


def test_an_objective_compares_what_it_makes_of_the_output_also_of_the_base_models(batch):
    """An estimate of the image from a predicted noise, as models of flow matching are compared in some trainings."""

    class ByImage(Diffusion):
        def form(self, output, noisy, timesteps):
            a, s = self._signal_and_noise(torch.float32, timesteps)
            return (noisy - s * output) / a

        def target(self, x0, noise, timesteps):
            return x0

        def loss(self, predicted, target, timesteps):
            return (predicted - target) ** 2

    def base(noisy_latents, timesteps):
        return predict(noisy_latents, timesteps) + 0.5

    times, kept = batch["timesteps"], torch.tensor([True, False, False, True])
    objective, noises = ByImage(NoiseSettings()), Noises(batch["noise"])
    loss = training_loss(objective, predict, batch["latents"], noises, times, preserved=(base, kept))
    bar = KOHYA.alphas_cumprod[times].view(-1, 1, 1, 1)
    noisy = KOHYA.add_noise(batch["latents"], batch["noise"], times)
    made = (noisy - (1 - bar).sqrt() * predict(noisy, times)) / bar.sqrt()
    expected = ((made - batch["latents"]) ** 2).mean(dim=(1, 2, 3))
    expected[kept] = (0.25 * (1 - bar) / bar).view(-1)[kept]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0.0)


def test_masks_as_sd_scripts_keeps_them_are_read_by_image(batch):
    """Four of four channels: torch itself would take [4, h, w] for a mask of each channel."""
    masks = torch.rand(4, 1, 8, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(our_loss(batch, masks=masks[:, 0]), our_loss(batch, masks=masks))
    large = torch.rand(4, 1, 61, 45, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.equal(our_loss(batch, masks=large[:, 0]), our_loss(batch, masks=large))


@mark.parametrize(
    ("changed", "options", "words"),
    [
        ({}, {"masks": torch.ones(8, 6)}, r"masks \[8, 6\]: \[4, 1, h, w\] or \[4, h, w\]"),
        ({}, {"masks": torch.ones(4, 3, 8, 6)}, r"masks \[4, 3, 8, 6\]"),
        ({}, {"masks": torch.ones(1, 1, 8, 6)}, r"masks \[1, 1, 8, 6\]"),
        ({}, {"sample_weights": torch.ones(4, 1, 1, 1)}, r"sample_weights \[4, 1, 1, 1\]"),
        ({}, {"sample_weights": torch.ones(1)}, r"sample_weights \[1\]: one for each image, \[4\]"),
        ({"timesteps": torch.tensor([500])}, {}, r"timesteps \[1\]"),
        ({"timesteps": torch.tensor([1.0, 2, 3, 4])}, {}, "of torch.float32"),
        ({"timesteps": torch.tensor([1, 2, 3, 4], dtype=torch.uint8)}, {}, "of torch.uint8"),
        ({"noise": torch.ones(1, 4, 8, 6)}, {}, r"noise \[1, 4, 8, 6\]: both are \[B, C, H, W\]"),
        ({}, {"prediction": "v_prediction"}, "prediction is 'v_prediction': epsilon or v"),
    ],
)
def test_other_forms_are_refused_in_words(batch, changed, options, words):
    with raises(ValueError, match=words):
        our_loss({**batch, **changed}, **options)


def test_the_loss_is_float32_whatever_the_types_given(batch):
    wide = {**batch, "latents": batch["latents"].double(), "noise": batch["noise"].double()}
    loss = our_loss(wide, sample_weights=torch.ones(4).double(), masks=torch.ones(4, 1, 8, 6).double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, our_loss(batch), **TOLERANCE)


def test_a_share_of_0_of_a_v_loss_is_none_also_where_the_share_would_be_infinite(batch):
    none, off = (our_loss(batch, NoiseSettings(zero_terminal_snr=True, v_pred_like_loss=share)) for share in (None, 0))
    assert torch.equal(none, off) and bool(off.isfinite().all())
