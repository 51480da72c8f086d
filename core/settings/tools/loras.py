"""Settings of the tools that make LoRAs of LoRAs and of checkpoints."""

from __future__ import annotations

from typing import Literal

from core.settings.base import Settings, kohya_setting, setting

DEVICES = {"cpu": "CPU", "cuda": "GPU (CUDA)"}


def _precision() -> Literal["fp32", "fp16", "bf16"] | None:
    chosen: Literal["fp32", "fp16", "bf16"] | None = kohya_setting(
        None, hint="unchanged", help="Dtype of the weights in the new file. Empty keeps the file's."
    )
    return chosen


def _output(beside: str) -> str | None:
    path: str | None = setting(
        None, level="shown", names="path", help=f"The new file, or a folder for it. Empty is beside {beside}."
    )
    return path


def _device() -> Literal["cpu", "cuda"]:
    chosen: Literal["cpu", "cuda"] = kohya_setting(
        "cpu", labels=DEVICES, help="Where decompositions run. The CPU does not disturb a training on the GPU."
    )
    return chosen


def _compatibility(what: str) -> Literal["none", "sd-scripts"]:
    chosen: Literal["none", "sd-scripts"] = setting(
        "none", labels={"none": "off", "sd-scripts": "sd-scripts"}, help=f"sd-scripts: {what}"
    )
    return chosen


class ResizeLoraSettings(Settings):
    """Saves a LoRA with lower ranks, keeping the most important directions of each layer. Its strength stays the same."""

    file: str | None = setting(
        None,
        title="LoRA",
        level="shown",
        kohya="model",
        names="path or name",
        help="A LoRA; LoHa, LoKr and full differences become one.",
    )
    new_rank: int = kohya_setting(
        16,
        within=(1, 1024),
        title="New rank",
        level="shown",
        help="Rank of each layer; with a dynamic method the highest that it may choose.",
    )
    new_conv_rank: int | None = kohya_setting(
        None, within=(1, 1024), title="New conv rank", hint="as new rank", help="The same of 3x3 convolutions."
    )
    dynamic_method: Literal["sv_ratio", "sv_fro", "sv_cumulative"] | None = kohya_setting(
        None,
        level="shown",
        hint="off: one rank",
        labels={"sv_ratio": "ratio to the largest", "sv_fro": "kept norm", "sv_cumulative": "kept sum"},
        help="Chooses each layer's rank by its singular values: those of at least the largest one's (1 / parameter)th, as many as keep this share of the Frobenius norm, or of the values' sum.",
    )
    dynamic_param: float | None = kohya_setting(
        None,
        gt=0,
        le=10000,
        title="Dynamic parameter",
        level="shown",
        hint="none",
        help="Of the dynamic method: 2 to 20 for the ratio, 0.8 to 0.99 for norm and sum.",
    )
    save_precision: Literal["fp32", "fp16", "bf16"] | None = _precision()
    device: Literal["cpu", "cuda"] = _device()
    output: str | None = _output("the LoRA")
    compatibility: Literal["none", "sd-scripts"] = _compatibility(
        "dynamic methods take one rank more than needed, the conv rank bounds 1x1 convolutions too, and a rank above the file's is padded."
    )


def _ratios(hint: str) -> str:
    text: str = kohya_setting(
        "",
        level="shown",
        hint=hint,
        help="Strength of each LoRA, comma-separated in their order; below 0 reverses one.",
    )
    return text


def _block_weights() -> list[str]:
    lines: list[str] = setting(
        default_factory=list,
        title="Block weights",
        kohya="lbws",
        widget="lines",
        help="A line per LoRA: 12, 17, 20 or 26 numbers (BASE first), or a preset such as MIDD or OUTS. An empty line is 1 everywhere.",
        source="LBW extension of A1111",
    )
    return lines


class MergeLoraToModelSettings(Settings):
    """Merges LoRAs of any kind into a copy of a checkpoint, file to file, without loading the whole model."""

    file: str | None = setting(
        None,
        title="Model",
        level="shown",
        kohya="sd_model",
        names="path or name",
        help="The checkpoint or diffusers folder. The copy has the same format.",
    )
    models: list[str] = kohya_setting(
        default_factory=list,
        title="LoRAs",
        level="shown",
        names="path or name",
        help="One per line, merged in this order.",
    )
    ratios: str = _ratios("1 each")
    lbws: list[str] = _block_weights()
    save_precision: Literal["fp32", "fp16", "bf16"] | None = kohya_setting(
        None,
        level="shown",
        hint="unchanged",
        help="Dtype of the copy. Changes are added in fp32 in any case.",
    )
    output: str | None = _output("the model, ending in _merged")
