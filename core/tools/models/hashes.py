"""Computes the hashes by which other programs identify model files, of one file or all in a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.formats.hashes import file_sha256, legacy_hash
from core.formats.tensors.header import read_header
from core.generation.model.library import SUFFIXES
from core.record.cancel import CancelToken
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, at_setting
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.file_metadata import HashesSettings
from core.tools.charts import table
from core.tools.files import file_of, files_below
from core.tools.models.inspect import weights_hash

FIELD = "hashes.file"


@dataclass(frozen=True)
class Plan:
    """The files to hash."""

    files: list[Path]

    def __str__(self) -> str:
        return f"compute the hashes of {count(len(self.files), 'file')}"


def do(settings: HashesSettings, plan: Plan, context: JobContext) -> Outcome:
    """Compute the hashes. Damaged files of a folder are skipped and reported; raises ProblemsError if all are damaged."""
    files = plan.files
    hashed, damaged = list[dict[str, Any]](), list[Problem]()
    for number, path in enumerate(files):
        context.stage(f"hashing {path.name}", number, len(files))
        try:
            hashed.append(hashes_of(path, context.cancel))
        except ProblemsError as error:
            damaged.append(replace(error.problems[0], where=display_path(path)))
    if not hashed:
        raise ProblemsError(at_setting(FIELD, damaged))
    rows = [[each["path"], each["sha256"][:10], each["auto_v3"], each["legacy"], each["sha256"]] for each in hashed]
    lines = []
    for each in hashed:
        lines += [each["path"], f"  SHA-256: {each['sha256']}", f"  AutoV2 (first 10 digits): {each['sha256'][:10]}"]
        lines += [f"  AutoV3 (weights only): {each['auto_v3'] or 'none: not a safetensors file'}"]
        lines += [f"  old model hash: {each['legacy']}"]
        if each["changed"]:
            lines.append("  NOT the weights that its metadata names: they were changed later")
    left_out = [f"left out {each.where}: {each.what}" for each in damaged]
    chart = table("Hashes", ["File", "AutoV2", "AutoV3", "Old hash", "SHA-256"], rows, copied=True)
    brief = [f"hashes of {count(len(hashed), 'file')}"]
    brief += [f"{each['path']}: NOT the weights that its metadata names" for each in hashed if each["changed"]]
    facts = {"files": hashed, "damaged": [each.to_dict() for each in damaged], "shown": [chart]}
    return Outcome(lines=lines + left_out, facts=facts | {"brief": brief + left_out})


def hashes_of(path: Path, cancel: CancelToken | None = None) -> dict[str, Any]:
    """Compute a file's hashes. Raises ProblemsError for a damaged file.

    Returns {path, legacy: A1111's old hash (8 digits), sha256, weights_sha256: of the tensors only, as sshs_model_hash, auto_v3:
    its first 12 digits, changed: whether the metadata state another weights_sha256}. Hashes of tensors are "" for formats other
    than safetensors.
    """
    weights = weights_hash(path, read_header(path)[1], cancel)
    return {
        "path": display_path(path),
        "legacy": legacy_hash(path),
        "sha256": file_sha256(path, cancel),
        "auto_v3": (weights["sha256"] or "")[:12],
        "weights_sha256": weights["sha256"] or "",
        "changed": weights["as_in_metadata"] is False,
    }


def plan(settings: HashesSettings, workspace: Workspace) -> Plan:
    """List the files to hash, and return the plan. Raises ProblemsError if there are none."""
    path = file_of(settings.file, workspace, FIELD)
    if path.is_file():
        return Plan([path])
    files = files_below(path, SUFFIXES)
    if not files:
        what, fix = f"{display_path(path)} contains no model files", "choose another folder, or a file"
        raise ProblemsError.one(what, FIELD, fix, "tools.no-model-files")
    return Plan(files)
