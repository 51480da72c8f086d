"""Training of a ControlNet: a net beside the frozen U-Net, from the U-Net or from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from core.control import controlnet_file
from core.control.controlnet import ControlNet, from_unet
from core.diffusion.text_states import Conditioning
from core.families.attention import set_attention
from core.families.components import Components
from core.families.locate import model_path
from core.formats.tensors.writer import type_named
from core.methods.side import SideMethod, unet_of
from core.optimization.groups import Trainable
from core.record.problems import Problem, ProblemsError
from core.settings.control import CONTROLNET_START, controlnet_of

if TYPE_CHECKING:
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob

OWN = "controlnet_"  # beginning of the names of what the U-Net does not have
KOHYA = ("sd1", "sd2")  # families that sd-scripts trains in a way of its own


class ControlNetMethod(SideMethod):
    """What a ControlNet's training needs. With `model.compatibility`, those of SD 1.x and 2.x train as sd-scripts trains them."""

    _side: ControlNet | None = None

    def build(self, components: Components) -> list[Trainable]:
        unet, memory = components.denoiser.requires_grad_(False), self._job.memory
        self._family = components.family
        start = self._start
        net = (
            from_unet(unet, self._seed)
            if start is None
            else controlnet_file.load_control_net(start, unet, self._family)
        )
        set_attention(net, memory.attention)
        if memory.gradient_checkpointing:
            net.enable_gradient_checkpointing()
        self._ready(net, unet.device)
        kohya = self._job.model.compatibility != "none" and self._family in KOHYA
        self._side = ControlNet(self.net, kohya=kohya)
        return self._parts()

    def _parts(self) -> list[Trainable]:
        own: list[nn.Parameter] = []
        copied: list[nn.Parameter] = []
        for name, weight in self.net.named_parameters():
            (own if name.startswith(OWN) else copied).append(weight)
        rate = controlnet_of(self._job).control_net_lr
        if rate is None:
            return [Trainable("unet", [*own, *copied])]
        return [Trainable("controlnet", own, rate=rate), Trainable("unet", copied)]

    def conditioned(self, given: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        if not self.acts:
            return given
        assert self._side is not None
        return replace(given, added=self._side(noisy_latents, timesteps, given))

    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        return controlnet_file.write_control_net(path, self.state_dict(), self._family, metadata, type_named(precision))

    def release(self) -> None:
        super().release()
        self._side = None


def file_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Why the initial ControlNet cannot be used, by its header."""
    start = controlnet_of(job).controlnet_model_name_or_path
    if not start:
        return []
    try:
        path = model_path(start, workspace, CONTROLNET_START)
        controlnet_file.open_control_net(path)
    except ProblemsError as error:
        return error.problems
    found = unet_of(job, workspace)
    return controlnet_file.file_problems(path, found[1], found[0]) if found else []
