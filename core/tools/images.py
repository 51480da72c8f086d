"""The image tools: what is asked for all images of a folder, with a report of what was written and what was not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from core.dataset.colors import WHITE
from core.dataset.files import CAPTION_EXTENSIONS, is_image_name, is_junk, printable
from core.dataset.opening import BrokenImage, Opened, open_decoded
from core.dataset.trash import split_label
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, unwritten
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.image_tools import ImageToolSettings
from core.settings.job import ImagesJob
from core.tools.faces import FaceDetector, weights_folder
from core.tools.image_copies import Made, Skip, converted_copy, cropped_copy, resized_copies
from core.tools.image_edges import edge_image
from core.tools.image_faces import Detector, face_copies
from core.tools.image_numbers import natural_order, numbered_stems, rename_back, rename_in_place

OnEvent = Callable[..., None]  # on_event(kind, **facts): "progress": text, done, total; "log": text, level, fix
Tool = Callable[[Path], tuple[list[Made], list[str]]]

_LOSSLESS = 100


@dataclass
class ToolReport:
    """What a tool did. skipped: (image, why); captions: caption files copied; others: files that are no images."""

    output: Path
    written: list[Path] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    captions: int = 0
    others: int = 0
    undo: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "output": printable(self.output),
            "written": [printable(path) for path in self.written],
            "skipped": [{"path": printable(path), "why": why} for path, why in self.skipped],
            "captions": self.captions,
            "others": self.others,
            "undo": self.undo is not None,
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        parts = [f"{len(self.written)} images written to {display_path(self.output)}"]
        if self.captions:
            parts.append(f"{self.captions} captions with them")
        if self.skipped:
            parts.append(f"{len(self.skipped)} left out")
        if self.others:
            parts.append(f"{self.others} files that are no images stayed where they are")
        return "; ".join(parts)


def run_images(
    job: ImagesJob,
    workspace: Workspace,
    on_event: OnEvent = lambda kind, **facts: None,
    cancel: CancelToken | None = None,
    detector: Detector | None = None,
) -> ToolReport:
    """Do what the job asks for. Sources are never changed, but by numbering in place, which has a way back.

    detector   finds faces; by default the one that is installed
    """
    asked = job.images
    folder, output = check_images(job, workspace)
    if asked.action == "undo_number":
        count = rename_back(folder)
        on_event("log", text=f"{count} files have their earlier names again", level="info", fix="")
        return ToolReport(folder)
    images, others = images_of(folder, asked.recursive)
    if not images:
        raise ProblemsError.one("There is no image in the folder", printable(folder), "choose another folder")
    if asked.action == "number" and asked.number_in_place:
        return _in_place(images, others, asked, folder, on_event)
    report = ToolReport(output, others=others)
    tool = tool_for(asked, images, detector)
    for done, path in enumerate(images):
        if cancel:
            cancel.check()
        on_event("progress", text=f"{asked.action}: {printable(path.name)}", done=done, total=len(images))
        _one(path, folder, tool, asked, report)
    on_event("progress", text=asked.action, done=len(images), total=len(images))
    _tell(report, on_event)
    return report


def check_images(job: ImagesJob, workspace: Workspace) -> tuple[Path, Path]:
    """(folder, where copies go). ProblemsError lists everything that is wrong before anything is written."""
    asked = job.images
    problems: list[Problem] = []
    text = asked.folder.strip().strip("\"'")
    folder = Path(os.path.abspath(resolve_path(text))) if text else Path()
    if not text:
        problems.append(Problem("No folder is chosen", "images.folder", "choose the folder with the images"))
    elif not os.path.isdir(folder):
        fix = "check the spelling, or choose another folder"
        problems.append(Problem("The image folder does not exist", printable(folder), fix))
    output = workspace.datasets / asked.action / (folder.name or "images")
    if asked.output and asked.output.strip():
        output = Path(os.path.abspath(resolve_path(asked.output.strip().strip("\"'"))))
    copies = asked.action != "undo_number" and not (asked.action == "number" and asked.number_in_place)
    if copies and text and _inside(output, folder):
        fix = "choose a folder beside it: copies among the images would train too"
        problems.append(Problem("Copies would be written into the image folder itself", "images.output", fix))
    if copies and os.path.exists(output) and not output.is_dir():
        problems.append(Problem("A file is in the place of the output folder", printable(output), "choose another"))
    if asked.action == "resize" and not asked.max_resolution:
        problems.append(Problem("No size is given", "images.max_resolution", "give at least one, such as 512"))
    if asked.action == "faces":
        if asked.face_resize != "none" and asked.face_crop != "size":
            what = "Faces can only be scaled with a window of a fixed size"
            problems.append(Problem(what, "images.face_resize", "set the window to the crop size, or scale nothing"))
        try:
            weights_folder()
        except ProblemsError as error:
            problems += error.problems
    if problems:
        raise ProblemsError(problems)
    return folder, output


def _inside(path: Path, folder: Path) -> bool:
    inner, outer = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return inner == outer or outer in inner.parents


def images_of(folder: Path, recursive: bool) -> tuple[list[Path], int]:
    """Every image in natural order, folder by folder, and how many other files lie there (captions not counted)."""
    found: list[Path] = []
    others = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not is_junk(name))
        names = [name for name in names if not is_junk(name)]
        images = [name for name in names if is_image_name(name)]
        others += sum(os.path.splitext(name)[1].lower() not in CAPTION_EXTENSIONS for name in names) - len(images)
        found += [Path(place) / name for name in sorted(images, key=lambda name: (natural_order(name), name))]
    return found, others


def tool_for(asked: ImageToolSettings, images: Sequence[Path], detector: Detector | None) -> Tool:
    """image -> (its copies, what was left out of it and why)."""
    if asked.action == "resize":
        return lambda path: resized_copies(path, asked)
    if asked.action == "crop":
        return lambda path: ([cropped_copy(path, asked)], [])
    if asked.action == "convert":
        return lambda path: ([converted_copy(path, asked)], [])
    if asked.action == "edges":
        return lambda path: ([_edges(path, asked)], [])
    if asked.action == "faces":
        finder = detector or FaceDetector()
        return lambda path: face_copies(_no_label(path), asked, finder)
    stems = numbered_stems([path for path in images if not split_label(path.stem)[1]], asked)
    by_stem = {(path.parent, path.stem): stem for path, stem in stems.items()}
    return lambda path: ([_numbered(path, by_stem)], [])


def _no_label(path: Path) -> Path:
    if split_label(path.stem)[1]:
        raise Skip("is a mask or control image")
    return path


def _edges(path: Path, asked: ImageToolSettings) -> Made:
    image = open_decoded(_no_label(path)).on(WHITE)
    return Made(path.stem, Opened(edge_image(image, asked.edge_low, asked.edge_high), None), "png")


def _numbered(path: Path, stems: dict[tuple[Path, str], str]) -> Made:
    """A copy, byte for byte, under its number; a mask gets the number of its image."""
    base, label = split_label(path.stem)
    stem = stems.get((path.parent, base if label else path.stem))
    if stem is None:
        raise Skip("is a mask or control image without its image")
    if not os.access(path, os.R_OK):
        raise Skip("may not be read, or is a link that leads nowhere")
    # The driver puts the label back behind the stem.
    return Made(stem, path, path.suffix[1:])


# ---- one image


def _one(path: Path, folder: Path, tool: Tool, asked: ImageToolSettings, report: ToolReport) -> None:
    try:
        made, left_out = tool(path)
    except (Skip, BrokenImage) as reason:
        report.skipped.append((path, str(reason)))
        return
    report.skipped += [(path, why) for why in left_out]
    base, label = split_label(path.stem)
    for copy in made:
        stem = copy.stem
        if label:  # a-masklabel+512x512 is to be a+512x512-masklabel, or nobody finds it
            stem = (base + stem.removeprefix(path.stem) if stem.startswith(path.stem) else stem) + label
        target = report.output / path.parent.relative_to(folder) / f"{stem}.{copy.format}"
        if os.path.lexists(target):
            why = "would overwrite" if target in report.written else "is there already as"
            report.skipped.append((path, f"{why} {printable(target.name)}"))
            continue
        try:
            _write(copy.image, target, copy.format, asked.quality)
            report.written.append(target)
            if asked.copy_captions and asked.action != "edges" and not label:
                report.captions += _copy_captions(path, target)
        except OSError as error:
            kept = "what is written is kept"
            raise unwritten(error, "A copy could not be written", printable(target), kept) from error


def _write(image: Opened | Path, target: Path, ending: str, quality: int) -> None:
    with atomic.open_atomic(target) as temporary:
        if isinstance(image, Path):
            shutil.copyfile(image, temporary)
            return
        pixels = image.colors
        if ending == "jpg":
            pixels = image.on(WHITE) if image.alpha else pixels
            # Above 95 colors are kept at full size too, as for whom every detail counts.
            pixels.save(temporary, "JPEG", quality=quality, subsampling=0 if quality > 95 else 2)
            return
        if image.alpha is not None:
            pixels = Image.merge("RGBA", (*pixels.split(), image.alpha))
        if ending == "webp":
            pixels.save(temporary, "WEBP", quality=quality, lossless=quality == _LOSSLESS, exact=True)
        else:
            pixels.save(temporary, "PNG")


def _copy_captions(path: Path, target: Path) -> int:
    """Each caption file of the image, byte for byte, under the copy's name; what is there already stays."""
    copied = 0
    for ending in CAPTION_EXTENSIONS:
        for name in (path.stem + ending, path.stem + ending.upper()):
            caption, new = path.with_name(name), target.with_name(target.stem + ending)
            if caption.is_file() and not os.path.lexists(new):
                with atomic.open_atomic(new) as temporary:
                    shutil.copyfile(caption, temporary)
                copied += 1
    return copied


def _in_place(
    images: Sequence[Path], others: int, asked: ImageToolSettings, folder: Path, on_event: OnEvent
) -> ToolReport:
    own = [path for path in images if not split_label(path.stem)[1]]
    token, count = rename_in_place(own, asked, folder)
    said = f"{count} files renamed; undo_number takes it back" if token else "All files have these names already"
    on_event("log", text=said, level="info", fix="")
    return ToolReport(folder, others=others, undo=token)


def _tell(report: ToolReport, on_event: OnEvent) -> None:
    for path, why in report.skipped:
        on_event("log", text=f"{printable(path.name)} {why}", level="warning", fix="")
    on_event("log", text=report.sentence(), level="info", fix="")


def use_images(job: ImagesJob, context: Any) -> str:
    """The job on the engine."""

    def on_event(kind: str, **facts: Any) -> None:
        context.check()
        if kind == "progress":
            context.stage(str(facts["text"]), int(facts["done"]), int(facts["total"]))
        else:
            context.say(str(facts["text"]), str(facts["level"]), str(facts["fix"]))

    run_images(job, context.workspace, on_event, context.token)
    return "done"
