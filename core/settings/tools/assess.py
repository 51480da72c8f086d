"""Settings of the assessment of a run's checkpoints."""

from __future__ import annotations

from core.settings.base import Settings, setting


class AssessSettings(Settings):
    """Measures a run's checkpoints with its base model and dataset: near-copies, drift, trigger, diversity, strength, rank."""

    run: str | None = setting(
        None,
        level="shown",
        title="Run",
        help="The run's folder name in outputs/runs. Results are kept in its assess.json.",
    )
    steps: list[str] = setting(
        default_factory=list,
        title="Steps",
        hint="all",
        widget="lines",
        help="Only the checkpoints of these steps, such as 200, 400. Empty is all; of more than 12, evenly spaced ones with the best and the last.",
    )
    measures: list[str] = setting(
        default_factory=list,
        title="Measures",
        hint="all",
        widget="lines",
        help="Only these: loss, copies, drift, trigger, diversity, strength, rank.",
    )
    prompts: int = setting(
        4,
        within=(3, 16),
        unit="prompts",
        title="Prompts",
        help="Captions of the dataset, and as many images of it, that are compared. More make the intervals narrower.",
    )
    sampling_steps: int = setting(
        12,
        within=(1, 100),
        unit="steps",
        title="Sampling steps",
        help="Sampling steps of each generated image. Two images are made of each prompt and checkpoint.",
    )
