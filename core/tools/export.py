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
        raise ProblemsError.one(
            f"'{target.name}' has no ending that diffusers reads", "tool.output", "let the name end in .safetensors"
        )
    if target.exists():
        raise ProblemsError.one("There is a file of that name already", display_path(target), "choose another output")
    tensors, metadata = to_diffusers(load_lora(source))
    if not tensors:
        raise ProblemsError.one("This LoRA holds no layers", display_path(source), "choose another file")
    with atomic.open_atomic(target) as temporary:
        save_file(tensors, temporary, metadata)
    return target
