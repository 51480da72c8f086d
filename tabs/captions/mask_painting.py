"""Painting of training masks. Answers assets/masks.js, which opens assets/painter.js.

Painting starts from the image's existing mask, which stays unchanged. Painted masks are stored in a separate folder
(core/dataset/sources/painted.py), which training uses once it is chosen.
"""

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
from core.dataset.report import Report
from core.dataset.sources.conditioning import conditioning_folder
from core.dataset.sources.files import plain_form, printable
from core.dataset.sources.folders import folder_of
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.painted import painted_folder, refusal, replaced_folders, stem_below
from core.record.problems import Problem, ProblemsError
from core.record.stamps import version
from core.record.workspace import display_path
from core.settings.dataset.concepts import Concept, concepts_of
from core.settings.dataset.source import Source
from core.settings.presets.files import to_values
from tabs.captions.edits import Edits
from tabs.context import Page
from tabs.dataset.concepts import entries_of
from tabs.dataset.questions import change_folders
from tabs.dataset.reading import once_per_report

IMAGE_SIZE = 2048  # longer side of the image below the mask
ORIGINS = {
    "painted": "Starts from your painted mask.",
    "folder": "Starts from the image's mask in the mask folder, which stays as it is.",
    "beside": "Starts from the mask file next to the image, which stays as it is.",
    "alpha": "Starts from the image's transparency, which stays as it is.",
    "": "No mask yet: paint what should train, or erase what should not.",
}


@dataclass(frozen=True)
class Spot:
    """Location of an image's painted mask.

    images  image folder in the settings
    folder  folder of the painted masks of `images`
    stem    path of the mask below `folder`, without .png
    """

    image: ImageInfo
    images: Path
    folder: Path
    stem: str

    @property
    def path(self) -> Path:
        """Path of the painted mask; the file may not exist."""
        return self.folder / f"{self.stem}.png"

    @property
    def version(self) -> str:
        """Text that changes with each save; "" without a painted mask."""
        return version(self.path)


class Masks:
    """Answers requests of the mask painter (atelier/masks). edits: finds images by key"""

    def __init__(self, page: Page, edits: Edits):
        self.page, self.edits, self._history = page, edits, History(page.workspace.captions, page.workspace.person)
        self._lock = threading.Lock()
        self._same_stems: tuple[Any, dict[str, set[Path]]] = (None, {})  # (report, {path without extension: images})
        self._acts: dict[str, Callable[[Placed, Spot, dict[str, Any]], dict[str, Any]]] = {
            "look": lambda placed, spot, body: self.mask_state(placed, spot),
            "open": lambda placed, spot, body: self.open(spot),
            "save": self.save,
            "use": lambda placed, spot, body: self.use(placed, spot),
        }

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a request {"act", "key": of the image} of the script: "look" by `mask_state`, "open", "save" and "use" by the methods of
        these names. Raises ProblemsError, with nothing changed."""
        act = self._acts.get(str(body.get("act", "")))
        placed = self.edits.known_image(str(body.get("key", "")))
        if act is None or placed is None:
            what, fix = "The image is not in the chosen folder", "choose its folder again"
            raise ProblemsError.one(what, "Captions", fix, "mask.unknown-image")
        return act(placed, self._spot(placed), body)

    # -- the requests

    def mask_state(self, placed: Placed, spot: Spot) -> dict[str, Any]:
        """Return {"line": text on how training masks the image now, "offer": whether to offer the folder's unused painted masks}."""
        concept = self._current_concept(placed)
        chosen = conditioning_folder(concept.images.conditioning_data_dir)
        is_used = concept.images.masked_loss and chosen is not None and _same(chosen, spot.folder)
        by_alpha = concept.images.alpha_mask and self._may_be_transparent(placed)
        default_text = "transparent areas do not train" if by_alpha else "the whole image trains"
        current, painted = placed.image.conditioning, painting.mask_in(spot.folder, spot.stem)
        if current is not None and current.is_relative_to(spot.folder):
            current = None  # of the settings or files at the last check
        if painted and is_used:
            line = "Painted mask, used for training."
        elif current is not None and concept.images.masked_loss:
            line = f"Mask from {printable(current.parent.name)}, used for training{', not the painted one' if painted else ''}."
        elif painted:
            line = "Painted mask, not used for training."
        elif current is None:
            line = f"No {'painted ' if by_alpha else ''}mask: {default_text}."
        else:
            line = f"Mask not used, as masked loss is off: {default_text}."
        return {"line": line, "offer": spot.folder.is_dir() and not is_used and not concept.control}

    def open(self, spot: Spot) -> dict[str, Any]:
        """Return {"title", "note", "image": {"url", "name", "width", "height"}, "mask", "version"} for the painter.

        "mask" is a data URL of a gray PNG of the image's size, "" for none; "version" is sent back when saving.
        """
        image, painted = spot.image, painting.mask_in(spot.folder, spot.stem)
        initial = painting.initial_mask(image, painted, self.page.roots.holds)
        note = ORIGINS[initial.origin]
        if initial.unread:
            note = f"The mask that is there {initial.unread}. Saving a painted one replaces it for training."
        return {
            "title": f"Mask of {printable(image.relative)}",
            "note": note,
            "image": {
                "url": self.page.thumb_url(image.path, IMAGE_SIZE),
                "name": printable(image.relative),
                "width": image.width,
                "height": image.height,
            },
            "mask": png_url(initial.mask) if initial.mask is not None else "",
            "version": spot.version,
        }

    def save(self, placed: Placed, spot: Spot, body: dict[str, Any]) -> dict[str, Any]:
        """Write the painted mask. Returns `mask_state` with "said": message and "version". Raises ProblemsError if another window has saved
        a mask since.
        body: {"png": base64, "over": version that the painter started from, "" for none, "always": true replaces any version}"""
        mask = painting.decoded_mask(png_bytes(body.get("png"), "Captions"), spot.image)
        with self._lock:
            if spot.version != body.get("over") and not body.get("always"):
                what = "Another window has saved this mask in the meantime"
                fix = "save again to replace it, or close this one to keep it"
                raise ProblemsError.one(what, printable(spot.image.relative), fix, "mask.changed-meanwhile")
            if not spot.folder.exists():
                painting.begin_folder(spot.folder, spot.images)
            painting.write_mask(self._history, spot.folder, spot.stem, mask)
        state = self.mask_state(placed, spot)
        if not state["offer"]:
            self.page.reading.want(now=True)
        return state | {"said": f"Mask saved to {display_path(spot.path)}", "version": spot.version}

    def use(self, placed: Placed, spot: Spot) -> dict[str, Any]:
        """Set the folder's settings to train with its painted masks. Returns `mask_state` with "said": message.

        Raises ProblemsError if none are painted, or if the folder's masks are control images.
        """
        if not spot.folder.is_dir():
            what, fix = "No masks have been painted for this folder", "paint one first"
            raise ProblemsError.one(what, printable(spot.images), fix, "mask.none-painted")
        if self._current_concept(placed).control:
            what, fix = "The mask folder of these images holds their control images", "choose another training method"
            raise ProblemsError.one(what, printable(spot.images), fix, "mask.control-images")
        with self._lock:
            painting.record_replaced(spot.folder, self._replaced_folders(spot))
        changes = {"conditioning_data_dir": display_path(spot.folder), "masked_loss": True}
        entries = [
            to_values(entry) | changes if _reads_folder(entry, spot.images) else entry
            for entry in entries_of(self.page.project.job)
        ]
        change_folders(self.page.project, entries, "training with painted masks")
        self.page.reading.want(now=True)
        message = "Painted masks are used for training. Undo on Train turns this off."
        return self.mask_state(placed, spot) | {"said": message}

    # -- paths of masks

    def _spot(self, placed: Placed) -> Spot:
        """Return the location of an image's painted mask. Raises ProblemsError if no mask can be painted for the image."""
        self.page.roots.check(placed.image.path, "Captions")
        images, _ = folder_of(placed.concept.source)
        if images is None or not _plain(placed.image.path).is_relative_to(_plain(images)):
            what, fix = "The image is not in a folder of the dataset", "choose its folder on Dataset"
            raise ProblemsError.one(what, printable(placed.image.relative), fix, "mask.no-folder")
        datasets = self.page.workspace.datasets
        same_stem = self._with_same_stem(placed.image.path)
        if problem := refusal(placed.image, same_stem, images, datasets) or painting.too_large(
            (placed.image.width, placed.image.height), printable(placed.image.relative)
        ):
            raise ProblemsError([problem])
        spot = Spot(placed.image, images, painted_folder(datasets, images), stem_below(placed.image, images))
        self.page.roots.check_written(spot.path, "Captions")
        return spot

    def _may_be_transparent(self, placed: Placed) -> bool:
        """Return whether an image has transparency; True if that is unknown because not all images are decoded."""
        report = self.page.reading.report
        return report is None or placed.image.key in _maybe_transparent(report)

    def _with_same_stem(self, path: Path) -> set[Path]:
        """Return the dataset's images whose paths equal `path` without extension and case."""
        report = self.page.reading.report
        if report is not None and self._same_stems[0] is not report:
            paths: dict[str, set[Path]] = defaultdict(set)
            for row in report.rows:
                paths[_stem(row.path)].add(row.path)
            self._same_stems = (report, paths)
        return self._same_stems[1].get(_stem(path), set())

    def _replaced_folders(self, spot: Spot) -> list[Path]:
        """Return the mask folders that the folder of painted masks replaces: those of the entries with the image's folder."""
        concepts = [each for each in concepts_of(self.page.project.job) if _reads_folder(each.source, spot.images)]
        folders = [folder for each in concepts if (folder := conditioning_folder(each.images.conditioning_data_dir))]
        others = [folder for folder in folders if not _same(folder, spot.folder)]
        return others if others == folders else [*others, *replaced_folders(spot.folder)]

    def _current_concept(self, placed: Placed) -> Concept:
        """Return the current settings of the image's folder, which can be newer than the report's."""
        concepts = [
            each for each in concepts_of(self.page.project.job) if each.source.folder == placed.concept.source.folder
        ]
        return next(
            (each for each in concepts if each.number == placed.concept.number),
            concepts[0] if concepts else placed.concept,
        )


def _stem(path: Path) -> str:
    """Return the path without extension, in lower case."""
    return os.path.splitext(path)[0].casefold()


def _plain(path: Path) -> Path:
    """Return the path in the plain form of its text, without the prefix for long Windows paths."""
    return Path(plain_form(str(path)))


@once_per_report
def _maybe_transparent(report: Report) -> set[tuple[str, str]]:
    """Return keys of the images with transparency, or of all images if not all are decoded."""
    return {row.key for row in report.rows if row.transparent or report.undecoded}


def _same(path: Path, other_path: Path) -> bool:
    """Return whether two paths are the same after resolving links."""
    return os.path.realpath(path) == os.path.realpath(other_path)


def _reads_folder(entry: Source, images: Path) -> bool:
    """Return whether a dataset entry's images are in the folder `images`."""
    folder, _ = folder_of(entry)
    return folder is not None and _same(folder, images)


def png_bytes(text: Any, where: str) -> bytes:
    """Decode a base64 PNG. Raises ProblemsError with `where` if it is incomplete."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        fix = "reload the page and paint it again"
        raise ProblemsError([Problem("The mask upload is incomplete", where, fix, code="mask.not-base64")]) from None


def to_png(image: Image.Image) -> bytes:
    """Return the image encoded as PNG."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def png_url(image: Image.Image) -> str:
    """Return the image as a data URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(to_png(image)).decode()
