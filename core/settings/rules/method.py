"""Rules on the training method: its own, and settings that belong to other methods."""

from collections.abc import Iterator
from math import prod

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.job import TrainJob
from core.settings.methods import methods, spec_of
from core.settings.needs import ignored
from core.settings.optimization.optimizer import LORA_PLUS
from core.settings.optimization.optimizers import averages
from core.settings.optimization.rates import base_rates, trains_text

MOST_UNTRAINED = 0.1  # of an EMA, at the end of a training
MOST_COUNTED = 9  # updates of an EMA warmup, after which 0.01% of the first weights is left


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield the method's problems, and conflicts with prior preservation, text encoder stops and EMA."""
    spec = spec_of(job)
    yield from spec.problems(job)
    if not spec.preserves_class and job.method.prior == "model" and job.dataset.prior_loss_weight == 0:
        what = "Prior preservation uses the base model, but the prior loss weight is 0"
        fix = "use 1, or set method.prior to images"
        yield Problem(what, "dataset.prior_loss_weight", fix, code="method.prior-weight-zero")
    if None not in (job.method.stop_text_encoder_training, job.method.stop_text_encoder_epochs):
        what = "The text encoder stops both at a step and after an epoch"
        where = "method.stop_text_encoder_training, stop_text_encoder_epochs"
        yield Problem(what, where, "empty one of them", code="method.text-encoder-stops-twice")
    text_alone = base_rates(job) and all(part.startswith("text") for part in base_rates(job))
    if job.method.stops_text_encoder and text_alone and not spec.traits.new_words:
        what = "Only the text encoder is trained, so nothing would be trained once it stops"
        where = "method.stop_text_encoder_training, stop_text_encoder_epochs"
        yield Problem(what, where, "empty it, or train the U-Net too", code="method.text-encoder-stops-alone")
    if job.method.ema and averages(job.optimizer.optimizer_type):
        what = "The optimizer is schedule-free and already averages the weights"
        fix = "turn EMA off, or choose another optimizer"
        yield Problem(what, "method.ema", fix, code="method.ema-schedule-free")


def length_problems(job: TrainJob, total: int, epochs: int | None) -> Iterator[Problem]:
    """Yield advice that the text encoder would stop at the end of a run of `total` steps, or later, and an error or warning that its EMA is
    not, or hardly, of trained weights."""
    for name, length in (("stop_text_encoder_training", total), ("stop_text_encoder_epochs", epochs)):
        stop = getattr(job.method, name)
        if stop is not None and length and stop >= length and trains_text(job):
            title = type(job.method).title_of(name)
            what, fix = (
                f"'{title}' is {stop}, and the training ends at {length}",
                "use a lower number, or leave it empty",
            )
            yield Problem(what, f"method.{name}", fix, "advice", code="method.text-encoder-stops-late")
    method, updates = job.method, total // job.method.ema_update_every
    counted = prod(method.old_ema_weight(number) for number in range(1, min(updates, MOST_COUNTED) + 1))
    untrained = counted if method.ema_warmup else method.old_ema_weight(1) ** updates
    if not method.ema or untrained <= MOST_UNTRAINED:
        return
    what = f"After {total} steps, {untrained:.0%} of the EMA would still be the weights from before training"
    if updates and not method.ema_warmup:
        fix = "turn on EMA warmup, or lower the decay"
        yield Problem(what, "method.ema_decay, ema_warmup", fix, "warning", code="method.ema-untrained")
    else:
        level = "warning" if updates else "error"
        yield Problem(what, "method.ema_update_every", "use 1", level, code="method.ema-untrained")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for settings that the chosen method does not use."""
    method, spec = job.method, spec_of(job)
    yield from spec.unused(job)
    owners = {other.group: other.words for other in methods().values() if other.group and other.group != spec.group}
    for entry in declared(TrainJob):
        if entry.group in owners:
            yield entry.path, f"ignored: only for {owners[entry.group]}"
    network, full = spec.traits.uses_network, spec.traits.base_trains
    stops = ("stop_text_encoder_training", "stop_text_encoder_epochs")  # 0 stops the text encoder before the first step
    without_stop = job.with_settings(method=dict.fromkeys(stops))
    stoppable = (full or network) and trains_text(without_stop)
    yield from ignored(
        (not network, "dataset.network_multiplier", "no network is trained"),
        (not spec.traits.new_words, "captions.caption_template", "only for textual inversion"),
        (not network, f"optimizer.{' '.join(LORA_PLUS)}", "LoRA+ is for networks"),
        (not full, "method.train_text_encoder block_lr", "it applies to full models only"),
        (not stoppable, f"method.{' '.join(stops)}", "the text encoder is not trained"),
        (
            not spec.traits.full_size,
            "memory.fused_backward_pass fused_optimizer_groups",
            "it applies to full models only",
        ),
        (method.prior == "images", "method.class_caption", "prior preservation uses regularization images"),
    )
