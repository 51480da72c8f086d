"""Training of a ControlNet-LLLite: networks in the attention layers of the frozen U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from core.control import lllite_file
from core.control.files import write_tensors
from core.control.lllite import LLLite, empty, lllite_targets
from core.control.lllite_file import FAMILIES
from core.diffusion.text_states import Conditioning
from core.families.components import Components
from core.families.locate import model_path
from core.formats.tensors.writer import type_named
from core.methods.side import SideMethod, unet_of
from core.networks.dropout import Dropout
from core.optimization.groups import Trainable
from core.record.problems import Problem, ProblemsError
from core.settings.control import LLLITE_START, lllite_of
from core.settings.network import NetworkSettings

if TYPE_CHECKING:
    from core.record.workspace import Workspace
    from core.settings.control import LLLiteSettings
    from core.settings.job import TrainJob


class LLLiteMethod(SideMethod):
    """Trains a ControlNet-LLLite: small networks in the U-Net's attention layers that read a control image."""

    def build(self, components: Components) -> list[Trainable]:
        """Create the LLLite, or load the initial file, and attach it to the U-Net; return its weights."""
        unet = components.denoiser.requires_grad_(False)
        settings = lllite_of(self._job)
        targets = lllite_targets(unet, components.family)
        if self._start is not None:
            net = lllite_file.load_lllite(self._start, targets, components.family)
        else:
            net = LLLite.create(targets, settings.cond_emb_dim, settings.hidden_dim, self._seed, settings.zero_bias)
        self._place_net(net, unet.device)
        if settings.dropout:
            net.dropout = Dropout(NetworkSettings(network_dropout=settings.dropout), self._seed)
        net.attach(unet, targets)
        return [Trainable("unet", list(net.parameters()))]

    def conditioned(self, conditioning: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        """Pass the control images to the LLLite, if it takes part in passes; return the conditioning unchanged."""
        self.net.set_control(conditioning.control if self.active else None)
        return conditioning

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        if self.net.dropout is not None:
            self.net.dropout.show(step, number, images, next(self.net.parameters()).device)

    def after_micro_batch(self) -> None:
        if self.net.dropout is not None:
            self.net.dropout.hide()

    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        return write_tensors(path, self.state_dict(), metadata, type_named(precision))

    def release(self) -> None:
        if self.net is not None:
            self.net.detach()
        super().release()


class _AttachedLLLite(nn.Module):
    """An LLLite in the U-Net's layers with the interface of a module next to the U-Net, for the memory forecast."""

    def __init__(self, net: LLLite):
        super().__init__()
        self.net = net

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Pass the control images to the LLLite; return no arguments for the U-Net."""
        self.net.set_control(conditioning.control)
        return {}


def attached_lllite(unet: Any, settings: LLLiteSettings) -> _AttachedLLLite:
    """Create an LLLite on the "meta" device, attach it to `unet`, and return it as a module for the memory forecast."""
    targets = lllite_targets(unet, "sdxl" if unet.config.addition_embed_type == "text_time" else "sd1")
    net = empty(targets, settings.cond_emb_dim, settings.hidden_dim)
    net.attach(unet, targets)
    return _AttachedLLLite(net)


def file_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of training an LLLite on this base model and of its initial file, from headers; [] if the base model is
    unusable."""
    settings = lllite_of(job)
    model, path = unet_of(job, workspace), None
    try:
        if settings.weights:
            path = model_path(settings.weights, workspace, LLLITE_START)
            lllite_file.sizes_of(path)
    except ProblemsError as error:
        return error.problems
    if model is None or model[0] not in FAMILIES:  # lllite_problems names the family
        return []
    name, unet = model
    return lllite_file.file_problems(path, unet, name) if path is not None else []
