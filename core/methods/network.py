"""Training of LoRA and related network types on a frozen model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from core.families.components import Components
from core.formats.lora.names import ALPHA
from core.formats.tensors.writer import type_named
from core.methods import Method
from core.networks.adapter_file import with_convolutions, write_lora, write_lora_pickle
from core.networks.bias_norm import NormAdapter
from core.networks.block_weights import block_count, block_of
from core.networks.files import NetworkFiles, read_file, targets_of
from core.networks.kinds import kind_named
from core.networks.kinds.lora import one_or_dynamic, sizes_as_metadata
from core.networks.layer_sizes import part_of
from core.networks.layers import count_layers
from core.networks.network import Network
from core.networks.starting import start_network
from core.optimization.groups import Trainable
from core.record.problems import Problem, ProblemsError
from core.settings.blocks import block_rates
from core.settings.layers import CHOICE
from core.settings.model import traits_of
from core.settings.saving import EXTENSIONS

if TYPE_CHECKING:
    from core.settings.job import TrainJob


class NetworkMethod(Method):
    """Trains a LoRA or another network type on the frozen model.
    files: LoRA file to start from and merged ones, for metadata"""

    def __init__(self, job: TrainJob, seed: int, files: NetworkFiles | None = None):
        super().__init__()
        self.extension = EXTENSIONS[job.saving.save_model_as]
        self._settings = job.network
        self._kind_settings = kind_named(job.network.kind).kind_settings(job)
        self._dtype = type_named(job.memory.full_precision)
        self._convolutions = job.saving.sd2_projections == "convolutions"
        self._family = ""
        self._seed = seed
        self._files = files or NetworkFiles()
        self.network: Network | None = None
        self._strength = 1.0
        self._layer_counts = ""  # how many layers the settings choose
        optimizer = job.optimizer
        # Also at a rate of 0: its layers are saved with the others, and act where they come from a file.
        self.trains_text = job.network.train_text_encoder
        self.trains_unet = job.network.train_unet
        self._stop_text = self._stop_step = job.method.stop_text_encoder_training
        steady = job.network.module_dropout == 0 and not job.network.traits.by_chance
        self.steady_gradients = steady and self._stop_text is None
        self._two_text_rates = optimizer.text_rates[0] != optimizer.text_rates[1]
        self._clips_all = optimizer.clips_as_kohya

    def build(self, components: Components) -> list[Trainable]:
        """Create the network on the model's layers and attach it; return the trained weights, with roles for LoRA+. Raises ProblemsError if
        no layer would be trained."""
        settings, start = self._settings, self._files.start
        self._family = components.family
        targets = list(targets_of(components, norms=settings.may_train_norms))
        if settings.chooses_layers and not settings.dim_from_weights:
            self._layer_counts = str(count_layers(settings, self._kind_settings, targets))
        if start is None:
            self.network = Network.create(targets, settings, self._seed, kind_settings=self._kind_settings)
        else:
            lora = read_file(start, components.family)
            self.network, self.advice = start_network(targets, settings, self._seed, lora, self._kind_settings)
        if not self.network.adapters:
            what = "No layer would be trained: every block is excluded"
            fix = "set a rank and a learning rate above 0 for some block, or train another part"
            raise ProblemsError.one(what, "network", fix, "training.nothing-to-train")
        self.network.to(self._dtype)
        self.network.attach()
        trainables = self._trainables(self.network)
        if self._clips_all:  # also those whose rate is 0
            self.clipped = [weight for trainable in trainables for weight in trainable.parameters]
        return trainables

    def _trainables(self, network: Network) -> list[Trainable]:
        """Return each parameter with its part, LoRA+ role and block's learning rate."""
        names = list(network.adapters)
        rates = block_rates(self._settings, block_count(names))
        trainables = []
        for name, adapter in network.adapters.items():
            part = "text_encoder_2" if self._two_text_rates and name.startswith("lora_te2") else part_of(name)
            group, factor = "", 1.0
            if rates is not None and part == "unet":
                group, factor = f"unet_block{block_of(name)}", rates[block_of(name)]
            for parameter, role in adapter.parameters():
                trainables.append(Trainable(part, [parameter], role=role, name=group, factor=factor))
        return trainables

    @property
    def _built(self) -> Network:
        """The network, after `build`."""
        assert self.network is not None
        return self.network

    def state_dict(self) -> dict[str, Tensor]:
        return self._built.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of a training state. Raises ProblemsError if its layers, sizes or alphas are not those of the settings."""
        alphas = {key: float(tensor) for key, tensor in self.state_dict().items() if key.endswith(f".{ALPHA}")}
        self._built.load_state(tensors)
        for key, alpha in self.state_dict().items():
            if key in alphas and float(alpha) != alphas[key]:
                what = f"The alpha in this training state is {float(alpha):g}, not {alphas[key]:g}, such as of {key}"
                fix = "use the network settings it was trained with"
                raise ProblemsError.one(what, "network.alpha", fix, "network.other-alpha")

    def register_in_modules(self) -> None:
        self._built.register_in_modules()

    def set_strength(self, strength: float) -> None:
        if strength != self._strength:
            self._strength = strength
            self._built.set_multiplier(strength)

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        """Freeze the text encoders from the configured step on; pass the step and the images to the network, whose dropout depends on
        them."""
        if self._stop_text is not None and step >= self._stop_text:
            self._stop_text = None
            for weight in self._built.parameters_by_part()["text_encoder"]:
                weight.requires_grad_(False)
        self._built.show(step, number, images)

    def after_micro_batch(self) -> None:
        self._built.hide()

    def after_update(self) -> dict[str, Tensor]:
        """Apply max weight norm, if set. Returns {"max_norm/keys_scaled", "max_norm/average_key_norm", "max_norm/max_key_norm": number,
        0-d}; {} if not set."""
        limit = self._settings.scale_weight_norms
        if limit is None:
            return {}
        facts = self._built.apply_max_norm(limit)
        return {
            "max_norm/keys_scaled": facts.scaled,
            "max_norm/average_key_norm": facts.mean,
            "max_norm/max_key_norm": facts.largest,
        }

    @contextmanager
    def untrained(self) -> Iterator[None]:
        strength = self._strength
        self.set_strength(0.0)
        try:
            yield
        finally:
            self.set_strength(strength)

    def metadata(self) -> dict[str, str]:
        """Return metadata of the network; keys that do not apply are left out.

        ss_network_weights, ss_base_weights   JSON: the file that it started from, the merged files
        ss_stop_text_encoder_training        step at which the text encoder stopped
        ss_network_layers, ss_layers, ...    number of the chosen layers; the settings in CHOICE that choose them, as JSON
        ss_pissa                             note on PiSSA
        ss_network_dim, ss_network_alpha     if ranks and alphas come from a file
        """
        metadata = {}
        if self._files.start is not None:
            start = {"name": self._files.start.name, "sha256": self._files.start_sha256}
            metadata["ss_network_weights"] = json.dumps(start, ensure_ascii=False)
        if self._files.merged:
            merged = [
                {"name": file.path.name, "multiplier": file.strength, "sha256": file.sha256}
                for file in self._files.merged
            ]
            metadata["ss_base_weights"] = json.dumps(merged, ensure_ascii=False)
        if self._stop_step is not None and self.trains_text:
            metadata["ss_stop_text_encoder_training"] = str(self._stop_step)
        if self._layer_counts:
            metadata["ss_network_layers"] = self._layer_counts
            for name in CHOICE:
                if lines := getattr(self._settings, name):
                    metadata[f"ss_{name}"] = json.dumps(lines, ensure_ascii=False)
        if self._settings.starts_by_pissa:
            metadata["ss_pissa"] = "difference to the unchanged base model, at twice the trained rank"
        sizes_of_file = self._settings.dim_from_weights
        if sizes_of_file or any(each.code == "network.start-alpha" for each in self.advice):
            adapters = [each for each in self._built.adapters.values() if not isinstance(each, NormAdapter)]
            metadata["ss_network_alpha"] = one_or_dynamic({adapter.alpha for adapter in adapters})
            metadata |= {"ss_network_dim": one_or_dynamic({each.rank for each in adapters})} if sizes_of_file else {}
        return metadata

    def write(
        self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int = 0, step: int = 0
    ) -> list[Problem]:
        """Write the LoRA file with kohya's keys and the metadata, which .ckpt and .pt files do not have; return advice on weights too large
        for `precision`. Raises ProblemsError for NaN or infinite weights."""
        dtype, tensors = type_named(precision), self._built.saved()
        if self._settings.starts_by_pissa:  # which writes other ranks than it trains
            metadata = metadata | sizes_as_metadata(tensors, metadata.get("ss_network_args", ""))
        if self._convolutions and traits_of(self._family).convolutions_in_loras:
            tensors = with_convolutions(tensors)
        if path.suffix != ".safetensors":
            return write_lora_pickle(path, tensors, dtype)
        return write_lora(path, tensors, metadata, dtype)

    def release(self) -> None:
        if self.network is not None and self.network.attached:
            self.network.detach()
        self.network = None
