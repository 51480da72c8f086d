"""Stable Diffusion 2.x: as 1.x with OpenCLIP's ViT-H, of which it reads the last but one layer; predicts noise or v."""

from functools import partial
from pathlib import Path

from core.families.base import Family
from core.families.layout import Layout
from core.families.one_encoder import encode_captions, encode_ids, predict
from core.families.sd2.prediction import prediction_of
from core.families.targets import one_encoder_targets
from core.families.tokenizer import load_tokenizer

_LAYOUT = Layout(
    family="sd2",
    configs=Path(__file__).parent / "configs",
    text_encoders=("text_encoder",),
    tokenizers=(partial(load_tokenizer, pad="!"),),
    find_prediction=prediction_of,
)
FAMILY = Family(
    _LAYOUT,
    encode_captions=encode_captions,
    encode_ids=encode_ids,
    predict=predict,
    lora_targets=one_encoder_targets,
)
