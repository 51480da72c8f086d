"""Stable Diffusion XL: CLIP-L and OpenCLIP's bigG, and a U-Net with size conditioning."""

from core.families.base import Family
from core.families.layouts import LAYOUTS
from core.families.sdxl.text import encode_captions, encode_ids
from core.families.sdxl.unet import input_blocks, lora_targets, predict

FAMILY = Family(
    LAYOUTS["sdxl"],
    encode_captions=encode_captions,
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=lora_targets,
    reads_sizes=True,
    input_blocks=input_blocks,
)
