"""Writes the settings of a generated image into its file, and reads them back.

A PNG has two text chunks: `parameters`, the text that A1111, Forge and image sites read, and `atelier`, the whole job as
JSON. Names of models and LoRAs are relative to the project or the models folder, so no path of the machine is revealed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from core.control.hints.models import portable_model
from core.generation.images.a1111 import JSON, LONGEST_TEXT, a1111_parts, a1111_text, from_a1111_text, from_foreign
from core.generation.images.foreign import XMP, read_foreign, xmp_items
from core.generation.images.hidden import hidden_text
from core.generation.images.record import ImageRecord
from core.generation.model.library import portable_name
from core.generation.model.sources import Hashes, Sources
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.base import declared, value_of
from core.settings.hints import BY_MODEL
from core.settings.job import GenerateJob

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

CHUNK = "atelier"
FORMAT = 3  # 1: before prompt weights and zero terminal SNR; 2: before variants and options in prompts
EXIF_USER_COMMENT = 0x9286
EXIF_FOLDER = 0x8769
EXIF_DESCRIPTION = 0x010E
EXIF_CAMERA = (0x010F, 0x0110)  # maker and model
MOST_EXIF = 65_000  # bytes
PROCESSED = ("postprocessing", "extras")  # A1111's texts for images changed in its Extras tab


# -- writing


def png_info(job: GenerateJob, hashes: Hashes) -> PngInfo:
    """Return the text chunks for a PNG. job: of this one image, with its seed and size"""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", a1111_text(job, hashes))
    info.add_text(CHUNK, _json_content(job, hashes))
    return info


def exif_of(job: GenerateJob, hashes: Hashes) -> bytes:
    """Return EXIF for JPEG and WebP: A1111's text as UserComment, and the job's JSON as ImageDescription.

    EXIF is limited to 64 KB: if both together are longer, the JSON is left out; if A1111's text alone is, it is b"".
    """
    from PIL.Image import Exif

    comment = b"UNICODE\0" + a1111_text(job, hashes).encode("utf-16-be", "surrogatepass")
    for text in (_json_content(job, hashes), ""):
        exif = Exif()
        exif.get_ifd(EXIF_FOLDER)[EXIF_USER_COMMENT] = comment
        if text:
            exif[EXIF_DESCRIPTION] = text
        if len(data := exif.tobytes()) <= MOST_EXIF:
            # Pillow declares bytes as BYTE. EXIF's type is UNDEFINED, and piexif, with which A1111 reads, returns no text for others.
            return data.replace(b"\x92\x86\0\x01", b"\x92\x86\0\x07", 1)
    return b""


def _json_content(job: GenerateJob, hashes: Hashes) -> str:
    """Return the job and hashes as JSON in ASCII, without the output group, which may name folders of the machine."""
    content = {
        "format": FORMAT,
        "job": job.model_dump(mode="json", exclude={"output"}),
        "hashes": asdict(hashes),
    }
    return json.dumps(content)


# -- reading


def read_image_metadata(path: str | Path) -> ImageRecord:
    """Read the settings an image was generated with, or the reason why there are none. Never raises ProblemsError.

    Read from Atelier's chunk, else as written by another program (PNG text or EXIF).
    """
    from core.dataset.images.opening import BrokenImage, open_image

    try:
        with open_image(path) as image:
            texts = _texts(image)
            comment, description, graphs = _exif_texts(image)
            size = image.size
    except BrokenImage as error:
        return ImageRecord(reason=f"The image {error}.")
    if CHUNK in texts or description.startswith('{"format"'):
        return _from_chunk(texts.get(CHUNK) or description)
    if (foreign := read_foreign(graphs | texts, comment, size)) is not None:
        return from_foreign(foreign)
    is_other_comment = not any(a1111_parts(comment)[1:])  # another kind of comment
    prompt = texts.get("prompt", "")
    processed = next((texts[name] for name in PROCESSED if texts.get(name)), "")
    block = texts.get("parameters") or ("" if JSON.match(prompt) else prompt) or ("" if is_other_comment else comment)
    others = [*xmp_items(texts.pop(XMP, "")), *texts.values(), description]
    if block := block or next(filter(_has_steps, others), ""):
        return from_a1111_text(block, processed)
    if prompt or texts.get("workflow"):
        return ImageRecord(
            reason="This image contains a ComfyUI graph without a sampler or a prompt that is known here."
        )
    if processed:
        return ImageRecord(reason="This image contains only the settings by which a finished image was enlarged.")
    return ImageRecord(reason="This image contains no settings; a website or program may have removed them.")


def _has_steps(text: str) -> bool:
    """Return whether a text has A1111's line of settings."""
    return "Steps: " in text and "Steps" in a1111_parts(text[:LONGEST_TEXT])[2]


def _texts(image: Any) -> dict[str, str]:
    """Return {name: text} of an image's text chunks and of its XMP, in any format under PNG's name.

    Chunks usually stand before the pixels; if a PNG has none of ours there, the whole file is read, and without any its pixels.
    """
    from core.dataset.images.opening import LARGE_PIXELS

    small = image.width * image.height <= LARGE_PIXELS
    if image.format == "PNG" and small and not {CHUNK, "parameters"} & image.info.keys():
        with suppress(Exception):  # truncated or damaged pixels raise a dozen kinds of errors
            image.load()
            if not png_texts(image):
                return {"parameters": hidden_text(image)}
    xmp = image.info.get("xmp")
    return ({XMP: xmp.decode(errors="replace")} if isinstance(xmp, bytes) else {}) | png_texts(image)


def png_texts(image: Any) -> dict[str, str]:
    """Return {keyword: text} of all text in `image.info`."""
    items = [item for item in image.info.items() if isinstance(item[0], str) and isinstance(item[1], str)]
    return {key: as_utf8(value) if type(value) is str else value for key, value in items}  # other types: of iTXt


def as_utf8(text: str) -> str:
    """Return a text that was read as Latin-1, PNG's and EXIF's encoding, as UTF-8 where a program wrote that; else unchanged."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _exif_texts(image: Any) -> tuple[str, str, dict[str, str]]:
    """Return (A1111's text, Atelier's JSON, {"prompt", "workflow": ComfyUI's graph}) from EXIF; "" and {} for missing ones.

    A1111 writes UserComment, in a GIF the file's comment; ComfyUI writes the camera's tags.
    """
    comment = file_comment(image)
    try:
        exif = image.getexif()
        description = exif.get(EXIF_DESCRIPTION, "")
        of_camera = (str(exif.get(tag, "")).partition(":") for tag in EXIF_CAMERA)
        graphs = {name: text for name, _, text in of_camera if name in ("prompt", "workflow")}
        return user_comment(exif) or comment, as_utf8(description) if isinstance(description, str) else "", graphs
    except Exception:  # damaged EXIF raises a dozen kinds of errors
        return comment, "", {}


def file_comment(image: Any) -> str:
    """Return the comment of a GIF or JPEG file, where A1111 and early Fooocus write their text; "" if there is none."""
    comment = image.info.get("comment")
    return comment.decode("utf-8", errors="replace") if isinstance(comment, bytes) else ""


def user_comment(exif: Any) -> str:
    """Return the text of EXIF's UserComment, in any of its encodings; "" if there is none. exif: Pillow's"""
    raw = exif.get_ifd(EXIF_FOLDER).get(EXIF_USER_COMMENT, b"")
    if not isinstance(raw, bytes) or len(raw) <= 8:
        return ""
    name, body = raw[:8], raw[8:]
    if not name.startswith(b"UNICODE"):
        return body.decode("iso2022_jp" if name.startswith(b"JIS") else "utf-8", errors="replace").rstrip("\0")
    if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return body.decode("utf-16", errors="replace").rstrip("\0")
    # Zero bytes of Latin letters and spaces show the byte order: A1111 writes big-endian even in little-endian EXIF.
    first, second = body[::2].count(0), body[1::2].count(0)
    big_endian = first > second or (first == second and exif.endian == ">")
    return body.decode("utf-16-be" if big_endian else "utf-16-le", errors="replace").rstrip("\0")


def _from_chunk(text: str) -> ImageRecord:
    """Return the settings in Atelier's JSON; a reason instead if they are damaged or from a newer version."""
    try:
        content = parse_json(text, "the image's settings")
        if content["format"] > FORMAT:
            return ImageRecord(
                reason="This image was generated by a newer version of Atelier; update to read its settings."
            )
        if content["format"] == 1:
            content["job"]["generate"] |= {"prompt_weights": False, "zero_terminal_snr": "off"}
        if content["format"] < FORMAT:
            content["job"]["prompts"] = {"dynamic_prompts": False}
        job = GenerateJob.model_validate(content["job"])
        stored = content.get("hashes", {})
        digests = (
            {str(name): str(digest) for name, digest in stored.get(kind, {}).items()}
            for kind in ("loras", "embeddings", "refiners", "controls")
        )
        hashes = Hashes(str(stored.get("model", "")), *digests)
    except (ProblemsError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return ImageRecord(reason="The settings in this image are damaged or were edited.")
    return ImageRecord(job=job, source="atelier", hashes=hashes)


def one_image(job: GenerateJob, sources: Sources, workspace: Workspace) -> GenerateJob:
    """Return the job that generates an image again, with portable file names.
    job: of this one image, as it was generated. Its zero terminal SNR is stored as on or off, since files may change"""

    def portable(path: str | Path | None) -> str | None:
        return portable_name(path, workspace) if path else None

    settings, groups = job.generate, defaultdict[str, dict[str, Any]](dict)
    for entry in declared(GenerateJob):  # also files in settings of packages
        path = value_of(job, entry.path)
        if entry.names.startswith("path") and path and entry.group not in ("model", "generate", "memory", "output"):
            file = sources.hook_files[path].path if path in sources.hook_files else path
            groups[entry.group][entry.name] = portable(file)
    if refiner := sources.refiners.get(job.refiner.refiner_checkpoint or ""):
        groups["refiner"]["refiner_checkpoint"] = portable(refiner)
    nets = []
    for use in job.controls.used:
        changes = {"file": portable(sources.controls[use.file].path), "image": portable(use.image) or ""}
        changes |= {"hint_model": portable_model(use.hint_model, workspace)} if use.preprocessor == BY_MODEL else {}
        nets.append(use.model_copy(update=changes))
    groups["generate"] = {
        "count": 1,
        "loras": [use.model_copy(update={"file": portable(sources.loras[use.file])}) for use in settings.loras],
        "embeddings": [embedding.setting(workspace) for embedding in sources.embeddings],
        "zero_terminal_snr": "on" if settings.zero_terminal_snr == "on" else "off",
    }
    groups["controls"] = {"nets": nets, "control_image": None}
    groups["model"] = {"base_model": portable(sources.model), "vae": portable(sources.vae)}
    return job.with_settings(**groups)
