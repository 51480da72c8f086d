"""Settings of captions that come from names, JSON files next to the images and metadata inside them."""

from typing import Literal

from core.settings.base import Settings, setting


class NamesSettings(Settings):
    """Makes captions from the names of files and folders."""

    pattern: str = setting(
        "{name}",
        max_length=2000,
        level="shown",
        widget="text",
        help="The caption: {name} and {folder} of the image, {number} at the end of its name, {words} (class tokens of its dataset folder), and named groups of the regular expression below.",
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
        help="Characters of a name that become spaces. Empty keeps names unchanged.",
    )
    trailing_numbers: bool = setting(
        True, title="Drop trailing numbers", help="Writes fox for fox_012, fox-3 and fox (2)."
    )
    leading_numbers: bool = setting(
        True, title="Drop leading numbers", help="Writes fox for 10_fox, a folder name with repeats."
    )


class SidecarSettings(Settings):
    """Makes captions from JSON files next to the images, as gallery-dl and booru exports write them."""

    sidecar_keys: list[str] = setting(
        default_factory=lambda: ["tag_string", "tags", "post.tags", "posts.tags", "caption", "prompt", "description"],
        title="Keys",
        level="shown",
        widget="lines",
        help="JSON keys to read, one per line; the first one with text is used. post.tags is the key tags inside post. Includes tags by category: tags_artist, tags_general ... or nested lists.",
    )
    input_separator: Literal["auto", "comma", "space", "line"] = setting(
        "auto",
        labels={"auto": "automatic", "comma": "comma", "space": "space", "line": "line break"},
        help="How a text is split into tags. Automatic splits at line breaks, else at commas, else at spaces if the key's name contains tag; other texts stay whole.",
    )
    remove_underscore: bool = setting(
        True,
        title="Underscores to spaces",
        level="shown",
        help="Writes long hair for long_hair, the usual form in captions. Emoticons such as ^_^ are kept.",
    )
    category_order: list[str] = setting(
        default_factory=lambda: ["character", "copyright", "artist", "species", "general"],
        widget="lines",
        help="Order of the categories in the caption, one per line. Others follow; tags without a category come last.",
    )
    excluded_categories: list[str] = setting(
        default_factory=lambda: ["meta", "metadata", "invalid", "deprecated"],
        level="shown",
        widget="lines",
        help="Categories to leave out, one per line, such as artist.",
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
        help="Metadata fields to read, one per line, in this order. png.NAME is any other text chunk of a PNG.",
    )
    combine: Literal["first", "all"] = setting(
        "first",
        title="Multiple fields",
        level="shown",
        labels={"first": "first with text", "all": "join all"},
        help="Uses the first field with text, or joins the text of all fields with the separator.",
    )
    remove_loras: bool = setting(
        True, title="Remove LoRA tags", help="Removes `<lora:name:1>` and similar tags from prompts."
    )
    remove_weights: bool = setting(
        False,
        title="Remove prompt weights",
        help="Writes a red hat for a (red:1.2) [hat], and plain brackets for escaped ones.",
    )
