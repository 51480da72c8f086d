"""Settings of SDXL's size conditioning, and of the initial noise."""

from typing import Any, Literal

from core.settings.base import Settings, kohya_setting, setting


def _pixels(side: str, empty: str, **more: Any) -> Any:
    """Declare a side of SDXL's size conditioning.

    side    the help's first sentence
    empty   what an empty field means
    more    further arguments of `kohya_setting`
    """
    return kohya_setting(None, within=(0, 65536), unit="pixels", hint=empty, help=f"{side} Empty is {empty}.", **more)


class SizeSettings(Settings):
    """SDXL's size and crop conditioning."""

    original_width: int | None = _pixels("Original width for SDXL's size conditioning.", "the image's width")
    original_height: int | None = _pixels("Original height for SDXL's size conditioning.", "the image's height")
    crop_left: int = kohya_setting(
        0,
        within=(0, 65536),
        unit="pixels",
        help="Left crop offset for SDXL's crop conditioning. 0 centers the subject.",
    )
    crop_top: int = kohya_setting(
        0,
        within=(0, 65536),
        unit="pixels",
        help="Top crop offset for SDXL's crop conditioning. 0 centers the subject.",
    )
    original_width_negative: int | None = _pixels(
        "Original width for the negative prompt; a small one steers away from blurry images.", "the same"
    )
    original_height_negative: int | None = _pixels("Original height for the negative prompt.", "the same")


class StartNoiseSettings(Settings):
    """The initial noise of an image: its source, offset and pyramid noise."""

    noise_source: Literal["cpu", "device"] = setting(
        "cpu",
        labels={"cpu": "CPU", "device": "the model's device"},
        help="Where noise is generated. CPU gives the same image on every machine. The device gives the noise of programs that generate it on the GPU (A1111 by default, sd-scripts); with sd-scripts compatibility also in the model's precision.",
    )
    noise_offset_prob: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="Noise offset probability",
        hint="off",
        help="Probability that the initial noise gets an offset, which makes an image darker or brighter as a whole. 1 is always.",
    )
    noise_offset_range: tuple[float, float] = kohya_setting(
        (0.0, 0.1),
        help="The offset is the first number plus the difference to the second times a normal random number.",
    )
    pyramid_noise_prob: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="Pyramid noise probability",
        hint="off",
        help="Probability that an image starts from multi-resolution noise, which varies the composition. 1 is always.",
    )
    pyramid_noise_discount_range: tuple[float, float] = kohya_setting(
        (0.4, 0.4),
        title="Pyramid noise discount",
        help="Range of the discount per coarser level.",
    )
