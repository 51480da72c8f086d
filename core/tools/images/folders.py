"""Shared code of the image tools: writes copies of all images of a folder, with captions, and reports them."""

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from core.control.detectors.mtcnn import weights_folder
from core.dataset.captions.files import SidecarIndex
from core.dataset.images.colors import WHITE
from core.dataset.images.opening import BrokenImage, DecodedImage
from core.dataset.sources.files import CAPTION_EXTENSIONS, is_image, is_junk, printable, split_label, walk_folders
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors, write_errors
from core.record.regular import impossible_path
from core.record.run_about import others_run_problem
from core.record.units import count
from core.record.workspace import Workspace, display_path, typed_path
from core.settings.tools.images import (
    CaptionedCopySettings,
    CopySettings,
    EncodedCopySettings,
    FaceSettings,
    FolderSettings,
    NumberSettings,
    ResizeSettings,
)
from core.tools.files import image_folders

_LOSSLESS = 100


class Skip(Exception):
    """An image is left out. The message is a predicate that follows the image's name: "is a mask"."""


@dataclass(frozen=True)
class Copy:
    """A copy to write.

    stem     file name without extension
    format   extension, which is also the encoding of pixels
    image    pixels to encode, or a file to copy byte for byte
    """

    stem: str
    image: DecodedImage | Path
    format: str


CopiesOf = Callable[[Path], tuple[list[Copy], list[str]]]  # image -> (its copies, what was left out of it and why)


@dataclass(frozen=True)
class FolderPlan:
    """The plan of an image tool. `folder`: the images; `output`: folder for the copies; `title`: the tool's."""

    title: str
    folder: Path
    output: Path

    def __str__(self) -> str:
        return f"{self.title}: from {self.folder} to {self.output}"


@dataclass
class Copies:
    """The result of an image tool.

    skipped    (image, reason)
    captions   number of copied caption files
    others     number of files in the folder that are neither images nor captions
    """

    output: Path
    written: list[Path] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    captions: int = 0
    others: int = 0

    def outcome(self) -> Outcome:
        """Return the outcome: a line for each skipped image, and `sentence`."""
        left_out = [{"path": printable(path), "why": why} for path, why in self.skipped]
        facts: dict[str, Any] = {
            "output": printable(self.output),
            "written": [printable(path) for path in self.written],
            "skipped": left_out,
            "captions": self.captions,
            "others": self.others,
        }
        return Outcome(
            lines=[*(f"{printable(path.name)} {why}" for path, why in self.skipped), self.sentence()], facts=facts
        )

    def sentence(self) -> str:
        """Return a summary of the numbers: saved, skipped and other files."""
        parts = [f"{count(len(self.written), 'image')} saved in {display_path(self.output)}"]
        if self.captions:
            parts.append(f"{count(self.captions, 'caption')} with them")
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        if self.others:
            parts.append(f"{count(self.others, 'other file')} not copied")
        return "; ".join(parts)


def make_copies(settings: CopySettings, plan: FolderPlan, context: JobContext, copies_of: CopiesOf) -> Outcome:
    """Write copies of every image of the folder; no file is changed or overwritten. Raises ProblemsError if there are no images.
    copies_of: (image) -> (copies to write, messages about what was left out)"""
    images, others = required_images(plan.folder, settings.recursive)
    copies, sidecars = Copies(plan.output, others=others), SidecarIndex()
    for done, path in enumerate(images):
        context.check()
        context.stage(f"{settings.tool}: {printable(path.name)}", done, len(images))
        _copy_image(path, plan.folder, copies_of, settings, copies, sidecars)
    context.stage(settings.tool, len(images), len(images))
    return copies.outcome()


def required_images(folder: Path, recursive: bool) -> tuple[list[Path], int]:
    """Return `images_of`. Raises ProblemsError if there are no images."""
    images, others = images_of(folder, recursive)
    if not images:
        fix = "choose another folder"
        raise ProblemsError.one("The folder contains no images", printable(folder), fix, "tools.no-images")
    return images, others


def plan(settings: FolderSettings, workspace: Workspace) -> FolderPlan:
    """Return the plan of a tool on an image folder. Raises ProblemsError with all problems."""
    folders, problems = image_folders([settings.folder], f"{settings.tool}.folder")
    folder = folders[0] if folders else Path()
    output = workspace.datasets / settings.tool / (folder.name or "images")
    if isinstance(settings, CopySettings) and not _in_place(settings):
        output = typed_path(settings.output) or output
        problems += _output_problems(settings, output, None if problems else folder)
    elif (problem := others_run_problem(folder, f"{settings.tool}.folder")) is not None:  # files are renamed in it
        problems.append(problem)
    if isinstance(settings, ResizeSettings) and not settings.max_resolution:
        fix = "enter at least one, such as 512"
        problems.append(Problem("No size is given", f"{settings.tool}.max_resolution", fix, code="tools.no-size-given"))
    if isinstance(settings, FaceSettings):
        problems += _face_problems(settings)
    raise_if_errors(problems)
    return FolderPlan(settings.tool, folder, output)


def _in_place(settings: CopySettings) -> bool:
    """Return whether the tool renames files instead of copying them."""
    return isinstance(settings, NumberSettings) and settings.number_in_place


def _output_problems(settings: CopySettings, output: Path, folder: Path | None) -> list[Problem]:
    """Return the problem of an output folder that cannot be used, or lies in the image folder (None: unknown)."""
    if folder is not None and _inside(output, folder):
        what = "Copies would be written into the image folder itself"
        fix = "choose another folder, or the copies would be trained too"
        return [Problem(what, f"{settings.tool}.output", fix, code="tools.output-inside-folder")]
    problem = not_a_folder_problem(output, f"{settings.tool}.output") or impossible_path(
        output, f"{settings.tool}.output"
    )
    return [] if problem is None else [problem]


def not_a_folder_problem(output: Path, where: str) -> Problem | None:
    """Return the problem of an output folder that is a file; else None. `where`: the setting."""
    if not os.path.exists(output) or output.is_dir():
        return None
    what = f"The output folder '{printable(output)}' is a file"
    return Problem(what, where, "choose another", code="tools.output-is-file")


def _face_problems(settings: FaceSettings) -> list[Problem]:
    """Return problems of the face crop: incompatible settings, missing weights of the detector."""
    problems: list[Problem] = []
    if settings.face_resize != "none" and settings.face_crop != "size":
        what = "Faces can only be scaled with a crop of a fixed size"
        fix = f"set {settings.tool}.face_crop to size, or {settings.tool}.face_resize to none"
        problems.append(Problem(what, f"{settings.tool}.face_resize", fix, code="tools.face-scaling-needs-size"))
    collected(problems, weights_folder)
    return problems


def _inside(path: Path, folder: Path) -> bool:
    """Return whether `path` is `folder` or inside it, links followed."""
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return inner == outer or outer in inner.parents


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key for names that orders numbers by value: fox2 before fox10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    ]


def images_of(folder: Path, recursive: bool) -> tuple[list[Path], int]:
    """Return (images in natural order, folder by folder; number of files that are neither images nor captions)."""
    paths: list[Path] = []
    others = 0
    for parent, folders, names in walk_folders(folder):
        folders[:] = sorted(name for name in folders if recursive and not is_junk(name))
        names = [name for name in names if not is_junk(name)]
        images = [name for name in names if is_image(parent / name, name)]
        others += sum(os.path.splitext(name)[1].lower() not in CAPTION_EXTENSIONS for name in names) - len(images)
        paths += [parent / name for name in sorted(images, key=lambda name: (natural_order(name), name))]
    return paths, others


# ---- one image


def _copy_image(
    path: Path, folder: Path, copies_of: CopiesOf, settings: CopySettings, report: Copies, sidecars: SidecarIndex
) -> None:
    """Write the copies of one image with its captions, and add them, or the reasons for skipping, to `report`. Raises ProblemsError for
    a write error.

    folder      the image folder, below which `path` lies
    copies_of   as in `make_copies`
    """
    try:
        copies, left_out = copies_of(path)
    except (Skip, BrokenImage) as reason:
        report.skipped.append((path, str(reason)))
        return
    report.skipped += [(path, why) for why in left_out]
    base, label = split_label(path.stem)
    for copy in copies:
        stem = copy.stem
        if label:  # a-masklabel+512x512 becomes a+512x512-masklabel, the name of its image with the label
            stem = (base + stem.removeprefix(path.stem) if stem.startswith(path.stem) else stem) + label
        target = report.output / path.parent.relative_to(folder) / f"{stem}.{copy.format}"
        if os.path.lexists(target):
            why = "would overwrite" if target in report.written else "already exists as"
            report.skipped.append((path, f"{why} {printable(target.name)}"))
            continue
        with write_errors("A copy could not be written", printable(target), "what is written is kept"):
            quality = settings.quality if isinstance(settings, EncodedCopySettings) else _LOSSLESS
            _write(copy.image, target, copy.format, quality)
            report.written.append(target)
            if isinstance(settings, CaptionedCopySettings) and settings.copy_captions and not label:
                report.captions += _copy_captions(path, target, sidecars.of(path))


def _write(image: DecodedImage | Path, target: Path, ending: str, quality: int) -> None:
    """Write an image as JPEG, WebP or PNG by `ending`, or copy a file. `quality`: of JPEG and WebP, 100 is lossless WebP."""
    with atomic.open_atomic(target) as temporary:
        if isinstance(image, Path):
            shutil.copyfile(image, temporary)
            return
        pixels = image.colors
        if ending == "jpg":
            pixels = image.on(WHITE) if image.alpha else pixels
            # Above 95, chroma is not subsampled: such a quality is chosen for every detail.
            pixels.save(temporary, "JPEG", quality=quality, subsampling=0 if quality > 95 else 2)
            return
        if image.alpha is not None:
            pixels = Image.merge("RGBA", (*pixels.split(), image.alpha))
        if ending == "webp":
            pixels.save(temporary, "WEBP", quality=quality, lossless=quality == _LOSSLESS, exact=True)
        else:
            pixels.save(temporary, "PNG")


def _copy_captions(path: Path, target: Path, sidecars: Sequence[str]) -> int:
    """Copy an image's caption files next to its copy `target`, byte for byte; return their number.

    Of each extension the first of `sidecars` is copied (files with the image's stem, the caption file first). a.txt becomes a.txt
    next to a.png, or a.png.txt if a.txt has another text. Existing files are kept.
    """
    captions: dict[str, Path] = {}
    for name in sidecars:
        ending, caption = os.path.splitext(name)[1].lower(), path.with_name(name)
        if ending in CAPTION_EXTENSIONS and caption.is_file():
            captions.setdefault(ending, caption)
    copied = 0
    for ending, caption in captions.items():
        new = target.with_name(target.stem + ending)
        if os.path.exists(new) and not filecmp.cmp(caption, new, shallow=False):
            new = target.with_name(target.name + ending)  # the other one is that of a copy of the same stem
        if not os.path.lexists(new):
            with atomic.open_atomic(new) as temporary:
                shutil.copyfile(caption, temporary)
            copied += 1
    return copied
