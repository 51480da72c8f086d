"""Settings of the tool that merges checkpoints."""

from typing import Literal

from core.settings.base import Settings, setting
from core.settings.blocks import numbers
from core.settings.tools.fields import Precision, model_files, output_file


class MergeModelsSettings(Settings):
    """Merges checkpoints of one family into a new one, file to file, without loading a whole model."""

    models: list[str] = model_files(
        "Checkpoints, files or diffusers folders, one per line. The result is a single file; the first one gives it the keys that others lack.",
        "checkpoint",
    )
    method: Literal["weighted_sum", "add_difference", "sigmoid"] = setting(
        "weighted_sum",
        level="shown",
        labels={
            "weighted_sum": "weighted sum",
            "add_difference": "add difference: A + m (B - C)",
            "sigmoid": "sigmoid of two",
        },
        help="Weighted sum mixes any number of models. Add difference adds to A what B learned since C, its base; with an inpainting model as A, a multiplier of 1 makes B an inpainting model. Sigmoid mixes two with a smoothed multiplier.",
        source="A1111's checkpoint merger; sd-scripts' merge_models",
    )
    ratios: str = setting(
        "",
        needs="method=weighted_sum",
        level="shown",
        hint="equal",
        help="For the weighted sum: one number per model, comma-separated. They are scaled to a sum of 1.",
    )
    multiplier: float = setting(
        0.5,
        needs="method=add_difference, sigmoid",
        within=(-10.0, 10.0),
        level="shown",
        help="For add difference and sigmoid: 0 is A; 1 adds the whole difference, or gives B.",
    )
    block_weights: str = setting(
        "",
        widget="block weights",
        blocks_of="models",
        empty_as="even_multiplier",
        hint="the same everywhere",
        help="The multiplier of each U-Net block, of two models by weighted sum or sigmoid, or of add difference: 12, 17, 20 or 26 numbers (BASE first, which is for all outside the U-Net), 25 from IN00 to OUT11, 19 for SDXL, or a preset such as MIDD.",
        source="MBW and LBW extensions of A1111",
    )
    unet_only: bool = setting(
        False, title="U-Net only", help="Takes text encoders and VAE from the first model unchanged."
    )
    compatibility: Literal["none", "sd-scripts"] = setting(
        "none",
        help="sd-scripts takes ratios as they are, also where their sum is not 1, which makes all weights larger or smaller.",
    )
    saving_precision: Precision | None = setting(
        None,
        title="Precision",
        labels={"": "as the first model"},
        help="Precision of the merged file. Sums are computed in fp32 in any case.",
    )
    show_skipped: bool = setting(
        False, title="Show skipped keys", help="Lists the keys that some of the models lack, instead of their number."
    )
    output: str | None = output_file(
        "File or folder of the merged model. An existing file is never overwritten.",
        hint="next to the first model, ending in _merged",
    )

    @property
    def even_multiplier(self) -> float:
        """Multiplier of weights outside the block weights; by weighted sum the share of the second of two models."""
        if self.method != "weighted_sum":
            return self.multiplier
        try:
            first, second = numbers(self.ratios)
        except ValueError:  # empty, or refused by the check
            return 0.5
        return second if self.compatibility == "sd-scripts" else second / (first + second or 1)
