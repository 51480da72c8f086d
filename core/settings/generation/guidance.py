"""Settings of the kinds of guidance, a group for each."""

from typing import Any

from core.settings.base import Settings, setting

LAYERS = "mid"


class ApgSettings(Settings):
    """Adaptive projected guidance: high guidance scales without oversaturated colors."""

    apg_eta: float = setting(
        0.0,
        within=(0, 1),
        title="Parallel share",
        source="Sadat et al. 2024, arXiv:2410.02416",
        help="How much of the guidance along the prediction is kept, which saturates colors. The paper uses 0; 1 keeps all, as CFG.",
    )
    apg_threshold: float = setting(
        15.0,
        within=(0, 1000),
        title="Norm threshold",
        help="Guidance that is stronger at a step is limited to this norm. The paper uses 15 for SDXL, less for SD 2.1. 0 is off.",
    )
    apg_momentum: float = setting(
        -0.5,
        within=(-1, 1),
        title="Momentum",
        help="Share of the guidance of earlier steps. Negative values, such as the paper's -0.5, weaken what repeats. 0 is off.",
    )


class CfgZeroSettings(Settings):
    """CFG-Zero*: the negative prediction is scaled to fit the positive one."""

    cfg_zero_steps: int = setting(
        0,
        within=(0, 1000),
        unit="steps",
        title="Zero steps",
        source="Fan et al. 2025, arXiv:2503.18886",
        help="First steps that change nothing. The paper uses 1 for flow matching models; Stable Diffusion needs 0.",
    )


def _scale(title: str, usual: float, **more: Any) -> Any:
    """Declare the strength of a guidance, with its usual value as the default. more: further arguments of `setting`"""
    return setting(
        usual,
        within=(0, 50),
        title=title,
        help=f"Strength of the guidance away from the perturbed prediction. {usual:g} is usual; 0 is off.",
        **more,
    )


def _layers(what: str) -> Any:
    """Declare the setting with the U-Net layers of a guidance. `what` continues "Where in the U-Net" and says what happens in them."""
    return setting(
        LAYERS,
        title="Layers",
        min_length=1,
        help=f"Where in the U-Net {what}, separated by commas: mid, down.2, up.1, up.1.attentions.0 ...",
    )


class PagSettings(Settings):
    """Perturbed attention guidance: away from a prediction whose self-attention maps are the identity."""

    pag_scale: float = _scale("PAG scale", 3.0, source="Ahn et al. 2024, arXiv:2403.17377")
    pag_layers: str = _layers("self-attention is perturbed")


class SkipLayerSettings(Settings):
    """Skip-layer guidance: away from a prediction without some transformer blocks."""

    slg_scale: float = _scale("Skip-layer scale", 2.8, source="Hyung et al. 2024, arXiv:2411.18664")
    slg_layers: str = _layers("transformer blocks are skipped")


class SmoothedEnergySettings(Settings):
    """Smoothed energy guidance: away from a prediction with blurred self-attention."""

    seg_scale: float = _scale("SEG scale", 3.0, source="Hong 2024, arXiv:2408.00760")
    seg_blur: float | None = setting(
        None,
        within=(0.1, 1000),
        unit="latents",
        title="Blur sigma",
        hint="infinite",
        help="Blur of the queries: smaller values change less. Empty averages all of them (infinite sigma), as the paper recommends.",
    )
    seg_layers: str = _layers("self-attention is blurred")
