"""Text encoder states of prompts, for generated images, samples and regularization images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from core.diffusion.text_states import TextStates, join_texts
from core.families import family
from core.families.clip import join_whole, join_windows
from core.families.components import Components
from core.families.prompt_weights import Read
from core.families.token_count import WINDOW
from core.generation.prompt.runs import BREAK_ANYWHERE, prompt_runs, tokens_read


@dataclass(frozen=True)
class Reading:
    """Options for encoding prompts.

    clip_skip         None or 1: the text encoder's last layer; n: the n-th layer from the end
    weighted          parse (word), (word:1.3) and BREAK; otherwise they are text
    break_anywhere    split at BREAK within a word too, as sd-scripts' generator does
    normalize         how weighted states are rescaled (`core.families.token_weights.weigh`): none, original, abs
    multiples         maximum number of windows of 75 tokens; None: no limit
    as_trained        join the windows to 75 n + 2 states, as in training, instead of 77 n
    filled_with_end   pad windows with EOS, whatever the model's padding token is
    layer             layer of SDXL's text encoders, counted from the end; None: the penultimate one
    """

    clip_skip: int | None = None
    weighted: bool = True
    break_anywhere: bool = False
    normalize: str = "none"
    multiples: int | None = None
    as_trained: bool = False
    filled_with_end: bool = False
    layer: int | None = None

    def tokens(self, texts: Sequence[str], count: Callable[[str], int]) -> int:
        """Return the number of content tokens to which `texts` are padded. count: counts the content tokens of a plain text"""
        max_tokens = self.multiples * WINDOW if self.multiples else None
        return tokens_read(texts, count, self.runs, max_tokens)

    @property
    def runs(self) -> Read | None:
        """The function that splits a text into runs of equal weight; None if brackets are plain text."""
        runs = partial(prompt_runs, separator=BREAK_ANYWHERE) if self.break_anywhere else prompt_runs
        return runs if self.weighted else None


AS_WRITTEN = Reading()


@dataclass(frozen=True)
class PromptStates:
    """Text conditioning of the denoiser. Each `TextStates` is of one text for all images (B = 1) or one per image; all have the same T.

    empty     states of "", if the guidance needs them
    parts     states of the prompts joined by AND, if there are several
    weights   weights of `parts`
    later     (number of completed steps, states from then on), for prompt editing
    """

    positive: TextStates
    negative: TextStates
    empty: TextStates | None = None
    parts: tuple[TextStates, ...] = ()
    weights: tuple[float, ...] = ()
    later: tuple[tuple[int, PromptStates], ...] = ()

    def at(self, done: int) -> PromptStates:
        """Return the states for the next step after `done` completed steps (prompt editing)."""
        return next((states for begin, states in reversed(self.later) if begin <= done), self)

    @classmethod
    def of(cls, texts: Sequence[TextStates]) -> PromptStates:
        """Create the states from those of the prompt, the negative prompt and, optionally, the empty text."""
        return cls(texts[0], texts[1], texts[2] if len(texts) > 2 else None)


def encode_texts(
    components: Components, texts: Sequence[str], reading: Reading = AS_WRITTEN, tokens: int | None = None
) -> TextStates:
    """Encode prompts into text encoder states of shape [len(texts), T, C].

    Texts are encoded in windows of 75 content tokens, joined with their BOS and EOS (T = 77 n, as in A1111, ComfyUI and
    kohya's generator; 75 n + 2 with `reading.as_trained`). All texts get the number of windows that the longest needs, or
    that `tokens` content tokens need. Each text is encoded alone: matrix products of another shape differ in their last bits.
    """
    kind = family(components.family)
    layer = {"layer": reading.layer} if reading.layer else {}
    length = tokens or reading.tokens(texts, partial(kind.count_tokens, components))
    encode = partial(
        kind.encode_captions,
        components,
        max_token_length=length,
        clip_skip=reading.clip_skip,
        join=join_windows if reading.as_trained else join_whole,
        runs=reading.runs,
        normalize=reading.normalize,
        filled_with_end=reading.filled_with_end,
        **layer,
    )
    return join_texts([encode([text]) for text in texts])


def prompt_and_opposite(states: TextStates) -> PromptStates:
    """Split the states of a prompt and its negative prompt, encoded together in a batch of 2, into conditioning."""
    return PromptStates(states.each(lambda tensor: tensor[:1]), states.each(lambda tensor: tensor[1:]))
