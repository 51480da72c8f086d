"""The table of assessed runs in docs/runs.md: trainings on the starter that went well or wrong in one thing each.

    python -m workshop.assess_table FOLDER [NAME ...]    train and assess all of RUNS or these in FOLDER, and print their rows

What FOLDER already has is used again, and a killed training is resumed."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core import tasks
from core.assess.measures import MEASURES
from core.assess.results import read_results, rows_of
from core.assess.statistics import Interval
from core.assess.trigger import without_word
from core.engine.execute import execute
from core.engine.extend import job_of
from core.engine.view import RunView
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, STARTER, Workspace
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets.files import dump, read

STYLE = "glyph style"
FEW = ("fox", "bear", "sailboat", "house")


@dataclass(frozen=True)
class Run:
    """A training. captions: of a caption of the starter's; images: their names, () for all, four of which are held out;
    steps: of the checkpoints that are assessed, the last at its end"""

    steps: tuple[int, ...] = (80,)
    caption: Any = str
    images: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "good": Run(),
    "overfitted": Run((500,), images=FEW),
    "wrong rate": Run(settings={"optimizer": {"learning_rate": 0.02}}),
    "no trigger": Run(caption=partial(without_word, word=STYLE)),
    "style only": Run(caption=lambda caption: STYLE),
}
HEAD = (
    "Run",
    "Fit",
    "Near-copies: distance, limit",
    "Other prompts change",
    "Drift",
    "Most of it in",
    "Without the trigger word",
    "Diversity",
    "Best strength",
    "90% of the norm in",
    "Named",
)


def dataset_of(run: Run, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((STARTER / "images").glob("*.png")):
        if not run.images or path.stem in run.images:
            shutil.copy(path, folder)
            caption = path.with_suffix(".txt").read_text("utf-8").strip()
            (folder / path.name).with_suffix(".txt").write_text(run.caption(caption), "utf-8")
    return folder


def trained(name: str, folder: Path, workspace: Workspace) -> RunFolder:
    """The run of this name, trained to its end."""
    run, runs, title = RUNS[name], workspace.runs, name.replace(" ", "-")
    existing = next(runs.glob(f"*_{title}"), None)
    if existing is None:
        values: dict[str, Any] = {
            "model": {"base_model": str(STARTER)},
            "dataset": {"folder": str(dataset_of(run, folder / "datasets" / name))},
            "schedule": {"max_train_steps": run.steps[-1], "max_train_epochs": None},
            "saving": {"save_n_evenly": run.steps[-1] // run.steps[0], "save_every_minutes": 1.0},
            "samples": {"sample_prompts": [], "sample_at_first": False},
            "validation": {"validation_split": 0.0 if run.images else 1 / 6, "validate_every_n_steps": 40},
            "logging": {"log_with": "none"},
        }
        preset = read(PROJECT / "presets" / "starter_lora.json").values
        job = build(TrainJob, merge(merge(preset, values), run.settings))
        record = RunFolder.create(runs, title, dump(job, task="train"))
    else:
        record = RunFolder(existing)
    if RunView.read(record).snapshot(False)["state"] != "done":
        state, why = execute("train", job_of(record), record, workspace, "cpu")
        if state != "done":
            raise SystemExit(f"{name}: {state} {why}")
    return record


def assessed(record: RunFolder, steps: tuple[int, ...], workspace: Workspace) -> None:
    task = tasks.named("assess")
    settings = {"assess": {"run": record.name, "steps": [str(step) for step in steps]}}
    job = build(task.job, settings)
    folder = RunFolder.create(workspace.outputs / "assessments", record.name, dump(job, task="assess"))
    state, why = execute("assess", job, folder, workspace, "cpu")
    if state != "done":
        raise SystemExit(f"{record.name}: {state} {why}")


def rows(name: str, record: RunFolder) -> Iterator[list[str]]:
    """A row of the table for each checkpoint that was assessed."""
    for file, cells in sorted(read_results(record.path).items()):
        step = next(each["step"] for each in RunView.read(record).snapshot(False)["files"] if each["name"] == file)
        copies, drift, diversity = cells["copies"], cells["drift"], cells["diversity"]
        warnings = [row["warning"] for row in rows_of(cells) if row["warning"]]
        yield [
            f"{name}, step {step:,}",
            str(Interval.of(cells["fit"])),
            f"{copies['distance']:.2f}, {copies['limit']:.2f}",
            f"{drift['outside']:.1%}",
            str(Interval.of(drift)),
            MEASURES["blocks"].text("brief", cells["blocks"]),
            MEASURES["trigger"].text("brief", cells["trigger"]),
            str(Interval.of(diversity)),
            MEASURES["strength"].text("brief", cells["strength"]),
            MEASURES["rank"].text("brief", cells["rank"]),
            "; ".join(warnings) or "no",
        ]


def main(folder: Path, names: list[str]) -> None:
    workspace = Workspace(folder / "outputs", PROJECT / "models", PROJECT / "presets")
    table = [list(HEAD), ["---"] * len(HEAD)]
    for name in names or RUNS:
        record = trained(name, folder, workspace)
        assessed(record, RUNS[name].steps, workspace)
        table += rows(name, record)
    print("\n".join(f"| {' | '.join(row)} |" for row in table))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
