"""Writes a copy of a checkpoint with another VAE."""

from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.tools.convert_model import BakeVaeSettings, ConvertModelSettings
from core.tools.files import model_file
from core.tools.models import convert_model


def plan(settings: BakeVaeSettings, workspace: Workspace) -> convert_model.Plan:
    """Return the plan of a conversion of the checkpoint with another VAE. Raises ProblemsError if no VAE is given, and as
    `convert_model.plan`."""
    path = model_file(settings.file, workspace, "bake_vae.file")
    if not settings.vae:
        what, fix = "No VAE is given", "choose the VAE to bake in"
        raise ProblemsError.one(what, "bake_vae.vae", fix, "tools.no-file-given")
    values = settings.model_dump() | {"save_model_as": convert_model.output_form(settings.output, path)}
    return convert_model.plan(ConvertModelSettings(**values), workspace, "bake_vae", "_baked")


def do(settings: BakeVaeSettings, plan: convert_model.Plan, context: JobContext) -> Outcome:
    """Write the copy."""
    return convert_model.run(plan, context)
