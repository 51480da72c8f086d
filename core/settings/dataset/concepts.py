"""`Concept`: a dataset folder with its effective settings, its own where set and else those of the dataset."""

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
    """An enabled dataset folder with its effective settings.

    number         index among the enabled folders
    source         the folder as declared, with the settings that it overrides
    images, captions, validation  effective settings
    control        whether the images need control images; `conditioning_data_dir` then contains those instead of masks
    control_fit    how control images are resized: as the images ("aligned"), or as sd-scripts 0.10 ("stretched") or 0.9 ("area")
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
        """The folder's role: "train", "regularization" or "validation"."""
        return self.source.role

    @property
    def reads_partners(self) -> bool:
        """Whether training reads control images or masks from files."""
        return self.control or self.images.masked_loss

    @property
    def holds_out(self) -> bool:
        """Whether images of the folder are held out for validation: all of them, a folder of validation images, or a split."""
        named = self.role == "validation" or bool(self.source.validation_images)
        return named or self.validation.validation_split > 0

    @property
    def triggers(self) -> list[str]:
        """Trigger phrases of a training folder: the trigger word, and "identifier class" if it has an identifier; [] for other roles."""
        source, trained = self.source, self.role == "train"
        both = " ".join(word for word in (source.identifier, source.class_word) if word) if source.identifier else ""
        return [text.strip() for text in (self.captions.trigger_word or "", both) if trained and text.strip()]

    @cached_property
    def batch_group(self) -> str:
        """Key of the folders whose images may share batches. It includes batch size and network multiplier, which must be equal."""
        return self.batch_group_of(1)

    def batch_group_of(self, processes: int) -> str:
        """Return `batch_group` for batches that combine those of several processes."""
        group = self.source.batch_group
        agreed = f"{self.images.train_batch_size * processes}/{self.images.network_multiplier:g}"
        return agreed if group is None else f"{group}/{agreed}"


def concepts(dataset: DatasetSettings, captions: CaptionSettings, validation: ValidationSettings) -> list[Concept]:
    """Return every enabled folder with its effective settings: first the short forms `folder` and `reg_data_dir`, then `sources`."""
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
    """Return {"trigger_word": None} for regularization images, which show other instances of the class; {} for others.

    A trigger word that the folder itself sets replaces it.
    """
    return {"trigger_word": None} if source.role == "regularization" else {}


def _common(dataset: DatasetSettings) -> ImageSettings:
    """Return the dataset's image settings, which folders can override."""
    return ImageSettings.model_construct(**{name: getattr(dataset, name) for name in ImageSettings.model_fields})


def _sources(dataset: DatasetSettings) -> list[Source]:
    """Return the enabled folders; for a dataset class, placeholders for its training and its regularization images."""
    name = dataset.dataset_class
    return [Source(folder=name), Source(folder=name, role="regularization")] if name else dataset.all_sources()


def concepts_of(job: TrainJob) -> list[Concept]:
    """Return the `concepts` of a training, without settings that its method does not use, as in sd-scripts.

    Network multipliers are ignored without a network, where they would only separate batches; caption templates without new tokens.
    """
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
    """Return the job's caption settings. For textual inversion with a single token and no trigger word, the token is the trigger word, so
    that all captions contain it."""
    words = job.embedding.words
    if not job.method.traits.new_words or len(words) != 1 or job.captions.trigger_word:
        return job.captions
    return job.captions.model_copy(update={"trigger_word": words[0]})


def any_folder(job: TrainJob, uses: Callable[[Concept], object]) -> bool:
    """Return whether `uses` is true for any folder of the job; without folders, for the dataset's settings."""
    common = Concept(0, Source(folder="."), _common(job.dataset), job.captions, job.validation)
    return any(uses(folder) for folder in concepts_of(job) or [common])


def training_resolution(job: TrainJob) -> tuple[int, int]:
    """Return (width, height) in pixels of the first training folder's resolution."""
    sizes = [concept.images.resolution for concept in concepts_of(job) if concept.role == "train"]
    size = sizes[0] if sizes else job.dataset.resolution
    return size if isinstance(size, tuple) else (size, size)


def overridden_settings(source: Source) -> dict[str, Any]:
    """Return {name: value} of the shared settings that this folder overrides, in the order of declaration."""
    return {name: value for group in SHARED for name, value in _overrides(source, group).items()}


def _overrides(source: Source, group: type[Settings]) -> dict[str, Any]:
    """Return {name: value} of the settings of `group` that the folder overrides."""
    return {
        name: value
        for name in fields_of(group)
        if name not in ONE_FOR_ALL and (value := getattr(source, name)) is not None
    }


PLAIN = Concept(0, Source(folder="."), ImageSettings(), CaptionSettings(), ValidationSettings())
