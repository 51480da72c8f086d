"""How the next word is chosen where transformers has no option for it: draws addressed by image, a budget for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.record.draws import uniform
from core.settings.captioner_models import CaptionGenerationSettings


class Prompt(LogitsProcessor):
    """Notes how many tokens there are before the first new one, as each kind of model counts them."""

    tokens = 0
    _seen = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._seen:
            self._seen, self.tokens = True, input_ids.shape[1]
        return scores


class AddressedSampling(LogitsProcessor):
    """Samples each image's words by draws of its own, addressed by (seed, image, attempt, place): neither the order of
    images nor what shares a batch with one changes its caption. Leaves one word possible, which greedy decoding takes."""

    def __init__(self, settings: CaptionGenerationSettings, keys: Sequence[str], attempt: int, prompt: Prompt):
        self._address, self._keys, self._prompt = (settings.seed, attempt), keys, prompt
        self._warpers: list[Any] = [TemperatureLogitsWarper(settings.temperature)]
        self._warpers += [TopKLogitsWarper(settings.top_k)] if settings.top_k is not None else []
        self._warpers += [TopPLogitsWarper(settings.top_p)] if settings.top_p is not None else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seed, attempt = self._address
        place = input_ids.shape[1] - self._prompt.tokens
        chances = scores.float()
        for warper in self._warpers:
            chances = warper(input_ids, chances)
        below = chances.softmax(-1).cpu().double().cumsum(-1)
        draws = torch.tensor(
            [[uniform(seed, "captioning", key, attempt, place)] for key in self._keys], dtype=torch.float64
        )
        chosen = torch.searchsorted(below, draws * below[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        alone = torch.full_like(scores, -torch.inf)
        return alone.scatter(-1, chosen.to(scores.device), 0.0)


class AnswerBudget(StoppingCriteria):
    """Ends a row when so many tokens follow the end of its thinking."""

    def __init__(self, closed: Sequence[int], tokens: int, prompt: Prompt):
        self._closed, self._tokens, self._prompt = list(closed), tokens, prompt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        new, size = input_ids[:, self._prompt.tokens :], len(self._closed)
        if new.shape[1] < size + self._tokens:
            return torch.zeros(len(new), dtype=torch.bool, device=new.device)
        before = new[:, : new.shape[1] - self._tokens]  # it must end here for that many to follow
        mark = torch.tensor(self._closed, device=new.device)
        return (before.unfold(1, size, 1) == mark).all(-1).any(-1)
