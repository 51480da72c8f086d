"""What is said about noise and loss before anything loads."""

import pytest

from core.record.problems import ProblemsError
from core.settings.base import value_of
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.rules import ineffective
from core.settings.rules.noise import prediction_problems, problems

LAST = {"zero_terminal_snr": True, "min_timestep": 999}


def job(prediction="auto", **noise):
    return build(TrainJob, {"model": {"prediction": prediction}, "noise": noise})


def said(*args, **noise):
    """{where: level} of everything said."""
    return {problem.where: problem.level for problem in problems(job(*args, **noise))}


def test_a_gamma_of_0_is_off_as_in_sd_scripts():
    assert [job(min_snr_gamma=value).noise.min_snr_gamma for value in (0, 0.0, "0", None, 5)] == [None] * 4 + [5]
    for value in (0.05, False, -1):
        with pytest.raises(ProblemsError, match="Min-SNR gamma"):
            job(min_snr_gamma=value)


@pytest.mark.parametrize(
    "path",
    [
        "noise.multires_noise_iterations",
        "network.scale_weight_norms",
        "network.conv_rank",
        "memory.fused_optimizer_groups",
    ],
)
def test_a_0_of_sd_scripts_settings_is_off_elsewhere_too(path):
    group, name = path.split(".")
    found = [value_of(build(TrainJob, {group: {name: value}}), path) for value in (0, "0", None, 5)]
    assert found == [None] * 3 + [5]
    for value in (-1, False):
        with pytest.raises(ProblemsError):
            build(TrainJob, {group: {name: value}})


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_share_of_0_of_a_v_loss_is_off(prediction):
    assert "noise.v_pred_like_loss" not in said(prediction, v_pred_like_loss=0, zero_terminal_snr=True)
    assert "noise.v_pred_like_loss" in said("v", v_pred_like_loss=0.1)


def test_the_defaults_are_fine_for_both_predictions():
    assert not said() and not said("v") and not said("epsilon")


def test_the_lowest_timestep_may_be_the_highest_and_not_above_it():
    assert not said(min_timestep=500, max_timestep=500)
    assert said(min_timestep=501, max_timestep=500) == {"noise.min_timestep": "error"}


@pytest.mark.parametrize(
    ("prediction", "noise", "found"),
    [
        ("auto", {"adaptive_noise_scale": 0.05}, {"noise.adaptive_noise_scale": "error"}),
        ("auto", {"adaptive_noise_scale": 0.05, "noise_offset": 0}, {"noise.adaptive_noise_scale": "error"}),
        ("auto", {"adaptive_noise_scale": 0.05, "noise_offset": 0.05}, {}),
        ("epsilon", {"scale_v_pred_loss_like_noise_pred": True}, {"noise.scale_v_pred_loss_like_noise_pred": "error"}),
        ("v", {"scale_v_pred_loss_like_noise_pred": True}, {}),
        ("v", {"v_pred_like_loss": 1}, {"noise.v_pred_like_loss": "error"}),
        ("epsilon", {"v_pred_like_loss": 1}, {}),
        ("epsilon", {"zero_terminal_snr": True}, {"noise.zero_terminal_snr": "advice"}),
        ("v", {"zero_terminal_snr": True, "debiased_estimation_loss": True}, {}),
        (
            "epsilon",
            {"zero_terminal_snr": True, "debiased_estimation_loss": True, "v_pred_like_loss": 1},
            {
                "noise.zero_terminal_snr": "advice",
                "noise.debiased_estimation_loss": "error",
                "noise.v_pred_like_loss": "error",
            },
        ),
        ("auto", {"noise_offset": 0.1, "multires_noise_iterations": 6}, {"noise.multires_noise_iterations": "advice"}),
        ("v", LAST | {"min_snr_gamma": 5}, {"noise.min_snr_gamma": "error"}),
        ("v", LAST | {"scale_v_pred_loss_like_noise_pred": True}, {"noise.scale_v_pred_loss_like_noise_pred": "error"}),
        ("v", LAST | {"debiased_estimation_loss": True, "p2_gamma": 1}, {"noise.p2_gamma": "advice"}),
        ("v", LAST | {"min_timestep": 998, "min_snr_gamma": 5}, {}),
        ("auto", {"min_snr_gamma": 5, "debiased_estimation_loss": True}, {"noise.debiased_estimation_loss": "advice"}),
    ],
)
def test_what_does_not_go_together_is_told(prediction, noise, found):
    assert said(prediction, **noise) == found


def test_each_has_a_sentence_and_a_remedy():
    bad = job("epsilon", zero_terminal_snr=True, debiased_estimation_loss=True, scale_v_pred_loss_like_noise_pred=True)
    assert all(problem.what and problem.fix for problem in problems(bad))


def test_a_detected_prediction_is_asked_when_the_model_is_known():
    noise = NoiseSettings(scale_v_pred_loss_like_noise_pred=True)
    assert not said(scale_v_pred_loss_like_noise_pred=True)
    assert [problem.level for problem in prediction_problems(noise, "epsilon")] == ["error"]
    assert not list(prediction_problems(noise, "v"))


@pytest.mark.parametrize("name", ["huber_c", "huber_scale"])
def test_huber_sizes_are_above_0(name):
    with pytest.raises(ProblemsError):
        job(loss_type="huber", **{name: 0})


HUBER = {"noise.huber_schedule", "noise.huber_c", "noise.huber_scale"}


@pytest.mark.parametrize(
    ("noise", "freed"),
    [
        ({"loss_type": "l1"}, set()),
        ({"loss_type": "huber"}, HUBER),
        ({"loss_type": "smooth_l1"}, HUBER),
        ({"loss_type": "log_cosh"}, set()),
        ({"loss_type": "mixed"}, {"noise.mse_weight", "noise.mae_weight", "noise.log_cosh_weight"}),
        ({"timestep_sampling": "logit_normal"}, {"noise.logit_mean", "noise.logit_std"}),
        ({"timestep_sampling": "mode"}, {"noise.mode_scale"}),
        ({"timestep_sampling": "beta"}, {"noise.timestep_alpha", "noise.timestep_beta"}),
        ({"timestep_sampling": "cosmap"}, set()),
        ({"timestep_sampling": "sigmoid_ramp"}, {"noise.noising_weight", "noise.noising_bias"}),
        ({"timestep_sampling": "inverted_parabola"}, {"noise.noising_weight", "noise.noising_bias"}),
        ({"noise_offset": 0.1}, {"noise.noise_offset_random_strength"}),
        ({"ip_noise_gamma": 0.1}, {"noise.ip_noise_gamma_random_strength"}),
        ({"multires_noise_iterations": 6}, {"noise.multires_noise_discount"}),
        ({"zero_terminal_snr": True}, set()),
    ],
)
def test_options_have_an_effect_once_what_they_refine_is_on(noise, freed):
    assert set(ineffective(job())) - set(ineffective(job(**noise))) == freed


def test_p2_next_to_another_weight_is_advised_against():
    assert not said(p2_gamma=0.5) and job(p2_gamma=0).noise.p2_gamma is None
    for other in ({"min_snr_gamma": 5}, {"debiased_estimation_loss": True}):
        found = list(problems(job(p2_gamma=0.5, **other)))
        assert [(each.code, each.level) for each in found] == [("noise.p2-and-others", "advice")]


def test_a_mixed_loss_needs_a_weight_and_one_timestep_has_no_distribution():
    none = dict.fromkeys(("mse_weight", "mae_weight", "log_cosh_weight"), 0)
    assert [each.code for each in problems(job(loss_type="mixed", **none))] == ["noise.no-loss-weight"]
    assert not said(loss_type="mixed", **{**none, "mae_weight": 0.5}) and not said(**none)
    one = ineffective(job(min_timestep=5, max_timestep=5))
    assert {"noise.timestep_sampling", "noise.timestep_shift", "noise.stratified_timesteps"} <= set(one)


def test_as_sd_scripts_other_weights_and_options_hold():
    kohya = {"model": {"prediction": "epsilon", "compatibility": "sd-scripts-0.10"}}
    snr = {"noise": {"zero_terminal_snr": True, "debiased_estimation_loss": True}}
    assert not any(each.code == "noise.infinite-weight" for each in problems(build(TrainJob, kohya | snr)))
    masked = build(TrainJob, kohya | {"dataset": {"alpha_mask": True}, "noise": {"loss_type": "huber"}})
    assert {"noise.mask_mean", "noise.huber_scale"} <= ineffective(masked).keys()


@pytest.mark.parametrize(
    ("changes", "which", "halves"),
    [
        ("network", "none", False),
        ("network", "sd-scripts-0.10", False),
        ("network", "sd-scripts-0.9", True),
        ("model", "none", False),
        ("model", "sd-scripts-0.10", True),
        ("embedding", "sd-scripts-0.10", True),
    ],
)
def test_latents_are_halved_for_a_lora_of_0_9_alone(changes, which, halves):
    assert build(TrainJob, {"model": {"compatibility": which}}).noise.halves_latents(changes == "network") is halves
