"""The training method: its own rules, and the settings of other methods."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.job import TrainJob
from core.settings.methods import methods, spec_of
from core.settings.optimization.optimizer import LORA_PLUS

EMA = ("ema", "ema_decay", "ema_warmup", "ema_update_every", "ema_device", "ema_use")
FULL_MODEL_ONLY = ("train_text_encoder", "stop_text_encoder_training", "block_lr", *EMA)
FUSED = ("fused_backward_pass", "fused_optimizer_groups")


def problems(job: TrainJob) -> Iterator[Problem]:
    yield from spec_of(job).problems(job)
    if job.method.prior == "model" and job.dataset.prior_loss_weight == 0:
        what = "Prior preservation uses the base model, but the prior loss weight is 0"
        fix = "use 1, or set method.prior to images"
        yield Problem(what, "dataset.prior_loss_weight", fix, code="method.prior-weight-zero")


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
    if not own.traits.full_size:
        for name in FUSED:
            yield f"memory.{name}", "ignored: it applies to full models only"
    if method.prior == "images":
        yield "method.class_caption", "ignored: prior preservation uses regularization images"
