"""Copies generated images into a dataset to train on, with their prompts as captions."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from core.families.prompt_weights import read_weights
from core.generation.prompt.loras import remove_tags
from core.generation.prompt.options import read_line
from core.generation.prompt.runs import AND, BREAK, weighted_parts
from core.record import atomic
from core.record.problems import ProblemsError, write_errors
from core.record.space import require_space
from core.settings.names import bad_name


def copy_as_dataset(
    images: Sequence[tuple[Path, str]],
    name: str,
    datasets: Path,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Path:
    """Copy images, each with its plain prompt as caption, atomically into a new folder below `datasets`; return the folder.

    images     (file, prompt); for an empty prompt no caption is written
    name       of the folder; -2, -3 ... is added if it exists
    check      called before each image; may raise to cancel
    progress   called with (text, completed images, number of images)

    Raises ProblemsError for an invalid name, for no images, and if copying fails.
    """
    if (problem := bad_name(name)) is not None:
        what = f"The dataset cannot be called '{name[:60]}': {problem}"
        raise ProblemsError.one(what, "Train on these", "use another name", "gallery.bad-dataset-name")
    if not images:
        what, fix = "No images are selected", "select images, or change the filter"
        raise ProblemsError.one(what, "Train on these", fix, "gallery.nothing-selected")
    with write_errors("The images could not be copied", str(datasets), "none was copied"):
        datasets.mkdir(parents=True, exist_ok=True)
        require_space(datasets, sum(path.stat().st_size for path, _ in images), "The copy", "free some space")
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=datasets))
        try:
            stems: set[str] = set()
            for number, (path, prompt) in enumerate(images):
                check()
                progress(f"Copying {number + 1:,} of {len(images):,}", number, len(images))
                target = temporary / _unused_name(path, stems)
                shutil.copyfile(path, target)
                if caption := plain_prompt(prompt):
                    target.with_suffix(".txt").write_text(caption, encoding="utf-8")
            os.chmod(temporary, 0o755)
            return atomic.rename_to_unused(temporary, datasets, name)
        finally:
            atomic.remove_folder(temporary)


def plain_prompt(prompt: str) -> str:
    """Return a prompt as a caption: without LoRA tags, inline options, weights, AND and BREAK."""
    text = remove_tags(read_line(" ".join(prompt.split()), [], "").text)
    texts = [part for part, _ in weighted_parts(text)] if AND.search(text) else [text]  # alone, ":30" may be a time
    joined = ", ".join("".join(run for run, _ in read_weights(text)[0]) for text in texts)
    parts = " ".join(BREAK.sub(",", joined).split()).split(",")
    return ", ".join(part.strip() for part in parts if part.strip())


def _unused_name(path: Path, stems: set[str]) -> str:
    """Return the file name of an image with a number if its stem is taken: captions belong to stems. stems: those in use, extended"""
    stem = next(name for name in atomic.numbered(path.stem) if name.casefold() not in stems)
    stems.add(stem.casefold())
    return stem + path.suffix
