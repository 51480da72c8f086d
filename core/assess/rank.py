"""Used rank: how many directions hold the LoRA's change, what resizing loses, and which layers change most."""

from collections.abc import Mapping
from typing import Any

from core.assess.statistics import NotMeasured
from core.networks.adapter_file import load_finite
from core.record.lazy_torch import Tensor
from core.tools.loras.layers import open_layers
from core.tools.loras.singular_values import rank_that_keeps, retained_together, usual_rank, values_of

USED_SHARE, RESIZE_SHARE = 0.9, 0.98  # of the norm: what counts as used, and what resizing should keep
SHOWN_LAYERS = 3


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return `rank_of` for the checkpoint's singular values, with "rank": the highest rank of a layer."""
    lora = load_finite(subject.checkpoint.path)
    layers, _ = open_layers(lora, subject.maker.components, bench.context.cancel)
    values = {
        layer.name: singular_values
        for layer in layers
        if len(singular_values := values_of(layer)) and float(singular_values[0]) > 0
    }
    return rank_of(values) | {"rank": max(layer.rank for layer in layers)}


def rank_of(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Summarize singular values, descending, of each layer. Raises NotMeasured if `values` is empty.

    used     number of directions that hold USED_SHARE of the norm
    resize   smallest usual rank that keeps RESIZE_SHARE of the norm
    lost     share of the norm that resizing to `resize` loses
    layers   {name: Frobenius norm} of the SHOWN_LAYERS largest
    norm     Frobenius norm of the whole change
    text     the text encoders' share of the squared norm
    """
    if not values:
        raise NotMeasured("the checkpoint changes nothing")
    longest = max(map(len, values.values()))
    retained = retained_together(values, longest)
    used, small = (rank_that_keeps(retained, share) for share in (USED_SHARE, RESIZE_SHARE))
    norms = {name: float(each.norm()) for name, each in values.items()}
    layers = {name: round(norms[name], 4) for name in sorted(norms, key=lambda name: -norms[name])[:SHOWN_LAYERS]}
    resize = usual_rank(small)
    text = sum(norm**2 for name, norm in norms.items() if name.startswith("lora_te"))
    whole = sum(norm**2 for norm in norms.values())
    ranks = {"used": used, "resize": resize, "lost": round(1 - retained[min(resize, longest) - 1], 4), "layers": layers}
    return ranks | {"norm": round(whole**0.5, 4), "text": round(text / whole, 4)}


def brief(data: Mapping[str, Any]) -> str:
    """Return "used of rank" for a table cell."""
    return f"{data['used']} of {data['rank']}"


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the used directions and what resizing loses."""
    smaller = f"resizing to rank {data['resize']} loses {data['lost']:.1%}"
    resizing = smaller if data["resize"] < data["rank"] else f"no lower rank keeps {RESIZE_SHARE:.0%} of it"
    text = f", {data['text']:.0%} in the text encoder" if data["text"] >= 0.005 else ""
    most = f"It changes {next(iter(data['layers']))} most{text} (norm of all: {data['norm']:.3g})."
    return f"{data['used']} of its {data['rank']} directions hold {USED_SHARE:.0%} of the change: {resizing}. {most}"
