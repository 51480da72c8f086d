"""Settings of the tools that make LoRAs from other LoRAs and from checkpoints."""

from typing import Annotated, Any, Literal

from core.settings.base import SAME, SEED_RANGE, Settings, kohya_setting, setting
from core.settings.tools.fields import Precision, model_file, model_files, output_file

DEVICES = {"cpu": "CPU", "cuda": "GPU (CUDA)"}


SavePrecision = Annotated[
    Precision | None,
    kohya_setting(hint="unchanged", help="Dtype of the weights in the new file. Empty keeps the file's."),
]
Device = Annotated[
    Literal["cpu", "cuda"],
    kohya_setting(labels=DEVICES, help="Where decompositions run. The CPU does not disturb a training on the GPU."),
]
NoModelspec = Annotated[
    bool,
    kohya_setting(title="No modelspec", help="Leaves out modelspec and the record of the inputs with their hashes."),
]
ClampQuantile = Annotated[
    float | None,
    kohya_setting(
        within=(0.5, 1.0),
        title="Clamp quantile",
        hint="off; 0.99 with compatibility",
        help="Clamps the elements of both matrices to plus and minus this quantile of them, which cuts outliers and so changes the result.",
    ),
]


def _output(next_to: str, hint: str = "") -> Any:
    """Declare the output file or folder; by default it is next to the file `next_to`, in plain text."""
    help = f"The new file, or a folder for it. Empty is next to {next_to}."
    return output_file(help, hint=hint or f"next to {next_to}")


def _compatibility(what: str) -> Any:
    """Declare the choice of sd-scripts' behavior; `what` describes how that differs."""
    return setting("none", labels={"none": "off", "sd-scripts": "sd-scripts"}, help=f"sd-scripts: {what}")


def _ratios(hint: str) -> Any:
    """Declare the strengths of the LoRAs to merge; `hint` describes the default."""
    return kohya_setting(
        "",
        level="shown",
        hint=hint,
        help="Strength of each LoRA, comma-separated in their order; below 0 reverses one.",
    )


def _block_weights() -> Any:
    """Declare the block weights of the LoRAs to merge, a line for each."""
    return setting(
        default_factory=list,
        title="Block weights",
        kohya="lbws",
        widget="block weights",
        blocks_of="models",
        help="A line per LoRA: 12, 17, 20 or 26 numbers (BASE first), or a preset such as MIDD or OUTS. An empty line is 1 everywhere.",
        source="LBW extension of A1111",
    )


class MergeLorasSettings(Settings):
    """Merges LoRAs of one family into one file. The inputs stay as they are."""

    models: list[str] = model_files("LoRAs, one per line.", "lora", title="LoRAs", kohya=SAME)
    ratios: str = _ratios("1 each")
    method: Literal["concat", "svd", "plain"] = setting(
        "concat",
        level="shown",
        labels={"concat": "concat (exact)", "svd": "SVD (of a rank)", "plain": "plain (mean)"},
        help="Concat gives exactly the sum of the LoRAs. SVD gives the nearest LoRA of the new rank, and takes other kinds too. Plain averages the matrices of LoRAs of equal rank: small, and good for steps of one training, but for LoRAs that have nothing in common far from their sum.",
        source="sd-scripts' merge_lora and svd_merge_lora",
    )
    new_rank: int | None = kohya_setting(
        None,
        needs="method=svd",
        within=(1, 1024),
        level="shown",
        hint="SVD: the highest of them",
        help="Rank of the result, for SVD. With concat the ranks add up.",
    )
    new_conv_rank: int | None = kohya_setting(
        None, needs="method=svd", within=(1, 1024), hint="as new rank", help="The same of 3x3 convolutions."
    )
    shuffle: bool = kohya_setting(
        False,
        help="Puts the ranks of each layer in a random order. The result stays the same; concat no longer shows in it.",
    )
    seed: int = setting(0, needs="shuffle", within=SEED_RANGE, help="Of the random order.")
    lbws: list[str] = _block_weights()
    clamp_quantile: ClampQuantile = None
    save_precision: SavePrecision = None
    device: Device = "cpu"
    no_metadata: NoModelspec = False
    output: str | None = _output(
        "the first LoRA, or in models/loras if that is a checkpoint of a run",
        "next to the first, or models/loras",
    )
    compatibility: Literal["none", "sd-scripts"] = _compatibility(
        "plain and concat multiply both matrices by the ratio (plain: 0.5 is a quarter), concat divides by the growth of the rank, and SVD clamps."
    )


class ExtractLoraSettings(Settings):
    """Makes a LoRA of the difference between a fine-tuned checkpoint and its base. Both are read layer by layer."""

    model_tuned: str | None = model_file("The fine-tuned model.", "checkpoint", title="Tuned", kohya=SAME)
    model_org: str | None = model_file(
        "The base model that it was trained on, a single file or a folder.", "checkpoint", title="Original", kohya=SAME
    )
    dim: int = kohya_setting(
        32, within=(1, 1024), title="Rank", level="shown", help="Rank of each layer. Whole trainings need 32 to 128."
    )
    conv_dim: int | None = kohya_setting(
        None,
        within=(1, 1024),
        title="Conv rank",
        level="shown",
        hint="no 3x3 convolutions",
        help="Rank of 3x3 convolutions; with it the layers of resnets are extracted too.",
    )
    min_diff: float = kohya_setting(
        0.01,
        ge=0,
        title="Min difference",
        help="Text encoders in which no weight differs by more than this are left out.",
    )
    clamp_quantile: ClampQuantile = None
    load_precision: Precision | None = kohya_setting(
        None, hint="as stored", help="Weights of both models are rounded to this dtype before they are compared."
    )
    load_original_model_to: Literal["cpu", "cuda"] = kohya_setting(
        "cpu", title="Load original to", labels=DEVICES, help="Where the original's weights are put for the difference."
    )
    load_tuned_model_to: Literal["cpu", "cuda"] = kohya_setting(
        "cpu", title="Load tuned to", labels=DEVICES, help="Where the tuned weights are put for the difference."
    )
    save_precision: Precision | None = kohya_setting(None, hint="fp32", help="Dtype of the LoRA's weights.")
    device: Device = "cpu"
    no_metadata: NoModelspec = False
    output: str | None = _output("the tuned model, ending in _lora")
    compatibility: Literal["none", "sd-scripts"] = _compatibility(
        "decompositions in fp32 with the library's signs, and numbers beyond the 0.99 quantile are clamped."
    )


class SplitDyloraSettings(Settings):
    """Cuts a DyLoRA into LoRAs of each lower rank, a file each, so that you can try which rank is enough."""

    model: str | None = model_file("A LoRA trained as DyLoRA.", "lora", title="DyLoRA", kohya=SAME)
    unit: int = kohya_setting(
        4, within=(1, 1024), level="shown", unit="ranks", help="Step between the ranks, the unit it was trained with."
    )
    output: str | None = output_file(
        "A folder, or a file whose name gets -0004, -0008 ... Empty is next to the DyLoRA.",
        hint="next to the DyLoRA",
    )
    compatibility: Literal["none", "sd-scripts"] = _compatibility(
        "alpha is not changed, so lower ranks are stronger than they were in the whole."
    )


class ResizeLoraSettings(Settings):
    """Saves a LoRA with lower ranks, keeping the most important directions of each layer. What is kept acts as strongly as before."""

    file: str | None = model_file(
        "A LoRA. LoHa, LoKr and full differences become one, often in a larger file.",
        "lora",
        title="LoRA",
        kohya="model",
    )
    new_rank: int = kohya_setting(
        16,
        within=(1, 1024),
        level="shown",
        help="Rank of each layer; with a dynamic method the highest that it may choose.",
    )
    new_conv_rank: int | None = kohya_setting(
        None, within=(1, 1024), hint="as new rank", help="The same of 3x3 convolutions."
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
        needs="dynamic_method",
        gt=0,
        le=10000,
        title="Dynamic parameter",
        level="shown",
        hint="none",
        help="Of the dynamic method: 2 to 20 for the ratio, 0.8 to 0.99 for norm and sum.",
    )
    save_precision: SavePrecision = None
    device: Device = "cpu"
    output: str | None = _output("the LoRA")
    compatibility: Literal["none", "sd-scripts"] = _compatibility(
        "dynamic methods take one rank more than needed, the conv rank bounds 1x1 convolutions too, and a rank above the file's is padded."
    )


class MergeLoraToModelSettings(Settings):
    """Merges LoRAs of any kind into a copy of a checkpoint, file to file, without loading the whole model."""

    file: str | None = model_file(
        "The checkpoint or diffusers folder. The copy has the same format, unless the output ends in .safetensors or .ckpt.",
        "checkpoint",
        title="Model",
        kohya="sd_model",
    )
    models: list[str] = model_files("One per line, merged in this order.", "lora", title="LoRAs", kohya=SAME)
    ratios: str = _ratios("1 each")
    lbws: list[str] = _block_weights()
    save_precision: Precision | None = kohya_setting(
        None,
        level="shown",
        hint="unchanged",
        help="Dtype of the copy. Changes are added in fp32 in any case.",
    )
    output: str | None = _output("the model, ending in _merged")
