"""LoRAs in use: any number, each with a strength, on a model that is afterwards as it was, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families import family
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.lora_file import load_lora
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path

if TYPE_CHECKING:
    from core.networks.lora import LoraNetwork
    from core.settings.generate import LoraUse

SHOWN_MODULES = 3


@dataclass(frozen=True)
class AttachedLora:
    """One LoRA in use. modules: layers of the model it acts on."""

    path: Path
    strength: float
    modules: int


@dataclass(frozen=True)
class LorasReport:
    """What is attached, in the order given, and advice about layers of a file that this model does not have."""

    loras: list[AttachedLora] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@contextmanager
def loras_attached(components: Any, uses: Sequence[LoraUse], find: Callable[[str], Path]) -> Iterator[LorasReport]:
    """Run the block with these LoRAs on U-Net and text encoder; their corrections add up.

    No weight is touched: modules compute with a correction beside them and lose it at the end, also after an error.
    Everything wrong with the files is raised together, before anything is attached.
    """
    from core.networks.lora import attached

    networks: list[LoraNetwork] = []
    report = LorasReport()
    problems: list[Problem] = []
    for use in uses:
        try:
            path = find(use.file)
            network = read_network(components, path, use.strength)
        except ProblemsError as error:
            problems.extend(error.problems)
            continue
        networks.append(network)
        report.loras.append(AttachedLora(path, use.strength, len(network.layers)))
        report.problems.extend(_left_out(network, path))
    if problems:
        raise ProblemsError(problems)
    with attached(*networks):
        yield report


def read_network(components: Any, path: Path, strength: float) -> LoraNetwork:
    """The network of a LoRA file for this model. Raises ProblemsError for another kind or family."""
    from core.networks.lora import LoraNetwork

    check_file(path, components.family)
    kind = family(components.family)
    targets = [
        target
        for part in (*components.text_encoders, components.unet)
        if part is not None
        for target in kind.lora_targets(part, conv=True)
    ]
    network = LoraNetwork.from_file(load_lora(path), targets, strength)
    if not network.layers:
        raise ProblemsError.one(
            f"The LoRA {path.name} fits no layer of this model",
            display_path(path),
            "use it with the model it was trained on, or one of the same size",
        )
    return network


def check_file(path: Path, family_name: str) -> None:
    """Raise ProblemsError unless the file is a LoRA that this family can use, judged by its header."""
    found = identify(path)
    if found.kind != "lora":
        raise ProblemsError.one(
            f"{path.name} is no LoRA but: {found} ({found.evidence})", display_path(path), "choose a LoRA file"
        )
    if found.family not in (None, family_name):
        raise ProblemsError.one(
            f"{path.name} is a LoRA for {FAMILY_NAMES[found.family]}; the model is {FAMILY_NAMES[family_name]}",
            display_path(path),
            f"choose a LoRA for {FAMILY_NAMES[family_name]}, or a model of the LoRA's family ({found.evidence})",
        )
    if found.variant is not None:
        raise ProblemsError.one(
            f"{path.name} is a {found.variant}; only plain LoRAs can be used here",
            display_path(path),
            "choose a plain LoRA file",
        )


def _left_out(network: LoraNetwork, path: Path) -> list[Problem]:
    left = sorted(network.unmatched)
    if not left:
        return []
    shown = ", ".join(left[:SHOWN_MODULES]) + (
        f" and {len(left) - SHOWN_MODULES} more" if len(left) > SHOWN_MODULES else ""
    )
    return [
        Problem(
            f"{len(left)} of {len(left) + len(network.layers)} layers of the LoRA {path.name} "
            f"fit no layer of this model and do nothing: {shown}",
            display_path(path),
            "use it with a model of the kind it was trained on",
            level="advice",
        )
    ]
