"""Usual learning rates by method and part (core/methods/kinds), optimizer, and a LoRA's alpha / rank.

Used for advice and for the setup of new projects. Unusual rates get advice or a warning (rules/learning_rate.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.settings.blocks import COUNTS, SIDES, block_rates
from core.settings.methods import MARGIN, Usual, spec_of
from core.settings.optimization.optimizer import relative_steps
from core.settings.optimization.optimizers import ADAFACTOR, AUTOMAGIC, adapts, find
from core.settings.optimization.rates import effective_rates, trains_unet

if TYPE_CHECKING:  # methods register at the end of core.settings.job and import this module
    from core.settings.job import TrainJob

PLUS = 16  # LoRA+ (Hayou et al. 2024, arXiv:2402.12354): its up matrices train this many times faster


ADAPTING = Usual(0.5, 1.0, 2.0)  # a factor of the learning rate that Prodigy and D-Adaptation find
STARTING = Usual(1e-7, 1e-6, 1e-3)  # where Automagic's rates start, by ai-toolkit
# How other optimizers' rates compare with AdamW's, by a word in the name: the low end, the start, the high end. The first
# match counts. Lion's steps have full size (Chen et al. 2023, arXiv:2302.06675: a third to a tenth); plain gradient
# steps are tiny at AdamW's rates; schedule-free averages bear more (Defazio et al. 2024, arXiv:2405.15682: up to 10 times).
OPTIMIZER_FACTORS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    (r"lion|tiger|signsgd|emolynx", (0.1, 0.2, 1 / 3)),
    (r"sgd|momentum|aggmo|qhm|accsgd|lars|msvag|srmm|pid$|pnm$", (100, 100, 1000)),
    (r"schedulefree", (1, 3, 10)),
    (r"adadelta|adagrad|sm3|ftrl|rprop|shampoo|fromage|nero|a2grad|muon", (1, 10, 1000)),
    (r"ada(m|factor|belief|norm|gc|n$)|adem|adopt|rmsprop|came|lamb|laprop|yogi|spam", (1, 1, 1)),
)
ANY_OTHER = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class UnusualRate:
    """An unusual learning rate.

    part       as in `base_rates`
    where      the setting to change
    rate       the effective learning rate
    direction  "above" or "below" the usual range
    """

    part: str
    where: str
    rate: float
    usual: Usual
    direction: str


def usual_rates(job: TrainJob, part: str = "unet") -> Usual | None:
    """Return the usual learning rates of a part ("unet", "text_encoder_2", "unet_block3", "unet plus") in this job; None if the optimizer
    sets the learning rate, or does not support LoRA+."""
    if relative_steps(job.optimizer):
        return None
    if adapts(job.optimizer.optimizer_type):
        # rules/learning_rate.py reports that it does not support LoRA+
        return None if part.endswith(" plus") else ADAPTING
    entry = find(job.optimizer.optimizer_type)
    if entry is not None and entry.path in AUTOMAGIC:
        return None if part.endswith(" plus") else STARTING
    spec = spec_of(job)
    key = part if part in spec.usual else "unet" if part.startswith("unet") else "text_encoder"
    usual = spec.usual.get(key, next(iter(spec.usual.values()))).times(*_optimizer_factors(job))
    if spec.traits.uses_network:
        usual = usual.times(*[job.network.traits.rates] * 3)
    if spec.traits.uses_network and {"rank", "alpha"} <= job.network.traits.uses:
        # alpha / rank scales each update; common practice compensates only in part, so at most 3 times is suggested.
        scale = (job.network.alpha or job.network.rank) / job.network.rank
        factor = max(1 / MARGIN, min(MARGIN, 1 / scale))
        usual = usual.times(factor, factor, factor)
    return usual.times(1, PLUS, PLUS) if part.endswith(" plus") else usual


def _optimizer_factors(job: TrainJob) -> tuple[float, float, float]:
    """Return the factors from AdamW's usual learning rates (low, start, high) to those of the job's optimizer."""
    entry = find(job.optimizer.optimizer_type)
    if entry is not None and entry.path == ADAFACTOR and job.optimizer.optimizer_args.get("scale_parameter", True):
        return (1, 1, 100)  # its rate is then relative to the size of the weights
    name = (entry.path if entry else job.optimizer.optimizer_type).rsplit(".", 1)[-1].lower()
    return next((factors for words, factors in OPTIMIZER_FACTORS if re.search(words, name)), ANY_OTHER)


def unusual_rates(job: TrainJob) -> list[UnusualRate]:
    """Return the unusual learning rates of a job, one per setting; block LR weights only if there are no others."""
    unusual: dict[str, UnusualRate] = {}
    rates = effective_rates(job, job.memory.num_processes)
    for part, rate in sorted(rates.items(), key=lambda item: not item[0].startswith("unet")):
        usual = usual_rates(job, part)
        if rate < 0 or usual is None or not (direction := usual.deviation(rate)):
            continue  # negative rates are reported by rules/learning_rate.py
        where = _where(job, part)
        if part.startswith("text") and "optimizer.learning_rate" in unusual and job.optimizer.text_encoder_lr is None:
            continue  # the same setting, already reported for the U-Net
        unusual.setdefault(where, UnusualRate(part, where, rate, usual, direction))
    return list(unusual.values()) or _by_block(job, rates)


def _where(job: TrainJob, part: str) -> str:
    """Return the dotted path of the setting with the learning rate of a part."""
    if part.endswith(" plus"):
        ratio = job.optimizer.loraplus_unet_lr_ratio if part[0] == "u" else job.optimizer.loraplus_text_encoder_lr_ratio
        side = "unet" if part[0] == "u" else "text_encoder"
        return f"optimizer.loraplus_{side}_lr_ratio" if ratio is not None else "optimizer.loraplus_lr_ratio"
    if part.startswith("unet_block"):
        return "method.block_lr"
    if part in (method_rates := spec_of(job).rates(job)):
        return method_rates[part][1]
    if part == "unet":
        return "optimizer.unet_lr" if job.optimizer.unet_lr is not None else "optimizer.learning_rate"
    alone = job.optimizer.text_encoder_lr is None and not trains_unet(job)
    return "optimizer.learning_rate" if alone else "optimizer.text_encoder_lr"


def _by_block(job: TrainJob, rates: dict[str, float]) -> list[UnusualRate]:
    """Return the first unusual learning rate of a LoRA's block (the U-Net's rate times the block's factor), as a list of at most one.
    rates: {part: effective learning rate}"""
    usual = usual_rates(job)
    if not job.method.traits.uses_network or "unet" not in rates or usual is None:
        return []
    try:
        factors = block_rates(job.network, COUNTS.get(job.model.family, COUNTS["sd1"])) or []
    except ValueError:  # reported by the rules
        return []
    where = next((f"network.{name}" for name in SIDES if getattr(job.network, name)), "")
    for factor in factors:
        rate = rates["unet"] * factor
        if rate > 0 and (direction := usual.deviation(rate)):
            return [UnusualRate("unet", where, rate, usual, direction)]
    return []


def short(number: float) -> str:
    """Format a learning rate briefly: 1e-4, 0.005."""
    text = f"{number:.2g}" if number >= 1e-3 else f"{number:.1e}".replace(".0e", "e")
    return text.replace("e-0", "e-").replace("e+0", "e")
