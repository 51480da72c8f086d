"""Settings of a grid of images: one for each combination of the values of up to three settings."""

from typing import Any

from core.settings.base import Settings, setting


def _axis(letter: str, where: str) -> Any:
    """Declare the setting that names what an axis varies; `where` completes "changes ..." in the help."""
    return setting(
        "",
        title=f"{letter} axis",
        level="shown",
        hint="none",
        help=f"The setting that changes {where}: any of a generation, such as steps or generate.sampler, or size, lora, lora_strength, lora_strength:NAME or prompt_sr (search and replace). Empty is none.",
    )


def _values(letter: str) -> Any:
    """Declare the setting with the values of an axis."""
    return setting(
        "",
        title=f"{letter} values",
        level="shown",
        help='Separated by commas; quotes around a value with commas. Numbers can be ranges as in A1111: 1-5, 20-40 (+10), 1-10 [5]. Prompt S/R searches its first value: fox, dog, "red hat".',
    )


def _vary(letter: str) -> Any:
    """Declare the setting that gives each value of an axis a seed of its own."""
    return setting(
        False, title=f"Vary seeds along {letter}", help="Each value has a seed of its own, counted up from the seed."
    )


class GridSettings(Settings):
    """Up to three axes of a grid (X/Y/Z plot)."""

    x_axis: str = _axis("X", "from column to column")
    x_values: str = _values("X")
    y_axis: str = _axis("Y", "from row to row")
    y_values: str = _values("Y")
    z_axis: str = _axis("Z", "from table to table")
    z_values: str = _values("Z")
    vary_seeds_x: bool = _vary("X")
    vary_seeds_y: bool = _vary("Y")
    vary_seeds_z: bool = _vary("Z")
    name: str = setting(
        "grid", max_length=80, names="part", help="Name of the folder in outputs/grids, after the time."
    )
    folder: str | None = setting(
        None,
        title="Grid to resume",
        hint="a new grid",
        names="part",
        help="The name of a folder in outputs/grids: its missing images are made with its own settings.",
    )
