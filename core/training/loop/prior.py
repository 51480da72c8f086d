"""Prior preservation without class images: a loss that keeps the prediction for the class caption.

Each training image has a second forward pass of the same noisy latents with the class caption; its target is the untrained model's
prediction. This is the prior of DreamBooth (Ruiz et al. 2022, arXiv:2208.12242, section 3.3) without generating class images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.diffusion.text_states import TextStates, join_texts
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem
from core.record.queued import queued
from core.settings.dataset.concepts import concepts_of
from core.settings.methods import spec_of
from core.settings.rules.noise import preserves_unmasked

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.settings.job import TrainJob
    from core.training.loop.batch import Batch

    PredictText = Callable[[Tensor, Tensor, TextStates], Tensor]


def has_prior(job: TrainJob) -> bool:
    """Return whether the settings add the prior term to the loss."""
    return not spec_of(job).preserves_class and job.method.prior == "model" and job.dataset.prior_loss_weight > 0


def needs_untrained_model(job: TrainJob) -> bool:
    """Return whether training needs predictions of the untrained model."""
    preserves = any(each.source.diff_output_preservation for each in concepts_of(job))
    return has_prior(job) or preserves or preserves_unmasked(job)


def class_caption(job: TrainJob, placed: Placed) -> str:
    """Return the class caption of an image: from the settings, else its folder's class word; "" without either."""
    return (job.method.class_caption or placed.concept.source.class_word or "").strip()


def prior_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Return the problems of folders whose images have no class caption, and of runs in which nothing would be trained."""
    problems = _nothing_trained_problems(job, placed)
    if not has_prior(job):
        return problems
    unnamed = {
        each.concept.source.folder: None
        for each in placed
        if each.concept.role == "train" and not class_caption(job, each)
    }
    return problems + [
        Problem(
            "Prior preservation is on, but the class of these images is not set",
            f"folder {folder}",
            "write method.class_caption, such as: a dog, or the folder's class word",
            code="prior.no-class",
        )
        for folder in unnamed
    ]


def _nothing_trained_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """Return the problems of folders that only preserve the base model's output: for textual inversion of any such folder, else only if all
    folders do."""
    preserves = {each.concept.source.folder: each.concept.source.diff_output_preservation for each in placed}
    folders = [folder for folder, preserved in preserves.items() if preserved]
    if not folders or (len(folders) < len(preserves) and not spec_of(job).preserves_class):
        return []
    what = "These images only preserve the base model's output, so nothing would be trained"
    fix = "turn off diff_output_preservation of the folder, or add a folder to train"
    if spec_of(job).preserves_class:
        fix = "turn off diff_output_preservation of the folder: textual inversion does not change the model"
    return [Problem(what, f"folder {folder}", fix, code="prior.nothing-to-train") for folder in folders]


def captions(job: TrainJob, placed: Sequence[Placed]) -> list[str]:
    """Return the class captions that the prior term encodes, each once; [] if the prior is off."""
    class_captions = [class_caption(job, each) for each in placed]
    return list(dict.fromkeys(caption for caption in class_captions if caption)) if has_prior(job) else []


class ModelPrior:
    """The prior term of a run's loss.

    untrained     {class caption: text states [1, ...] of the untrained text encoders, on the device}
    trains_text   whether text encoders train: the trained model's pass then uses their present text states
    """

    def __init__(self, job: TrainJob, untrained: dict[str, TextStates], trains_text: bool):
        self._job, self._untrained, self._trains_text = job, untrained, trains_text

    def losses(
        self,
        batch: Batch,
        predict: PredictText,
        untrained: PredictText,
        states: Callable[[Sequence[str]], TextStates],
        loss: Callable[..., Tensor],
    ) -> Tensor:
        """Return the prior term of each image's loss, [B]; 0 for regularization images.

        predict, untrained   (noisy latents, timesteps, text states) -> output of the trained model, of the untrained model
        states               (captions) -> text states by the present text encoders
        loss                 `training_loss` of this batch: (predict, preserved=, sample_weights=) -> [B]
        """
        captions = [class_caption(self._job, placed) for placed, _ in batch.items]
        if not all(captions):  # regularization images of folders without a class word, whose weight is 0
            captions = [caption or next(iter(self._untrained)) for caption in captions]
        untrained_states = join_texts([self._untrained[caption] for caption in captions])
        present_states = states(captions) if self._trains_text else untrained_states
        device, weight = untrained_states.context.device, self._job.dataset.prior_loss_weight
        weights = [weight if placed.concept.role == "train" else 0.0 for placed, _ in batch.items]
        return loss(
            lambda noisy, at: predict(noisy, at, present_states),
            preserved=(
                lambda noisy, at: untrained(noisy, at, untrained_states),
                torch.ones(len(weights), dtype=torch.bool, device=device),
            ),
            sample_weights=queued(torch.tensor(weights), str(device)),
        )
