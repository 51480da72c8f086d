"""Plans regularization images: class, number, sizes, and existing images in their folder. Loads no model.

A regularization image is what the base model generates for a class ("dog"). Trained along with images of one dog, it
preserves the model's prior of the class (prior preservation: Ruiz et al. 2022, arXiv:2208.12242).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from core.dataset.preflight import preflight
from core.dataset.sources.files import is_image, is_junk, is_label, printable, walk_folders
from core.generation.prompt.loras import has_tags
from core.record import atomic, draws
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.regular import MissingFile
from core.record.run_folder import safe_name
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.dataset.dataset import DatasetSettings
from core.settings.job import ClassImagesJob, TrainJob

Size = tuple[int, int]

MANIFEST, FORMER_MANIFEST = "class_images.json", "class_pictures.json"  # the second as version 1 wrote it
FORMAT = 1
MOST_BY_ITSELF = 200  # images if no number is set; DreamBooth's authors use about 200 per subject
SMALLEST_SIDE = 64  # pixels; a U-Net halves a smaller image too often
GENERATED = re.compile(r"class_\d{4,}\.png")
END_OF_PNG = b"IEND\xaeB`\x82"
# Settings that must be equal for all images of a folder, with their names for messages.
TITLES = {
    "prompt": "prompt",
    "negative_prompt": "negative prompt",
    "seed": "seed",
    "sampler": "sampler",
    "steps": "number of steps",
    "guidance_scale": "guidance",
    "clip_skip": "clip skip",
    "prediction": "prediction type",
    "model": "base model",
    "vae": "VAE",
    "caption": "caption",
    "prompt_weights": "prompt weights",
    "zero_terminal_snr": "zero terminal SNR",
}


@dataclass(frozen=True)
class ClassPlan:
    """The plan of a job.

    sizes   (width, height) of image 0, 1, ... for the current dataset, for all of `number`
    views   {size: how often an epoch shows it}      number   requested, including other images in the folder
    """

    folder: Path
    class_word: str
    prompt: str
    caption: str
    number: int
    views: dict[Size, int]

    @property
    def sizes(self) -> list[Size]:
        return sizes_by_views(self.views, self.number)

    @property
    def to_generate(self) -> int:
        """The number of images to generate; other images in the folder count towards it."""
        return max(0, self.number - len(other_images(self.folder)))


@dataclass
class Manifest:
    """The content of class_images.json: the settings of a folder's images and the size of each.

    settings   those in TITLES, SHA-256 for the files       sizes    of image 0, 1, ...; generated or missing
    at_once    batch size for each image size ("512x768"): fixed, since rounding depends on it
    """

    settings: dict[str, Any]
    class_word: str = ""
    sizes: list[Size] = field(default_factory=list)
    at_once: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        content = {"format": FORMAT, "class": self.class_word, "settings": self.settings}
        content |= {"at_once": self.at_once, "sizes": self.sizes}
        atomic.write_json(folder / MANIFEST, content)


# ---- the plan


def plan_class_images(job: ClassImagesJob, workspace: Workspace) -> ClassPlan:
    """The plan of a job, from the headers of its dataset. Raises ProblemsError with all errors."""
    settings, dataset = job.class_images, job.dataset
    problems: list[Problem] = []
    class_word = (settings.class_word or first_class_word(dataset) or "").strip()
    if not class_word and "{class}" in settings.prompt + settings.caption:
        fix = "set class_images.class_word to what the subject is, such as dog"
        if "{class}" not in settings.prompt:
            fix += ", or write class_images.caption without {class}"
        what = "The regularization images have no class"
        problems.append(Problem(what, "class_images.class_word", fix, code="class-images.no-class"))
    prompt = settings.prompt.replace("{class}", class_word).strip()
    if not prompt:
        what = "The prompt of the regularization images is empty"
        problems.append(Problem(what, "class_images.prompt", "write a prompt", code="class-images.no-prompt"))
    if has_tags(prompt + settings.negative_prompt):
        what, fix = "Regularization images are generated without LoRAs", "remove <lora:...> from the prompt"
        problems.append(Problem(what, "class_images.prompt", fix, code="class-images.lora"))
    folder = class_folder(settings.folder, class_word or prompt, workspace)
    problems += _folder_problems(folder, dataset)
    report = preflight(TrainJob(dataset=_only_training(dataset, class_word), captions=job.captions), workspace)
    if not report.placed:
        problems += [problem for problem in report.problems if problem.level == "error"]
        if not problems:
            what = "The dataset has no image to take sizes from"
            problems.append(Problem(what, "dataset", "add images", code="dataset.no-images"))
    raise_if_errors(problems)
    views: dict[Size, int] = {}
    for (width, height), (_, views_of_size) in report.buckets.items():
        size = (max(width, SMALLEST_SIDE), max(height, SMALLEST_SIDE))
        views[size] = views.get(size, 0) + views_of_size
    number = settings.number or min(max(sum(views.values()), 1), MOST_BY_ITSELF)
    caption = settings.caption.replace("{class}", class_word).replace("{prompt}", prompt).strip()
    return ClassPlan(folder, class_word, prompt, caption, number, views)


def first_class_word(dataset: DatasetSettings) -> str | None:
    """The class of the first training folder with one."""
    sources = [source for source in dataset.all_sources() if source.role == "train"]
    return next((source.class_word for source in sources if (source.class_word or "").strip()), None)


def class_folder(chosen: str | None, name: str, workspace: Workspace) -> Path:
    """The folder of the settings, else outputs/datasets/<class> regularization images."""
    if chosen and chosen.strip():
        return resolve_path(chosen.strip())
    return workspace.datasets / f"{safe_name(name).replace('_', ' ')} regularization images"


def _only_training(dataset: DatasetSettings, class_word: str) -> DatasetSettings:
    """The folders whose sizes count: those of this class, else all training folders."""
    sources = [source for source in dataset.all_sources() if source.role == "train"]
    of_class = [source for source in sources if (source.class_word or "").strip() == class_word]
    return dataset.model_copy(
        update={"folder": None, "reg_data_dir": None, "sources": of_class if class_word and of_class else sources}
    )


def _folder_problems(folder: Path, dataset: DatasetSettings) -> list[Problem]:
    """Errors of a folder for regularization images that cannot be used, is a file, or is inside or around a training folder."""
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as error:  # a name that no disk can hold
        what = f"The folder for the regularization images cannot be used: {error.strerror}"
        return [Problem(what, printable(folder), "use a shorter name or path", code="class_images.bad-folder")]
    if is_file:
        what = "The regularization folder is a file"
        return [Problem(what, printable(folder), "choose another folder", code="file.not-a-folder")]
    named = [source.folder for source in dataset.all_sources() if source.role == "train" and source.folder.strip()]
    if inside := [each for each in named if folder.resolve().is_relative_to(_real(each))]:
        what = (
            f"The regularization images would be inside a training folder ({printable(inside[0])}) and would "
            "be trained as the subject"
        )
        fix, code = "choose a folder outside of it", "class-images.inside-training-folder"
        return [Problem(what, printable(folder), fix, code=code)]
    if around := [each for each in named if _real(each).is_relative_to(folder.resolve())]:
        what = (
            f"The regularization folder contains a training folder ({printable(around[0])}), whose images would "
            "count as regularization images"
        )
        fix, code = "choose a folder next to it", "class-images.contains-training-folder"
        return [Problem(what, printable(folder), fix, code=code)]
    return []


def _real(folder: str) -> Path:
    return resolve_path(folder.strip()).resolve()


def sizes_by_views(views: Mapping[Size, int], number: int, begun: Sequence[Size] = ()) -> list[Size]:
    """A size for each of `number` images, so that any first n of them are distributed like the views (within one
    image).

    Each image gets the size furthest behind its share; ties go by (width, height). So a larger number only adds images.
    begun: fixed sizes, which the others compensate for
    """
    sizes, total = list(begun[:number]), sum(views.values())
    counts = {size: sizes.count(size) for size in sorted(views)}
    while len(sizes) < number:
        # In integers: share * (n + 1) - count, times the total.
        behind = {size: views[size] * (len(sizes) + 1) - counts[size] * total for size in counts}
        size = max(behind, key=lambda one: behind[one])
        counts[size] += 1
        sizes.append(size)
    return sizes


def seed_of(seed: int, number: int) -> int:
    """The seed of an image (from 0): addressed, so that it does not depend on which other images are generated."""
    return draws.integer(0, 2**32, seed, "class picture", number)  # the address of version 1, so that seeds stay


def image_name(number: int) -> str:
    """class_0001.png is image 0: file names count from one."""
    return f"class_{number + 1:04d}.png"


# ---- the content of the folder


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None without one. Raises ProblemsError if it is unreadable."""
    path = folder / MANIFEST
    if not path.exists() and (folder / FORMER_MANIFEST).exists():
        path = folder / FORMER_MANIFEST
    try:
        content = read_json_object(path)
        sizes = [(int(width), int(height)) for width, height in content["sizes"]]
        at_once = {str(size): int(count) for size, count in content["at_once"].items()}
        if (
            content["format"] != FORMAT
            or any(count < 1 for count in at_once.values())
            or min(map(min, sizes), default=8) < 8
        ):
            raise ValueError
        return Manifest(dict(content["settings"]), str(content["class"]), sizes, at_once)
    except MissingFile:
        return None
    except (ProblemsError, ValueError, KeyError, TypeError, AttributeError):
        what = "The list of generated images in this folder cannot be read"
        fix = "choose a new folder (class_images.folder)"
        raise ProblemsError.one(what, printable(path), fix, "class-images.bad-manifest") from None


def manifest_for(plan: ClassPlan, settings: dict[str, Any]) -> tuple[Manifest, list[Problem]]:
    """The folder's manifest with a size for each image of the plan, and advice.

    Images planned before keep their sizes, new ones follow the current dataset. Raises ProblemsError if the folder's
    images were generated with other settings: they are never mixed.
    """
    settings = settings | {"caption": plan.caption}
    manifest = read_manifest(plan.folder)
    if manifest is None:
        _refuse_unlisted(plan.folder)
        manifest = Manifest(settings, plan.class_word)
    manifest.settings.setdefault("caption", plan.caption)  # manifests of earlier versions lack it
    different = [name for name in TITLES if manifest.settings.get(name) != settings.get(name)]
    if different:
        changes = "; ".join(
            f"{TITLES[name]} {_change(name, manifest.settings.get(name), settings.get(name))}" for name in different
        )
        what = f"The regularization images in this folder were generated with other settings: {changes}"
        fix = f"choose a new folder, such as {display_path(_free_folder(plan.folder))}, or restore these settings"
        raise ProblemsError.one(what, printable(plan.folder), fix, "class-images.other-settings")
    advice = []
    if manifest.sizes and not set(manifest.sizes) <= set(plan.views):
        what = "The training image sizes changed after these regularization images were planned; those keep their sizes"
        fix = "choose a new folder to use the current sizes"
        advice.append(Problem(what, printable(plan.folder), fix, "advice", code="class-images.other-sizes"))
    manifest.sizes = sizes_by_views(plan.views, max(plan.to_generate, len(manifest.sizes)), manifest.sizes)
    return manifest, advice


def _refuse_unlisted(folder: Path) -> None:
    """Raise ProblemsError for images with our names but without the manifest: their settings are unknown."""
    images = [name for name in os.listdir(folder) if GENERATED.fullmatch(name)] if folder.is_dir() else []
    if images:
        what = f"The folder has regularization images ({min(images)}) but no {MANIFEST}, which records their settings"
        fix = "choose a new folder (class_images.folder)"
        raise ProblemsError.one(what, printable(folder), fix, "class-images.no-manifest")


def _change(name: str, before: Any, now: Any) -> str:
    if name in ("model", "vae"):
        return "is a different file"
    return f"was {before!r}, now {now!r}"


def _free_folder(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name} {number}") for number in count(2))
    return next(free for free in names if not free.exists())


def other_images(folder: Path) -> list[Path]:
    """Images in the folder and its subfolders that this program did not generate. They count towards the number."""
    images = []
    for root, folders, names in walk_folders(folder):
        folders[:] = [name for name in folders if not is_junk(name)]
        top = root == folder
        images += [
            root / name
            for name in names
            if not is_junk(name) and not is_label(name) and is_image(root / name, name)
            if not (top and GENERATED.fullmatch(name))
        ]
    return images


def missing(folder: Path, manifest: Manifest, number: int) -> list[int]:
    """Which of the first `number` images are missing or incomplete."""
    return [index for index in range(min(number, len(manifest.sizes))) if not _is_complete(folder / image_name(index))]


def _is_complete(path: Path) -> bool:
    """Whether the file is a complete PNG: a truncated copy is generated again."""
    try:
        with open(path, "rb") as handle:
            handle.seek(-len(END_OF_PNG), os.SEEK_END)
            return handle.read() == END_OF_PNG
    except OSError:
        return False
