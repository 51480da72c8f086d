"""The layouts of the built-in families, without torch, which the families' own modules import."""

from functools import partial
from pathlib import Path
from typing import Any

from core import extensions
from core.families import family
from core.families.layout import Layout
from core.families.tokenizer import load_tokenizer


def _layout(family: str, **facts: Any) -> Layout:
    """Return the layout of a built-in family, whose configs are in its folder. `facts`: further fields."""
    return Layout(family, Path(__file__).parent / family / "configs", **facts)


LAYOUTS = {
    layout.family: layout
    for layout in (
        _layout(
            "sd1",
            text_encoders=("text_encoder",),
            tokenizers=(load_tokenizer,),
        ),
        _layout(
            "sd2",
            text_encoders=("text_encoder",),
            tokenizers=(partial(load_tokenizer, pad="!"),),
            find_prediction=extensions.later("core.families.sd2", "prediction_of"),
        ),
        _layout(
            "sdxl",
            text_encoders=("text_encoder", "text_encoder_2"),
            # Both have the same vocabulary. With the published folder, "!" in a caption would be the padding token too, unlike in
            # SDXL's training with OpenCLIP, sd-scripts and A1111.
            tokenizers=(load_tokenizer, partial(load_tokenizer, pad="!", pad_is_mark=False)),
            vae_overflows=True,
        ),
        _layout(
            "sdxl_refiner",
            text_encoders=("text_encoder_2",),
            tokenizers=(partial(load_tokenizer, pad="!", pad_is_mark=False),),
            vae_overflows=True,
        ),
    )
}


def layout_of(name: str) -> Layout:
    """Return the layout of a family. Raises ProblemsError if the family is not registered."""
    return LAYOUTS[name] if name in LAYOUTS else family(name).layout
