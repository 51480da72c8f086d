"""Embeddings in use: new words of prompts, read from files, on a model that is afterwards as it was, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.detect import FAMILY_NAMES, identify
from core.formats.embedding_file import LAYERS, ONE, SDXL, read_embedding, read_shapes
from core.formats.header import read_header
from core.generation.image_metadata import portable_name
from core.generation.library import find_embedding
from core.generation.pipeline import PromptStates, encode_prompts
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, display_path

if TYPE_CHECKING:
    from torch import Tensor

WHERE = "embeddings"
TABLE = "token_embedding.weight"  # how its name ends in every single file, the first encoder's first


@dataclass(frozen=True)
class NewWord:
    """A word of prompts and the file with its vectors."""

    word: str
    path: Path

    def setting(self, workspace: Workspace) -> str:
        """As the settings of an image name it, without the machine's folders."""
        name = portable_name(self.path, workspace)
        return name if self.word == self.path.stem and "=" not in name else f"{self.word}={name}"


def find_word(text: str, workspace: Workspace) -> NewWord:
    """ "FILE", whose name without its ending is the word, or "WORD=FILE". Raises ProblemsError for a missing file."""
    word, equals, file = text.partition("=")
    if not equals or "/" in word or "\\" in word:
        word, file = "", text
    path = find_embedding(file, workspace)
    return NewWord(word.strip() or path.stem, path)


def check_word(word: NewWord, others: Sequence[NewWord], family: str, model: Path) -> None:
    """Raise ProblemsError unless the file fits the model, by the headers of both, and no other has its word."""
    where = display_path(word.path)
    if any(word.word.casefold() == other.word.casefold() for other in others):
        raise ProblemsError.one(f"Two embeddings are for the word '{word.word}'", where, "write one as WORD=FILE")
    found = identify(word.path)
    if found.kind != "embedding":
        what = f"{word.path.name} is no embedding but: {found} ({found.evidence})"
        raise ProblemsError.one(what, where, "choose a file of textual inversion")
    shapes = read_shapes(word.path)
    wanted = SDXL if family == "sdxl" else LAYERS if set(shapes) == set(LAYERS) else ONE
    name, fix = FAMILY_NAMES[family], f"choose an embedding for {FAMILY_NAMES[family]}, or a model that fits"
    if found.family not in (None, family):
        its = FAMILY_NAMES[found.family]
        raise ProblemsError.one(f"{word.path.name} is an embedding for {its}; the model is {name}", where, fix)
    if set(shapes) != set(wanted):
        what = f"{word.path.name} holds {', '.join(shapes)}; {name} reads {' and '.join(wanted)}"
        raise ProblemsError.one(what, where, fix)
    widths = token_widths(model)
    for number, key in enumerate(wanted):
        count, width = shapes[key]
        reads = widths[0 if wanted is LAYERS else number] if widths else width
        if width != reads:
            what = f"{word.path.name} has vectors of {width} numbers; this model's words have {reads}"
            raise ProblemsError.one(what, where, fix)
        if count != shapes[wanted[0]][0]:
            what = f"{word.path.name} holds another number of vectors in {key} than in {wanted[0]}"
            raise ProblemsError.one(what, where, "choose another file")


def token_widths(model: Path) -> list[int]:
    """Numbers in a word's vector of each text encoder, without loading; empty where the model does not tell."""
    if model.is_file():
        tables = sorted((name, entry) for name, entry in read_header(model)[0].items() if name.endswith(TABLE))
        return [entry.side(-1) for _, entry in tables]
    configs = [model / part / "config.json" for part in ("text_encoder", "text_encoder_2")]
    widths: list[Any] = [read_json_object(file).get("hidden_size") for file in configs if file.is_file()]
    return widths if all(type(width) is int for width in widths) else []


class Words:
    """Encodes prompts in which the new words are spelled out as their tokens.

    components  with tokenizers that know these     counts  vectors of each word
    layered     words with a vector for each layer (XTI)
    """

    def __init__(self, components: Any, counts: dict[str, int], layered: set[str]):
        self._components, self._counts, self._layered = components, counts, layered

    def encode(
        self, prompt: str, negative_prompt: str = "", *, clip_skip: int | None = None, weighted: bool = True
    ) -> PromptStates:
        """As `encode_prompts`; with layered words the context is [1, 16, T, C]."""
        import torch

        each = [
            encode_prompts(
                self._components,
                self._spelled(prompt, suffix),
                self._spelled(negative_prompt, suffix),
                clip_skip=clip_skip,
                weighted=weighted,
            )
            for suffix in ([f"_{name}" for name in LAYERS] if self._layered else [""])
        ]
        if not self._layered:
            return each[0]
        return PromptStates(
            each[0].positive._replace(context=torch.stack([states.positive.context for states in each], dim=1)),
            each[0].negative._replace(context=torch.stack([states.negative.context for states in each], dim=1)),
        )

    def missing(self, *texts: str) -> list[str]:
        """The words that none of the texts holds."""
        from core.methods.new_words import word_pattern

        if not self._counts:
            return []
        held = {each.casefold() for text in texts for each in word_pattern(list(self._counts)).findall(text)}
        return [word for word in self._counts if word.casefold() not in held]

    def _spelled(self, text: str, suffix: str) -> str:
        from core.methods.new_words import tokens_of, word_pattern

        if not self._counts:
            return text
        tokens = {
            word.casefold(): " ".join(tokens_of(word, count, suffix if word in self._layered else ""))
            for word, count in self._counts.items()
        }
        return word_pattern(list(self._counts)).sub(lambda match: tokens[match[0].casefold()], text)


@contextmanager
def embeddings_attached(components: Any, words: Sequence[NewWord]) -> Iterator[Words]:
    """Run the block with these words, whose files were checked.

    No weight is touched: rows stand beside the encoders' tables, and copies of the tokenizers train the words. At the
    end, also after an error, the model's own tables are back and the layers of the U-Net read one text again.
    """
    if not words:
        yield Words(components, {}, set())
        return
    from core.methods.layers import OneTextEach
    from core.methods.new_words import WordTable, add_tokens

    read = {word.word: read_embedding(word.path) for word in words}
    layered = {word for word, vectors in read.items() if LAYERS[0] in vectors}
    counts = {word: len(next(iter(vectors.values()))) for word, vectors in read.items()}
    tokenizers = [copy.deepcopy(tokenizer) for tokenizer in components.tokenizers]
    with ExitStack() as stack:
        for number, (encoder, tokenizer) in enumerate(zip(components.text_encoders, tokenizers, strict=True)):
            names, rows = _rows(read, number)
            add_tokens(tokenizer, (), names)
            table = encoder.get_input_embeddings()
            stack.callback(encoder.set_input_embeddings, table)
            encoder.set_input_embeddings(WordTable(table, rows.to(encoder.device)))
        if layered:
            stack.callback(OneTextEach(components.unet).remove)
        yield Words(replace(components, tokenizers=tokenizers), counts, layered)


def _rows(read: dict[str, dict[str, Tensor]], encoder: int) -> tuple[list[str], Tensor]:
    """Names of the tokens and their vectors [n, C] for one of the encoders."""
    import torch

    from core.methods.new_words import tokens_of

    names: list[str] = []
    rows: list[Tensor] = []
    for word, vectors in read.items():
        if LAYERS[0] in vectors:
            parts = {f"_{layer}": vectors[layer] for layer in LAYERS}
        else:
            parts = {"": list(vectors.values())[encoder]}  # read_embedding gives clip_l before clip_g
        for suffix, own in parts.items():
            names += tokens_of(word, len(own), suffix)
            rows.append(own)
    return names, torch.cat(rows)


def unused(words: Words, *prompts: str) -> list[Problem]:
    """Advice about each word that no prompt holds."""
    fix = "write the word where the prompt means it, or leave the embedding out"
    return [
        Problem(f"No prompt holds the word '{word}', so its embedding does nothing", WHERE, fix, level="advice")
        for word in words.missing(*prompts)
    ]
