"""Registers the tasks that come with Atelier. Listed in core/extensions.py; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from core.extensions import later
from core.settings.base import Settings
from core.settings.captioning.edits import CaptionHistorySettings
from core.settings.job import CaptionEditJob, CaptionJob, ClassImagesJob, GenerateJob, GridJob, PrepareJob, TrainJob
from core.settings.tools import hints, images, metadata
from core.settings.tools.assess import AssessSettings
from core.settings.tools.card import CardSettings
from core.settings.tools.convert_model import BakeVaeSettings, ConvertModelSettings, ExtractVaeSettings
from core.settings.tools.file_metadata import EditMetadataSettings, HashesSettings, StripMetadataSettings
from core.settings.tools.loras import (
    ExtractLoraSettings,
    MergeLorasSettings,
    MergeLoraToModelSettings,
    ResizeLoraSettings,
    SplitDyloraSettings,
)
from core.settings.tools.merge_models import MergeModelsSettings
from core.settings.tools.model_files import (
    ConvertLoraSettings,
    DownloadSettings,
    InspectSettings,
)
from core.settings.tools.upscale import LatentUpscalerSettings
from core.settings.tools.weights import (
    CheckWeightsSettings,
    CompareLorasSettings,
    InterrogateLoraSettings,
    SingularValuesSettings,
)
from core.tasks import Card, Lane, Run, Task, register, tool

if TYPE_CHECKING:
    from core.record.context import JobContext, Outcome
    from core.record.workspace import Workspace

IMAGES = Card(
    "images", "Images", "Edit copies of a folder's images; only Rename in place and its undo change the originals."
)
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


def _register_training(name: str, title: str, about: str, job: type[TrainJob], run: Run, **more: Any) -> None:
    """Register a task that trains, or prepares a training, on a dataset folder. more: further fields of `Task`."""
    register(Task(name, title, about, job, run, takes="dataset.folder", **more))


@dataclass(frozen=True)
class Row:
    """A tool in the tables below; fields not listed here are as in `Task`.

    module   module in `package` with the tool's `plan` and `do` (core/tools/plans.py); its last part is the tool's name
    takes    the setting that the command's positional argument sets
    do       module with `do`, if not `module`
    plan     module with `plan`, if not the one with `do`
    """

    module: str
    settings: type[Settings]
    title: str
    button: str
    about: str
    takes: str = "file"
    lane: Lane = "process"
    reads: bool | Callable[[Any], bool] = False
    unused: Callable[[Mapping[str, Any]], Collection[str]] | None = None
    do: str = ""
    plan: str = ""
    package: str = "core.tools"


def _tools(card: Card | None, *rows: Row, **shared: Any) -> None:
    """Register the tools in `rows`, with the form `card`. shared: fields of `Task` that all of them have."""
    for row in rows:
        name, do = row.module.rpartition(".")[2], row.do or row.module
        run, check = _planned(later(f"{row.package}.{row.plan or do}", "plan"), later(f"{row.package}.{do}", "do"))
        about: dict[str, Any] = {
            each: getattr(row, each) for each in ("title", "button", "about", "takes", "lane", "reads")
        }
        about |= {"unused": row.unused} if row.unused else {}
        about |= {"card": card, "check": check} | shared
        register(tool(name, row.settings, run, **about))


def _planned(plan: Callable[..., Any], do: Callable[..., Outcome]) -> tuple[Run, Callable[[Any, Workspace], str]]:
    """Return the functions (run, check) of a tool's `Task`, from its `plan(settings, workspace)` and `do(settings, plan, context)`.

    Both call `plan`: a job may wait long after the check, and run in another process.
    """

    def run(settings: Any, context: JobContext) -> Outcome:
        return do(settings, plan(settings, context.workspace), context)

    return run, lambda settings, workspace: str(plan(settings, workspace))


def _previews(settings: Any) -> bool:
    """Whether a tool's settings ask for a preview, which writes nothing."""
    return settings.preview is not None


_hints_unused = later("core.control.hints", "unused_settings")


_start, _probe = partial(later, "core.training.start"), later("core.training.probe", "run_probe")
_register_training(
    "train", "Training", "train a LoRA, checkpoint, embedding or ControlNet", TrainJob, _start("run_task"), pauses=True
)
_register_training(
    "probe", "Memory and time probe", "measure the memory and time of a training", TrainJob, _probe, tab="Train"
)
_register_training(
    "prepare",
    "Preparation",
    "check a dataset and fill the caches for training",
    PrepareJob,
    _start("prepare_caches"),
    tab="Train",
)
register(
    Task(
        "generate",
        "Generation",
        "generate images",
        GenerateJob,
        later("core.generation.run", "run_task"),
        tab="Generate",
        check=later("core.generation.plan.plan", "check_task"),
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
        tab="Generate",
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
        tab="Dataset",
        check=later("core.generation.class_images", "check_task"),
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
        later("core.captioning.bulk", "caption_history"),
        title="Caption history",
        about="list the latest changes of captions, or undo one",
        check=later("core.captioning.bulk", "check_history"),
        lane="light",
        reads=lambda settings: not settings.undo,
        card=None,
        under="caption",
    )
)
# fmt: off
_tools(
    None,
    Row("assess", AssessSettings, "Assessment", "Start",
        "measure the checkpoints of a run: near-copies, drift, trigger, diversity, strength, rank", "run",
        lane="device", do="run", package="core.assess"),
)
_tools(
    MODELS,
    Row("models.inspect", InspectSettings, "Inspect a file", "Inspect",
        "show the kind, family, tensors and metadata of a model file", lane="light", reads=True),
    Row("models.edit_metadata", EditMetadataSettings, "View and edit metadata", "Show or save",
        "show or change the metadata of a model file", lane="light", reads=lambda settings: not settings.changes),
    Row("models.strip_metadata", StripMetadataSettings, "Strip metadata", "Strip",
        "copy a model file without private metadata", lane="light"),
    Row("models.hashes", HashesSettings, "Hashes", "Compute",
        "compute the hashes of model files", lane="light", reads=True),
    Row("models.merge_models", MergeModelsSettings, "Merge checkpoints", "Merge",
        "merge checkpoints by weighted sum, difference, sigmoid or block", "models"),
    Row("models.convert_model", ConvertModelSettings, "Convert a model", "Convert",
        "convert a checkpoint to another format or precision"),
    Row("models.bake_vae", BakeVaeSettings, "Bake in a VAE", "Bake in",
        "copy a checkpoint with another VAE"),
    Row("models.extract_vae", ExtractVaeSettings, "Extract the VAE", "Extract",
        "extract the VAE of a checkpoint"),
)
_tools(
    LORAS,
    Row("loras.convert_lora", ConvertLoraSettings, "Convert LoRAs", "Convert",
        "save LoRAs for another program, as a plain LoRA or in another precision"),
    Row("loras.check_weights", CheckWeightsSettings, "Check weights", "Check",
        "look for damage and untrained layers, and show norms by layer"),
    Row("loras.singular_values", SingularValuesSettings, "Singular values", "Compute",
        "show which rank of a LoRA keeps how much of it"),
    Row("loras.compare_loras", CompareLorasSettings, "Compare two LoRAs", "Compare",
        "compare two LoRAs layer by layer"),
    Row("loras.interrogate_lora", InterrogateLoraSettings, "Interrogate a LoRA", "Interrogate",
        "list the tokens that a LoRA's text encoders change most", lane="device"),
    Row("loras.merge_lora_to_model", MergeLoraToModelSettings, "Merge LoRAs into a model", "Merge",
        "save a copy of a checkpoint with LoRAs merged into it"),
    Row("loras.merge_loras", MergeLorasSettings, "Merge LoRAs", "Merge",
        "merge LoRAs into one", "models"),
    Row("loras.extract_lora", ExtractLoraSettings, "Extract a LoRA", "Extract",
        "make a LoRA of the difference of two checkpoints", "model_tuned"),
    Row("loras.split_dylora", SplitDyloraSettings, "Split a DyLoRA", "Split",
        "cut a DyLoRA into LoRAs of each lower rank", "model"),
    Row("loras.resize_lora", ResizeLoraSettings, "Resize a LoRA", "Resize",
        "save a LoRA with lower ranks"),
)
_tools(
    DOWNLOADS,
    Row("models.download", DownloadSettings, "Download a model", "Download",
        "download a model into the models folder", "hub_id", lane="downloads"),
    ends_paused=True,
)
_tools(
    IMAGES,
    Row("images.resize", images.ResizeSettings, "Resize", "Resize",
        "make smaller copies of images", "folder", do="images.copies", plan="images.folders"),
    Row("images.crop", images.CropSettings, "Crop", "Crop",
        "crop images to one size", "folder", do="images.copies", plan="images.folders"),
    Row("images.convert", images.ConvertSettings, "Convert format", "Convert format",
        "change the file format of images", "folder", do="images.copies", plan="images.folders"),
    Row("images.number", images.NumberSettings, "Number files", "Number files",
        "number images and their captions", "folder", plan="images.folders"),
    Row("images.undo_number", images.UndoNumberSettings, "Undo numbering", "Undo numbering",
        "revert a numbering done in place", "folder", plan="images.folders"),
    Row("images.faces", images.FaceSettings, "Crop faces", "Crop faces",
        "crop and level faces in photos", "folder", plan="images.folders"),
    Row("images.latent_upscaler", LatentUpscalerSettings, "Latent upscaler", "Upscale",
        "double the size of images through their latents", "images", lane="device"),
)
_tools(
    HINTS,
    Row("images.make_hints", hints.MakeHintsSettings, "Preprocess", "Make control images",
        "make control images: edges, blur, tile and others", "folder", reads=_previews, unused=_hints_unused),
    Row("images.hints_by_model", hints.HintsByModelSettings, "Preprocess with a model", "Make control images",
        "make control images with an ONNX model: depth, line art, poses and others", "folder",
        lane="device", reads=_previews),
    Row("images.make_pairs", hints.MakePairsSettings, "Generate pairs", "Generate pairs",
        "generate images from captions, with their control images, to train a ControlNet with", "captions",
        lane="device", unused=_hints_unused),
)
_tools(
    METADATA,
    Row("metadata.merge_captions", metadata.MergeCaptionsSettings, "Merge captions", "Merge captions",
        "merge caption files into a metadata JSON", "folders", do="metadata.merging"),
    Row("metadata.merge_tags", metadata.MergeTagsSettings, "Merge tags", "Merge tags",
        "merge tag files into a metadata JSON", "folders", do="metadata.merging"),
    Row("metadata.clean_metadata", metadata.CleanMetadataSettings, "Clean captions and tags", "Clean",
        "clean the captions and tags of a metadata JSON", "in_json"),
    Row("metadata.metadata_to_captions", metadata.MetadataToCaptionsSettings, "Write caption files", "Write files",
        "write the captions and tags of a metadata JSON to caption files", "in_json"),
    under="caption",
    reads=_previews,
)
_tools(
    MODELS,
    Row("card", CardSettings, "Report card", "Write the card",
        "write a report card of a model file, to share: an HTML page and JSON", package="core.assess",
        reads=lambda settings: settings.preview),
)
# fmt: on
