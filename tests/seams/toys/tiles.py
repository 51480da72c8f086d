"""An upscaler that repeats the image until it has the size."""

from __future__ import annotations

from core.generation.upscalers import Upscaler, register


def _repeated(image, size):
    from PIL import Image

    large = Image.new("RGB", size)
    for top in range(0, size[1], image.height):
        for left in range(0, size[0], image.width):
            large.paste(image, (left, top))
    return large


register(Upscaler("tiles", "Repeated", images=_repeated))
