"""The network: dropouts, lists by block, the files it starts from."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.blocks import COUNTS, LISTS, PRESETS, SIDES, numbers, rate_numbers, side_count
from core.settings.job import TrainJob
from core.settings.network import NetworkSettings
from core.settings.optimizers import adapts, find, relative_steps

DROPOUTS = ("network_dropout", "rank_dropout", "module_dropout")
MUCH = 0.5
LARGEST_RANK = 1024
OF_THE_FILE = ("rank", "alpha", "conv_rank", "conv_alpha", *LISTS)  # what dim_from_weights takes from the file
FAMILIES = {25: "SD 1.x and 2.x", 23: "SDXL"}


def problems(job: TrainJob) -> Iterator[Problem]:
    if job.method.kind != "lora":
        return
    network = job.network
    yield from _dropouts(network)
    yield from block_problems(network, None if job.model.family == "auto" else job.model.family)
    yield from _files(network)
    if network.has_block_rates:
        yield from _several_rates(job.optimizer.optimizer_type)
    if network.train_text_encoder and not any(job.optimizer.text_rates):
        what = (
            "The rate of the text encoder is 0: its layers are saved as they are, and captions are encoded at each step"
        )
        yield Problem(what, "network.train_text_encoder", "switch it off, or give it a rate", "advice")


def _several_rates(optimizer: str) -> Iterator[Problem]:
    """D-Adaptation and Prodigy: the rate is a factor of the step size they find."""
    entry = find(optimizer)
    where = "network.down_lr_weight, mid_lr_weight, up_lr_weight"
    if entry is not None and "one_rate" in entry.traits:
        what = f"{entry.name} takes one rate for all weights, and rates by block give each block its own"
        yield Problem(what, where, "leave them empty, or choose AdamW")
    elif entry is not None and adapts(entry.name):
        what = f"{entry.name} finds one step size for all weights; of rates by block only the relation counts"
        yield Problem(what, where, "leave out blocks with 0, or choose AdamW", "advice")


def _dropouts(network: NetworkSettings) -> Iterator[Problem]:
    for name in DROPOUTS:
        share, title = getattr(network, name), _title(name)
        if share == 1:
            yield Problem(
                f"{title} is 1, which leaves nothing to train", f"network.{name}", "use 0.1 to 0.3, or 0 for off"
            )
        elif share > MUCH:
            what = f"{title} is {share:g}: more than half of the LoRA is left out at each step"
            yield Problem(what, f"network.{name}", "0.1 to 0.3 is usual", "advice")


def block_problems(network: NetworkSettings, family: str | None) -> Iterator[Problem]:
    """What is wrong with the lists by block. family: "sd1" ..., None where it is not known yet."""
    counts = {COUNTS[family]} if family else set(FAMILIES)
    for name in LISTS:
        text = getattr(network, name)
        if text:
            yield from _list(name, text, counts)
    for name in SIDES:
        text = getattr(network, name)
        if text:
            yield from _side(name, text, family)
    if network.conv_block_alphas and not network.trains_conv:
        what = "Alphas of 3x3 convolutions are given, and these are not trained"
        yield Problem(what, "network.conv_block_alphas", "give network.conv_block_dims or network.conv_rank")


def _list(name: str, text: str, counts: set[int]) -> Iterator[Problem]:
    where, title = f"network.{name}", _title(name)
    try:
        found = numbers(text)
    except ValueError:
        yield Problem(
            f"{title}: '{_short(text)}' is no list of numbers", where, "write numbers with commas between them"
        )
        return
    if len(found) not in counts:
        wanted = " or ".join(f"{count} ({FAMILIES[count]})" for count in sorted(counts, reverse=True))
        yield Problem(f"{title} has {len(found)} numbers; it takes {wanted}", where, "give one number for each block")
    ranks = name.endswith("dims")
    if any(number < 0 for number in found):
        yield Problem(
            f"{title} has a number below 0", where, "use 0 to leave a block out" if ranks else "use 0 or more"
        )
    if ranks and any(number != int(number) or number > LARGEST_RANK for number in found):
        yield Problem(f"{title} has a number that can be no rank", where, f"use whole numbers from 0 to {LARGEST_RANK}")


def _side(name: str, text: str, family: str | None) -> Iterator[Problem]:
    where, title = f"network.{name}", _title(name)
    wanted = sorted({side_count(name, COUNTS[family])} if family else set(SIDES[name]), reverse=True)
    try:
        found = rate_numbers(text, wanted[0])
    except ValueError:
        what = f"{title}: '{_short(text)}' is neither a list of numbers nor one of {', '.join(PRESETS)}"
        yield Problem(what, where, "write such as 0,0,0.5,1 or cosine or linear+0.25")
        return
    if any(factor < 0 for factor in found):
        yield Problem(f"{title} has a factor below 0", where, "use 0 to leave a block out")
    count = len(found)
    if text.strip().partition("+")[0].strip() in PRESETS or count in wanted:
        return
    words = " or ".join(str(number) for number in wanted)
    ends = "those that are missing count 1" if count < wanted[-1] else "those beyond are not read"
    yield Problem(f"{title} has {count} factors of {words}; {ends}", where, "give one for each block", "advice")


def _files(network: NetworkSettings) -> Iterator[Problem]:
    if network.dim_from_weights and not network.network_weights:
        what = "Ranks are to be taken from a LoRA, and there is none to start from"
        yield Problem(what, "network.dim_from_weights", "choose one under network.network_weights, or switch it off")
    text = network.base_weights_multiplier
    if not text:
        return
    where = "network.base_weights_multiplier"
    try:
        count = len(numbers(text))
    except ValueError:
        yield Problem(f"'{_short(text)}' is no list of numbers", where, "write numbers with commas between them")
        return
    if count > len(network.base_weights) > 0:
        what = f"There are {count} strengths for {len(network.base_weights)} merged LoRAs"
        yield Problem(what, where, "give one for each")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    network = job.network
    if not network.train_unet:
        for name in (*LISTS, *SIDES):
            yield f"network.{name}", "ignored: the U-Net is not trained"
    elif relative_steps(job.optimizer):
        for name in SIDES:
            yield (
                f"network.{name}",
                "ignored: AdaFactor finds the rate itself (relative_step); 0 still leaves a block out",
            )
    if not any(getattr(network, name) for name in SIDES):
        yield "network.block_lr_zero_threshold", "ignored: there are no rates by block"
    if network.conv_block_dims:
        yield "network.conv_rank", "ignored: 3x3 convolutions have ranks by block"
    if network.conv_block_alphas:
        yield "network.conv_alpha", "ignored: 3x3 convolutions have alphas by block"
    if network.network_weights is None:
        for name in ("dim_from_weights", "weights_scale"):
            yield f"network.{name}", "ignored: there is no LoRA to start from"
    elif network.dim_from_weights:
        for name in (*OF_THE_FILE, "weights_scale"):
            yield f"network.{name}", "ignored: it is taken from the LoRA to start from"
    if not network.base_weights:
        yield "network.base_weights_multiplier", "ignored: no LoRAs are merged"
        yield "network.base_weights_layers", "ignored: no LoRAs are merged"
    elif network.trains_conv:
        yield "network.base_weights_layers", "ignored: the residual blocks are trained with their convolutions"
    elif network.dim_from_weights:
        yield "network.base_weights_layers", "ignored: the layers are those of the LoRA to start from"


def _title(name: str) -> str:
    return next(entry.title for entry in declared(TrainJob) if entry.path == f"network.{name}")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
