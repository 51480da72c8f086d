"""Training of a ControlNet-LLLite: networks in the attention layers of the frozen U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from core.control import lllite_file
from core.control.files import write_tensors
from core.control.lllite import LLLite, empty, places_of
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
    """What an LLLite's training needs."""

    def build(self, components: Components) -> list[Trainable]:
        unet = components.denoiser.requires_grad_(False)
        own = lllite_of(self._job)
        places = places_of(unet, components.family)
        if self._start is not None:
            net = lllite_file.load_lllite(self._start, places, components.family)
        else:
            net = LLLite.create(places, own.cond_emb_dim, own.hidden_dim, self._seed, own.zero_bias)
        self._ready(net, unet.device)
        if own.dropout:
            net.dropout = Dropout(NetworkSettings(network_dropout=own.dropout), self._seed)
        net.attach(unet, places)
        return [Trainable("unet", list(net.parameters()))]

    def conditioned(self, given: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        self.net.show(given.control if self.acts else None)
        return given

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


class _Beside(nn.Module):
    """For the forecast: what trains, in the U-Net, and adds nothing to what a pass is given."""

    def __init__(self, net: LLLite):
        super().__init__()
        self.net = net

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> dict[str, Any]:
        self.net.show(given.control)
        return {}


def beside(unet: Any, own: LLLiteSettings) -> _Beside:
    """An LLLite without numbers on such a U-Net."""
    places = places_of(unet, "sdxl" if unet.config.addition_embed_type == "text_time" else "sd1")
    net = empty(places, own.cond_emb_dim, own.hidden_dim)
    net.attach(unet, places)
    return _Beside(net)


def file_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Why an LLLite cannot be trained on this model, or its initial file cannot be used, by headers."""
    own = lllite_of(job)
    found, path = unet_of(job, workspace), None
    try:
        if own.weights:
            path = model_path(own.weights, workspace, LLLITE_START)
            lllite_file.sizes_of(path)
    except ProblemsError as error:
        return error.problems
    if found is None:
        return []
    name, unet = found
    if name not in FAMILIES:
        what = "ControlNet-LLLite is for SD 1.x and SDXL"
        return [Problem(what, "model.base_model", "choose ControlNet, or another model", code="lllite.family")]
    return lllite_file.file_problems(path, unet, name) if path is not None else []
