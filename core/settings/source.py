"""One folder of the dataset, with the settings that it does not share with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, create_model, model_serializer

from core.settings.base import Settings, setting
from core.settings.captions import CaptionSettings
from core.settings.images import ImageSettings
from core.settings.validation import ValidationSettings

# Whose settings a folder can have of its own. Names are unique over the three, so they stand flat, as in sd-scripts.
SHARED: tuple[type[Settings], ...] = (ImageSettings, CaptionSettings, ValidationSettings)
# Belong to the run, not to a folder.
ONE_FOR_ALL = frozenset(
    ("max_token_length", "weighted_captions", "weighted_mean", *ValidationSettings.model_fields)
) - {"validation_split"}


def _own_fields() -> dict[str, Any]:
    """Every shared setting once more, empty by default: empty takes what holds for all folders."""
    fields: dict[str, Any] = {}
    for group in SHARED:
        for name, info in group.model_fields.items():
            if name in ONE_FOR_ALL:
                continue
            kind: Any = info.rebuild_annotation()
            fields[name] = (
                kind | None,
                Field(None, title=info.title, description=info.description, json_schema_extra=info.json_schema_extra),
            )
    return fields


if TYPE_CHECKING:
    OwnSettings = Settings
else:
    OwnSettings = create_model("OwnSettings", __base__=Settings, **_own_fields())


class Source(OwnSettings):
    """One folder of images. Any setting of ImageSettings, CaptionSettings and the validation share can be given here
    too; what is not given is taken from the dataset, captions and validation groups."""

    folder: str = setting(title="Folder", help="Images in it and below it train.", kohya="image_dir", names="path")
    metadata_file: str | None = setting(
        None,
        title="Metadata file",
        kohya="metadata_file",
        help="A fine-tuning .json or .jsonl: it names the images and holds their captions and tags. The folder then says where they lie.",
        names="path",
    )
    enabled: bool = setting(True, title="Use it", help="Off leaves the folder out without forgetting it.")
    recursive: bool = setting(
        True,
        title="With sub-folders",
        help="Off takes only the images that lie in the folder itself, as the image_dir of an sd-scripts dataset file does.",
    )
    role: Literal["train", "regularization", "validation"] = setting(
        "train",
        title="Role",
        kohya="is_reg",
        labels={"train": "train", "regularization": "regularization", "validation": "validation"},
        help="Regularization images keep the class as the model knows it; validation images never train.",
    )
    num_repeats: int | None = setting(
        None,
        ge=1,
        le=10000,
        title="Repeats",
        kohya="num_repeats",
        help="How often each image is shown in an epoch. Empty takes the number in front of the folder's name, else 1.",
    )
    samples_per_epoch: int | None = setting(
        None,
        ge=1,
        le=1_000_000,
        title="Views per epoch",
        help="Instead of repeats: how many views of the folder an epoch has, shared evenly; over the epochs all images come round.",
    )
    identifier: str | None = setting(
        None, title="Identifier", help="The rare word that stands for the subject, such as sks."
    )
    class_word: str | None = setting(
        None, title="Class", help="What the subject is: dog, woman, watercolor. Identifier and class make the caption."
    )
    class_tokens: str | None = setting(
        None,
        title="Words for images without a caption",
        kohya="class_tokens",
        help="Empty takes identifier and class, else the folder's own words.",
    )
    loss_weight: float = setting(
        1.0, ge=0, le=100, title="Loss weight", help="How much these images count. 1 is usual."
    )
    validation_images: list[str] = setting(
        default_factory=list,
        title="Images for validation",
        widget="lines",
        help="Names of images of this folder that are held out, in any case.",
    )
    cache_info: bool = setting(
        False,
        title="Read metadata_cache.json",
        kohya="cache_info",
        help="Takes names, sizes and captions from sd-scripts' list in the folder, as it stands; the list is written where there is none.",
    )
    batch_group: str | None = setting(
        None,
        title="Batch group",
        help="Folders of one group share batches. Empty puts folders with equal sizes and batch size together.",
    )
    custom_attributes: dict[str, JsonValue] = setting(
        default_factory=dict,
        title="Custom attributes",
        kohya="custom_attributes",
        help="Passed on with each image. diff_output_preservation: true keeps what the base model draws for these.",
    )

    @model_serializer(mode="wrap")
    def _without_empty(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files and pages show what was given, not the sixty settings that were not."""
        plain = Source.model_fields
        return {
            name: value
            for name, value in whole(self).items()
            if name in ALWAYS_WRITTEN or value != plain[name].get_default(call_default_factory=True)
        }


ALWAYS_WRITTEN = frozenset(("folder", "num_repeats", "class_tokens", "enabled"))
