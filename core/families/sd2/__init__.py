"""Stable Diffusion 2.x: as 1.x with OpenCLIP's ViT-H, of which it reads the last but one layer; predicts noise or v."""

from functools import partial
from pathlib import Path

from core.families import loading
from core.families.clip import count_tokens, tokenize
from core.families.layout import Layout
from core.families.one_encoder import encode_captions, encode_ids, predict
from core.families.sd2.prediction import prediction_of
from core.families.targets import one_encoder_targets as lora_targets
from core.families.tokenizer import load_tokenizer
from core.families.vae import decode_latents, encode_image_latents

LAYOUT = Layout(
    family="sd2",
    configs=Path(__file__).parent / "configs",
    text_encoders=("text_encoder",),
    tokenizers=(partial(load_tokenizer, pad="!"),),
    find_prediction=prediction_of,
)
OBJECTIVE = "diffusion"
READS_SIZES = False  # whether `predict` is told the sizes of images

load = partial(loading.load, LAYOUT)
make_empty = partial(loading.make_empty_part, LAYOUT)
digest = partial(loading.digest, LAYOUT)
weight_bytes = partial(loading.weight_bytes, LAYOUT)

__all__ = [
    "LAYOUT",
    "OBJECTIVE",
    "READS_SIZES",
    "count_tokens",
    "decode_latents",
    "digest",
    "encode_captions",
    "encode_ids",
    "encode_image_latents",
    "load",
    "lora_targets",
    "make_empty",
    "predict",
    "tokenize",
    "weight_bytes",
]
