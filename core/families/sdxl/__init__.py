"""Stable Diffusion XL: CLIP-L and OpenCLIP's bigG, and a U-Net with size conditioning."""

from functools import partial
from pathlib import Path

from core.families.base import Family
from core.families.layout import Layout
from core.families.sdxl.text import encode_captions, encode_ids
from core.families.sdxl.unet import input_blocks, lora_targets, predict
from core.families.tokenizer import load_tokenizer

_LAYOUT = Layout(
    family="sdxl",
    configs=Path(__file__).parent / "configs",
    text_encoders=("text_encoder", "text_encoder_2"),
    # The second has the first one's words. The folder of the published model would make "!" the filling in captions too,
    # which OpenCLIP did not do in SDXL's own training, nor do sd-scripts and A1111.
    tokenizers=(load_tokenizer, partial(load_tokenizer, pad="!", pad_is_mark=False)),
    vae_overflows=True,
)
FAMILY = Family(
    _LAYOUT,
    encode_captions=encode_captions,
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=lora_targets,
    reads_sizes=True,
    input_blocks=input_blocks,
)
