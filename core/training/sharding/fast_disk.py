"""Checks of the NVMe folders that DeepSpeed offloads to: existence and free space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from core.record import machine
from core.record.problems import Problem, ProblemsError
from core.record.units import size_text
from core.record.workspace import Workspace, resolve_path
from core.training.memory.plan import facts_of, sharded_sizes

if TYPE_CHECKING:
    from core.settings.job import TrainJob

DEEPSPEED_FOLDER = "zero_stage_3"  # DeepSpeed's subfolder; a run overwrites the files of earlier ones
FIX = "free some space, choose a folder on another disk, or offload to RAM (cpu)"


def disk_folders(job: TrainJob) -> dict[str, str]:
    """Return {setting: folder} of the NVMe folders that the job offloads to."""
    sharding, folders = job.sharding, {}
    for name in ("optimizer", "param"):
        folder = getattr(sharding, f"offload_{name}_nvme_path")
        if sharding.active and getattr(sharding, f"offload_{name}_device") == "nvme" and folder:
            folders[f"sharding.offload_{name}_nvme_path"] = folder
    return folders


def require_folder(folder: Path, setting: str) -> None:
    """Raise ProblemsError unless the folder exists. It is not created: after a typo, gigabytes would go to another disk."""
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.exists() else f"There is no folder {folder}"
        raise ProblemsError.one(what, setting, "create it, or choose an existing one", "deepspeed.no-offload-folder")


def space_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of too little free space in the NVMe folders. [] without a model, or if a folder is missing."""
    folders = {setting: resolve_path(folder) for setting, folder in disk_folders(job).items()}
    if not folders or not all(folder.is_dir() for folder in folders.values()):
        return []
    by_disk: dict[int, list[str]] = {}
    for setting, folder in folders.items():
        by_disk.setdefault(folder.stat().st_dev, []).append(setting)
    problems = []
    for settings in by_disk.values():
        try:
            needed = bytes_on_disk(job, workspace, settings)
        except ProblemsError:
            return []
        folder = folders[settings[0]]
        free = machine.free_disk(folder) + sum(_bytes_of(each) for each in {folders[name] for name in settings})
        if free < needed:
            what = f"The disk of {folder} has {size_text(free)} free, but about {size_text(needed)} are needed"
            problems.append(Problem(what, ", ".join(settings), FIX, code="disk.space"))
    return problems


def bytes_on_disk(job: TrainJob, workspace: Workspace, settings: list[str]) -> int:
    """Return the bytes that the offload settings named in `settings` write to disk. Raises ProblemsError for a missing or unknown model."""
    disabled = {
        f"offload_{name}_device": None
        for name in ("optimizer", "param")
        if f"sharding.offload_{name}_nvme_path" not in settings
    }
    alone = job.with_settings(sharding=disabled)
    return sharded_sizes(alone, facts_of(job, workspace, machine.default_device())).disk


def _bytes_of(folder: Path) -> int:
    """Return the bytes of DeepSpeed's files in a folder, which a new run overwrites."""
    return sum(path.stat().st_size for path in (folder / DEEPSPEED_FOLDER).rglob("*") if path.is_file())
