"""ControlNet files of every program: reading, checking against a U-Net by the headers alone, and writing.

Supported forms: the original (ldm) names with the prefix `control_model.` or without it (sd-scripts); the same as a
difference to the base model; diffusers' names in one file; a diffusers folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.control.files import fill, write_tensors
from core.control.kinds import CONTROLNET, check_control
from core.control.shapes import HINT, Shapes, check_shapes, control_net_shapes, depths_of
from core.formats.detect import ModelKind, identify, read_json
from core.formats.models.checkpoint import TensorLocation, open_checkpoint, weight_files
from core.formats.models.sd_keys import unet_to_diffusers, unet_to_ldm
from core.formats.tensors.header import read_header
from core.formats.tensors.reading import TensorFile
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError
from core.settings.model import traits_of

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel

PREFIX = "control_model."
DIFFERENCE = "difference"
LABELS = "label_emb.0.0.weight"  # of SDXL under the original's names
HINT_NAMES = {
    "input_hint_block.0": f"{HINT}conv_in",
    **{f"input_hint_block.{2 * number + 2}": f"{HINT}blocks.{number}" for number in range(6)},
    "input_hint_block.14": f"{HINT}conv_out",
    "middle_block_out.0": "controlnet_mid_block",
}
ZERO_CONV = re.compile(r"zero_convs\.(\d+)\.0")
OTHER = "a ControlNet", "control.other-tensors"


@dataclass(frozen=True)
class ControlNetFile:
    """A ControlNet file or diffusers folder, described by its headers.

    locations   diffusers' tensor name -> (file, key in the file)
    shapes      diffusers' tensor name -> shape
    relative    whether the weights copied from the U-Net are stored as a difference to the base model
    config      config.json of a diffusers folder; None for a single file, whose config follows from the base model's U-Net
    pooled      whether the residuals are averaged over the image (the "shuffle" ControlNet)
    """

    path: Path
    kind: ModelKind
    locations: Mapping[str, tuple[Path, str]]
    shapes: Mapping[str, tuple[int, ...]]
    relative: bool = False
    config: Mapping[str, Any] | None = None

    @property
    def has_sd_scripts_names(self) -> bool:
        """Whether the keys are the original (ldm) names without `control_model.`, as only sd-scripts writes them."""
        return any(key.startswith("zero_convs.") for _, key in self.locations.values())

    @property
    def pooled(self) -> bool:
        """Whether the residuals are averaged over the image: by the config, without one by "shuffle" in the file name."""
        config = self.config or {}
        return bool(config.get("global_pool_conditions", self.config is None and "shuffle" in self.path.stem.lower()))


def open_control_net(path: Path) -> ControlNetFile:
    """Read the header of a ControlNet file or folder. Raises ProblemsError for other files and unsupported kinds."""
    kind = identify(path)
    check_control(kind, path, (CONTROLNET,))
    config = read_json(path / "config.json") if path.is_dir() else None
    files = {file: read_header(file)[0] for file in (weight_files(path) if path.is_dir() else [path])}
    entries = {key: (file, entry) for file, tensors in files.items() for key, entry in tensors.items()}
    keys = dict(_tensor_names(list(entries)))
    locations = {name: (entries[key][0], key) for name, key in keys.items()}
    shapes = {name: entries[key][1].shape for name, key in keys.items()}
    return ControlNetFile(path, kind, locations, shapes, DIFFERENCE in entries, config)


def _tensor_names(keys: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (diffusers' name, key) of each ControlNet tensor among a file's `keys`.

    The key that marks a difference file is left out. If any key starts with `control_model.`, only such keys count: the file
    may contain the base model too.
    """
    if any(key.startswith("controlnet_cond_embedding.") for key in keys):
        yield from ((key, key) for key in keys)
        return
    prefix = PREFIX if any(key.startswith(PREFIX) for key in keys) else ""
    bare = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix) and key != DIFFERENCE}
    family = "sdxl" if LABELS in bare else "sd1"
    yield from ((to_diffusers(name, family), key) for name, key in bare.items())


def to_diffusers(name: str, family: str) -> str:
    """Convert a ControlNet tensor's original (ldm) name, without `control_model.`, to diffusers' name.

    Example: `input_hint_block.2.weight` -> `controlnet_cond_embedding.blocks.0.weight`.
    """
    module, _, kind = name.rpartition(".")
    if (zero := ZERO_CONV.fullmatch(module)) is not None:
        return f"controlnet_down_blocks.{zero[1]}.{kind}"
    hint_name = HINT_NAMES.get(module)
    return f"{hint_name}.{kind}" if hint_name is not None else unet_to_diffusers(name, family)


def to_ldm(name: str, family: str) -> str:
    """Convert diffusers' name of a ControlNet tensor to the original (ldm) name, without `control_model.`."""
    module, _, kind = name.rpartition(".")
    if module.startswith("controlnet_down_blocks."):
        return f"zero_convs.{module.rpartition('.')[2]}.0.{kind}"
    hint_name = next((ldm for ldm, diffusers in HINT_NAMES.items() if diffusers == module), None)
    return f"{hint_name}.{kind}" if hint_name is not None else unet_to_ldm(name, family)


# -- for a U-Net


def net_for_file(file: ControlNetFile, unet_config: Mapping[str, Any], family: str) -> ControlNetModel:
    """Create the file's ControlNetModel, without weights on the "meta" device, for a model of this U-Net config and family.

    Raises ProblemsError if the file is for another family or its shapes do not fit.
    """
    from core.control.controlnet import empty

    check_control(file.kind, file.path, (CONTROLNET,), family)
    net = empty(_config(file, unet_config))
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    check_shapes(file.path, file.shapes, expected, OTHER, family)
    return net


def _config(file: ControlNetFile, unet_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ControlNetModel config of a file: the U-Net's config with as many attention layers as the file contains.

    SDXL's small and mid ControlNets have fewer layers than the U-Net.
    """
    from core.control.controlnet import controlnet_config

    extra: dict[str, Any] = {"global_pool_conditions": file.pooled}
    if file.config is not None:
        extra["controlnet_conditioning_channel_order"] = file.config.get("controlnet_conditioning_channel_order", "rgb")
    depths = depths_of(file.shapes)
    levels = [depths.get(f"down_blocks.{level}", 0) for level in range(len(unet_config["down_block_types"]))]
    if unet_config.get("addition_embed_type") == "text_time":
        extra["down_block_types"] = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in levels]
        layers = [depth or 1 for depth in levels]
        extra["transformer_layers_per_block"] = [*layers[:-1], depths.get("mid_block", layers[-1])]
        if "mid_block" not in depths:
            extra["mid_block_type"] = "UNetMidBlock2D"
    return controlnet_config(unet_config, **extra)


def file_problems(path: Path, unet: Shapes, family: str) -> list[Problem]:
    """Return the problems of using a file as a ControlNet for a model, found by its headers; [] if it fits.

    unet     tensor shapes of the model's U-Net, by diffusers' names
    family   of the model
    """
    try:
        file = open_control_net(path)
        check_control(file.kind, file.path, (CONTROLNET,), family)
        check_shapes(file.path, file.shapes, control_net_shapes(unet, file.shapes), OTHER, family)
    except ProblemsError as error:
        return error.problems
    return []


def load_control_net(path: Path, unet: Any, family: str, model: Path | None = None) -> ControlNetModel:
    """Load a ControlNet file or folder for this U-Net, in fp32 on the CPU.

    model   file or folder of the base model, needed by a difference file: its U-Net weights are added to the stored difference
            (not those of `unet`, which may contain merged LoRAs)
    Raises ProblemsError for another kind of file, another family, and NaN or infinite weights.
    """
    file = open_control_net(path)
    net = net_for_file(file, unet.config, family).to_empty(device="cpu")
    base: Mapping[str, TensorLocation] = {}
    if file.relative:
        assert model is not None, "a difference is one to a model"
        base = open_checkpoint(model, family).parts["unet"].locations
    with ExitStack() as stack:
        sources = {each: stack.enter_context(TensorFile(each)) for each in {tensor.file for tensor in base.values()}}

        def absolute(name: str, value: torch.Tensor) -> torch.Tensor:
            if name not in base:
                return value
            base_value = sources[base[name].file].read_entry(base[name].entry, torch.float32)
            return value + base_value.reshape(value.shape)

        fill(net, file.path, file.locations, absolute)
    return net


# -- writing


def write_control_net(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    family: str,
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
    pickled: bool = False,
) -> list[Problem]:
    """Write a ControlNet atomically and return advice; in fp32 if a value would overflow `dtype`.

    tensors   by diffusers' names, on any device
    family    SD 1.x and 2.x files get the original (ldm) names with `control_model.`, SDXL files and folders diffusers' names
    config, pickled, metadata   see `write_tensors`
    Raises ProblemsError for NaN and infinite weights.
    """
    diffusers = traits_of(family).diffusers_controlnets or config is not None
    stored = {name if diffusers else PREFIX + to_ldm(name, family): value for name, value in tensors.items()}
    return write_tensors(path, stored, metadata, dtype, config, pickled)
