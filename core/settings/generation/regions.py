"""Settings of regions of an image with their own prompts and LoRAs."""

from core.settings.base import Settings, kohya_setting, setting


class RegionSettings(Settings):
    """The regions that the sub-prompts of "a AND b" act in."""

    region_map: str | None = setting(
        None,
        widget="path",
        names="path",
        hint="the whole image",
        help="An image whose red, green and blue are where the first, second and third prompt of 'a AND b AND c' act. The first LoRA acts where the first prompt does, the second where the second does. Without it all prompts act everywhere.",
    )
    network_regional_mask_max_color_codes: int | None = kohya_setting(
        None,
        within=(1, 7),
        title="Regions by color",
        hint="one for each of red, green and blue",
        help="The number of regions, each of one plain color: red, green, yellow, blue, magenta, cyan, white.",
    )


def color_code(number: int) -> tuple[int, int, int]:
    """Return (R, G, B), each 0 or 255, of the region with this number from 1: red, green, yellow, blue, magenta, cyan, white."""
    red, green, blue = (255 * (number >> bit & 1) for bit in range(3))
    return red, green, blue
