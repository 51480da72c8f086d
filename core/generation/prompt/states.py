"""Text encoder states of prompts, for generation, samples and regularization images alike."""

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
    """How prompts are encoded.

    clip_skip        None or 1: the text encoder's last layer; n: the n-th from the end
    weighted         parse (more), (exactly:1.3) and BREAK; otherwise they are text
    break_anywhere   BREAK within a word too, as in sd-scripts' generator
    normalize        how weighted states are scaled (`core.families.token_weights.weigh`): none, original, abs
    multiples        maximum windows of 75 tokens; None: as many as the text has
    as_trained       join the windows to 75 n + 2 states, as training does, instead of 77 n
    filled_with_end  fill windows with EOS whatever the model's padding is
    layer            layer of SDXL's encoders, counted from the end, instead of the penultimate one
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
        """The content tokens that these texts are padded to. count: content tokens of a plain text"""
        most = self.multiples * WINDOW if self.multiples else None
        return tokens_read(texts, count, self.runs, most)

    @property
    def runs(self) -> Read | None:
        """Splits a text into runs of equal weight; None where brackets are text."""
        runs = partial(prompt_runs, at=BREAK_ANYWHERE) if self.break_anywhere else prompt_runs
        return runs if self.weighted else None


AS_WRITTEN = Reading()


@dataclass(frozen=True)
class PromptStates:
    """The denoiser's text conditioning, all of equal T: one text for all images, or one per image.

    empty            of "", if the guidance needs it
    parts, weights   of the prompts joined by AND, if there are several
    later            (steps done, the states from then on), for prompts that change at steps
    """

    positive: TextStates
    negative: TextStates
    empty: TextStates | None = None
    parts: tuple[TextStates, ...] = ()
    weights: tuple[float, ...] = ()
    later: tuple[tuple[int, PromptStates], ...] = ()

    def at(self, done: int) -> PromptStates:
        """The states in force after `done` steps (prompt editing)."""
        return next((states for begin, states in reversed(self.later) if begin <= done), self)

    @classmethod
    def of(cls, texts: Sequence[TextStates]) -> PromptStates:
        """The states of positive, negative and, if there are three, empty."""
        return cls(texts[0], texts[1], texts[2] if len(texts) > 2 else None)


def encode_texts(
    components: Components, texts: Sequence[str], reading: Reading = AS_WRITTEN, tokens: int | None = None
) -> TextStates:
    """Text encoder states of prompts, for samples and generated images alike.

    Long texts are encoded in windows of 75 tokens; all texts get as many windows as the longest needs, or as `tokens`
    requires. The windows' states are joined with their BOS and EOS: T = 77 n, as in A1111, ComfyUI and kohya's
    generator. Each text is encoded alone: products of another shape differ in their last bits.
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


def prompt_and_opposite(both: TextStates) -> PromptStates:
    """The states of a prompt and its negative prompt that were encoded together."""
    return PromptStates(both.each(lambda tensor: tensor[:1]), both.each(lambda tensor: tensor[1:]))
