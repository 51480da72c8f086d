"""The base model of a run after its file was moved or renamed folders: found again by its name and hash."""

from contextlib import suppress
from pathlib import Path

from core.engine.extend import job_of
from core.families.locate import model_path
from core.formats.hashes import LEGACY_OF_SMALL, file_sha256, legacy_hash
from core.formats.tensors.header import read_header
from core.generation.model.library import Scan
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace, last_part
from core.settings.job import TrainJob

HASHES = ("ss_sd_model_hash", "ss_new_sd_model_hash")


def present_job(folder: RunFolder, workspace: Workspace) -> TrainJob:
    """Return `job_of` a run, with the present path of a base model that was moved."""
    return with_moved_model(job_of(folder), folder, workspace)


def with_moved_model(job: TrainJob, folder: RunFolder, workspace: Workspace) -> TrainJob:
    """Return a run's job with the present path of its base model, if that is gone and one file of the workspace has its name and the
    hashes that a checkpoint of the run states; else the job as it is."""
    with suppress(ProblemsError):
        model_path(job.model.base_model, workspace)
        return job
    hashes, name = _stated_hashes(folder), last_part(job.model.base_model)
    files = [path for _, path in Scan(workspace).checkpoints() if path.name == name and path.is_file()]
    moved = next((path for path in files if hashes is not None and _has(path, *hashes)), None)
    return job if moved is None else job.with_settings(model={"base_model": str(moved)})


def _stated_hashes(folder: RunFolder) -> tuple[str, str] | None:
    """Return (A1111's old hash, SHA-256) of the base model, which checkpoints of a network and embeddings state; None without one."""
    for path in sorted(folder.checkpoints.glob("*.safetensors")):
        with suppress(OSError, ProblemsError):
            metadata = read_header(path)[1]
            if {*HASHES} <= metadata.keys():
                return metadata[HASHES[0]], metadata[HASHES[1]]
    return None


def _has(path: Path, old_hash: str, sha256: str) -> bool:
    """Whether a model file has the old hash, or the SHA-256 if it is too small for an old one."""
    with suppress(OSError, ProblemsError):
        return legacy_hash(path) == old_hash and (old_hash != LEGACY_OF_SMALL or file_sha256(path) == sha256)
    return False
