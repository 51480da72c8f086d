"""Prior preservation without images: the trained model is held to what the base model predicts for the class caption.

For each image that trains, the same noisy latents are shown once more with the class caption. The target is what the
untrained model predicts there, so nothing else than the class's own look is asked for (the prior of DreamBooth, Ruiz et
al. 2022, arXiv:2208.12242, section 3.3, without generating images first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.diffusion.text_states import TextStates, join_texts
from core.record.problems import Problem
from core.record.queued import queued
from core.settings.methods import spec_of

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.buckets.batches import Placed
    from core.settings.job import TrainJob
    from core.training.loop.batch import Batch

    Reads = Callable[[Tensor, Tensor, TextStates], Tensor]


def wanted(job: TrainJob) -> bool:
    return not spec_of(job).preserves_class and job.method.prior == "model" and job.dataset.prior_loss_weight > 0


def needs_untrained_model(job: TrainJob, placed: Sequence[Placed]) -> bool:
    """Whether the untrained model is needed during training."""
    return wanted(job) or any(each.concept.source.diff_output_preservation for each in placed)


def class_caption(job: TrainJob, placed: Placed) -> str:
    """The class caption of an image: the one of the settings, else its folder's class word; "" where there is neither."""
    return (job.method.class_caption or placed.concept.source.class_word or "").strip()


def prior_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Problems: folders without a class, and runs whose images are all preserved."""
    found = _nothing_trained(job, placed)
    if not wanted(job):
        return found
    unnamed = {
        each.concept.source.folder: None
        for each in placed
        if each.concept.role == "train" and not class_caption(job, each)
    }
    return found + [
        Problem(
            "Prior preservation is on, but the class of these images is not set",
            f"folder {folder}",
            "write method.class_caption, such as: a dog, or the folder's class word",
            code="prior.no-class",
        )
        for folder in unnamed
    ]


def _nothing_trained(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Folders that are only preserved: any with textual inversion, which never changes the model; else if all are."""
    kept = {each.concept.source.folder: each.concept.source.diff_output_preservation for each in placed}
    folders = [folder for folder, preserved in kept.items() if preserved]
    if not folders or (len(folders) < len(kept) and not spec_of(job).preserves_class):
        return []
    what = "These images only preserve the base model's output, so nothing would be trained"
    fix = "turn off diff_output_preservation of the folder, or add a folder to train"
    if spec_of(job).preserves_class:
        fix = "turn off diff_output_preservation of the folder: textual inversion does not change the model"
    return [Problem(what, f"folder {folder}", fix, code="prior.nothing-to-train") for folder in folders]


def captions(job: TrainJob, placed: Sequence[Placed]) -> list[str]:
    """Every class caption of a run, each once."""
    shown = [class_caption(job, each) for each in placed]
    return list(dict.fromkeys(caption for caption in shown if caption)) if wanted(job) else []


class ModelPrior:
    """The prior term of a run.

    untrained   {class caption: its states, of one text, by the text encoders as they began, on the device}
    trains      whether text encoders train, so that the training model reads other states than the untrained one
    """

    def __init__(self, job: TrainJob, untrained: dict[str, TextStates], trains: bool):
        self._job, self._untrained, self._trains = job, untrained, trains

    def losses(
        self,
        batch: Batch,
        predict: Reads,
        untrained: Reads,
        states: Callable[[Sequence[str]], TextStates],
        loss: Callable[..., Tensor],
    ) -> Tensor:
        """What the prior adds to each image's loss, [B]; nothing for regularization images, which keep the class themselves.

        predict, untrained   (noisy latents, timesteps, text) -> prediction of the model that trains, and of it untrained
        states   of captions, by the text encoders as they are now
        loss     training_loss with this batch's latents, noise and timesteps: (predict, preserved=, sample_weights=) -> [B]
        """
        import torch

        captions = [class_caption(self._job, placed) for placed, _ in batch.items]
        if not all(captions):  # regularization images of folders without a word: what they show counts 0 here
            captions = [caption or next(iter(self._untrained)) for caption in captions]
        before = join_texts([self._untrained[caption] for caption in captions])
        now = states(captions) if self._trains else before
        device, weight = before.context.device, self._job.dataset.prior_loss_weight
        counts = [weight if placed.concept.role == "train" else 0.0 for placed, _ in batch.items]
        return loss(
            lambda noisy, at: predict(noisy, at, now),
            preserved=(
                lambda noisy, at: untrained(noisy, at, before),
                torch.ones(len(counts), dtype=torch.bool, device=device),
            ),
            sample_weights=queued(torch.tensor(counts), str(device)),
        )
