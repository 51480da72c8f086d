"""Strips the metadata of a safetensors file before sharing."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from core.formats.tensors.header import read_header
from core.record.context import JobContext, Outcome
from core.record.problems import raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.file_metadata import StripMetadataSettings
from core.tools.models import header_edit
from core.tools.output import output_file, output_problems
from core.tools.plans import FilePlan

# What sd-scripts keeps with no_metadata: programs need it to load the file.
MINIMUM = {
    *("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args"),
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.architecture", "modelspec.sai_model_spec", "format"),
    *("modelspec.prediction_type", "lora_adapter_metadata", "atelier_sizes"),
}
# Names of what tells of images, captions, prompts and machines.
TRAINING_DATA = tuple(
    "*dataset* *tag_frequency* *prompt* *caption_prefix* *caption_suffix* *bucket_info* *_dir *_dirs *path* "
    "ss_num_train_images ss_num_reg_images ss_num_validation_images ss_session_id ss_training_comment *wandb* "
    "*hostname* *user* *workflow* sd_merge_models *cache_info* *data_hash*".split()
)
# What follows within a path: spaces and brackets too where another folder comes after them.
ENDING = r"(?:[^\s\"'<>|*?,;()\[\]{}]|[ ,;()\[\]](?=[^\"'<>|*?\n]{0,200}[\\/]))+"
PRIVATE = re.compile(
    rf"(?:(?<![A-Za-z])[A-Za-z]:[\\/]{{1,4}}|\\\\{{1,2}}|(?<![\w:./])~?/(?:home|Users|root|mnt|media|content|workspace|data|tmp|var|opt|srv|Volumes|kaggle|private|runpod-volume)/){ENDING}"
)


def plan(settings: StripMetadataSettings, workspace: Workspace) -> FilePlan:
    """Return the plan. Raises ProblemsError for a file that is no safetensors, and for an output that cannot be written."""
    path = header_edit.safetensors_file(settings.file, workspace, "strip_metadata.file")
    target = output_file(settings.output, path, "_shared")
    raise_if_errors(output_problems(target, [path], path.stat().st_size, "strip_metadata.output"))
    remaining, _ = stripped(read_header(path)[1], settings.remove)
    return FilePlan(f"write {display_path(target)} with {count(len(remaining), 'metadata key')}", path, target)


def do(settings: StripMetadataSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Write a copy with stripped metadata, and list what was removed."""
    path, target = plan.path, plan.target
    metadata = read_header(path)[1]
    remaining, shortened = stripped(metadata, settings.remove)
    context.stage(f"writing {target.name}")
    header_edit.write_copy(path, header_edit.with_metadata(path, remaining), target, context.cancel)
    private = {name: paths for name, value in metadata.items() if (paths := private_paths(value))}
    removed = sorted(metadata.keys() - remaining.keys())
    lines = [f"private path in {name}: {', '.join(paths[:3])}" for name, paths in sorted(private.items())]
    lines += [f"removed: {name}" for name in removed]
    lines += [f"path shortened to its last name: {name}" for name in shortened]
    lines.append(f"Saved: {display_path(target)} with {count(len(remaining), 'metadata key')}")
    facts = {"file": str(target), "removed": removed, "shortened": shortened, "private_paths": private}
    return Outcome(lines=lines, facts=facts)


def stripped(metadata: Mapping[str, str], remove: str) -> tuple[dict[str, str], list[str]]:
    """Return (the remaining metadata, keys with paths shortened to their last component).
    remove: "all", "minimum" or "training", as in StripMetadataSettings"""
    if remove == "all":
        return {"format": "pt"}, []  # without which transformers refuses a file
    if remove == "minimum":
        remaining = {name: value for name, value in metadata.items() if name in MINIMUM}
    else:
        remaining = {name: value for name, value in metadata.items() if not _describes_training(name)}
    shortened = sorted(name for name, value in remaining.items() if private_paths(value))
    return remaining | {name: without_paths(remaining[name]) for name in shortened}, shortened


def _describes_training(name: str) -> bool:
    """Return whether a metadata key describes the training; False for modelspec's texts, which are meant for others."""
    return not name.startswith("modelspec.") and any(fnmatchcase(name.lower(), pattern) for pattern in TRAINING_DATA)


def private_paths(text: str) -> list[str]:
    """Return the local paths in a text, each once."""
    return list(dict.fromkeys(match[0] for match in PRIVATE.finditer(text)))


def without_paths(text: str) -> str:
    """Return the text with its local paths shortened to their last component."""
    return PRIVATE.sub(_last_name, text)


def _last_name(match: re.Match[str]) -> str:
    """Return the last component of a matched path."""
    return re.split(r"[\\/]+", match[0].rstrip("\\/"))[-1]
