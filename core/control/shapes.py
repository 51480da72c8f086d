"""Expected tensor names and shapes of a ControlNet or LLLite for a U-Net, to check files by their headers. Imports no torch."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from core.formats.detect import FAMILY_NAMES
from core.formats.models.checkpoint import open_checkpoint
from core.formats.models.overflow import SHOWN
from core.formats.models.sd_keys import unet_to_ldm
from core.record.problems import ProblemsError
from core.record.units import count, first_of
from core.record.workspace import display_path
from core.settings.blocks import has_nine_blocks

Shapes = Mapping[str, tuple[int, ...]]
HINT = "controlnet_cond_embedding."
HINT_CHANNELS = (16, 16, 32, 32, 96, 96, 256)
NOT_IN_CONTROL_NETS = ("up_blocks.", "conv_norm_out.", "conv_out.", "time_embedding.cond_proj.")
SKIP = re.compile(r"down_blocks\.(\d+)\.(?:resnets\.(\d+)\.conv2|downsamplers\.0\.conv)\.weight")
ATTENTION = re.compile(r"(down_blocks\.\d|mid_block)\.attentions\.\d\.(?:transformer_blocks\.(\d{1,2})\.)?")
MOST_LAYERS = 10  # of a transformer in SDXL's U-Net
PREFIX = "lllite_unet_"
READERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")


def unet_shapes(model: Path, family: str) -> Shapes:
    """Return {diffusers' name: shape} of a model's U-Net, from its header; {} for a model without a U-Net."""
    part = open_checkpoint(model, family).parts.get("unet")
    return {} if part is None else {name: tuple(location.entry.shape) for name, location in part.locations.items()}


def check_shapes(path: Path, shapes: Shapes, expected: Shapes, problem: tuple[str, str], family: str) -> None:
    """Raise ProblemsError unless a file's tensors have the expected names and shapes.

    shapes, expected   tensor name -> shape, of the file and of a net for the model
    problem            (noun with article for the fix, such as "an LLLite"; the problem's code)
    family             of the model, for the fix
    """
    different = sorted(
        name
        for name in expected.keys() | shapes.keys()
        if name not in shapes or name not in expected or not _same_values(shapes[name], expected[name])
    )
    if different:
        what = f"{path.name} was made for another model: it differs in {count(len(different), 'tensor')}: {first_of(different, SHOWN)}"
        fix = f"choose {problem[0]} for {FAMILY_NAMES.get(family, family)}"
        raise ProblemsError.one(what, display_path(path), fix, problem[1])


def _same_values(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether two shapes are equal apart from trailing 1s, as those of a 1x1 convolution and a Linear are."""
    shorter, longer = sorted((tuple(shape), tuple(expected)), key=len)
    return longer[: len(shorter)] == shorter and set(longer[len(shorter) :]) <= {1}


# -- ControlNet


def control_net_shapes(unet: Shapes, names: Iterable[str]) -> Shapes:
    """Return {diffusers' name: shape} of a ControlNet for this U-Net; {} if the U-Net has no input blocks.

    unet    tensor name -> shape
    names   tensor names of the ControlNet file: SDXL's small and mid ControlNets have fewer attention layers
    """
    shapes = {name: shape for name, shape in unet.items() if not name.startswith(NOT_IN_CONTROL_NETS)}
    if "add_embedding.linear_1.weight" in unet:
        depths = depths_of(names)
        shapes = {name: shape for name, shape in shapes.items() if _is_included(name, depths)}
    skips = sorted((int(skip[1]), int(skip[2] or 99), name) for name in unet if (skip := SKIP.fullmatch(name)))
    if not skips or "conv_in.weight" not in unet:
        return {}
    channels = [unet[name][0] for name in ("conv_in.weight", *(name for *_, name in skips))]
    zeros = {f"controlnet_down_blocks.{number}": (side, side, 1, 1) for number, side in enumerate(channels)}
    zeros["controlnet_mid_block"] = (channels[-1], channels[-1], 1, 1)
    return shapes | dict(_with_biases(zeros | _hint_shapes(channels[0])))


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Return {block with attention: number of transformer layers} of a ControlNet with these tensor names.

    Blocks are "down_blocks.N" and "mid_block".
    """
    depths: dict[str, int] = {}
    for match in filter(None, map(ATTENTION.match, names)):
        if match[2]:
            depths[match[1]] = max(depths.get(match[1], 0), min(int(match[2]) + 1, MOST_LAYERS))
    return depths


def _is_included(name: str, depths: Mapping[str, int]) -> bool:
    """Return whether a ControlNet with attention `depths` (see `depths_of`) copies the U-Net's parameter `name`."""
    if match := ATTENTION.match(name):
        return int(match[2] or 0) < depths.get(match[1], 0)
    return "mid_block" in depths or not name.startswith("mid_block.resnets.1.")


def _hint_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Return {layer: shape of its weight} of the hint embedding, which shrinks a control image to 1/8 along each side.
    width: channels of its output"""
    pairs = enumerate(pairwise(HINT_CHANNELS))
    shapes: dict[str, tuple[int, ...]] = {
        f"{HINT}blocks.{number}": (after, before, 3, 3) for number, (before, after) in pairs
    }
    shapes |= {f"{HINT}conv_in": (HINT_CHANNELS[0], 3, 3, 3), f"{HINT}conv_out": (width, HINT_CHANNELS[-1], 3, 3)}
    return shapes


def _with_biases(weights: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of the weight and bias of each module, by module -> shape of the weight."""
    for module, shape in weights.items():
        yield f"{module}.weight", shape
        yield f"{module}.bias", shape[:1]


# -- LLLite


@dataclass(frozen=True)
class LLLiteTarget:
    """A layer of the U-Net that an LLLite changes.

    name    of its module in LLLite files
    path    of the layer in the U-Net, by diffusers' names
    depth   1, 2 or 3, for hints shrunk by 8, 16 or 32 along each side
    width   features of the layer's input
    """

    name: str
    path: str
    depth: int
    width: int


def targets_among(widths: Mapping[str, int], family: str) -> list[LLLiteTarget]:
    """Return the layers that an LLLite changes: query, key and value of self-attention and query of cross-attention.

    They are in the encoder and, for SDXL, in the middle block. SD 1.x's middle block is at 1/64 of the image, for which the
    format has no depth.

    widths   path of each Linear in the U-Net -> its input features
    """
    targets = []
    for path, width in widths.items():
        if not path.endswith(READERS) or "transformer_blocks" not in path:
            continue
        if path.startswith("down_blocks.") or (path.startswith("mid_block.") and has_nine_blocks(family)):
            ldm = unet_to_ldm(path, family)
            block = int(ldm.split(".")[1]) if ldm.startswith("input_blocks.") else 99
            depth = 1 if block <= 2 else 2 if block <= 5 else 3
            targets.append(LLLiteTarget(PREFIX + ldm.replace(".", "_"), path, depth, width))
    return targets


def conditioning_layers(depth: int, emb: int) -> list[tuple[int, int, int]]:
    """Return (input channels, output channels, kernel size = stride) of each convolution of an LLLite's hint embedding.

    A ReLU follows each but the last.

    depth   see `LLLiteTarget`
    emb     channels of the output (cond_emb_dim)
    """
    half = emb // 2
    following = {1: [(half, emb, 2)], 2: [(half, emb, 4)], 3: [(half, half, 4), (half, emb, 2)]}
    return [(3, half, 4), *following[depth]]


def lllite_shapes(unet: Shapes, family: str, emb: int, hidden: int) -> Shapes:
    """Return {name in the file: shape} of the tensors of an LLLite for a U-Net.

    unet          tensor shapes of the U-Net, see `unet_shapes`
    emb, hidden   cond_emb_dim and network_dim of `core.control.lllite.LayerNet`
    """
    weights: dict[str, tuple[int, ...]] = {}
    widths = {name.removesuffix(".weight"): shape[-1] for name, shape in unet.items() if name.endswith(".weight")}
    for target in targets_among(widths, family):
        layers = enumerate(conditioning_layers(target.depth, emb))
        shapes: dict[str, tuple[int, ...]] = {
            f"conditioning1.{2 * n}": (after, before, size, size) for n, (before, after, size) in layers
        }
        shapes |= {"down.0": (hidden, target.width), "mid.0": (hidden, hidden + emb), "up.0": (target.width, hidden)}
        weights |= {f"{target.name}.{module}": shape for module, shape in shapes.items()}
    return dict(_with_biases(weights))
