"""Settings of the detailer, which inpaints faces, hands or persons of a finished image at full size."""

from typing import Literal

from core.settings.base import SEED_RANGE, Seed, Settings, setting
from core.settings.samples import Side

OFF = "none"


class DetailerSettings(Settings):
    """Detects faces, hands or persons in each finished image, inpaints each at full size and pastes it back, as ADetailer does."""

    ad_model: Literal["none"] = setting(  # detectors are added by core/control/detectors
        "none",
        title="Detector",
        source="ADetailer",
        labels={"none": "None"},
        help="What is detected in the finished image. Faces: MTCNN on the CPU, trained on photographs. None: off, unless there is a detector file.",
    )
    ad_model_file: str | None = setting(
        None,
        title="Detector file",
        widget="file",
        names="path or name",
        hint="none",
        replaces="ad_model",
        help="An ONNX detector of faces, hands or persons: a path, or a name below models/detectors. YOLOX, YOLOv8, YOLO11, YOLO26 (docs/control_images.md).",
    )
    ad_model_classes: str | None = setting(
        None,
        title="Detector classes",
        hint="all",
        needs="ad_model_file",
        help="Classes of the detector file that are used, separated by commas: names or numbers, such as 'person' or '0'.",
    )
    ad_prompt: str | None = setting(
        None,
        title="Detailer prompt",
        hint="the image's",
        help="Prompt of each detected area. Empty is the image's, which [PROMPT] inserts. [SEP] separates prompts of the first area, the second ...; [SKIP] leaves one out. LoRAs are the image's.",
    )
    ad_negative_prompt: str | None = setting(
        None, title="Detailer negative prompt", hint="the image's", help="As the detailer prompt."
    )
    ad_confidence: float | None = setting(
        None,
        within=(0, 1),
        title="Detector confidence",
        hint="detector's own",
        help="Lowest confidence of a detection. Lower finds more, also wrong ones. Empty is 0.9 for Faces, 0.3 for detector files.",
    )
    ad_mask_k_largest: int = setting(
        0, within=(0, 100), title="Only top k largest", hint="all", help="Only the k largest detections. 0 is all."
    )
    ad_mask_min_ratio: float = setting(
        0.0, within=(0, 1), title="Min area ratio", help="Leaves out smaller ones, as a share of the image."
    )
    ad_mask_max_ratio: float = setting(
        1.0, within=(0, 1), title="Max area ratio", help="Leaves out larger ones, as a share of the image."
    )
    ad_bbox_sortby: Literal["none", "left", "center", "area"] = setting(
        "none",
        title="Sort detections by",
        labels={
            "none": "confidence",
            "left": "position (left to right)",
            "center": "position (center to edge)",
            "area": "area (large to small)",
        },
        help="Order in which detections are inpainted, which decides their prompts and seeds.",
    )
    ad_dilate_erode: int = setting(
        4,
        within=(-128, 128),
        unit="pixels",
        title="Mask dilation",
        help="Enlarges the box by half of this at each side.",
    )
    ad_mask_blur: int = setting(
        4, within=(0, 256), unit="pixels", title="Detailer mask blur", help="Softens the edge of what is pasted back."
    )
    ad_denoising_strength: float = setting(
        0.4,
        within=(0, 1),
        title="Detailer denoising strength",
        help="How much a detection changes. 0.3 to 0.5 is usual.",
    )
    ad_inpaint_only_masked_padding: int = setting(
        32,
        within=(0, 1024),
        unit="pixels",
        title="Detailer padding",
        help="How much around a detection is generated with it, so that the model sees what it belongs to.",
    )
    ad_seed: Seed = setting(
        None,
        within=SEED_RANGE,
        title="Detailer seed",
        hint="the image's",
        help="Of the first detection; further ones count up.",
    )
    ad_inpaint_width: Side | None = setting(
        None,
        unit="pixels",
        title="Detailer width",
        hint="as the image",
        help="Width at which a detection is generated. Empty is the image's before hires fix.",
    )
    ad_inpaint_height: Side | None = setting(
        None, unit="pixels", title="Detailer height", hint="as the image", help="As the width."
    )
    ad_steps: int | None = setting(
        None, within=(1, 1000), unit="steps", title="Detailer steps", hint="as the image", help="Sampling steps."
    )
    ad_cfg_scale: float | None = setting(
        None,
        within=(0, 100),
        title="Detailer guidance scale",
        hint="as the image",
        help="Guidance scale of detections.",
    )

    @property
    def used(self) -> bool:
        """Whether a detection model is chosen."""
        return self.ad_model != OFF or bool(self.ad_model_file)
