"""Sample images of a run, with the same prompts, seeds and noise each time, so that only the training changes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families import family
from core.families.locate import family_of
from core.families.precision import vae_type
from core.families.token_count import WINDOW, count_tokens
from core.families.trained_size import USUAL_GUIDANCE, default_guidance
from core.generation.prompt.editing import Pass, at_steps
from core.generation.prompt.sample_prompts import SamplePrompt, control_image, filled, read_prompts
from core.generation.prompt.states import PromptStates, Reading, prompt_and_opposite
from core.generation.sample.canvas import decode
from core.generation.sample.loop import Denoiser, Sampling, Stage, denoise, noises_of
from core.record import atomic
from core.record.events import CONTROL_IMAGE, WITHOUT_CONTROL, Sampled
from core.record.lazy_torch import torch
from core.settings.dataset.captions import LENGTHS
from core.settings.dataset.concepts import training_resolution
from core.settings.model import FAMILIES

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

    from core.dataset.caches.texts import EncodeText
    from core.diffusion.text_states import TextStates
    from core.record.context import JobContext
    from core.settings.job import TrainJob
    from core.settings.samples import SampleSettings
    from core.training.loop.passes import Passes
    from core.training.loop.sources import FrozenText
    from core.training.loop.trackers import Tracker


KOHYA_WINDOWS = LENGTHS[-1] // WINDOW  # sd-scripts ignores the rest of longer prompts
KOHYA_SIZE = (512, 512)  # of samples in sd-scripts, for any model and resolution


def sample_size(job: TrainJob) -> tuple[int, int]:
    """Return (width, height) of samples whose prompt sets no size: the training resolution, or KOHYA_SIZE with compatibility "kohya"."""
    return KOHYA_SIZE if job.samples.compatibility == "kohya" else training_resolution(job)


def prompts_of(job: TrainJob, model: Path | None = None) -> list[SamplePrompt]:
    """Return the sample prompts of a run with all values set. Raises ProblemsError for prompts that cannot be read.
    model: path of the base model, for its usual guidance and size step; None uses general ones"""
    prompts, _ = read_prompts(job.samples, job.method.traits.control_images)
    guidance = default_guidance(model) if model is not None else USUAL_GUIDANCE
    step = FAMILIES[family_of(model, job.model.family)].size_step if model is not None else 8
    return filled(prompts, job.samples, sample_size(job), guidance, step)


def settings_digest(prompt: SamplePrompt, settings: SampleSettings) -> str:
    """Return a hash of a sample's prompt and settings, to tell whether two samples of a run are comparable after it was resumed."""
    values = [*astuple(prompt), settings.prompt_weights, settings.compatibility]
    return sha256(json.dumps(values).encode()).hexdigest()[:16]


def reading_of(job: TrainJob, family_name: str) -> Reading:
    """Return how sample prompts are tokenized and weighted; with samples.compatibility as in sd-scripts."""
    kohya = job.samples.compatibility == "kohya"
    scaled = kohya and family_name != "sdxl"
    return Reading(
        clip_skip=job.model.clip_skip,
        weighted=job.samples.prompt_weights,
        normalize="original" if scaled else "none",
        multiples=KOHYA_WINDOWS if kohya else None,
        filled_with_end=scaled,
    )


def _texts_at(prompt: SamplePrompt, edited: bool) -> list[tuple[int, tuple[str, ...]]]:
    """Return [(sampling step, (prompt, negative prompt) from this step on)]; with `edited` an entry for each change by prompt editing."""
    return at_steps((prompt.prompt, prompt.negative or ""), Pass(prompt.steps or 1) if edited else None)


def _all_texts(prompt: SamplePrompt, edited: bool) -> list[str]:
    """Return [prompt, negative prompt]; with `edited` the texts of all steps, each once."""
    moments = _texts_at(prompt, edited)
    texts = [text for _, pair in moments for text in pair]
    return texts if len(moments) == 1 else list(dict.fromkeys(texts))


def _prompt_states(prompt: SamplePrompt, edited: bool, states_of: Callable[[list[str]], TextStates]) -> PromptStates:
    """Return the text states of a prompt and its negative prompt; with `edited` also those of later steps at which the text changes."""
    moments, texts = _texts_at(prompt, edited), _all_texts(prompt, edited)
    states = states_of(texts)
    if len(moments) == 1:
        return prompt_and_opposite(states)
    state_of = {text: states.each(itemgetter(slice(index, index + 1))) for index, text in enumerate(texts)}
    by_pair = {pair: PromptStates.of([state_of[text] for text in pair]) for _, pair in moments}
    first, *later = [(begin, by_pair[pair]) for begin, pair in moments]
    return replace(first[1], later=tuple(later))


class TrainedPromptTexts:
    """Text states of samples if text encoders or token embeddings train: encoded for each sample. edited: apply prompt editing"""

    def __init__(self, encode: EncodeText, edited: bool = True):
        self._encode, self._edited = encode, edited

    def encode(self) -> None:
        """Do nothing: `states` encodes."""

    def states(self, prompt: SamplePrompt) -> PromptStates:
        """Return the text states of a prompt and its negative prompt by the encoders' present weights."""
        return _prompt_states(prompt, self._edited, self._encode)


class FrozenPromptTexts:
    """Text states of samples with frozen text encoders: encoded once.

    reading   how prompts are tokenized and weighted
    text_of   (token length) -> source of text states of this length
    edited    apply prompt editing
    """

    def __init__(
        self,
        prompts: Sequence[SamplePrompt],
        reading: Reading,
        text_of: Callable[[int], FrozenText],
        edited: bool = True,
    ):
        self._edited = edited
        self._lengths = {prompt: reading.tokens(_all_texts(prompt, edited), count_tokens) for prompt in prompts}
        self._texts = {length: text_of(length) for length in sorted(set(self._lengths.values()))}

    def encode(self) -> None:
        """Encode the texts of all prompts that are not cached."""
        for length, source in self._texts.items():
            prompts = [prompt for prompt, tokens in self._lengths.items() if tokens == length]
            source.need([part for prompt in prompts for part in _all_texts(prompt, self._edited)])

    def states(self, prompt: SamplePrompt) -> PromptStates:
        """Return the text states of a prompt and its negative prompt, which `encode` has encoded."""
        return _prompt_states(prompt, self._edited, self._texts[self._lengths[prompt]].states)


PromptTexts = TrainedPromptTexts | FrozenPromptTexts


@dataclass
class Samples:
    """Generates the samples of a run.

    vae        path of a separate VAE; None for the base model's own
    compiled   whether the model's blocks are compiled
    """

    prompts: list[SamplePrompt]
    texts: PromptTexts
    passes: Passes
    context: JobContext
    tracker: Tracker
    vae: Path | None
    compiled: bool
    _compared: bool = False  # images without the ControlNet are generated
    _began: float = 0.0  # when the present sample was begun

    def generate(self, step: int) -> None:
        """Generate and save an image for each prompt with the present weights. A stop takes effect at the next sampling step.
        step: optimizer steps done"""
        from core.networks.frozen import packed_copies

        passes = self.passes
        passes.method.set_strength(1.0)
        casts = passes.precision.compute != passes.precision.trainable  # autocast
        packed = nullcontext() if casts or self.compiled else packed_copies(passes.components.denoiser)
        with torch.no_grad(), passes.without_dropout(), passes.method.sampling(), packed:
            self.texts.encode()
            if passes.job.method.traits.control_images and not self._compared:
                self._generate_without_control()
            for index, prompt in enumerate(self.prompts):
                self._begin(index)
                image = self._generate(prompt, self._control_of(prompt))
                self._save(image, f"{step:08d}_{index:02d}.png", step, index, prompt)
                self.tracker.image(f"sample_{index}", image, prompt.prompt, step)

    def _generate_without_control(self) -> None:
        """Save each prompt's control image and a sample without the ControlNet, to compare with.

        They do not change, so this is done once in a run, and again after resuming, as the prompts may differ.
        """
        from PIL import Image

        for index, prompt in enumerate(self.prompts):
            self._begin(index, " without the ControlNet")
            control = self._control_of(prompt)
            assert control is not None  # prompts without one are refused before the start
            preview = Image.fromarray((control * 255).round().astype("uint8").transpose(1, 2, 0))
            self._save(preview, f"control_{index:02d}.png", CONTROL_IMAGE, index, prompt)
            with self.passes.method.untrained():
                image = self._generate(prompt, None)
            self._save(image, f"without_{index:02d}.png", WITHOUT_CONTROL, index, prompt)
        self._compared = True

    def _begin(self, index: int, suffix: str = "") -> None:
        """Report that sample `index` begins, and start to measure its time. suffix: end of the message"""
        self.context.stage(f"generating sample {index + 1} of {len(self.prompts)}{suffix}")
        self._began = time.monotonic()

    def _control_of(self, prompt: SamplePrompt) -> ndarray | None:
        """Return the control image of a prompt, [3, H, W] in 0..1; None without one."""
        return control_image(prompt, stretched=self.passes.job.samples.compatibility == "kohya")

    def _generate(self, prompt: SamplePrompt, control: ndarray | None) -> Image:
        """Return the image of a prompt. control: control image, [3, H, W] in 0..1; None for methods without"""
        passes, job = self.passes, self.passes.job
        model_family, components = family(passes.components.family), passes.components
        states, seed = self.texts.states(prompt), prompt.seed or 0
        sampling = Sampling(
            sampler=prompt.sampler or "",
            guidance_scale=prompt.guidance or 0.0,
            prediction=passes.objective.prediction,
            zero_terminal_snr=components.zero_terminal_snr or job.noise.zero_terminal_snr,
            program="trainer" if job.samples.compatibility == "kohya" else "",
        )
        model = Denoiser(model_family, passes.predict)
        stage = Stage((prompt.width or 0, prompt.height or 0), prompt.steps or 1)
        latents = denoise(
            model,
            states,
            stage,
            noises_of(model, stage, [seed], sampling),
            sampling,
            control=None if control is None else torch.from_numpy(control).to(passes.device),
            on_step=lambda done, steps: self.context.check(),
        )
        with self.vae_on_device() as vae:
            return decode(vae, latents, model_family.decode_latents)[0]

    def _save(self, image: Image, name: str, step: int, index: int, prompt: SamplePrompt) -> None:
        """Write an image to samples/ and an event to the journal.

        step    optimizer steps done, or CONTROL_IMAGE or WITHOUT_CONTROL
        index   of the prompt
        """
        with atomic.open_atomic(self.context.folder.samples / name) as path:
            image.save(path, format="PNG")
        settings, seconds = settings_digest(prompt, self.passes.job.samples), time.monotonic() - self._began
        file = f"samples/{name}"
        self.context.journal.put(Sampled(step, index, prompt.prompt, prompt.seed or 0, file, settings, seconds))

    @contextmanager
    def vae_on_device(self) -> Iterator[Any]:
        """A context that provides the VAE on the device, and moves it back or releases it after. Loads the VAE if it is not loaded."""
        device, components, memory = self.passes.device, self.passes.components, self.passes.job.memory
        if components.vae is None:
            model_family = family(components.family)
            loaded = model_family.load(components.origin, parts=("vae",), vae=self.vae, vae_dtype=vae_type(memory))
            components.vae = loaded.vae
        vae = components.vae
        try:
            yield vae.to(device)  # within `try`: where memory runs out here, moved parts go back
        finally:
            if memory.lowram:
                components.vae = None  # read again for the next samples
            elif device != "cpu":
                vae.to("cpu")
