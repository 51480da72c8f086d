"""What a model is told and given besides the prompt: SDXL's sizes, and changes of the first noise."""

from __future__ import annotations

from typing import Any, Literal

from core.settings.base import Settings, kohya_setting, setting


def _pixels(side: str, empty: str, **more: Any) -> Any:
    return kohya_setting(None, within=(0, 65536), unit="pixels", hint=empty, help=f"{side} Empty is {empty}.", **more)


class SizeSettings(Settings):
    """SDXL's size and crop conditioning."""

    original_width: int | None = _pixels("The original's width that SDXL reads.", "the image's width")
    original_height: int | None = _pixels("The original's height that SDXL reads.", "the image's height")
    crop_left: int = kohya_setting(
        0,
        within=(0, 65536),
        unit="pixels",
        help="The pixels cropped at the left that SDXL reads. 0 centers the subject.",
    )
    crop_top: int = kohya_setting(
        0,
        within=(0, 65536),
        unit="pixels",
        help="The pixels cropped at the top that SDXL reads. 0 centers the subject.",
    )
    original_width_negative: int | None = _pixels(
        "The original's width for the negative prompt; a small one steers away from blurry images.", "the same"
    )
    original_height_negative: int | None = _pixels("The original's height for the negative prompt.", "the same")


class StartNoiseSettings(Settings):
    """The noise of an image, and what changes the one it begins with."""

    noise_source: Literal["cpu", "device"] = setting(
        "cpu",
        labels={"cpu": "CPU", "device": "the model's device"},
        help="Where noise is generated. CPU gives the same image on every machine. The device gives the noise of programs that generate it on the GPU (A1111 by default, sd-scripts); with sd-scripts' numbers also in the model's precision.",
    )
    noise_offset_prob: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="Noise offset probability",
        hint="off",
        help="How many of the images begin with an offset, which makes them darker or brighter as a whole. 1 is all.",
    )
    noise_offset_range: tuple[float, float] = kohya_setting(
        (0.0, 0.1),
        title="Noise offset range",
        help="The offset is the first number plus the distance to the second times a normal random number.",
    )
    pyramid_noise_prob: float | None = kohya_setting(
        None,
        within=(0, 1),
        title="Pyramid noise probability",
        hint="off",
        help="How many of the images begin with multi-resolution noise, which varies their composition. 1 is all.",
    )
    pyramid_noise_discount_range: tuple[float, float] = kohya_setting(
        (0.4, 0.4),
        title="Pyramid noise discount",
        help="The range of the weight of each coarser level, taken at random.",
    )
