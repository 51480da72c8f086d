"""Settings of the tools on a file's metadata and hashes."""

from typing import Any, Literal

from core.settings.base import Settings, setting
from core.settings.tools.fields import model_file, output_file

TEXTS = ("title", "author", "description", "tags", "trigger_phrase", "license")


def _text(title: str, help: str) -> Any:
    """Declare a metadata text to change; empty leaves it as it is."""
    return setting(None, title=title, level="shown", hint="unchanged", help=f"{help} Empty leaves it.")


class HashesSettings(Settings):
    """Computes the hashes by which other programs know a model file: the old 8-digit one, SHA-256 and AutoV3."""

    file: str | None = model_file("A model file, or a folder for every file in it.")


class EditMetadataSettings(Settings):
    """Shows or changes the metadata of a safetensors file; its weights stay the same. Without a change it only shows them."""

    file: str | None = model_file("A .safetensors file.")
    metadata_title: str | None = _text("Title", "Name shown in lists of models.")
    metadata_author: str | None = _text("Author", "Who made it.")
    metadata_description: str | None = _text("Description", "What it does, for people who use it.")
    metadata_tags: str | None = _text("Tags", "Comma-separated keywords.")
    metadata_trigger_phrase: str | None = _text("Trigger phrase", "The words that a prompt needs.")
    metadata_license: str | None = _text("License", "Under which terms it may be used.")
    thumbnail: str | None = setting(
        None,
        widget="file",
        names="path",
        help="An image that is stored in the file, at most 512 px wide and high (modelspec.thumbnail).",
    )
    set_keys: list[str] = setting(
        default_factory=list,
        help="Any other metadata, one key=value per line. JSON is stored as it is written.",
    )
    remove_keys: list[str] = setting(
        default_factory=list,
        help="Keys to remove, one per line. * stands for any letters: ss_dataset*.",
    )
    in_place: bool = setting(
        False,
        title="Change the file itself",
        level="shown",
        help="Off writes a copy. On replaces the file's header and keeps the old one, so that Undo can restore it.",
    )
    undo: bool = setting(
        False,
        help="Undoes the last change of the file itself; keys that were changed since stay. Nothing else is done.",
    )
    output: str | None = output_file(
        "File or folder of the copy. An existing file is never overwritten.",
        hint="next to the file, ending in _edited",
    )

    @property
    def changes(self) -> bool:
        """Whether the settings ask for any change, rather than only to show the metadata."""
        texts = any(getattr(self, f"metadata_{name}") is not None for name in TEXTS)
        return texts or bool(self.thumbnail or self.set_keys or self.remove_keys or self.undo)


class StripMetadataSettings(Settings):
    """Writes a copy of a safetensors file without private metadata, to share it. Paths of folders are found and named."""

    file: str | None = model_file("A .safetensors file.")
    remove: Literal["training", "minimum", "all"] = setting(
        "training",
        level="shown",
        labels={
            "training": "training data",
            "minimum": "all but what loading needs",
            "all": "all metadata",
        },
        help="Training data are datasets, tags, prompts and paths; settings, title and author stay. All but what loading needs keeps the family and the network's kind and size, as no_metadata of sd-scripts.",
    )
    output: str | None = setting(
        None,
        names="path",
        hint="next to the file, ending in _shared",
        help="File or folder of the copy. An existing file is never overwritten.",
    )
