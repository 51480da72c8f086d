"""A folder of the dataset, with the settings that it overrides."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, create_model, model_serializer, model_validator

from core.settings.base import Settings, default_of, fields_of, kohya_setting, setting
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.validation import ValidationSettings

# Groups whose settings a folder can override. Names are unique over the three, so they are flat, as in sd-scripts.
SHARED: tuple[type[Settings], ...] = (ImageSettings, CaptionSettings, ValidationSettings)
PRESERVE = "diff_output_preservation"
# Settings of the run, not of a folder.
ONE_FOR_ALL = frozenset(
    ("compatibility", "max_token_length", "weighted_captions", "weighted_mean", *ValidationSettings.model_fields)
) - {"validation_split"}


def _overridable_fields() -> dict[str, Any]:
    """Return {name: (type, Field)} of the settings that a folder can override; their default None means the dataset's value."""
    fields: dict[str, Any] = {}
    for group in SHARED:
        for name, info in fields_of(group).items():
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
    OwnSettings = create_model("OwnSettings", __base__=Settings, **_overridable_fields())


class Source(OwnSettings):
    """A dataset folder. It can override ImageSettings, CaptionSettings and the validation split; None takes the value of the dataset,
    captions or validation group."""

    folder: str = setting(
        help="Images in this folder and its subfolders are trained.", widget="folder", kohya="image_dir", names="path"
    )
    metadata_file: str | None = kohya_setting(
        None,
        help="A fine-tuning .json or .jsonl that lists the images with their captions and tags. The folder is where the images are.",
        names="path",
    )
    enabled: bool = setting(True, help="Off skips the folder and keeps its settings.")
    recursive: bool = setting(
        True,
        title="Include subfolders",
        help="Off uses only images directly in the folder, like image_dir in an sd-scripts dataset config.",
    )
    role: Literal["train", "regularization", "validation"] = setting(
        "train",
        kohya="is_reg",
        help="Regularization images preserve what the model knows of the class; validation images are never trained.",
    )
    num_repeats: int | None = kohya_setting(
        None,
        within=(1, 10000),
        title="Repeats",
        level="shown",
        only="train, regularization",
        help="How often each image is shown per epoch. Empty uses the number at the start of the folder name, or 1.",
    )
    samples_per_epoch: int | None = setting(
        None,
        within=(1, 1_000_000),
        title="Images per epoch",
        hint="by repeats",
        level="shown",
        only="train, regularization",
        help="Instead of repeats: how many images of the folder an epoch shows, spread evenly so that all are used over the epochs.",
    )
    identifier: str | None = setting(
        None,
        level="shown",
        only="train",
        hint="such as sks",
        help="The rare word that stands for the subject, such as sks.",
    )
    class_word: str | None = setting(
        None,
        title="Class",
        level="shown",
        only="train, regularization",
        hint="such as dog",
        help="What the subject is: dog, woman, watercolor. Identifier and class form the caption.",
    )
    class_tokens: str | None = kohya_setting(
        None,
        level="shown",
        help="Caption of images that have none. Empty uses identifier and class, or else the words of the folder name.",
    )
    loss_weight: float = setting(
        1.0,
        within=(0, 100),
        level="shown",
        only="train, regularization",
        help="Multiplies the loss on these images. 1 is usual.",
    )
    validation_images: list[str] = setting(
        default_factory=list, widget="lines", help="Names of images in this folder that are always held out."
    )
    cache_info: bool = kohya_setting(
        False,
        title="Use metadata_cache.json",
        help="Takes names, sizes and captions from sd-scripts' cache file in the folder without checking the images; writes it if missing.",
    )
    batch_group: str | None = setting(
        None, help="Folders in the same group share batches. Empty groups folders with the same sizes and batch size."
    )
    diff_output_preservation: bool = kohya_setting(
        False,
        title="Preserve base model output",
        help="Trains these images toward what the base model generates for them, to preserve it. For folders other than the subject's.",
    )
    custom_attributes: dict[str, JsonValue] = kohya_setting(
        default_factory=dict, help="A JSON object passed on with each image of the folder."
    )

    @model_validator(mode="after")
    def _from_attributes(self) -> Self:
        """Move `diff_output_preservation` from the custom attributes, where sd-scripts and older presets have it, to its setting.

        Done after validation: before it, strict JSON would no longer take a list for a pair.
        """
        if PRESERVE in self.custom_attributes:
            attributes = {name: value for name, value in self.custom_attributes.items() if name != PRESERVE}
            on = self.diff_output_preservation or bool(self.custom_attributes[PRESERVE])
            self.__dict__.update({"custom_attributes": attributes, PRESERVE: on})
            self.__pydantic_fields_set__.add(PRESERVE)
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialize only the settings that differ from their default, and those of ALWAYS_WRITTEN."""
        plain = Source.model_fields
        return {
            name: value
            for name, value in whole(self).items()
            if name in ALWAYS_WRITTEN or value != default_of(plain[name])
        }


ALWAYS_WRITTEN = frozenset(("folder", "num_repeats", "class_tokens", "enabled"))
