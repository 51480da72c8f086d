"""Profiles of taggers: files, input and output of each. A folder with another tagger can have a profile.json."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from core.settings.captioning.tagger import FLOOR

FIX = "write it as docs/taggers.md says"
Numbers = tuple[float, float, float]
Deviations = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Color = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]
CATEGORIES = ("general", "character", "copyright", "artist", "meta", "model", "quality", "rating", "year")


class Profile(BaseModel):
    """The files, preprocessing and output of a tagger.

    repo         owner/name on the hub; empty for a user's model
    files        files to download in addition to `model` and `labels`
    labels       file with the labels; empty if they are in the model's metadata
    label_kind   format of the labels, see labels.py
    size         side of the input in pixels, if the model does not fix it
    scale        "255": values of 0 to 255; "1": divided by 255, then (value - mean) / std
    pad          "square": padded to a square with pad_color, then resized; "edge": resized to fit, border pixels repeated; "stretch"
    output       index or name of the output
    sigmoid      whether it holds logits
    thresholds   default threshold by category
    megabytes    size of the download
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    title: str = Field(default="", max_length=100)
    repo: str = Field(default="", max_length=200)
    model: str = "model.onnx"
    labels: str = "selected_tags.csv"
    label_kind: Literal["csv", "mapping", "metadata"] = "csv"
    files: tuple[str, ...] = Field(default=(), max_length=20)
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    size: int = Field(default=448, ge=16, le=4096)
    channels: Literal["BGR", "RGB"] = "BGR"
    scale: Literal["255", "1"] = "255"
    mean: Numbers = (0.0, 0.0, 0.0)
    std: Deviations = (1.0, 1.0, 1.0)
    pad: Literal["square", "edge", "stretch"] = "square"
    pad_color: Color = (255, 255, 255)
    resample: Literal["bicubic", "bilinear", "lanczos", "area"] = "bicubic"
    output: int | str = 0
    sigmoid: bool = False
    thresholds: dict[str, Annotated[float, Field(ge=FLOOR, le=2)]] = {"general": 0.35, "character": 0.85}
    license: str = Field(default="", max_length=100)
    megabytes: int = Field(default=0, ge=0)

    @field_validator("model", "labels", "files")
    @classmethod
    def _check_file_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Refuse file names that lead out of the model's folder."""
        for name in [value] if isinstance(value, str) else value:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or re.search(r'[\\:*?"<>|\0]', name):
                raise ValueError("names a file outside the model's folder")
        return value

    @field_validator("thresholds")
    @classmethod
    def _check_categories(cls, value: dict[str, float]) -> dict[str, float]:
        """Refuse thresholds of unknown categories."""
        if unknown := set(value) - set(CATEGORIES):
            raise ValueError(f"has unknown categories: {', '.join(sorted(unknown))}")
        return value

    @property
    def required_files(self) -> tuple[str, ...]:
        """The files that the tagger's folder must have."""
        return tuple(name for name in (self.model, self.labels, *self.files) if name)

    @property
    def folder_name(self) -> str:
        """Name of the folder that the repository is downloaded to."""
        return self.repo.replace("/", "_")

    @property
    def page(self) -> str:
        """URL of the model's page."""
        return f"https://huggingface.co/{self.repo}"


def _wd(name: str, title: str, megabytes: int) -> Profile:
    """Return the profile of a WD tagger."""
    return Profile(title=title, repo=f"SmilingWolf/{name}", license="Apache-2.0", megabytes=megabytes)


# WD v2 and v3: NHWC, BGR, 0..255, probabilities (reference: captioning.md 4.2 and 4.3).
WD = (
    _wd("wd-swinv2-tagger-v3", "WD SwinV2 v3", 467),
    _wd("wd-vit-tagger-v3", "WD ViT v3", 379),
    _wd("wd-convnext-tagger-v3", "WD ConvNeXt v3", 395),
    _wd("wd-vit-large-tagger-v3", "WD ViT-Large v3", 1260),
    _wd("wd-eva02-large-tagger-v3", "WD EVA02-Large v3", 1260),
    _wd("wd-v1-4-moat-tagger-v2", "WD 1.4 MOAT v2", 326),
    _wd("wd-v1-4-swinv2-tagger-v2", "WD 1.4 SwinV2 v2", 466),
    _wd("wd-v1-4-convnextv2-tagger-v2", "WD 1.4 ConvNeXtV2 v2", 389),
    _wd("wd-v1-4-convnext-tagger-v2", "WD 1.4 ConvNeXt v2", 389),
    _wd("wd-v1-4-vit-tagger-v2", "WD 1.4 ViT v2", 373),
    _wd("wd-v1-4-vit-tagger", "WD 1.4 ViT v1", 373),
    _wd("wd-v1-4-convnext-tagger", "WD 1.4 ConvNeXt v1", 389),
)
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
RGB: dict[str, Any] = {"layout": "NCHW", "channels": "RGB", "scale": "1"}
CL = tuple(
    Profile(
        title=f"cl_tagger {version}",
        repo="cella110n/cl_tagger",
        model=f"{folder}/{file}",
        labels=f"{folder}/tag_mapping.json",
        label_kind="mapping",
        **RGB | HALF | {"channels": "BGR"},
        sigmoid=True,
        thresholds={"general": 0.55, "character": 0.6},
        license="Apache-2.0",
        megabytes=1400,
    )
    for version, folder, file in (
        ("1.02", "cl_tagger_1_02", "model.onnx"),
        ("1.01", "cl_tagger_1_01", "model_optimized.onnx"),
    )
)
_CAMIE: dict[str, Any] = RGB | {
    "label_kind": "mapping",
    "size": 512,
    "resample": "lanczos",
    "sigmoid": True,
    "license": "GPL-3.0",
}
CAMIE = (
    Profile(
        title="Camie v2",
        repo="Camais03/camie-tagger-v2",
        model="camie-tagger-v2.onnx",
        labels="camie-tagger-v2-metadata.json",
        **_CAMIE,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        pad_color=(124, 116, 104),
        output=1,  # the refined of its two heads
        thresholds={"general": 0.5, "character": 0.6},
        megabytes=797,
    ),
    Profile(
        title="Camie v1",
        repo="Camais03/camie-tagger",
        model="model_initial.onnx",
        labels="model_initial_metadata.json",
        **_CAMIE,
        pad_color=(0, 0, 0),
        thresholds={"general": 0.35, "character": 0.6},
        megabytes=864,
    ),
)
PIXAI = Profile(
    title="PixAI 0.9",
    repo="deepghs/pixai-tagger-v0.9-onnx",
    **RGB | HALF,
    pad="stretch",
    resample="bilinear",
    output="prediction",
    thresholds={"general": 0.3, "character": 0.85},
    license="Apache-2.0",
    megabytes=1271,
)
DEEPDANBOORU = Profile(
    title="DeepDanbooru",
    repo="skytnt/deepdanbooru_onnx",
    model="deepdanbooru.onnx",
    labels="",
    label_kind="metadata",
    size=512,
    channels="RGB",
    scale="1",
    pad="edge",
    resample="area",
    thresholds={"general": 0.5},
    license="MIT",
    megabytes=640,
)


def _key(profile: Profile) -> str:
    """Return the value of the setting that selects a tagger: its repository, followed by the model's folder if there are several."""
    return "/".join(part for part in (profile.repo, str(PurePosixPath(profile.model).parent).strip(".")) if part)


PROFILES = {_key(profile): profile for profile in (*WD, *CL, *CAMIE, PIXAI, DEEPDANBOORU)}
