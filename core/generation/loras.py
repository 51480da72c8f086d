"""LoRAs in use: any number, each with a strength, on a model that is restored afterwards, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.families.components import Components
from core.networks.files import check_file, read_network
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path

if TYPE_CHECKING:
    from core.networks.network import Network
    from core.settings.generate import LoraUse

__all__ = ["AttachedLora", "LorasReport", "check_file", "loras_attached", "read_network"]

SHOWN_MODULES = 3


@dataclass(frozen=True)
class AttachedLora:
    """One LoRA in use. modules: layers of the model it acts on."""

    path: Path
    strength: float
    modules: int


@dataclass(frozen=True)
class LorasReport:
    """What is attached, in the given order, and advice about layers of a file that this model does not have."""

    loras: list[AttachedLora] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@contextmanager
def loras_attached(
    components: Components, uses: Sequence[LoraUse], find: Callable[[str], Path]
) -> Iterator[LorasReport]:
    """Run the block with these LoRAs on U-Net and text encoder; their deltas add up.

    No weight is changed: modules add the delta to their output and stop doing so at the end, also after an error.
    All problems with the files are raised together, before anything is attached.
    """
    from core.networks.frozen import readable
    from core.networks.network import attached

    networks: list[Network] = []
    report = LorasReport()
    problems: list[Problem] = []
    for use in uses:
        try:
            path = find(use.file)
            network = read_network(components, path, use.strength)
            network.set_multiplier(use.strength, use.text_encoder_strength)
        except ProblemsError as error:
            problems.extend(error.problems)
            continue
        networks.append(network)
        report.loras.append(AttachedLora(path, use.strength, len(network.adapters)))
        report.problems.extend(_left_out(network, path))
    if problems:
        raise ProblemsError(problems)
    reads = any(network.needs_base_weight for network in networks)
    with readable(components.denoiser) if reads else nullcontext(), attached(*networks):
        yield report


def _left_out(network: Network, path: Path) -> list[Problem]:
    left = sorted(network.unmatched)
    if not left:
        return []
    shown = ", ".join(left[:SHOWN_MODULES]) + (
        f" and {len(left) - SHOWN_MODULES} more" if len(left) > SHOWN_MODULES else ""
    )
    return [
        Problem(
            f"{len(left)} of {len(left) + len(network.adapters)} layers of the LoRA {path.name} "
            f"match no layer of this model and have no effect: {shown}",
            display_path(path),
            "use it with a model like the one it was trained on",
            level="advice",
            code="lora.unmatched-layers",
        )
    ]
