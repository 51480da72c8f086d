"""What learns, and at which rates."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.job import TrainJob


def problems(job: TrainJob) -> Iterator[Problem]:
    if not (job.network.train_unet or job.network.train_text_encoder):
        yield Problem("Nothing would be trained", "network", "train the U-Net, the text encoder, or both")
    elif not _some_rate(job):
        what = "Every learning rate is 0, so nothing would change"
        yield Problem(what, "optimizer", "give a rate above 0, such as 1e-4")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    network, rates = job.network, job.optimizer
    if network.conv_rank is None:
        yield "network.conv_alpha", "ignored: 3x3 convolutions are not trained"
    if not network.train_text_encoder:
        yield "optimizer.text_encoder_lr", "ignored: the text encoder is not trained"
    if not network.train_unet:
        yield "optimizer.unet_lr", "ignored: the U-Net is not trained"
        yield "network.conv_rank", "ignored: the U-Net is not trained"
    own = [(network.train_unet, rates.unet_lr), (network.train_text_encoder, rates.text_encoder_lr)]
    if any(trained for trained, _ in own) and all(rate is not None for trained, rate in own if trained):
        yield "optimizer.learning_rate", "ignored: every part has a rate of its own"
    if network.train_text_encoder and rates.text_encoder_lr != 0:
        yield "memory.text_cache_bytes", "ignored: the text encoder is trained, so no text is kept"


def _some_rate(job: TrainJob) -> bool:
    def rate(own):
        return job.optimizer.learning_rate if own is None else own

    unet = job.network.train_unet and rate(job.optimizer.unet_lr) > 0
    text = job.network.train_text_encoder and rate(job.optimizer.text_encoder_lr) > 0
    return unet or text
