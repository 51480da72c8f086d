"""Builds the result of a scan, folder by folder: images with size, repeats and captions, and all problems."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.sources.cache_list import compare_with_disk, write_list
from core.dataset.sources.conditioning import (
    CONTROL,
    MASK,
    PartnerKind,
    Partners,
    conditioning_folder,
    extra_problems,
    folder_partners,
    like_masks,
    mask_folders,
    metadata_partners,
    pair,
    sidecar_partners,
    unused_labels,
    without_suffix,
)
from core.dataset.sources.files import CAPTION_EXTENSIONS, CONTROL_LABEL, MASK_LABEL, printable, reachable, stem_key
from core.dataset.sources.folders import Root, folder_of, roots_of, whole_root
from core.dataset.sources.image_info import Broken, Folder, ImageInfo, Scan, about, names_of
from core.dataset.sources.memo import Memo
from core.dataset.sources.metadata import CACHE_LIST, Entry, Finder, Metadata, match_problems, read_metadata
from core.dataset.sources.painted import other_masks
from core.dataset.sources.walk import File, Walk, headers, image_of, unused_files, unused_repeats, walk
from core.record.cancel import CancelToken
from core.record.problems import Problem
from core.record.workspace import resolve_path
from core.settings.dataset.concepts import Concept
from core.settings.dataset.images import ImageSettings

Listed = dict[Path, Entry]  # metadata entries by file


class ScanBuilder:
    """Builds a Scan, folder by folder.
    level: "error" or "advice": severity of problems about single images"""

    def __init__(self, memo: Memo, cancel: CancelToken | None, level: str):
        self.memo, self.cancel, self.level = memo, cancel, level
        self.images: list[ImageInfo] = []
        self.broken: list[Broken] = []
        self.folders: list[Folder] = []
        self.problems: list[Problem] = []
        self.left_out: list[tuple[ImageInfo, str]] = []
        self._ids: set[str] = set()
        self._entries_at: dict[tuple[object, ...], list[Concept]] = defaultdict(list)
        self._settings: dict[int, ImageSettings] = {}
        self._roles: dict[int, str] = {}
        self._from_lists: set[tuple[str, str]] = set()  # keys of images from metadata files
        # by kind and place, since several image folders may share one: all files there, and those of each image's name
        self._partners_of: dict[tuple[PartnerKind, str], tuple[list[File], list[Sequence[File]]]] = {}

    def add(self, concept: Concept) -> None:
        """Scan one folder of the settings and add its images and problems."""
        self._settings[concept.number], self._roles[concept.number] = concept.images, concept.role
        path, problem = folder_of(concept.source)
        if path is None:
            self.problems += [problem] if problem else []
            return
        if self._is_duplicate_entry(concept, path):
            what = "The folder is listed twice; it is used once"
            fix = "remove one entry, or use different settings for it"
            self.problems.append(Problem(what, printable(path), fix, "advice", code="dataset.duplicate-folder"))
            return
        if concept.source.metadata_file and concept.source.metadata_file.strip():
            self._add_listed(concept, path, concept.source.metadata_file)
        else:
            self._add_folders(concept, path)

    def result(self) -> Scan:
        """Return the finished scan, with the problems that concern all folders together."""
        self.problems += [problem_of(each.path, BrokenImage(each.reason), self.level) for each in self.broken]
        for (kind, where), (files, matches) in self._partners_of.items():
            self.problems += extra_problems(kind, where, files, matches)
        self.problems += [
            *_shared_stems(self.images),
            *_animated(self.images),
            *_overlaps(self.images, {each.id: (each.path, self._roles.get(each.concept, "")) for each in self.folders}),
        ]
        return Scan(
            tuple(self.images),
            tuple(self.broken),
            tuple(self.folders),
            tuple(self.problems),
            tuple(self.left_out),
        )

    # ---- one folder of the settings

    def _is_duplicate_entry(self, concept: Concept, path: Path) -> bool:
        """Return whether an earlier entry has the same folder and settings.

        With other settings the entry is a separate dataset (one folder at two resolutions is common).
        """
        source = concept.source
        where = (os.path.realpath(path), source.metadata_file, source.recursive, concept.role, concept.batch_group)
        earlier = self._entries_at[where]
        same = any((other.images, other.captions) == (concept.images, concept.captions) for other in earlier)
        earlier.append(concept)
        return same

    def _add_folders(self, concept: Concept, path: Path) -> None:
        """Scan the folders of one source: itself, or each `<repeats>_<words>` folder in it."""
        roots, problems = roots_of(concept.source, path)
        self.problems += problems
        excluded = excluded_folders(concept, path)
        walks: list[tuple[str, Walk]] = []
        labels: list[File] = []
        images_read: list[ImageInfo] = []
        subfolders: dict[str, str] = {}
        partners: dict[str, list[File]] = {}
        for root in roots:
            walked = walk(
                root.path, self.cancel, root.left_out, caption_endings(concept), excluded, concept.source.recursive
            )
            self.problems += walked.problems
            walks.append((root.subfolder, walked))
            images, sidecars, unused = split_sidecars(walked.files, concept)
            labels += unused
            if not images:
                continue
            self.problems += like_masks(images, root.path)
            id = self.new_id(printable(root.path.name) or "images")
            subfolders[id] = root.subfolder
            partners[id] = sidecars
            images_read += self._read_folder(images, id, root, concept)
        advice = [*unused_files(path, walks), *unused_repeats(path, walks), *unused_labels(labels, concept, path)]
        self.problems += [each for each in advice if subfolders or each.code == "dataset.ignored-names"]
        if walks and not subfolders:
            self.problems.append(_empty_folder(path, [walked for _, walked in walks]))
        self.finish(images_read, concept, subfolders, sidecar_partners(partners, printable(path)))

    def _read_folder(self, files: list[File], id: str, root: Root, concept: Concept) -> list[ImageInfo]:
        """Return the images of one folder: all, or with cache_info those in an existing metadata_cache.json."""
        path, listed = root.path / CACHE_LIST, concept.source.cache_info
        if listed and path.is_file():
            metadata = read_metadata(path)
            files_of_entries, entries = self._matched(metadata, files, root.path)
            images = self.read(files_of_entries, id, root, concept, entries)
            if metadata.entries:
                self.problems += compare_with_disk(images, files_of_entries, entries, concept.captions, path)
            return images
        images = self.read(files, id, root, concept)
        self.problems += write_list(path, images, concept.captions) if listed else []
        return images

    def _add_listed(self, concept: Concept, path: Path, file_setting: str) -> None:
        """Scan the images listed in a metadata file.

        path           the image folder
        file_setting   the setting with the metadata file
        """
        metadata = read_metadata(reachable(resolve_path(file_setting)))
        root = whole_root(concept.source, path)
        excluded = excluded_folders(concept, path)
        walked = walk(
            path, self.cancel, endings=caption_endings(concept), excluded=excluded, recursive=concept.source.recursive
        )
        files, partners, labels = split_sidecars(walked.files, concept)
        self.problems += walked.problems
        self.problems += [*unused_files(path, [("", replace(walked, lists=[]))]), *unused_labels(labels, concept, path)]
        files_of_entries, entries = self._matched(metadata, files, path)
        id = self.new_id(printable(path.name) or "images")
        images = self.read(files_of_entries, id, root, concept, entries, metadata.buckets)
        if metadata.buckets and concept.images.bucket_no_upscale:
            setting = ImageSettings.title_of("bucket_no_upscale")
            what = f"'{setting}' has no effect because the metadata file sets the bucket of each image"
            fix = "turn it off, or remove train_resolution from the file"
            where = printable(metadata.path)
            self.problems.append(Problem(what, where, fix, "advice", code="metadata.no-upscale-ignored"))
        self._replace_earlier(images, concept)
        self._from_lists.update(image.key for image in images)
        control_of = {
            file: control
            for file, entry in entries.items()
            if (control := entry.control_at(metadata.path.parent, path))
        }
        listed = metadata_partners(control_of, printable(metadata.path)) if control_of and concept.control else None
        self.finish(images, concept, {}, listed or sidecar_partners({id: partners}, printable(path)))

    def _matched(self, metadata: Metadata, files: list[File], folder: Path) -> tuple[list[File], Listed]:
        """Return the files that the metadata lists, and their entries by path. Records problems."""
        self.problems += metadata.problems
        if not metadata.entries:
            return [], {}
        finder = Finder(files, folder, metadata.path.parent)
        matches = finder.match(metadata.entries)
        self.problems += match_problems(matches, finder, metadata)
        return [file for _, file in matches.pairs], {file.path: entry for entry, file in matches.pairs}

    def _replace_earlier(self, images: Sequence[ImageInfo], concept: Concept) -> None:
        """Remove earlier images that are also in `images`, if both are from metadata files and train at the same sizes."""
        paths = {image.path for image in images}
        replaced = {
            image.key
            for image in self.images
            if image.path in paths and image.key in self._from_lists and self._settings[image.concept] == concept.images
        }
        earlier = [image for image in self.images if image.key in replaced]
        self.images = [image for image in self.images if image.key not in replaced]
        what = "{n} {is} listed in two metadata files; the later one is used: {names}"
        where, fix = printable(concept.source.metadata_file or ""), "remove them from one of the files"
        self.problems += about(earlier, what, fix, "metadata.duplicate-images", where=where)

    # ---- files to images

    def new_id(self, name: str) -> str:
        """Return a unique id for a folder: its name, with " #2" or the next free number if another folder has that name."""
        id, number = name, 1
        while id in self._ids:
            number += 1
            id = f"{name} #{number}"
        self._ids.add(id)
        return id

    def read(
        self,
        files: Sequence[File],
        id: str,
        root: Root,
        concept: Concept,
        entries: Listed | None = None,
        buckets: bool = False,
    ) -> list[ImageInfo]:
        """Read the headers of files and return the images; broken files and the folder are added to the scan.

        id        of the folder
        entries   metadata entries by path; None without metadata
        buckets   use the metadata's buckets
        """
        images: list[ImageInfo] = []
        for file, header in headers(files, self.memo, self.cancel):
            if isinstance(header, str):
                self.broken.append(Broken(id, file.relative, file.path, header))
                continue
            entry = entries[file.path] if entries is not None else None
            images.append(
                image_of(
                    id,
                    file,
                    header,
                    repeats=root.repeats,
                    class_tokens=root.class_tokens,
                    sidecars=file.sidecars if entry is None else (),
                    concept=concept.number,
                    metadata_caption=entry.text(concept.captions) if entry else None,
                    metadata_texts=entry.caption_and_tags if entry else None,
                    metadata_bucket=entry.train_resolution if entry and buckets else None,
                    sidecar_states=file.sidecar_states if entry is None else (),
                )
            )
        self.folders.append(
            Folder(id, root.path, root.repeats, root.class_tokens, root.named, len(images), concept.number)
        )
        if entries:
            self.problems += _other_sizes(images, entries)
        return images

    def finish(
        self, images: list[ImageInfo], concept: Concept, subfolders: dict[str, str], sidecars: Partners | None = None
    ) -> None:
        """Pair images with masks or control images, leave out small images, and add the others to the scan.

        subfolders   source id -> its path below the folder of the settings
        sidecars     masks or control images next to the images or listed in a metadata file, used without a folder setting
        """
        kind = CONTROL if concept.control else MASK
        partners = self._partners(concept, subfolders, kind, sidecars)
        if partners and images:
            alpha = kind is MASK and concept.images.alpha_mask
            paired = pair(images, partners, kind, memo=self.memo, cancel=self.cancel, level=self.level, alpha=alpha)
            if concept.reads_partners:
                self.problems += paired.problems
                for each in filter(None, (partners, partners.others)):
                    files, matches = self._partners_of.setdefault((kind, each.where), ([], []))
                    files += each.files
                    matches += map(each.find, images)
                self.left_out += [(each, why) for each in images if (why := paired.unusable.get(each.key))]
                images = paired.images
            else:  # only a start for painted masks
                with_mask = {each.key: each for each in paired.images}
                images = [with_mask.get(each.key, each) for each in images]
        limit = concept.images.skip_image_resolution
        small = [each for each in images if each.width * each.height <= limit * limit] if limit else []
        why = f"has at most {limit:g} x {limit:g} pixels"
        self.left_out += [(each, why) for each in small]
        what = f"{{n}} {{has}} at most {limit:g} x {limit:g} pixels, skipped: {{names}}"
        fix = f"lower '{ImageSettings.title_of('skip_image_resolution')}' to train on them"
        self.problems += about(small, what, fix, "image.too-small")
        too_small = {each.key for each in small}
        images = [each for each in images if each.key not in too_small]
        self.images += images

    def _partners(
        self, concept: Concept, subfolders: dict[str, str], kind: PartnerKind, sidecars: Partners | None
    ) -> Partners | None:
        """Return the files to pair a folder's images with; None if nothing is paired.
        subfolders, sidecars: as in `finish`"""
        chosen = conditioning_folder(concept.images.conditioning_data_dir)
        folder = other_masks(chosen) if kind is MASK else chosen
        others: Partners | Problem | None
        if folder is None:
            images = concept.images
            masked = kind is MASK and images.masked_loss and not images.alpha_mask
            wanted = masked or images.conditioning_suffix
            others = sidecars if wanted or (sidecars and sidecars.files) else None
        else:
            others = folder_partners(folder, subfolders, kind, concept.images.conditioning_suffix, self.cancel)
        if isinstance(others, Problem):
            if chosen != folder:
                others = replace(others, level="advice", fix="put it back, or paint the masks of these images")
            self.problems += [others] if concept.reads_partners else []
            others = None
        painted = folder_partners(chosen, subfolders, kind, None, self.cancel) if chosen and chosen != folder else None
        return replace(painted, others=others) if isinstance(painted, Partners) else others


def excluded_folders(concept: Concept, path: Path) -> list[Path]:
    """Return folders inside `path` to skip: those of the masks or control images, if they are other folders."""
    return [each for each in mask_folders(concept) if os.path.realpath(each) != os.path.realpath(path)]


def split_sidecars(files: list[File], concept: Concept) -> tuple[list[File], list[File], list[File]]:
    """Split files by name: (images, their masks or control images, OneTrainer's masks and control images that are not used)."""
    folder = other_masks(conditioning_folder(concept.images.conditioning_data_dir))
    partners: list[File] = []
    if concept.images.conditioning_suffix and folder is None:
        files, partners = without_suffix(files, concept.images.conditioning_suffix)
    images, masks = without_suffix(files, MASK_LABEL)
    images, controls = without_suffix(images, CONTROL_LABEL)
    if masks and not partners and folder is None and not concept.control and concept.images.masked_loss:
        partners, masks = masks, []
    return images, partners, masks + controls


def caption_endings(concept: Concept) -> tuple[str, ...]:
    """Return the extensions of the concept's caption files, in lower case."""
    setting = concept.captions.caption_extension.lower()
    return CAPTION_EXTENSIONS if setting == "auto" else tuple(dict.fromkeys((*CAPTION_EXTENSIONS, setting)))


# ---- problems


def _empty_folder(path: Path, walks: Iterable[Walk]) -> Problem:
    """Return the problem of a folder without images, which names the kinds of files in it."""
    others: Counter[str] = Counter()
    for each in walks:
        others.update(each.others)
    kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(4))
    what = f"The folder contains no images, only other files: {kinds}" if kinds else "The folder is empty"
    fix = "choose a folder with .png, .jpg, .webp or other images"
    return Problem(what, printable(path), fix, code="dataset.no-images")


def _other_sizes(images: Sequence[ImageInfo], entries: Listed) -> list[Problem]:
    """Return advice about images replaced since the metadata was written. sd-scripts writes sizes before EXIF rotation."""
    other = [
        f"{image.relative} ({size[0]} x {size[1]} in the metadata, {image.width} x {image.height} now)"
        for image in images
        if (size := entries[image.path].image_size) and sorted(size) != sorted((image.width, image.height))
    ]
    what = "{n} {has} a different size than in the metadata; the actual size is used: {names}"
    where = printable(images[0].path.parent) if images else ""
    return about(other, what, "create the metadata again", "metadata.other-size", where=where, most=3)


def _shared_stems(images: Sequence[ImageInfo]) -> list[Problem]:
    """Return advice about images that share a stem: a.png and a.jpg share a.txt; a.png and A.png are one file on Windows and macOS."""
    stems: dict[tuple[str, str], list[ImageInfo]] = defaultdict(list)
    for image in images:
        stems[image.source, stem_key(image.relative)].append(image)
    problems = []
    for group in stems.values():
        if len(group) < 2:
            continue
        names = {os.path.splitext(image.relative)[0] for image in group}
        if len(names) == 1:
            code = "image.same-stem"
            captions = {image.sidecars[:1] for image in group}
            shared = "" if len(captions) == len(group) else ": they share a caption file"
            what = f"{names_of(group)} differ only in the extension{shared} and may be the same image"
        else:
            code = "image.same-name-ignoring-case"
            what = f"{names_of(group)} differ only in case or in how accents are encoded, so they can conflict on another system"
        fix = "rename or remove one of them"
        problems.append(Problem(what, printable(group[0].path.parent), fix, "advice", code=code))
    return problems


def _animated(images: Sequence[ImageInfo]) -> list[Problem]:
    """Return advice about animated images, of which only the first frame is used."""
    animated = [image for image in images if image.animated]
    what, fix = "{n}: only the first frame is used ({names})", "save the frame you want as a separate image"
    return about(animated, what, fix, "image.animated", noun="animated image")


def _overlaps(images: Sequence[ImageInfo], entries: Mapping[str, tuple[Path, str]]) -> list[Problem]:
    """Return advice about images in two different entries, such as regularization images below the training folder.
    entries: source id -> (path, role)"""
    first: dict[Path, ImageInfo] = {}
    overlaps: dict[tuple[Path, Path], list[ImageInfo]] = defaultdict(list)
    for image in images:
        earlier = first.setdefault(image.path, image)
        if earlier is not image and entries[earlier.source] != entries[image.source]:
            overlaps[entries[earlier.source][0], entries[image.source][0]].append(image)
    what = "{n} {is} in two dataset entries and used by both (or by neither, if held out for validation): {names}"
    fix, code = "move one folder out of the other, or remove an entry", "dataset.overlapping-folders"
    return [
        problem
        for (one, other), group in overlaps.items()
        for problem in about(group, what, fix, code, where=f"{printable(one)} and {printable(other)}")
    ]
