"""ONNX models that make control images: their files, kinds, and the profile.json next to them."""

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
ABOUT = "hint-model"  # prefix of the problems' codes
BAD_PROFILE = f"{ABOUT}.bad-profile"
IMAGE, DWPOSE, OPENPOSE, DETECTOR = "image", "dwpose", "openpose", "detector"
KEYPOINTS = (17, 26, 133)  # of COCO, Halpe and COCO-WholeBody, which all begin with COCO's 17
HEAT_MAPS, PART_FIELDS = 19, 38  # channels of OpenPose: 18 keypoints and the background; x and y of 19 limbs
BOX_NUMBERS = (5, 6, 85)  # of a detector: four and a score, YOLOX's for people alone and for COCO
Numbers = tuple[float, float, float]
Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Profile(BaseModel):
    """profile.json: properties of an ONNX model that its file does not contain.

    kind       "image" (image to image), "dwpose" or "openpose" (pose estimation); "" detects the kind by the outputs
    size       shorter side of the input in pixels, if the model leaves it open
    multiple   sides of the input are multiples of this number of pixels, if the model leaves them open
    scale      of the input: "255" for 0 to 255; "1" divides by 255, then computes (value - mean) / std
    values     range of the output: "1" for 0 to 1, "-1" for -1 to 1, "255", "range" for the minimum to the maximum of each image
    invert     swap black and white, for models that draw black on white, or return distances instead of depth
    detector   for "dwpose": name of the person detector's file in the same folder; "" finds it by the files' outputs
    score      for "dwpose": the lowest score of keypoints to draw
    hands, face   whether to draw them, for models that find them
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

    def over(self, defaults: Mapping[str, Any]) -> Self:
        """Return the profile with `defaults` for the fields that profile.json leaves out."""
        return type(self).model_validate({**defaults, **self.model_dump(exclude_unset=True)})


@dataclass(frozen=True)
class ModelFile:
    """An ONNX model file with its profile.

    where      the setting that names the model
    kind       IMAGE, DWPOSE or OPENPOSE
    detector   file of the person detector that a DWPOSE model uses, or None
    """

    file: Path
    profile: Profile
    where: str
    kind: str = IMAGE
    detector: Path | None = None

    @property
    def title(self) -> str:
        """Name for messages: the profile's title, else the file's name, or for model.onnx its folder's."""
        return self.profile.title or (self.file.parent.name if self.file.stem == "model" else self.file.stem)


def checked_model(name: str, workspace: Workspace, where: str) -> ModelFile:
    """Return the ONNX model that the setting `where` names, with its profile.

    name   path of an .onnx file or a folder with one, or a name below models/preprocessors
    Raises ProblemsError for `where` if the model is missing, damaged, too large or a person detector.
    """
    if not name:
        fix = "choose an .onnx file, or a folder with one"
        raise ProblemsError.one("No model is chosen", where, fix, f"{ABOUT}.none")
    path = _model_path(name, workspace)
    if not os.path.exists(path):  # false, not an error, for an invalid name
        what = f"There is no model '{name}'"
        raise ProblemsError.one(what, where, "check the path, or the name below models/preprocessors", f"{ABOUT}.none")
    with problems_at(where):
        file = _only_model(path) if os.path.isdir(path) else path
        profile_file = file.with_name(FILE)
        profile = read_profile(profile_file, Profile, FIX, BAD_PROFILE) if os.path.lexists(profile_file) else Profile()
        check_regular(file)
        detected = _kind_of_file(file)
        kind = profile.kind or detected
        if kind == DETECTOR:
            what = f"The model {file.name} finds boxes around people, not their poses"
            fix = "put a pose model into its folder, and choose the folder"
            raise ProblemsError.one(what, str(file), fix, f"{ABOUT}.detector")
        return ModelFile(file, profile, where, kind, _detector_of(file, profile) if kind == DWPOSE else None)


def kind_of(outputs: Mapping[str, Sequence[int]]) -> str:
    """Return a model's kind (IMAGE, DWPOSE, OPENPOSE or DETECTOR) by its outputs: name -> shape; 0 is an open dimension."""
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
    """Return the names of the .onnx files, and folders with one, in models/preprocessors, sorted."""
    entries = sorted(workspace.preprocessors.glob("*")) if workspace.preprocessors.is_dir() else []
    return [each.name for each in entries if each.suffix.lower() == ".onnx" or any(each.glob("*.onnx"))]


def portable_model(name: str, workspace: Workspace) -> str:
    """Return the model's name below models/preprocessors, else the last part of its path: no other folder names appear."""
    path, root = real_path(_model_path(name, workspace)), real_path(workspace.preprocessors)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _model_path(name: str, workspace: Workspace) -> Path:
    """Return the path below models/preprocessors if the name exists there, else `name` as a path."""
    path = workspace.preprocessors / name
    return path if not leads_out(name) and os.path.lexists(path) else resolve_path(name)


def _models_in(folder: Path) -> list[Path]:
    """Return the .onnx files of a folder, sorted by name."""
    return [folder / name for name in sorted(os.listdir(folder)) if name.lower().endswith(".onnx")]


def _kind_of_file(file: Path) -> str:
    """Return the kind of an .onnx file (see `kind_of`). Raises ProblemsError if it is damaged or too large."""
    return kind_of(check_onnx(file, ABOUT))


def _only_model(folder: Path) -> Path:
    """Return the folder's model.onnx, else its only .onnx file apart from person detectors.

    Raises ProblemsError if there are several or none.
    """
    files = _models_in(folder)
    preferred = [file for file in files if file.name == "model.onnx"]
    if len(files) > 1 and not preferred:
        files = [file for file in files if _kind_of_file(file) != DETECTOR] or files
    if preferred or len(files) == 1:
        return (preferred or files)[0]
    what = f"The folder contains {len(files)} ONNX models" if files else "The folder contains no ONNX model"
    raise ProblemsError.one(what, str(folder), "choose the .onnx file itself", f"{ABOUT}.none")


def _detector_of(file: Path, profile: Profile) -> Path | None:
    """Return the person detector for a pose model: the file that the profile names, else the only one in its folder, or None.

    Raises ProblemsError if there are several.
    """
    if profile.detector:
        detector = file.with_name(profile.detector)
        check_regular(detector)
        check_onnx(detector, ABOUT)
        return detector
    detectors = [each for each in _models_in(file.parent) if each != file and _kind_of_file(each) == DETECTOR]
    if len(detectors) > 1:
        what = f"The folder contains {len(detectors)} person detectors ({', '.join(each.name for each in detectors)[:200]})"
        fix = 'name one as "detector" in profile.json'
        raise ProblemsError.one(what, str(file.parent), fix, f"{ABOUT}.detectors")
    return detectors[0] if detectors else None
