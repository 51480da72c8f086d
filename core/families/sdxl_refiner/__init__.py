"""SDXL's refiner: OpenCLIP's bigG alone, and a U-Net that reads an aesthetic score in place of the image's size. It finishes
the images of an SDXL model (Podell et al. 2023, arXiv:2307.01952, section 2.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from core.diffusion.text_states import TextStates
from core.families.base import Family
from core.families.clip import Join, join_windows
from core.families.components import Components
from core.families.layouts import LAYOUTS
from core.families.sdxl.text import LAYER, pooled, read_layer
from core.families.sdxl.unet import lora_targets, predict
from core.families.token_weights import Weights, read_captions, weigh


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
    """Encode token ids as SDXL's second text encoder does: context [B, T, 1280], pooled vector [B, 1280]."""
    (encoder,), (own,) = components.text_encoders, ids
    states, last = read_layer(encoder, own, layer)
    end = components.tokenizers[0].eos_token_id
    return TextStates(join(weigh(states, weights, 0, normalize)), pooled(encoder, last[:, 0], own[:, 0], end))


FAMILY = Family(
    LAYOUTS["sdxl_refiner"],
    encode_captions=partial(read_captions, encode_ids),
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=lora_targets,
    reads_sizes=True,
    size_numbers=5,
)
