"""Settings of the tools that edit the captions of many images, or undo such an edit."""

from typing import Literal

from core.settings.base import Settings, setting

EDITS = {
    "add": "Add tags",
    "remove": "Remove tags",
    "replace": "Find and replace",
    "front": "Move tags to the front",
    "sort": "Sort tags",
    "deduplicate": "Remove duplicate tags",
    "imply": "Apply tag implications",
    "spaces": "Underscores to spaces",
    "underscores": "Spaces to underscores",
    "escape": "Escape parentheses",
    "unescape": "Unescape parentheses",
    "lower": "Lower case",
    "prefix": "Add a prefix",
    "suffix": "Add a suffix",
    "separator": "Change the separator",
    "one_line": "Join lines",
    "file_name": "Caption from the file name",
    "folder_name": "Caption from the folder name",
}


class CaptionEditSettings(Settings):
    """Changes the captions of many images at once. One undo restores all of them."""

    edit: Literal[tuple(EDITS)] = setting(  # type: ignore[valid-type]
        "add", title="Change", level="shown", labels=EDITS, help="The change made to each caption."
    )
    filter: str = setting(
        "",
        level="shown",
        widget="text",
        help='An expression that chooses images: cat & !dog | "looking at viewer", tokens:>75, is:missing, name:fox*. Empty chooses all.',
    )
    tags: str = setting(
        "",
        needs="edit=add, remove, front, prefix, suffix",
        level="shown",
        widget="text",
        help="One or more tags, with the separator between them. In tags to remove or move, * matches any letters. A prefix or suffix can be any text.",
    )
    place: Literal["start", "end", "after"] = setting(
        "end",
        needs="edit=add",
        title="Position",
        labels={"start": "at the start", "end": "at the end", "after": "after the tag below"},
        help="Where new tags go. Captions that already have them do not change.",
    )
    after: str = setting(
        "",
        needs="edit=add; place=after",
        title="After tag",
        widget="text",
        help="New tags are added after this tag, or at the end where it is missing.",
    )
    match: Literal["tag", "text", "regex"] = setting(
        "tag",
        needs="edit=replace",
        labels={"tag": "whole tags", "text": "any text", "regex": "regular expression"},
        help="Whole tags ignores case, underscores and escapes, and * matches any letters; the others match the caption exactly as written.",
    )
    find: str = setting("", needs="edit=replace", help="The tag, text or regular expression to replace.")
    replace_with: str = setting(
        "", needs="edit=replace", help=r"Empty removes the matches. \1 is the first group of a regular expression."
    )
    order: Literal["alphabet", "frequency"] = setting(
        "alphabet",
        needs="edit=sort",
        labels={"alphabet": "alphabetical", "frequency": "most frequent first"},
        help="How tags are sorted. Frequency counts the chosen images.",
    )
    keep_first: int = setting(
        0,
        needs="edit=sort",
        within=(0, 100),
        title="Keep first tags",
        help="Number of tags at the start that are not sorted.",
    )
    implications: list[str] = setting(
        default_factory=list,
        needs="edit=imply",
        widget="lines",
        help="One per line: `blue dress -> dress` adds dress where blue dress is; `kitty = cat` writes cat for kitty.",
    )
    separator: str = setting(", ", help="Separator between tags in a caption.")
    new_separator: str = setting("", needs="edit=separator", help='Replaces the separator, such as "; ".')
    preview: bool = setting(
        False, title="Preview only", level="shown", help="Lists what would change without writing it."
    )


class CaptionHistorySettings(Settings):
    """Lists the latest changes of captions, or undoes one of them."""

    undo: str | None = setting(
        None,
        level="shown",
        widget="text",
        help="Number of the change to undo, or 'last'. Captions changed since then are left alone. Empty lists the latest changes.",
    )
