"""Generates answers about images with a loaded model, in batches. Loads torch."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.processing_utils import ProcessorMixin

from core.captioning.sentences.cleaning import CLOSED, OPENED
from core.captioning.sentences.loading import Loaded
from core.record.draws import uniform
from core.record.problems import ProblemsError
from core.settings.captioning.sentences import CaptionGenerationSettings

TEMPLATE_SECONDS = 5.0  # for one image; usual templates take milliseconds
AGAIN_NGRAM = 3  # of a second attempt without sampling: no three tokens twice
SAMPLING_PENALTY = 1.1  # of BLIP when sampling: sd-scripts 0.9.0, make_captions.py


@dataclass(frozen=True)
class Query:
    """An image with the texts for the model.

    path     its name keys the random draws
    prompt   "" for none
    system   system prompt of chat models
    start    prescribed start of the answer, for chat models
    """

    image: Image.Image
    path: Path
    prompt: str = ""
    system: str = ""
    start: str = ""


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    text     without prompt and special tokens
    cut      whether it ended at the token limit
    opened   whether the prompt ended with <think>
    """

    text: str
    cut: bool
    opened: bool = False


@torch.inference_mode()
def answers(
    loaded: Loaded, queries: Sequence[Query], settings: CaptionGenerationSettings, attempt: int
) -> list[Answer]:
    """Generate the answer to each query. `attempt`: 0, or 1 for a second attempt."""
    inputs, texts = _model_inputs(loaded, queries, settings)
    prompt = PromptLength()
    processors: list[Any] = [prompt]
    if settings.decoding == "sample":
        processors.append(AddressedSampling(settings, [each.path.name for each in queries], attempt, prompt))
    thinking = getattr(settings, "thinking_tokens", None) or 0
    end_of_thinking = loaded.tokenizer.encode(CLOSED, add_special_tokens=False)
    budgets: list[Any] = [AnswerBudget(end_of_thinking, settings.max_new_tokens, prompt)] if thinking else []
    sequences = loaded.model.generate(
        **inputs,
        **_generate_arguments(loaded, settings, attempt),
        max_new_tokens=settings.max_new_tokens + thinking,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList(budgets),
    )
    new = sequences[:, prompt.tokens :]
    ends = _end_token_ids(loaded)
    decoded = loaded.processor.batch_decode(new, skip_special_tokens=True)
    cuts = [row[-1] not in ends if row else False for row in new.tolist()]
    opened = [text.rstrip().endswith(OPENED) for text in texts]
    return [Answer(*each) for each in zip(decoded, cuts, opened, strict=True)]


def _generate_arguments(loaded: Loaded, settings: CaptionGenerationSettings, attempt: int) -> dict[str, Any]:
    """Return {name: value} of keyword arguments of transformers' `generate`. `do_sample` is off: AddressedSampling samples instead.
    attempt: 0, or 1 for a second attempt, which forbids shorter repetitions unless it samples"""
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "use_cache": True}
    if settings.decoding == "beams":
        options |= {"num_beams": settings.num_beams, "length_penalty": settings.length_penalty}
    penalty = settings.repetition_penalty
    if penalty is None and settings.decoding == "sample" and loaded.model.config.model_type == "blip":
        penalty = SAMPLING_PENALTY
    ngram = settings.no_repeat_ngram_size
    if attempt and settings.decoding != "sample":
        ngram = min(ngram or AGAIN_NGRAM, AGAIN_NGRAM)
    options |= {"repetition_penalty": penalty} if penalty is not None else {}
    options |= {"no_repeat_ngram_size": ngram} if ngram is not None else {}
    options |= {"min_new_tokens": settings.min_new_tokens} if settings.min_new_tokens else {}
    banned = banned_tokens(loaded.tokenizer, settings.words_to_avoid)
    return options | ({"bad_words_ids": banned} if banned else {})


def banned_tokens(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """Return the token sequences of banned words: with and without a leading space, as written, in lower case and capitalized."""
    forms = {form for word in words if (plain := word.strip()) for form in (plain, plain.lower(), plain.capitalize())}
    spelled = (
        tokenizer.encode(f"{space}{form}", add_special_tokens=False) for form in sorted(forms) for space in ("", " ")
    )
    unknown = tokenizer.unk_token_id
    return [list(each) for each in dict.fromkeys(map(tuple, spelled)) if each and unknown not in each]


def _model_inputs(
    loaded: Loaded, queries: Sequence[Query], settings: CaptionGenerationSettings
) -> tuple[dict[str, Any], list[str]]:
    """Return (the processor's tensors on the model's device, the prompt of each query; rendered by the template for chat models)."""
    images: list[Any] = [each.image for each in queries]
    texts = [each.prompt for each in queries]
    arguments: dict[str, Any] = {"return_tensors": "pt"}
    if loaded.chat:
        texts = [_chat_text(loaded, each, bool(getattr(settings, "thinking_tokens", None))) for each in queries]
        images = [[image] for image in images]
        bos = loaded.tokenizer.bos_token  # most templates write it, and the tokenizer would add a second one
        arguments |= {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
    if any(texts):
        arguments |= {"text": texts, "padding": True, "padding_side": "left"}
    inputs = loaded.processor(images=images, **arguments)
    placed = {name: value.to(loaded.device) for name, value in inputs.items() if hasattr(value, "to")}
    floats = {name: value.to(loaded.dtype) for name, value in placed.items() if value.is_floating_point()}
    return placed | floats, texts


def _chat_text(loaded: Loaded, query: Query, thinks: bool) -> str:
    """Render the chat prompt with the model's template, and append the start of the answer. Raises ProblemsError if that fails.
    thinks: whether to ask for thinking, if the template has the option"""
    system, prompt, start = (
        _without_placeholders(loaded.processor, text) for text in (query.system, query.prompt, query.start)
    )
    messages: list[dict[str, Any]] = []
    messages += [{"role": "system", "content": [{"type": "text", "text": system}]}] if system.strip() else []
    messages += [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    template = loaded.processor.chat_template or loaded.tokenizer.chat_template
    arguments: dict[str, Any] = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    arguments |= {"enable_thinking": thinks} if "enable_thinking" in str(template) else {}
    try:
        with time_limit(TEMPLATE_SECONDS):
            # ProcessorMixin's method, since SmolVLM's override needs a video processor
            text = str(ProcessorMixin.apply_chat_template(loaded.processor, messages, **arguments))
    except TimeoutError as error:
        what = f"The model's chat template takes longer than {TEMPLATE_SECONDS:g} seconds"
        raise ProblemsError.one(what, "vlm.model", "download the model again", "captioner.template") from error
    except Exception as error:  # a template is a program
        what = f"The model's chat template refuses the prompt: {str(error)[:200]}"
        raise ProblemsError.one(what, "vlm.system_prompt", "empty the system prompt", "captioner.template") from error
    if str(getattr(loaded.processor, "image_token", None) or "") not in text:
        what, fix = "The model's chat template does not support images", "download the model again"
        raise ProblemsError.one(what, "vlm.model", fix, "captioner.template")
    return text + start


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Context that raises TimeoutError in Python code that runs longer: a template may loop forever, and a thread cannot be killed."""
    end, earlier = time.monotonic() + seconds, sys.gettrace()

    def check_time(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError
        return check_time

    sys.settrace(check_time)
    try:
        yield
    finally:
        sys.settrace(earlier)


def _without_placeholders(processor: Any, text: str) -> str:
    """Return the text without the processor's image and video placeholders."""
    for name in ("image_token", "video_token"):
        text = text.replace(str(getattr(processor, name, None) or "<image>"), "")
    return text


def _end_token_ids(loaded: Loaded) -> set[int]:
    """Return the ids of the tokens that end an answer or pad the rows after it."""
    tokenizer, config = loaded.tokenizer, loaded.model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ids = {*ends, config.pad_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id}
    return {each for each in ids if each is not None}


class PromptLength(LogitsProcessor):
    """Logits processor that records the number of prompt tokens in `tokens`, which each kind of model counts differently."""

    tokens = 0
    _recorded = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Record the length at the first step; return the scores unchanged."""
        if not self._recorded:
            self._recorded, self.tokens = True, input_ids.shape[1]
        return scores


class AddressedSampling(LogitsProcessor):
    """Logits processor that samples tokens with draws keyed by (seed, image, attempt, position).

    Neither the order of images nor the batch changes a caption. All but the sampled token are masked; greedy decoding then takes it.
    """

    def __init__(self, settings: CaptionGenerationSettings, keys: Sequence[str], attempt: int, prompt: PromptLength):
        """`keys`: name of each row's image; `attempt`: 0 or 1; `prompt`: records the length of the prompt."""
        self._address, self._keys, self._prompt = (settings.seed, attempt), keys, prompt
        self._warpers: list[Any] = [TemperatureLogitsWarper(settings.temperature)]
        self._warpers += [TopKLogitsWarper(settings.top_k)] if settings.top_k is not None else []
        self._warpers += [TopPLogitsWarper(settings.top_p)] if settings.top_p is not None else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [rows, vocabulary] that are 0 for the sampled token of each row and -inf for all others."""
        seed, attempt = self._address
        position = input_ids.shape[1] - self._prompt.tokens
        chances = scores.float()
        for warper in self._warpers:
            chances = warper(input_ids, chances)
        cumulative = chances.softmax(-1).cpu().double().cumsum(-1)
        draws = torch.tensor(
            [[uniform(seed, "captioning", key, attempt, position)] for key in self._keys], dtype=torch.float64
        )
        chosen = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        scores_of_chosen = torch.full_like(scores, -torch.inf)
        return scores_of_chosen.scatter(-1, chosen.to(scores.device), 0.0)


class AnswerBudget(StoppingCriteria):
    """Stopping criterion: ends a row after `tokens` tokens of answer, not counting its thinking.

    end_of_thinking   token ids of </think>
    tokens            limit for the answer
    """

    def __init__(self, end_of_thinking: Sequence[int], tokens: int, prompt: PromptLength):
        self._end_of_thinking, self._tokens, self._prompt = list(end_of_thinking), tokens, prompt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        """Return whether each row is complete: bool [rows]."""
        new, size = input_ids[:, self._prompt.tokens :], len(self._end_of_thinking)
        if new.shape[1] < size + self._tokens:
            return torch.zeros(len(new), dtype=torch.bool, device=new.device)
        before = new[:, : new.shape[1] - self._tokens]  # it must end here for that many to follow
        mark = torch.tensor(self._end_of_thinking, device=new.device)
        return (before.unfold(1, size, 1) == mark).all(-1).any(-1)
