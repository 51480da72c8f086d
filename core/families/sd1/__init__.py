"""Stable Diffusion 1.x: one U-Net, one VAE, CLIP-L; predicts the noise unless a file says otherwise."""

from pathlib import Path

from core.families.base import Family
from core.families.layout import Layout
from core.families.one_encoder import encode_captions, encode_ids, input_blocks, predict
from core.families.targets import one_encoder_targets
from core.families.tokenizer import load_tokenizer

_LAYOUT = Layout(
    family="sd1",
    configs=Path(__file__).parent / "configs",
    text_encoders=("text_encoder",),
    tokenizers=(load_tokenizer,),
)
FAMILY = Family(
    _LAYOUT,
    encode_captions=encode_captions,
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=one_encoder_targets,
    input_blocks=input_blocks,
)
