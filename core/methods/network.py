"""LoRA and its kin: small networks learn beside a frozen model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.lora_file import save_lora
from core.networks.lora import LoraNetwork

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.settings.job import TrainJob


class NetworkMethod:
    """What a training by LoRA owns: the network, its state and its file."""

    def __init__(self, job: TrainJob, seed: int):
        self._settings = job.network
        self._seed = seed
        self.network: LoraNetwork | None = None
        self._strength = 1.0
        rates = job.optimizer
        text_rate = rates.learning_rate if rates.text_encoder_lr is None else rates.text_encoder_lr
        unet_rate = rates.learning_rate if rates.unet_lr is None else rates.unet_lr
        self.learns_text = job.network.train_text_encoder and text_rate != 0
        self.learns_unet = job.network.train_unet and unet_rate != 0

    def build(self, targets: Iterable[Any]) -> dict[str, list[nn.Parameter]]:
        """Make the network over these modules and attach it; returns what learns, by part."""
        self.network = LoraNetwork.create(targets, self._settings, self._seed)
        self.network.attach()
        return self.network.parameters_by_part()

    def state_dict(self) -> dict[str, Tensor]:
        assert self.network is not None
        return self.network.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        assert self.network is not None
        self.network.load_state(tensors)

    def set_strength(self, strength: float) -> None:
        """How strongly the network takes part in the next passes: 1 is whole, 0 the model without it."""
        assert self.network is not None
        if strength != self._strength:
            self._strength = strength
            self.network.set_multiplier(strength)

    def write(self, path: Path, metadata: dict[str, str], precision: str) -> None:
        """Write the LoRA file: kohya's keys, the given metadata."""
        import torch

        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        save_lora(path, self.state_dict(), metadata, dtype)

    def release(self) -> None:
        if self.network is not None and self.network.attached:
            self.network.detach()
        self.network = None
