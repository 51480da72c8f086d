"""Textual inversion: new words for a model that itself stays as it is."""

from __future__ import annotations

from core.settings.base import Settings, setting


class EmbeddingSettings(Settings):
    """New words, trained as vectors that the text encoder reads like any other."""

    token_string: str | None = setting(
        None,
        title="New word",
        kohya="token_string",
        source="Gal et al. 2022, arXiv:2208.01618",
        help="The word that will stand for what is trained; captions that lack it get it in front. Several words, separated by commas, are trained together. It must be no word that the model knows.",
    )
    num_vectors_per_token: int = setting(
        1,
        ge=1,
        le=75,
        title="Vectors per word",
        unit="vectors",
        kohya="num_vectors_per_token",
        help="More hold more detail and take as many of a prompt's 75 tokens. 1 to 8 is usual.",
    )
    init_word: str | None = setting(
        None,
        title="Begin with the meaning of",
        kohya="init_word",
        help="A word that is near to what is trained, such as cat. Several words, separated by commas, for several new ones. Empty begins with the mean of all words.",
    )
    embedding_weights: str | None = setting(
        None,
        title="Begin with an embedding",
        widget="file",
        kohya="weights",
        help="A .safetensors or .pt file to go on from.",
        names="path or name",
    )
    extended: bool = setting(
        False,
        title="A vector for each layer (XTI)",
        kohya="train_textual_inversion_XTI",
        source="Voynov et al. 2023, arXiv:2303.09522",
        help="Each of the 16 layers that read text trains a meaning of its own. SD 1.x and 2.x; few programs read such files.",
        costs="Texts are encoded 16 times at each step.",
    )

    @property
    def words(self) -> list[str]:
        """The new words, in order."""
        return [word.strip() for word in (self.token_string or "").split(",") if word.strip()]

    @property
    def init_words(self) -> list[str | None]:
        """For each new word the one to begin with; a single one serves all."""
        given = [word.strip() for word in (self.init_word or "").split(",") if word.strip()]
        if len(given) <= 1:
            return [given[0] if given else None] * len(self.words)
        return [given[index] if index < len(given) else None for index in range(len(self.words))]
