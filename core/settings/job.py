"""Job models: the groups of settings of each kind of job, validated as a whole before anything starts."""

from pydantic import Field

from core import extensions, tasks
from core.settings.base import Job, Settings, kohya_setting, setting, value_of
from core.settings.caption import CaptionWriteSettings
from core.settings.captioning.edits import CaptionEditSettings
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.class_images import ClassImageSettings
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.validation import ValidationSettings
from core.settings.generation.conditioning import SizeSettings, StartNoiseSettings
from core.settings.generation.controls import ControlSettings
from core.settings.generation.detailer import DetailerSettings
from core.settings.generation.generate import GenerateSettings
from core.settings.generation.grid import GridSettings
from core.settings.generation.high_resolution import DeepShrinkSettings, GradualLatentSettings, HiresSettings
from core.settings.generation.image_to_image import ImageToImageSettings
from core.settings.generation.memory import GenerationMemorySettings
from core.settings.generation.output import OutputSettings
from core.settings.generation.perceptual import PerceptualSettings
from core.settings.generation.prompts import PromptSettings
from core.settings.generation.refiner import RefinerSettings
from core.settings.generation.regions import RegionSettings
from core.settings.hub import HubSettings
from core.settings.logging import LoggingSettings
from core.settings.memory import MemorySettings
from core.settings.method import MethodSettings
from core.settings.model import ModelSettings
from core.settings.network import NetworkSettings
from core.settings.noise import NoiseSettings
from core.settings.optimization.optimizer import OptimizerSettings
from core.settings.optimization.schedule import ScheduleSettings
from core.settings.resume import ResumeSettings
from core.settings.samples import SampleSettings
from core.settings.saving import SavingSettings
from core.settings.sharding import ShardingSettings


class EmbeddingSettings(Settings):
    """New tokens of a textual inversion, and their embeddings."""

    token_string: str | None = kohya_setting(
        None,
        first="word",
        brief="A word that the model does not know.",
        only="embedding",
        source="Gal et al. 2022, arXiv:2208.01618",
        help="The new token to train, such as zkw; captions without it get it in front. Separate several tokens with commas to train them together. It must not be a word that the model already knows.",
    )
    num_vectors_per_token: int = kohya_setting(
        1,
        within=(1, 75),
        title="Vectors per token",
        unit="vectors",
        help="More vectors hold more detail; each takes one of a prompt's 75 tokens. 1 to 8 is usual.",
    )
    init_word: str | None = kohya_setting(
        None,
        title="Initializer word",
        first="word",
        brief="A known word close in meaning, such as cat.",
        only="embedding",
        help="Training starts from this word's embedding; pick one close in meaning, such as cat. Separate several with commas for several tokens. Empty starts from the mean of all token embeddings.",
    )
    embedding_weights: str | None = setting(
        None,
        title="Initial embedding",
        widget="file",
        kohya="weights",
        help="A .safetensors or .pt embedding to continue training from.",
        names="path or name",
        holds="embedding",
    )
    preserve_embedding_norm: bool = setting(
        False,
        source="OneTrainer",
        help="After each step, scales the vectors to the median length of the model's own embeddings, so that the token does not drown out the rest of a prompt.",
    )
    extended: bool = setting(
        False,
        title="Extended textual inversion (XTI)",
        kohya="train_textual_inversion_XTI",
        source="Voynov et al. 2023, arXiv:2303.09522",
        help="Trains a separate embedding for each of the 16 cross-attention layers. SD 1.x and 2.x only; few programs can load such files.",
        costs="Captions are encoded 16 times at each step.",
    )

    @property
    def words(self) -> list[str]:
        """The new tokens, in order."""
        return [word.strip() for word in (self.token_string or "").split(",") if word.strip()]

    @property
    def init_words(self) -> list[str | None]:
        """Initializer word of each new token (None without one); a single initializer is used for all tokens."""
        initializers = [word.strip() for word in (self.init_word or "").split(",") if word.strip()]
        if len(initializers) <= 1:
            return [initializers[0] if initializers else None] * len(self.words)
        return [initializers[index] if index < len(initializers) else None for index in range(len(self.words))]

    def summary(self) -> str:
        """Return tokens and initializers in one line."""
        parts = [f"token '{self.token_string}'" if self.token_string else "no token"]
        parts += [f"{self.num_vectors_per_token} vectors"] if self.num_vectors_per_token > 1 else []
        parts += [f"initializer '{self.init_word}'"] if self.init_word else []
        return ", ".join(parts + (["one per layer (XTI)"] if self.extended else []))


class PrepareSettings(Settings):
    """Files that preparing a dataset also writes for other programs."""

    write_metadata: str | None = setting(
        None,
        title="Metadata file",
        kohya="out_json",
        help="Writes a fine-tuning .json with each image's caption, tags and training size, as merge_captions and prepare_buckets_latents do. An existing file is moved to the trash folder next to it.",
        names="path",
    )
    full_path: bool = kohya_setting(
        False,
        title="Full paths",
        help="Lists images in the metadata by full path; off, by path within the folder without extension.",
    )
    write_npz: bool = setting(
        False,
        title="Write .npz caches",
        kohya="cache_latents_to_disk",
        help="Writes latents next to the images in sd-scripts' format. Existing files are kept.",
    )


SCHEMA_VERSION = 3


class TrainJob(Job):
    """A training run. All groups are always present; the form grays out those that the method does not use."""

    method: MethodSettings = Field(default_factory=MethodSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    captions: CaptionSettings = Field(default_factory=CaptionSettings)
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings, title="Length and scheduler")
    noise: NoiseSettings = Field(default_factory=NoiseSettings, title="Noise and loss")
    memory: MemorySettings = Field(default_factory=MemorySettings, title="Memory and speed")
    sharding: ShardingSettings = Field(default_factory=ShardingSettings, title="DeepSpeed ZeRO")
    saving: SavingSettings = Field(default_factory=SavingSettings)
    resume: ResumeSettings = Field(default_factory=ResumeSettings)
    hub: HubSettings = Field(default_factory=HubSettings, title="Hugging Face Hub")
    samples: SampleSettings = Field(default_factory=SampleSettings)
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)

    @property
    def starts_at_base(self) -> bool:
        """Whether step 0 is the unchanged base model: no new tokens, no initial or merged weights, no training state to resume."""
        traits = self.method.traits
        merged = traits.uses_network and self.network.base_weights
        loaded = traits.initial and value_of(self, traits.initial)
        return not (traits.new_words or merged or loaded or self.resume.resume)


def new_project() -> TrainJob:
    """Return the job of a new project. It has validation images, which are off by default so that imports and commands train on all."""
    return TrainJob(validation=ValidationSettings(best_checkpoint="auto"))


class PrepareJob(TrainJob):
    """Fills the caches that a training with the same settings uses."""

    prepare: PrepareSettings = Field(default_factory=PrepareSettings, title="Files for other programs")


class GenerateJob(Job):
    """Generates images."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    prompts: PromptSettings = Field(default_factory=PromptSettings, title="Prompts from files")
    image_to_image: ImageToImageSettings = Field(default_factory=ImageToImageSettings)
    hires: HiresSettings = Field(default_factory=HiresSettings, title="Hires fix")
    detailer: DetailerSettings = Field(default_factory=DetailerSettings)
    deep_shrink: DeepShrinkSettings = Field(default_factory=DeepShrinkSettings, title="Deep Shrink")
    gradual_latent: GradualLatentSettings = Field(default_factory=GradualLatentSettings, title="Gradual Latent")
    refiner: RefinerSettings = Field(default_factory=RefinerSettings)
    controls: ControlSettings = Field(default_factory=ControlSettings, title="ControlNet")
    perceptual: PerceptualSettings = Field(default_factory=PerceptualSettings, title="CLIP and VGG guidance")
    regions: RegionSettings = Field(default_factory=RegionSettings)
    sizes: SizeSettings = Field(default_factory=SizeSettings, title="SDXL sizes")
    start_noise: StartNoiseSettings = Field(default_factory=StartNoiseSettings)
    generation_memory: GenerationMemorySettings = Field(default_factory=GenerationMemorySettings, title="Memory")
    output: OutputSettings = Field(default_factory=OutputSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings, title="Memory and speed")


class GridJob(GenerateJob):
    """Generates a grid of images."""

    grid: GridSettings = Field(default_factory=GridSettings, title="X/Y/Z grid")


class CaptionJob(Job):
    """Reports on the captions of a folder and writes missing ones."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    captions: CaptionSettings = Field(default_factory=CaptionSettings)
    caption: CaptionWriteSettings = Field(default_factory=CaptionWriteSettings)


class CaptionEditJob(Job):
    """Changes the captions of many images of a dataset."""

    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    captions: CaptionSettings = Field(default_factory=CaptionSettings)
    edit_captions: CaptionEditSettings = Field(default_factory=CaptionEditSettings, title="Change")


class ClassImagesJob(Job):
    """Generates regularization images of a class with the base model, at the resolutions of the dataset."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    captions: CaptionSettings = Field(default_factory=CaptionSettings)
    class_images: ClassImageSettings = Field(default_factory=ClassImageSettings, title="Regularization images")
    memory: MemorySettings = Field(default_factory=MemorySettings, title="Memory and speed")


JOBS = tasks.JobModels()

extensions.load()  # what is registered adds its tasks, choices and groups
