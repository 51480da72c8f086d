"""Validate file names for every operating system."""

import re

FORBIDDEN_IN_NAMES = '<>:"/\\|?*'
NAME_PART = rf"^[^{re.escape(FORBIDDEN_IN_NAMES)}\x00-\x1f]*$"  # the pattern of a part of a file name
WINDOWS_NAMES = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}


def without_signs(text: str) -> str:
    """Remove the characters that file names cannot contain, and dots and spaces at both ends."""
    return "".join(letter for letter in text if letter not in FORBIDDEN_IN_NAMES).strip(". ")


def bad_name(name: str) -> str | None:
    """Return the reason why `name` is not a valid file name on every operating system ("it is empty"); None if it is valid."""
    if not name.strip():
        return "it is empty"
    forbidden = sorted(
        {
            letter
            for letter in name
            if letter in FORBIDDEN_IN_NAMES or ord(letter) < 32 or "\ud800" <= letter <= "\udfff"
        }
    )
    if forbidden:
        return "it contains " + " ".join(repr(letter)[1:-1] for letter in forbidden)
    if name.strip(". ") != name:
        return "it begins or ends with a dot or a space"
    if name.split(".")[0].lower() in WINDOWS_NAMES:
        return "it is reserved on Windows"
    if len(name.encode("utf-8")) > 200:
        return "it is too long"
    return None
