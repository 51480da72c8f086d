"""What is said about each image while it trains."""

from __future__ import annotations

from typing import Literal, get_args

from core.settings.base import Settings, setting

Length = Literal[75, 150, 225, 300, 375, 450, 525, 600]
LENGTHS: tuple[int, ...] = get_args(Length)  # tokens of one caption, in windows of 75


class CaptionSettings(Settings):
    """How caption files become the words that are trained."""

    caption_extension: str = setting(
        "auto",
        pattern=r"^(auto|\.[A-Za-z0-9_.\-]{1,30})$",
        title="Caption files",
        kohya="caption_extension, caption_extention",
        help="The file beside each image that holds its caption: .txt, .caption or another ending. auto is .txt, else .caption.",
    )
    sidecars: Literal["one", "joined", "drawn"] = setting(
        "one",
        title="Several caption files",
        labels={"one": "one of them", "joined": "both, joined", "drawn": "one, drawn each time"},
        help="Where an image has a sentence (.caption) beside its tags (.txt), or a metadata file has both: use the one chosen above (of metadata both, joined as sd-scripts does), the sentence followed by the tags, or one of both by chance. The sentence is then never shuffled.",
    )
    sentence_share: float = setting(
        0.5,
        ge=0,
        le=1,
        title="Share of sentences",
        help="How often the sentence is drawn rather than the tags.",
    )
    caption_lines: Literal["first", "random", "all"] = setting(
        "first",
        title="Captions of several lines",
        labels={"first": "first line", "random": "a line by chance", "all": "all lines"},
        help="Which line of a caption is used; blank lines never are. All joins them by spaces. With choices in captions on, the first is a line by chance too.",
    )
    trigger_word: str | None = setting(
        None,
        title="Trigger word",
        level="shown",
        help="Takes the place of [trigger] and [name] in captions, and is put in front of those that do not have it. Among tags it is a tag that is neither shuffled nor dropped.",
    )
    caption_prefix: str | None = setting(
        None,
        title="Put before each caption",
        kohya="caption_prefix",
        help="Joined with one space; a comma must be part of it.",
    )
    caption_suffix: str | None = setting(
        None,
        title="Put after each caption",
        kohya="caption_suffix",
        help="Joined with one space; a comma must be part of it.",
    )
    shuffle_caption: bool = setting(
        False,
        title="Shuffle tags",
        level="shown",
        kohya="shuffle_caption",
        help="Puts the parts of a caption, divided at the separator, in a new order each time. For tag lists, not for sentences.",
    )
    caption_separator: str = setting(
        ",",
        min_length=1,
        title="Tag separator",
        kohya="caption_separator",
        help="Where a caption is divided into tags.",
    )
    keep_tokens: int = setting(
        0,
        ge=0,
        le=1000,
        title="Tags kept in front",
        level="shown",
        unit="tags",
        kohya="keep_tokens",
        help="The first tags stay where they are when the rest is shuffled or dropped.",
    )
    keep_tokens_separator: str | None = setting(
        None,
        title="Mark after kept tags",
        kohya="keep_tokens_separator",
        help="What stands before this mark stays in front, what stands after a second one stays at the end; it counts before the number of tags kept. ||| is usual. The mark itself is never trained.",
    )
    secondary_separator: str | None = setting(
        None,
        title="Separator within a tag",
        kohya="secondary_separator",
        help="Tags joined by this stay together when shuffled; it becomes the tag separator in the end. ;;; is usual.",
    )
    enable_wildcard: bool = setting(
        False,
        title="Choices in captions",
        kohya="enable_wildcard",
        help="{red|blue} becomes one of its parts each time; {{ and }} stand for braces. A caption of several lines gives one of them.",
    )
    caption_dropout_rate: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Caption dropout",
        level="shown",
        kohya="caption_dropout_rate",
        help="Share of draws that train the image without its caption. 0.05 to 0.1 helps a style; empty captions teach the unguided half.",
    )
    caption_dropout_every_n_epochs: int = setting(
        0,
        ge=0,
        le=100000,
        title="Every n-th epoch without captions",
        unit="epochs",
        kohya="caption_dropout_every_n_epochs",
        help="Epochs n, 2n, ... train all images without captions. 0 is off.",
    )
    caption_tag_dropout_rate: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Tag dropout",
        kohya="caption_tag_dropout_rate",
        help="Each tag is left out with this chance; kept tags stay.",
    )
    token_warmup_step: float = setting(
        0.0,
        ge=0,
        le=10_000_000,
        title="Tag warm-up",
        unit="steps",
        kohya="token_warmup_step",
        help="The number of tags grows to all of them over this many steps; below 1 it is a share of the whole training. 0 is off.",
    )
    token_warmup_min: int = setting(
        1,
        ge=0,
        le=1000,
        title="Tags to begin with",
        unit="tags",
        kohya="token_warmup_min",
        help="With a tag warm-up: how many tags the first step sees.",
    )
    caption_template: Literal["none", "object", "style"] = setting(
        "none",
        title="Sentences instead of captions",
        level="shown",
        kohya="use_object_template, use_style_template",
        source="Gal et al. 2022, arXiv:2208.01618, appendix",
        labels={"none": "no", "object": "of an object", "style": "of a style"},
        help="Each draw takes one of the sentences of textual inversion, such as 'a photo of a ...', around the trigger word or else the folder's words, in place of the caption with its prefix and suffix. Where there are no such words the caption stays.",
    )
    weighted_captions: bool = setting(
        False,
        title="Weights in captions",
        kohya="weighted_captions",
        help="(more) and (exactly:1.3) weigh words, [less] lightens them, as in A1111. Off reads brackets as text. With shuffled tags, no comma may stand between brackets.",
    )
    weighted_mean: Literal["free", "kept"] = setting(
        "free",
        title="Strength of weighted captions",
        labels={"free": "as the weights make it", "kept": "kept, as sd-scripts 0.9"},
        help="Weights make a caption's numbers larger or smaller as a whole; sd-scripts 0.10 leaves it so. Kept brings them back to their mean, as sd-scripts 0.9 did for SD 1.x and 2.x and A1111 does when it draws; long captions then keep the ends of each 75 tokens.",
    )
    max_token_length: Length = setting(
        75,
        title="Longest caption",
        unit="tokens",
        kohya="max_token_length",
        help="What is longer is cut. Each 75 tokens are encoded on their own and joined. sd-scripts reads up to 225.",
    )
    compatibility: Literal["none", "kohya"] = setting(
        "none",
        title="Captions exactly as sd-scripts",
        labels={"none": "no", "kohya": "as sd-scripts"},
        help="Repeats what sd-scripts does where it loses something: a suffix after a caption of several lines, a prefix that only the first of several lines gets, blank lines that are drawn, a mark that stays in the caption when nothing is shuffled, a joined sentence whose parts are shuffled.",
    )
