"""Embeddings in use: vectors read from files, added to a model as tokens and removed afterwards, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.captions.words import word_pattern
from core.diffusion.text_states import TextStates, join_texts
from core.families import family
from core.families.components import Components
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.embedding_file import LAYERS, ONE, SDXL, bundled_tokens, read_embedding, read_shapes
from core.formats.tensors.header import read_header
from core.generation.model.library import find, portable_name, tokens_of_file
from core.generation.model.store import ModelTexts
from core.generation.prompt.states import AS_WRITTEN, PromptStates, Reading, encode_texts
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, display_path
from core.settings.model import traits_of

if TYPE_CHECKING:
    from torch import Tensor


WHERE = "embeddings"
TABLE = "token_embedding.weight"  # the end of its name in every single file, the first encoder's first


@dataclass(frozen=True)
class NewWord:
    """A token in prompts and the file with its vectors. token: which of a file of several; "" where it holds one."""

    word: str
    path: Path
    token: str = ""

    def setting(self, workspace: Workspace) -> str:
        """As stored in an image's settings: FILE or TOKEN=FILE with a portable file name."""
        name = portable_name(self.path, workspace)
        return name if self.word == self.path.stem and not self.token and "=" not in name else f"{self.word}={name}"


def find_word(text: str, workspace: Workspace) -> NewWord:
    """ "FILE", whose name without extension is the token, or "TOKEN=FILE". Raises ProblemsError for a missing file."""
    word, file = _parted(text)
    path = find("embedding", file, workspace)
    return NewWord(word or path.stem, path)


def _parted(text: str) -> tuple[str, str]:
    """ "TOKEN=FILE" -> its two; "FILE" -> no token."""
    word, equals, file = text.partition("=")
    named = equals and "/" not in word and "\\" not in word
    return (word.strip(), file) if named else ("", text)


def find_words(text: str, workspace: Workspace) -> list[NewWord]:
    """All tokens of "FILE", each by its own name if it holds several; "TOKEN=FILE" is one of those, or another name for a single one.
    Raises ProblemsError for a missing file or token."""
    one = find_word(text, workspace)
    tokens = tokens_of_file(one.path)
    if tokens == [""]:
        return [one]
    if not _parted(text)[0]:
        return [NewWord(token, one.path, token) for token in tokens]
    if one.word not in tokens:
        shown = ", ".join(tokens[:5]) + (" ..." if len(tokens) > 5 else "")
        what = f"{one.path.name} has no token '{one.word}', but {shown}"
        raise ProblemsError.one(what, display_path(one.path), "use one of these names", "embedding.no-such-token")
    return [NewWord(one.word, one.path, one.word)]


def check_word(word: NewWord, others: Sequence[NewWord], family: str, model: Path) -> None:
    """Raise ProblemsError unless the file fits the model, by the headers of both, and no other file has its token."""
    where = display_path(word.path)
    if any(word.word.casefold() == other.word.casefold() for other in others):
        what = f"Two embeddings have the token '{word.word}'"
        raise ProblemsError.one(what, where, "write one as TOKEN=FILE", "embedding.token-twice")
    if word.token not in bundled_tokens(read_header(word.path)[0]):
        check_embedding(identify(word.path), word.path, family)
    shapes = read_shapes(word.path, word.token)
    wanted = SDXL if traits_of(family).two_encoders else LAYERS if set(shapes) == set(LAYERS) else ONE
    name, fix = FAMILY_NAMES[family], f"choose an embedding for {FAMILY_NAMES[family]}, or a matching model"
    if set(shapes) != set(wanted):
        what = f"{word.path.name} contains {', '.join(shapes)}; {name} uses {' and '.join(wanted)}"
        raise ProblemsError.one(what, where, fix, code="embedding.other-tensors")
    widths = token_widths(model)
    for number, key in enumerate(wanted):
        count, width = shapes[key]
        reads = widths[0 if wanted is LAYERS else number] if widths else width
        if width != reads:
            what = f"{word.path.name} has vectors of width {width}; this model's have {reads}"
            raise ProblemsError.one(what, where, fix, code="embedding.other-width")
        if count != shapes[wanted[0]][0]:
            what = f"{word.path.name} has different numbers of vectors in {key} and {wanted[0]}"
            raise ProblemsError.one(what, where, "choose another file", code="embedding.unequal-counts")


def check_embedding(found: ModelKind, path: Path, family: str) -> None:
    """Raise ProblemsError unless an identified file is an embedding of this family, as far as its header tells it."""
    where = display_path(path)
    if found.kind != "embedding":
        what = f"{path.name} is not an embedding but: {found} ({found.evidence})"
        raise ProblemsError.one(what, where, "choose a textual inversion embedding", code="embedding.not-an-embedding")
    if found.family not in (None, family):
        its, name = FAMILY_NAMES[str(found.family)], FAMILY_NAMES[family]
        what, fix = (
            f"{path.name} is an embedding for {its}; the model is {name}",
            f"choose an embedding for {name}, or a matching model",
        )
        raise ProblemsError.one(what, where, fix, "embedding.other-family")


def token_widths(model: Path) -> list[int]:
    """Width of the token vectors of each text encoder, without loading; empty if its files do not state them."""
    if model.is_file():
        tables = sorted((name, entry) for name, entry in read_header(model)[0].items() if name.endswith(TABLE))
        return [entry.side(-1) for _, entry in tables]
    configs = [model / part / "config.json" for part in ("text_encoder", "text_encoder_2")]
    widths: list[Any] = [read_json_object(file).get("hidden_size") for file in configs if file.is_file()]
    return widths if all(type(width) is int for width in widths) else []


class Words:
    """Encodes prompts after replacing each embedding's name with its tokens.

    components  its tokenizers know the tokens      counts  {name: number of vectors}
    layered     names with one vector per layer (XTI)
    kept        cache of text states
    """

    def __init__(
        self, components: Components, counts: dict[str, int], layered: set[str], kept: ModelTexts | None = None
    ):
        self._components, self._counts, self._layered = components, counts, layered
        self._kept = kept or ModelTexts()

    def encode(self, prompt: str, negative_prompt: str = "", reading: Reading = AS_WRITTEN) -> PromptStates:
        """Like `encode_prompts`; with layered embeddings the context is [1, 16, T, C]."""
        return PromptStates.of(self.encode_each([prompt, negative_prompt], reading))

    def encode_each(
        self, texts: Sequence[str], reading: Reading = AS_WRITTEN, others: Sequence[str] = ()
    ) -> list[TextStates]:
        """The states of each text, padded to equal T; with layered embeddings the context is [1, 16, T, C].

        others   texts of other steps, which T fits too
        """
        import torch

        suffixes = [f"_{name}" for name in LAYERS] if self._layered else [""]
        with torch.no_grad():
            read = [
                self._read(
                    [self._spelled(text, suffix) for text in texts],
                    [self._spelled(text, suffix) for text in others],
                    reading,
                )
                for suffix in suffixes
            ]
        whole = read[0]
        if self._layered:
            whole = replace(whole, context=torch.stack([states.context for states in read], dim=1))
        return [whole.each(itemgetter(slice(at, at + 1))) for at in range(len(texts))]

    def _read(self, texts: Sequence[str], others: Sequence[str], reading: Reading) -> TextStates:
        from core.families.offload import visiting_by_layers

        tokens = reading.tokens(
            [*texts, *others], partial(family(self._components.family).count_tokens, self._components)
        )

        with ExitStack() as stack:  # encoders are moved once for all texts, and not at all if all states are cached

            def encode(text: str) -> TextStates:
                stack.enter_context(visiting_by_layers(self._components.text_encoders, self._components.device))
                return encode_texts(self._components, [text], reading, tokens)

            return join_texts([self._kept.get((text, reading, tokens), partial(encode, text)) for text in texts])

    def missing(self, *texts: str) -> list[str]:
        """The names that occur in none of the texts."""
        if not self._counts:
            return []
        held = {each.casefold() for text in texts for each in word_pattern(list(self._counts)).findall(text)}
        return [word for word in self._counts if word.casefold() not in held]

    def _spelled(self, text: str, suffix: str) -> str:
        from core.methods.tokens import tokens_of

        if not self._counts:
            return text
        tokens = {
            word.casefold(): " ".join(tokens_of(word, count, suffix if word in self._layered else ""))
            for word, count in self._counts.items()
        }
        return word_pattern(list(self._counts)).sub(lambda match: tokens[match[0].casefold()], text)


@contextmanager
def embeddings_attached(
    components: Components, words: Sequence[NewWord], kept: ModelTexts | None = None
) -> Iterator[Words]:
    """Run the block with these embeddings, whose files were checked.

    No weight is changed: rows are appended to the encoders' embedding tables, and tokens are added to copies of the
    tokenizers. At the end, also after an error, the original tables and single-context U-Net layers are restored.
    """
    if not words:
        yield Words(components, {}, set(), kept)
        return
    from core.methods.layers import OneTextEach
    from core.methods.tokens import TokenTable, add_tokens

    read = {word.word: read_embedding(word.path, word.token) for word in words}
    layered = {word for word, vectors in read.items() if LAYERS[0] in vectors}
    counts = {word: len(next(iter(vectors.values()))) for word, vectors in read.items()}
    tokenizers = [copy.deepcopy(tokenizer) for tokenizer in components.tokenizers]
    with ExitStack() as stack:
        for number, (encoder, tokenizer) in enumerate(zip(components.text_encoders, tokenizers, strict=True)):
            names, rows = _rows(read, number)
            add_tokens(tokenizer, (), names)
            table = encoder.get_input_embeddings()
            stack.callback(encoder.set_input_embeddings, table)
            encoder.set_input_embeddings(TokenTable(table, rows.to(encoder.device)))
        if layered:
            stack.callback(OneTextEach(components.denoiser).remove)
        yield Words(replace(components, tokenizers=tokenizers), counts, layered, kept)


def _rows(read: dict[str, dict[str, Tensor]], encoder: int) -> tuple[list[str], Tensor]:
    """(tokens, their vectors [n, C]) for one of the encoders."""
    import torch

    from core.methods.tokens import tokens_of

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
    """Advice about each embedding that no prompt uses."""
    fix = "write its name into the prompt, or remove the embedding"
    unused_ones = (f"No prompt contains '{word}', so its embedding has no effect" for word in words.missing(*prompts))
    return [Problem(what, WHERE, fix, "advice", code="embedding.unused") for what in unused_ones]
