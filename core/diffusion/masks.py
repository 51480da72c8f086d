"""The mean over what counts of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def masked_mean(error_BCHW: Tensor, masks: Tensor, over: str = "area") -> Tensor:
    """Mean over the masked area of each image, [B]; an image whose mask is empty gives 0.

    masks  [B, 1, h, w] in 0..1; another size than the error's is averaged to it
    over   "area": dividing by the mask's own area keeps a small mask from meaning a small loss and so a small training
           rate. "image": the mean over the whole image, as in sd-scripts
    """
    from torch.nn.functional import interpolate

    masks = masks.float()
    if masks.shape[-2:] != error_BCHW.shape[-2:]:
        masks = interpolate(masks, size=error_BCHW.shape[-2:], mode="area")
    if over == "image":
        return (error_BCHW * masks).mean(dim=(1, 2, 3))
    covered_B = masks.expand_as(error_BCHW).sum(dim=(1, 2, 3))
    return (error_BCHW * masks).sum(dim=(1, 2, 3)) / covered_B.clamp_min(1e-6)
