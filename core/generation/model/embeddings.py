"""Embeddings (textual inversion) in use: found, checked, added to a model's tokenizers and embedding tables, and removed afterwards."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from core.dataset.captions.words import word_pattern
from core.dataset.sources.files import name_key
from core.diffusion.text_states import TextStates, join_texts
from core.families import family
from core.families.components import Components
from core.families.offload import layers_temporarily_on
from core.families.prompt_weights import escape_brackets, unescape_brackets
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.embedding_file import LAYERS, ONE, SDXL, bundled_tokens, read_embedding, read_shapes
from core.formats.tensors.header import read_header
from core.generation.model.library import find, portable_name, tokens_of_file, trained_token
from core.generation.model.store import ModelTextCache
from core.generation.prompt.states import AS_WRITTEN, Reading, encode_texts
from core.record.bounded_json import read_json_object
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError
from core.record.units import first_of, listed
from core.record.workspace import Workspace, display_path
from core.settings.model import traits_of

WHERE = "embeddings"
TABLE = "token_embedding.weight"  # suffixes of its name in single files, the first encoder's first


@dataclass(frozen=True)
class Embedding:
    """An embedding that prompts can name.

    name            the name in prompts
    path            its file
    token           its key in a file with several embeddings; "" for a file with one
    trained_token   the token it was trained for, a second name in prompts; "" if it has none
    """

    name: str
    path: Path
    token: str = ""
    trained_token: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which prompts refer to the embedding."""
        return (self.name, self.trained_token) if self.trained_token else (self.name,)

    def setting(self, workspace: Workspace) -> str:
        """Return "FILE" or "TOKEN=FILE", the text in `generate.embeddings`, with a portable file name."""
        name = portable_name(self.path, workspace)
        return name if self.name == self.path.stem and not self.token and "=" not in name else f"{self.name}={name}"

    def short_setting(self, workspace: Workspace) -> str:
        """Return the text in `generate.embeddings` as in `setting`, but "FILE" alone if `name` is the token the file was trained for."""
        name = portable_name(self.path, workspace)
        return name if self.name == trained_token(self.path) and "=" not in name else self.setting(workspace)


def find_embedding(text: str, workspace: Workspace) -> Embedding:
    """Return the embedding for "FILE" or "TOKEN=FILE". Raises ProblemsError if the file is missing.

    "FILE" is named by its file name without the ending, and by the token it was trained for.
    """
    token, file = split_token(text)
    path = find("embedding", file, workspace)
    return Embedding(token, path) if token else Embedding(path.stem, path, trained_token=trained_token(path))


def split_token(text: str) -> tuple[str, str]:
    """Split "TOKEN=FILE" into (token, file); return ("", file) for "FILE"."""
    token, equals, file = text.partition("=")
    has_token = equals and "/" not in token and "\\" not in token
    return (token.strip(), file) if has_token else ("", text)


def find_embeddings(text: str, workspace: Workspace) -> list[Embedding]:
    """Return the embeddings for "FILE": all of a file with several, named by their tokens. For "TOKEN=FILE" return one of them.

    In a file with one embedding, TOKEN is a new name for it. Raises ProblemsError for a missing file or token.
    """
    embedding = find_embedding(text, workspace)
    tokens = tokens_of_file(embedding.path)
    if tokens == [""]:
        return [embedding]
    if not split_token(text)[0]:
        return [Embedding(token, embedding.path, token) for token in tokens]
    if embedding.name not in tokens:
        what = f"{embedding.path.name} has no token '{embedding.name}', but {first_of(tokens, 5)}"
        raise ProblemsError.one(what, display_path(embedding.path), "use one of these names", "embedding.no-such-token")
    return [Embedding(embedding.name, embedding.path, embedding.name)]


def without_repeated_tokens(embeddings: Sequence[Embedding]) -> list[Embedding]:
    """Return the embeddings without second names (`trained_token`) that are the name of another, or the second name of an earlier one."""
    names = {each.name.casefold() for each in embeddings}
    unique = []
    for each in embeddings:
        unique.append(replace(each, trained_token="") if each.trained_token.casefold() in names else each)
        names.add(each.trained_token.casefold())
    return unique


def check_token(embedding: Embedding, others: Sequence[Embedding], family: str, model: Path) -> None:
    """Raise ProblemsError if the embedding does not fit the model, by their headers, or if one of `others` has the same name.

    family   of the model, "sd1" ...
    model    its file or diffusers folder
    """
    where = display_path(embedding.path)
    if any(embedding.name.casefold() == other.name.casefold() for other in others):
        what = f"Two embeddings have the token '{embedding.name}'"
        raise ProblemsError.one(what, where, "write one as TOKEN=FILE", "embedding.token-twice")
    if embedding.token not in bundled_tokens(read_header(embedding.path)[0]):
        check_embedding(identify(embedding.path), embedding.path, family)
    shapes = read_shapes(embedding.path, embedding.token)
    expected = SDXL if traits_of(family).two_encoders else LAYERS if set(shapes) == set(LAYERS) else ONE
    name, fix = FAMILY_NAMES[family], f"choose an embedding for {FAMILY_NAMES[family]}, or a matching model"
    if set(shapes) != set(expected):
        what = f"{embedding.path.name} contains {', '.join(shapes)}; {name} uses {listed(expected)}"
        raise ProblemsError.one(what, where, fix, code="embedding.other-tensors")
    widths = token_widths(model)
    for number, key in enumerate(expected):
        count, width = shapes[key]
        model_width = widths[0 if expected is LAYERS else number] if widths else width
        if width != model_width:
            what = f"{embedding.path.name} has vectors of width {width}; this model's have {model_width}"
            raise ProblemsError.one(what, where, fix, code="embedding.other-width")
        if count != shapes[expected[0]][0]:
            what = f"{embedding.path.name} has different numbers of vectors in {key} and {expected[0]}"
            raise ProblemsError.one(what, where, "choose another file", code="embedding.unequal-counts")


def check_embedding(kind: ModelKind, path: Path, family: str) -> None:
    """Raise ProblemsError if a file is not an embedding of this family. kind: the detected kind of the file at `path`"""
    where = display_path(path)
    if kind.kind != "embedding":
        what = f"{path.name} is not an embedding but: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, where, "choose a textual inversion embedding", code="embedding.not-an-embedding")
    if kind.family not in (None, family):
        file_family, model_family = FAMILY_NAMES[str(kind.family)], FAMILY_NAMES[family]
        what = f"{path.name} is an embedding for {file_family}; the model is {model_family}"
        fix = f"choose an embedding for {model_family}, or a matching model"
        raise ProblemsError.one(what, where, fix, "embedding.other-family")


def token_widths(model: Path) -> list[int]:
    """Return the width of the token vectors of each text encoder, from headers; [] if the model's files do not show it."""
    if model.is_file():
        tables = sorted((name, entry) for name, entry in read_header(model)[0].items() if name.endswith(TABLE))
        return [entry.side(-1) for _, entry in tables]
    configs = [model / part / "config.json" for part in ("text_encoder", "text_encoder_2")]
    widths: list[Any] = [read_json_object(file).get("hidden_size") for file in configs if file.is_file()]
    return widths if all(type(width) is int for width in widths) else []


class PromptEncoder:
    """Encodes prompts after replacing each embedding's name with its tokens.

    components   the model, with tokenizers that contain the tokens
    counts       {name of an embedding: its number of vectors}
    layered      names of embeddings with one vector per U-Net layer (XTI)
    cache        cache of text encoder states; None: a new one
    """

    def __init__(
        self, components: Components, counts: dict[str, int], layered: set[str], cache: ModelTextCache | None = None
    ):
        self._components, self._counts, self._layered = components, counts, layered
        self._cache = cache or ModelTextCache()

    def encode_each(
        self, texts: Sequence[str], reading: Reading = AS_WRITTEN, others: Sequence[str] = ()
    ) -> list[TextStates]:
        """Return the text encoder states of each text, padded to the same T.

        The context is [1, T, C]; with layered embeddings [1, 16, T, C], one for each U-Net layer.

        others   texts of other steps, to whose T these are padded too
        """
        suffixes = [f"_{name}" for name in LAYERS] if self._layered else [""]
        with torch.no_grad():
            encoded = [
                self._read(
                    [self._with_tokens(text, suffix, reading.weighted) for text in texts],
                    [self._with_tokens(text, suffix, reading.weighted) for text in others],
                    reading,
                )
                for suffix in suffixes
            ]
        first = encoded[0]
        if self._layered:
            first = replace(first, context=torch.stack([states.context for states in encoded], dim=1))
        return [first.each(itemgetter(slice(index, index + 1))) for index in range(len(texts))]

    def _read(self, texts: Sequence[str], others: Sequence[str], reading: Reading) -> TextStates:
        """Return the states of texts whose names are already replaced by tokens, padded to the T of the longest of `texts` and `others`."""
        tokens = reading.tokens(
            [*texts, *others], partial(family(self._components.family).count_tokens, self._components)
        )

        with ExitStack() as stack:  # encoders are moved once for all texts, and not at all if all states are cached

            def encode(text: str) -> TextStates:
                stack.enter_context(layers_temporarily_on(self._components.text_encoders, self._components.device))
                return encode_texts(self._components, [text], reading, tokens)

            return join_texts([self._cache.get((text, reading, tokens), partial(encode, text)) for text in texts])

    def missing(self, *texts: str) -> list[str]:
        """Return the names of embeddings that occur in none of the texts; [] without embeddings."""
        if not self._counts:
            return []
        spellings = [text for each in texts for text in (each, unescape_brackets(each))]
        used = {name_key(each) for text in spellings for each in word_pattern(list(self._counts)).findall(text)}
        return [name for name in self._counts if name_key(name) not in used]

    def _with_tokens(self, text: str, suffix: str, weighted: bool) -> str:
        """Replace each embedding's name by its tokens.

        suffix     end of the tokens of layered embeddings, "_" and the layer's name
        weighted   whether brackets in the text are weights: those of names and tokens are escaped
        """
        from core.methods.tokens import vector_names

        if not self._counts:
            return text
        tokens = {}
        for name, count in self._counts.items():
            replacement = " ".join(vector_names(name, count, suffix if name in self._layered else ""))
            tokens[name_key(name)] = escape_brackets(replacement) if weighted else replacement
            if weighted:
                tokens[name_key(escape_brackets(name))] = escape_brackets(replacement)
        names = [*self._counts, *(map(escape_brackets, self._counts) if weighted else ())]
        return word_pattern(names).sub(lambda match: tokens[name_key(match[0])], text)


@contextmanager
def embeddings_attached(
    components: Components, embeddings: Sequence[Embedding], cache: ModelTextCache | None = None
) -> Iterator[PromptEncoder]:
    """Context with a PromptEncoder that knows these embeddings, which must already be checked.

    Rows are appended to the text encoders' embedding tables, and tokens to copies of the tokenizers; no weight changes. On
    exit, also after an error, the original tables and U-Net layers are restored.
    """
    if not embeddings:
        yield PromptEncoder(components, {}, set(), cache)
        return
    from core.methods.tokens import TextPerLayer, TokenTable, add_tokens

    vectors_by_name = {word: read_embedding(each.path, each.token) for each in embeddings for word in each.names}
    layered = {name for name, vectors in vectors_by_name.items() if LAYERS[0] in vectors}
    counts = {name: len(next(iter(vectors.values()))) for name, vectors in vectors_by_name.items()}
    tokenizers = [copy.deepcopy(tokenizer) for tokenizer in components.tokenizers]
    with ExitStack() as stack:
        for number, (encoder, tokenizer) in enumerate(zip(components.text_encoders, tokenizers, strict=True)):
            names, rows = _token_vectors(vectors_by_name, number)
            add_tokens(tokenizer, (), names)
            table = encoder.get_input_embeddings()
            stack.callback(encoder.set_input_embeddings, table)
            encoder.set_input_embeddings(TokenTable(table, rows.to(encoder.device)))
        if layered:
            stack.callback(TextPerLayer(components.denoiser).remove)
        yield PromptEncoder(replace(components, tokenizers=tokenizers), counts, layered, cache)


def _token_vectors(vectors_by_name: dict[str, dict[str, Tensor]], encoder: int) -> tuple[list[str], Tensor]:
    """Return (tokens, their vectors [n, C]) of all embeddings for one text encoder.

    vectors_by_name   {name: {tensor such as "clip_l", or a layer: vectors}}
    encoder           index of the text encoder
    """
    from core.methods.tokens import vector_names

    names: list[str] = []
    rows: list[Tensor] = []
    for name, vectors in vectors_by_name.items():
        if LAYERS[0] in vectors:
            parts = {f"_{layer}": vectors[layer] for layer in LAYERS}
        else:
            parts = {"": list(vectors.values())[encoder]}  # read_embedding returns clip_l before clip_g
        for suffix, vectors_of_part in parts.items():
            names += vector_names(name, len(vectors_of_part), suffix)
            rows.append(vectors_of_part)
    return names, torch.cat(rows)


def unused(encoder: PromptEncoder, embeddings: Sequence[Embedding], *prompts: str) -> list[Problem]:
    """Return advice about each of `embeddings` that no prompt uses, under any of its names.
    encoder: knows the embeddings"""
    fix = "write its name into the prompt, or remove the embedding"
    missing = frozenset(encoder.missing(*prompts))
    unused_names = (
        " or ".join(f"'{word}'" for word in each.names) for each in embeddings if missing.issuperset(each.names)
    )
    messages = (f"No prompt contains {names}, so its embedding has no effect" for names in unused_names)
    return [Problem(what, WHERE, fix, "advice", code="embedding.unused") for what in messages]
