"""Textual inversion: trains new token embeddings for a frozen model."""

from __future__ import annotations

from core.settings.base import Settings, kohya_setting, setting


class EmbeddingSettings(Settings):
    """New tokens and their embeddings."""

    token_string: str | None = kohya_setting(
        None,
        first="word",
        brief="A word that the model does not know.",
        only="embedding",
        source="Gal et al. 2022, arXiv:2208.01618",
        help="The new token to train, such as zkw; captions without it get it in front. Separate several tokens with commas to train them together. It must not be a word that the model already knows.",
    )
    num_vectors_per_token: int = kohya_setting(
        1,
        within=(1, 75),
        title="Vectors per token",
        unit="vectors",
        help="More vectors hold more detail; each takes one of a prompt's 75 tokens. 1 to 8 is usual.",
    )
    init_word: str | None = kohya_setting(
        None,
        title="Initializer word",
        first="word",
        brief="A known word close in meaning, such as cat.",
        only="embedding",
        help="Training starts from this word's embedding; pick one close in meaning, such as cat. Separate several with commas for several tokens. Empty starts from the mean of all token embeddings.",
    )
    embedding_weights: str | None = setting(
        None,
        title="Initial embedding",
        widget="file",
        kohya="weights",
        help="A .safetensors or .pt embedding to continue training from.",
        names="path or name",
    )
    extended: bool = setting(
        False,
        title="Extended textual inversion (XTI)",
        kohya="train_textual_inversion_XTI",
        source="Voynov et al. 2023, arXiv:2303.09522",
        help="Trains a separate embedding for each of the 16 cross-attention layers. SD 1.x and 2.x only; few programs can load such files.",
        costs="Captions are encoded 16 times at each step.",
    )

    @property
    def words(self) -> list[str]:
        """The new tokens, in order."""
        return [word.strip() for word in (self.token_string or "").split(",") if word.strip()]

    @property
    def init_words(self) -> list[str | None]:
        """The initializer word of each new token; a single one is used for all."""
        given = [word.strip() for word in (self.init_word or "").split(",") if word.strip()]
        if len(given) <= 1:
            return [given[0] if given else None] * len(self.words)
        return [given[index] if index < len(given) else None for index in range(len(self.words))]

    def summary(self) -> str:
        parts = [f"token '{self.token_string}'" if self.token_string else "no token"]
        parts += [f"{self.num_vectors_per_token} vectors"] if self.num_vectors_per_token > 1 else []
        parts += [f"initializer '{self.init_word}'"] if self.init_word else []
        return ", ".join(parts + (["one per layer (XTI)"] if self.extended else []))
