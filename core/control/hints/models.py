"""ONNX models that make control images: where they lie, of which kind they are, and what a profile.json says of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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
IMAGE, DWPOSE, OPENPOSE, DETECTOR = "image", "dwpose", "openpose", "detector"
KEYPOINTS = (17, 26, 133)  # of COCO, Halpe and COCO-WholeBody, which all begin with COCO's 17
HEAT_MAPS, PART_FIELDS = 19, 38  # channels of OpenPose: 18 keypoints and the background; x and y of 19 limbs
BOX_NUMBERS = (5, 6, 85)  # of a detector: four and a score, YOLOX's for people alone and for COCO
Numbers = tuple[float, float, float]
Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Profile(BaseModel):
    """What the file itself does not say of a model.

    kind       "image" makes an image of an image, "dwpose" and "openpose" find poses; "" is seen by the outputs
    size       shorter side of the input in pixels, where the model leaves it open
    multiple   sides of the input are multiples of it, where the model leaves them open
    scale      "255": values as they are; "1": divided by 255, then (value - mean) / std
    values     of the output: "range" from the lowest to the highest of each image, "1" from 0 to 1, "-1" from -1 to 1, "255"
    invert     white becomes black: for models that draw black on white, or give distances in place of depth
    detector   of "dwpose": the file next to it that finds people; "" is seen by the outputs of the files there
    score      of "dwpose": the lowest score of a keypoint that is drawn
    hands, face   whether they are drawn, of models that find them
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str = Field(default="", max_length=100)
    kind: Literal["", "image", "dwpose", "openpose"] = ""
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: Literal["1", "255"] = "1"
    mean: Numbers = (0.0, 0.0, 0.0)
    std: Deviations = (1.0, 1.0, 1.0)
    size: int = Field(default=512, ge=16, le=4096)
    multiple: int = Field(default=32, ge=1, le=256)
    values: Literal["range", "1", "-1", "255"] = "range"
    invert: bool = False
    detector: str = Field(default="", max_length=255, pattern=r"^[^/\\:\x00]*$")
    score: float = Field(default=0.3, gt=0, le=100)
    hands: bool = True
    face: bool = True

    def over(self, usual: Mapping[str, Any]) -> Self:
        """With what is usual for a kind of model, in place of the defaults of fields that the file leaves out."""
        return type(self).model_validate({**usual, **self.model_dump(exclude_unset=True)})


@dataclass(frozen=True)
class Found:
    """A model's file, and what is said of it. where: the setting that names it; detector: finds people for it, or None"""

    file: Path
    profile: Profile
    where: str
    kind: str = IMAGE
    detector: Path | None = None

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
        path = file.with_name(FILE)
        profile = read_profile(path, Profile, FIX, BAD_PROFILE) if os.path.lexists(path) else Profile()
        check_regular(file)
        seen = _kind_of_file(file)
        kind = profile.kind or seen
        if kind == DETECTOR:
            what = f"The model {file.name} finds boxes around people, not their poses"
            fix = "put a pose model into its folder, and choose the folder"
            raise ProblemsError.one(what, str(file), fix, f"{ABOUT}.detector")
        return Found(file, profile, where, kind, _detector_of(file, profile) if kind == DWPOSE else None)


def kind_of(outputs: Mapping[str, Sequence[int]]) -> str:
    """The kind of a model by the names and shapes of its outputs, where 0 is a number that it leaves open."""
    names, shapes = [*outputs], [*outputs.values()]
    if len(shapes) == 2 and (
        all(name.startswith("simcc") for name in names)
        or all(len(shape) == 3 and shape[1] in KEYPOINTS for shape in shapes)
    ):
        return DWPOSE
    if {HEAT_MAPS, PART_FIELDS} <= {shape[1] for shape in shapes if len(shape) == 4}:
        return OPENPOSE
    boxes = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][2] in BOX_NUMBERS
    return DETECTOR if boxes or names == ["dets", "labels"] else IMAGE  # the second as mmdeploy names them


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


def _models_in(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if name.lower().endswith(".onnx")]


def _kind_of_file(file: Path) -> str:
    return kind_of(check_onnx(file, ABOUT))


def _only_model(folder: Path) -> Path:
    """model.onnx, or the only model that is no person detector."""
    files = _models_in(folder)
    named = [file for file in files if file.name == "model.onnx"]
    if len(files) > 1 and not named:
        files = [file for file in files if _kind_of_file(file) != DETECTOR] or files
    if named or len(files) == 1:
        return (named or files)[0]
    what = f"The folder contains {len(files)} ONNX models" if files else "The folder contains no ONNX model"
    raise ProblemsError.one(what, str(folder), "choose the .onnx file itself", f"{ABOUT}.none")


def _detector_of(file: Path, profile: Profile) -> Path | None:
    """The model next to a pose model that finds people for it."""
    if profile.detector:
        detector = file.with_name(profile.detector)
        check_regular(detector)
        check_onnx(detector, ABOUT)
        return detector
    found = [each for each in _models_in(file.parent) if each != file and _kind_of_file(each) == DETECTOR]
    if len(found) > 1:
        what = f"The folder contains {len(found)} person detectors ({', '.join(each.name for each in found)[:200]})"
        fix = 'name one as "detector" in profile.json'
        raise ProblemsError.one(what, str(file.parent), fix, f"{ABOUT}.detectors")
    return found[0] if found else None
