"""Resolves a model setting to a file or folder, its family and its problems; reads headers only."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.hub.references import HubId, resolve
from core.formats.models.checkpoint import Part, open_checkpoint, open_vae
from core.record.problems import Problem, ProblemsError, collected
from core.record.units import count, with_article
from core.record.workspace import Workspace
from core.settings.model import SDXL_SCALE, ModelSettings, traits_of

# name -> the module with its FAMILY; imported when needed, since it loads torch
FAMILIES = {name: f"core.families.{name}" for name in ("sd1", "sd2", "sdxl")}
REFINER = "sdxl_refiner"
STAGES = {REFINER: "core.families.sdxl_refiner"}  # families that only finish the images of another model
GENERATED = ("inpainting",)  # variants that make images; they are not trained
# What clip skip does where the family skips layers anyway: (what, fix, code).
CLIP_SKIP = {
    "sd2": (
        "SD 2.x already uses the second to last text encoder layer; clip skip skips more",
        "leave it empty, unless the model was trained so",
        "model.clip-skip-sd2",
    ),
    "sdxl": (
        "Clip skip has no effect: SDXL always uses the second to last layer",
        "leave it empty",
        "model.clip-skip-sdxl",
    ),
}


def model_path(reference: str, workspace: Workspace, setting: str = "model.base_model") -> Path:
    """Return the file or folder that a model setting refers to.

    setting   name of the setting, for messages
    Raises ProblemsError if it does not exist; for a hub id that is not downloaded, the fix is the download command.
    """
    try:
        resolved = resolve(reference, workspace.models, workspace.outputs)
    except ProblemsError as error:
        problems = [replace(problem, where=setting) for problem in error.problems]
        if setting.endswith(("weights", "vae")):  # not a base model, whose catalog the fix lists
            fix = "choose an existing file" + (", or leave it empty" if setting.endswith("vae") else "")
            problems = [replace(problem, fix=fix) for problem in problems]
        raise ProblemsError(problems) from None
    if isinstance(resolved, HubId):
        raise ProblemsError.one(
            f"The model '{reference}' is not on this machine",
            setting,
            f"download it (Get a model in the page, or `webui.py download --download.hub_id {reference}`), or choose a file",
            code="model.not-downloaded",
        )
    return resolved


def family_of(path: Path | str, wanted: str = "auto", variants: Collection[str] = ()) -> str:
    """Return the family of the model at `path`.

    wanted    the family set by the user, which decides if the file does not state one; "auto": any
    variants  accepted model variants: none for training, `GENERATED` (inpainting) for generation
    Raises ProblemsError if it is not a checkpoint, an unsupported variant, or of an unknown or another family.
    """
    return check_family(identify(path), path, wanted, variants)


def base_model_family(settings: ModelSettings, workspace: Workspace) -> str:
    """Return the base model's family; "" if the model is missing or unusable, which `model_problems` reports."""
    try:
        return family_of(model_path(settings.base_model, workspace), settings.family)
    except (ProblemsError, OSError):
        return ""


def check_family(kind: ModelKind, path: Path | str, wanted: str = "auto", variants: Collection[str] = ()) -> str:
    """Return the family of an identified model, as `family_of`, which has the same arguments. Raises ProblemsError as that does.
    path: for messages"""
    accepted = " or ".join(FAMILY_NAMES[name] for name in (FAMILIES if wanted == "auto" else [wanted]))
    if kind.kind != "checkpoint":
        fix = "choose a checkpoint or a diffusers folder as the base model"
        what = f"This file is not a checkpoint but: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, str(path), fix, code="model.not-a-checkpoint")
    if kind.variant is not None and kind.variant not in variants:
        what = f"This model variant is not supported: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, str(path), f"choose a plain {accepted} model", "model.unsupported-variant")
    family = kind.family or (wanted if wanted != "auto" else None)
    if family is None:
        what = f"The family of this model is unknown ({kind.evidence})"
        raise ProblemsError.one(
            what,
            str(path),
            "choose another model, or set the model family where the job has this setting",
            "model.undetected-family",
        )
    if wanted != family and (wanted != "auto" or family not in FAMILIES):
        what = f"This is {with_article(str(kind))}; this job works with {accepted}"
        fix = f"choose {with_article(accepted)} model as the base model ({kind.evidence})"
        if family in STAGES:
            fix += "; in Generate, this one can be the refiner of an SDXL model"
        raise ProblemsError.one(what, str(path), fix, "model.other-family")
    return family


def check_clip_skip(clip_skip: int | None, path: Path, family: str, where: str = "model.clip_skip") -> None:
    """Raise ProblemsError (with `where`) if a text encoder of the model in `path` has fewer layers than clip skip counts."""
    if clip_skip is None:
        return
    encoders = [part for name, part in open_checkpoint(path, family).parts.items() if name.startswith("text_encoder")]
    layers = min((part.full_config({}).get("num_hidden_layers", clip_skip) for part in encoders), default=clip_skip)
    if clip_skip > layers:
        what, fix = f"The text encoder has only {count(layers, 'layer')}", f"use 1 to {layers}, or leave it empty"
        raise ProblemsError.one(what, where, fix, "model.clip-skip-layers")


def model_problems(settings: ModelSettings, workspace: Workspace) -> list[Problem]:
    """Return problems of the base model and the VAE: missing files, unknown families, a VAE of another family, useless clip skip."""
    problems: list[Problem] = []
    path = collected(problems, model_path, settings.base_model, workspace)
    name = collected(problems, family_of, path, settings.family) if path is not None else None
    if settings.clip_skip is not None and name in CLIP_SKIP:
        what, fix, code = CLIP_SKIP[name]
        problems.append(Problem(what, "model.clip_skip", fix, "advice", code=code))
    if path is not None and name is not None and not traits_of(name).penultimate:
        collected(problems, check_clip_skip, settings.clip_skip, path, name)
    if settings.vae is not None:
        path = collected(problems, model_path, settings.vae, workspace, "model.vae")
        vae = collected(problems, open_vae, path) if path is not None else None
        if vae is not None and name is not None:
            problems += collected(problems, vae_problems, vae, name, f"model.vae = {settings.vae}") or ()
    return problems


def vae_problems(vae: Part, family: str, where: str) -> list[Problem]:
    """Return the warning that a VAE has the scaling factor of another family, by its config or by the checkpoint it is in; else []."""
    scale = (vae.config or {}).get("scaling_factor")
    if scale is None and (source := identify(vae.source)).kind == "checkpoint" and source.family is not None:
        scale = traits_of(source.family).latent_scale
    if scale is None or (scale == SDXL_SCALE) == (traits_of(family).latent_scale == SDXL_SCALE):
        return []
    what = f"The VAE's scaling factor is {scale}, which is not {FAMILY_NAMES[family]}'s: images would be wrong"
    fix = f"choose a VAE for {FAMILY_NAMES[family]}, or none"
    return [Problem(what, where, fix, level="warning", code="vae.other-family")]
