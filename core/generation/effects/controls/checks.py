"""Checks of a generation's control images and ControlNets before anything is loaded. Imports no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from core.control.hints.models import checked_model
from core.generation.model.other_files import NETS
from core.generation.model.sources import Sources
from core.generation.plan.initial import CONTROL, image_files, opened
from core.generation.plan.stages import as_sd_scripts
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.stamps import cached_until_changed
from core.record.units import count
from core.record.workspace import Workspace, resolve_path
from core.settings.hints import BY_MODEL
from core.settings.job import GenerateJob


def control_problems(job: GenerateJob) -> Iterator[Problem]:
    """Yield problems in the ControlNet settings of one image, before any file is opened."""
    settings = job.controls
    for use in settings.used:
        name = Path(use.file).name
        if not use.image:
            fix = "choose one, or set one for all"
            yield Problem(f"The ControlNet {name} has no control image", NETS, fix, code="controls.no-image")
        if use.start_at >= use.end_at:
            what = f"{name} starts at {use.start_at:g} of the steps and ends at {use.end_at:g}"
            yield Problem(what, NETS, "use a later end, or turn it off", code="controls.step-range")
    if not settings.used:
        if settings.control_image and not job.perceptual.compares_images:
            what, fix = "The control image has no effect: there is no ControlNet", "add a ControlNet, or remove it"
            yield Problem(what, "controls.control_image", fix, "advice", code="controls.image-alone")
        return
    if job.deep_shrink.ds_depth_1 is not None:
        what, fix = "ControlNets cannot be used with Deep Shrink", "turn one of them off"
        yield Problem(what, "deep_shrink.ds_depth_1", fix, code="controls.deep-shrink")


def control_file_problems(job: GenerateJob, sources: Sources, workspace: Workspace) -> Iterator[Problem]:
    """Yield problems of the ControlNet files, preprocessor models and control images of one image.
    sources: with the ControlNets that the settings name"""
    for use in job.controls.used:
        net = sources.controls[use.file]
        if net.is_lllite and use.mode != "balanced":
            what = f"The control mode of {net.path.name} has no effect: it is a ControlNet-LLLite"
            yield Problem(what, NETS, "choose balanced", "advice", code="controls.lllite-mode")
        if use.preprocessor == BY_MODEL:
            problems: list[Problem] = []
            collected(problems, checked_model, use.hint_model, workspace, NETS)
            yield from problems
        if use.preprocessor == "none" and use.image and _is_black(path := resolve_path(use.image)):
            what = f"The control image {path.name} is all black"
            fix = "choose another, or a preprocessor if it is to be made from an image"
            yield Problem(what, NETS, fix, "advice", code="controls.all-black")


def with_control_images(jobs: Sequence[GenerateJob]) -> list[GenerateJob]:
    """Return the jobs with one control image for each enabled ControlNet; disabled ControlNets are removed.

    Images of a folder are used in turn. Raises ProblemsError for missing and unreadable images.
    """
    files: dict[str, list[Path]] = {}
    with_images = []
    for number, job in enumerate(jobs):
        settings = job.controls
        nets = [use for use in settings.nets if use.enabled]
        shared = _files_for(settings.control_image, number, files, _nets_sharing_folder(job))
        unclaimed = iter(shared if len(shared) > 1 else ())
        images = [
            next(iter(_files_for(use.image, number, files)), None) if use.image else next(unclaimed, None)
            for use in nets
        ]
        changes = {
            "nets": [use.model_copy(update={"image": image}) for use, image in zip(nets, images, strict=True)],
            "control_image": shared[0] if shared else None,
        }
        with_images.append(job.with_settings(controls=changes))
    problems: list[Problem] = []
    for path in dict.fromkeys(path for each in with_images for path in _control_images(each)):
        collected(problems, _is_black, Path(path))  # raises for an unreadable image, and is cached
    raise_if_errors(problems)
    return with_images


def _control_images(job: GenerateJob) -> Iterator[str]:
    """Yield the control images of a job with one for each ControlNet."""
    yield from filter(None, (*(use.image for use in job.controls.nets), job.controls.control_image))


def _nets_sharing_folder(job: GenerateJob) -> int:
    """Return the number of ControlNets that each take the next image of the shared folder; 1 if all use the same image."""
    return sum(use.enabled and not use.image for use in job.controls.nets) if as_sd_scripts(job) else 1


def _files_for(text: str | None, number: int, files: dict[str, list[Path]], nets: int = 1) -> list[str]:
    """Return the control image, or one for each of `nets` ControlNets, for the generated image with index `number`.

    Files of a folder are used in the order of sd-scripts' generator (reference: controlnet, 4.1). Raises ProblemsError for
    missing images.

    text    path of an image or folder; None or "": returns []
    files   cache {text: its image files}, extended here
    """
    if not text:
        return []
    if text not in files:
        files[text] = image_files(text, NETS)
    folder_files = files[text]
    nets = max(nets, 1) if len(folder_files) > 1 else 1
    if len(folder_files) < nets:
        what = f"'{text}' contains {count(len(folder_files), 'control image')} for {count(nets, 'ControlNet')}"
        raise ProblemsError.one(what, NETS, "add images, so that each has its own", "controls.too-few-images")
    first = number % (len(folder_files) // nets) * nets
    return [str(path) for path in folder_files[first : first + nets]]


def unused_images(jobs: Sequence[GenerateJob]) -> Iterator[Problem]:
    """Yield advice about the last images of a control image folder if they are never used.

    Each generated image takes the next n files for its n ControlNets, and starts again at the first file when fewer than n
    are left.

    jobs   of all images, before folders are resolved
    """
    shared = {(job.controls.control_image, _nets_sharing_folder(job)) for job in jobs}
    for text, nets in sorted((text, nets) for text, nets in shared if text and nets > 1):
        files = image_files(text, NETS)
        unused = files[len(files) - len(files) % nets :]
        if len(files) > nets and unused and len(jobs) >= len(files) // nets:
            what = f"{count(len(unused), 'control image')} of {text} cannot be dealt to {nets} ControlNets and will not be used"
            fix = f"remove {unused[0].name}, or add images for a multiple of {nets}"
            yield Problem(what, "controls.control_image", fix, "advice", code="controls.left-over-images")


@cached_until_changed(4096, missing=False)  # every check of the settings calls it
def _is_black(path: Path) -> bool:
    """Return whether an image is all black. Raises ProblemsError if it cannot be read."""
    return opened(path, CONTROL).getbbox() is None
