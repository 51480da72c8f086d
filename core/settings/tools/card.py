"""Settings of the report card of a model file."""

from core.settings.base import Settings, setting
from core.settings.tools.fields import model_file, output_file


class CardSettings(Settings):
    """Writes a report card of a model file: one HTML page to share, and the same as JSON. What it contains is listed first."""

    file: str | None = model_file("A LoRA, a checkpoint or an embedding.")
    strength: float | None = setting(
        None,
        within=(-10, 10),
        level="shown",
        title="Recommended strength",
        hint="measured, else 1",
        help="Of a LoRA. Empty takes the strength that the assessment of its run measured.",
    )
    samples: int = setting(
        4, within=(0, 12), level="shown", title="Sample images", unit="images", help="Number of samples in the page."
    )
    captions: bool = setting(
        False,
        level="shown",
        title="Include captions and prompts",
        help="Frequent tags of the training captions, and the prompts of the samples.",
    )
    names: bool = setting(
        False,
        level="shown",
        title="Include file names and paths",
        help="Folders of the dataset, names of training images in what was measured, and paths in texts of the file.",
    )
    author: bool = setting(False, level="shown", title="Include the author", help="The author named in the file.")
    preview: bool = setting(
        False, title="List the contents", help="Lists what the card would contain and what is left out; writes nothing."
    )
    output: str | None = output_file(
        "File or folder of the page; the JSON file is next to it. An existing file is never overwritten.",
        hint="next to the file, ending in _card",
    )
