"""LoRA files for other programs."""

from __future__ import annotations

from pathlib import Path

from core.networks.adapter_file import load_lora, to_diffusers
from core.record import atomic
from core.record.problems import ProblemsError
from core.record.workspace import display_path

ENDING = "_diffusers.safetensors"


def export_target(source: Path, output: Path | None) -> Path:
    """Where the export goes: beside the file when nothing is given, into `output` when that is a folder."""
    name = source.stem + ENDING
    if output is None:
        return source.with_name(name)
    if output.is_dir() or not output.suffix:
        return output / name
    return output


def export_diffusers(source: Path, output: Path | None = None) -> Path:
    """Write a LoRA in the form that diffusers and PEFT read right whatever its alphas are (they are multiplied into the
    weights, in float32). Returns the new file; an existing file is never written over."""
    from safetensors.torch import save_file

    target = export_target(source, output)
    if target.suffix.lower() != ".safetensors":
        what, fix = f"diffusers cannot load a file named '{target.name}'", "end the name in .safetensors"
        raise ProblemsError.one(what, "export_diffusers.output", fix, "tools.export-suffix")
    if target.exists():
        what, fix = "A file with this name exists already", "choose another output"
        raise ProblemsError.one(what, display_path(target), fix, "tools.export-exists")
    tensors, metadata = to_diffusers(load_lora(source), fold_alpha=True)
    if not tensors:
        what, fix = "This LoRA has no layers", "choose another file"
        raise ProblemsError.one(what, display_path(source), fix, "tools.lora-empty")
    with atomic.open_atomic(target) as temporary:
        save_file(tensors, temporary, metadata)
    return target
