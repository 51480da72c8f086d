"""Settings of timestep sampling, noise, loss and loss weighting."""

from dataclasses import dataclass
from typing import Literal

from core.record.units import number_text
from core.settings.base import SAME, FloatOrOff, IntOrOff, Settings, follows_compatibility, kohya_setting, setting

TIMESTEP_SETTINGS = frozenset(  # settings of `Objective.draw`
    {
        "timestep_sampling",
        "logit_mean",
        "logit_std",
        "mode_scale",
        "timestep_alpha",
        "timestep_beta",
        "noising_weight",
        "noising_bias",
        "timestep_shift",
        "stratified_timesteps",
        "min_timestep",
        "max_timestep",
    }
)


@dataclass(frozen=True)
class ObjectiveTraits:
    """Facts about an objective for rules, without torch. uses: names of the noise settings that the objective reads."""

    title: str
    uses: frozenset[str] = TIMESTEP_SETTINGS


OBJECTIVES: dict[str, ObjectiveTraits] = {}  # by name; filled as objectives register


class NoiseSettings(Settings):
    """Noise, timesteps and loss."""

    min_snr_gamma: FloatOrOff = kohya_setting(
        None,
        within=(0.1, 20),
        title="Min-SNR gamma",
        hint="off",
        level="shown",
        source="Hang et al. 2023, arXiv:2303.09556",
        help="Limits the loss weight of timesteps with little noise. The paper uses 5; empty or 0 is off.",
        recorded=SAME,
    )
    p2_gamma: FloatOrOff = setting(
        None,
        within=(0.01, 20),
        hint="off",
        section="Loss weighting",
        source="Choi et al. 2022, arXiv:2204.00227; OneTrainer",
        help="P2 weighting: divides the loss by (1 + SNR) to this power, which gives nearly clean timesteps less weight. The paper uses 0.5 or 1; empty or 0 is off.",
    )
    debiased_estimation_loss: bool = kohya_setting(
        False,
        source="Yu et al. 2023, arXiv:2310.08442",
        help="Gives noisy timesteps more weight and nearly clean ones less, more gently than Min-SNR. Try it instead of Min-SNR if colors or composition train too slowly.",
        recorded="ss_debiased_estimation",
    )
    scale_v_pred_loss_like_noise_pred: bool = kohya_setting(
        False,
        title="Scale v-prediction loss",
        source="sd-scripts",
        help="For v-prediction models: weights the loss of each timestep as in noise prediction, with more weight on fine detail.",
    )
    v_pred_like_loss: float | None = kohya_setting(
        None,
        within=(0, 100),
        title="v-prediction-like loss",
        hint="off",
        source="sd-scripts",
        help="For noise-prediction models: adds this much of the corresponding v-prediction loss, which gives very noisy timesteps more weight. Empty or 0 is off.",
    )
    loss_type: Literal["l2", "l1", "huber", "smooth_l1", "log_cosh", "mixed"] = kohya_setting(
        "l2",
        level="shown",
        labels={
            "l2": "L2 (MSE)",
            "l1": "L1 (MAE)",
            "huber": "Huber",
            "smooth_l1": "smooth L1",
            "log_cosh": "log-cosh",
            "mixed": "mixed (weights below)",
        },
        source="Khrapov et al. 2024, arXiv:2403.16728",
        help="L2 is the default. Huber, smooth L1 and log-cosh give large errors less weight, which helps if some images are bad. Mixed adds L2, L1 and log-cosh with weights.",
        recorded=SAME,
    )
    mse_weight: float = setting(
        1.0,
        within=(0, 100),
        title="MSE weight",
        needs="loss_type=mixed",
        section="Loss function",
        help="For the mixed loss: weight of the squared error.",
    )
    mae_weight: float = setting(
        0.0,
        within=(0, 100),
        title="MAE weight",
        needs="loss_type=mixed",
        help="For the mixed loss: weight of the absolute error.",
    )
    log_cosh_weight: float = setting(
        0.0,
        within=(0, 100),
        title="Log-cosh weight",
        needs="loss_type=mixed",
        help="For the mixed loss: weight of log-cosh, half the squared error for small errors and the absolute one for large.",
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = kohya_setting(
        "snr",
        needs="loss_type=huber, smooth_l1",
        labels={"snr": "SNR", "exponential": "exponential"},
        help="How the Huber delta changes with the timestep: constant, or falling from near 1 for nearly clean images to the value below for the noisiest (SNR, exponential).",
        recorded=SAME,
    )
    huber_c: float = kohya_setting(
        0.1,
        needs="loss_type=huber, smooth_l1",
        gt=0,
        le=100,
        title="Huber delta (c)",
        help="Errors below it count squared, errors above it linearly. Lower it if outliers still affect the result; 0.1 is usual.",
        recorded=SAME,
    )
    huber_scale: float = kohya_setting(
        1.0,
        gt=0,
        le=100,
        help="Multiplies the Huber delta at every timestep.",
        recorded=SAME,
        needs="loss_type=huber, smooth_l1",
    )
    mask_mean: Literal["area", "image"] = setting(
        "area",
        title="Masked loss mean",
        labels={"area": "over the mask", "image": "over the whole image"},
        help="Over the mask, small masks count as much as large ones. Over the whole image, as in sd-scripts, small masks count little.",
    )
    unmasked_weight: float = setting(
        0.0,
        within=(0, 1),
        source="OneTrainer",
        help="Least loss weight of each area: black areas of masks count this much. 0 trains only the masked areas, 0.1 is usual, 1 ignores masks.",
    )
    unmasked_probability: float = setting(
        0.0,
        within=(0, 1),
        source="OneTrainer",
        help="Probability of using an image without its mask, so that the model also sees how the subject fits into the whole image. 0.1 is usual; 0 always uses masks.",
    )
    masked_prior_preservation_weight: float = setting(
        0.0,
        within=(0, 100),
        title="Masked prior weight",
        source="OneTrainer",
        help="Outside the mask, trains the model to predict what the frozen base model predicts, with this weight, so that backgrounds stay as they were. 1 is usual; 0 is off.",
        costs="Images with masks take a second forward pass, and full models a second U-Net in memory.",
    )
    noise_offset: float | None = kohya_setting(
        None,
        within=(0, 1),
        hint="off",
        level="shown",
        source="Guttenberg 2023, 'Diffusion with offset noise'",
        help="Adds noise that shifts whole channels, so that very dark and very bright images can be trained. 0.05 to 0.1 is usual; blank: off.",
        recorded=SAME,
    )
    noise_offset_random_strength: bool = kohya_setting(
        False,
        needs="noise_offset",
        section="Noise",
        help="Picks a strength between 0 and the noise offset for each image, so that the model is also trained without it.",
        recorded=SAME,
    )
    adaptive_noise_scale: float | None = kohya_setting(
        None,
        within=(-1, 1),
        hint="off",
        source="sd-scripts",
        help="Adds this value times the absolute mean of the latents to the noise offset; negative values subtract. Usually a tenth of the noise offset up to its full value; blank: off.",
        recorded=SAME,
    )
    multires_noise_iterations: IntOrOff = kohya_setting(
        None,
        within=(1, 64),
        unit="levels",
        hint="off",
        source="Whitaker 2023, 'Multi-Resolution Noise for Diffusion Model Training'",
        help="Adds noise at coarser and coarser resolutions, so that brightness and large shapes vary more. 6 to 10 is usual; empty or 0 is off. Usually not combined with noise offset.",
        recorded=SAME,
    )
    multires_noise_discount: float = kohya_setting(
        0.3,
        needs="multires_noise_iterations",
        within=(0, 1),
        help="Strength of each coarser level relative to the one before. 0.1 to 0.3 for few images, up to 0.8 for many.",
        recorded=SAME,
    )
    ip_noise_gamma: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="IP noise gamma",
        hint="off",
        source="Ning et al. 2023, arXiv:2301.11706",
        help="Input perturbation: adds a little more noise to the input than the model is trained to remove. The paper uses 0.1; blank: off.",
        recorded=SAME,
    )
    ip_noise_gamma_random_strength: bool = kohya_setting(
        False,
        needs="ip_noise_gamma",
        title="IP noise random strength",
        help="Picks a strength between 0 and the IP noise gamma for each image.",
        recorded=SAME,
    )
    zero_terminal_snr: bool = kohya_setting(
        False,
        title="Zero terminal SNR",
        section="Timesteps",
        source="Lin et al. 2023, arXiv:2305.08891",
        help="Rescales the noise schedule so that the last timestep is pure noise, which allows very dark and very bright images. For v-prediction models; use the same setting when generating.",
        recorded=SAME,
    )
    min_timestep: int = kohya_setting(
        0, within=(0, 999), unit="timesteps", help="Timesteps below this are not trained."
    )
    max_timestep: int = kohya_setting(
        1000,
        within=(1, 1000),
        unit="timesteps",
        help="Timesteps from here up are not trained. Lower it to train detail and keep the composition. If equal to the minimum, only that timestep is trained.",
    )
    timestep_sampling: Literal[
        "uniform",
        "logit_normal",
        "mode",
        "cosmap",
        "beta",
        "high_noise",
        "low_noise",
        "sigmoid_ramp",
        "inverted_parabola",
    ] = setting(
        "uniform",
        title="Timestep distribution",
        level="shown",
        labels={
            "logit_normal": "logit-normal (sigmoid)",
            "mode": "mode (heavy tail)",
            "cosmap": "cosine map",
            "high_noise": "high noise (content)",
            "low_noise": "low noise (style)",
            "sigmoid_ramp": "sigmoid ramp",
            "inverted_parabola": "inverted parabola",
        },
        source="Esser et al. 2024, arXiv:2403.03206; high and low noise: Mou et al. 2023, arXiv:2302.08453; sigmoid ramp, inverted parabola: OneTrainer",
        help="Which timesteps are trained most. High noise trains composition and content, low noise detail and style; logit-normal trains the middle most; the sigmoid ramp is OneTrainer's SIGMOID. The distribution covers min to max timestep.",
    )
    logit_mean: float = setting(
        0.0,
        within=(-10, 10),
        needs="timestep_sampling=logit_normal",
        help="For logit-normal: positive trains noisier timesteps, negative cleaner ones.",
    )
    logit_std: float = setting(
        1.0,
        gt=0,
        le=10,
        title="Logit scale",
        needs="timestep_sampling=logit_normal",
        help="For logit-normal: the standard deviation. 1 is usual; above 1.5 both ends are trained more.",
    )
    mode_scale: float = setting(
        1.29,
        within=(-1, 1.75),
        needs="timestep_sampling=mode",
        help="For mode: positive trains the middle most and still reaches both ends, negative trains the ends most.",
    )
    timestep_alpha: float = setting(
        0.8,
        within=(0.1, 10),
        title="Beta distribution alpha",
        needs="timestep_sampling=beta",
        help="For beta: below 1 trains the cleanest timesteps most, above 1 least.",
    )
    timestep_beta: float = setting(
        1.0,
        within=(0.1, 10),
        title="Beta distribution beta",
        needs="timestep_sampling=beta",
        help="For beta: below 1 trains the noisiest timesteps most, above 1 least.",
    )
    noising_weight: float = setting(
        8.0,
        within=(-100, 100),
        needs="timestep_sampling=sigmoid_ramp, inverted_parabola",
        source="OneTrainer",
        help="How steep the sigmoid ramp or the inverted parabola is; 0 is uniform. Negative turns it over: the ramp then trains clean timesteps most, the parabola both ends.",
    )
    noising_bias: float = setting(
        0.0,
        within=(-0.5, 0.5),
        needs="timestep_sampling=sigmoid_ramp, inverted_parabola",
        source="OneTrainer",
        help="Moves the middle of the sigmoid ramp or the inverted parabola: positive to noisier timesteps, negative to cleaner ones.",
    )
    timestep_shift: float = setting(
        1.0,
        within=(0.01, 100),
        help="Moves any distribution: above 1 to noisier timesteps, below 1 to cleaner ones. 1 is off; 2 to 3 is usual for high resolutions.",
    )
    stratified_timesteps: bool = setting(
        False,
        help="Spreads the timesteps of each image evenly over its epochs and repeats, instead of independent random ones. Losses are less noisy; try it with few images.",
    )
    objective: Literal["auto"] = setting(
        "auto",
        labels={"auto": "auto (the model's own)"},
        help="What the model is trained to predict. Auto is how models of this family were trained.",
    )
    compatibility: Literal["none", "kohya", "kohya_0.9"] = follows_compatibility("none", "kohya", "kohya_0.9")

    @property
    def uniform_timesteps(self) -> bool:
        """Whether every timestep of the range is equally likely and independent of the others."""
        return self.timestep_sampling == "uniform" and self.timestep_shift == 1 and not self.stratified_timesteps

    def halves_latents(self, network: bool) -> bool:
        """Return whether latents are cast to the compute dtype, as in sd-scripts: 0.9 always, 0.10 unless a network is trained."""
        return self.compatibility != "none" and (not network or self.compatibility == "kohya_0.9")

    @property
    def trains_unmasked(self) -> bool:
        """Whether areas outside of masks contribute to the loss."""
        return bool(self.unmasked_weight or self.unmasked_probability or self.masked_prior_preservation_weight)

    def summary(self) -> str:
        """Return loss, loss weights, noise and timesteps in one line."""
        parts = [self.label("loss_type")] if self.loss_type != "l2" else []
        parts += [f"min-SNR {number_text(self.min_snr_gamma)}"] if self.min_snr_gamma else []
        parts += [f"P2 {number_text(self.p2_gamma)}"] if self.p2_gamma else []
        parts += ["debiased"] if self.debiased_estimation_loss else []
        parts += ["v-prediction weighting"] if self.scale_v_pred_loss_like_noise_pred or self.v_pred_like_loss else []
        parts = parts or ["L2 loss"]
        parts += [f"offset {number_text(self.noise_offset)}"] if self.noise_offset else []
        parts += ["multi-resolution noise"] if self.multires_noise_iterations else []
        parts += [f"perturbation {number_text(self.ip_noise_gamma)}"] if self.ip_noise_gamma else []
        parts += ["zero terminal SNR"] if self.zero_terminal_snr else []
        return ", ".join([*parts, self._timesteps()])

    def _timesteps(self) -> str:
        """Return the timestep range and sampling as text, for the summary."""
        low, high = self.min_timestep, self.max_timestep
        if low == high:
            return f"timestep {low} only"
        parts = ["all timesteps" if (low, high) == (0, 1000) else f"timesteps {low} to {high}"]
        parts += [self.label("timestep_sampling")] if self.timestep_sampling != "uniform" else []
        parts += [f"shift {number_text(self.timestep_shift)}"] if self.timestep_shift != 1 else []
        return ", ".join([*parts, *(["stratified"] if self.stratified_timesteps else [])])
