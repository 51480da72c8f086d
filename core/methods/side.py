"""Base of the methods that train a net with control images: turning the net off, state and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.control.shapes import Shapes, unet_shapes
from core.families.locate import family_of, model_path
from core.formats.tensors.writer import type_named
from core.methods import Method
from core.record.problems import ProblemsError
from core.settings.saving import EXTENSIONS

if TYPE_CHECKING:
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob


class SideMethod(Method):
    """Trains a net next to the frozen U-Net, or in its layers. `build` sets `net`.

    start    file that training starts from; None: a new net
    active   whether the net takes part in passes
    """

    trains_text, trains_unet = False, True

    def __init__(self, job: TrainJob, seed: int, start: Path | None):
        super().__init__()
        self._job, self._seed, self._start = job, seed, start
        self.extension = EXTENSIONS[job.saving.save_model_as]
        self.active = True
        self.net: Any = None

    def _place_net(self, net: nn.Module, device: torch.device) -> None:
        """Set `net`: move the net to the device, in the dtype that it trains in."""
        # torch's `to`: diffusers' warns about fp32 layers although it lists none
        nn.Module.to(net, device, type_named(self._job.memory.full_precision))
        self.net = net.requires_grad_(True).train()

    @contextmanager
    def untrained(self) -> Iterator[None]:
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.net.state_dict().items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.net.load_state_dict(tensors)

    def release(self) -> None:
        self.net = None


def unet_of(job: TrainJob, workspace: Workspace) -> tuple[str, Shapes] | None:
    """Return (family, shapes of the U-Net's parameters) from the base model's header; None if the model is unusable."""
    try:
        path = model_path(job.model.base_model, workspace)
        name = family_of(path, job.model.family)
        shapes = unet_shapes(path, name)
    except (ProblemsError, OSError):
        return None
    return (name, shapes) if shapes else None
