"""Stable Diffusion XL: CLIP-L and OpenCLIP's bigG, and a U-Net with size conditioning."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from core.diffusion.text_states import Conditioning, TextStates
from core.families import sd1
from core.families.base import Family
from core.families.clip import Join, join_windows
from core.families.components import Components
from core.families.layouts import LAYOUTS
from core.families.targets import Target, is_text_encoder, text_targets, unet_targets
from core.families.token_weights import Weights, read_captions, weigh
from core.formats.models.sd_keys import unet_to_ldm
from core.record.queued import queued

LAYER = 2  # from the end, without the final layer norm, of both encoders


def encode_ids(
    components: Components,
    ids: Sequence[torch.Tensor],
    *,
    clip_skip: int | None = None,
    join: Join = join_windows,
    weights: Weights = None,
    normalize: str = "none",
    layer: int = LAYER,
) -> TextStates:
    """Encode token ids into the U-Net's context [B, T, 768 + 1280] and pooled vector [B, 1280], in the encoders' dtype.

    ids        [B, n, 77] for each text encoder; the refiner has only the second one: context [B, T, 1280]
    clip_skip  ignored, as in sd-scripts
    join       concatenates the states of the windows (core.families.clip)
    weights, normalize   token weights: see core.families.token_weights.weigh; not for the pooled vector
    layer      whose states are read, counted from the end
    """
    contexts: list[torch.Tensor] = []
    for number, (encoder, encoder_ids) in enumerate(zip(components.text_encoders, ids, strict=True)):
        outputs = encoder(queued(encoder_ids.flatten(0, 1), encoder.device), output_hidden_states=True)
        shape = (*encoder_ids.shape, -1)
        contexts.append(join(weigh(outputs.hidden_states[-layer].view(shape), weights, number, normalize)))
    eos = components.tokenizers[-1].eos_token_id
    vector = pooled_state(encoder, outputs.last_hidden_state.view(shape)[:, 0], encoder_ids[:, 0], eos)
    return TextStates(torch.cat(contexts, dim=-1), vector)


def pooled_state(encoder: Any, last: torch.Tensor, ids: torch.Tensor, eos: int) -> torch.Tensor:
    """Return the projected state [B, P] at the first EOS of the first window.

    transformers can use the position of the highest id instead, which is wrong if tokens were added.
    last  [B, 77, C], after the final layer norm
    ids   [B, 77]
    eos   the id of EOS
    """
    ids = queued(ids, last.device)
    position = (ids == eos).int().argmax(dim=-1)
    projection = encoder.text_projection
    state = last[torch.arange(len(ids), device=last.device), position]
    return projection(state.to(projection.weight.dtype)).to(last.dtype)


def predict(
    components: Components, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """Return the U-Net's prediction as `sd1.predict`, with pooled text and sizes from `conditioning`.

    The U-Net embeds each size as 256 cosines and sines in fp32 and appends them to the pooled vector.
    """
    text, sizes = conditioning.texts, conditioning.sizes
    assert text.pooled is not None and sizes is not None, "SDXL reads pooled texts and sizes"
    vectors = {"text_embeds": text.pooled.to(components.denoiser.conv_in.weight.dtype), "time_ids": sizes.float()}
    return sd1.predict(components, noisy_latents, timesteps, conditioning, added_cond_kwargs=vectors)


def lora_targets(part: nn.Module, *, conv: bool = False) -> Iterator[Target]:
    """Yield the layers of the U-Net or of a text encoder; the text encoder with a projection is the second.
    conv: also those in the U-Net's residual and resampling blocks (C3Lier)"""
    if is_text_encoder(part):
        return text_targets(part, "lora_te2" if hasattr(part, "text_projection") else "lora_te1")
    return unet_targets(part, conv=conv, name=lambda path: unet_to_ldm(path, "sdxl"))


def input_blocks(unet: Any) -> list[nn.Module]:
    """Return the U-Net's input blocks as the original model numbers them: the first convolution, then each resnet and downsampler."""
    blocks = [unet.conv_in]
    for block in unet.down_blocks:
        blocks += [*block.resnets, *(block.downsamplers or [])]
    return blocks


FAMILY = Family(
    LAYOUTS["sdxl"],
    encode_captions=partial(read_captions, encode_ids),
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=lora_targets,
    reads_sizes=True,
    input_blocks=input_blocks,
)
