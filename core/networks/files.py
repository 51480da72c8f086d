"""LoRA files for a model: checked, loaded as networks, or merged into the base model before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.families import family
from core.families.components import Components
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.lora.names import ALPHA, DOWN, group_by_module
from core.networks.adapter_file import LoraFile, load_finite, lora_outline
from core.record.problems import Problem, ProblemsError
from core.record.units import first_of
from core.record.workspace import display_path

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.network import Network


SHOWN_MODULES = 3


@dataclass(frozen=True)
class MergedFile:
    """A LoRA file to merge into the base model at `strength`. `sha256` is the file's; None if unknown."""

    path: Path
    strength: float
    sha256: str | None = None


@dataclass(frozen=True)
class NetworkFiles:
    """The LoRA files of a training: `start` is trained further (None: from scratch), `merged` are merged into the base model first."""

    start: Path | None = None
    start_sha256: str | None = None
    merged: tuple[MergedFile, ...] = ()


def check_file(path: Path, family_name: str) -> None:
    """Raise ProblemsError unless the file's header shows a LoRA of a supported type for this family."""
    check_lora(identify(path), path, family_name)


def check_layers(path: Path, family_name: str) -> LoraFile:
    """Return a LoRA's outline. Raises ProblemsError for a file that loading would refuse; only NaN in the weights is found at loading.

    In addition to `check_file`: layers that lack tensors, inconsistent shapes, alphas that are not finite.
    """
    check_file(path, family_name)
    return lora_outline(path)


def zero_alpha_problems(lora: LoraFile) -> list[Problem]:
    """Return advice about layers of a LoRA file whose alpha is 0; [] if there are none."""
    layers = [layer for layer in group_by_module(lora.tensors).values() if DOWN in layer]
    zero = sum(ALPHA in layer and float(layer[ALPHA]) == 0 for layer in layers)
    if not zero:
        return []
    name = lora.path.name if lora.path else ""
    what = f"{zero} of {len(layers)} layers of the LoRA {name} have alpha 0 and no effect; sd-scripts uses their rank instead"
    fix = "use a file with its alphas"
    return [Problem(what, display_path(lora.path or ""), fix, "advice", code="lora.zero-alpha")]


def check_lora(detected: ModelKind, path: Path, family_name: str) -> None:
    """Raise ProblemsError unless `detected` is a LoRA of a supported type for this family.
    detected: the kind of the file `path`"""
    if detected.kind != "lora":
        what = f"{path.name} is not a LoRA but: {detected} ({detected.evidence})"
        raise ProblemsError.one(what, display_path(path), "choose a LoRA file", "lora.not-a-lora")
    if detected.family not in (None, family_name):
        what = f"{path.name} is a LoRA for {FAMILY_NAMES[detected.family]}; the model is {FAMILY_NAMES[family_name]}"
        fix = f"choose a LoRA for {FAMILY_NAMES[family_name]}, or a model of the LoRA's family ({detected.evidence})"
        raise ProblemsError.one(what, display_path(path), fix, "lora.other-family")
    if detected.variant is not None:
        what = f"The network type of {path.name} is not supported: {detected.variant}"
        raise ProblemsError.one(what, display_path(path), "choose a LoRA of another type", "lora.unsupported-variant")


def targets_of(components: Components, *, norms: bool = False) -> Iterator[Target]:
    """Yield the layers of the loaded parts that adapters can change, text encoders first as in kohya's files.
    norms: also yield the norm layers in the U-Net's blocks"""
    kind = family(components.family)
    for part in (*components.text_encoders, components.denoiser):
        if part is not None:
            yield from kind.layers(part, norms=norms)


def read_file(path: Path, family_name: str) -> LoraFile:
    """Read a LoRA file for this family. Raises ProblemsError for another kind or family, and for NaN or infinite weights."""
    check_file(path, family_name)
    return load_finite(path)


def read_network(components: Components, path: Path, strength: float) -> Network:
    """Read a LoRA file and build its network for this model, not attached yet.

    Raises ProblemsError for another kind or family, NaN or infinite weights, and a file that matches no layer.
    """
    from core.networks.network import Network

    lora = read_file(path, components.family)
    network = Network.from_tensors(lora.tensors, targets_of(components), strength)
    if not network.adapters:
        what = f"The LoRA {path.name} matches no layer of this model"
        fix = "use it with the model it was trained on, or one of the same size"
        raise ProblemsError.one(what, display_path(path), fix, "lora.no-matching-layers")
    network.unmatched += tuple(_add_bias_norm(components, network, lora, strength))
    return network


def _add_bias_norm(components: Components, network: Network, lora: LoraFile, strength: float) -> list[str]:
    """Add a file's changes of biases and norm layers to its network; return the keys that the model has no place for."""
    from core.networks.bias_norm import add_bias_norm

    encoders = dict(zip(("text_encoder", "text_encoder_2"), components.text_encoders, strict=False))
    parts = {"unet": components.denoiser, **encoders}
    unused = add_bias_norm(
        network.adapters, {name: part for name, part in parts.items() if part is not None}, lora.bias_norm
    )
    network.set_multiplier(strength)
    return unused


def unmatched_problems(network: Network, path: Path) -> list[Problem]:
    """Return advice about layers, biases and norms of a LoRA file that the model does not have; [] if all match."""
    unmatched = sorted(network.unmatched)
    if not unmatched:
        return []
    what = f"{len(unmatched)} of {len(unmatched) + len(network.adapters)} layers of the LoRA {path.name} "
    what += f"match no layer of this model and have no effect: {first_of(unmatched, SHOWN_MODULES)}"
    fix = "use it with a model like the one it was trained on"
    return [Problem(what, display_path(path), fix, "advice", code="lora.unmatched-layers")]


def merge_files(components: Components, files: Sequence[MergedFile]) -> None:
    """Merge LoRA files permanently into the loaded weights, in order. Raises ProblemsError as `read_file`.

    A file may have no layers for the loaded parts: a part that is loaded later needs another call.
    """
    from core.networks.network import Network

    for file in files:
        lora = read_file(file.path, components.family)
        network = Network.from_tensors(lora.tensors, targets_of(components), file.strength)
        _add_bias_norm(components, network, lora, file.strength)
        network.merge_to()
