"""The sources of text states for captions and sample prompts; decides when they are encoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from core.dataset.caches.store import TEXTS
from core.dataset.caches.texts import ENCODED_AT_ONCE, EncodeText, TextCache
from core.diffusion.text_states import TextStates
from core.families.clip import join_whole, join_windows
from core.families.prompt_weights import runs_of
from core.generation.prompt.sample_prompts import reads_edits
from core.generation.prompt.states import encode_texts
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.training.building.latents import encoders_fit
from core.training.building.network_files import merged_identity
from core.training.loop.loss_readback import DAMAGED_FIX
from core.training.loop.prior import captions as class_captions
from core.training.loop.samples import FrozenPromptTexts, PromptTexts, TrainedPromptTexts, reading_of
from core.training.loop.sources import FrozenText, Text, TrainedText
from core.training.memory.plan import CAPTIONS

if TYPE_CHECKING:
    from core.training.building.inputs import Inputs
    from core.training.building.models import Models


FEW = 8 * ENCODED_AT_ONCE  # captions that are encoded before the first step


class Texts:
    """Encodes the captions and prompts of a run.

    encoded_in_steps   what steps encode besides captions, [IMAGES] or [], for the memory forecast; None: steps encode no captions
    precision          of the text encoders
    reading            how sample prompts are tokenized and weighted
    """

    def __init__(self, inputs: Inputs, models: Models, encoded_in_steps: Collection[str] | None = None):
        self._inputs, self._job, self._models, self._encoded_in_steps = inputs, inputs.job, models, encoded_in_steps
        self.precision = inputs.precision
        self.reading = reading_of(inputs.job, inputs.family_name)

    def sources(self) -> tuple[Text, PromptTexts]:
        """Return the sources of text states for training and for samples."""
        if self._inputs.method.trains_text:
            return TrainedText(self.encode), TrainedPromptTexts(
                self.encode_prompts, reads_edits(self._inputs.job.samples)
            )
        return self.frozen()

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Return the text states of captions with the encoders' present weights. The encoders are loaded at first use."""
        return self._encode(captions, self._encode_captions)

    def encode_prompts(self, prompts: Sequence[str], tokens: int | None = None) -> TextStates:
        """Return the text states of prompts, parsed as on the Generate page. tokens: length to pad to; None pads to the longest prompt"""
        return self._encode(prompts, partial(self._encode_prompts, tokens))

    def frozen(self) -> tuple[FrozenText, FrozenPromptTexts]:
        """Encode the sample prompts and, unless steps do it, the captions of the first epoch; release the encoders. Returns the sources of
        text states for training and for samples. Raises Cancelled."""
        inputs, context, started = self._inputs, self._inputs.context, False

        def text_of(tokens: int | None) -> FrozenText:
            def encode(captions: Sequence[str]) -> TextStates:
                if not started:  # a started training stops at the end of a step
                    context.check()
                with torch.no_grad():
                    return self.encode_prompts(captions, tokens) if tokens else self.encode(captions)

            progress = partial(context.stage, "training; encoding captions")
            return FrozenText(self._cache(tokens), encode, release, context.device, progress)

        def release() -> None:
            if started:  # before, encoders stay until everything is encoded
                self._models.release_encoders()
                context.stage("training")

        context.stage("encoding captions")
        text = text_of(None)
        prior_captions = class_captions(self._job, inputs.plan.placed)
        first = [*inputs.plan.captions(0), *inputs.validation.captions(), *prior_captions]
        missing = text.count_missing(first)
        text.encodes_in_steps = self._encodes_in_steps(missing)
        text.need(first)
        if text.encodes_in_steps:
            text.encode(first if missing <= FEW else prior_captions)
        prompts = FrozenPromptTexts(inputs.prompts, self.reading, text_of, reads_edits(inputs.job.samples))
        prompts.encode()
        self._models.release_encoders()
        started = True
        return text, prompts

    def _encodes_in_steps(self, missing: int) -> bool:
        """Return whether the first step that needs a caption encodes it, or reads it from the cache.

        missing   number of captions that are not cached. Up to FEW are encoded before the first step; on a GPU all cached entries are read
                  then, too, as the encoders may not fit later to encode damaged entries again
        """
        if self._encoded_in_steps is None:
            return False
        if missing <= FEW:
            return self._inputs.context.device.startswith("cpu") and self._inputs.context.processes.count == 1
        return encoders_fit(self._inputs, [*self._encoded_in_steps, CAPTIONS])

    def _cache(self, tokens: int | None) -> TextCache:
        """Return the cache of captions, or with `tokens` the cache of prompts of this token length."""
        inputs, job = self._inputs, self._job
        identity = inputs.family.digest(
            inputs.model, "text_encoders", memo=inputs.memo, kohya_projection=job.model.kohya_projection
        ) + merged_identity(inputs.files)
        weighted_suffix = " weighted, mean kept" if self._keeps_mean else " weighted"
        # repr(self.reading) is part of the key: renaming its class or a field invalidates the cache
        prompt_suffix = f" prompts each alone {self.reading}"
        suffix = prompt_suffix if tokens else weighted_suffix if job.captions.weighted_captions else ""
        return TextCache(
            inputs.context.workspace.cache / TEXTS.folder,
            identity + suffix + (" fp8" if self._models.fp8_text else ""),
            clip_skip=self.reading.clip_skip,
            max_token_length=tokens or job.captions.max_token_length,
            dtype=inputs.precision.name,
            room_bytes=job.memory.text_cache_bytes,
            at_once=1 if tokens else ENCODED_AT_ONCE,
            warn=inputs.context.warn,
        )

    def _encode(self, captions: Sequence[str], read: EncodeText) -> TextStates:
        """Return the text states of captions by the training method, which calls `read` to encode texts. Raises ProblemsError if frozen
        encoders output NaN or infinity."""
        method = self._inputs.method
        self._models.encoders()
        # Frozen encoders are in the compute dtype, so cached states are the same for every method.
        trains = method.trains_text
        with self.precision.autocast(self._inputs.context.device) if trains else nullcontext():
            states = method.encode(captions, read)
        if not trains and not states.context.isfinite().all():
            what = "The text encoder of the base model outputs NaN or infinite values"
            raise ProblemsError.one(what, str(self._inputs.model), DAMAGED_FIX, code="model.not-finite")
        return states

    def _encode_prompts(self, tokens: int | None, prompts: Sequence[str]) -> TextStates:
        """Return the text states of prompts, padded to `tokens` tokens; None pads to the longest prompt."""
        return encode_texts(self._models.encoders(), prompts, self.reading, tokens)

    def _encode_captions(self, captions: Sequence[str]) -> TextStates:
        """Return the text states of captions by the caption settings. The method has replaced its new tokens in them already."""
        settings = self._job.captions
        return self._inputs.family.encode_captions(
            self._models.encoders(),
            captions,
            max_token_length=settings.max_token_length,
            clip_skip=self.reading.clip_skip,
            join=join_whole if self._keeps_mean else join_windows,
            runs=runs_of if settings.weighted_captions else None,
            normalize="original" if self._keeps_mean else "none",
            filled_with_end=self._keeps_mean,
        )

    @property
    def _keeps_mean(self) -> bool:
        """Whether weights of captions keep the mean of the text states, as in sd-scripts 0.9."""
        return self._job.captions.weighted_captions and self._job.captions.weighted_mean == "kept"
