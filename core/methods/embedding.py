"""Textual inversion: trains the embeddings of new tokens; the model is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.diffusion.text_states import TextStates
from core.families.components import Components
from core.formats.embedding_file import LAYERS, ONE, SDXL, TOKEN, read_embedding, write_embedding
from core.formats.tensors.writer import type_named
from core.methods import Method
from core.methods.tokens import TextPerLayer, TokenTable, add_tokens, first_rows, vector_names, with_vector_names
from core.optimization.groups import Trainable
from core.record.problems import Problem, ProblemsError
from core.settings.names import without_signs
from core.settings.rules.embedding import other_size
from core.settings.saving import EXTENSIONS

if TYPE_CHECKING:
    from core.dataset.caches.texts import EncodeText
    from core.settings.job import TrainJob

PARTS = ("text_encoder", "text_encoder_2")


class EmbeddingMethod(Method):
    """Textual inversion: trains the embeddings of new tokens in each text encoder.

    With `extended` (XTI) each vector has 16 tokenizer tokens, one for each layer that reads it; their ids are ordered by layer.

    start   embedding file to start from; None uses the initializers
    """

    trains_text = True
    trains_unet = False
    steady_gradients = False  # a token that no caption of the batch contains gets none
    keeps_clipped_gradients = False  # sd-scripts' optimizer holds the whole table

    def __init__(self, job: TrainJob, start: Path | None = None):
        super().__init__()
        self.extension = EXTENSIONS[job.saving.save_model_as]
        self._settings = job.embedding
        self._clips_table = job.optimizer.clips_as_kohya
        self._dtype = type_named(job.memory.full_precision)
        self._start = start
        self._tables: list[TokenTable] = []
        self._layers: TextPerLayer | None = None
        self._family = "sd1"

    @property
    def words(self) -> list[str]:
        """The new tokens, as in captions."""
        return self._settings.words

    @property
    def _suffixes(self) -> list[str]:
        """Suffixes of the names of a token's vectors, in the order of the rows: one for each layer with XTI, else one empty suffix."""
        return [f"_{name}" for name in LAYERS] if self._settings.extended else [""]

    def build(self, components: Components) -> list[Trainable]:
        """Add the tokens to the tokenizers and their embeddings to the encoders' tables; freeze everything else. Returns the embeddings.
        Raises ProblemsError for an embedding file that does not fit and an initializer without tokens."""
        self._family = components.family
        count = self._settings.num_vectors_per_token
        tokens = [
            token for suffix in self._suffixes for word in self.words for token in vector_names(word, count, suffix)
        ]
        initial = self._initial(len(components.text_encoders))
        for index, (encoder, tokenizer) in enumerate(zip(components.text_encoders, components.tokenizers, strict=True)):
            rows = [first_rows(encoder, tokenizer, init, count) for init in self._settings.init_words]
            initial_rows = torch.cat(rows).repeat(len(self._suffixes), 1)
            if initial is not None and (loaded := initial[index]) is not None:
                if loaded.shape != initial_rows.shape:
                    raise ProblemsError([other_size(loaded.shape, initial_rows.shape)])
                initial_rows = loaded
            add_tokens(tokenizer, self.words, tokens)
            encoder.requires_grad_(False)
            table = TokenTable(encoder.get_input_embeddings(), initial_rows.to(encoder.device), self._dtype)
            encoder.set_input_embeddings(table)
            self._tables.append(table)
        if components.denoiser is not None:
            components.denoiser.requires_grad_(False)
        if self._settings.extended:
            self._layers = TextPerLayer(components.denoiser)
        if self._clips_table:  # sd-scripts clips the last encoder's whole table
            self.clipped = [self._tables[-1].weight, self._tables[-1].rows]
        return [Trainable(PARTS[index], [table.rows]) for index, table in enumerate(self._tables)]

    def _initial(self, encoders: int) -> list[Tensor | None] | None:
        """Return the vectors of the embedding file to start from, for each encoder, XTI layers concatenated; None without a file. Raises
        ProblemsError for a file of another kind or family."""
        if self._start is None:
            return None
        loaded = read_embedding(self._start)
        if self._settings.extended:
            missing = [name for name in LAYERS if name not in loaded]
            if missing:
                what = f"{self._start.name} has no vectors for {len(missing)} of the 16 layers"
                fix = "choose an XTI file, or turn XTI off"
                raise ProblemsError.one(what, "embedding.embedding_weights", fix, code="embedding.other-tensors")
            return [torch.cat([loaded[name] for name in LAYERS])]
        names = ONE if encoders == 1 else SDXL
        if not set(names) & set(loaded):
            what, fix = f"{self._start.name} was made for another model family", "choose one of the same family"
            raise ProblemsError.one(what, "embedding.embedding_weights", fix, "embedding.other-tensors")
        return [loaded.get(name) for name in names]

    # -- texts

    def encode(self, captions: Sequence[str], encode: EncodeText) -> TextStates:
        """Return the text states of captions in which each new token is replaced by the names of its vectors. XTI: context [B, 16, T,
        C]."""
        count = self._settings.num_vectors_per_token
        if not self._settings.extended:
            return encode([with_vector_names(caption, self.words, count) for caption in captions])
        each = [
            encode([with_vector_names(caption, self.words, count, suffix) for caption in captions]).context
            for suffix in self._suffixes
        ]
        return TextStates(torch.stack(each, dim=1))

    # -- state and files

    def state_dict(self) -> dict[str, Tensor]:
        return {f"rows_{index}": table.rows.data for index, table in enumerate(self._tables)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for index, table in enumerate(self._tables):
                table.rows.copy_(tensors[f"rows_{index}"])

    def vectors(self, word: str) -> dict[str, Tensor]:
        """Return {tensor name in the file: vectors [count, C]} of one new token. word: one of `words`"""
        count = self._settings.num_vectors_per_token
        first = self.words.index(word) * count
        tables = [table.rows.data for table in self._tables]
        if self._settings.extended:
            rows = tables[0].view(len(LAYERS), -1, tables[0].shape[-1])
            return {name: rows[number, first : first + count] for number, name in enumerate(LAYERS)}
        names = ONE if len(tables) == 1 else SDXL
        return {name: rows[first : first + count] for name, rows in zip(names, tables, strict=True)}

    def extra_files(self, path: Path) -> list[Path]:
        """Return the path of the file for each new token after the first, whose file is `path`."""
        names = [without_signs(word) for word in self.words[1:]]
        return [path.with_name(f"{path.stem}-{name}{path.suffix}") for name in names]

    def write(
        self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int = 0, step: int = 0
    ) -> list[Problem]:
        """Write one file for each new token: the first token's at `path`, the others at `extra_files(path)`. Returns []. Raises
        ProblemsError for NaN or infinite vectors."""
        dtype = type_named(precision)
        for word, file in zip(self.words[1:], self.extra_files(path), strict=True):
            write_embedding(file, self.vectors(word), metadata | {TOKEN: word}, dtype)
        write_embedding(path, self.vectors(self.words[0]), metadata | {TOKEN: self.words[0]}, dtype)
        return []

    # -- for the training loop

    def after_update(self) -> dict[str, Tensor]:
        """Restore the norm of the embeddings, if set; return {"norm/<encoder>": norm of its new embeddings, 0-d}."""
        for table in self._tables if self._settings.preserve_embedding_norm else ():
            table.restore_norm()
        return {f"norm/{PARTS[index]}": table.rows.detach().float().norm() for index, table in enumerate(self._tables)}

    def release(self) -> None:
        if self._layers is not None:
            self._layers.remove()
        self._tables, self._layers = [], None
