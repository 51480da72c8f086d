"""Findings that do not block a start: captions, sizes, balance. Each says what, where and what to do."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.dataset.batches import Placed
from core.dataset.epochs import Epochs
from core.dataset.files import printable
from core.dataset.image_info import ImageInfo, count, listed, names_of
from core.dataset.look import Look
from core.dataset.rotation import Turn
from core.record.problems import Problem
from core.settings.captions import LENGTHS

ENLARGED_FROM = 1.05  # scale from which an image is named as smaller than its bucket
MOST_REMARKS = 20  # kinds of damage that are listed
KEPT_BELOW = 0.5  # share of an image below which its crop is named

Key = tuple[str, str]


def caption_advice(placed: Sequence[Placed], counted: Mapping[Key, int], limit: int) -> list[Problem]:
    """counted: tokens by image key; limit: tokens that are read."""
    return [
        *_without_captions(placed),
        *_other_caption_files(placed),
        *_encodings(placed),
        *_unreadable_captions(placed),
        *_too_long(placed, counted, limit),
    ]


def _without_captions(placed: Sequence[Placed]) -> list[Problem]:
    groups: dict[tuple[str, str], list[ImageInfo]] = defaultdict(list)
    for each in placed:
        if each.caption.source != "file" and not (each.caption.source == "metadata" and each.caption.text):
            groups[each.caption.source, each.caption.text].append(each.image)
    found = []
    for (source, text), images in groups.items():
        number, names = f"{len(images)} of {len(placed)} images", names_of(images)
        if source == "blank":
            what = f"{number} have an empty caption file and would be trained as an empty caption: {names}."
            fix = "Write captions, or delete the files so that the folder's words are used."
        elif source == "metadata":
            what = f"{number} have no caption in their metadata file, so an empty caption is trained: {names}."
            fix = "Write a caption or tags into the metadata file."
        elif source == "words":
            what = f"{number} have no caption file; the folder's words are used: {text}"
            fix = "Write captions on the Captions tab where images differ in more than these words say."
        else:
            what = f"{number} have no caption and their folder no words, so an empty caption is trained: {names}."
            fix = "Write captions, or set the words of this folder."
        found.append(Problem(what, printable(images[0].path.parent), fix, "advice"))
    return found


def _other_caption_files(placed: Sequence[Placed]) -> list[Problem]:
    """Files of the other extension, which the setting leaves unread."""
    unread = [
        each.image
        for each in placed
        if each.caption.sentence is None
        and each.caption.source != "metadata"
        and any(
            not name.lower().endswith(os.path.splitext(each.caption.path.name)[1].lower())
            for name in each.image.sidecars
        )
    ]
    if not unread:
        return []
    endings = Counter(os.path.splitext(name)[1].lower() for image in unread for name in image.sidecars)
    used = Counter(
        os.path.splitext(each.caption.path.name)[1].lower() for each in placed if each.caption.source == "file"
    )
    counts = f"beside them lie {_listed(endings)}, read are {_listed(used)}"
    have = "has" if len(unread) == 1 else "have"
    what = f"{count(len(unread), 'image')} {have} caption files that are not read: {counts}."
    fix = "Choose which is read in Captions, Caption files, or use both by Several caption files."
    return [Problem(what, printable(unread[0].path.parent), fix, "advice")]


def _listed(counts: Counter[str]) -> str:
    return " and ".join(f"{number} {ending}" for ending, number in sorted(counts.items())) or "none"


def _encodings(placed: Sequence[Placed]) -> list[Problem]:
    groups: dict[str, list[Placed]] = defaultdict(list)
    for each in placed:
        if each.caption.problem and each.caption.source == "file":
            groups[each.caption.encoding].append(each)
    found = []
    for encoding, group in groups.items():
        problem = group[0].caption.problem
        if problem is None:
            continue
        if len(group) > 1:
            names = names_of([each.image for each in group])
            what = f"{len(group)} captions were read as {encoding} rather than UTF-8: {names}."
            problem = replace(problem, what=what, where=printable(group[0].image.path.parent))
        found.append(problem)
    return found


def _unreadable_captions(placed: Sequence[Placed]) -> list[Problem]:
    return [
        each.caption.problem for each in placed if each.caption.problem and each.caption.source in ("words", "none")
    ]


def _too_long(placed: Sequence[Placed], counted: Mapping[Key, int], limit: int) -> list[Problem]:
    cut = [each.image for each in placed if counted.get(each.image.key, 0) > limit]
    if not cut:
        return []
    longest = max(counted.values())
    what = (
        f"{len(cut)} captions are longer than {limit} tokens (the longest has {longest}) and are cut: {names_of(cut)}."
    )
    room = next((length for length in LENGTHS if length >= longest), LENGTHS[-1])
    fix = f"Shorten them, or raise the longest caption to {room}." if room > limit else "Shorten them."
    return [Problem(what, "captions.max_token_length", fix, "advice")]


def remark_advice(placed: Sequence[Placed], looks: Mapping[Key, Look]) -> list[Problem]:
    """Images that could be read although something in them is damaged, by what that is."""
    groups: dict[str, list[ImageInfo]] = defaultdict(list)
    for each in placed:
        look = looks.get(each.image.key)
        if look and look.remark:
            groups[look.remark].append(each.image)
    fix = "Look at them; if one looks wrong, save it again or replace it."
    found = [(remark, printable(images[0].path.parent), images) for remark, images in groups.items()]
    return [
        Problem(
            f"{count(len(images), 'image')} with damaged data that was skipped ({remark}): {names_of(images)}.",
            where,
            fix,
            "advice",
        )
        for remark, where, images in found[:MOST_REMARKS]
    ]


def size_advice(placed: Sequence[Placed]) -> list[Problem]:
    found = []
    turned = [each.image for each in placed if each.image.rotated]
    if turned:
        how = "is stored sideways and is" if len(turned) == 1 else "are stored sideways and are"
        what = f"{count(len(turned), 'image')} {how} turned upright as their EXIF says: {names_of(turned)}."
        fix = "Nothing needs to be done; captions should describe them upright."
        found.append(Problem(what, printable(turned[0].path.parent), fix, "advice"))
    other = [each.image for each in placed if each.image.really]
    if other:
        names = listed([f"{image.relative} ({image.really})" for image in other])
        what = f"{count(len(other), 'file')} of another kind than the name says, read as what they are: {names}."
        fix = "Nothing needs to be done here; other programs may refuse them until they are renamed."
        found.append(Problem(what, printable(other[0].path.parent), fix, "advice"))
    small = sorted(
        (each for each in placed if each.placement.scale > ENLARGED_FROM), key=lambda each: -each.placement.scale
    )
    if small:
        most = small[0].placement.scale
        what = f"{len(small)} of {len(placed)} images are smaller than their bucket and are enlarged, "
        what += f"the most by {most:.1f} times: {names_of([each.image for each in small])}."
        fix = "Use larger images, a lower resolution, or turn on 'Never enlarge'."
        found.append(Problem(what, printable(small[0].image.path.parent), fix, "advice"))
    cropped = sorted(
        (each for each in placed if each.placement.kept < KEPT_BELOW), key=lambda each: each.placement.kept
    )
    if cropped:
        least = cropped[0].placement.kept
        what = f"{len(cropped)} of {len(placed)} images lose more than half of themselves to the crop, "
        what += f"at the most all but {least:.0%}: {names_of([each.image for each in cropped])}."
        fix = "Crop them by hand, or raise the longest bucket side."
        found.append(Problem(what, printable(cropped[0].image.path.parent), fix, "advice"))
    return found


def balance_advice(epochs: Epochs) -> list[Problem]:
    """Regularization without anything to balance, and what no epoch shows."""
    found = []
    for part in epochs.parts:
        if isinstance(part, Turn) and part.pool and not len(part):
            what = f"{part.pool} regularization images have nothing to balance and are not shown."
            fix = "Add images to train, or put both into the same batch group."
            found.append(Problem(what, "dataset.sources", fix, "advice"))
    unused = epochs.not_needed()
    if unused and not found:
        what = f"{len(unused)} regularization images never train: sd-scripts' balance takes the first ones, until there"
        what += f" are as many views as of the others: {names_of([each.image for each in unused])}."
        fix = "Set 'Balance of regularization' to all in turn, or add images to train."
        found.append(Problem(what, "dataset.reg_balance", fix, "advice"))
    never = epochs.never_shown()
    if never:
        what = f"{len(never)} images never train: their buckets do not fill a batch, and short batches are left out: "
        what += names_of([each.image for each in never])
        fix = "Set 'Buckets that do not fill a batch' to short batches, or lower the batch size."
        found.append(Problem(what + ".", "dataset.short_batches", fix, "advice"))
    return found
