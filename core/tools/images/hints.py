"""Shared code of the tools that make control images for a folder of images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from core.control.hints import black_hints
from core.dataset.images.opening import BrokenImage, DecodedImage, open_decoded
from core.dataset.images.resize import resize
from core.dataset.sources.files import printable, split_label
from core.formats.onnx.process import ModelGone
from core.record import atomic
from core.record.cancel import Cancelled
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, write_errors
from core.record.run_folder import safe_name
from core.record.units import count
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.tools.hints import MadeHintsSettings
from core.tools.images import folders
from core.tools.images.folders import FolderPlan

Hint = Callable[[DecodedImage, str], np.ndarray]  # (image, its path below the folder) -> RGB uint8 [H, W, 3]


@dataclass
class Report:
    """The result of a tool that makes control images.

    existing   number of control images that already existed
    skipped    (path, reason)
    black      names of images with an all-black control image
    """

    images: Path
    output: Path
    written: list[Path] = field(default_factory=list)
    existing: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    previews: list[dict[str, Any]] = field(default_factory=list)
    black: list[str] = field(default_factory=list)

    def outcome(self, state: str = "done") -> Outcome:
        """Return the outcome. `state`: "done" or "stopped"."""
        facts: dict[str, Any] = {
            "output": printable(self.output),
            "written": [printable(path) for path in self.written],
            "kept": self.existing,
            "skipped": [{"path": path, "why": why} for path, why in self.skipped],
            "black": self.black,
        }
        lines = [f"{path} {why}" for path, why in self.skipped]
        if self.previews:
            facts |= {"previews": self.previews}
            return Outcome(state, [*(each["name"] for each in self.previews), *lines, "nothing was written"], facts)
        if self.written or self.existing:
            facts["pairs"] = {"images": printable(self.images), "control": printable(self.output)}
        parts = [f"{count(len(self.written), 'control image')} saved in {display_path(self.output)}"]
        parts += [f"{self.existing} were there already"] if self.existing else []
        parts += [f"{count(len(self.skipped), 'image')} skipped"] if self.skipped else []
        parts += [f"{len(self.black)} all black"] if self.black else []
        parts += ["start again to make the rest"] if state == "stopped" else []
        return Outcome(state, [*lines, "; ".join(parts)], facts)


def folder_plan(settings: MadeHintsSettings, preprocessor: str, workspace: Workspace) -> FolderPlan:
    """Return the folders of a job. Raises ProblemsError as `folders.plan`.
    preprocessor: its name, or the model's, as part of the default output"""
    name = Path(os.path.abspath(resolve_path(settings.folder))).name if settings.folder else ""
    default_output = workspace.datasets / "control" / f"{name or 'images'}_{safe_name(preprocessor)}"
    return folders.plan(settings.model_copy(update={"output": settings.output or str(default_output)}), workspace)


def make_control_images(settings: MadeHintsSettings, plan: FolderPlan, context: JobContext, hint: Hint) -> Outcome:
    """Write a control image for each image; a preview writes those of the first images to the run folder.

    hint   (image, path below the folder) -> RGB uint8 [H, W, 3]
    A stopped job that is started again makes the missing ones.
    """
    folder = plan.folder
    images, _ = folders.required_images(folder, settings.recursive)
    report = Report(folder, plan.output)
    to_make = _targets(images, folder, settings, report)
    try:
        for done, (path, target) in enumerate(to_make[: settings.preview]):
            context.check()
            context.stage(f"making control images: {printable(path.name)}", done, len(to_make[: settings.preview]))
            control = _hint_of(path, folder, hint, settings, report)
            if control is not None and not control.any():
                report.black.append(_name(path, folder))
            if control is not None and settings.preview is None:
                write_hint(control, target)
                report.written.append(target)
            elif control is not None:
                preview = context.folder.path / "preview" / f"{done}.png"
                write_hint(control, preview)
                paths = {"image": str(path), "hint": str(preview), "name": _name(path, folder)}
                report.previews.append(paths | {"caption": "", "before": "", "tags": []})
    except Cancelled:
        if not report.written:
            raise
        return report.outcome("stopped")
    finally:
        atomic.sync_all(report.written)
        if report.black:
            context.warn(black_hints(report.black, f"{type(settings).tool}.folder"))
    return report.outcome()


def _targets(
    images: Sequence[Path], folder: Path, settings: MadeHintsSettings, report: Report
) -> list[tuple[Path, Path]]:
    """Return (image, path of its control image) for the control images to make, without masks and existing ones."""
    sources: dict[Path, Path] = {}
    to_make = []
    for path in images:
        if split_label(path.stem)[1]:
            continue  # a mask or control image itself
        target = (report.output / path.relative_to(folder)).with_suffix(".png")
        if target in sources:
            report.skipped.append((_name(path, folder), f"has the name of {sources[target].name}"))
            continue
        sources[target] = path
        if settings.existing == "keep" and settings.preview is None and os.path.lexists(target):
            report.existing += 1
            continue
        to_make.append((path, target))
    return to_make


def _hint_of(path: Path, folder: Path, hint: Hint, settings: MadeHintsSettings, report: Report) -> np.ndarray | None:
    """Return the control image of an image, RGB uint8 [H, W, 3]; None for a skipped image, which is added to `report`."""
    try:
        return hint(_at_resolution(open_decoded(path), settings.hint_resolution), _name(path, folder))
    except BrokenImage as error:
        report.skipped.append((_name(path, folder), str(error)))
    except ModelGone:
        raise
    except ProblemsError as error:
        if error.codes != ["hint-model.size"]:
            raise
        report.skipped.append((_name(path, folder), error.problems[0].what))
    return None


def _at_resolution(opened: DecodedImage, side: int | None) -> DecodedImage:
    """Return the image downscaled to a shorter side of `side` pixels; unchanged if it is smaller or `side` is None."""
    width, height = opened.colors.size
    if side is None or min(width, height) <= side:
        return opened
    size = (round(width * side / min(width, height)), round(height * side / min(width, height)))
    alpha = resize(opened.alpha, size) if opened.alpha else None
    return DecodedImage(resize(opened.colors, size), alpha)


def write_hint(hint: np.ndarray, target: Path) -> None:
    """Write a control image, RGB uint8 [H, W, 3], as PNG, in grayscale if it has no colors. Raises ProblemsError if it cannot be
    written."""
    gray = (hint[..., 0] == hint[..., 1]).all() and (hint[..., 0] == hint[..., 2]).all()
    image = Image.fromarray(np.ascontiguousarray(hint[..., 0]) if gray else hint)
    with write_errors("A control image could not be written", printable(target), "what is written is kept"):
        with atomic.open_atomic(target, synced=False) as temporary:
            image.save(temporary, "PNG")


def _name(path: Path, folder: Path) -> str:
    """Return an image's path below the folder, for messages."""
    return printable(path.relative_to(folder).as_posix())
