"""The part of the rank that is used, what resizing loses, and where the change is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.networks.adapter_file import load_finite

if TYPE_CHECKING:
    from torch import Tensor

    from core.assess.bench import Bench, Subject

KEPT = 0.9  # of the norm
SMALL = 0.98  # of the norm: what resizing should keep
SHOWN = 3


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    from core.tools.loras.layers import open_layers
    from core.tools.loras.singular_values import values_of

    assert subject.checkpoint is not None
    layers, unread = open_layers(load_finite(subject.checkpoint.path), subject.maker.components, bench.context.cancel)
    values, ranks = {}, []
    for layer in layers:
        bench.count(0)
        found = values_of(layer)
        if len(found) and float(found[0]) > 0:
            values[layer.name] = found
            ranks.append(layer.rank)
    return rank_of(values) | {"rank": max(ranks, default=0), "unread": len(unread)}


def rank_of(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """The directions that hold KEPT of the norm, the rank to resize to, and the layers that change most. values: singular values of
    each layer, descending"""
    from core.tools.loras.singular_values import retained_together, usual_rank

    if not values:
        return {"why": "the checkpoint changes nothing"}
    longest = max(map(len, values.values()))
    kept = retained_together(values, longest)
    used = next(rank for rank, share in enumerate(kept, 1) if share >= KEPT - 1e-9)
    resize = usual_rank(next(rank for rank, share in enumerate(kept, 1) if share >= SMALL - 1e-9))
    norms = {name: float(each.norm()) for name, each in values.items()}
    most = sorted(norms, key=lambda name: -norms[name])[:SHOWN]
    whole = sum(norm**2 for norm in norms.values())
    text = sum(norm**2 for name, norm in norms.items() if name.startswith("lora_te")) / whole
    return {
        "used": used,
        "resize": resize,
        "lost": round(1 - kept[min(resize, longest) - 1], 4),
        "norm": float(f"{whole**0.5:.4g}"),
        "text": round(text, 4),
        "layers": {name: float(f"{norms[name]:.4g}") for name in most},
    }


def brief(data: Mapping[str, Any]) -> str:
    return f"{data['used']} of {data['rank']}"


def sentence(data: Mapping[str, Any]) -> str:
    rest = (
        f"resizing to rank {data['resize']} loses {data['lost']:.1%}"
        if data["resize"] < data["rank"]
        else "no lower rank keeps 98%"
    )
    most = next(iter(data["layers"]))
    text = f" The text encoder has {data['text']:.0%} of it." if data["text"] >= 0.005 else ""
    return f"{KEPT:.0%} of the norm is in {data['used']} directions of {data['rank']}: {rest}. Norm {data['norm']:g}, most in {most}.{text}"


def warning(data: Mapping[str, Any]) -> str:
    return ""
