"""Where numbers are written besides the run's own journal."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, setting


class LoggingSettings(Settings):
    """Trackers."""

    log_with: Literal["tensorboard", "none"] = setting(
        "tensorboard",
        title="Also write",
        kohya="log_with",
        labels={"tensorboard": "TensorBoard files", "none": "nothing"},
        help="TensorBoard files lie in the run's logs folder and can be opened from Monitor.",
    )
