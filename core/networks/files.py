"""LoRA files for a model: loaded as networks, or merged into the base model before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.families import family
from core.families.components import Components
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
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
    """A LoRA merged into the base model. sha256: of the file."""

    path: Path
    strength: float
    sha256: str | None = None


@dataclass(frozen=True)
class NetworkFiles:
    """The files of a network: the one it starts from, and those merged into the base model first."""

    start: Path | None = None
    start_sha256: str | None = None
    merged: tuple[MergedFile, ...] = ()


def check_file(path: Path, family_name: str) -> None:
    """Raise ProblemsError unless the file is a LoRA for this family, by its header."""
    check_lora(identify(path), path, family_name)


def check_layers(path: Path, family_name: str) -> None:
    """`check_file`, and raise for what loading would refuse: layers that lack tensors, inconsistent shapes, alphas that
    are no finite number. Only NaN in the weights is found at loading."""
    check_file(path, family_name)
    lora_outline(path)


def check_lora(detected: ModelKind, path: Path, family_name: str) -> None:
    """`check_file` for a detected file. Raises ProblemsError unless it is a LoRA of a supported type and of this family."""
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
    """The layers of the loaded parts, text encoders first as in kohya's files. norms: with the norm layers in the U-Net's blocks"""
    kind = family(components.family)
    for part in (*components.text_encoders, components.denoiser):
        if part is not None:
            yield from kind.layers(part, norms=norms)


def read_file(path: Path, family_name: str) -> LoraFile:
    """Read a LoRA file for this family. Raises ProblemsError for another kind or family, and for NaN or infinite weights."""
    check_file(path, family_name)
    return load_finite(path)


def read_network(components: Components, path: Path, strength: float) -> Network:
    """The network of a LoRA file for this model. Raises ProblemsError for another kind or family."""
    from core.networks.network import Network

    lora = read_file(path, components.family)
    network = Network.from_tensors(lora.tensors, targets_of(components), strength)
    if not network.adapters:
        what = f"The LoRA {path.name} matches no layer of this model"
        fix = "use it with the model it was trained on, or one of the same size"
        raise ProblemsError.one(what, display_path(path), fix, "lora.no-matching-layers")
    network.unmatched += tuple(_use_bias_norm(components, network, lora, strength))
    return network


def _use_bias_norm(components: Components, network: Network, lora: LoraFile, strength: float) -> list[str]:
    """Add a file's biases and norms to its network; returns the keys of those that fit nothing."""
    from core.networks.bias_norm import use_bias_norm

    encoders = dict(zip(("text_encoder", "text_encoder_2"), components.text_encoders, strict=False))
    parts = {"unet": components.denoiser, **encoders}
    unused = use_bias_norm(
        network.adapters, {name: part for name, part in parts.items() if part is not None}, lora.bias_norm
    )
    network.set_multiplier(strength)
    return unused


def unmatched_problems(network: Network, path: Path) -> list[Problem]:
    """Advice about layers, biases and norms of a LoRA file that the model does not have."""
    unmatched = sorted(network.unmatched)
    if not unmatched:
        return []
    what = f"{len(unmatched)} of {len(unmatched) + len(network.adapters)} layers of the LoRA {path.name} "
    what += f"match no layer of this model and have no effect: {first_of(unmatched, SHOWN_MODULES)}"
    fix = "use it with a model like the one it was trained on"
    return [Problem(what, display_path(path), fix, "advice", code="lora.unmatched-layers")]


def merge_files(components: Components, files: Sequence[MergedFile]) -> None:
    """Merge LoRAs permanently into the loaded weights, each with its strength, in order. Raises ProblemsError for another kind
    or family.

    Called at each load: parts loaded later are merged then. A LoRA may have no layers for these parts.
    """
    from core.networks.network import Network

    for file in files:
        lora = read_file(file.path, components.family)
        network = Network.from_tensors(lora.tensors, targets_of(components), file.strength)
        _use_bias_norm(components, network, lora, file.strength)
        network.merge_to()
