"""Settings of a tool that have no effect with the others: its form leaves them out (`Task.unused`), and a job says so."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import Settings


def without_effect(settings: Settings, unused: set[str], group: str) -> Iterator[Problem]:
    """Advice about each setting of `unused` that is not as by default. group: the name of these settings in a job."""
    for name in sorted(unused):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            what = f"{settings.title_of(name)} has no effect with the other settings"
            yield Problem(what, f"{group}.{name}", "leave it out", "advice", code="tools.no-effect")
