"""The jobs, each made of groups of settings, complete and validated before anything starts."""

from __future__ import annotations

from pydantic import Field

from core import extensions, tasks
from core.settings.base import Job
from core.settings.caption import CaptionWriteSettings
from core.settings.caption_edits import CaptionEditSettings
from core.settings.captions import CaptionSettings
from core.settings.class_images import ClassImageSettings
from core.settings.dataset import DatasetSettings
from core.settings.embedding import EmbeddingSettings
from core.settings.generate import GenerateSettings
from core.settings.hub import HubSettings
from core.settings.logging import LoggingSettings
from core.settings.memory import MemorySettings
from core.settings.method import MethodSettings
from core.settings.model import ModelSettings
from core.settings.network import NetworkSettings
from core.settings.noise import NoiseSettings
from core.settings.optimizer import OptimizerSettings
from core.settings.prepare import PrepareSettings
from core.settings.resume import ResumeSettings
from core.settings.samples import SampleSettings
from core.settings.saving import SavingSettings
from core.settings.schedule import ScheduleSettings
from core.settings.sharding import ShardingSettings
from core.settings.validation import ValidationSettings

SCHEMA_VERSION = 2


class TrainJob(Job):
    """A training run. All groups are always present; the form grays out what a method does not use."""

    method: MethodSettings = Field(default_factory=MethodSettings, title="Method")
    model: ModelSettings = Field(default_factory=ModelSettings, title="Model")
    dataset: DatasetSettings = Field(default_factory=DatasetSettings, title="Dataset")
    captions: CaptionSettings = Field(default_factory=CaptionSettings, title="Captions")
    network: NetworkSettings = Field(default_factory=NetworkSettings, title="Network")
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings, title="Embedding")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, title="Optimizer")
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings, title="Length and scheduler")
    noise: NoiseSettings = Field(default_factory=NoiseSettings, title="Noise and loss")
    memory: MemorySettings = Field(default_factory=MemorySettings, title="Memory and speed")
    sharding: ShardingSettings = Field(default_factory=ShardingSettings, title="DeepSpeed ZeRO")
    saving: SavingSettings = Field(default_factory=SavingSettings, title="Saving")
    resume: ResumeSettings = Field(default_factory=ResumeSettings, title="Resume")
    hub: HubSettings = Field(default_factory=HubSettings, title="Hugging Face Hub")
    samples: SampleSettings = Field(default_factory=SampleSettings, title="Samples")
    validation: ValidationSettings = Field(default_factory=ValidationSettings, title="Validation")
    logging: LoggingSettings = Field(default_factory=LoggingSettings, title="Logging")


def new_project() -> TrainJob:
    """The job of a new project: with validation images, which the declared default leaves off so that imported settings
    and command lines train on everything."""
    return TrainJob(validation=ValidationSettings(best_checkpoint="auto"))


class PrepareJob(TrainJob):
    """Fills the caches that training with the same settings will use."""

    prepare: PrepareSettings = Field(default_factory=PrepareSettings, title="Files for other programs")


class GenerateJob(Job):
    """Generates images."""

    model: ModelSettings = Field(default_factory=ModelSettings, title="Model")
    generate: GenerateSettings = Field(default_factory=GenerateSettings, title="Generate")
    memory: MemorySettings = Field(default_factory=MemorySettings, title="Memory and speed")


class CaptionJob(Job):
    """Reports on the captions of a folder and writes missing ones."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings, title="Dataset")
    captions: CaptionSettings = Field(default_factory=CaptionSettings, title="Captions")
    caption: CaptionWriteSettings = Field(default_factory=CaptionWriteSettings, title="Caption")


class CaptionEditJob(Job):
    """Changes the captions of many images of a dataset."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings, title="Dataset")
    captions: CaptionSettings = Field(default_factory=CaptionSettings, title="Captions")
    edit_captions: CaptionEditSettings = Field(default_factory=CaptionEditSettings, title="Change")


class ClassImagesJob(Job):
    """Generates regularization images of a class with the base model, at the resolutions of the dataset."""

    model: ModelSettings = Field(default_factory=ModelSettings, title="Model")
    dataset: DatasetSettings = Field(default_factory=DatasetSettings, title="Dataset")
    captions: CaptionSettings = Field(default_factory=CaptionSettings, title="Captions")
    class_images: ClassImageSettings = Field(default_factory=ClassImageSettings, title="Regularization images")
    memory: MemorySettings = Field(default_factory=MemorySettings, title="Memory and speed")


JOBS = tasks.JobModels()

extensions.load()  # what is registered adds its tasks, choices and groups
