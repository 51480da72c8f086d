"""Settings of the assessment of a run's checkpoints."""

from core.settings.base import Settings, setting


class AssessSettings(Settings):
    """Measures a run's checkpoints with its base model and dataset: near-copies, drift, trigger, diversity, strength, rank."""

    run: str | None = setting(None, level="shown", help="The run's folder name in outputs/runs.")
    steps: list[str] = setting(
        default_factory=list,
        widget="lines",
        hint="all",
        help="Only the checkpoints of these steps, such as 200, 400. Empty: all, of more than 12 evenly spaced ones.",
    )
    measures: list[str] = setting(
        default_factory=list,
        widget="lines",
        hint="all",
        help="Only these: loss, fit, copies, drift, blocks, trigger, diversity, strength, rank.",
    )
    prompts: int = setting(
        4, within=(3, 16), help="Captions and images of the dataset that are compared. More give narrower intervals."
    )
    sampling_steps: int = setting(
        12,
        within=(1, 100),
        unit="steps",
        help="Of the two images of each prompt and checkpoint. 12 is enough to compare.",
    )
