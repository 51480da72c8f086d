"""Titles of settings as the page shows them, for use in messages."""

from __future__ import annotations

from core.settings.base import Settings


def title(group: type[Settings], name: str) -> str:
    """The title of one setting of a group."""
    return group.model_fields[name].title or name
