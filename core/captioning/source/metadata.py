"""Captions from the metadata of image files: prompts of generated images, EXIF, XMP and IPTC."""

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, IptcImagePlugin

from core.captioning.combining import parts_of
from core.captioning.described import CaptionResult, from_text, skipped
from core.captioning.source.sidecars import first_object, stripped
from core.captioning.source.xmp import read_xmp
from core.dataset.images.opening import LARGE_PIXELS, BrokenImage, open_image
from core.dataset.sources.files import printable
from core.families.prompt_weights import runs_of
from core.generation.images.a1111 import LONGEST_TEXT, a1111_parts
from core.generation.images.comfyui import graph_of, positive_prompts
from core.generation.images.foreign import read_foreign
from core.generation.images.metadata import as_utf8, file_comment, png_texts, user_comment
from core.record.bounded_json import json_or_none, parse_json
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.regular import open_regular
from core.record.workspace import Workspace
from core.settings.caption import CaptionerJob
from core.settings.captioning.sources import ImageTextSettings

T = TypeVar("T")
LONGEST_JSON, MAX_VALUES = 8_000_000, 200_000  # a large workflow has 1 MB
PNG_TEXT = "png."
WITH_FIELDS = ("ComfyUI", "NovelAI", "InvokeAI")
_LORA = re.compile(r" ?<(?:lora|lyco|lycoris|hypernet):[^<>]*>", re.IGNORECASE)
_LATE = frozenset((b"tEXt", b"zTXt", b"iTXt", b"eXIf"))
MOST_CHUNKS = 100_000
_MAKE, _MODEL, _DESCRIPTION = 0x010F, 0x0110, 0x010E
_XP = {"title": 0x9C9B, "comment": 0x9C9C, "keywords": 0x9C9E, "subject": 0x9C9F}
_IPTC = {"title": (2, 5), "keywords": (2, 25), "caption": (2, 120)}
# What cameras write as the description of every image.
_OF_CAMERAS = re.compile(r"(OLYMPUS|MINOLTA|KONICA MINOLTA) DIGITAL CAMERA|SONY DSC|SAMSUNG( CAMERA P\w+)?")


def _or_default(default: T, read: Callable[[], T]) -> T:
    """Return `read()`, or the default for damaged data, for which Pillow raises a dozen kinds of errors."""
    try:
        return read()
    except Exception:
        return default


class ImageTexts:
    """The metadata texts of an opened image, each read at its first use."""

    def __init__(self, image: Image.Image):
        self.image = image

    @cached_property
    def png(self) -> dict[str, str]:
        """The text chunks of a PNG (in general all text in `image.info`), by keyword."""
        return png_texts(self.image)

    @cached_property
    def exif(self) -> Image.Exif:
        """The EXIF data, empty if damaged."""
        return _or_default(Image.Exif(), lambda: Image.Image.getexif(self.image))  # the PNG reader's decodes the image

    @cached_property
    def comment(self) -> str:
        """EXIF's UserComment; "" if there is none."""
        return _or_default("", lambda: user_comment(self.exif))

    @cached_property
    def comment_text(self) -> str:
        """EXIF's UserComment; without it the file's comment."""
        return self.comment or file_comment(self.image)

    @cached_property
    def xmp(self) -> dict[str, list[str]]:
        """{"title", "description", "subject": texts} of the XMP packet, see `read_xmp`. Raises ProblemsError."""
        packet = self.image.info.get("xmp")
        return read_xmp(packet) if isinstance(packet, bytes | str) and packet else {}

    @cached_property
    def iptc(self) -> dict[tuple[int, int], Any]:
        """{(record, dataset): value} of the IPTC data."""
        return _or_default({}, lambda: IptcImagePlugin.getiptcinfo(self.image) or {})  # type: ignore[arg-type]

    def exif_text(self, tag: int) -> str:
        """Return an EXIF text, read as UTF-8 if possible; "" if there is none, or for a text that cameras write into every image."""
        text = _or_default("", lambda: self.exif.get(tag, ""))
        if not isinstance(text, str):
            return ""
        text = as_utf8(text)
        return "" if _OF_CAMERAS.fullmatch(text.strip("\0 ")) else text.strip("\0 ")

    def xp_text(self, name: str) -> str:
        """Return an EXIF text of Windows Explorer, stored as UTF-16 bytes. `name`: a key of _XP."""
        raw = _or_default(b"", lambda: bytes(self.exif.get(_XP[name], b"")))
        return raw.decode("utf-16-le", errors="replace").partition("\0")[0]

    def iptc_texts(self, name: str) -> list[str]:
        """Return the IPTC texts of a field. `name`: a key of _IPTC."""
        values = self.iptc.get(_IPTC[name], [])
        listed = values if isinstance(values, list) else [values]
        return [_iptc_text(value) for value in listed if isinstance(value, bytes)]

    def json(self, name: str, text: str = "") -> Any:
        """Parse the JSON object or list in `text`, else in the PNG text `name`; None for anything else. Raises ProblemsError."""
        text = (text or self.png.get(name, "")).strip()
        if text[:1] not in ("{", "["):
            return None
        if len(text) > LONGEST_JSON:
            raise _too_long(text)
        return parse_json(text, name, "", max_values=MAX_VALUES, finite=False)


def _iptc_text(value: bytes) -> str:
    """Decode UTF-8, else Latin-1."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _too_long(text: str) -> ProblemsError:
    """Return the error that a text is too long for a prompt."""
    what = f"It contains a text of {len(text):,} characters, too long for a prompt"
    return ProblemsError.one(what, "", "write its caption by hand", "source.too-long")


# ---- prompts


def _a1111(texts: ImageTexts) -> str:
    """Return the prompt in the PNG text `parameters`, or in a comment in A1111's format; "" if there is none.

    Prompts of other programs: of any program if the text is JSON, otherwise not of those in WITH_FIELDS, which have a field. Raises
    ProblemsError for damaged JSON or too long a text.
    """
    parameters = texts.png.get("parameters", "")
    if len(parameters) > LONGEST_TEXT:
        raise _too_long(parameters)
    in_json = (parameters or texts.comment_text).lstrip()[:1] == "{"
    if parameters and in_json:
        texts.json("parameters")  # raises ProblemsError if it is damaged
    elif prompt := a1111_parts(parameters)[0] if parameters else _prompt_of(texts.comment_text):
        return prompt
    settings = read_foreign(texts.png, texts.comment_text, texts.image.size)
    return settings.prompt if settings is not None and (in_json or settings.source not in WITH_FIELDS) else ""


def _prompt_of(comment: str) -> str:
    """Return the prompt in a comment in A1111's format; "" for another comment. Raises ProblemsError for too long a text."""
    if len(comment) > LONGEST_TEXT:
        raise _too_long(comment)
    prompt, _, settings = a1111_parts(comment)
    return prompt if settings else ""


def _comment(texts: ImageTexts) -> str:
    """Return EXIF's UserComment; "" if it is in A1111's format or JSON."""
    of_program = _prompt_of(texts.comment) or isinstance(json_or_none(texts.comment), dict)
    return "" if of_program else texts.comment


def _comfyui(texts: ImageTexts) -> list[str]:
    """Return the prompts of ComfyUI's executed graph, else of its workflow. WebP files have both in the EXIF fields Make and Model."""
    exif = dict(text.partition(":")[::2] for text in (texts.exif_text(_MODEL), texts.exif_text(_MAKE)))
    prompts = positive_prompts(first_object(texts.json("prompt", exif.get("prompt", ""))))
    return prompts or positive_prompts(graph_of(texts.json("workflow", exif.get("workflow", ""))))


def _novelai(texts: ImageTexts) -> str:
    """Return NovelAI's prompt; "" if there is none."""
    return texts.png.get("Description", "") if "NovelAI" in texts.png.get("Software", "") else ""


def _invokeai(texts: ImageTexts) -> str:
    """Return InvokeAI's prompt, also of its older formats; "" if there is none."""
    prompt = _string(first_object(texts.json("invokeai_metadata")).get("positive_prompt"))
    older = first_object(first_object(texts.json("sd-metadata")).get("image")).get("prompt") if not prompt else None
    return prompt or _string(older) or _string(first_object(older).get("prompt"))


def _string(value: Any) -> str:
    """Return a text, "" for anything else."""
    return value if isinstance(value, str) else ""


PROMPTS: dict[str, Callable[[ImageTexts], str | list[str]]] = {
    "a1111": _a1111,
    "comfyui": _comfyui,
    "novelai": _novelai,
    "invokeai": _invokeai,
}
FIELDS: dict[str, Callable[[ImageTexts], str | list[str]]] = PROMPTS | {
    "xmp.description": lambda texts: texts.xmp.get("description", [])[:1],
    "xmp.title": lambda texts: texts.xmp.get("title", [])[:1],
    "xmp.subject": lambda texts: texts.xmp.get("subject", []),
    "iptc.caption": lambda texts: texts.iptc_texts("caption"),
    "iptc.title": lambda texts: texts.iptc_texts("title"),
    "iptc.keywords": lambda texts: texts.iptc_texts("keywords"),
    "exif.description": lambda texts: texts.exif_text(_DESCRIPTION),
    "exif.comment": _comment,
    "exif.xp_title": lambda texts: texts.xp_text("title"),
    "exif.xp_comment": lambda texts: texts.xp_text("comment"),
    "exif.xp_subject": lambda texts: texts.xp_text("subject"),
    "exif.xp_keywords": lambda texts: parts_of(texts.xp_text("keywords"), ";"),
}


# ---- the captioner


def check(settings: ImageTextSettings, workspace: Workspace) -> None:
    """Raise ProblemsError for unknown fields, or if there are none."""
    where, fix = "caption_metadata.text_fields", f"use {', '.join(FIELDS)} or {PNG_TEXT}NAME"
    fields = stripped(settings.text_fields)
    problems = [
        Problem(f"There is no field '{field}'", where, fix, code="metadata.unknown-field")
        for field in fields
        if field not in FIELDS and not field.startswith(PNG_TEXT)
    ]
    if not fields:
        problems.append(Problem("No fields are given", where, fix, code="metadata.no-fields"))
    raise_if_errors(problems)


def describe(
    job: CaptionerJob, images: Sequence[Path], settings: ImageTextSettings, context: JobContext
) -> Iterator[CaptionResult]:
    """Yield the caption from each image's metadata, or why there is none. Raises ProblemsError for invalid settings."""
    check(settings, context.workspace)
    for path in images:
        yield _caption_of(path, settings, job.captioning.separator)


def _caption_of(path: Path, settings: ImageTextSettings, separator: str) -> CaptionResult:
    """Return the caption from an image's metadata, or why there is none."""
    name = printable(path.name)
    nothing = skipped(path, f"The image {name} contains no text", "write its caption by hand", "metadata.no-text")
    try:
        texts, problems = _texts_in(path, settings, separator)
    except (BrokenImage, ProblemsError) as error:
        why = error.problems[0].what if isinstance(error, ProblemsError) else error
        return skipped(path, f"The image {name} {why}", "replace or remove it", "image.unreadable")
    if problems and not texts:
        first = problems[0]
        return skipped(path, f"{name}: {first.what}", first.fix or "write its caption by hand", first.code)
    return from_text(path, separator.join(dict.fromkeys(texts)), nothing)


def _texts_in(path: Path, settings: ImageTextSettings, separator: str) -> tuple[list[str], list[Problem]]:
    """Return (text of the first field that has one, or of all fields; problems of unreadable fields). Raises BrokenImage."""
    lines: list[str] = []
    problems: list[Problem] = []
    with open_image(path) as image:
        if image.format == "PNG" and image.width * image.height <= LARGE_PIXELS and _has_late_text(path):
            _or_default(None, image.load)  # type: ignore[arg-type]
        texts = ImageTexts(image)
        for field in stripped(settings.text_fields):
            text = collected(problems, _text_of, texts, field, settings, separator) or ""
            lines += [text] if text.strip(" ,\n") else []
            if lines and settings.combine == "first":
                break
    return lines, problems


def _text_of(texts: ImageTexts, field: str, settings: ImageTextSettings, separator: str) -> str:
    """Return the text of a field, "" if there is none; a prompt is passed through `plain_prompt`. Raises ProblemsError."""
    if field not in FIELDS:
        return texts.png.get(field.removeprefix(PNG_TEXT), "")
    value = FIELDS[field](texts)
    text = value if isinstance(value, str) else separator.join(each.strip() for each in value if each.strip())
    if len(text) > LONGEST_TEXT:
        raise _too_long(text)
    return plain_prompt(text, settings) if field in PROMPTS else text


def plain_prompt(prompt: str, settings: ImageTextSettings) -> str:
    """Return a prompt, without LoRA tags and attention weights if the settings say so."""
    if settings.remove_loras and _LORA.search(prompt):
        prompt = re.sub(r",(?: ?,)+", ",", _LORA.sub("", prompt))
    if settings.remove_weights:
        with suppress(ValueError):  # weights that no program reads stay
            prompt = "".join(text for text, _ in runs_of(prompt))
    return prompt


def _has_late_text(path: Path) -> bool:
    """Return whether a PNG has text after its pixels (exiftool writes it there), which Pillow reads only after decoding."""
    with open_regular(path) as file:
        file.seek(8)
        pixels = False
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                return False
            length, kind = struct.unpack(">I4s", head)
            if pixels and kind in _LATE:
                return True
            pixels |= kind == b"IDAT"
            file.seek(length + 4, 1)
    return False
