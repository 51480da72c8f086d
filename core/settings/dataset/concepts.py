"""`Concept`: a dataset folder with its effective settings: its own if set, else those of all folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from core.settings.base import Settings, fields_of
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import ONE_FOR_ALL, SHARED, Source
from core.settings.dataset.validation import ValidationSettings

if TYPE_CHECKING:  # methods register at the end of core.settings.job and import this module
    from core.settings.job import TrainJob


@dataclass(frozen=True, eq=False)  # one object for each folder of a job
class Concept:
    """An enabled folder. number: its index among the enabled folders.

    source     the folder with its own settings
    images, captions, validation   its effective settings
    control    whether its images need control images; `conditioning_data_dir` then has those instead of masks
    control_fit   how control images are resized: as the images ("aligned"), or as sd-scripts 0.10 ("stretched") or 0.9 ("area")
    """

    number: int
    source: Source
    images: ImageSettings
    captions: CaptionSettings
    validation: ValidationSettings
    control: bool = False
    control_fit: str = "aligned"

    @property
    def role(self) -> str:
        return self.source.role

    @property
    def reads_partners(self) -> bool:
        """Whether training reads control images or masks from files."""
        return self.control or self.images.masked_loss

    @property
    def holds_out(self) -> bool:
        """Whether the settings hold out images of the folder for validation."""
        named = self.role == "validation" or bool(self.source.validation_images)
        return named or self.validation.validation_split > 0

    @property
    def triggers(self) -> list[str]:
        """Its trigger phrases: the trigger word, and identifier and class if it has an identifier; none if it is not trained."""
        source, trained = self.source, self.role == "train"
        both = " ".join(word for word in (source.identifier, source.class_word) if word) if source.identifier else ""
        return [text.strip() for text in (self.captions.trigger_word or "", both) if trained and text.strip()]

    @cached_property
    def batch_group(self) -> str:
        """Folders with an equal group share batches. It contains batch size and network strength, which they must agree in."""
        return self.batch_group_of(1)

    def batch_group_of(self, processes: int) -> str:
        """`batch_group` for batches that are the union of those of several processes."""
        group = self.source.batch_group
        agreed = f"{self.images.train_batch_size * processes}/{self.images.network_multiplier:g}"
        return agreed if group is None else f"{group}/{agreed}"


def concepts(dataset: DatasetSettings, captions: CaptionSettings, validation: ValidationSettings) -> list[Concept]:
    """Every enabled folder with its effective settings, the short forms (`folder`, `reg_data_dir`) first."""
    common = _common(dataset)
    return [
        Concept(
            number,
            source,
            common.model_copy(update=_overrides(source, ImageSettings)),
            captions.model_copy(update=_without_trigger(source) | _overrides(source, CaptionSettings)),
            validation.model_copy(update=_overrides(source, ValidationSettings)),
        )
        for number, source in enumerate(_sources(dataset))
    ]


def _without_trigger(source: Source) -> dict[str, Any]:
    """Regularization images show others of the class, so they get only a trigger word that their folder has itself."""
    return {"trigger_word": None} if source.role == "regularization" else {}


def _common(dataset: DatasetSettings) -> ImageSettings:
    """The image settings of all folders."""
    return ImageSettings.model_construct(**{name: getattr(dataset, name) for name in ImageSettings.model_fields})


def _sources(dataset: DatasetSettings) -> list[Source]:
    """The enabled folders; for a dataset class one placeholder for its images and one for its regularization images."""
    name = dataset.dataset_class
    return [Source(folder=name), Source(folder=name, role="regularization")] if name else dataset.all_sources()


def concepts_of(job: TrainJob) -> list[Concept]:
    """`concepts` of a training. Without a network, network multipliers are ignored, which would only separate batches; without
    new tokens, caption templates are, as in sd-scripts."""
    all_concepts = concepts(job.dataset, captions_in_force(job), job.validation)
    traits, fit = job.method.traits, job.dataset.control_fit
    plain = {} if traits.uses_network else {"network_multiplier": ImageSettings().network_multiplier}
    written = {} if traits.new_words else {"caption_template": "none"}
    return [
        replace(
            each,
            images=each.images.model_copy(update=plain),
            captions=each.captions.model_copy(update=written),
            control=traits.control_images,
            control_fit=fit,
        )
        for each in all_concepts
    ]


def captions_in_force(job: TrainJob) -> CaptionSettings:
    """The caption settings. For textual inversion with a single token and no trigger word, the token is the trigger word, so
    that all captions have it."""
    words = job.embedding.words
    if not job.method.traits.new_words or len(words) != 1 or job.captions.trigger_word:
        return job.captions
    return job.captions.model_copy(update={"trigger_word": words[0]})


def any_folder(job: TrainJob, uses: Callable[[Concept], object]) -> bool:
    """Whether `uses` is true for any folder; without folders, for the settings of all folders."""
    common = Concept(0, Source(folder="."), _common(job.dataset), job.captions, job.validation)
    return any(uses(folder) for folder in concepts_of(job) or [common])


def training_resolution(job: TrainJob) -> tuple[int, int]:
    """(width, height) of the training: the resolution of the first training folder."""
    sizes = [concept.images.resolution for concept in concepts_of(job) if concept.role == "train"]
    size = sizes[0] if sizes else job.dataset.resolution
    return size if isinstance(size, tuple) else (size, size)


def overridden_settings(source: Source) -> dict[str, Any]:
    """{name: value} of the shared settings that this folder overrides, in the order of declaration."""
    return {name: value for group in SHARED for name, value in _overrides(source, group).items()}


def _overrides(source: Source, group: type[Settings]) -> dict[str, Any]:
    return {
        name: value
        for name in fields_of(group)
        if name not in ONE_FOR_ALL and (value := getattr(source, name)) is not None
    }


PLAIN = Concept(0, Source(folder="."), ImageSettings(), CaptionSettings(), ValidationSettings())  # nothing set
