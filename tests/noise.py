"""Images that are cheap to make and all differ."""

from pathlib import Path

from PIL import Image


def noise_images(folder: Path, count: int, *, captions: bool = False) -> Path:
    """A new folder of images of 64 px, with a caption next to each where asked for."""
    folder.mkdir()
    for number in range(count):
        Image.effect_noise((64, 64), 10 + 3 * number).convert("RGB").save(folder / f"{number:02}.png")
        if captions:
            (folder / f"{number:02}.txt").write_text(f"noise {number}")
    return folder
