"""Settings of captions that come from names, JSON files beside the images and metadata inside them."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class NamesSettings(Settings):
    """Makes captions from the names of files and folders."""

    pattern: str = setting(
        "{name}",
        max_length=2000,
        title="Pattern",
        level="shown",
        widget="text",
        help="The caption, with {name} and {folder} of the image, {number} at the end of its name, the class tokens {words} of its dataset folder, and the named groups of the expression below.",
    )
    expression: str = setting(
        "",
        max_length=2000,
        title="Regular expression",
        widget="text",
        hint="none",
        help=r"Searched in the path below the dataset folder, such as mira/red_hat_01.png; `(?P<outfit>\w+)_\d+\.` gives the pattern {outfit}. Images whose path does not match are skipped.",
    )
    replaced: str = setting(
        "_-.",
        max_length=50,
        title="Characters to spaces",
        level="shown",
        widget="text",
        help="Each of these characters in a name becomes a space. Empty keeps names as they are.",
    )
    trailing_numbers: bool = setting(
        True, title="Drop trailing numbers", help="Writes fox for fox_012, fox-3 and fox (2)."
    )
    leading_numbers: bool = setting(
        True,
        title="Drop leading numbers",
        help="Writes fox for 10_fox: leaves out a number with an underscore, as folders with repeats have it.",
    )


class SidecarSettings(Settings):
    """Makes captions from JSON files beside the images, as gallery-dl and booru exports write them."""

    sidecar_keys: list[str] = setting(
        default_factory=lambda: ["tag_string", "tags", "post.tags", "posts.tags", "caption", "prompt", "description"],
        title="Keys",
        level="shown",
        widget="lines",
        help="The first key with a text is used; post.tags is the key tags inside post. A key of tags includes its categories: tags_artist, tags_general ..., or lists inside it.",
    )
    input_separator: Literal["auto", "comma", "space", "line"] = setting(
        "auto",
        title="Separator in file",
        labels={"auto": "automatic", "comma": "comma", "space": "space", "line": "line break"},
        help="Divides a text into tags; lists are divided already. Automatic takes line breaks, else commas, else spaces for keys with tag in their name, and leaves other texts whole.",
    )
    remove_underscore: bool = setting(
        True,
        title="Underscores to spaces",
        level="shown",
        help="Writes long hair in place of long_hair, as captions are usually trained. Kaomoji such as ^_^ keep theirs.",
    )
    category_order: list[str] = setting(
        default_factory=lambda: ["character", "copyright", "artist", "species", "general"],
        title="Category order",
        widget="lines",
        help="Categories in the order of the caption, one per line; others follow, and tags without a category come last.",
    )
    excluded_categories: list[str] = setting(
        default_factory=lambda: ["meta", "metadata", "invalid", "deprecated"],
        title="Excluded categories",
        level="shown",
        widget="lines",
        help="Categories whose tags are left out, one per line, such as artist.",
    )


class ImageTextSettings(Settings):
    """Makes captions from the text inside image files: prompts, EXIF, XMP and IPTC."""

    text_fields: list[str] = setting(
        default_factory=lambda: [
            "a1111",
            "comfyui",
            "novelai",
            "invokeai",
            "xmp.description",
            "iptc.caption",
            "exif.description",
            "exif.comment",
            "exif.xp_comment",
            "exif.xp_subject",
            "exif.xp_title",
            "xmp.title",
            "iptc.title",
            "xmp.subject",
            "iptc.keywords",
            "exif.xp_keywords",
            "png.Description",
        ],
        title="Fields",
        level="shown",
        widget="lines",
        help="Where the text is looked for, one field per line, in this order. png.NAME is any other text of a PNG.",
    )
    combine: Literal["first", "all"] = setting(
        "first",
        title="Several fields",
        level="shown",
        labels={"first": "first with text", "all": "join all"},
        help="Takes the first field that has a text, or joins the texts of all fields with the separator.",
    )
    remove_loras: bool = setting(
        True, title="Remove LoRA tags", help="Leaves out `<lora:name:1>` and similar tags of a prompt."
    )
    remove_weights: bool = setting(
        False,
        title="Remove prompt weights",
        help="Writes a red hat for a prompt with a (red:1.2) [hat], and plain brackets for escaped ones.",
    )
