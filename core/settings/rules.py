"""Rules over several settings: what has no effect now and why, what is wrong together, and what is worth saying."""

from __future__ import annotations

from core.record.problems import Problem
from core.settings.base import declared, every
from core.settings.job import TrainJob

PERIODS = (
    "saving.save_every_n_epochs",
    "saving.save_every_n_steps",
    "saving.save_every_minutes",
    "saving.save_n_evenly",
    "saving.save_last_n",
    "samples.sample_every_n_steps",
    "samples.sample_every_n_epochs",
)


def value_of(job, path: str):
    """The value at a dotted path."""
    group, name = path.split(".", 1)
    return getattr(getattr(job, group), name)


def ineffective(job: TrainJob) -> dict[str, str]:
    """Settings that change nothing as the others stand: {dotted path: reason}. The page greys them with the reason."""
    reasons: dict[str, str] = {}
    if job.schedule.max_train_steps is not None:
        reasons["schedule.max_train_epochs"] = "ignored: steps are set"
    if job.network.conv_rank is None:
        reasons["network.conv_alpha"] = "ignored: 3x3 convolutions are not trained"
    if not job.network.train_text_encoder:
        reasons["optimizer.text_encoder_lr"] = "ignored: the text encoder is not trained"
    if not job.network.train_unet:
        reasons["optimizer.unet_lr"] = "ignored: the U-Net is not trained"
        reasons["network.conv_rank"] = "ignored: the U-Net is not trained"
    own = [
        (job.network.train_unet, job.optimizer.unet_lr),
        (job.network.train_text_encoder, job.optimizer.text_encoder_lr),
    ]
    if any(trained for trained, _ in own) and all(rate is not None for trained, rate in own if trained):
        reasons["optimizer.learning_rate"] = "ignored: every part has a rate of its own"
    if job.network.train_text_encoder and job.optimizer.text_encoder_lr != 0:
        reasons["memory.text_cache_bytes"] = "ignored: the text encoder is trained, so no text is kept"
    if not job.captions.shuffle_caption:
        for name in ("keep_tokens", "caption_separator"):
            reasons[f"captions.{name}"] = "ignored: tags are not shuffled"
    if not job.dataset.enable_bucket:
        for name in ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"):
            reasons[f"dataset.{name}"] = "ignored: picture shapes are not kept"
    elif job.dataset.bucket_no_upscale:
        for name in ("min_bucket_reso", "max_bucket_reso"):
            reasons[f"dataset.{name}"] = "ignored: pictures are never enlarged"
    if not job.samples.sample_prompts:
        for entry in declared(TrainJob):
            if entry.group == "samples" and entry.name != "sample_prompts":
                reasons[entry.path] = "ignored: there are no sample prompts"
    return reasons


def set_without_effect(job: TrainJob) -> list[Problem]:
    """Advice for those of them that were set to something: the command line has no fields to grey."""
    defaults = {entry.path: entry.default for entry in declared(TrainJob)}
    return [
        Problem(f"{path} has no effect", path, reason, "advice")
        for path, reason in ineffective(job).items()
        if value_of(job, path) != defaults[path]
    ]


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
    return found + _name_problems(job.saving.output_name)


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
