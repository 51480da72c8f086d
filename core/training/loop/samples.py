"""Sample images of a run: the same prompts, seeds and noise each time, so that only the training changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families import family
from core.families.locate import family_of
from core.families.precision import vae_type
from core.families.token_count import WINDOW, count_tokens
from core.families.trained_size import USUAL_GUIDANCE, own_guidance
from core.generation.prompt.editing import Pass, at_steps
from core.generation.prompt.sample_prompts import SamplePrompt, control_image, filled, read_prompts
from core.generation.prompt.states import PromptStates, Reading, prompt_and_opposite
from core.record.events import CONTROL_IMAGE, WITHOUT_CONTROL, Sampled
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
    from core.training.loop.passes import Passes
    from core.training.loop.sources import FrozenText
    from core.training.loop.trackers import Tracker


KOHYA_WINDOWS = LENGTHS[-1] // WINDOW  # sd-scripts reads prompts no further
KOHYA_SIZE = (512, 512)  # sd-scripts samples at this size whatever the model and the resolution are


def sample_size(job: TrainJob) -> tuple[int, int]:
    """(width, height) of samples without a size of their own: the training resolution."""
    return KOHYA_SIZE if job.samples.compatibility == "kohya" else training_resolution(job)


def prompts_of(job: TrainJob, model: Path | None = None) -> list[SamplePrompt]:
    """Every sample of a run with everything decided. Raises ProblemsError for what cannot be read.

    model  the base model, whose own guidance holds where none is set
    """
    found, _ = read_prompts(job.samples, job.method.traits.control_images)
    guidance = own_guidance(model) if model is not None else USUAL_GUIDANCE
    step = FAMILIES[family_of(model, job.model.family)].size_step if model is not None else 8
    return filled(found, job.samples, sample_size(job), guidance, step)


def reading_of(job: TrainJob, family_name: str) -> Reading:
    """How the prompts of a run's samples are read; as sd-scripts samples where that is asked for."""
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
    """[(steps done, prompt and negative prompt from then on)]"""
    return at_steps((prompt.prompt, prompt.negative or ""), Pass(prompt.steps or 1) if edited else None)


def _all_texts(prompt: SamplePrompt, edited: bool) -> list[str]:
    """Both texts; of an edited prompt each of all steps once."""
    moments = _texts_at(prompt, edited)
    texts = [text for _, both in moments for text in both]
    return texts if len(moments) == 1 else list(dict.fromkeys(texts))


def _states(prompt: SamplePrompt, edited: bool, states_of: Callable[[list[str]], TextStates]) -> PromptStates:
    moments, texts = _texts_at(prompt, edited), _all_texts(prompt, edited)
    read = states_of(texts)
    if len(moments) == 1:
        return prompt_and_opposite(read)
    row = {text: read.each(itemgetter(slice(at, at + 1))) for at, text in enumerate(texts)}
    made = {both: PromptStates.of([row[text] for text in both]) for _, both in moments}
    first, *later = [(begin, made[both]) for begin, both in moments]
    return replace(first[1], later=tuple(later))


class TrainedPromptTexts:
    """The text states of samples where text encoders or tokens train: encoded each time. edited: prompt editing is read"""

    def __init__(self, encode: EncodeText, edited: bool = True):
        self._encode, self._edited = encode, edited

    def need(self) -> None:
        return

    def states(self, prompt: SamplePrompt) -> PromptStates:
        return _states(prompt, self._edited, self._encode)


class FrozenPromptTexts:
    """Those of encoders that do not train: encoded once. text_of: tokens read -> what encodes texts of so many."""

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

    def need(self) -> None:
        """Encode all that can be encoded ahead."""
        for length, text in self._texts.items():
            of_it = [prompt for prompt, own in self._lengths.items() if own == length]
            text.need([words for prompt in of_it for words in _all_texts(prompt, self._edited)])

    def states(self, prompt: SamplePrompt) -> PromptStates:
        return _states(prompt, self._edited, self._texts[self._lengths[prompt]].states)


PromptTexts = TrainedPromptTexts | FrozenPromptTexts


@dataclass
class Samples:
    """The samples of a run. vae: one of its own; compiled: the model's blocks are."""

    prompts: list[SamplePrompt]
    texts: PromptTexts
    passes: Passes
    context: JobContext
    tracker: Tracker
    vae: Path | None
    compiled: bool
    _compared: bool = False  # what they are compared with is there

    def generate(self, step: int) -> None:
        """One image for each prompt, with the weights as they are now. A stop is heard at every sampling step."""
        import torch

        from core.networks.frozen import packed_copies

        passes = self.passes
        passes.method.set_strength(1.0)
        plain = (
            passes.precision.compute != passes.precision.trainable
        )  # autocast computes in another type than the weights'
        packed = nullcontext() if plain or self.compiled else packed_copies(passes.components.denoiser)
        with torch.no_grad(), passes.without_chance(), passes.method.sampling(), packed:
            self.texts.need()
            if passes.job.method.traits.control_images and not self._compared:
                self._generate_without_control()
            for index, prompt in enumerate(self.prompts):
                self.context.stage(f"generating sample {index + 1} of {len(self.prompts)}")
                image = self._generate(prompt, self._control_of(prompt))
                self._keep(image, f"{step:08d}_{index:02d}.png", step, index, prompt)
                self.tracker.image(f"sample_{index}", image, prompt.prompt, step)

    def _generate_without_control(self) -> None:
        """Each prompt's control image and its image without the ControlNet, to compare samples with. They stay the same, so
        they are made once; again where a run is resumed, perhaps with other prompts."""
        from PIL import Image

        for index, prompt in enumerate(self.prompts):
            self.context.stage(f"generating sample {index + 1} of {len(self.prompts)} without the ControlNet")
            control = self._control_of(prompt)
            assert control is not None  # prompts without one are refused before the start
            shown = Image.fromarray((control * 255).round().astype("uint8").transpose(1, 2, 0))
            self._keep(shown, f"control_{index:02d}.png", CONTROL_IMAGE, index, prompt)
            with self.passes.method.untrained():
                image = self._generate(prompt, None)
            self._keep(image, f"without_{index:02d}.png", WITHOUT_CONTROL, index, prompt)
        self._compared = True

    def _control_of(self, prompt: SamplePrompt) -> ndarray | None:
        return control_image(prompt, stretched=self.passes.job.samples.compatibility == "kohya")

    def _generate(self, prompt: SamplePrompt, control: ndarray | None) -> Image:
        import torch

        from core.generation.sample.canvas import decode
        from core.generation.sample.loop import Denoiser, Sampling, Stage, denoise, noises_of

        passes, job = self.passes, self.passes.job
        kind, components = family(passes.components.family), passes.components
        states, seed = self.texts.states(prompt), prompt.seed or 0
        sampling = Sampling(
            sampler=prompt.sampler or "",
            guidance_scale=prompt.guidance or 0.0,
            prediction=passes.objective.prediction,
            zero_terminal_snr=components.zero_terminal_snr or job.noise.zero_terminal_snr,
            program="trainer" if job.samples.compatibility == "kohya" else "",
        )
        model, stage = Denoiser(kind, passes.predict), Stage((prompt.width or 0, prompt.height or 0), prompt.steps or 1)
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
            return decode(vae, latents, kind.decode_latents)[0]

    def _keep(self, image: Image, name: str, step: int, index: int, prompt: SamplePrompt) -> None:
        from core.record import atomic

        with atomic.open_atomic(self.context.folder.samples / name) as path:
            image.save(path, format="PNG")
        self.context.journal.put(Sampled(step, index, prompt.prompt, prompt.seed or 0, f"samples/{name}"))

    @contextmanager
    def vae_on_device(self) -> Iterator[Any]:
        """The VAE, on the device only while it is used; loaded at the first sample, since cached latents need it for nothing."""
        device, components, memory = self.passes.device, self.passes.components, self.passes.job.memory
        if components.vae is None:
            kind = family(components.family)
            loaded = kind.load(components.origin, parts=("vae",), vae=self.vae, vae_dtype=vae_type(memory))
            components.vae = loaded.vae
        vae = components.vae
        try:
            yield vae.to(device)  # where memory runs out in the middle of it, what moved goes back too
        finally:
            if memory.lowram:
                components.vae = None  # read again for the next samples
            elif device != "cpu":
                vae.to("cpu")
