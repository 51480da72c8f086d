"""OFT (Qiu et al. 2023, arXiv:2306.07280): blocks of a layer's output channels are rotated.

OFT of sd-scripts: the network rank is the number of blocks, the network alpha limits the angles; layers of the U-Net
only

    oft_unet_<path>.oft_blocks [blocks, width, width]     oft_unet_<path>.alpha, a number

Diag-OFT of LyCORIS: the network rank is the width of the blocks, or the next smaller divisor of a layer's output width

    <name>.oft_blocks [blocks, width, width]     alpha, the constraint     rescale [out, 1(, 1, 1)], a factor per channel

BOFT of LyCORIS (Liu et al. 2024, arXiv:2311.06243): several stages, each rotating blocks of channels that are further
apart, so that every channel reaches every other; the network rank is the largest width of the blocks

    <name>.oft_blocks [stages, blocks, width, width], blocks a power of two     alpha and rescale as in Diag-OFT
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.formats.lora.names import ALPHA
from core.networks.adapter import Adapter, as_weight
from core.networks.kinds import NetworkKind, Tensors, number_error, register
from core.networks.kinds.lokr import split
from core.networks.kinds.lycoris import MODULE, NOT_IN_PEFT, lycoris_args
from core.record.lazy_torch import Tensor, nn, torch
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.dora_ia3_oft import OftSettings, RotationSettings
from core.settings.layers import Layer
from core.settings.network import NetworkSettings
from core.settings.readers import OTHER, READ, REFUSED, UNREAD, Misread

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.settings.job import TrainJob

OFT_BLOCKS, RESCALE = "oft_blocks", "rescale"
NAME, PREFIX, LORA = "oft", "oft_unet_", "lora_unet_"
ATTENTION, TRANSFORMER = ("_attn1_", "_attn2_"), ("_transformer_blocks_", "_proj_in", "_proj_out")


class OftAdapter(Adapter):
    """Rotations of blocks of output channels, W' = R^T W, in one stage or in several that mix them (BOFT).

    blocks    float32 parameter [k, b, b], for BOFT [stages, k, b, b], as in the file
    rescale   float32 parameter [out, 1(, 1, 1)], a factor per channel, or None
    alpha     limits the norm of all Q of the layer together to alpha * output width (Qiu et al. 2023, arXiv:2306.07280, COFT); 0: no limit
    prefix    of layer names in files; "": the usual
    With Q = blocks - blocks^T, R = (I + Q)(I - Q)^-1 is orthogonal (Cayley).

    The multiplier m interpolates each rotation, I + m * (R - I), as kohya and LyCORIS do, and the rescale too, 1 + m * (rescale - 1), which
    LyCORIS applies in full at any m. Norms and their limit are those of the blocks, as in LyCORIS.
    """

    def __init__(self, name: str, module: nn.Module, tensors: Tensors, rank: int, prefix: str):
        super().__init__(name, module, rank, constraint(tensors))
        self._prefix, device = prefix, as_weight(module.weight).device
        self.blocks = nn.Parameter(tensors[OFT_BLOCKS].float().to(device))
        rescale = tensors.get(RESCALE)
        shape = (-1, *(1 for _ in as_weight(module.weight).shape[1:]))
        self.rescale = nn.Parameter(rescale.float().reshape(shape).to(device)) if rescale is not None else None
        self._cached: Tensor | None = None

    @property
    def file_name(self) -> str:
        return self._prefix + self.name.removeprefix(LORA) if self._prefix else self.name

    def parameters(self) -> list[tuple[nn.Parameter, str]]:
        return [(weight, "plain") for weight in (self.blocks, self.rescale) if weight is not None]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y with its channels rotated except for the bias."""
        unbiased = self.without_bias(y)
        if isinstance(self.module, nn.Conv2d):
            return y + self._change(unbiased.movedim(1, -1)).movedim(-1, 1)
        return y + self._change(unbiased)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight with its output channels rotated."""
        with torch.no_grad():
            change = self._change(weight.flatten(1).t())
        return weight + change.t().reshape(weight.shape)

    def _change(self, rows: Tensor) -> Tensor:
        """Return the change of vectors of output channels, [..., out], by rotation and rescale at the multiplier, in their dtype."""
        change = torch.zeros_like(rows)
        rotations = self._rotations(rows.dtype)
        if rotations.dim() == 3:
            change = _in_blocks(rows, rotations) * self.multiplier
        else:
            for stage, rotation in enumerate(rotations):
                change = change + self.multiplier * self._butterfly(rows + change, stage, rotation)
        if self.rescale is not None:
            change = change + (rows + change) * ((self.rescale.flatten() - 1) * self.multiplier).to(rows.dtype)
        return change

    def _butterfly(self, rows: Tensor, stage: int, rotation: Tensor) -> Tensor:
        """Return the change of vectors [..., out] by one stage of BOFT: blocks of channels that are 2^stage * b / 2 apart.

        rotation   R - I, [k, b, b]
        Liu et al. 2024, arXiv:2311.06243. LyCORIS uses R instead of R^T here.
        """
        _, width, _ = rotation.shape
        distance = 2**stage * (width // 2)
        mixed = rows.unflatten(-1, (-1, 2, distance)).transpose(-1, -2).flatten(-3)
        rotated = _in_blocks(mixed, rotation.transpose(-1, -2))
        return rotated.unflatten(-1, (-1, distance, 2)).transpose(-1, -2).flatten(-3)

    def _rotations(self, dtype: torch.dtype) -> Tensor:
        """Return R - I = 2 Q (I - Q)^-1 of each block, in the shape of `blocks`. Cached while the blocks do not train."""
        if self.blocks.requires_grad:
            return self._compute_rotations().to(dtype)
        if self._cached is None or self._cached.dtype != dtype or self._cached.device != self.blocks.device:
            self._cached = self._compute_rotations().to(dtype)
        return self._cached

    def _compute_rotations(self) -> Tensor:
        """Return R - I of each block, float32, with the norm of Q limited by alpha."""
        q = self.blocks.float()
        q = q - q.transpose(-1, -2)
        if self.alpha > 0:
            limit = self.alpha * out_width(self.module)
            q = q * (limit / (torch.linalg.vector_norm(q) + 1e-8)).clamp(max=1.0)
        eye = torch.eye(q.shape[-1], device=q.device)
        rotations: Tensor = torch.linalg.solve(eye - q, 2 * q)
        return rotations

    def norm(self) -> Tensor:
        return self.blocks.detach().float().norm()

    def shorten(self, ratio: Tensor) -> None:
        self.blocks.mul_(ratio.to(self.blocks.dtype))

    def tensors(self) -> dict[str, Tensor]:
        """Return the blocks and rescale, live, and the constraint as alpha, by their keys in files."""
        tensors = {OFT_BLOCKS: self.blocks.detach(), ALPHA: self.alpha_in_file()}
        return tensors | ({RESCALE: self.rescale.detach()} if self.rescale is not None else {})

    def misfit(self, tensors: Tensors) -> str:
        if OFT_BLOCKS not in tensors or tensors[OFT_BLOCKS].shape != self.blocks.shape:
            return "has blocks of another size"
        return "" if (RESCALE in tensors) == (self.rescale is not None) else f"differs in having a {RESCALE}"

    def take(self, tensors: Tensors) -> None:
        with torch.no_grad():
            self.blocks.copy_(tensors[OFT_BLOCKS])
            if self.rescale is not None:
                self.rescale.copy_(tensors[RESCALE].reshape(self.rescale.shape))
        self.take_alpha(constraint(tensors))
        self._cached = None


def _in_blocks(rows: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each block of b channels of `rows` [..., k * b] by its matrix of `matrices` [k, b, b]."""
    count, width, _ = matrices.shape
    blocks = rows.reshape(-1, count, width).transpose(0, 1)
    return (blocks @ matrices).transpose(0, 1).reshape(rows.shape)


def fits(tensors: Tensors, module: nn.Module) -> bool:
    """Return whether a file's blocks have the layer's output width, and BOFT's stages can divide them."""
    blocks = tensors[OFT_BLOCKS]
    count, width = blocks.shape[-3:-1]
    stages = blocks.shape[0] if blocks.ndim == 4 else 1
    mixes = blocks.ndim == 3 or (width % 2 == 0 and count % 2 ** (stages - 1) == 0)
    return mixes and count * width == out_width(module)


def out_width(module: nn.Module) -> int:
    """Return the number of the layer's output channels."""
    return as_weight(module.weight).shape[0]


# -- files


def _flaw(name: str, tensors: Tensors) -> str:
    if OFT_BLOCKS not in tensors:
        return f"{name} has no {OFT_BLOCKS}"
    blocks, rescale = tensors[OFT_BLOCKS], tensors.get(RESCALE)
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or not blocks.is_floating_point():
        return f"{name}.{OFT_BLOCKS} has an invalid shape"
    if wrong := number_error(name, tensors):
        return wrong
    width = blocks.shape[-3] * blocks.shape[-1]
    return f"{name}.{RESCALE} has an invalid shape" if rescale is not None and rescale.numel() != width else ""


def _idle(tensors: Tensors) -> bool:
    """Return whether a layer of OFT, Diag-OFT or BOFT has no effect."""
    return not tensors[OFT_BLOCKS].any() and (RESCALE not in tensors or bool((tensors[RESCALE] == 1).all()))


def constraint(tensors: Tensors) -> float:
    """Return the limit of the rotations, stored as alpha: a factor of the output width (OftAdapter.alpha); 0 is no limit."""
    return float(tensors[ALPHA]) if ALPHA in tensors else 0.0


# -- registration


def _register(
    name: str,
    title: str,
    blocks: Callable[[int, int], tuple[int, ...]],
    dims: int,
    rank_side: int,
    prefix: str = "",
    **fields: Any,
) -> None:
    """Register a kind that rotates blocks.

    blocks      (output width, rank) -> shape of the tensor `oft_blocks`
    dims        number of its dimensions
    rank_side   index of the dimension that is the rank
    prefix      of layer names in files; "": the usual
    fields      further fields of NetworkKind
    """

    def fresh(target: Target, size: BlockSize, options: Settings | None, seed: int) -> OftAdapter:
        """Create an adapter without effect: blocks of zeros, a rescale of ones."""
        weight, limit, rescaled = as_weight(target.module.weight), size.alpha, False
        if isinstance(options, RotationSettings):
            limit, rescaled = options.constraint, options.rescaled
        shape = blocks(weight.shape[0], size.rank)
        tensors = {OFT_BLOCKS: torch.zeros(shape, device=weight.device), ALPHA: torch.tensor(limit)}
        if rescaled:
            tensors[RESCALE] = torch.ones(weight.shape[0], device=weight.device)
        return OftAdapter(target.name, target.module, tensors, shape[rank_side], prefix)

    def from_tensors(target: Target, tensors: Tensors) -> OftAdapter | None:
        rank = tensors[OFT_BLOCKS].shape[rank_side]
        return OftAdapter(target.name, target.module, tensors, rank, prefix) if fits(tensors, target.module) else None

    register(
        NetworkKind(
            name=name,
            title=title,
            forms=((OFT_BLOCKS,),),
            telling_keys=(OFT_BLOCKS,),
            fresh=fresh,
            from_tensors=from_tensors,
            size=lambda tensors: BlockSize(tensors[OFT_BLOCKS].shape[rank_side], constraint(tensors)),
            flaw=_flaw,
            idle=_idle,
            looks=lambda tensors: len(tensors[OFT_BLOCKS].shape) == dims,
            prefix=prefix,
            **fields,
        )
    )


def _register_of_lycoris(
    name: str,
    title: str,
    algo: str,
    blocks: Callable[[int, int], tuple[int, ...]],
    dims: int,
    constraint_misreads: dict[str, str],
    misread: tuple[Misread, ...],
    **fields: Any,
) -> None:
    """Register one of LyCORIS' rotations; arguments as in `_register`.

    algo      LyCORIS' name of the algorithm
    constraint_misreads   {program: how it misreads a constraint}
    misread   further misreadings
    """
    constrained = Misread(
        constraint_misreads,
        "a constraint",
        lambda options, conv: options.constraint > 0,
        lambda tensors: constraint(tensors) > 0,
    )
    _register(
        name,
        title,
        blocks,
        dims,
        rank_side=-1,
        optional=(ALPHA, RESCALE),
        module_name=MODULE,
        network_args=lambda job: lycoris_args(job, algo, getattr(job, name)),
        settings=RotationSettings,
        uses=frozenset({"rank"}),
        misread=(NOT_IN_PEFT, Misread({"InvokeAI": REFUSED}), *misread, constrained),
        **fields,
    )


def _diagonal(out: int, rank: int) -> tuple[int, ...]:
    """Return the shape of Diag-OFT's blocks for `out` output channels: (blocks, width, width)."""
    width, count = split(out, rank)
    return count, width, width


def split_in_powers(width: int, largest: int) -> tuple[int, int] | None:
    """Return (block width, number of blocks) with the widest even block up to `largest` that divides `width` into a power of two.

    None if there is none; (320, 16) -> (10, 32).
    """
    for block in range(largest - largest % 2, 0, -2):
        count = width // block
        if width % block == 0 and count & (count - 1) == 0:
            return block, count
    return None


def _butterflies(out: int, rank: int) -> tuple[int, ...]:
    """Return the shape of BOFT's blocks for `out` output channels: (stages, blocks, width, width)."""
    factors = split_in_powers(out, rank)
    assert factors is not None
    width, count = factors
    return count.bit_length(), count, width, width


def _takes(layer: Layer, network: NetworkSettings, options: Settings | None) -> bool:
    """Return whether sd-scripts' OFT changes a layer of the U-Net.

    Attention always; whole transformers with enable_all_linear, residual and resampling blocks with enable_conv, any if layers are chosen.
    """
    assert isinstance(options, OftSettings)
    if layer.name.startswith("lora_te") or layer.outer:
        return False
    if network.layers or any(part in layer.name for part in ATTENTION):
        return True
    return options.enable_all_linear if any(part in layer.name for part in TRANSFORMER) else options.enable_conv


def _sized(network: NetworkSettings, options: Settings | None) -> NetworkSettings:
    """Return network settings in which 3x3 convolutions, if `enable_conv` trains them, have the rank and alpha of other layers, which are
    the number of blocks and the limit."""
    assert isinstance(options, OftSettings)
    size = {"conv_rank": network.rank, "conv_alpha": network.alpha} if options.enable_conv else {"conv_rank": None}
    return network.model_copy(update={**size, "rs_lora": False})


def _network_args(job: TrainJob) -> dict[str, str]:
    """Return sd-scripts' network_args, {name of an enabled option: "True"}; {} without any."""
    options: OftSettings = getattr(job, NAME)
    return {name: "True" for name in type(options).model_fields if getattr(options, name)}


_register_of_lycoris(
    "diag_oft",
    "Diag-OFT",
    "diag-oft",
    _diagonal,
    3,
    {"ComfyUI": OTHER, "A1111": READ},
    misread=(
        Misread({"Forge": REFUSED}),
        # A1111 reads the constraint 0, which is none, as a limit of 0.
        Misread(
            {"A1111": UNREAD},
            "",
            lambda options, conv: options.constraint == 0,
            lambda tensors: constraint(tensors) == 0,
        ),
        Misread(
            {"ComfyUI": OTHER}, "rescale", lambda options, conv: options.rescaled, lambda tensors: RESCALE in tensors
        ),
    ),
)
_register(
    NAME,
    "OFT",
    lambda out, rank: (rank, out // rank, out // rank),
    dims=3,
    rank_side=0,
    prefix=PREFIX,
    optional=(ALPHA,),
    module_name="networks.oft",
    network_args=_network_args,
    settings=OftSettings,
    uses=frozenset({"rank", "alpha", "block_alphas"}),
    takes=_takes,
    sized=_sized,
    fits=lambda width, rank: width % rank == 0,
)
_register_of_lycoris(
    "boft",
    "BOFT",
    "boft",
    _butterflies,
    4,
    {"ComfyUI": OTHER},
    misread=(Misread({"Forge": REFUSED, "A1111": REFUSED}),),
    fits=lambda width, rank: split_in_powers(width, rank) is not None,
)
