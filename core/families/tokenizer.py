"""CLIP's tokenizer, which all Stable Diffusion models share except for the padding token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.families.imports import quick_imports
from core.families.token_count import VOCABULARY
from core.families.vocabulary import END, FIX, is_complete, read_vocabulary
from core.record.problems import ProblemsError


def tokenizer_folder(model: Path | str | None) -> Path:
    """The model folder's own where it is complete, else the shipped one."""
    own = Path(model) / "tokenizer" if model is not None else VOCABULARY.parent
    return own if is_complete(own) else VOCABULARY.parent


def load_tokenizer(path: Path | str | None = None, *, pad: str = END, pad_is_mark: bool = True) -> Any:
    """The model folder's own tokenizer, else the shipped one (the same 49,408 words). Never from a hub.

    Only the words, their merges and added tokens are read: how text is cut before is CLIP's, whatever a folder says.

    pad          pads a text to its length: the end token, or "!" (id 0), as OpenCLIP's zeros are called here
    pad_is_mark  whether `pad` in a caption is read as the filling too. transformers does so where a tokenizer is made
                 with it (the published SD 2), not where it is set later (SDXL's second, in sd-scripts)
    """
    folder = tokenizer_folder(path)
    found = read_vocabulary(folder)
    if pad not in found.words:
        what = f"The model's tokenizer has no padding token '{pad}'"
        raise ProblemsError.one(what, str(folder), FIX, code="tokenizer.no-padding")
    with quick_imports():
        from tokenizers import AddedToken
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer(
        vocab=dict(found.words), merges=list(found.merges), pad_token=pad if pad_is_mark else END, model_max_length=77
    )
    tokenizer.pad_token = pad
    tokenizer.add_tokens(
        [AddedToken(**{name: value for name, value in token.items() if name != "id"}) for token in found.added]
    )
    return tokenizer
