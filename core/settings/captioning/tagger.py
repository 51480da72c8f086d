"""Settings of the taggers: which model tags the images, and how its scores become a caption."""

from typing import Annotated, Any, Literal

from core.settings.base import SAME, Settings, kohya_setting, setting

FLOOR = 0.05  # lower scores are not kept
OFF = " Above 1 excludes the category."
BEST = "empty writes it regardless of its score."
PROVIDER_LABELS = {
    "auto": "automatic",
    "cuda": "CUDA",
    "rocm": "ROCm",
    "directml": "DirectML",
    "openvino": "OpenVINO",
    "coreml": "Core ML",
    "cpu": "CPU",
}
Provider = Annotated[
    Literal["auto", "cuda", "rocm", "directml", "openvino", "coreml", "cpu"],
    setting(
        title="Execution provider",
        labels=PROVIDER_LABELS,
        help="The device for onnxruntime. Automatic uses the GPU if the installed onnxruntime supports it.",
    ),
]
DecodeThreads = Annotated[
    int,
    setting(
        within=(1, 64),
        title="Decoding threads",
        kohya="max_data_loader_n_workers",
        help="Threads that load images ahead of the model.",
    ),
]
ITEMS = " Separated by commas or lines; write \\, for a comma in a tag."


def _threshold(help: str, hint: str = "threshold", kohya: str = SAME) -> Any:
    """Declare the score threshold of a tag category; above 1 excludes the category.

    hint    what an empty field means
    kohya   name in sd-scripts; SAME for the field's name
    """
    return setting(None, within=(FLOOR, 2), hint=hint, help=help + OFF, kohya=kohya)


class TagTextSettings(Settings):
    """The tagger whose scores are used, and how scores become a caption."""

    repo_id: Literal["SmilingWolf/wd-swinv2-tagger-v3"] = (
        kohya_setting(  # core/captioning/registered.py adds the others
            "SmilingWolf/wd-swinv2-tagger-v3",
            title="Tagger",
            level="shown",
            help="WD SwinV2 v3 is the usual choice, EVA02-Large the most accurate. Models are stored in models/captioners.",
        )
    )
    model_dir: str | None = kohya_setting(
        None,
        title="Model folder",
        level="shown",
        widget="folder",
        hint="below models/captioners",
        names="path or name",
        replaces="repo_id",
        help="A folder with model.onnx and selected_tags.csv, or with a profile.json that describes another tagger: a path, or the name of one below models/captioners. Overrides the tagger above.",
    )
    thresh: float | None = kohya_setting(
        None,
        within=(FLOOR, 2),
        title="Threshold",
        level="shown",
        section="Thresholds and filters",
        hint="model's default",
        help="Minimum score of a tag; lower gives more tags, but also more wrong ones. Empty is the model's default, 0.35 for WD.",
    )
    general_threshold: float | None = _threshold("For general tags.")
    character_threshold: float | None = kohya_setting(
        None,
        within=(FLOOR, 2),
        level="shown",
        hint="threshold",
        help="For names of characters; 0.85 is usual, since wrong names do harm. Above 1 excludes the category.",
    )
    copyright_threshold: float | None = _threshold("For series and brands.")
    artist_threshold: float | None = _threshold("For names of artists.")
    meta_threshold: float | None = _threshold("For tags about the file, such as highres.")
    model_threshold: float | None = _threshold("For names of the models that generated an image.")
    quality_threshold: float | None = _threshold(f"For the best quality tag; {BEST}", "none", "")
    rating_threshold: float | None = _threshold(f"For the best rating tag; {BEST}", "none", "")
    mcut: bool = setting(
        False,
        title="Automatic threshold",
        source="Largeron et al. 2012, MCut",
        help="Cuts the general and the character tags of each image at the largest gap between neighboring scores, instead of the two thresholds. Characters need 0.15 or more.",
    )
    max_tags: int | None = setting(
        None,
        within=(1, 1000),
        hint="no limit",
        help="Keeps the tags with the highest scores. Rating and quality tags are not counted.",
    )
    undesired_tags: str = kohya_setting(
        "",
        max_length=20_000,
        title="Excluded tags",
        level="shown",
        widget="lines",
        help="Tags that are never written. Case is ignored, underscores equal spaces, and * matches any text." + ITEMS,
    )
    wanted_tags: str = setting(
        "",
        max_length=20_000,
        title="Allowed tags",
        widget="lines",
        hint="all",
        help="Only these tags are written, besides rating and quality; * matches any text." + ITEMS,
    )
    remove_overlap: bool = setting(
        False,
        title="Remove overlapping tags",
        help="Removes a tag that is part of another one of the image: hair if there is long hair.",
    )
    tag_replacement: str = kohya_setting(
        "",
        max_length=20_000,
        title="Tag replacements",
        section="Format",
        widget="lines",
        help="Pairs old,new separated by semicolons or lines: 1girl,woman; 1boy,man. Write \\, and \\; for a comma or semicolon in a tag.",
    )
    character_tag_expand: bool = kohya_setting(
        False, title="Split character and series", help="Writes saber_(fate) as the two tags saber, fate."
    )
    remove_underscore: bool = kohya_setting(
        True,
        title="Underscores to spaces",
        level="shown",
        help="Writes long hair for long_hair, the usual form in captions. Emoticons such as ^_^ are kept.",
    )
    escape_parentheses: bool = setting(
        False, help="Writes \\( and \\). Needed for weighted captions, where parentheses are weights."
    )
    tag_weights: bool = setting(
        False, title="Scores as weights", help="Writes (long hair:0.93). Only for weighted captions."
    )
    caption_separator: str = kohya_setting(
        ", ",
        min_length=1,
        max_length=20,
        title="Tag separator",
        help="Separator between tags; a comma or separator inside a tag becomes a space.",
    )
    order: Literal["index", "score"] = setting(
        "index",
        section="Order",
        labels={"index": "as in the model", "score": "highest score first"},
        help="'As in the model' puts general tags before characters.",
    )
    rating_tag: Literal["none", "first", "last"] = setting(
        "none",
        kohya="use_rating_tags, use_rating_tags_as_last_tag",
        labels={"none": "off", "first": "first", "last": "last"},
        help="Adds the most likely rating: general, sensitive, questionable or explicit.",
    )
    quality_tag: Literal["none", "first", "last"] = setting(
        "none",
        kohya="use_quality_tags, use_quality_tags_as_last_tag",
        labels={"none": "off", "first": "first", "last": "last"},
        help="Adds the most likely quality, with taggers that know it (cl_tagger).",
    )
    always_first_tags: str = kohya_setting(
        "",
        max_length=20_000,
        widget="lines",
        help="Tags that are moved to the front, in this order: 1girl, 1boy." + ITEMS,
    )
    insert_always_first: bool = setting(
        False,
        title="Insert always first tags",
        help="Writes the always first tags for every image, even if the tagger does not find them.",
    )
    character_tags_first: bool = kohya_setting(
        False, title="Characters first", help="Puts characters before other tags, after the always first tags."
    )
    frequency_tags: bool = kohya_setting(
        True,
        title="Tag frequency",
        section="Report and compatibility",
        help="Lists how many images have each tag. Beyond 200 tags, the full table is saved in outputs/tags.",
    )
    compatibility: Literal["none", "sd-scripts-0.9"] = setting(
        "none",
        labels={"none": "none", "sd-scripts-0.9": "sd-scripts 0.9"},
        source="sd-scripts 0.9.0, tag_images_by_wd14_tagger.py",
        help="Tags and prepares images exactly as sd-scripts 0.9.0 does, including its bugs, to continue a dataset made with it. Settings it does not have are ignored, with a warning.",
    )

    def summary(self) -> str:
        """Return the tagger's name without its owner."""
        return self.repo_id.rpartition("/")[2]


class TagSettings(TagTextSettings):
    """Tags images with WD14 or another ONNX tagger."""

    download: bool = setting(
        False,
        title="Download if missing",
        level="shown",
        section="Runtime",
        help="Downloads the model if it is missing or incomplete; 0.3 to 1.4 GB.",
    )
    force_download: bool = kohya_setting(
        False,
        title="Download again",
        help="Downloads the model at each start, for one that was updated or is damaged. The old files are kept until the download is complete.",
    )
    provider: Provider = "auto"
    batch_size: int = kohya_setting(
        4, within=(1, 256), unit="images", help="Images per batch. A model with a fixed batch size keeps its own."
    )
    decode_threads: DecodeThreads = 4


class RetagSettings(TagTextSettings):
    """Writes captions again from the scores that an earlier tagging kept, without the model."""
