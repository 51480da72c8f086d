"""The training method: its own rules, and the settings of other methods."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.job import TrainJob
from core.settings.methods import methods, spec_of
from core.settings.optimization.optimizer import LORA_PLUS
from core.settings.optimization.optimizers import averages
from core.settings.optimization.rates import trains_text

FULL_MODEL_ONLY = ("train_text_encoder", "block_lr")
STOPS = ("stop_text_encoder_training", "stop_text_encoder_epochs")
FUSED = ("fused_backward_pass", "fused_optimizer_groups")


def problems(job: TrainJob) -> Iterator[Problem]:
    yield from spec_of(job).problems(job)
    if job.method.prior == "model" and job.dataset.prior_loss_weight == 0:
        what = "Prior preservation uses the base model, but the prior loss weight is 0"
        fix = "use 1, or set method.prior to images"
        yield Problem(what, "dataset.prior_loss_weight", fix, code="method.prior-weight-zero")
    if None not in (job.method.stop_text_encoder_training, job.method.stop_text_encoder_epochs):
        what = "The text encoder stops both at a step and after an epoch"
        where = "method.stop_text_encoder_training, stop_text_encoder_epochs"
        yield Problem(what, where, "empty one of them", code="method.text-encoder-stops-twice")
    if job.method.ema and averages(job.optimizer.optimizer_type):
        what = "The optimizer is schedule-free and already averages the weights"
        fix = "turn EMA off, or choose another optimizer"
        yield Problem(what, "method.ema", fix, code="method.ema-schedule-free")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    method, own = job.method, spec_of(job)
    yield from own.unused(job)
    owners = {spec.group: spec.words for spec in methods().values() if spec.group and spec.group != own.group}
    for entry in declared(TrainJob):
        if entry.group in owners:
            yield entry.path, f"ignored: only for {owners[entry.group]}"
    if not own.traits.uses_network:
        yield "dataset.network_multiplier", "ignored: no network is trained"
        for name in LORA_PLUS:
            yield f"optimizer.{name}", "ignored: LoRA+ is for networks"
    if not own.traits.base_trains:
        for name in FULL_MODEL_ONLY:
            yield f"method.{name}", "ignored: it applies to full models only"
    if not (own.traits.base_trains or own.traits.uses_network) or not trains_text(job):
        for name in STOPS:
            yield f"method.{name}", "ignored: the text encoder is not trained"
    if not own.traits.full_size:
        for name in FUSED:
            yield f"memory.{name}", "ignored: it applies to full models only"
    if method.prior == "images":
        yield "method.class_caption", "ignored: prior preservation uses regularization images"
