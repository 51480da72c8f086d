"""CLIP's tokenizer, which all Stable Diffusion models share except for the padding token."""

from pathlib import Path
from typing import Any

from core.families.imports import quick_imports
from core.families.token_count import VOCABULARY
from core.families.vocabulary import END, FIX, is_complete, read_vocabulary
from core.record.problems import ProblemsError


def tokenizer_folder(model: Path | str | None) -> Path:
    """Return the tokenizer folder of a model folder if it is complete, else the built-in one."""
    folder = Path(model) / "tokenizer" if model is not None else VOCABULARY.parent
    return folder if is_complete(folder) else VOCABULARY.parent


def load_tokenizer(path: Path | str | None = None, *, pad: str = END, pad_is_mark: bool = True) -> Any:
    """Load the tokenizer of a model folder, else CLIP's built-in one (49,408 tokens); never downloads.

    pad          the padding token: EOS, or "!" for OpenCLIP's id 0
    pad_is_mark  whether `pad` within a caption becomes the special token too. In transformers it does if the tokenizer is created with
                 it (the published SD 2), but not if it is set later (SDXL's second tokenizer in sd-scripts)
    Only vocabulary, merges and added tokens are read from the folder; normalization and pre-tokenization are always CLIP's.
    Raises ProblemsError for a damaged tokenizer.
    """
    folder = tokenizer_folder(path)
    vocabulary = read_vocabulary(folder)
    if pad not in vocabulary.words:
        what = f"The model's tokenizer has no padding token '{pad}'"
        raise ProblemsError.one(what, str(folder), FIX, code="tokenizer.no-padding")
    with quick_imports():
        from tokenizers import AddedToken
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer(
        vocab=dict(vocabulary.words),
        merges=list(vocabulary.merges),
        pad_token=pad if pad_is_mark else END,
        model_max_length=77,
    )
    tokenizer.pad_token = pad
    tokenizer.add_tokens(
        [AddedToken(**{name: value for name, value in token.items() if name != "id"}) for token in vocabulary.added]
    )
    return tokenizer
