"""The items for a GPU on the card that computes nothing: `python -m tests.machine_check.on_a_card FOLDER`.

Prints what each found as a line of JSON. Losses mean nothing there, so an item may be told as failed for them; what must not
happen is an error in the item itself.
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from tests.card.library import load_library

if __name__ == "__main__":
    load_library()

import torch

from core.machine_check import gpu, trainings
from core.machine_check.item import CheckContext
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from tests.card.runs import context, fill_caches
from tests.card.watched import card
from tests.models import tiny_folder

SWITCHES = ("checkpointing", "adamw8bit")  # each takes half a minute or more
ANSWERS = {
    "max_memory_allocated": lambda *_: 1 << 30,
    "set_sync_debug_mode": lambda *_: None,
}


class NoProfile:
    """The profiler would note each step of the pretended tensors' own arithmetic."""

    def __init__(self, **_):
        pass

    def __enter__(self):
        return SimpleNamespace(events=list)

    def __exit__(self, *_):
        pass


def main(folder: Path) -> None:
    gpu.SIZE = 64  # such tensors take time for each of their shapes
    gpu.WARM, gpu.STEPS, trainings.STEPS = 1, 4, 3  # the fewest that leave one to time: all after the first are alike
    workspace = Workspace(folder / "outputs", PROJECT / "models", PROJECT / "presets")
    place = CheckContext("cuda", workspace, folder)
    tiny_folder("sd1", folder / "sd1_random")
    looks = {"no_waits": lambda: gpu.no_waits(place), "real_plain": lambda: gpu.real_training("plain", place)}
    looks |= {f"real_{name}": lambda name=name: gpu.real_training(name, place) for name in SWITCHES}
    names = ("train_tf32", "latents_device")
    looks |= {name: lambda name=name: trainings.train_case(name, place) for name in names}
    values = [trainings.CASES[name].values() for name in (*names, "train_bf16")] + [
        gpu.full_size_settings(place, change) for change in [{}, *(gpu.OPTIONS[name][1] for name in SWITCHES)]
    ]
    cached = trainings.check_workspace(place)
    for each in values:
        job = build(TrainJob, each)
        fill_caches(job, context(cached, job, "cpu"))
    for name, look in looks.items():
        try:
            with card(), mock.patch.multiple(torch.cuda, **ANSWERS), mock.patch("torch.profiler.profile", NoProfile):
                found = asdict(look())
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error)[:400]}\n{traceback.format_exc()[-2500:]}"}
        print(json.dumps({"name": name} | found, default=str), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
