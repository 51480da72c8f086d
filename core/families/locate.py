"""From a model setting to the file or folder it means, and what is wrong with it, from headers alone."""

from __future__ import annotations

from pathlib import Path

from core.families import family_of
from core.formats.checkpoint import open_vae
from core.formats.hub import HubId, resolve
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.model import ModelSettings


def model_path(reference: str, workspace: Workspace, setting: str = "model.base_model") -> Path:
    """The file or folder that a setting names. A hub id that is not here is a problem that says how to get it."""
    found = resolve(reference, workspace.models)
    if isinstance(found, HubId):
        raise ProblemsError.one(
            f"The model '{reference}' is not on this machine",
            setting,
            "download it (Get a base model in the page, or `webui.py tool --tool.name download`), or choose a file",
        )
    return found


def model_problems(settings: ModelSettings, workspace: Workspace) -> list[Problem]:
    """Whether the base model and the VAE are there and of a family that is known here."""
    found: list[Problem] = []
    try:
        family_of(model_path(settings.base_model, workspace), settings.family)
    except ProblemsError as error:
        found += error.problems
    if settings.vae is not None:
        try:
            open_vae(model_path(settings.vae, workspace, "model.vae"))
        except ProblemsError as error:
            found += error.problems
    return found
