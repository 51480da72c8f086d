"""Checkpoints that are merged: files and folders alike as the tensors of a single file, still to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.formats.detect import ModelKind, identify
from core.formats.models import sd_keys
from core.formats.models.checkpoint import Place
from core.formats.models.conversion import Conversion, as_single_file
from core.formats.models.whole_model import ModelFacts
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import LazyTensor, OpenFiles
from core.record.problems import ProblemsError, problems_at, raise_if_errors
from core.record.workspace import Workspace, display_path
from core.settings.tools.convert_model import ConvertModelSettings
from core.tools.models.convert_model import chosen_parts, open_model


@dataclass(frozen=True)
class Opened:
    """A checkpoint by its headers. tensors: by the keys of current single files."""

    path: Path
    kind: ModelKind
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]

    @property
    def floats(self) -> dict[str, LazyTensor]:
        return {key: tensor for key, tensor in self.tensors.items() if tensor.is_float}


def opened(path: Path, files: OpenFiles, workspace: Workspace, where: str) -> Opened:
    """where: the setting that names it. Raises ProblemsError for anything but a checkpoint."""
    with problems_at(where):
        kind = identify(path)
        if kind.kind == "checkpoint":
            tensors, metadata = _of_folder(path, files, workspace) if path.is_dir() else _of_file(path, kind, files)
            return Opened(path, kind, tensors, metadata)
    what = f"{display_path(path)} is not a checkpoint but: {kind}"
    raise ProblemsError.one(what, where, "choose checkpoints", "merge.not-a-checkpoint")


def _of_file(path: Path, kind: ModelKind, files: OpenFiles) -> tuple[dict[str, LazyTensor], Mapping[str, str]]:
    entries, metadata = read_header(path)
    prefix = sd_keys.CLIP_PREFIXES.get(kind.family or "", "\0")
    lazy = {_current(name, prefix): files.lazy(Place(path, name, entry)) for name, entry in entries.items()}
    return lazy, metadata


def _current(name: str, clip: str) -> str:
    """Text encoders of old files lack the level text_model."""
    return clip + sd_keys.clip_to_ldm(name.removeprefix(clip)) if name.startswith(clip) else name


def _of_folder(path: Path, files: OpenFiles, workspace: Workspace) -> tuple[dict[str, LazyTensor], Mapping[str, str]]:
    source, layout = open_model(path)
    parts, problems = chosen_parts(ConvertModelSettings(), source, layout, workspace, "")
    raise_if_errors(problems)
    facts = ModelFacts(prediction=source.kind.prediction, zero_terminal_snr=source.kind.zero_terminal_snr)
    return as_single_file(Conversion(source, path, parts, layout.family, "safetensors", layout.published, facts), files)
