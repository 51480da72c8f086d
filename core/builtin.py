"""The tasks that come with Atelier, a line each. Listed in core/extensions.py; loads no torch."""

from __future__ import annotations

from typing import Any

from core.extensions import later
from core.settings.base import Settings
from core.settings.captioning.edits import CaptionHistorySettings
from core.settings.job import CaptionEditJob, CaptionJob, ClassImagesJob, GenerateJob, GridJob, PrepareJob, TrainJob
from core.settings.tools import hints, images, metadata
from core.settings.tools.convert_model import BakeVaeSettings, ConvertModelSettings, ExtractVaeSettings
from core.settings.tools.convert_model import unused_settings as convert_model_unused
from core.settings.tools.file_metadata import EditMetadataSettings, HashesSettings, StripMetadataSettings
from core.settings.tools.loras import (
    ExtractLoraSettings,
    MergeLorasSettings,
    MergeLoraToModelSettings,
    ResizeLoraSettings,
    SplitDyloraSettings,
)
from core.settings.tools.merge_models import MergeModelsSettings
from core.settings.tools.merge_models import unused_settings as merge_models_unused
from core.settings.tools.model_files import (
    ConvertLoraSettings,
    DownloadSettings,
    InspectSettings,
    convert_lora_unused,
)
from core.settings.tools.upscale import LatentUpscalerSettings
from core.settings.tools.weights import (
    CheckWeightsSettings,
    CompareLorasSettings,
    InterrogateLoraSettings,
    SingularValuesSettings,
)
from core.tasks import Card, Task, register, tool

IMAGES = Card("images", "Images", "Edit copies of a folder's images; the originals are not changed.")
HINTS = Card(
    "hints",
    "Control images",
    "Make control images (hints) for training a ControlNet; the images themselves are not changed.",
)
LORAS = Card("loras", "LoRAs", "Look into LoRAs, compare and change them; results are new files.")
MODELS = Card(
    "models", "Models and files", "Look into model files of any kind, change and merge them; results are new files."
)
DOWNLOADS = Card("download", "Download any other model", "An interrupted download resumes where it stopped.")

METADATA = Card(
    "metadata",
    "Fine-tuning metadata",
    "Merge captions and tags into one JSON file, or write them back to caption files.",
    "Captions",
)


def _of_training(name: str, title: str, about: str, job: type[TrainJob], **more: Any) -> None:
    register(Task(name, title, about, job, later("core.engine.trainings", name), takes="dataset.folder", **more))


def _file_tool(
    name: str, settings: type[Settings], title: str, about: str, button: str, takes: str = "file", **more: Any
) -> None:
    run, check = later("core.tools.files", name), later("core.tools.files", f"check_{name}")
    register(tool(name, settings, run, title=title, about=about, check=check, button=button, takes=takes, **more))


def _model_tool(
    name: str, module: str, settings: type[Settings], title: str, about: str, button: str, card: Card, **more: Any
) -> None:
    """A tool of core/tools/<module>.py on a LoRA or another model file."""
    run, check = later(f"core.tools.{module}", name), later(f"core.tools.{module}", f"check_{name}")
    given: dict[str, Any] = {"card": card, "button": button, "takes": "file"} | more
    register(tool(name, settings, run, title=title, about=about, check=check, **given))


def _image_tool(name: str, settings: type[images.FolderSettings], title: str, about: str, **more: Any) -> None:
    run, check = later("core.tools.images.image_tools", name), later("core.tools.images.folders", "what_would_be_made")
    given: dict[str, Any] = {"card": IMAGES, "button": title, "takes": "folder"}
    register(tool(name, settings, run, title=title, about=about, check=check, **given, **more))


def _hint_tool(name: str, settings: type[hints.MadeHintsSettings], title: str, about: str, **more: Any) -> None:
    run, check = later("core.tools.images.hints", name), later("core.tools.images.hints", f"check_{name}")
    given: dict[str, Any] = {"card": HINTS, "button": "Make control images", "takes": "folder"}
    given["reads"] = lambda asked: asked.preview is not None
    register(tool(name, settings, run, title=title, about=about, check=check, **given, **more))


def _metadata_tool(
    name: str, module: str, settings: type[Settings], title: str, about: str, button: str, takes: str
) -> None:
    run, check = later(f"core.tools.{module}", name), later(f"core.tools.{module}", f"check_{name}")
    given: dict[str, Any] = {"card": METADATA, "button": button, "reads": lambda asked: asked.preview is not None}
    register(tool(name, settings, run, title=title, about=about, check=check, under="caption", takes=takes, **given))


_of_training("train", "Training", "train a LoRA, a checkpoint or an embedding", TrainJob, pauses=True)
_of_training("probe", "Memory and time probe", "measure the memory and time of a training", TrainJob)
_of_training("prepare", "Preparation", "check a dataset and fill the caches for training", PrepareJob)
register(
    Task(
        "generate",
        "Generation",
        "generate images",
        GenerateJob,
        later("core.generation.run", "run_task"),
        check=later("core.generation.plan", "check_task"),
        takes="generate.prompt",
    )
)
register(
    Task(
        "grid",
        "X/Y/Z grid",
        "generate a grid of images over up to three settings",
        GridJob,
        later("core.generation.grids.making", "run_task"),
        check=later("core.generation.grids.plan", "check_task"),
        takes="generate.prompt",
    )
)
register(
    Task(
        "class_images",
        "Regularization images",
        "generate regularization images of a class with the base model",
        ClassImagesJob,
        later("core.generation.class_images", "run_task"),
        check=later("core.generation.class_images", "what_would_be_made"),
        takes="class_images.class_word",
    )
)
register(
    Task(
        "caption",
        "Captions",
        "report on captions, and write missing ones",
        CaptionJob,
        later("core.captioning.report", "run_captions"),
        lane="light",
        reads=lambda job: not job.caption.write_missing,
        takes="dataset.folder",
    )
)
register(
    Task(
        "edit_captions",
        "Change captions",
        "change the captions of many images at once",
        CaptionEditJob,
        later("core.captioning.bulk", "edit_captions"),
        lane="light",
        check=later("core.captioning.bulk", "check_edits"),
        reads=lambda job: job.edit_captions.preview,
        under="caption",
        takes="dataset.folder",
    )
)
register(
    tool(
        "caption_history",
        CaptionHistorySettings,
        later("core.captioning.undoing", "caption_history"),
        title="Caption history",
        about="list the latest changes of captions, or undo one",
        check=later("core.captioning.undoing", "check_history"),
        lane="light",
        reads=lambda asked: not asked.undo,
        card=None,
        under="caption",
    )
)

_file_tool(
    "inspect",
    InspectSettings,
    "Inspect a file",
    "show the kind, family, tensors and metadata of a model file",
    "Inspect",
    lane="light",
    reads=True,
    card=MODELS,
)
register(
    tool(
        "convert_lora",
        ConvertLoraSettings,
        later("core.tools.loras.convert_lora", "convert_lora"),
        title="Convert LoRAs",
        about="save LoRAs for another program, as a plain LoRA or in another precision",
        check=later("core.tools.loras.convert_lora", "check_convert_lora"),
        unused=convert_lora_unused,
        button="Convert",
        takes="file",
        card=LORAS,
    )
)
_file_tool(
    "download",
    DownloadSettings,
    "Download a model",
    "download a model into the models folder",
    "Download",
    takes="hub_id",
    lane="downloads",
    ends_paused=True,
    card=DOWNLOADS,
)

_model_tool(
    "check_weights",
    "loras.check_weights",
    CheckWeightsSettings,
    "Check weights",
    "look for damage and untrained layers, and show norms by layer",
    "Check",
    LORAS,
)
_model_tool(
    "singular_values",
    "loras.singular_values",
    SingularValuesSettings,
    "Singular values",
    "show which rank of a LoRA keeps how much of it",
    "Compute",
    LORAS,
)
_model_tool(
    "compare_loras",
    "loras.compare_loras",
    CompareLorasSettings,
    "Compare two LoRAs",
    "compare two LoRAs layer by layer",
    "Compare",
    LORAS,
)
_model_tool(
    "interrogate_lora",
    "loras.interrogate_lora",
    InterrogateLoraSettings,
    "Interrogate a LoRA",
    "list the tokens that a LoRA's text encoders change most",
    "Interrogate",
    LORAS,
    lane="device",
)
_model_tool(
    "merge_lora_to_model",
    "loras.merge_lora_to_model",
    MergeLoraToModelSettings,
    "Merge LoRAs into a model",
    "save a copy of a checkpoint with LoRAs merged into it",
    "Merge",
    LORAS,
    lane="process",
)
_model_tool(
    "merge_loras",
    "loras.merge_loras",
    MergeLorasSettings,
    "Merge LoRAs",
    "merge LoRAs into one",
    "Merge",
    LORAS,
    takes="models",
)
_model_tool(
    "extract_lora",
    "loras.extract_lora",
    ExtractLoraSettings,
    "Extract a LoRA",
    "make a LoRA of the difference of two checkpoints",
    "Extract",
    LORAS,
    takes="model_tuned",
)
_model_tool(
    "split_dylora",
    "loras.split_dylora",
    SplitDyloraSettings,
    "Split a DyLoRA",
    "cut a DyLoRA into LoRAs of each lower rank",
    "Split",
    LORAS,
    takes="model",
)
_model_tool(
    "resize_lora",
    "loras.resize_lora",
    ResizeLoraSettings,
    "Resize a LoRA",
    "save a LoRA with lower ranks",
    "Resize",
    LORAS,
    lane="process",
)
_model_tool(
    "edit_metadata",
    "models.edit_metadata",
    EditMetadataSettings,
    "View and edit metadata",
    "show or change the metadata of a model file",
    "Show or save",
    MODELS,
    lane="light",
    reads=lambda asked: not asked.changes,
)
_model_tool(
    "strip_metadata",
    "models.edit_metadata",
    StripMetadataSettings,
    "Strip metadata",
    "copy a model file without private metadata",
    "Strip",
    MODELS,
    lane="light",
)
_model_tool(
    "hashes",
    "models.hashes",
    HashesSettings,
    "Hashes",
    "compute the hashes of model files",
    "Compute",
    MODELS,
    lane="light",
    reads=True,
)
_model_tool(
    "merge_models",
    "models.merge_models",
    MergeModelsSettings,
    "Merge checkpoints",
    "merge checkpoints by weighted sum, difference, sigmoid or block",
    "Merge",
    MODELS,
    takes="models",
    unused=merge_models_unused,
)

_model_tool(
    "convert_model",
    "models.convert_model",
    ConvertModelSettings,
    "Convert a model",
    "convert a checkpoint to another format or precision",
    "Convert",
    MODELS,
    unused=convert_model_unused,
)
_model_tool(
    "bake_vae",
    "models.convert_model",
    BakeVaeSettings,
    "Bake in a VAE",
    "copy a checkpoint with another VAE",
    "Bake in",
    MODELS,
)
_model_tool(
    "extract_vae",
    "models.convert_model",
    ExtractVaeSettings,
    "Extract the VAE",
    "extract the VAE of a checkpoint",
    "Extract",
    MODELS,
)

_image_tool("resize", images.ResizeSettings, "Resize", "make smaller copies of images")
_image_tool("crop", images.CropSettings, "Crop", "crop images to one size")
_image_tool("convert", images.ConvertSettings, "Convert format", "change the file format of images")
_image_tool("number", images.NumberSettings, "Number files", "number images and their captions")
_image_tool("undo_number", images.UndoNumberSettings, "Undo numbering", "revert a numbering done in place")
_image_tool("faces", images.FaceSettings, "Crop faces", "crop and level faces in photos")
_model_tool(
    "latent_upscaler",
    "images.latent_upscaler",
    LatentUpscalerSettings,
    "Latent upscaler",
    "double the size of images through their latents",
    "Upscale",
    IMAGES,
    lane="device",
    takes="images",
)

_hint_tool(
    "make_hints",
    hints.MakeHintsSettings,
    "Preprocess",
    "make control images: edges, blur, tile and others",
    unused=later("core.control.hints", "unused_settings"),
)
_hint_tool(
    "hints_by_model",
    hints.HintsByModelSettings,
    "Preprocess with a model",
    "make control images with an ONNX model: depth, line art, poses and others",
    lane="device",
)
register(
    tool(
        "make_pairs",
        hints.MakePairsSettings,
        later("core.tools.images.make_pairs", "make_pairs"),
        title="Generate pairs",
        about="generate images from captions, with their control images, to train a ControlNet with",
        check=later("core.tools.images.make_pairs", "check_make_pairs"),
        button="Generate pairs",
        takes="captions",
        lane="device",
        card=HINTS,
        unused=later("core.control.hints", "unused_settings"),
    )
)

_metadata_tool(
    "merge_captions",
    "metadata.merging",
    metadata.MergeCaptionsSettings,
    "Merge captions",
    "merge caption files into a metadata JSON",
    "Merge captions",
    "folders",
)
_metadata_tool(
    "merge_tags",
    "metadata.merging",
    metadata.MergeTagsSettings,
    "Merge tags",
    "merge tag files into a metadata JSON",
    "Merge tags",
    "folders",
)
_metadata_tool(
    "clean_metadata",
    "metadata.clean_metadata",
    metadata.CleanMetadataSettings,
    "Clean captions and tags",
    "clean the captions and tags of a metadata JSON",
    "Clean",
    "in_json",
)
_metadata_tool(
    "metadata_to_captions",
    "metadata.metadata_to_captions",
    metadata.MetadataToCaptionsSettings,
    "Write caption files",
    "write the captions and tags of a metadata JSON to caption files",
    "Write files",
    "in_json",
)
