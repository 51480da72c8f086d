"""Extracts the VAE of a checkpoint to a file or folder."""

from dataclasses import dataclass
from pathlib import Path

from core.families.layouts import layout_of
from core.families.part_shapes import known_tensors
from core.formats.detect import identify
from core.formats.models.checkpoint import Part, open_vae
from core.formats.models.conversion import write_vae
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, problems_at, raise_if_errors
from core.record.units import size_text
from core.record.workspace import Workspace, display_path
from core.settings.tools.convert_model import ExtractVaeSettings
from core.tools.files import model_file
from core.tools.models.convert_model import FOLDERS, dtype_of, misnamed_problems, saved_outcome
from core.tools.output import PRECISION_BYTES, output_file, output_problems, progress


@dataclass(frozen=True)
class Plan:
    """The VAE to write. `size`: bytes of the result."""

    vae: Part
    family: str
    target: Path
    size: int

    def __str__(self) -> str:
        return f"write {display_path(self.target)}, {size_text(self.size)}"


def plan(settings: ExtractVaeSettings, workspace: Workspace) -> Plan:
    """Find the VAE in the file's header, check the output and return the plan. Raises ProblemsError with all problems."""
    path = model_file(settings.file, workspace, "extract_vae.file")
    with problems_at("extract_vae.file"):
        vae = open_vae(path)
    kind, form = identify(path), "safetensors" if settings.layout == "single_file" else "diffusers_safetensors"
    name = settings.family if settings.family != "auto" else kind.family or ""
    if not name and vae.config is None and form in FOLDERS:
        what = "A VAE file does not say its family, which its folder's scaling factor depends on"
        raise ProblemsError.one(what, "extract_vae.family", "choose the family", "convert.unknown-family")
    with problems_at("extract_vae.file"):
        vae, problems = known_tensors(layout_of(name or "sd1"), vae)
        raise_if_errors(problems)
    target = output_file(settings.output, path, "_vae", (".safetensors",) if form == "safetensors" else ())
    size, where = vae.weight_bytes(PRECISION_BYTES.get(settings.save_precision or "")), "extract_vae.output"
    raise_if_errors(misnamed_problems(target, form, where) or output_problems(target, [path, vae.source], size, where))
    return Plan(vae, name or "sd1", target, size)


def do(settings: ExtractVaeSettings, plan: Plan, context: JobContext) -> Outcome:
    """Write the VAE."""
    advice = write_vae(
        plan.vae,
        plan.target,
        plan.family,
        layout_of(plan.family).published,
        folder=settings.layout == "diffusers",
        dtype=dtype_of(settings.save_precision),
        cancel=context.cancel,
        wrote=progress(context, plan.target, plan.size),
    )
    return saved_outcome(plan.target, advice, context)
