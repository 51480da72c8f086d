"""DyLoRA (Valipour et al. 2022, arXiv:2210.07558): a LoRA that can be cut to lower ranks after its training, in LoRA's file
format, as sd-scripts' networks.dylora."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.networks.kinds.lora import network_args
from core.networks.kinds.lora_layer import register_lora
from core.record.problems import Problem
from core.settings.base import Settings, setting, value_of
from core.settings.blocks import numbers
from core.settings.layers import rank_of_line
from core.settings.network import KindSettings, NetworkSettings

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.kinds.lora_variants import DyLoraAdapter
    from core.settings.blocks import BlockSize
    from core.settings.job import TrainJob


class DyLoraSettings(KindSettings):
    """Options of DyLoRA, under the names of sd-scripts' network_args."""

    unit: int = setting(
        1,
        within=(1, 1024),
        unit="ranks",
        title="Unit",
        help="Ranks that train together, and the step between the ranks that the file can be cut to: with rank 16 and unit 4 "
        "to 4, 8 and 12. The rank must be a multiple of it.",
    )

    def problems(self, network: NetworkSettings) -> Iterator[Problem]:
        """sd-scripts asserts the same: one rank for all layers, a multiple of the unit."""
        if network.conv_rank is not None and network.conv_rank != network.rank:
            what = (
                f"DyLoRA has one rank for all layers, but conv rank is {network.conv_rank} and the rank {network.rank}"
            )
            yield Problem(what, "network.conv_rank", f"set it to {network.rank}", code="network.dylora-conv-rank")
        for name, ranks in _ranks(network):
            if any(rank % self.unit for rank in ranks):
                what = f"A rank of DyLoRA is not a multiple of its unit, {self.unit}"
                yield Problem(what, f"network.{name}", "change the rank or dylora.unit", code="network.dylora-unit")

    def summary(self) -> str:
        return f"unit {self.unit}" if self.unit != 1 else ""


def _fresh(target: Target, size: BlockSize, own: Settings | None, seed: int) -> DyLoraAdapter:
    from core.networks.kinds.lora_adapter import LoraAdapter
    from core.networks.kinds.lora_variants import DyLoraAdapter

    plain = LoraAdapter.fresh(target.name, target.module, size.rank, size.alpha, seed)
    unit = own.unit if isinstance(own, DyLoraSettings) else 1
    return DyLoraAdapter(target.name, target.module, plain.down.detach(), plain.up.detach(), size.alpha, unit, seed)


def _made(target: Target, down: Tensor, up: Tensor, alpha: float) -> DyLoraAdapter:
    from core.networks.kinds.lora_variants import DyLoraAdapter

    return DyLoraAdapter(target.name, target.module, down, up, alpha, unit=1, seed=0)


def _ranks(network: NetworkSettings) -> Iterator[tuple[str, list[int]]]:
    yield "rank", [network.rank]
    try:
        for name in ("block_dims", "conv_block_dims"):
            if text := getattr(network, name):
                yield name, [int(number) for number in numbers(text)]
        yield "layer_dims", [rank_of_line(line)[1] for line in network.layer_dims]
    except ValueError:  # reported by the rules of the network
        return


def _network_args(job: TrainJob) -> dict[str, str]:
    return {"unit": str(value_of(job, "dylora.unit"))} | network_args(job)


register_lora(
    _made,
    name="dylora",
    title="DyLoRA",
    fresh=_fresh,
    module_name="networks.dylora",
    network_args=_network_args,
    settings=DyLoraSettings,
    by_chance=True,
    loraplus=True,
)
