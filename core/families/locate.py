"""From a model setting to the file or folder it means, and what is wrong with it, from headers alone."""

from __future__ import annotations

from pathlib import Path

from core.families import family_of
from core.formats.checkpoint import open_vae
from core.formats.detect import FAMILY_NAMES
from core.formats.hub import HubId, resolve
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.model import ModelSettings

# What clip skip does where the family skips layers anyway: (what, where, fix, code).
CLIP_SKIP = {
    "sd2": (
        "SD 2.x already uses the second to last text encoder layer; clip skip skips more",
        "model.clip_skip",
        "leave it empty, unless the model was trained so",
        "model.clip-skip-sd2",
    ),
    "sdxl": (
        "Clip skip has no effect: SDXL always uses the second to last layer",
        "model.clip_skip",
        "leave it empty",
        "model.clip-skip-sdxl",
    ),
}


SDXL_SCALE = 0.13025  # of its VAE's latents; 0.18215 in SD 1.x and 2.x


def _of_another_family(vae: str, scale: float, name: str) -> Problem:
    return Problem(
        f"The VAE's scaling factor is {scale}, which is not {FAMILY_NAMES[name]}'s: images would be wrong",
        f"model.vae = {vae}",
        f"choose a VAE for {FAMILY_NAMES[name]}, or leave it empty",
        level="advice",
        code="vae.other-family",
    )


def model_path(reference: str, workspace: Workspace, setting: str = "model.base_model") -> Path:
    """The file or folder that a setting names. A hub id that is not here is a problem that says how to get it."""
    found = resolve(reference, workspace.models, workspace.outputs)
    if isinstance(found, HubId):
        raise ProblemsError.one(
            f"The model '{reference}' is not on this machine",
            setting,
            f"download it (Get a model in the page, or `webui.py download --download.hub_id {reference}`), or choose a file",
            code="model.not-downloaded",
        )
    return found


def model_problems(settings: ModelSettings, workspace: Workspace) -> list[Problem]:
    """Problems of the base model and the VAE: missing files, unknown families; advice on clip skip."""
    found: list[Problem] = []
    name = None
    try:
        name = family_of(model_path(settings.base_model, workspace), settings.family)
        if settings.clip_skip is not None and name in CLIP_SKIP:
            what, where, fix, code = CLIP_SKIP[name]
            found.append(Problem(what, where, fix, "advice", code=code))
    except ProblemsError as error:
        found += error.problems
    if settings.vae is not None:
        try:
            vae = open_vae(model_path(settings.vae, workspace, "model.vae"))
            scale = (vae.config or {}).get("scaling_factor")
            if name is not None and scale is not None and (scale == SDXL_SCALE) != (name == "sdxl"):
                found.append(_of_another_family(settings.vae, scale, name))
        except ProblemsError as error:
            found += error.problems
    return found
