"""Initial images, masks and region maps that the user drops or paints in Generate. Answers assets/painting.js."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from core.dataset.images.opening import BrokenImage, open_decoded, read_header
from core.dataset.images.painting import decoded_png, too_large
from core.dataset.sources.files import printable
from core.generation.model.library import title_of_name
from core.generation.plan.initial import IMAGE, MAP, MASK, image_files, opened
from core.generation.prompt.runs import parts_of
from core.generation.sample.canvas import fitted
from core.record import atomic
from core.record.problems import ProblemsError, collected, raise_if_errors, write_errors
from core.record.units import count, size_text
from core.record.workspace import display_path, resolve_path
from core.settings.generation.regions import color_code
from core.settings.names import bad_name
from tabs.captions.mask_painting import png_bytes, png_url, to_png
from tabs.context import Page
from tabs.generate import form
from tabs.markup import esc, short

IMAGE_SIZE = 2048  # longer side of the image below the mask
THUMB_SIZE = 128  # and of the one in the panel
MAX_BYTES = 64 << 20  # of a dropped image
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
BLANK = (128, 128, 128)
MIN_REGIONS, MAX_REGIONS = 3, 7
MASK_WORDS = {
    "title": "Mask",
    "whites": True,
    "words": {
        "hint": "What you paint is generated again (white in the mask), the rest stays (black).",
        "brush": "B: paints what is generated again",
        "fill": "F: everything is generated again",
        "invert": "I: swaps what stays and what is generated again",
        "clear": "C: nothing is painted",
        "save": "Save mask",
        "black": "Nothing is painted: nothing would be generated again.",
    },
}
REGION_WORDS = {
    "title": "Regions",
    "words": {
        "hint": "Each color is where one prompt of 'a AND b AND c' and the LoRA of the same place in the list act.",
        "fill": "F: all of this color",
        "clear": "C: no regions",
        "save": "Save regions",
    },
}


class Painting:
    """Answers requests of the painter (atelier/paint). values: function that returns the form's values"""

    def __init__(self, page: Page, values: Callable[[], dict[str, Any]]):
        self.page, self._values = page, values
        self._acts = {"mask": self._mask, "mask save": self._save_mask, "regions": self._regions}
        self._acts["regions save"] = self._save_regions

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the painter, {"act": "mask", "mask save", "regions" or "regions save", texts of the form's fields, "png":
        base64 for the acts that save}. Raises ProblemsError.
        """
        act = self._acts.get(str(request.get("act", "")))
        if act is None:
            raise ProblemsError.one("This cannot be painted", "Generate", "reload the page", "paint.unknown")
        return act(request)

    def store_upload(self, upload: str) -> str:
        """Copy an uploaded image to outputs/inputs, as PNG unless it is in FORMATS, and return the copy's path.

        Raises ProblemsError for an invalid or too large image.
        """
        path = Path(upload)
        name, size = printable(path.name), os.path.getsize(path)
        if size > MAX_BYTES:
            what = f"The image is larger than {size_text(MAX_BYTES)}"
            raise ProblemsError.one(what, name, "save it as JPEG or WebP", "image.too-many-bytes")
        image = opened(path, IMAGE)  # decodes it, so that a damaged one is refused
        raise_if_errors([problem] if (problem := too_large(image.size, name)) else [])
        stem = path.stem[:60] if bad_name(path.stem[:60]) is None else "image"
        ending = FORMATS.get(read_header(path).format)
        if ending is not None:
            return self._store(stem, path.read_bytes(), ending)
        decoded = open_decoded(path)
        if decoded.alpha is not None:
            decoded.colors.putalpha(decoded.alpha)
        return self._store(stem, to_png(decoded.colors), ".png")

    def row(self, group: str, values: dict[str, Any]) -> str:
        """Return the HTML above the fields of settings group `group`: thumbnails and the buttons Upload and Paint; "" for other groups."""
        if group == "image_to_image":
            thumbs = self.thumb(values["image_path"], "Initial image") + self.thumb(values["mask_path"], "Mask")
            buttons = _button("upload", "Upload image") + _button("mask", "Paint mask")
            hint = "" if thumbs else self._folder_hint(values["image_path"])
            strip = f'{buttons}<span class="hint">{esc(hint)}</span>'
            return f'<div class="gen-paint"><div class="strip">{strip}</div><div class="strip">{thumbs}</div></div>'
        if group == "regions":
            thumbs = self.thumb(values["region_map"], "Region map")
            buttons = _button("regions", "Paint regions")
            if len(parts_of(str(values["prompt"]))) < 2:  # the place of the image, which there is none of at first
                thumbs = thumbs or '<span class="hint">Join the prompts by AND: a fox AND a dog.</span>'
            return f'<div class="gen-paint"><div class="strip">{buttons}</div><div class="strip">{thumbs}</div></div>'
        return ""

    def _folder_hint(self, text: Any) -> str:
        """Return the number of initial images in the folder at path `text`, else how to choose an image or a folder."""
        path = resolve_path(str(text)) if text else None
        if path is None or not self.page.roots.holds(path) or not path.is_dir():
            return "Or drop or paste one; More also takes a folder."
        files = collected([], image_files, str(path), IMAGE) or []
        return f"{count(len(files), 'image')} in {printable(path.name)}, used in turn."

    def thumb(self, text: Any, alt: str) -> str:
        """Return the HTML of the thumbnail of the image at path `text`; "" if it is missing or not allowed. alt: alternative text"""
        path = resolve_path(str(text)) if text else None
        if path is None or not self.page.roots.holds(path) or not path.is_file():
            return ""
        url = self.page.thumb_url(path, THUMB_SIZE)
        return f'<img class="gen-thumb" src="{esc(url)}" alt="{esc(alt)}" title="{esc(f"{alt}: {path.name}")}">'

    # -- the requests

    def _mask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the painter needs to paint a mask: its texts, "note", "mask": data URL of the existing mask, "" for none, and
        "image": the initial image, see `_background_image`. Raises ProblemsError.
        request: with "mask", path of a mask to start from, or none"""
        path = self._image(request)
        size = _upright(path)
        note, start = "Paint what should be generated again.", ""
        if request.get("mask"):
            file = self._file(request["mask"], MASK)
            mask = opened(file, MASK)
            start = png_url(fitted(mask, size, "resize"))
            note = f"Starts from {printable(file.name)}, which stays as it is."
            note += "" if mask.size == size else " It is resized to the image."
        return MASK_WORDS | {"note": note, "mask": start, "image": self._background_image(path, size)}

    def _save_mask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Store the painted mask. Returns {"said": message, "fields": {"mask_path": path}}."""
        path = self._image(request)
        mask = decoded_png(png_bytes(request.get("png"), MASK), _upright(path), MASK).getchannel("R")
        return self._saved(mask, f"{path.stem[:60]}_mask", "mask_path", "Mask")

    def _regions(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the painter needs to paint a region map: its texts, "note", "mask": data URL of the existing map, "" for none,
        "image": the canvas, see `_background_image`, and "colors": [{"color", "name"}], one per prompt joined by AND.
        request: with "prompt" and perhaps "map", path of a map to start from"""
        size, path = self._canvas(request)
        parts = parts_of(str(request.get("prompt", "")))
        names = [short(part, 40) for part in parts[:MAX_REGIONS]] if len(parts) > 1 else []
        number = len(names) or MIN_REGIONS
        # Up to three regions are the channels of sd-scripts' masks, more are its color codes.
        codes = (1, 2, 4)[:number] if number <= MIN_REGIONS else range(1, number + 1)
        names += [f"prompt {index + 1}" for index in range(len(names), number)]
        values = self._values() | {"region_map": True}
        files = [values["loras"][index]["file"] for index in form.placed_loras(values)]
        titles = [title_of_name(file, self.page.workspace) for file in files]
        names = [
            f"{name} \u00b7 {titles[position]}" if position < len(titles) else name
            for position, name in enumerate(names)
        ]
        start, note = "", "Paint where each prompt acts. Choose a color, or press its number."
        if len(parts) < 2:
            note += " The prompt has no AND yet: write 'a fox AND a dog'."
        if request.get("map"):
            file = self._file(request["map"], MAP)
            start = png_url(opened(file, MAP).resize(size, Image.Resampling.NEAREST))
            note = f"Starts from {printable(file.name)}, which stays as it is."
        if path is not None:
            image = self._background_image(path, size)
        else:
            blank = png_url(Image.new("RGB", (8, 8), BLANK))
            image = {"url": blank, "name": "an empty canvas", "width": size[0], "height": size[1]}
        colors = ["#{:02x}{:02x}{:02x}".format(*color_code(code)) for code in codes]
        listed = [{"color": color, "name": name} for color, name in zip(colors, names, strict=True)]
        return REGION_WORDS | {"note": note, "mask": start, "image": image, "colors": listed}

    def _save_regions(self, request: dict[str, Any]) -> dict[str, Any]:
        """Store the painted region map. Returns {"said": message, "fields": {field: new text}}."""
        size, _ = self._canvas(request)
        image = decoded_png(png_bytes(request.get("png"), MAP), size, MAP)
        answer = self._saved(image, "regions", "region_map", "Regions")
        number = len(parts_of(str(request.get("prompt", ""))))
        codes = str(min(number, MAX_REGIONS)) if number > MIN_REGIONS else ""
        return answer | {"fields": answer["fields"] | {"network_regional_mask_max_color_codes": codes}}

    # -- files

    def _image(self, request: dict[str, Any]) -> Path:
        """Return the path of the initial image, request["image"]. Raises ProblemsError without one, or if it cannot be read."""
        if not request.get("image"):
            what, fix = "There is no initial image to paint over", "choose or drop one first"
            raise ProblemsError.one(what, IMAGE, fix, "paint.no-image")
        return self._file(request["image"], IMAGE)

    def _file(self, text: Any, where: str) -> Path:
        """Return the path in field text `text`. Raises ProblemsError if it is missing, a folder, or not allowed. where: field title"""
        path = self.page.roots.check(str(text), where)
        if path.is_dir():
            what, fix = f"'{printable(path.name)}' is a folder", "choose one image of it to paint"
            raise ProblemsError.one(what, where, fix, "paint.folder")
        if not path.is_file():
            raise ProblemsError.one(
                f"'{printable(str(text))}' does not exist", where, "choose another", "image.missing"
            )
        return path

    def _canvas(self, request: dict[str, Any]) -> tuple[tuple[int, int], Path | None]:
        """Return ((width, height) of the region map in pixels, path of the initial image below it or None). Raises ProblemsError.
        request: "image" is the path of the initial image; without it the size is that of the images to generate"""
        if request.get("image"):
            path = self._image(request)
            return _upright(path), path
        size = form.sides(self._values(), self.page.project.job, self.page.workspace)
        raise_if_errors([problem] if (problem := too_large(size, MAP)) else [])
        return size, None

    def _background_image(self, path: Path, size: tuple[int, int]) -> dict[str, Any]:
        """Return {"url", "name", "width", "height"} of the image below the painting."""
        url = self.page.thumb_url(path, IMAGE_SIZE)
        return {"url": url, "name": printable(path.name), "width": size[0], "height": size[1]}

    def _saved(self, image: Image.Image, stem: str, field: str, title: str) -> dict[str, Any]:
        """Store a painted image in outputs/inputs. Returns {"said": message, "fields": {field: path}}."""
        path = self._store(stem, to_png(image), ".png")
        return {"said": f"{title} saved to {path}.", "fields": {field: path}}

    def _store(self, stem: str, content: bytes, ending: str) -> str:
        """Write `content` to outputs/inputs, to a file named by `stem`, a hash of the content and `ending`. Returns the path as text."""
        path = self.page.workspace.inputs / f"{stem}_{hashlib.sha256(content).hexdigest()[:12]}{ending}"
        with write_errors("The image cannot be saved", display_path(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                atomic.write_bytes(path, content)
        return display_path(path)


def _upright(path: Path) -> tuple[int, int]:
    """Return the (width, height) of an image after EXIF rotation. Raises ProblemsError if it is unreadable or too large."""
    try:
        header = read_header(path)
    except BrokenImage as error:
        what = f"The image {printable(path.name)} {error}"
        raise ProblemsError.one(what, IMAGE, "choose another image file", "image.unreadable") from error
    raise_if_errors([problem] if (problem := too_large((header.width, header.height), IMAGE)) else [])
    return header.width, header.height


def _button(act: str, label: str) -> str:
    """Return the HTML of a button that asks the painter script for `act`."""
    return f'<button type="button" class="btn" data-paint="{act}">{label}</button>'
