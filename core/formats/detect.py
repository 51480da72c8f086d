"""Detects what a model file or folder is (checkpoint, LoRA, VAE, embedding ...) and its family, from its header.

Decides by the keys and shapes of the published models, never by file sizes.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import extensions
from core.formats.lora.names import COMFYUI, kohya_prefixes, resembled_kind, to_kohya_key
from core.formats.lora.recognition import input_width, lora_layout, network_and_variant
from core.formats.other_files import recognize
from core.formats.tensors.entry import TensorEntry
from core.formats.tensors.header import read_header
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError
from core.record.regular import MissingFile, check_regular, read_regular
from core.settings.model import traits_of

UNET = "model.diffusion_model."
FAMILY_NAMES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "sdxl_refiner": "SDXL refiner",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "other": "other",
}
# Width of a text encoder (SDXL: the second one), and of the text encoder states that cross-attention takes.
TEXT_FAMILY = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
CONTEXT_FAMILY = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}
PREDICTIONS = {"epsilon": "epsilon", "v": "v", "v_prediction": "v"}  # as files name them
# A config of the original implementations (ldm, sgm), and what it has for v-prediction.
LDM_CONFIG, MOST_CONFIG = re.compile(r"target:\s*(?:ldm|sgm)\.models\.diffusion\b"), 1_000_000  # bytes
V_CONFIG = re.compile(r"""^\s*parameterization:\s*["']?v\b|denoiser_scaling\.VScaling""", re.MULTILINE)
# Input channels of the U-Net: the latent's 4 plus what a variant adds.
INPUT_VARIANTS = {9: "inpainting", 8: "instruct-pix2pix", 5: "depth", 7: "upscaler"}
NUMBER = re.compile(r"\d+(?=\.)")
LCM = "LCM"  # a U-Net that reads the guidance scale (latent consistency model, Luo et al. 2023, arXiv:2310.04378)
KIND_NAMES = {
    "checkpoint": "checkpoint",
    "unet": "U-Net",
    "text_encoder": "text encoder",
    "vae": "VAE",
    "lora": "LoRA",
    "embedding": "textual inversion embedding",
    "controlnet": "ControlNet",
    "controlnet_lllite": "ControlNet-LLLite",
    "ip_adapter": "IP-Adapter",
    "t2i_adapter": "T2I-Adapter",
    "hypernetwork": "hypernetwork",
    "upscaler": "upscaler",
    "latent_upscaler": "latent upscaler",
    "unknown": "model of an unknown kind",
}
# Recognized kinds and variants that are not supported
NOT_OFFERED = {"union", "Control-LoRA", "ip_adapter", "t2i_adapter", "hypernetwork", LCM}
MOST_TOKENS = 200  # of an embedding file
XTI_KEYS = {"IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{n:02d}" for n in range(3, 12))}


Recognizer = Callable[[Mapping[str, TensorEntry], Mapping[str, str]], "ModelKind | None"]
FolderRecognizer = Callable[[Path], "ModelKind | None"]
# Registered by families: (tensors, metadata) -> what the file is, or None; the same for a folder
RECOGNIZERS: list[Recognizer] = []
FOLDER_RECOGNIZERS: list[FolderRecognizer] = []


@dataclass(frozen=True)
class ModelKind:
    """What a model file or folder contains.

    kind        a key of KIND_NAMES               family      a key of FAMILY_NAMES, or None if unknown
    layout      "single_file" or "diffusers"; of a LoRA the naming scheme: "kohya", "peft", "diffusers" (old), "comfyui", "lycoris"
    prediction  "epsilon", "v", or None if unknown (SD 2 files do not store it)
    evidence    how it was detected, as a clause
    variant     "inpainting", "union" ...; None for the plain kind
    zero_terminal_snr   whether the file is marked as trained with zero terminal SNR
    network     of a LoRA-like file: the title of its network kind ("LoRA", "LoHa"); None if no kind reads it
    """

    kind: str
    family: str | None
    layout: str
    prediction: str | None
    evidence: str
    variant: str | None = None
    zero_terminal_snr: bool = False
    network: str | None = None

    @property
    def offered(self) -> bool:
        """Whether Atelier can use files of this kind."""
        return self.kind not in NOT_OFFERED and self.variant not in NOT_OFFERED

    def __str__(self) -> str:
        """Return the kind for display: "SDXL checkpoint", "SD 1.x inpainting checkpoint", "SD 1.x LoHa"."""
        names = [FAMILY_NAMES.get(self.family or "", ""), self.variant or "", self.network or KIND_NAMES[self.kind]]
        return " ".join(name for name in names if name and name != "other")


def identify(path: Path | str) -> ModelKind:
    """Return the kind of a model file or folder; "unknown" if it has none. Raises ProblemsError for a missing or damaged file."""
    path = Path(path)
    if os.path.isdir(path):
        return _identify_folder(path)
    facts = check_regular(path)
    result = _identify_file(os.path.abspath(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
    if isinstance(result, ModelKind):
        if result.kind != "checkpoint" or (config := _config_prediction(path)) is None:
            return result
        return replace(result, prediction=config if config == "v" else result.prediction or config)
    raise ProblemsError([replace(each, where=each.where.replace(os.path.abspath(path), str(path))) for each in result])


@lru_cache(maxsize=256)
def _identify_file(path: str, *state: int) -> ModelKind | tuple[Problem, ...]:
    """Return the kind of a file, or its problems; both are cached, since one check asks several times.

    state   size, times and inode of the file, as part of the cache key
    Raises ProblemsError, which is not cached, if the file cannot be read.
    """
    try:
        return identify_header(*read_header(path))
    except ProblemsError as error:
        if isinstance(error.__cause__, OSError):  # a drive may have been unavailable for a moment
            raise
        return tuple(error.problems)


def _config_prediction(path: Path) -> str | None:
    """Return the prediction type that A1111's config next to a checkpoint, NAME.yaml, states; None without a config of Stable Diffusion."""
    try:
        config = read_regular(path.with_suffix(".yaml"), MOST_CONFIG).decode(errors="replace")
    except (ProblemsError, ValueError):  # ValueError: a path without a name
        return None
    return ("v" if V_CONFIG.search(config) else "epsilon") if LDM_CONFIG.search(config) else None


def identify_header(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind:
    """Return the kind of a file by its header; "unknown" if nothing matches. The order matters: a checkpoint contains a VAE too."""
    for recognizer in (*RECOGNIZERS, _as_other, _as_lora, _as_controlnet, _as_checkpoint, _as_component, _as_embedding):
        kind = recognizer(tensors, metadata)
        if kind is not None:
            return replace(kind, zero_terminal_snr=_zero_terminal_snr(tensors, metadata))
    return ModelKind("unknown", None, "single_file", None, _first_keys(tensors))


def _zero_terminal_snr(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bool:
    """Return whether the file has the marker tensor for zero terminal SNR, or sd-scripts' metadata for it."""
    return "ztsnr" in tensors or metadata.get("ss_zero_terminal_snr") == "True"


def _first_keys(tensors: Mapping[str, TensorEntry]) -> str:
    """Describe the first three keys of a file, as evidence for an unknown kind."""
    if not tensors:
        return "it contains no tensors"
    return "its first keys are " + ", ".join(list(tensors)[:3])


def _as_other(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind | None:
    """Recognize upscalers, hypernetworks and adapters of other programs; None for other files."""
    if (facts := recognize(tensors)) is None:
        return None
    kind, family, variant, evidence = facts
    return ModelKind(kind, family, "single_file", None, evidence, variant)


# ---- checkpoints ----


def _as_checkpoint(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind | None:
    """Recognize a full model by its U-Net's keys; None for other files."""
    if not any(name.startswith(UNET) for name in tensors):
        return None
    family, evidence = _checkpoint_family(tensors)
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    variant = _shape_variant(tensors) or (
        INPUT_VARIANTS.get(first.side(1)) if first and len(first.shape) == 4 else None
    )
    return ModelKind("checkpoint", family, "single_file", _prediction(family, tensors, metadata), evidence, variant)


def _checkpoint_family(tensors: Mapping[str, TensorEntry]) -> tuple[str | None, str]:
    """Return (family, or None if unknown; evidence) of a checkpoint."""
    for key, family in (
        ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", "sdxl"),
        ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias", "sdxl_refiner"),
        (f"{UNET}joint_blocks.0.x_block.attn.qkv.weight", "sd3"),
        (f"{UNET}double_blocks.0.img_attn.qkv.weight", "flux"),
    ):
        if key in tensors:
            return family, f"it has the key {key}"
    label = tensors.get(f"{UNET}label_emb.0.0.weight")
    if label is not None and label.side(-1) in (2816, 2560):
        return (
            "sdxl" if label.side(-1) == 2816 else "sdxl_refiner"
        ), f"label_emb.0.0.weight reads {label.side(-1)} values"
    context = tensors.get(f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight")
    if context is not None and context.side(-1) in (768, 1024):
        return CONTEXT_FAMILY[context.side(-1)], f"its cross-attention reads {context.side(-1)} values"
    if any(name.startswith("conditioner.embedders.1.model.") for name in tensors):
        return "sdxl", "its second text encoder is OpenCLIP (conditioner.embedders.1.model)"
    if any(name.startswith("cond_stage_model.model.") for name in tensors):
        return "sd2", "its text encoder is OpenCLIP (cond_stage_model.model)"
    if any(name.startswith("cond_stage_model.transformer.") for name in tensors):
        return "sd1", "its text encoder is CLIP (cond_stage_model.transformer)"
    return None, _first_keys(tensors)


def _shape_variant(tensors: Mapping[str, TensorEntry]) -> str | None:
    """Return the variant of a checkpoint by its keys: LCM, CosXL, Playground 2.5 or a pruned SDXL; None for a plain model."""
    if f"{UNET}time_embed.cond_proj.weight" in tensors:
        return LCM
    if "edm_vpred.sigma_max" in tensors:
        return "CosXL"
    if "edm_mean" in tensors or "edm_std" in tensors:
        return "Playground 2.5"
    middle = f"{UNET}input_blocks.7.1.transformer_blocks."
    depth = [
        int(match[0]) for name in tensors if name.startswith(middle) and (match := NUMBER.match(name, len(middle)))
    ]
    label = tensors.get(f"{UNET}label_emb.0.0.weight")
    if depth and label is not None and label.side(-1) == 2816 and max(depth) < 9:
        return "pruned (SSD-1B or Vega)"
    return None


def _prediction(family: str | None, tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> str | None:
    """Return "epsilon", "v" or None if unknown.

    By metadata, else the marker tensor, else for SD 2 the step counts of the published files, else the family's only type.
    """
    stated = metadata.get("modelspec.prediction_type") or metadata.get("prediction_type")
    # Merge tools write "v" into every SD 2 file because they cannot know, so it is ignored there.
    if stated in PREDICTIONS and not (family == "sd2" and "modelspec.merged_from" in metadata):
        return PREDICTIONS[stated]
    if "v_pred" in tensors:
        return "v"
    if family == "sd2":
        return {"875000": "epsilon", "220000": "epsilon", "110000": "v"}.get(metadata.get("global_step", ""))
    return traits_of(family).prediction


# ---- LoRA and related adapters ----

# The projection of the text encoder states: its input width identifies the family.
CONTEXT_READER = re.compile(r"attn2[._](processor\.)?to_k[._][\w.]+$")
TEXT_READER = re.compile(r"self_attn[._]q_proj\.[\w.]+$")
NAMES_FAMILY = (  # first those whose files have CLIP's layers too, under the names that SDXL's have
    (
        re.compile(
            r"(lora_unet_|diffusion_model\.)(double|single)_blocks[._]|transformer\.single_transformer_blocks\."
        ),
        "flux",
    ),
    (re.compile(r"(lora_unet_|diffusion_model\.)joint_blocks[._]|transformer\.transformer_blocks\."), "sd3"),
    (re.compile(r"lora_te[12]_|(base_model\.model\.)?text_encoder_2\.|text_encoders\.clip_g\."), "sdxl"),
    (re.compile(r"\w+_unet_(input_blocks|middle_block|output_blocks)_|lycoris_text_encoder_2_"), "sdxl"),
)
LORA_NAMES: dict[str, re.Pattern[str]] = {}  # family -> beginnings of layers' names in its LoRAs, as registered
DEEP_TRANSFORMER = re.compile(r"transformer_blocks[._][1-9]")
IN_UNET = (
    "lora_unet_",
    "unet.",
    "base_model.model.",
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "lycoris_",
    *COMFYUI,
)


def _as_lora(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind | None:
    """Recognize a LoRA-like file or a ControlNet-LLLite; None for other files."""
    if any(name.startswith("lllite_unet_") for name in tensors):
        first = any(name.startswith("lllite_unet_input_blocks_1_1_") for name in tensors)  # SDXL has no attention there
        family = "sd1" if first else _family_of_names(tensors)
        return ModelKind("controlnet_lllite", family, "single_file", None, "its keys begin with lllite_unet_")
    layout = lora_layout(tensors)
    if layout is None:
        return None
    network, variant = network_and_variant(tensors, metadata.get("ss_network_module", ""))
    family, evidence = _lora_family(tensors, metadata)
    if (
        network is None
        and variant is None
        and (near := resembled_kind(to_kohya_key(name, None)[1] for name in tensors))
    ):
        evidence = f"it {near}"
    prediction = PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""))
    return ModelKind("lora", family, layout, prediction, evidence, variant, network=network)


def _lora_family(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> tuple[str | None, str]:
    """Return (family, or None if unknown; evidence) of a LoRA."""
    by_name = _family_of_names(tensors)
    widths = (input_width(tensors, name) for name in tensors if CONTEXT_READER.search(name))
    width = next((each for each in widths if each in CONTEXT_FAMILY), None)
    by_width = CONTEXT_FAMILY[width] if width is not None else None
    # SDXL's block names are the original code's
    if by_name is not None and not (by_name == "sdxl" and by_width in ("sd1", "sd2")):
        return by_name, f"its key names are {FAMILY_NAMES[by_name]}'s"
    if by_width is not None:
        return by_width, f"its cross-attention reads {width} values"
    if (stated := _stated_family(metadata)) is not None:
        return stated
    for name in tensors:  # for a LoRA of the text encoder only, its width decides
        width = input_width(tensors, name) if TEXT_READER.search(name) else None
        if width in TEXT_FAMILY:
            return TEXT_FAMILY[width], f"its text encoder is {width} wide"
    return None, _first_keys(tensors)


def _stated_family(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (family, evidence) by metadata that trainers write; None if it states no family."""
    version = metadata.get("ss_base_model_version", "")
    for start, family in (("sdxl_", "sdxl"), ("sd_v1", "sd1"), ("sd_v2", "sd2")):
        if version.startswith(start):
            return family, f"its metadata says {version}"
    architecture = metadata.get("modelspec.architecture", "")
    for start, family in (
        ("stable-diffusion-xl", "sdxl"),
        ("stable-diffusion-v1", "sd1"),
        ("stable-diffusion-v2", "sd2"),
        ("stable-diffusion-3", "sd3"),
        ("flux", "flux"),
    ):
        if architecture.lower().startswith(start):
            return family, f"its metadata says {architecture}"
    return None


def _family_of_names(tensors: Mapping[str, TensorEntry]) -> str | None:
    """Return the family by the keys of a LoRA-like file; None if they do not tell.

    Patterns registered by families come first. SDXL LoRAs use the original block names, number their text encoders, or have deep
    transformers.
    """
    extensions.load()
    registered = (family for family, pattern in LORA_NAMES.items() if any(pattern.match(name) for name in tensors))
    if match := next(registered, None):
        return match
    beginnings = (*IN_UNET, *kohya_prefixes())
    if any(_in_deep_transformer(name, beginnings) for name in tensors):
        return "sdxl"
    return next((family for pattern, family in NAMES_FAMILY if any(pattern.match(name) for name in tensors)), None)


def _in_deep_transformer(name: str, beginnings: tuple[str, ...]) -> bool:
    """Return whether a U-Net layer is in the second or a later transformer block of an attention, which only SDXL has.

    beginnings   prefixes of U-Net layers' names
    Two searches, since a single regex would be quadratic in the name's length.
    """
    block = name.find("_block") if name.startswith(beginnings) else -1
    return block >= 0 and DEEP_TRANSFORMER.search(name, block) is not None


# ---- everything else ----


def _as_controlnet(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind | None:
    """Recognize a ControlNet with diffusers', A1111's or sd-scripts' keys; None for other files."""

    def family(sdxl_key: str, attention: str) -> str | None:
        """Return the family by SDXL's size conditioning, else the width of the cross-attention, else the metadata."""
        if sdxl_key in tensors:
            return "sdxl"
        context = tensors.get(f"{attention}.transformer_blocks.0.attn2.to_k.weight")
        by_width = CONTEXT_FAMILY.get(context.side(-1)) if context is not None else None
        return by_width or (_stated_family(metadata) or (None, ""))[0]

    if "controlnet_cond_embedding.conv_in.weight" in tensors:
        name = family("add_embedding.linear_1.weight", "down_blocks.0.attentions.0")
        variant = "union" if "task_embedding" in tensors else None
        return ModelKind("controlnet", name, "diffusers", None, "it has controlnet_cond_embedding", variant)
    bare = "input_hint_block.0.weight" in tensors  # sd-scripts writes no prefix
    if not bare and not any(name.startswith("control_model.") for name in tensors):
        return None
    prefix = "" if bare else "control_model."
    name = family(f"{prefix}label_emb.0.0.weight", f"{prefix}input_blocks.2.1")
    variant = "Control-LoRA" if "lora_controlnet" in tensors else "difference" if "difference" in tensors else None
    return ModelKind("controlnet", name, "single_file", None, "it has the hint block of a ControlNet", variant)


def _as_embedding(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind | None:
    """Recognize a textual inversion embedding by its keys, or a single table of vectors; None for other files."""
    names = set(tensors)
    if names == XTI_KEYS:
        width = tensors["MID"].side(-1)
        return ModelKind(
            "embedding", CONTEXT_FAMILY.get(width), "single_file", None, "it has one vector for each layer", "XTI"
        )
    if names & {"clip_l", "clip_g"} and names <= {"clip_l", "clip_g"}:
        return ModelKind("embedding", "sdxl", "single_file", None, "it has the keys clip_l and clip_g")
    vectors = [name for name in names if name == "emb_params" or name.startswith("string_to_param.")]
    named = bool(vectors)  # then with any width; the starter model's is 64
    if not vectors and _is_token_table(tensors):
        vectors, named = sorted(names), all(name.startswith("<") and name.endswith(">") for name in names)
    for name in vectors:
        width = tensors[name].side(-1)
        if named or width in TEXT_FAMILY:
            evidence = f"its only vectors are {width} wide"
            return ModelKind("embedding", TEXT_FAMILY.get(width), "single_file", None, evidence)
    return None


def _is_token_table(tensors: Mapping[str, TensorEntry]) -> bool:
    """Return whether a file has one table of vectors, or several of one width that are named by tokens, as diffusers writes them."""
    if len(tensors) == 1:
        return all(len(entry.shape) in (1, 2) for entry in tensors.values())
    if not 1 < len(tensors) <= MOST_TOKENS or any(name.endswith((".weight", ".bias")) for name in tensors):
        return False
    tables = all(1 <= len(entry.shape) <= 2 and entry.shape[0] > 0 for entry in tensors.values())
    return tables and len({entry.side(-1) for entry in tensors.values()}) == 1


def _as_component(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> ModelKind | None:
    """Recognize a file with a VAE, a U-Net or a text encoder alone; None for other files."""
    for prefix in ("", "first_stage_model.", "vae."):
        if f"{prefix}encoder.conv_in.weight" in tensors or f"{prefix}decoder.conv_in.weight" in tensors:
            diffusers = any(
                name.startswith((f"{prefix}encoder.down_blocks.", f"{prefix}decoder.up_blocks.")) for name in tensors
            )
            layout = "diffusers" if diffusers else "single_file"
            return ModelKind("vae", None, layout, None, f"it has {prefix}encoder.conv_in and no U-Net")
    context = tensors.get("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    if context is not None and "conv_in.weight" in tensors:
        family = CONTEXT_FAMILY.get(context.side(-1))
        variant = INPUT_VARIANTS.get(tensors["conv_in.weight"].side(1))
        variant = LCM if "time_embedding.cond_proj.weight" in tensors else variant
        return ModelKind(
            "unet", family, "diffusers", None, f"its cross-attention reads {context.side(-1)} values", variant
        )
    for prefix in ("", "text_model."):
        embedding = tensors.get(f"{prefix}embeddings.token_embedding.weight")
        if embedding is not None:
            family = CONTEXT_FAMILY.get(embedding.side(-1))
            return ModelKind(
                "text_encoder", family, "diffusers", None, f"its token vectors are {embedding.side(-1)} wide"
            )
    return None


# ---- diffusers folders ----

PIPELINE_FAMILY = {
    "StableDiffusion3": "sd3",
    "Flux": "flux",
    "StableDiffusionXLImg2Img": "sdxl_refiner",
    "StableDiffusionXL": "sdxl",
}


def _identify_folder(path: Path) -> ModelKind:
    """Return the kind of a diffusers folder, or of a folder with a single part. Raises ProblemsError for any other folder."""
    extensions.load()  # registered families
    if registered := next(filter(None, (recognizes(path) for recognizes in FOLDER_RECOGNIZERS)), None):
        return registered
    index = read_json(path / "model_index.json")
    unet = read_json(path / "unet" / "config.json")
    if index is None and unet is None:
        return _identify_part_folder(path)
    pipeline = str((index or {}).get("_class_name", ""))
    family = next((name for start, name in PIPELINE_FAMILY.items() if pipeline.startswith(start)), None)
    evidence = f"model_index.json names {pipeline}"
    if family == "sdxl_refiner" and _integer(unet or {}, "cross_attention_dim") == 2048:
        # A base model, saved by diffusers' image-to-image pipeline.
        family, evidence = "sdxl", "its cross-attention is 2048 wide"
    if family is None and unet is not None:
        family, evidence = _unet_config_family(unet)
    variant = _config_variant(unet or {})
    scheduler = read_json(path / "scheduler" / "scheduler_config.json") or {}
    stated = str(scheduler.get("prediction_type", "epsilon" if family == "sd1" else ""))
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}.get(stated)
    zero_terminal_snr = scheduler.get("rescale_betas_zero_snr") is True
    return ModelKind("checkpoint", family, "diffusers", prediction, evidence, variant, zero_terminal_snr)


def _unet_config_family(config: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (family, or None if unknown; evidence) by a U-Net's config: size conditioning, else the width of its cross-attention.

    Another width with SD 1's block types (the starter model) is SD 1, or SD 2 with linear projections.
    """
    width = _integer(config, "cross_attention_dim")
    if config.get("addition_embed_type") == "text_time":
        return ("sdxl_refiner" if width == 1280 else "sdxl"), "its U-Net takes size conditions (text_time)"
    if width in CONTEXT_FAMILY:
        return CONTEXT_FAMILY[width], f"its cross-attention is {width} wide"
    blocks = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    if (
        config.get("down_block_types") == blocks
        and config.get("_class_name", "UNet2DConditionModel") == "UNet2DConditionModel"
    ):
        family = "sd2" if config.get("use_linear_projection") else "sd1"
        return family, f"its U-Net has {FAMILY_NAMES[family]}'s blocks"
    return None, "its U-Net's blocks match no known family"


def _config_variant(config: Mapping[str, Any]) -> str | None:
    """Return the variant of a U-Net by its config: LCM, or by its input channels; None for a plain model."""
    return LCM if _integer(config, "time_cond_proj_dim") else INPUT_VARIANTS.get(_integer(config, "in_channels"))


def _integer(config: Mapping[str, Any], name: str) -> int:
    """Return an integer of the config; 0 if it is missing or not an integer."""
    value = config.get(name)
    return value if type(value) is int else 0


def class_of(config: Mapping[str, Any]) -> str:
    """Return the class in a part's config: diffusers' `_class_name`, else the first of transformers' `architectures`; "" if none."""
    classes = config.get("architectures")
    stated = config.get("_class_name") or (classes[0] if isinstance(classes, list) and classes else "")
    return stated if isinstance(stated, str) else ""


def _identify_part_folder(path: Path) -> ModelKind:
    """Return the kind of a folder with a single model part, by the class in its config.json. Raises ProblemsError without that file."""
    config = read_json(path / "config.json")
    if config is None:
        what = "This folder does not contain a model: it has neither model_index.json nor unet/config.json"
        fix = "choose a diffusers folder, or a .safetensors file in it"
        raise ProblemsError.one(what, str(path), fix, "model.empty-folder")
    name = class_of(config)
    evidence = f"its config.json names {name}"
    if name == "UNet2DConditionModel":
        family, evidence = _unet_config_family(config)
        return ModelKind("unet", family, "diffusers", None, evidence, _config_variant(config))
    if name == "AutoencoderKL":
        family = "sdxl" if config.get("scaling_factor") == 0.13025 else None
        return ModelKind("vae", family, "diffusers", None, evidence)
    if name in ("ControlNetModel", "ControlNetUnionModel"):
        variant = "union" if name == "ControlNetUnionModel" else None
        return ModelKind("controlnet", _unet_config_family(config)[0], "diffusers", None, evidence, variant)
    kind = "text_encoder" if name in ("CLIPTextModel", "CLIPTextModelWithProjection") else "unknown"
    return ModelKind(kind, None, "diffusers", None, evidence)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing. Raises ProblemsError with the position of invalid JSON."""
    try:
        return read_json_object(path)
    except MissingFile:
        return None
