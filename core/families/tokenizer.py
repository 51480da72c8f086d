"""CLIP's tokenizer, which all Stable Diffusion models share but for what they fill short texts up with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.families.imports import quick_imports
from core.families.token_count import VOCABULARY

END = "<|endoftext|>"


def load_tokenizer(path: Path | str | None = None, *, pad: str = END, pad_is_mark: bool = True) -> Any:
    """The model folder's own tokenizer, else the shipped one (the same 49,408 words). Never from a hub.

    pad          fills a text up to its length: the end mark, or "!" (id 0), as OpenCLIP's zeros are called here
    pad_is_mark  whether `pad` in a caption is read as the filling too. transformers does so where a tokenizer is made
                 with it (the published SD 2), not where it is set later (SDXL's second, in sd-scripts)
    """
    with quick_imports():
        from transformers.models.clip.tokenization_clip import CLIPTokenizer

    folder = Path(path) / "tokenizer" if path is not None else VOCABULARY.parent
    complete = (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )
    tokenizer = CLIPTokenizer.from_pretrained(
        str(folder if complete else VOCABULARY.parent), pad_token=pad if pad_is_mark else END, local_files_only=True
    )
    tokenizer.pad_token = pad
    return tokenizer
