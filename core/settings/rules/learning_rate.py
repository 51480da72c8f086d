"""Rules on the parts to train and their learning rates."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.record.units import listed
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.needs import ignored
from core.settings.optimization.optimizer import LORA_PLUS, relative_steps
from core.settings.optimization.optimizers import adapts, find
from core.settings.optimization.rates import base_rates, scale_factor, trains_text, trains_unet
from core.settings.optimization.usual_rates import PLUS, UnusualRate, short, unusual_rates


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on which parts train, and on zero, negative or unusual learning rates."""
    if not (trains_unet(job) or trains_text(job)):
        fix = "train the U-Net, the text encoder, or both"
        yield Problem("Nothing would be trained", "network", fix, code="training.nothing-to-train")
        return
    rates = base_rates(job)
    if not rates and not relative_steps(job.optimizer):
        what = "Every learning rate is 0, so nothing would be trained"
        yield Problem(what, "optimizer", "set a learning rate above 0, such as 1e-4", code="learning-rate.all-zero")
    yield from _negative(job, rates)
    if not relative_steps(job.optimizer):
        yield from _adaptive_problems(job, rates)
    yield from _far_from_usual(job)
    first, second = job.optimizer.text_rates
    if first != second and trains_text(job) and job.model.traits and not job.model.traits.two_encoders:
        what = f"The model has one text encoder, so its second learning rate, {second:g}, has no effect"
        yield Problem(what, "optimizer.text_encoder_lr", f"enter {first:g}", "advice", code="learning-rate.one-encoder")


MOST = 10.0  # no optimizer has a use for more
HOPELESS = 10.0  # times the usual rates' upper end
HAPPENS = {
    "above": "training is likely to diverge",
    "below": "training would have almost no effect",
}


def _far_from_usual(job: TrainJob) -> Iterator[Problem]:
    """Yield a problem for each learning rate far from the usual: advice, a warning far above, an error above MOST."""
    entry = find(job.optimizer.optimizer_type)
    optimizer = entry.name.rsplit(".", 1)[-1] if entry else job.optimizer.optimizer_type
    for unusual in unusual_rates(job):
        part, _, plus = unusual.part.partition(" ")
        part = part.replace("unet_block", "U-Net block ").replace("unet", "U-Net").replace("_", " ")
        part_words = f"{part}'s up matrices (LoRA+)" if plus else part
        usual = f"{short(unusual.usual.low)} to {short(unusual.usual.high)}"
        what = f"The learning rate of the {part_words}, {short(unusual.rate)}, is far {unusual.direction} the usual {usual} for "
        what += f"{_trained_description(job)} with {optimizer}"
        what += ", which adapts its learning rate" if adapts(job.optimizer.optimizer_type) else ""
        what += f": {HAPPENS[unusual.direction]}"
        hopeless = unusual.rate >= HOPELESS * unusual.usual.high * (1 - 1e-9)
        level = "error" if unusual.rate > MOST else "warning" if hopeless else "advice"
        yield Problem(what, unusual.where, _fix(job, unusual), level, code="learning-rate.unusual")


def _trained_description(job: TrainJob) -> str:
    """Return what is trained, in words: "a LoRA", "a full model", another network type by its name."""
    spec = spec_of(job)
    return job.network.label("kind") if spec.traits.uses_network and job.network.kind != "lora" else spec.words


def _fix(job: TrainJob, unusual: UnusualRate) -> str:
    """Return the fix for an unusual learning rate, a value in the usual range."""
    if "loraplus" in unusual.where:
        return f"use a ratio of {PLUS}"
    if unusual.where.endswith("_lr_weight"):
        return "use weights near 1"
    start = short(unusual.usual.start / scale_factor(job, job.memory.num_processes))
    return f"start with {start}"


def _negative(job: TrainJob, rates: dict[str, float]) -> Iterator[Problem]:
    """Yield a problem with the first part whose rate is negative: an error, or advice for a full model, which can unlearn images.
    rates: {part: learning rate}"""
    below = [part for part, rate in rates.items() if rate < 0]
    if not below:
        return
    where = _rate_setting(job, below[0])
    if not job.method.traits.base_trains:  # a LoRA or embedding has nothing to unlearn
        what = f"The learning rate of {below[0].replace('_', ' ')} is negative"
        fix = "set a rate above 0; unlearning is for full models only"
        yield Problem(what, where, fix, code="learning-rate.negative")
    else:
        what = f"The learning rate of {below[0].replace('_', ' ')} is negative: the model unlearns these images without limit"
        fix = "use a very small rate, such as -1e-7, and few steps"
        yield Problem(what, where, fix, "advice", code="learning-rate.unlearning")


def _rate_setting(job: TrainJob, part: str) -> str:
    """Return the path of the setting with the learning rate of a part ("unet", "text_encoder plus", "unet_block3")."""
    if part.startswith("unet_block"):
        return "method.block_lr"
    if part in (rates := spec_of(job).rates(job)):
        return rates[part][1]
    name = "unet_lr" if part.startswith("unet") else "text_encoder_lr"
    return f"optimizer.{name if getattr(job.optimizer, name) is not None else 'learning_rate'}"


def _adaptive_problems(job: TrainJob, rates: dict[str, float]) -> Iterator[Problem]:
    """Yield problems with D-Adaptation and Prodigy, where the learning rate is a factor of the one that they find.
    rates: {part: learning rate}"""
    entry = find(job.optimizer.optimizer_type)
    if entry is None:
        return
    several = sorted(set(rates.values()))
    rates_text = listed([f"{rate:g}" for rate in several])
    parts = "optimizer.unet_lr, text_encoder_lr, loraplus_lr_ratio"
    if "one_rate" in entry.traits and len(several) > 1:
        what = f"{entry.name} supports one learning rate for all parts, but {len(several)} are set: {rates_text}"
        fix = "use the same rate for all parts, and no LoRA+ ratio"
        yield Problem(what, parts, fix, code="learning-rate.one-for-all")
    elif adapts(entry.name) and len(several) > 1:
        what = f"{entry.name} adapts one learning rate for all parts; the rates {rates_text} only set their ratio"
        fix = "use rates near 1, such as 1 for the U-Net and 0.5 for the text encoder"
        yield Problem(what, parts, fix, "advice", code="learning-rate.ratio-only")
    if adapts(entry.name) and job.optimizer.scale_lr:
        what = f"{entry.name} adapts its learning rate; scaling it with the batch interferes with that"
        yield Problem(what, "optimizer.scale_lr", "turn it off", "advice", code="learning-rate.scaled-adaptive")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for learning rates of parts that do not train, or whose rate is set elsewhere."""
    rates, unet, text = job.optimizer, trains_unet(job), trains_text(job)
    by_block = job.method.block_lr if job.method.traits.base_trains else None
    part_rates = [
        rate for trained, rate in ((unet, by_block or rates.unet_lr), (text, rates.text_encoder_lr)) if trained
    ]
    ratios = ((unet, rates.loraplus_unet_lr_ratio), (text, rates.loraplus_text_encoder_lr_ratio))
    part_ratios = [ratio for trained, ratio in ratios if trained]
    by_adafactor = f"optimizer.learning_rate unet_lr text_encoder_lr scale_lr {' '.join(LORA_PLUS)}"
    yield from job.model.traits.unused if job.model.traits else ()
    yield from ignored(
        # chosen layers without a conv rank have the network's rank and alpha
        (not job.network.trains_conv, "network.conv_alpha", "3x3 convolutions are not trained"),
        (not text, "optimizer.text_encoder_lr loraplus_text_encoder_lr_ratio", "the text encoder is not trained"),
        (not unet, "optimizer.unet_lr loraplus_unet_lr_ratio", "the U-Net is not trained"),
        (not unet, "network.conv_rank conv_alpha", "the U-Net is not trained"),
        (
            relative_steps(rates),
            by_adafactor,
            "AdaFactor sets the learning rate (relative_step); 0 still freezes a part",
        ),
        (
            relative_steps(rates),
            "method.block_lr",
            "AdaFactor sets the learning rate (relative_step); 0 still freezes a block",
        ),
        (part_rates and None not in part_rates, "optimizer.learning_rate", "every part has its own learning rate"),
        (part_ratios and None not in part_ratios, "optimizer.loraplus_lr_ratio", "every part has its own ratio"),
        (text, "memory.text_cache_bytes", "the text encoder is trained, so its outputs are not cached"),
    )
