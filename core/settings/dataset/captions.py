"""Settings of captions: which files are read, and what is changed before encoding."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from core.record.image_formats import IMAGE_EXTENSIONS, UNREAD_IMAGES
from core.settings.base import SAME, Settings, follows_compatibility, kohya_setting, setting

Length = Literal[75, 150, 225, 300, 375, 450, 525, 600]
LENGTHS: tuple[int, ...] = get_args(Length)  # tokens of one caption, in windows of 75

# What images, metadata and caches are called: a caption must not be written over one.
NOT_CAPTIONS = IMAGE_EXTENSIONS | UNREAD_IMAGES | {".json", ".jsonl", ".npz", ".safetensors"}
_EXTENSION = re.compile(r"\.[\w.\-]{1,30}", re.ASCII)


def _check_extension(text: str) -> str:
    """Validate the extension of caption files. Raises pydantic's error for malformed ones and those of images or data files."""
    if not _EXTENSION.fullmatch(text) or "." + text.lower().rpartition(".")[2] in NOT_CAPTIONS:
        raise PydanticCustomError("wanted", "use .txt, .caption or another extension that no other files have")
    return text


CaptionExtension = Annotated[str, AfterValidator(_check_extension)]
AnyExtension = Annotated[str, AfterValidator(lambda text: text if text == "auto" else _check_extension(text))]


class CaptionSettings(Settings):
    """Which captions are used, and how they are changed before encoding."""

    caption_extension: AnyExtension = setting(
        "auto",
        section="Files",
        kohya="caption_extension, caption_extention",
        help="Extension of the caption file next to each image: .txt, .caption or another. auto tries .txt, then .caption.",
    )
    sidecars: Literal["one", "joined", "drawn"] = setting(
        "one",
        title="Multiple caption files",
        labels={"one": "use one", "joined": "join both", "drawn": "pick one at random"},
        help="For images with both tags (.txt) and a sentence (.caption): use the file chosen above, put the sentence before the tags, or pick one at random each time. 'Use one' joins those of a metadata file, as in sd-scripts. The sentence is never shuffled.",
    )
    sentence_share: float = setting(
        0.5, within=(0, 1), title="Sentence probability", help="How often the sentence is picked instead of the tags."
    )
    caption_lines: Literal["first", "random", "all"] = setting(
        "first",
        title="Multi-line captions",
        labels={"first": "first line", "random": "random line", "all": "all lines"},
        help="Which line of a caption is used; blank lines are skipped. All lines are joined with spaces. With wildcards on, 'first line' also picks a random line.",
    )
    trigger_word: str | None = setting(
        None,
        level="shown",
        help="Replaces [trigger] and [name] in captions and is added in front of captions that lack it. As a tag it is never shuffled or dropped. Regularization folders get only one of their own.",
    )
    caption_prefix: str | None = kohya_setting(
        None, section="Added text", help="Added before each caption with one space; include a comma if you want one."
    )
    caption_suffix: str | None = kohya_setting(
        None, help="Added after each caption with one space; include a comma if you want one."
    )
    shuffle_caption: bool = kohya_setting(
        False,
        title="Shuffle tags",
        level="shown",
        help="Puts the tags of a caption in a new random order each time. For tag lists, not for sentences.",
        recorded=SAME,
    )
    caption_separator: str = kohya_setting(
        ",", min_length=1, title="Tag separator", section="Tags", help="The text between the tags of a caption."
    )
    keep_tokens: int = kohya_setting(
        0,
        within=(0, 1000),
        level="shown",
        unit="tags",
        help="The first n tags keep their place when tags are shuffled and are never dropped. 1 protects a trigger word written as the first tag.",
        recorded=SAME,
    )
    keep_tokens_separator: str | None = kohya_setting(
        None,
        help="Tags before this separator keep their place; tags after a second one stay at the end. Overrides 'Keep tokens'. ||| is usual; it is removed from the caption.",
    )
    secondary_separator: str | None = kohya_setting(
        None,
        help="Tags joined by this text stay together when shuffled; it is replaced by the tag separator afterwards. ;;; is usual.",
    )
    enable_wildcard: bool = kohya_setting(
        False,
        title="Wildcards",
        section="Wildcards and dropout",
        help="{red|blue} is replaced by one of its options at random each time; write {{ and }} for literal braces. Multi-line captions contribute a random line.",
    )
    caption_dropout_rate: float = kohya_setting(
        0.0,
        within=(0, 1),
        title="Caption dropout",
        level="shown",
        help="Probability of training an image with an empty caption. 0.05 to 0.1 helps styles and classifier-free guidance.",
        recorded=SAME,
    )
    caption_dropout_every_n_epochs: int = kohya_setting(
        0,
        within=(0, 100000),
        title="Drop captions every n epochs",
        unit="epochs",
        help="Epochs n, 2n, ... train all images without captions. 0 is off.",
        recorded=SAME,
    )
    caption_tag_dropout_rate: float = kohya_setting(
        0.0,
        within=(0, 1),
        title="Tag dropout",
        help="Probability of dropping each tag; kept tokens are never dropped. 0.1 is a usual start, 0 is off.",
        recorded=SAME,
    )
    tag_dropout_mode: Literal["each", "all"] = setting(
        "each",
        labels={"each": "each tag", "all": "all tags at once"},
        source="OneTrainer",
        help="What tag dropout drops: each tag by its own chance, or all tags at once, which leaves only the kept tokens and the trigger word.",
    )
    token_warmup_step: float = kohya_setting(
        0.0,
        within=(0, 10_000_000),
        title="Token warmup steps",
        unit="steps",
        help="The number of tags grows to all of them over this many steps; a value below 1 is a fraction of the training. 0 is off.",
    )
    token_warmup_min: int = kohya_setting(
        1,
        within=(0, 1000),
        title="Token warmup minimum",
        unit="tags",
        help="Number of tags at the first step of the token warmup.",
    )
    caption_template: Literal["none", "object", "style"] = setting(
        "none",
        title="Caption templates",
        level="shown",
        kohya="use_object_template, use_style_template",
        source="Gal et al. 2022, arXiv:2208.01618, appendix",
        labels={"none": "off", "object": "object", "style": "style"},
        help="For textual inversion: replaces captions, with their prefix and suffix, by prompt templates ('a photo of a ...') around the trigger word or else the folder's class tokens. Images with neither keep their caption.",
    )
    weighted_captions: bool = kohya_setting(
        False,
        section="Encoding",
        help="Reads (more), (word:1.3) and [less] as prompt weights, as A1111 does. Off reads brackets as text. With shuffled tags, keep commas out of brackets.",
    )
    weighted_mean: Literal["free", "kept"] = setting(
        "free",
        needs="weighted_captions",
        title="Prompt weight normalization",
        labels={"free": "as sd-scripts 0.10", "kept": "as sd-scripts 0.9"},
        help="Prompt weights change the mean of a caption's embedding. 'As sd-scripts 0.9' scales it back for SD 1.x and 2.x, as A1111 does; long captions then keep the start and end tokens of each 75-token chunk.",
    )
    max_token_length: Length = kohya_setting(
        75,
        unit="tokens",
        help="Longer captions are cut. Each chunk of 75 tokens is encoded separately and the results are joined. sd-scripts supports up to 225.",
    )
    compatibility: Literal["none", "kohya"] = follows_compatibility("none", "kohya")

    def summary(self) -> str:
        """Return templates, shuffling, prefix, dropout and token limit in one line."""
        template = self.caption_template
        parts = ["as written" if template == "none" else f"{self.label('caption_template')} templates"]
        if self.shuffle_caption:
            parts = ["tags shuffled" + (f", first {self.keep_tokens} kept" if self.keep_tokens else "")]
        parts += [f"prefix '{self.caption_prefix.strip()}'"] if self.caption_prefix else []
        parts += [f"dropout {self.caption_dropout_rate:.0%}"] if self.caption_dropout_rate else []
        return ", ".join([*parts, f"up to {self.max_token_length} tokens"])
