"""Rules on networks: dropout, block-wise lists, initial and merged weights."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings import readers
from core.settings.base import declared
from core.settings.blocks import COUNTS, LISTS, PRESETS, SIDES, blocks_in_words, numbers, rate_numbers, side_count
from core.settings.job import TrainJob
from core.settings.layers import CHOICE, LARGEST_RANK, layer_problems
from core.settings.needs import ignored
from core.settings.network import OWN, KindSettings, NetworkSettings
from core.settings.optimization.optimizer import LORA_PLUS, relative_steps
from core.settings.optimization.optimizers import adapts, find

DROPOUTS = ("network_dropout", "rank_dropout", "module_dropout")
HIGH_DROPOUT = 0.5
HIGH_ALPHA = 4  # times the rank
# What dim_from_weights takes from the initial LoRA
FROM_FILE = ("train_norm", "rank", "alpha", "rs_lora", "conv_rank", "conv_alpha", *LISTS, *CHOICE)


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on a network's type, dropout, layers, blocks and weight files; nothing if no network trains."""
    if not job.method.traits.uses_network:
        return
    network = job.network
    yield from _needed_weights(job)
    yield from _dropout_problems(network)
    kind_settings = getattr(job, network.kind, None)
    misread = [each for each in network.traits.misread if each.applies(kind_settings, network.trains_conv)]
    yield from readers.problems(network.label("kind"), misread, "network.kind")
    yield from block_problems(network, None if job.model.family == "auto" else job.model.family)
    yield from _weight_file_problems(network)
    if not network.dim_from_weights:
        yield from layer_problems(network)
        yield from _alpha_problems(network)
    if isinstance(kind_settings, KindSettings):
        yield from kind_settings.problems(network)
    if network.has_block_rates:
        yield from _several_rates(job.optimizer.optimizer_type)
    if network.train_text_encoder and not any(job.optimizer.text_rates):
        what = "The text encoder learning rate is 0: its layers are saved untrained and only slow training"
        fix = "turn text encoder training off, or set a learning rate"
        yield Problem(what, "network.train_text_encoder", fix, "advice", code="network.text-encoder-rate-zero")


def _several_rates(optimizer: str) -> Iterator[Problem]:
    """Yield the problem of block LR weights with an optimizer: an error if it supports one learning rate only, advice if it adapts one
    (D-Adaptation, Prodigy)."""
    entry = find(optimizer)
    where = "network.down_lr_weight, mid_lr_weight, up_lr_weight"
    if entry is not None and "one_rate" in entry.traits:
        what = f"{entry.name} supports one learning rate for all weights, which rules out block LR weights"
        yield Problem(what, where, "leave them empty, or choose AdamW", code="learning-rate.one-for-all")
    elif entry is not None and adapts(entry.name):
        what = f"{entry.name} adapts one learning rate for all weights; block LR weights only set their ratio"
        fix = "use only 0 and 1 to skip blocks, or choose AdamW"
        yield Problem(what, where, fix, "advice", code="learning-rate.ratio-only")


def _needed_weights(job: TrainJob) -> Iterator[Problem]:
    """Yield an error if a network type that reads whole base weights is trained with ZeRO-3, where each process has a part of them."""
    if job.network.traits.needs_base_weight and job.sharding.shares_weights:
        what = f"'{job.network.label('kind')}' reads the model's weights, of which ZeRO-3 gives each process a part"
        yield Problem(what, "sharding.zero_stage", "use ZeRO stage 1 or 2", code="network.needs-weights")


def _dropout_problems(network: NetworkSettings) -> Iterator[Problem]:
    """Yield an error for each dropout of 1 and advice for each above HIGH_DROPOUT."""
    for name in DROPOUTS:
        share, title = getattr(network, name), network.title_of(name)
        if share == 1:
            what, fix = f"{title} is 1, so nothing would be trained", "use 0.1 to 0.3, or 0 for off"
            yield Problem(what, f"network.{name}", fix, code="network.dropout-all")
        elif share > HIGH_DROPOUT:
            what = f"{title} is {share:g}: more than half of the LoRA is dropped at each step"
            yield Problem(what, f"network.{name}", "use 0.1 to 0.3", "advice", code="network.dropout-high")


def _alpha_problems(network: NetworkSettings) -> Iterator[Problem]:
    """Yield advice for each alpha above HIGH_ALPHA times its rank."""
    pairs = (
        ("rank", "alpha", "block_dims", "block_alphas"),
        ("conv_rank", "conv_alpha", "conv_block_dims", "conv_block_alphas"),
    )
    for rank_name, name, *lists in pairs:
        rank, alpha = getattr(network, rank_name) or 0, getattr(network, name) or 0
        used = {"rank", name} <= network.traits.uses and not any(getattr(network, each) for each in lists)
        if used and alpha > HIGH_ALPHA * rank > 0:
            title = network.title_of(name)
            what = f"{title} {alpha:g} is {alpha / rank:.3g} times the rank {rank}: each step changes the model that much more"
            fix = f"use {rank} or less, or a lower learning rate"
            yield Problem(what, f"network.{name}", fix, "advice", code="network.alpha-high")


def block_problems(network: NetworkSettings, family: str | None) -> Iterator[Problem]:
    """Yield problems of the block-wise lists. `family` is "sd1", "sd2", "sdxl" ..., or None if not known yet."""
    if family is not None and family not in COUNTS:
        for name in (*LISTS, *SIDES):
            if getattr(network, name):
                what, fix = f"{network.title_of(name)}: models of this family have no blocks", "leave it empty"
                yield Problem(what, f"network.{name}", fix, code="network.no-blocks")
        return
    counts = {COUNTS[family]} if family else set(COUNTS.values())
    for name in LISTS:
        text = getattr(network, name)
        if text:
            yield from _number_list_problems(name, text, counts)
    for name in SIDES:
        text = getattr(network, name)
        if text:
            yield from _side_problems(name, text, family)
    if network.conv_block_alphas and not network.trains_conv:
        what = "Conv block alphas are set, but 3x3 convolutions are not trained"
        fix = "set network.conv_block_dims or network.conv_rank"
        yield Problem(what, "network.conv_block_alphas", fix, code="network.conv-alphas-without-ranks")


def _number_list_problems(name: str, text: str, counts: set[int]) -> Iterator[Problem]:
    """Yield errors in a list of ranks or alphas, the text of the setting `name`.
    counts: numbers of blocks that the list may have"""
    where, title = f"network.{name}", NetworkSettings.title_of(name)
    try:
        values = numbers(text)
    except ValueError:
        what = f"{title}: '{_short(text)}' is not a list of numbers"
        yield Problem(what, where, "write numbers separated by commas", code="settings.not-numbers")
        return
    if len(values) not in counts:
        what = f"{title}: {len(values)} numbers instead of {blocks_in_words(counts)}"
        yield Problem(what, where, "enter one number per block", code="network.block-count")
    ranks = name.endswith("dims")
    if any(number < 0 for number in values):
        fix = "use 0 to skip a block" if ranks else "use 0 or more"
        yield Problem(f"{title}: a number is below 0", where, fix, code="network.block-negative")
    if ranks and any(number != int(number) or number > LARGEST_RANK for number in values):
        fix = f"use whole numbers from 0 to {LARGEST_RANK}"
        yield Problem(f"{title}: a number is not a valid rank", where, fix, code="network.block-not-a-rank")


def _side_problems(name: str, text: str, family: str | None) -> Iterator[Problem]:
    """Yield problems of the learning rate factors of one side of the U-Net, the text of the setting `name` (down_lr_weight ...)."""
    where, title = f"network.{name}", NetworkSettings.title_of(name)
    wanted = sorted({side_count(name, COUNTS[family])} if family else set(SIDES[name]), reverse=True)
    try:
        factors = rate_numbers(text, wanted[0])
    except ValueError:
        what = f"{title}: '{_short(text)}' is neither a list of numbers nor one of {', '.join(PRESETS)}"
        fix = "write for example 0,0,0.5,1 or cosine or linear+0.25"
        yield Problem(what, where, fix, code="settings.not-numbers")
        return
    if any(factor < 0 for factor in factors):
        yield Problem(f"{title}: a weight is below 0", where, "use 0 to skip a block", code="network.block-negative")
    count = len(factors)
    if text.strip().partition("+")[0].strip() in PRESETS or count in wanted:
        return
    counts = " or ".join(str(number) for number in wanted)
    ends = "missing ones count as 1" if count < wanted[-1] else "the rest is ignored"
    what = f"{title}: {count} weights instead of {counts}; {ends}"
    yield Problem(what, where, "enter one per block", "advice", code="network.block-count")


def _weight_file_problems(network: NetworkSettings) -> Iterator[Problem]:
    """Yield problems of the initial LoRA and of the multipliers of merged LoRAs."""
    if network.dim_from_weights and not network.network_weights:
        what = "'Rank from weights' needs an initial LoRA"
        fix = "set network.network_weights, or turn it off"
        yield Problem(what, "network.dim_from_weights", fix, code="network.dim-without-weights")
    text = network.base_weights_multiplier
    if not text:
        return
    where = "network.base_weights_multiplier"
    try:
        strengths = numbers(text)
    except ValueError:
        what = f"'{_short(text)}' is not a list of numbers"
        yield Problem(what, where, "write numbers separated by commas", code="settings.not-numbers")
        return
    if len(strengths) > len(network.base_weights) > 0:
        what = f"There are {len(strengths)} multipliers for {len(network.base_weights)} merged LoRAs"
        yield Problem(what, where, "enter one for each", code="network.merge-multiplier-count")
    elif network.base_weights and 0 in strengths:
        what = f"The multiplier of the LoRA {network.base_weights[strengths.index(0)]} is 0, so it is not merged"
        fix = "use 1, or remove it from the LoRAs to merge"
        yield Problem(what, where, fix, "advice", code="network.merge-multiplier-zero")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for network settings that the network type, or another setting, makes ineffective."""
    network, uses, kind = job.network, job.network.traits.uses, job.network.label("kind")
    others, sides = sorted((OWN | {"initialization"}) - uses), f"network.{' '.join(SIDES)}"
    by_adafactor = "AdaFactor sets the learning rate (relative_step); 0 still skips a block"
    from_file = network.network_weights is not None and network.dim_from_weights
    kind_settings, by_block = getattr(job, network.kind, None), network.sized_by_blocks
    yield from ignored((True, f"network.{' '.join(others)}", f"{kind} has none"))
    for entry in declared(TrainJob):
        if entry.group != network.kind and isinstance(getattr(job, entry.group), KindSettings):
            yield entry.path, f"ignored: the network type is {kind}"
    if isinstance(kind_settings, KindSettings):
        by_block = by_block and not kind_settings.conv_has_rank
        yield from ((path, f"ignored: {why}") for path, why in kind_settings.without_effect())
    yield from ignored(
        (not network.traits.loraplus, f"optimizer.{' '.join(LORA_PLUS)}", f"{kind} has no matrices of two rates"),
        ("alpha" not in uses, "network.rs_lora", f"{kind} has no alpha"),
        (network.network_weights is not None, "network.initialization", "training starts from the weights of a file"),
        ("rank" not in uses, "network.layer_dims", f"{kind} has no rank"),
        (not network.train_unet, f"network.{' '.join((*LISTS, *SIDES))}", "the U-Net is not trained"),
        (network.train_unet and relative_steps(job.optimizer), sides, by_adafactor),
        (not network.has_block_rates, "network.block_lr_zero_threshold", "no block LR weights are set"),
        (by_block and network.block_dims, "network.rank", "block ranks are set"),
        (by_block and network.block_alphas and not network.layer_dims, "network.alpha", "block alphas are set"),
        (network.conv_block_dims, "network.conv_rank", "conv block ranks are set"),
        (network.conv_block_alphas, "network.conv_alpha", "conv block alphas are set"),
        (from_file, f"network.{' '.join(FROM_FILE)}", "taken from the initial LoRA"),
    )


def _short(text: str) -> str:
    """Return the text, cut to 40 characters."""
    return text if len(text) <= 40 else text[:37] + "..."
