"""`python -m workshop.recorded_losses` records the losses and the sample that machines are compared with."""

import json
from pathlib import Path

from core.machine_check.item import CheckContext
from core.machine_check.jobs import sample_tones
from core.machine_check.trainings import RECORDED, SERIES, starter, train
from core.record.workspace import PROJECT, Workspace


def record(folder: Path) -> None:
    """Train and generate on this machine's CPU in fp32, and write the losses and the sample as the recorded ones."""
    import torch

    torch.set_num_threads(1)
    place = CheckContext("cpu", Workspace(folder / "outputs", PROJECT / "models", PROJECT / "presets"), folder)
    losses = {name: train(starter(more), place).losses for name, more in SERIES.items()}
    rounded = {name: [round(loss, 6) for loss in each] for name, each in losses.items()}
    text = json.dumps({"losses": rounded, "sample": sample_tones(place)[1]}, indent=1)
    RECORDED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder))
