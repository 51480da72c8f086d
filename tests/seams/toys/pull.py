"""A toy guidance: pulled from the mean of both outputs, with a strength of its own that fades over the steps."""

from core.generation.guidance import NEGATIVE, POSITIVE, Guidance
from core.generation.guidances import GuidanceKind, register
from core.settings.base import Settings, setting


class PullSettings(Settings):
    """The toy's pull."""

    strength: float = setting(1.0, within=(0, 10), title="Pull", help="How strong the pull is at first.")


def _make(scale, negative_scale, own):
    def combine(outputs, at):
        away, to = outputs[NEGATIVE], outputs[POSITIVE]
        return (away + to) / 2 + scale * own.strength * (1 - at.index / at.steps) * (to - away)

    return Guidance((NEGATIVE, POSITIVE), combine)


register(GuidanceKind("pull", "Pull", _make, PullSettings))
