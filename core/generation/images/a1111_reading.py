"""The settings in A1111's text while they are being converted into ours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from core.record.problems import Problem
from core.settings.base import Settings

PROGRAM = "Atelier"  # the first word of the block's version


class Reading:
    """The settings of one image by A1111's names, being converted into ours.

    unread   those not read yet; more: names of others that cannot be read
    """

    def __init__(self, pairs: dict[str, str], source: str, more: Sequence[str] = ()):
        self.pairs, self.unread, self.source, self.more = pairs, dict(pairs), source, more
        self.notes: list[Problem] = []
        self.groups: dict[str, dict[str, Any]] = defaultdict(dict)
        # A1111 and Forge; others write its text too, but generate differently
        by_a1111 = "App" not in pairs and re.match(
            r"[vf]?\d|neo|$", pairs.get("Version", "")
        )  # SD.Next has a hash there
        self.of_a1111 = source == "a1111" and bool(by_a1111)

    def note(self, what: str, slug: str, fix: str = "") -> None:
        self.notes.append(Problem(what, "the image's settings", fix, level="advice", code=f"image-settings.{slug}"))

    def take(self, name: str, usual: str = "") -> str:
        return self.unread.pop(name, usual)

    def put(self, path: str, value: Any) -> None:
        group, _, name = path.partition(".")
        self.groups[group][name] = value

    def read(self, name: str, path: str, convert: Any) -> None:
        text = self.take(name)
        try:
            self.put(path, convert(text))
        except ValueError:
            slug = "no-guidance" if name == "Guidance" else "unreadable-value"
            self.note(f"{name} '{text[:60]}' is not available and was ignored", slug)

    def valid(self, values: dict[str, Any], group: type[Settings]) -> dict[str, Any]:
        """The settings within their range; others get a note and keep their defaults."""
        try:
            group.model_validate(values)
        except ValidationError as error:
            for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
                what = f"{group.title_of(name)} '{str(values[name])[:60]}' is out of range and is ignored"
                self.note(what, "out-of-range")
                del values[name]
        return values

    @property
    def by_atelier(self) -> bool:
        """Whether this program wrote it."""
        return self.pairs.get("Version", "").partition(" ")[0] == PROGRAM
