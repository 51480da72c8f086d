"""Settings of the preprocessors, which make a control image from an image."""

from typing import Literal

from core.settings.base import SEED_RANGE, Settings, setting

BY_MODEL = "model"  # the preprocessor that is an ONNX model


class HintSettings(Settings):
    """The preprocessor, and the settings of all preprocessors; `Preprocessor.settings` names those that each one uses."""

    preprocessor: Literal["canny"] = setting(  # core/control/hints/registered.py adds the others
        "canny",
        level="shown",
        kohya="control_net_preps",
        labels={"canny": "Canny edges"},
        help="What the control image shows of the image. Take the one that the ControlNet was, or will be, trained with.",
    )
    edge_low: int = setting(
        100,
        within=(0, 2000),
        title="Canny low threshold",
        level="shown",
        kohya="thres1",
        source="Canny 1986",
        help="Gradients above this count as edges where they connect to a strong edge. sd-scripts has 100 and 200 in its guide, 63 and 191 when it generates, 32 and 224 in its tool.",
    )
    edge_high: int = setting(
        200,
        within=(0, 2000),
        title="Canny high threshold",
        level="shown",
        kohya="thres2",
        source="Canny 1986",
        help="Gradients above this always count as edges. Lower both thresholds for more lines.",
    )
    edge_blur: float = setting(
        1.5,
        within=(0.3, 20),
        title="Edge smoothing",
        level="shown",
        unit="pixels",
        help="Standard deviation of the blur before soft edges and scribbles are found. Higher values leave out details.",
    )
    edge_gain: float = setting(
        4.0,
        within=(0.1, 50),
        title="Edge strength",
        level="shown",
        help="Brightness of soft edges. At 4, an edge with a quarter of the full contrast is white.",
    )
    line_width: int = setting(5, within=(1, 64), level="shown", unit="pixels", help="Width of the lines of a scribble.")
    blur_radius: float = setting(
        9.0,
        within=(0.3, 200),
        level="shown",
        unit="pixels",
        help="Standard deviation of the Gaussian blur. 9 is usual at 512 pixels.",
    )
    tile_factor: float = setting(
        4.0,
        within=(1, 64),
        level="shown",
        help="The image is made smaller by this factor, and enlarged again. 2 to 8 is usual; higher values leave more to the model.",
    )
    mask_share: float = setting(
        0.3,
        within=(0.01, 0.95),
        title="Masked share",
        level="shown",
        help="The part of the image that is painted black where it has no transparency. Opaque images get boxes and ellipses at random places.",
    )
    hint_seed: int = setting(
        0,
        within=SEED_RANGE,
        title="Seed",
        level="shown",
        help="For what is random: the color shuffle and inpaint masks. Each image of a folder gets its own random numbers.",
    )


class HintModelSettings(Settings):
    """The ONNX model that makes control images."""

    hint_model: str = setting(
        "",
        title="Model",
        level="shown",
        names="path or name",
        help="An .onnx file, or a folder with one: a path, or a name below models/preprocessors. It makes an image from an image, such as depth or line art, or finds poses (OpenPose, DWPose).",
    )


class AnyHintSettings(HintModelSettings, HintSettings):
    """The preprocessor, which may also be an ONNX model."""
