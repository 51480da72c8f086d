"""Rules over several settings: what is wrong together, and what is worth saying."""

from __future__ import annotations

from core.record.problems import Problem
from core.settings.base import declared, every
from core.settings.concepts import concepts_of
from core.settings.ineffective import value_of
from core.settings.job import TrainJob
from core.settings.pictures import PictureSettings

PERIODS = (
    "saving.save_every_n_epochs",
    "saving.save_every_n_steps",
    "saving.save_every_minutes",
    "saving.save_n_evenly",
    "saving.save_last_n",
    "samples.sample_every_n_steps",
    "samples.sample_every_n_epochs",
)


def training_problems(job: TrainJob) -> list[Problem]:
    """Errors and advice that follow from the settings alone, before any file is looked at."""
    found: list[Problem] = []
    titles = {entry.path: entry.title for entry in declared(TrainJob)}
    if not (job.network.train_unet or job.network.train_text_encoder):
        found.append(Problem("Nothing would be trained", "network", "train the U-Net, the text encoder, or both"))
    elif not _some_rate(job):
        found.append(
            Problem(
                "Every learning rate is 0, so nothing would change", "optimizer", "give a rate above 0, such as 1e-4"
            )
        )
    if job.noise.min_timestep >= job.noise.max_timestep:
        found.append(
            Problem(
                f"The lowest timestep ({job.noise.min_timestep}) is not below the highest ({job.noise.max_timestep})",
                "noise.min_timestep",
                "lower it, or raise noise.max_timestep",
            )
        )
    longest = job.dataset.max_bucket_reso
    if job.dataset.enable_bucket and longest is not None and longest < _long_side(job):
        found.append(
            Problem(
                f"The longest bucket side ({longest}) is below the resolution ({_long_side(job)})",
                "dataset.max_bucket_reso",
                "leave it empty, or raise it",
            )
        )
    total = job.schedule.max_train_steps
    if total is not None and job.schedule.lr_warmup_steps >= total > 0 and job.schedule.lr_warmup_steps > 0:
        text = f"The warm-up ({job.schedule.lr_warmup_steps} steps) lasts the whole run ({total} steps)"
        found.append(Problem(text, "schedule.lr_warmup_steps", "shorten it", level="advice"))
    for path in PERIODS:
        value = value_of(job, path)
        if value is not None and value < 0:
            found.append(
                Problem(
                    f"{titles[path]} is {value}, which is treated as off", path, "leave it empty or write 0", "advice"
                )
            )
    if not every(job.saving.save_every_minutes) and not every(job.saving.save_every_n_steps):
        found.append(
            Problem(
                "A crash would lose everything since the last epoch save",
                "saving.save_every_minutes",
                "back up every 10 minutes",
                "advice",
            )
        )
    return found + cache_problems(job) + _strength_problems(job) + _name_problems(job.saving.output_name)


def changes_by_chance(pictures: PictureSettings) -> list[str]:
    """The settings that give a picture another look at each draw, so that its latents cannot be encoded once.

    Mirroring is none of them: both sides are encoded.
    """
    found = [name for name in ("color_aug", "random_crop") if getattr(pictures, name)]
    if pictures.face_crop_aug_range is not None and not pictures.enable_bucket:
        found.append("face_crop_aug_range")
    return found


def cache_problems(job: TrainJob) -> list[Problem]:
    """Latents that are kept cannot change at each draw."""
    if job.memory.cache_latents in ("auto", "off"):
        return []
    titles = {name: info.title or name for name, info in PictureSettings.model_fields.items()}
    return [
        Problem(
            f"'{titles[name]}' needs its pictures encoded at each step, and the latent cache keeps them"
            f" ({concept.source.folder})",
            "memory.cache_latents",
            "set it to auto: the pictures of this folder are then encoded at each step, all others once",
        )
        for concept in concepts_of(job)
        for name in changes_by_chance(concept.pictures)
    ]


def _strength_problems(job: TrainJob) -> list[Problem]:
    return [
        Problem(
            f"The network strength of {concept.source.folder} is 0, so its pictures would teach nothing",
            "dataset.network_multiplier",
            "use 1, or switch the folder off",
        )
        for concept in concepts_of(job)
        if concept.pictures.network_multiplier == 0
    ]


def _some_rate(job: TrainJob) -> bool:
    def rate(own):
        return job.optimizer.learning_rate if own is None else own

    unet = job.network.train_unet and rate(job.optimizer.unet_lr) > 0
    text = job.network.train_text_encoder and rate(job.optimizer.text_encoder_lr) > 0
    return unet or text


def _long_side(job: TrainJob) -> int:
    size = job.dataset.resolution
    return max(size) if isinstance(size, tuple) else size


FORBIDDEN_IN_NAMES = '<>:"/\\|?*'
WINDOWS_NAMES = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}


def bad_name(name: str) -> str | None:
    """Why `name` cannot be a file's name on every system, or None."""
    if not name.strip():
        return "it is empty"
    bad = sorted({letter for letter in name if letter in FORBIDDEN_IN_NAMES or ord(letter) < 32})
    if bad:
        return "it holds " + " ".join(repr(letter)[1:-1] for letter in bad)
    if name.strip(". ") != name:
        return "it begins or ends with a dot or a space"
    if name.split(".")[0].lower() in WINDOWS_NAMES:
        return "Windows keeps this name for itself"
    if len(name.encode("utf-8")) > 200:
        return "it is too long"
    return None


def _name_problems(name: str) -> list[Problem]:
    reason = bad_name(name)
    if reason is None:
        return []
    return [Problem(f"'{name}' cannot be a file name: {reason}", "saving.output_name", "use letters, digits, - and _")]
