"""ONNX models that make control images: where they lie, and what a profile.json says of their input and output."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.formats.onnx.file import check_onnx
from core.formats.onnx.profile import FILE, read_profile
from core.record.problems import ProblemsError, problems_at
from core.record.regular import check_regular
from core.record.workspace import Workspace, real_path, resolve_path
from core.settings.named import leads_out

FIX = "write it as docs/control_images.md says"
ABOUT = "hint-model"  # what the codes of its problems begin with
BAD_PROFILE = f"{ABOUT}.bad-profile"
Numbers = tuple[float, float, float]
Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Profile(BaseModel):
    """What the file itself does not say of a model.

    size       shorter side of the input in pixels, where the model leaves it open
    multiple   sides of the input are multiples of it, where the model leaves them open
    scale      "255": values as they are; "1": divided by 255, then (value - mean) / std
    values     of the output: "range" from the lowest to the highest of each image, "1" from 0 to 1, "-1" from -1 to 1, "255"
    invert     white becomes black: for models that draw black on white, or give distances in place of depth
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str = Field(default="", max_length=100)
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: Literal["1", "255"] = "1"
    mean: Numbers = (0.0, 0.0, 0.0)
    std: Deviations = (1.0, 1.0, 1.0)
    size: int = Field(default=512, ge=16, le=4096)
    multiple: int = Field(default=32, ge=1, le=256)
    values: Literal["range", "1", "-1", "255"] = "range"
    invert: bool = False


@dataclass(frozen=True)
class Found:
    """A model's file, and what is said of it. where: the setting that names it"""

    file: Path
    profile: Profile
    where: str

    @property
    def title(self) -> str:
        return self.profile.title or (self.file.parent.name if self.file.stem == "model" else self.file.stem)


def checked_model(given: str, workspace: Workspace, where: str) -> Found:
    """An .onnx file, or a folder with one: a path, or a name below models/preprocessors. Raises ProblemsError at the setting
    that names it (`where`) for one that is missing, damaged or too large."""
    if not given:
        fix = "choose an .onnx file, or a folder with one"
        raise ProblemsError.one("No model is chosen", where, fix, f"{ABOUT}.none")
    place = _place(given, workspace)
    if not os.path.exists(place):  # false, not an error, for an invalid name
        what = f"There is no model '{given}'"
        raise ProblemsError.one(what, where, "check the path, or the name below models/preprocessors", f"{ABOUT}.none")
    with problems_at(where):
        file = _only_model(place) if os.path.isdir(place) else place
        profile = file.with_name(FILE)
        found = Found(
            file, read_profile(profile, Profile, FIX, BAD_PROFILE) if os.path.lexists(profile) else Profile(), where
        )
        check_regular(file)
        check_onnx(file, ABOUT)
    return found


def known_models(workspace: Workspace) -> list[str]:
    """The names below models/preprocessors: files, and folders with a model."""
    entries = sorted(workspace.preprocessors.glob("*")) if workspace.preprocessors.is_dir() else []
    return [each.name for each in entries if each.suffix.lower() == ".onnx" or any(each.glob("*.onnx"))]


def portable_model(given: str, workspace: Workspace) -> str:
    """The model's name below models/preprocessors, else its last part: no folder of this machine."""
    place, root = real_path(_place(given, workspace)), real_path(workspace.preprocessors)
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else place.name


def _place(given: str, workspace: Workspace) -> Path:
    place = workspace.preprocessors / given
    return place if not leads_out(given) and os.path.lexists(place) else resolve_path(given)


def _only_model(folder: Path) -> Path:
    files = sorted(name for name in os.listdir(folder) if name.lower().endswith(".onnx"))
    if "model.onnx" in files or len(files) == 1:
        return folder / ("model.onnx" if "model.onnx" in files else files[0])
    what = f"The folder contains {len(files)} ONNX models" if files else "The folder contains no ONNX model"
    if len(files) > 1 and all(any(part in name.lower() for name in files) for part in ("yolox", "dw")):
        what = "DWPose needs two models, a person detector and a pose estimator, which is not supported"
        fix = "make the pose images with another program, and add them to the dataset as they are"
        raise ProblemsError.one(what, str(folder), fix, f"{ABOUT}.two-stages")
    raise ProblemsError.one(what, str(folder), "choose the .onnx file itself", f"{ABOUT}.none")
