"""Metadata and registration that LyCORIS' kinds share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from core.formats.lora.names import ALPHA
from core.networks.kinds import NetworkKind, register
from core.networks.kinds.lora import network_args
from core.networks.kinds.product import SCALAR, Product, ProductAdapter
from core.settings.base import Settings
from core.settings.layers import PRESETS
from core.settings.readers import UNREAD, Misread

if TYPE_CHECKING:
    from core.settings.job import TrainJob

MODULE = "lycoris.kohya"
NOT_IN_PEFT = Misread({"diffusers": UNREAD})


def lycoris_args(job: TrainJob, algo: str, options: Settings | None) -> dict[str, str]:
    """Return LyCORIS' network_args of a job, {name: value as text}: "algo", "preset" if one is chosen, the kind's enabled options and
    `network_args`.

    algo      LyCORIS' name of the algorithm, such as "loha"
    options   the kind's settings; None if it has none
    """
    arguments = {name: getattr(options, name) for name in type(options).model_fields} if options is not None else {}
    enabled = {name: str(value) for name, value in arguments.items() if value not in (False, None, -1)}
    layers = job.network.layers
    preset = {"preset": layers[0]} if len(layers) == 1 and layers[0] in PRESETS else {}
    network = job.network
    scaled = network.rank_dropout > 0 and network.rank_dropout_scale and "rank_dropout" in network.traits.uses
    enabled |= {"rank_dropout_scale": "True"} if scaled else {}
    return {"algo": algo} | preset | enabled | network_args(job)


def register_product(name: str, title: str, product: Product, **fields: Any) -> None:
    """Register a kind whose layers are `ProductAdapter`s. fields: further fields of NetworkKind, which replace the default ones"""
    kind: dict[str, Any] = {
        "name": name,
        "title": title,
        "forms": tuple(tuple(form.keys) for form in product.forms),
        "optional": (ALPHA, SCALAR),
        "fresh": partial(ProductAdapter.fresh, product),
        "from_tensors": partial(ProductAdapter.from_tensors, product),
        "size": product.size,
        "flaw": product.flaw,
        "weight_shape": product.weight_shape,
        "idle": product.idle,
        "module_name": MODULE,
        "network_args": lambda job: lycoris_args(job, name, getattr(job, name, None)),
    }
    register(NetworkKind(**kind | fields))
