"""Settings of the tools for fine-tuning metadata: collect captions and tags in a JSON, clean it, write caption files from it."""

from typing import Annotated, Any, Literal

from pydantic import Field

from core.settings.base import Settings, kohya_setting, setting
from core.settings.dataset.captions import CaptionExtension

# What sd-scripts replaces in captions of anime images, in its order.
REPLACEMENTS = """
anime anime -> anime
"young " -> ""
anime girl -> girl
cartoon female -> girl
cartoon lady -> girl
cartoon character -> girl
cartoon woman -> girl
cartoon women -> girls
cartoon girl -> girl
anime female -> girl
anime lady -> girl
anime character -> girl
anime woman -> girl
anime women -> girls
lady -> girl
female -> girl
woman -> girl
women -> girls
people -> girls
person -> girl
a cartoon figure -> a figure
a cartoon image -> an image
a cartoon picture -> a picture
an anime cartoon image -> an image
a cartoon anime drawing -> a drawing
a cartoon drawing -> a drawing
girl girl -> girl
""".strip().splitlines()


def _extension(default: str, title: str, help: str, kohya: str = "", hint: str = "") -> Any:
    """Declare the extension of caption or tag files.

    kohya   name in sd-scripts, "" for none
    hint    what an empty field means, "" for none
    """
    return setting(default, title=title, level="shown", widget="extension", kohya=kohya, hint=hint, help=help)


def _preview(help: str) -> Any:
    """Declare the number of entries to show, without writing anything."""
    return setting(None, within=(1, 1000), unit="entries", title="Preview", level="shown", kohya="debug", help=help)


class MetadataOutputSettings(Settings):
    """The metadata file that a tool writes."""

    out_json: str = kohya_setting(
        "",
        title="Metadata file",
        level="shown",
        widget="file",
        names="path",
        help="The .json to write. The caption history keeps the file it replaces.",
    )
    in_json: str | None = kohya_setting(
        None,
        title="Start from",
        hint="the metadata file, if it exists",
        widget="file",
        names="path",
        help="A metadata .json or .jsonl to start from; its other entries and values are kept. Empty is the metadata file itself.",
    )


class MergeSettings(MetadataOutputSettings):
    """The folders of images whose caption or tag files are collected."""

    folders: list[str] = setting(
        default_factory=list,
        title="Image folders",
        level="shown",
        widget="lines",
        kohya="train_data_dir",
        names="path",
        help="Folders with images and their caption files, one per line, merged in this order.",
    )
    full_path: bool = kohya_setting(
        False,
        title="Full paths",
        level="shown",
        help="Lists images by full path, needed if folders have the same file names. Off lists them by name without extension.",
    )
    recursive: bool = kohya_setting(
        False, title="Include subfolders", level="shown", help="Also merges the images in subfolders. Needs full paths."
    )
    preview: int | None = _preview("Number of entries to show without writing the file. Empty writes it.")


class MergeCaptionsSettings(MergeSettings):
    """Collects the captions of images in one metadata JSON for fine-tuning."""

    caption_extension: CaptionExtension = _extension(
        ".caption",
        "Caption extension",
        "Extension of the caption files, usually .caption or .txt.",
        "caption_extension, caption_extention",
    )


class MergeTagsSettings(MergeSettings):
    """Adds the tags of images to a metadata JSON for fine-tuning."""

    tags_extension: CaptionExtension = _extension(
        ".txt", "Tag file extension", "Extension of the files with tags, usually .txt.", "caption_extension"
    )


class CleanMetadataSettings(MetadataOutputSettings):
    """Removes redundant tags from a metadata JSON and simplifies its captions."""

    clean_rules: Literal["words", "sd-scripts"] = setting(
        "words",
        title="Cleaning rules",
        level="shown",
        labels={"words": "whole words", "sd-scripts": "as sd-scripts"},
        help="'Whole words' never changes a part of a word. 'As sd-scripts' gives exactly the result of its clean_captions_and_tags, which turns 'personal' into 'girlal'.",
    )
    clean_underscores: bool = setting(
        True, title="Underscores to spaces", help="Writes long_hair as 'long hair'. Emoticons such as ^_^ are kept."
    )
    clean_ratings: bool = setting(
        True,
        title="Remove ratings",
        help="Removes tags such as rating:safe. With the rules of sd-scripts everything after the first one is removed too.",
    )
    clean_people: bool = setting(
        True,
        title="Remove ambiguous traits",
        help="If the tags name several girls or boys, removes hair, eye, sleeve and hairstyle tags that occur more than once, since it is unclear whose they are.",
    )
    clean_contained: bool = setting(
        True, title="Remove contained tags", help="Removes 'shirt' if 'white shirt' is there too."
    )
    replacements: list[Annotated[str, Field(max_length=1000)]] = setting(
        default_factory=lambda: list(REPLACEMENTS),
        title="Caption replacements",
        level="shown",
        widget="lines",
        help='Replacements in captions, one per line: woman -> girl. Quotes keep spaces: "young " -> "". The default list is for anime images; empty changes nothing.',
    )
    replacements_file: str | None = setting(
        None,
        widget="file",
        hint="none",
        names="path",
        help="A text file with more replacements, one per line, used after those above.",
    )
    preview: int | None = _preview(
        "Number of changed entries to show, before and after, without writing the file. Empty writes it."
    )


class MetadataToCaptionsSettings(Settings):
    """Writes the captions and tags of a metadata file into caption files next to the images."""

    in_json: str | None = kohya_setting(
        None,
        title="Metadata file",
        hint="a .json or .jsonl",
        level="shown",
        widget="file",
        names="path",
        help="A fine-tuning .json or .jsonl, or sd-scripts' metadata_cache.json.",
    )
    folders: list[str] = setting(
        default_factory=list,
        title="Image folders",
        level="shown",
        widget="lines",
        names="path",
        help="Folders with the images, one per line. Nothing is written outside of them. Empty is the folder of the metadata file.",
    )
    recursive: bool = setting(True, title="Include subfolders", help="Also finds images in subfolders.")
    match_by_name: bool = setting(
        False, help="Finds an image by file name if its path does not exist, for a metadata file from another computer."
    )
    captions_to: CaptionExtension | None = _extension(
        ".caption",
        "Caption extension",
        "Extension of the files that captions are written to. Empty writes no captions.",
        hint="no captions",
    )
    tags_to: CaptionExtension | None = _extension(
        ".txt",
        "Tag extension",
        "Extension of the files that tags are written to. If it is the caption extension, a file gets caption and tags, joined by a comma as for training. Empty writes no tags.",
        hint="no tags",
    )
    existing: Literal["keep", "replace"] = setting(
        "keep",
        title="Existing files",
        level="shown",
        help="What to do with existing caption files. The caption history keeps replaced texts.",
    )
    preview: int | None = _preview("Number of files to show with their texts, without writing them. Empty writes.")
