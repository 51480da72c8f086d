"""Settings that tests of several kinds use."""

ADAFACTOR = {"optimizer_type": "AdaFactor", "optimizer_args": {"relative_step": False, "scale_parameter": False}}

# Every option of the noise, and what goes with it in the loss.
NOISE = {
    "noise_offset": 0.05,
    "noise_offset_random_strength": True,
    "adaptive_noise_scale": 0.01,
    "multires_noise_iterations": 6,
    "ip_noise_gamma": 0.1,
    "ip_noise_gamma_random_strength": True,
    "min_snr_gamma": 5,
    "loss_type": "huber",
}
