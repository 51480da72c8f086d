"""The layouts of the built-in families, without torch, which the families' own modules import."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from core.families import family
from core.families.layout import Layout
from core.families.tokenizer import load_tokenizer

_HERE = Path(__file__).parent


def _prediction_of_sd2(unet: Any) -> str:
    found: str = import_module("core.families.sd2").prediction_of(unet)
    return found


LAYOUTS = {
    layout.family: layout
    for layout in (
        Layout(
            family="sd1",
            configs=_HERE / "sd1" / "configs",
            text_encoders=("text_encoder",),
            tokenizers=(load_tokenizer,),
        ),
        Layout(
            family="sd2",
            configs=_HERE / "sd2" / "configs",
            text_encoders=("text_encoder",),
            tokenizers=(partial(load_tokenizer, pad="!"),),
            find_prediction=_prediction_of_sd2,
        ),
        Layout(
            family="sdxl",
            configs=_HERE / "sdxl" / "configs",
            text_encoders=("text_encoder", "text_encoder_2"),
            # The second has the first one's words. The folder of the published model would make "!" the filling in captions too,
            # which OpenCLIP did not do in SDXL's own training, nor do sd-scripts and A1111.
            tokenizers=(load_tokenizer, partial(load_tokenizer, pad="!", pad_is_mark=False)),
            vae_overflows=True,
        ),
        Layout(
            family="sdxl_refiner",
            configs=_HERE / "sdxl_refiner" / "configs",
            text_encoders=("text_encoder_2",),
            tokenizers=(partial(load_tokenizer, pad="!", pad_is_mark=False),),
            vae_overflows=True,
        ),
    )
}


def layout_of(name: str) -> Layout:
    """The layout of a family. Raises ProblemsError if it is not registered."""
    return LAYOUTS[name] if name in LAYOUTS else family(name).layout
