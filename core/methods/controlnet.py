"""Training of a ControlNet: a net next to the frozen U-Net, which starts as a copy of its encoder or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
from core.settings.control import CONTROLNET_START, KOHYA, controlnet_of, trains_as_kohya

if TYPE_CHECKING:
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob

PREFIX = "controlnet_"  # prefix of the parameters that the U-Net does not have


class ControlNetMethod(SideMethod):
    """Trains a ControlNet. With `model.compatibility`, one for SD 1.x or 2.x is trained as in sd-scripts."""

    _control_net: ControlNet | None = None

    def build(self, components: Components) -> list[Trainable]:
        """Create the net as a copy of the U-Net's encoder, or load the initial file; return its weights."""
        unet, memory = components.denoiser.requires_grad_(False), self._job.memory
        self._family = components.family
        start = self._start
        net = (
            from_unet(unet, self._seed)
            if start is None
            else controlnet_file.load_control_net(start, unet, self._family, components.origin)
        )
        set_attention(net, memory.attention)
        if memory.gradient_checkpointing:
            net.enable_gradient_checkpointing()
        self._place_net(net, unet.device)
        self._control_net = ControlNet(self.net, kohya=trains_as_kohya(self._job, self._family))
        return self._parts()

    def _parts(self) -> list[Trainable]:
        """Return all weights of the net; if `control_net_lr` is set, the weights that a ControlNet adds to the U-Net's encoder are a group
        of their own."""
        added: list[nn.Parameter] = []
        copied: list[nn.Parameter] = []
        for name, weight in self.net.named_parameters():
            (added if name.startswith(PREFIX) else copied).append(weight)
        rate = controlnet_of(self._job).control_net_lr
        if rate is None:
            return [Trainable("unet", [*added, *copied])]
        return [Trainable("controlnet", added, rate=rate), Trainable("unet", copied)]

    def conditioned(self, conditioning: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        """Return the conditioning with the ControlNet's outputs as `added`; unchanged while the net is off."""
        if not self.active:
            return conditioning
        assert self._control_net is not None
        return replace(conditioning, added=self._control_net(noisy_latents, timesteps, conditioning))

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """A context in which the net reads control images in 0..1, as sd-scripts does for samples even if it trains on -1..1 (reference:
        controlnet, 3.5).
        """
        assert self._control_net is not None
        before, self._control_net.signed = self._control_net.signed, False
        try:
            yield
        finally:
            self._control_net.signed = before

    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        """Write the ControlNet as a diffusers folder or single file; return advice about it. Arguments: see `Method`"""
        config = None if self.extension else json.loads(self.net.to_json_string())
        pickled = self._job.saving.save_model_as == "diffusers"
        return controlnet_file.write_control_net(
            path, self.state_dict(), self._family, metadata, type_named(precision), config, pickled
        )

    def release(self) -> None:
        super().release()
        self._control_net = None


def file_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of the initial ControlNet, from its header, and advice on the range of its control images."""
    start, model, file = controlnet_of(job).controlnet_model_name_or_path, unet_of(job, workspace), None
    try:
        if start:
            file = controlnet_file.open_control_net(model_path(start, workspace, CONTROLNET_START))
    except ProblemsError as error:
        return error.problems
    if model is None:
        return []
    family, unet = model
    problems = controlnet_file.file_problems(file.path, unet, family) if file else []
    return problems or list(_range_advice(job, family, file))


def _range_advice(job: TrainJob, family: str, file: controlnet_file.ControlNetFile | None) -> Iterator[Problem]:
    """Yield advice for SD 1.x and 2.x if control images are read in -1..1, or if the initial file was trained so by sd-scripts and this
    training reads 0..1.
    file: the initial ControlNet, or None"""
    kohya_names = file is not None and file.has_sd_scripts_names
    if family not in KOHYA or kohya_names == trains_as_kohya(job, family):
        return
    what = "With this compatibility, a ControlNet for SD 1.x and 2.x is trained on control images in -1 to 1"
    fix = "use it only to continue a file that sd-scripts trained; every other program shows it 0 to 1"
    if kohya_names:
        what = (
            "The initial ControlNet has the names of sd-scripts' files, which are trained on control images in -1 to 1"
        )
        fix = "to continue it as it was trained, set compatibility to sd-scripts; without, it adapts to 0 to 1"
    yield Problem(what, "model.compatibility", fix, "advice", code="control.other-range")
