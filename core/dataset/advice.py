"""Warnings about a dataset that do not block a start: captions, image sizes, regularization balance."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.dataset.buckets.batches import Placed
from core.dataset.buckets.plan import Epochs
from core.dataset.buckets.rotation import RandomResolution, Rotation
from core.dataset.captions.pipeline import plain_caption
from core.dataset.images.look import Look
from core.dataset.sources.files import extension, printable
from core.dataset.sources.image_info import ImageInfo, about, names_of
from core.record.problems import Problem
from core.record.units import count, listed
from core.settings.dataset.captions import LENGTHS, CaptionSettings
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings

ENLARGED_FROM = 1.05  # scale from which an image is reported as upscaled
MOST_REMARKS = 20  # kinds of damage that are listed
AREA_BELOW = 0.5  # fraction of the area left after the crop below which an image is reported

# What captions that were prompts may contain and training reads as text: notation, what it is, the setting that reads it ("" none).
_NOTATIONS = (
    (re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE), "a LoRA tag", ""),
    (re.compile(r"\([^()]*:\d+(?:\.\d+)?\)"), "prompt weights", "weighted_captions"),
    (re.compile(r"\{[^{}|]*\|[^{}]*\}"), "wildcards", "enable_wildcard"),
    (
        re.compile(r"\A(?:\{\\rtf|<!doctype html|<html|version https://git-lfs)", re.IGNORECASE),
        "the code of another kind of file",
        "",
    ),
)

Key = tuple[str, str]


def caption_advice(placed: Sequence[Placed], token_counts: Mapping[Key, int], limit: int) -> list[Problem]:
    """Return advice about missing, unused, badly encoded, partly unreadable and too long captions, and about notations read as text.

    token_counts   image key -> number of tokens in its caption
    limit          token limit of the text encoder
    """
    return [
        *_without_captions(placed),
        *_other_caption_files(placed),
        *_encodings(placed),
        *(each.caption.problem for each in placed if each.caption.problem and each.caption.missing),
        *_too_long(placed, token_counts, limit),
        *_read_as_text(placed),
    ]


def _without_captions(placed: Sequence[Placed]) -> list[Problem]:
    """Return advice about images without a caption, grouped by cause.

    Causes are an empty caption file, a metadata file without a caption, the folder's default caption, and no caption at all.
    """
    groups: dict[tuple[str, str], list[ImageInfo]] = defaultdict(list)
    for each in placed:
        if each.caption.source != "file" and not (each.caption.source == "metadata" and each.caption.text):
            groups[each.caption.source, _trained_as(each)].append(each.image)
    problems = []
    for (source, trained), images in groups.items():
        subject, names = f"{len(images)} of {len(placed)} images", names_of(images)
        have, they, train = ("has", "it", "trains") if len(images) == 1 else ("have", "they", "train")
        if source == "blank":
            code = "dataset.empty-captions"
            what = f"{subject} {have} an empty caption file and {train} {trained or 'without a caption'}: {names}"
            fix = "write captions, or delete the files to use the folder's default caption"
        elif source == "metadata":
            code = "dataset.no-metadata-captions"
            what = f"{subject} {have} no caption in the metadata file and {train} {trained or 'without one'}: {names}"
            fix = "add a caption or tags to the metadata file"
        elif source == "words":
            code = "dataset.default-captions"
            what = f"{subject} {have} no caption; {they} {train} {trained}"
            fix = "write captions on the Captions tab if that does not describe them well"
        else:
            code = "dataset.no-captions"
            what = f"{subject} {have} no caption{f'; {they} {train} {trained}' if trained else ''}: {names}"
            fix = "write captions, or set a default caption for this folder"
        problems.append(Problem(what, printable(images[0].path.parent), fix, "advice", code=code))
    return problems


def _trained_as(placed: Placed) -> str:
    """Return how an image's caption trains, with trigger word, prefix and suffix, such as "as 'fox'"; "" if it is empty."""
    settings = placed.concept.captions
    text = plain_caption(placed.caption.text, settings, placed.image.class_tokens)
    return text and f"{'as' if settings.caption_template == 'none' else 'by templates such as'} '{text}'"


def _other_caption_files(placed: Sequence[Placed]) -> list[Problem]:
    """Return advice about caption files that are not read because the settings select another file extension."""
    unread = [
        each.image
        for each in placed
        if each.caption.sentence is None
        and each.caption.source != "metadata"
        and any(not name.lower().endswith(extension(each.caption.path.name)) for name in each.image.sidecars)
    ]
    if not unread:
        return []
    endings = Counter(extension(name) for image in unread for name in image.sidecars)
    used = Counter(extension(each.caption.path.name) for each in placed if each.caption.source == "file")
    counts = f"{_counts_text(endings)} next to them; {_counts_text(used)} used"
    have = "has" if len(unread) == 1 else "have"
    what = f"{count(len(unread), 'image')} {have} caption files that are not used: {counts}"
    which, both = CaptionSettings.title_of("caption_extension"), CaptionSettings.title_of("sidecars")
    fix = f"choose the file type under '{which}', or combine both types under '{both}'"
    return [Problem(what, printable(unread[0].path.parent), fix, "advice", code="dataset.unused-captions")]


def _counts_text(counts: Counter[str]) -> str:
    """Return counts of file extensions as text, such as "2 .caption and 5 .txt"; "none" if empty."""
    return listed([f"{number} {ending}" for ending, number in sorted(counts.items())]) or "none"


def _encodings(placed: Sequence[Placed]) -> list[Problem]:
    """Return advice about caption files that are not UTF-8, one problem for each encoding."""
    groups: dict[str, list[ImageInfo]] = defaultdict(list)
    first: dict[str, Problem] = {}
    for each in placed:
        if each.caption.problem and each.caption.source == "file":
            groups[each.caption.encoding].append(each.image)
            first.setdefault(each.caption.encoding, each.caption.problem)
    for encoding, images in groups.items():
        if len(images) > 1:
            what = f"{len(images)} captions were read as {encoding}, not UTF-8: {names_of(images)}"
            first[encoding] = replace(first[encoding], what=what, where=printable(images[0].path.parent))
    return list(first.values())


def _too_long(placed: Sequence[Placed], token_counts: Mapping[Key, int], limit: int) -> list[Problem]:
    """Return advice about captions with more than `limit` tokens. token_counts: image key -> number of tokens"""
    cut = [each.image for each in placed if token_counts.get(each.image.key, 0) > limit]
    longest = max(token_counts.values(), default=0)
    what = f"{{n}} {{is}} longer than {limit} tokens (the longest has {longest}) and cut: {{names}}"
    enough = next((length for length in LENGTHS if length >= longest), LENGTHS[-1])
    fix = f"shorten them, or raise the maximum caption length to {enough}" if enough > limit else "shorten them"
    return about(cut, what, fix, "dataset.long-captions", where="captions.max_token_length", noun="caption")


def _read_as_text(placed: Sequence[Placed]) -> list[Problem]:
    """Return advice about captions with notations of prompts that train as text, one problem for each of _NOTATIONS."""
    problems = []
    for pattern, words, setting in _NOTATIONS:
        unread = [each for each in placed if not (setting and getattr(each.concept.captions, setting))]
        images = [each.image for each in unread if pattern.search(each.caption.text)]
        fix = f"remove them, or turn on '{CaptionSettings.title_of(setting)}'" if setting else "remove them"
        what = f"{{n}} with {words}, trained as text: {{names}}"
        problems += about(images, what, fix, "caption.read-as-text", noun="caption")
    return problems


def remark_advice(placed: Sequence[Placed], looks: Mapping[Key, Look]) -> list[Problem]:
    """Return advice about images that decode although part of the file is damaged.

    One problem for each different remark of the decoder, at most MOST_REMARKS.

    looks   image key -> result of decoding it
    """
    groups: dict[str, list[ImageInfo]] = defaultdict(list)
    for each in placed:
        look = looks.get(each.image.key)
        if look and look.remark:
            groups[look.remark].append(each.image)
    fix = "check them; if one looks wrong, save it again or replace it"
    what = "{n} with damaged data that was skipped (<remark>): {names}"
    return [
        problem
        for remark, images in list(groups.items())[:MOST_REMARKS]
        for problem in about(images, what.replace("<remark>", remark), fix, "image.damaged-data")
    ]


def size_advice(placed: Sequence[Placed]) -> list[Problem]:
    """Return advice about images that EXIF rotates, that have another format's extension, are upscaled, or lose over half to the crop."""
    rotated = [each.image for each in placed if each.image.rotated]
    what = "{n} {is} rotated upright according to the EXIF orientation: {names}"
    problems = about(rotated, what, "no action needed; describe them upright in captions", "image.exif-rotation")
    misnamed = [each.image for each in placed if each.image.actual_format]
    if misnamed:
        names = [f"{image.relative} ({image.actual_format})" for image in misnamed]
        what = "{n} {has} an extension that does not match the image format: {names}"
        fix, where = "rename them if other programs refuse them; training reads them correctly", misnamed[0].path.parent
        problems += about(names, what, fix, "image.wrong-extension", where=printable(where), noun="file")
    upscaled = sorted(
        (each for each in placed if each.placement.scale > ENLARGED_FROM), key=lambda each: -each.placement.scale
    )
    if upscaled:
        largest_scale = upscaled[0].placement.scale
        what = f"{len(upscaled)} of {len(placed)} images smaller than their bucket, upscaled up to {largest_scale:.1f} times: "
        fix = "use larger images or a lower resolution"
        if any(each.concept.images.enable_bucket for each in upscaled):
            fix += f", or turn on '{ImageSettings.title_of('bucket_no_upscale')}'"
        problems += about([each.image for each in upscaled], what + "{names}", fix, "image.upscaled")
    cropped = sorted(
        (each for each in placed if each.placement.area_after_crop < AREA_BELOW),
        key=lambda each: each.placement.area_after_crop,
    )
    if cropped:
        smallest_area = cropped[0].placement.area_after_crop
        what = f"{len(cropped)} of {len(placed)} images cropped by more than half ({smallest_area:.0%} left at worst): "
        fix = f"crop them manually, or raise '{ImageSettings.title_of('max_bucket_reso')}'"
        problems += about([each.image for each in cropped], what + "{names}", fix, "image.cropped")
    return problems


def balance_advice(epochs: Epochs) -> list[Problem]:
    """Return advice about regularization images without training images in their batch group, and images that no epoch uses."""
    problems = []
    for part in epochs.parts:
        if isinstance(part, Rotation | RandomResolution) and part.pool_size and not len(part):
            what = f"{part.pool_size} regularization images are not used: their batch group has no training images"
            fix = "add training images, or put both into the same batch group"
            problems.append(Problem(what, "dataset.sources", fix, "advice", code="dataset.regularization-alone"))
    unused = [each.image for each in epochs.unneeded()] if not problems else []
    what = f"{count(len(unused), 'regularization image')} never used: as in sd-scripts, they are taken in"
    what += " order until there are as many as training images: {names}"
    fix, code = "set compatibility to none to use all in turn, or add training images", "dataset.regularization-unused"
    problems += about(unused, what, fix, code, where="model.compatibility")
    never_used = [each.image for each in epochs.never_used()]
    what = f"{count(len(never_used), 'image')} never used, as incomplete batches are dropped: "
    fix = f"choose another option for '{DatasetSettings.title_of('short_batches')}', or lower the batch size"
    problems += about(never_used, what + "{names}", fix, "dataset.never-used", where="dataset.short_batches")
    return problems
