"""The formatter of a tagger's settings, chosen once; and what is wrong with them. Pure: the page can call it live."""

from __future__ import annotations

from collections.abc import Mapping

from core.captioning.tagger import sd_scripts
from core.captioning.tagger.tags import Format, Formatter
from core.settings.base import Declared
from core.settings.tagger import TagTextSettings


def formatter(options: TagTextSettings, defaults: Mapping[str, float]) -> Format:
    """The function from the scores of an image, in the order of the labels, to its caption. Raises ProblemsError.

    defaults   the model's thresholds by category, for those that are not set
    """
    if options.compatibility == "none":
        return Formatter(options, defaults)
    return sd_scripts.formatter(options)


def ignored(options: TagTextSettings) -> list[str]:
    """The titles of settings that are set, and that sd-scripts 0.9 does not have."""
    if options.compatibility == "none":
        return []
    declared = [Declared(name, "", name, type(options).model_fields[name]) for name in sd_scripts.UNKNOWN]
    return [entry.title for entry in declared if getattr(options, entry.name) != entry.default]
