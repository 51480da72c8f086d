"""Stable Diffusion 1.x: U-Net, VAE and CLIP-L; epsilon prediction unless a file states v."""

from core.families.base import Family
from core.families.layouts import LAYOUTS
from core.families.one_encoder import encode_captions, encode_ids, input_blocks, predict
from core.families.targets import one_encoder_targets

FAMILY = Family(
    LAYOUTS["sd1"],
    encode_captions=encode_captions,
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=one_encoder_targets,
    input_blocks=input_blocks,
)
