"""Masks painted over the images of the dataset: the server's side of assets/masks.js, which opens assets/painter.js.

A person's own masks are what painting starts from, and are never written to. What is painted goes into a folder of our own
(core/dataset/sources/painted.py), which training uses once that is chosen.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from core.dataset.buckets.batches import Placed
from core.dataset.captions.history import History
from core.dataset.images import painting
from core.dataset.sources.conditioning import conditioning_folder
from core.dataset.sources.files import plain_form, printable
from core.dataset.sources.folders import folder_of
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.painted import existing_masks, painted_folder, refusal, stem_below
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path
from core.settings.dataset.concepts import Concept, concepts_of
from core.settings.dataset.source import Source
from core.settings.presets.files import to_values
from tabs.captions.edits import Edits
from tabs.context import Page
from tabs.dataset.concepts import entries_of
from tabs.dataset.questions import change_folders

SHOWN = 2048  # longer side of the image that is painted over
ORIGINS = {
    "painted": "",
    "folder": "Starts from the image's mask in the mask folder, which stays as it is.",
    "beside": "Starts from the mask file next to the image, which stays as it is.",
    "alpha": "Starts from the image's transparency, which stays as it is.",
    "": "No mask yet: paint what should train, or erase what should not.",
}


@dataclass(frozen=True)
class Spot:
    """Where the painted mask of an image belongs.

    images   the folder of the settings      folder   its masks      stem   the mask's path in it, without .png
    """

    image: ImageInfo
    images: Path
    folder: Path
    stem: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stem}.png"

    @property
    def version(self) -> str:
        """Changes with each save; "" where nothing has been painted."""
        try:
            found = os.stat(self.path)
        except OSError:
            return ""
        return f"{found.st_mtime_ns:x}-{found.st_size:x}"


class Masks:
    """Answers atelier/masks. edits: knows the images by their keys."""

    def __init__(self, page: Page, edits: Edits):
        self.page, self.edits, self._history = page, edits, History(page.workspace.captions)
        self._lock = threading.Lock()
        self._twins: tuple[Any, dict[str, set[Path]]] = (None, {})  # of a report: path without extension -> images
        self._acts: dict[str, Callable[[Placed, Spot, dict[str, Any]], dict[str, Any]]] = {
            "look": lambda placed, spot, asked: self.look(placed, spot),
            "open": lambda placed, spot, asked: self.open(spot),
            "save": self.save,
            "use": lambda placed, spot, asked: self.use(placed, spot),
        }

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One question of the script. What goes wrong is answered as `problems`; then nothing was changed."""
        try:
            act = self._acts.get(str(asked.get("act", "")))
            placed = self.edits.known(str(asked.get("key", "")))
            if act is None or placed is None:
                what, fix = "The image is not in the chosen folder", "choose its folder again"
                raise ProblemsError.one(what, "Captions", fix, "mask.unknown-image")
            return act(placed, self._spot(placed), asked)
        except ProblemsError as error:
            return {"problems": [problem.to_dict() for problem in error.problems]}

    # -- what the script asks

    def look(self, placed: Placed, spot: Spot) -> dict[str, Any]:
        """How training treats the image now. offer: there are painted masks that it does not use."""
        concept = self._in_force(placed)
        chosen = conditioning_folder(concept.images.conditioning_data_dir)
        uses = concept.images.masked_loss and chosen is not None and _same(chosen, spot.folder)
        whole = "transparent areas do not train" if concept.images.alpha_mask else "the whole image trains"
        if painting.mask_in(spot.folder, spot.stem):
            line = "Painted mask, used for training." if uses else "Painted mask, not used for training."
        elif uses or placed.image.conditioning is None:
            line = f"No mask: {whole}."
        elif concept.images.masked_loss:
            line = f"Mask from {printable(placed.image.conditioning.parent.name)}, used for training."
        else:
            line = f"Mask not used, as masked loss is off: {whole}."
        return {"line": line, "offer": spot.folder.is_dir() and not uses and not concept.control}

    def open(self, spot: Spot) -> dict[str, Any]:
        """What the painter needs. mask: a gray PNG of the image's size as an address, "" for none."""
        image, there = spot.image, painting.mask_in(spot.folder, spot.stem)
        start = painting.start_of(image, there, self.page.roots.holds)
        note = ORIGINS[start.origin]
        if start.unread:
            note = f"The mask that is there {start.unread}. Saving a painted one replaces it for training."
        return {
            "title": f"Mask of {printable(image.relative)}",
            "note": note,
            "image": {
                "url": self.page.thumb_url(image.path, SHOWN),
                "name": printable(image.relative),
                "width": image.width,
                "height": image.height,
            },
            "mask": png_address(start.mask) if start.mask is not None else "",
            "version": spot.version,
        }

    def save(self, placed: Placed, spot: Spot, asked: dict[str, Any]) -> dict[str, Any]:
        """Write a painted mask. over: the version that it was painted over, "" for none; always: write over any other."""
        mask = painting.decoded_mask(png_bytes(asked.get("png"), "Captions"), spot.image)
        with self._lock:
            if spot.version != asked.get("over") and not asked.get("always"):
                what = "Another window has saved this mask in the meantime"
                fix = "save again to replace it, or close this one to keep it"
                raise ProblemsError.one(what, printable(spot.image.relative), fix, "mask.changed-meanwhile")
            if not spot.folder.exists():
                painting.begin_folder(spot.folder, spot.images, self._existing_masks(spot))
            painting.write_mask(self._history, spot.folder, spot.stem, mask)
        seen = self.look(placed, spot)
        if not seen["offer"]:
            self.page.reading.want(now=True)
        return seen | {"said": f"Mask saved to {display_path(spot.path)}", "version": spot.version}

    def use(self, placed: Placed, spot: Spot) -> dict[str, Any]:
        """Train the folder with its painted masks, as any change of its settings."""
        if not spot.folder.is_dir():
            what, fix = "No masks have been painted for this folder", "paint one first"
            raise ProblemsError.one(what, printable(spot.images), fix, "mask.none-painted")
        if self._in_force(placed).control:
            what, fix = "The mask folder of these images holds their control images", "choose another training method"
            raise ProblemsError.one(what, printable(spot.images), fix, "mask.control-images")
        with self._lock:
            painting.add_missing(spot.folder, self._existing_masks(spot))
        chosen = {"conditioning_data_dir": display_path(spot.folder), "masked_loss": True}
        entries = [
            to_values(entry) | chosen if _is_of(entry, spot.images) else entry
            for entry in entries_of(self.page.project.job)
        ]
        change_folders(self.page.project, entries, "training with painted masks")
        self.page.reading.want(now=True)
        said = "Painted masks are used for training. Undo on Train turns this off."
        return self.look(placed, spot) | {"said": said}

    # -- where masks are

    def _spot(self, placed: Placed) -> Spot:
        """Raises ProblemsError for an image that no mask can be painted for."""
        self.page.roots.check(placed.image.path, "Captions")
        images, _ = folder_of(placed.concept.source)
        if images is None or not _plain(placed.image.path).is_relative_to(_plain(images)):
            what, fix = "The image is not in a folder of the dataset", "choose its folder on Dataset"
            raise ProblemsError.one(what, printable(placed.image.relative), fix, "mask.no-folder")
        datasets = self.page.workspace.datasets
        twins = self._same_stem(placed.image.path)
        if wrong := refusal(placed.image, twins, images, datasets) or painting.too_large(
            (placed.image.width, placed.image.height), printable(placed.image.relative)
        ):
            raise ProblemsError([wrong])
        spot = Spot(placed.image, images, painted_folder(datasets, images), stem_below(placed.image, images))
        self.page.roots.check_written(spot.path, "Captions")
        return spot

    def _same_stem(self, path: Path) -> set[Path]:
        """Images whose paths differ from this one in extension and case at most."""
        report = self.page.reading.report
        if report is not None and self._twins[0] is not report:
            found: dict[str, set[Path]] = defaultdict(set)
            for row in report.rows:
                found[_stem(row.path)].add(row.path)
            self._twins = (report, found)
        return self._twins[1].get(_stem(path), set())

    def _existing_masks(self, spot: Spot) -> dict[str, Path]:
        """Masks that images of the folder have from elsewhere; only files that this page may read."""
        report = self.page.reading.report
        placed = (*report.placed, *report.validation) if report else ()
        images = {each.image.path: each.image for each in placed if _is_of(each.concept.source, spot.images)}
        if not images:
            what, fix = "The folder is being read, or no longer chosen", "wait a moment, then save again"
            raise ProblemsError.one(what, printable(spot.images), fix, "mask.folder-not-read")
        found = existing_masks(images.values(), spot.images)
        return {name: path for name, path in found.items() if self.page.roots.holds(path)}

    def _in_force(self, placed: Placed) -> Concept:
        """The settings of the image's folder as they are now; the report may be of earlier ones."""
        of = [each for each in concepts_of(self.page.project.job) if each.source.folder == placed.concept.source.folder]
        return next((each for each in of if each.number == placed.concept.number), of[0] if of else placed.concept)


def _stem(path: Path) -> str:
    return os.path.splitext(path)[0].casefold()


def _plain(path: Path) -> Path:
    return Path(plain_form(str(path)))


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_of(entry: Source, images: Path) -> bool:
    folder, _ = folder_of(entry)
    return folder is not None and _same(folder, images)


def png_bytes(text: Any, where: str) -> bytes:
    """A painting as it was sent. Raises ProblemsError."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        fix = "reload the page and paint it again"
        raise ProblemsError([Problem("The mask upload is incomplete", where, fix, code="mask.not-base64")]) from None


def png_address(mask: Image.Image) -> str:
    """An image as its own address."""
    written = BytesIO()
    mask.save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
