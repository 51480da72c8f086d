"""Names in LoRA files: kohya's layer names <-> module paths, and the names of every other program -> kohya's.

Underscores replace dots in kohya's names, so the names of modules must be known. Other programs:

    PEFT, diffusers      unet.<path>.lora_A.weight, text_encoder.<path>.lora_B.weight, also with an adapter's name inside
    PEFT, one model      base_model.model.<path>.lora_A.weight
    diffusers, old       unet.<path>.processor.to_q_lora.down.weight, <path>.lora.down.weight, <path>.lora_linear_layer.down.weight
    ComfyUI              diffusion_model.<the checkpoint's path>.lora_up.weight, text_encoders.clip_l.transformer.<path>...
    LyCORIS              lycoris_<path with underscores>.hada_w1_a, or the whole path of a module
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

from core import extensions
from core.formats.models import sd_keys
from core.formats.models.text_keys import bare_name, full_name
from core.record.units import first_of
from core.settings.model import traits_of
from core.settings.network import NETWORK_KINDS

T = TypeVar("T")
PREFIXES = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
# Module names that contain an underscore; every other underscore is a dot.
JOINED = {
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "time_emb_proj", "conv_shortcut"),
    *("conv_in", "conv_out", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2"),
    *("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection"),
    *("time_embed", "label_emb"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection", "token_embedding"),
    *("layer_norm1", "layer_norm2", "final_layer_norm", "conv_norm_out"),
}
BUNDLED = "bundle_emb."  # prefix of embeddings in a LoRA file: bundle_emb.<token>.<name in the embedding's file>
LONGEST = max(name.count("_") + 1 for name in JOINED)
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
DORA_SCALE = "dora_scale"
NORM, NORM_BIAS, BIAS = "w_norm", "b_norm", "diff_b"  # changes of norm layers and of biases, in files of any kind
PEFT_BIAS = "lora_B.bias"
BIAS_NORM_KEYS = {BIAS, "bias", NORM, NORM_BIAS, PEFT_BIAS}  # next to the keys of a network's layers
BIAS_NORM_PARAMETERS = {NORM: "weight", NORM_BIAS: "bias", BIAS: "bias"}  # the parameter they are added to
UNREAD = {"oft_diag", "bm.weight"}  # keys of LyCORIS that no kind reads
PEFT = {"A": DOWN, "B": UP, "alpha": ALPHA, "magnitude_vector": DORA_SCALE}  # after ".lora_"
# after "_lora.", ".lora." and ".lora_linear_layer."
OLD_DIFFUSERS = {"down.weight": DOWN, "up.weight": UP, "alpha": ALPHA}
OLD_TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
LYCORIS = "lycoris_"
COMFYUI = ("diffusion_model.", "model.diffusion_model.")
PARTS = {  # beginning of a module's path -> its part
    "unet.": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
LDM_ROOTS = {"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}
LDM_LAYERS = tuple(f"lora_unet_{root}_" for root in sorted(LDM_ROOTS))
UNET_ROOTS = LDM_ROOTS | {
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
}
TEXT_ROOTS = {"text_model", "encoder"}


def layer_name(name: str) -> str:
    """Return a layer's name with kohya's prefix: "oft_unet_..." of a registered kind becomes "lora_unet_..."."""
    prefix = next((each for each in kohya_prefixes() if each not in KOHYA and name.startswith(each)), None)
    return name if prefix is None else "lora_unet_" + name.removeprefix(prefix)


def module_path(name: str, family: str = "sdxl") -> tuple[str, str] | None:
    """Return (part, module path) of a layer in kohya's naming; None for other names.

    "lora_unet_mid_block_attentions_0_proj_in" -> ("unet", "mid_block.attentions.0.proj_in"). Original block names, which SDXL's files
    have, become diffusers' of `family`; paths in text encoders start with "text_model.".
    """
    head, components = _split(name)
    if head is None:
        return None
    parts, index = [], 0
    while index < len(components):
        for count in range(LONGEST, 0, -1):
            joined = "_".join(components[index : index + count])
            if count == 1 or (joined in JOINED and index + count <= len(components)):
                parts.append(joined)
                index += count
                break
    path = ".".join(parts)
    part = PREFIXES[head]
    if part == "unet" and parts[0] in LDM_ROOTS:
        path = sd_keys.unet_to_diffusers(path, family)
    return part, path


def module_of_layer(name: str) -> tuple[str, str] | None:
    """Return (part, module path without "text_model.") of a kohya layer; None for other names."""
    module = module_path(layer_name(name))
    return (module[0], bare_name(module[1])) if module is not None else None


def module_of_extra(key: str) -> tuple[str, str] | None:
    """Return (part, parameter path) that a bias or norm tensor of a LoRA file is added to; None for any other key."""
    name, _, kind = key.partition(".")
    module = module_of_layer(name)
    return (
        None
        if module is None or kind not in BIAS_NORM_PARAMETERS
        else (module[0], f"{module[1]}.{BIAS_NORM_PARAMETERS[kind]}")
    )


def _split(name: str) -> tuple[str | None, list[str]]:
    """Split a kohya layer name into its prefix and the words between underscores; (None, []) for other names."""
    for head in sorted(PREFIXES, key=len, reverse=True):
        if name.startswith(head + "_") and len(name) > len(head) + 1:
            return head, name[len(head) + 1 :].split("_")
    return None, []


def kohya_name(part: str, path: str, family: str | None = None) -> str | None:
    """Return kohya's layer name of a module, the inverse of `module_path`; None for parts other than U-Net and text encoders.

    ("unet", "conv_in") -> "lora_unet_conv_in"; for SDXL with the original block names.
    """
    if part == "unet":
        ldm_path = sd_keys.unet_to_ldm(path, "sdxl") if traits_of(family).original_names else path
        return "lora_unet_" + ldm_path.replace(".", "_")
    prefix = {"text_encoder": _first_encoder(family), "text_encoder_2": "lora_te2"}.get(part)
    return None if prefix is None else f"{prefix}_{full_name(path)}".replace(".", "_")


def _first_encoder(family: str | None) -> str:
    """Return kohya's prefix of the (first) text encoder: "lora_te1" for families with two, else "lora_te"."""
    return "lora_te1" if traits_of(family).two_encoders else "lora_te"


def to_kohya_key(name: str, family: str | None) -> tuple[str | None, str]:
    """Split a tensor's name from any program's LoRA file into (kohya's layer name, the key below the layer as kohya or LyCORIS write it).

    The layer is None for a part that Stable Diffusion does not have. Keys of unknown kinds stay unchanged.
    """
    head, _, key_below = name.partition(".")
    layer, key = split_key(name)
    if head.startswith(kohya_prefixes()):
        return _normalized(head, family), key if layer == head else key_below
    if layer.startswith(LYCORIS):
        return _from_lycoris(layer, family), key
    part, path = part_and_path(layer, family)
    return (None if part is None else kohya_name(part, path, family)), key


def split_key(name: str) -> tuple[str, str]:
    """Split a tensor's name into (layer name as in the file, the key below the layer as kohya or LyCORIS write it)."""
    layer, _, key = name.rpartition(".lora_")
    names = key.split(".")
    if layer and names[0] in PEFT and names[-1] != "bias" and len(names) <= 3:  # A, A.weight, A.default.weight
        return layer, PEFT[names[0]]
    layer, _, key = name.rpartition("_lora.")
    if layer and key in OLD_DIFFUSERS:
        return _old_module(layer), OLD_DIFFUSERS[key]
    for form in (".lora.", ".lora_linear_layer."):
        layer, _, key = name.rpartition(form)
        if layer and key in OLD_DIFFUSERS:
            return layer, OLD_DIFFUSERS[key]
    names, keys = name.split("."), _keys_and_prefixes()[0]
    for count in (2, 1):  # "a1.weight" is a key, and "weight" may be one
        ending = ".".join(names[-count:])
        if len(names) > count and ending in keys:
            return ".".join(names[:-count]), ending
    if name.startswith((*kohya_prefixes(), LYCORIS)):
        layer, _, ending = name.partition(".")
        return layer, ending
    return ".".join(names[:-1]), names[-1]


def _old_module(layer: str) -> str:
    """Convert a layer of diffusers' old format to its module path.

    "....attn1.processor.to_q" -> "....attn1.to_q", "....self_attn.to_q" -> "....self_attn.q_proj".
    """
    path, _, name = layer.rpartition(".")
    if path.endswith(".self_attn"):
        return f"{path}.{OLD_TEXT_LAYERS.get(name, name)}"
    return f"{path.removesuffix('.processor')}.{'to_out.0' if name == 'to_out' else name}"


def _normalized(layer: str, family: str | None) -> str:
    """Return a kohya layer name as sd-scripts writes it.

    Some files have diffusers' block names for SDXL, original ones for SD 1.x and 2.x, or CLIP layers without "text_model".
    """
    if "_text_model_" not in layer and layer.startswith("lora_te"):
        return layer.replace("_encoder_layers_", "_text_model_encoder_layers_", 1)
    if traits_of(family).original_names and layer.startswith(("lora_unet_down_", "lora_unet_mid_", "lora_unet_up_")):
        module = module_path(layer)
        return (kohya_name(*module, family) if module else None) or layer
    if family in ("sd1", "sd2") and layer.startswith(LDM_LAYERS) and (module := module_path(layer, family)):
        return kohya_name(*module, family) or layer
    return layer


def _from_lycoris(layer: str, family: str | None) -> str:
    """Convert a LyCORIS layer name to kohya's: "lycoris_down_blocks_0_..." -> "lora_unet_down_blocks_0_..."."""
    first = f"{_first_encoder(family)}_"
    inner = layer.removeprefix(LYCORIS)
    for beginning, kohya in (
        *(("lora_", "lora_"), ("unet_", "lora_unet_"), ("text_encoder_2_", "lora_te2_"), ("text_encoder_", first)),
        *(("text_model_", f"{first}text_model_"), ("", "lora_unet_")),
    ):
        if inner.startswith(beginning):
            return _normalized(kohya + inner.removeprefix(beginning), family)
    raise AssertionError


def part_and_path(layer: str, family: str | None) -> tuple[str | None, str]:
    """Return (part, module path in diffusers' names) of a layer's dotted path; the part is None if it cannot be told.

    "diffusion_model.input_blocks.1.1.proj_in" -> ("unet", "down_blocks.0.attentions.0.proj_in"). A path that does not begin with a
    part belongs to the U-Net or the first text encoder, depending on its first component.
    """
    layer = layer.removeprefix("base_model.model.")
    beginning = next((each for each in PARTS if layer.startswith(each)), "")
    path = layer.removeprefix(beginning).removeprefix("base_model.model.")
    root = path.partition(".")[0]
    part = PARTS.get(beginning) or ("unet" if root in UNET_ROOTS else "text_encoder" if root in TEXT_ROOTS else None)
    if part == "unet" and root in LDM_ROOTS:
        path = sd_keys.unet_to_diffusers(path, "sdxl" if traits_of(family).original_names else "sd1")
    return part, path


def resembled_kind(keys: Iterable[str]) -> str:
    """Describe the network kind that shares the most keys with `keys`, for messages; "" if no kind shares any.

    "looks like LoHa with unknown keys (x, y)" or "looks like LoHa with keys missing".
    """
    names = set(keys)
    near = max(NETWORK_KINDS.values(), key=lambda kind: (len(names & kind.all_keys), -len(kind.all_keys)), default=None)
    if near is None or not names & near.all_keys - {ALPHA}:
        return ""
    unknown = sorted(names - near.all_keys)
    examples = first_of(unknown, 3)
    return (
        f"looks like {near.title} with unknown keys ({examples})"
        if unknown
        else f"looks like {near.title} with keys missing"
    )


def kohya_prefixes() -> tuple[str, ...]:
    """Return all prefixes of layer names in kohya's files: kohya's four and those of registered network kinds."""
    return _keys_and_prefixes()[1]


def _keys_and_prefixes() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return (all tensor keys below a layer's name, all prefixes of layer names), of every registered network kind."""
    extensions.load()
    return _cached_keys_and_prefixes(len(NETWORK_KINDS))


@lru_cache(maxsize=1)
def _cached_keys_and_prefixes(registered: int) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return as `_keys_and_prefixes`. `registered`: number of registered kinds, so that a new kind ends the caching."""
    kinds = NETWORK_KINDS.values()
    keys = frozenset(BIAS_NORM_KEYS | UNREAD).union(*(kind.all_keys for kind in kinds))
    return keys, (*KOHYA, *(kind.prefix for kind in kinds if kind.prefix))


def group_by_module(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Group kohya-named tensors by layer: {"name.alpha": tensor} -> {"name": {"alpha": tensor}}."""
    grouped: dict[str, dict[str, T]] = {}
    for key, tensor in tensors.items():
        name, _, inner = key.partition(".")
        grouped.setdefault(name, {})[inner] = tensor
    return grouped
