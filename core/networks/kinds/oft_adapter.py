"""OFT for one layer: rotations of blocks of the output's channels, W' = R^T W, in one stage or in several that mix them (BOFT)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.networks.adapter import Adapter, as_weight
from core.networks.kinds.keys import ALPHA, OFT_BLOCKS, RESCALE, constraint

KOHYA, LORA = "oft_unet_", "lora_unet_"


class OftAdapter(Adapter):
    """`blocks` [k, b, b], of BOFT [stages, k, b, b], are float32 parameters in the file's shape, and so is `rescale`, a factor for
    each channel, if there is one. With Q = blocks - blocks^T, R = (I + Q)(I - Q)^-1 is orthogonal (Cayley). `alpha` limits the
    norm of all Q of the layer together to alpha * width of the output (Qiu et al. 2023, arXiv:2306.07280, COFT).

    The multiplier m interpolates each rotation, I + m * (R - I), as kohya and LyCORIS do, and so the rescale, 1 + m * (rescale
    - 1), which LyCORIS keeps whole at any m. Norms and their limit are those of the blocks, as in LyCORIS.
    """

    def __init__(self, name: str, module: nn.Module, tensors: Mapping[str, Tensor], rank: int, kohya: bool = False):
        super().__init__(name, module, rank, constraint(tensors))
        self.kohya, place = kohya, as_weight(module.weight).device
        self.blocks = nn.Parameter(tensors[OFT_BLOCKS].float().to(place))
        rescale = tensors.get(RESCALE)
        shape = (-1, *(1 for _ in as_weight(module.weight).shape[1:]))
        self.rescale = nn.Parameter(rescale.float().reshape(shape).to(place)) if rescale is not None else None
        self._known: Tensor | None = None

    @classmethod
    def fresh(
        cls,
        name: str,
        module: nn.Module,
        shape: tuple[int, ...],
        rank: int,
        alpha: float,
        rescaled: bool = False,
        kohya: bool = False,
    ) -> OftAdapter:
        """One without effect: no rotation."""
        weight = as_weight(module.weight)
        tensors = {OFT_BLOCKS: torch.zeros(shape, device=weight.device), ALPHA: torch.tensor(alpha)}
        if rescaled:
            tensors[RESCALE] = torch.ones(weight.shape[0], device=weight.device)
        return cls(name, module, tensors, rank, kohya)

    @property
    def file_name(self) -> str:
        return KOHYA + self.name.removeprefix(LORA) if self.kohya else self.name

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(weight, "plain") for weight in (self.blocks, self.rescale) if weight is not None]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        own = self.without_bias(y)
        if isinstance(self.module, nn.Conv2d):
            return y + self._change(own.movedim(1, -1)).movedim(-1, 1)
        return y + self._change(own)

    def merged(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            change = self._change(weight.flatten(1).t())
        return weight + change.t().reshape(weight.shape)

    def _change(self, rows: Tensor) -> Tensor:
        """What turning and rescaling adds to vectors of output channels, [..., out], in their dtype."""
        change = torch.zeros_like(rows)
        turns = self._turns(rows.dtype)
        if turns.dim() == 3:
            change = _in_blocks(rows, turns) * self.multiplier
        else:
            for stage, turn in enumerate(turns):
                change = change + self.multiplier * self._butterfly(rows + change, stage, turn)
        if self.rescale is not None:
            change = change + (rows + change) * ((self.rescale.flatten() - 1) * self.multiplier).to(rows.dtype)
        return change

    def _butterfly(self, rows: Tensor, stage: int, turn: Tensor) -> Tensor:
        """One stage of BOFT (Liu et al. 2024, arXiv:2311.06243): blocks of channels that are 2^stage * b / 2 apart. LyCORIS turns
        them by R instead of R^T here."""
        _, width, _ = turn.shape
        apart = 2**stage * (width // 2)
        mixed = rows.unflatten(-1, (-1, 2, apart)).transpose(-1, -2).flatten(-3)
        turned = _in_blocks(mixed, turn.transpose(-1, -2))
        return turned.unflatten(-1, (-1, apart, 2)).transpose(-1, -2).flatten(-3)

    def _turns(self, dtype: torch.dtype) -> Tensor:
        """R - I = 2 Q (I - Q)^-1. While the blocks do not train it is computed once."""
        if self.blocks.requires_grad:
            return self._computed().to(dtype)
        if self._known is None or self._known.dtype != dtype or self._known.device != self.blocks.device:
            self._known = self._computed().to(dtype)
        return self._known

    def _computed(self) -> Tensor:
        q = self.blocks.float()
        q = q - q.transpose(-1, -2)
        if self.alpha > 0:
            limit = self.alpha * out_width(self.module)
            q = q * (limit / (torch.linalg.vector_norm(q) + 1e-8)).clamp(max=1.0)
        eye = torch.eye(q.shape[-1], device=q.device)
        turns: Tensor = torch.linalg.solve(eye - q, 2 * q)
        return turns

    def norm(self) -> Tensor:
        return self.blocks.detach().float().norm()

    def shorten(self, ratio: Tensor) -> None:
        self.blocks.mul_(ratio.to(self.blocks.dtype))

    def tensors(self) -> dict[str, Tensor]:
        found = {OFT_BLOCKS: self.blocks.detach(), ALPHA: self.alpha_in_file()}
        return found | ({RESCALE: self.rescale.detach()} if self.rescale is not None else {})

    def misfit(self, tensors: Mapping[str, Tensor]) -> str:
        if OFT_BLOCKS not in tensors or tensors[OFT_BLOCKS].shape != self.blocks.shape:
            return "has blocks of another size"
        return "" if (RESCALE in tensors) == (self.rescale is not None) else f"differs in having a {RESCALE}"

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self.blocks.copy_(tensors[OFT_BLOCKS])
            if self.rescale is not None:
                self.rescale.copy_(tensors[RESCALE].reshape(self.rescale.shape))
        self.take_alpha(constraint(tensors))
        self._known = None


def _in_blocks(rows: Tensor, matrices: Tensor) -> Tensor:
    """Vectors [..., k * b], each block of them times its own matrix of [k, b, b]."""
    count, width, _ = matrices.shape
    blocks = rows.reshape(-1, count, width).transpose(0, 1)
    return (blocks @ matrices).transpose(0, 1).reshape(rows.shape)


def fits(tensors: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Whether the blocks of a file turn the layer's output, and their stages can mix it."""
    blocks = tensors[OFT_BLOCKS]
    count, width = blocks.shape[-3:-1]
    stages = blocks.shape[0] if blocks.ndim == 4 else 1
    mixes = blocks.ndim == 3 or (width % 2 == 0 and count % 2 ** (stages - 1) == 0)
    return mixes and count * width == out_width(module)


def out_width(module: nn.Module) -> int:
    """The layer's output channels."""
    return as_weight(module.weight).shape[0]
