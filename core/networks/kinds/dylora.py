"""DyLoRA (Valipour et al. 2022, arXiv:2210.07558): a LoRA that can be cut to lower ranks after training.

Its files are LoRA's; training is that of sd-scripts' networks.dylora.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.networks.adapter import PLUS
from core.networks.kinds.lora import LoraAdapter, network_args, register_lora
from core.record.draws import integer
from core.record.lazy_torch import Tensor, nn, torch
from core.record.problems import Problem
from core.settings.base import Settings, setting, value_of
from core.settings.blocks import numbers
from core.settings.layers import rank_of_line
from core.settings.network import KindSettings, NetworkSettings

if TYPE_CHECKING:
    from core.families.targets import Target
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
        """Yield an error if layers have different ranks or a rank is not a multiple of the unit, as sd-scripts requires."""
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
        """Return the settings that differ from the defaults as text, such as "unit 4"; "" for none."""
        return f"unit {self.unit}" if self.unit != 1 else ""


class DyLoraAdapter(LoraAdapter):
    """A LoRA layer of which each micro-batch trains a random group of `unit` ranks.

    The micro-batch draws k, a multiple of `unit`. All ranks are in the forward pass, but only ranks k to k + unit - 1 get gradients, and
    the change is multiplied by sqrt(rank / (k + unit)). The draw is addressed by step, micro-batch and layer. Each group is a parameter
    of its own, so the optimizer skips groups without a gradient. Outside of training nothing is drawn.
    """

    def __init__(
        self, name: str, module: nn.Module, down: Tensor, up: Tensor, alpha: float, unit: int = 1, seed: int = 0
    ):
        self._unit, self._seed = unit, seed
        super().__init__(name, module, down, up, alpha)

    def _store(self, down: Tensor, up: Tensor) -> None:
        """Store the matrices as one parameter per group of ranks."""
        self._downs = [nn.Parameter(part.clone()) for part in down.split(self._unit)]
        self._ups = [nn.Parameter(part.clone()) for part in up.split(self._unit, dim=1)]

    @property
    def down(self) -> Tensor:
        """All groups' rows, [rank, in(, kh, kw)]."""
        return torch.cat(list(self._downs))

    @property
    def up(self) -> Tensor:
        """All groups' columns, [out, rank(, 1, 1)]."""
        return torch.cat(list(self._ups), dim=1)

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        """Return [(parameter, role)]: down and up of each group; up trains at LoRA+'s higher rate."""
        pairs = zip(self._downs, self._ups, strict=True)
        return [each for down, up in pairs for each in ((down, "plain"), (up, PLUS))]

    @property
    def drawn(self) -> int | None:
        """The first rank that trains in the current micro-batch, a multiple of the unit; None outside of training."""
        if self.micro_step is None:
            return None
        return integer(0, self.rank, self._seed, "dylora", *self.micro_step, self.name) // self._unit * self._unit

    @property
    def strength(self) -> float:
        """The factor of the change, multiplied in training by sqrt(rank / (k + unit))."""
        first = self.drawn
        factor = 1.0 if first is None else math.sqrt(self.rank / min(first + self._unit, self.rank))
        return super().strength * factor

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return down [rank, in ...] and up [out, rank ...]; in training all groups but the current one are detached."""
        first = self.drawn
        if first is None:
            return self.down, self.up
        current = first // self._unit
        downs = [part if index == current else part.detach() for index, part in enumerate(self._downs)]
        ups = [part if index == current else part.detach() for index, part in enumerate(self._ups)]
        return torch.cat(downs), torch.cat(ups, dim=1)

    def put(self, down: Tensor, up: Tensor) -> None:
        """Overwrite the parameters with down and up of all ranks."""
        with torch.no_grad():
            for parts, matrix, dim in ((self._downs, down, 0), (self._ups, up, 1)):
                for part, value in zip(parts, matrix.split(self._unit, dim=dim), strict=True):
                    part.copy_(value)


def _fresh(target: Target, size: BlockSize, options: Settings | None, seed: int) -> DyLoraAdapter:
    """Create a DyLoRA without effect, initialized as a LoRA of the same seed."""
    plain = LoraAdapter.fresh(target.name, target.module, size.rank, size.alpha, seed)
    unit = options.unit if isinstance(options, DyLoraSettings) else 1
    return DyLoraAdapter(target.name, target.module, plain.down.detach(), plain.up.detach(), size.alpha, unit, seed)


def _ranks(network: NetworkSettings) -> Iterator[tuple[str, list[int]]]:
    """Yield (setting's name, its ranks) of each setting with ranks of layers. Ends at an invalid text, which other rules report."""
    if not (network.block_dims and network.sized_by_blocks):
        yield "rank", [network.rank]
    try:
        for name in ("block_dims", "conv_block_dims"):
            if text := getattr(network, name):
                yield name, [int(number) for number in numbers(text)]
        yield "layer_dims", [rank_of_line(line)[1] for line in network.layer_dims]
    except ValueError:  # reported by the rules of the network
        return


def _network_args(job: TrainJob) -> dict[str, str]:
    """Return sd-scripts' network_args, {name: value as text}: "unit" and LoRA's."""
    return {"unit": str(value_of(job, "dylora.unit"))} | network_args(job)


register_lora(
    DyLoraAdapter,
    name="dylora",
    title="DyLoRA",
    fresh=_fresh,
    module_name="networks.dylora",
    network_args=_network_args,
    settings=DyLoraSettings,
    by_chance=True,
    loraplus=True,
)
