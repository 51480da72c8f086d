"""What is said about each picture while it trains."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class CaptionSettings(Settings):
    """How caption files become the words that are learnt."""

    caption_extension: Literal["auto", ".txt", ".caption"] = setting(
        "auto",
        title="Caption files",
        kohya="caption_extension",
        labels={"auto": ".txt, else .caption"},
        help="The file beside each picture that holds its caption.",
    )
    caption_prefix: str | None = setting(
        None,
        title="Put before each caption",
        kohya="caption_prefix",
        help="Joined with one space; a comma must be part of it. A trigger word goes here.",
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
        unit="tags",
        kohya="keep_tokens",
        help="The first tags stay where they are when the rest is shuffled.",
    )
    caption_dropout_rate: float = setting(
        0.0,
        ge=0,
        le=1,
        title="Caption dropout",
        kohya="caption_dropout_rate",
        help="Share of draws that learn the picture without its caption. 0.05 to 0.1 helps a style; empty captions teach the unguided half.",
    )
    max_token_length: Literal[75, 150, 225] = setting(
        75,
        title="Longest caption",
        unit="tokens",
        kohya="max_token_length",
        help="What is longer is cut. Each 75 tokens are encoded on their own and joined.",
    )
