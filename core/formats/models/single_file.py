"""The tensors of a model in a single file: key names, shapes and extra tensors that other programs expect.

SD 1: cond_stage_model.transformer. (CLIP)             SD 2: cond_stage_model.model. (OpenCLIP)
SDXL: conditioner.embedders.0.transformer. (CLIP), conditioner.embedders.1.model. (OpenCLIP)
"""

from collections.abc import Mapping

from core.formats.models import sd_keys
from core.formats.models.text_keys import full_name
from core.formats.tensors.lazy import LazyTensor, stacked
from core.record.lazy_torch import torch
from core.settings.model import traits_of

State = Mapping[str, LazyTensor]
VAE_ATTENTION = tuple(f".attn_1.{name}.weight" for name in sd_keys.VAE_ATTENTION if name != "norm")
PROJECTIONS = (".proj_in.weight", ".proj_out.weight")
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"  # empty tensors that ComfyUI, Forge and others check for
# Config values that affect shapes or results and cannot be derived from the tensors.
SIZES = (
    *("block_out_channels", "layers_per_block", "transformer_layers_per_block"),
    *("attention_head_dim", "norm_num_groups"),
    *("cross_attention_dim", "projection_class_embeddings_input_dim", "addition_time_embed_dim", "scaling_factor"),
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "projection_dim", "hidden_act"),
    *("vocab_size", "max_position_embeddings", "latent_channels", "sample_size"),
)


def file_tensors(states: Mapping[str, State], family: str, *, kohya_projection: bool = False) -> dict[str, LazyTensor]:
    """Return the tensors of a model's parts under the keys of a single file.

    states            {part: {diffusers' or transformers' name: tensor}}
    kohya_projection  the text projection was read untransposed, as in sd-scripts, and is not transposed back
    """
    tensors: dict[str, LazyTensor] = {}
    open_clip = sd_keys.OPEN_CLIP_PARTS.get(family)
    for part, state in states.items():
        if part == "unet":
            tensors |= _unet(state, family)
        elif part == "vae":
            tensors |= _vae(state)
        elif part == open_clip:
            tensors |= _open_clip(state, sd_keys.OPEN_CLIP_PREFIXES[family], kohya_projection)
        else:
            prefix = sd_keys.CLIP_PREFIXES[family]
            tensors |= {prefix + full_name(name): tensor for name, tensor in state.items()}
    return tensors


def _unet(state: State, family: str) -> dict[str, LazyTensor]:
    """Return the U-Net's tensors by their keys in a single file.

    proj_in and proj_out are 1x1 convolutions in files of SD 1, matrices in those of SD 2 and SDXL.
    """
    tensors = {}
    for name, tensor in state.items():
        if name.endswith(PROJECTIONS):
            tensor = tensor.in_shape(*tensor.shape[:2], *(() if traits_of(family).linear_projections else (1, 1)))
        tensors[sd_keys.UNET_PREFIX + sd_keys.unet_to_ldm(name, family)] = tensor
    return tensors


def _vae(state: State) -> dict[str, LazyTensor]:
    """Return the VAE's tensors by their keys in a single file, where attention weights are 1x1 convolutions."""
    tensors = {}
    for name, tensor in state.items():
        name = sd_keys.VAE_PREFIX + sd_keys.vae_to_ldm(name)
        tensors[name] = tensor.in_shape(*tensor.shape[:2], 1, 1) if name.endswith(VAE_ATTENTION) else tensor
    return tensors


def _open_clip(state: State, prefix: str, kohya_projection: bool) -> dict[str, LazyTensor]:
    """Return OpenCLIP's tensors by their keys in a single file.

    q, k and v become one tensor; `text_projection` is the transpose of transformers' (reference: training section 1.11).
    """
    tensors: dict[str, LazyTensor] = {}
    thirds: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in state.items():
        ldm_name, third = sd_keys.open_clip_to_ldm(name)
        if third is not None:
            thirds.setdefault(ldm_name, {})[third] = tensor
        else:
            is_transposed = ldm_name == "text_projection" and not kohya_projection
            tensors[prefix + ldm_name] = tensor.transposed() if is_transposed else tensor
    return tensors | {prefix + name: stacked([three[n] for n in range(3)]) for name, three in thirds.items()}


def spare_layer(tensors: Mapping[str, LazyTensor], family: str) -> dict[str, LazyTensor]:
    """Return tensors that SD 2 files have but nothing uses: OpenCLIP's last layer, projection, scale; {} for other families.

    Other programs build OpenCLIP with 24 layers and read the second to last. As in sd-scripts, the layer is a copy of the one before it,
    the projection and scale are ones.
    """
    if not traits_of(family).spare_layer:
        return {}
    prefix = sd_keys.OPEN_CLIP_PREFIXES[family]
    blocks = f"{prefix}{sd_keys.OPEN_CLIP_RESBLOCK}."
    numbers = [int(name.removeprefix(blocks).partition(".")[0]) for name in tensors if name.startswith(blocks)]
    if not numbers:
        return {}
    last = f"{blocks}{max(numbers)}."
    spare = {
        f"{blocks}{max(numbers) + 1}.{name.removeprefix(last)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    final = tensors[f"{prefix}ln_final.weight"]
    width = final.shape[0]
    spare[f"{prefix}text_projection"] = _ones(width, width).cast(final.type)
    spare[f"{prefix}logit_scale"] = _ones().cast(final.type)
    return spare


def markers(prediction: str | None, zero_terminal_snr: bool) -> dict[str, LazyTensor]:
    """Return empty marker tensors for v-prediction and zero terminal SNR, which the weights do not reveal."""
    enabled = {V_MARKER: prediction == "v", ZERO_SNR_MARKER: zero_terminal_snr}
    return {name: _ones(0) for name, is_enabled in enabled.items() if is_enabled}


def _ones(*shape: int) -> LazyTensor:
    """Return a lazy float32 tensor of ones."""

    def ones(dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype)

    return LazyTensor("float32", shape, ones)
