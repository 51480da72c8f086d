"""New tokens of a text encoder: trained embeddings next to the encoder's token table, which is frozen and not copied."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from core.dataset.captions.words import word_pattern
from core.dataset.sources.files import name_key
from core.formats.embedding_file import LAYERS
from core.record.problems import ProblemsError, raise_any
from core.settings.rules.embedding import known_tokens


class TokenTable(nn.Module):
    """A text encoder's token embedding table with trained rows added: token ids from `first` up are these rows.

    Weight decay and clipping act only on the trained rows; sd-scripts applies them to the whole table and restores the other rows
    (for clipping: `optimizer.compatibility`).

    rows    initial values of the trained rows, [count, C]
    dtype   in which the rows train
    """

    def __init__(self, table: nn.Embedding, rows: Tensor, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.table = table.requires_grad_(False)
        self.first = table.num_embeddings
        self.rows = nn.Parameter(rows.detach().to(dtype, copy=True))

    @property
    def weight(self) -> nn.Parameter:
        """The original table, for its dtype and device."""
        return self.table.weight

    @torch.no_grad()
    def restore_norm(self) -> None:
        """Scale each trained row to the median norm of the original embeddings, as OneTrainer does."""
        if self.rows.requires_grad:
            self.rows.copy_(nn.functional.normalize(self.rows.float()) * self._median_norm)

    @cached_property
    def _median_norm(self) -> Tensor:
        """Median L2 norm of the original embeddings, 0-d."""
        return self.weight.detach().float().norm(dim=1).median()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings [..., C] of token ids [...], in the dtype of the original table."""
        new = ids >= self.first
        old = self.table(ids.clamp(max=self.first - 1))
        rows = self.rows.to(old.dtype)[(ids - self.first).clamp(min=0)]
        return torch.where(new.unsqueeze(-1), rows, old)


def embeddings_of(encoders: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the weights that are tables of independent vectors: token and position embeddings, and rows added to them."""
    modules = (module for encoder in encoders for module in encoder.modules())
    tables = [module for module in modules if isinstance(module, (nn.Embedding, TokenTable))]
    return [weight for table in tables for weight in table.parameters(recurse=False)]


def vector_names(word: str, count: int, suffix: str = "") -> list[str]:
    """Return the names, in the tokenizer, of the vectors of one new token: <mira|0>, <mira|1> ... suffix: of an XTI layer"""
    return [f"<{word}|{number}{suffix}>" for number in range(count)]


def with_vector_names(text: str, new_tokens: Sequence[str], count: int, suffix: str = "") -> str:
    """Return a text with each new token replaced by the names of its `count` vectors: "a mira" -> "a <mira|0> <mira|1>"; "miracle" is
    unchanged.

    new_tokens  as in captions
    suffix      of the names for one layer (XTI)
    """
    spelled = {name_key(word): " ".join(vector_names(word, count, suffix)) for word in new_tokens}
    return word_pattern(new_tokens).sub(lambda match: spelled[name_key(match[0])], text)


def add_tokens(tokenizer: Any, new_tokens: Sequence[str], names: Sequence[str]) -> None:
    """Add the names of vectors to a tokenizer. Raises ProblemsError if the tokenizer has one of the new tokens already.

    new_tokens  as in captions
    names       of all their vectors
    """
    from tokenizers import AddedToken

    raise_any(known_tokens(new_tokens, tokenizer.get_vocab()))
    added = tokenizer.add_tokens([AddedToken(name, normalized=True) for name in names])
    assert added == len(names)


def first_rows(encoder: Any, tokenizer: Any, init_word: str | None, count: int) -> Tensor:
    """Return initial embeddings [count, C]: of the first `count` tokens of the initializer, repeated if it has fewer; without an
    initializer the mean of all tokens. Raises ProblemsError for an initializer without tokens."""
    table = encoder.get_input_embeddings().weight.detach().float()
    if init_word is None:
        return table.mean(dim=0, keepdim=True).repeat(count, 1)
    ids = tokenizer(init_word, truncation=False, verbose=False)["input_ids"][1:-1]
    if not ids:
        what, fix = f"The initializer '{init_word}' has no tokens", "write a word, or leave it empty"
        raise ProblemsError.one(what, "embedding.init_word", fix, "embedding.empty-initializer")
    return torch.stack([table[ids[index % len(ids)]] for index in range(count)])


# -- extended inversion (XTI): each cross-attention of the U-Net reads a different text (Voynov et al. 2023, arXiv:2303.09522)


def cross_attention_blocks(unet: Any) -> list[nn.Module]:
    """Return the 16 transformer modules with cross-attention of an SD 1.x or 2.x U-Net, in the order of LAYERS."""
    transformers = [attention for block in unet.down_blocks for attention in getattr(block, "attentions", ())]
    transformers += list(unet.mid_block.attentions)
    transformers += [attention for block in unet.up_blocks for attention in getattr(block, "attentions", ())]
    assert len(transformers) == len(LAYERS), f"{len(transformers)} transformers"
    return transformers


class TextPerLayer:
    """Hooks that pass each of 16 transformer modules a different text: [B, T, C] out of the context [B, 16, T, C]."""

    def __init__(self, unet: Any):
        self._hooks = [
            module.register_forward_pre_hook(self._pick(number), with_kwargs=True)
            for number, module in enumerate(cross_attention_blocks(unet))
        ]

    @staticmethod
    def _pick(number: int) -> Any:
        """Return a forward pre-hook that passes text `number` of the context to a transformer module."""

        def pick(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            text = kwargs.get("encoder_hidden_states")
            if isinstance(text, Tensor) and text.ndim == 4:
                kwargs = {**kwargs, "encoder_hidden_states": text[:, number]}
            return args, kwargs

        return pick

    def remove(self) -> None:
        """Remove the hooks from the U-Net."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
