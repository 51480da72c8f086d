"""Training methods, one file each; `Method` is the interface that the training loop uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.diffusion.text_states import Conditioning, TextStates
from core.families.components import Components
from core.record.lazy_torch import Tensor, nn

if TYPE_CHECKING:
    from core.dataset.caches.texts import EncodeText
    from core.networks.files import NetworkFiles
    from core.optimization.groups import Trainable
    from core.record.problems import Problem
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob


Use = Literal["files", "samples"]  # of weights: saved files; samples and validation


@dataclass(frozen=True)
class MethodInputs:
    """What a training method is built from.

    model, vae   paths of the base model and of a separate VAE
    files        LoRA files that the job starts from or merges
    """

    job: TrainJob
    workspace: Workspace
    seed: int
    model: Path
    vae: Path | None
    files: NetworkFiles


class Method(ABC):
    """A training method as the training loop uses it. Settings, rules and page read its MethodSpec instead.

    trains_text      the text encoders are trained: they are loaded, and captions are encoded at each step
    trains_unet      the U-Net is trained
    extension        of the checkpoint, such as ".safetensors"; "" for a folder
    steady_gradients whether the same weights get gradients at each step, so that several processes agree on them only once
    clipped          weights whose gradients are clipped together, set by `build`; None: all trained weights
    keeps_clipped_gradients
                     whether gradients of clipped weights that are not trained accumulate from step to step, as in
                     sd-scripts
    advice           problems to report after `build`
    needs_untrained  whether `untrained` needs a second U-Net, passed to `hold_untrained`
    """

    trains_text: bool
    trains_unet: bool
    extension: str
    steady_gradients: bool = True
    clipped: Sequence[nn.Parameter] | None = None
    keeps_clipped_gradients: bool = True  # sd-scripts clears the gradients of its optimizer's weights
    needs_untrained: bool = False

    def __init__(self) -> None:
        self.advice: list[Problem] = []

    # -- implemented by each method

    @abstractmethod
    def build(self, components: Components) -> list[Trainable]:
        """Create the trained weights on the loaded model; return them with their parts and learning rates. Called once."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors needed to resume, except those of the optimizer and the EMA: the live tensors, not copies."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of `state_dict`."""

    @abstractmethod
    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        """Write the checkpoint and return advice about it.

        precision     "fp32", "fp16" or "bf16"
        epoch, step   number of epochs and optimizer steps done
        """

    @abstractmethod
    def release(self) -> None:
        """Release the model, so that its memory is freed."""

    # -- defaults for most methods

    def encode(self, captions: Sequence[str], encode: EncodeText) -> TextStates:
        """Return the text states of captions, in the form that this method's passes read. encode: (texts) -> text states"""
        return encode(captions)

    def conditioned(self, conditioning: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        """Return the conditioning of a pass (training, validation or samples) with the outputs of a model next to the denoiser added:
        unchanged by default.
        """
        return conditioning

    def extra_files(self, path: Path) -> list[Path]:
        """Return the paths of the files that `write` writes besides `path`: none by default."""
        return []

    def metadata(self) -> dict[str, str]:
        """Return the file metadata that the method adds to that of the settings and the dataset."""
        return {}

    def set_strength(self, strength: float) -> None:
        """Set the strength of the trained weights: 1 is full, 0 the untrained model. Methods that change the model itself support only
        1."""
        return

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        """Prepare for the passes of a micro-batch, including those that gradient checkpointing repeats: nothing by default.

        step    optimizer steps done
        number  index of the micro-batch in this step
        images  keys of the batch's images, in order, for addressed random numbers
        """
        return

    def after_micro_batch(self) -> None:
        """Called when the gradients of a micro-batch are computed; trained weights are only read until the next micro-batch."""
        return

    def after_update(self) -> dict[str, Tensor]:
        """Called after the optimizer's step. Returns {logged name: number, 0-d on the device}."""
        return {}

    def untrained(self) -> AbstractContextManager[None]:
        """Return a context in which passes use the untrained model."""
        return nullcontext()

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context in which samples are generated: without effect by default."""
        return nullcontext()

    def hold_untrained(self, unet: Any) -> None:
        """Store a second, untrained U-Net for the context `untrained`."""
        raise AssertionError("only for methods that need one")

    # -- for DeepSpeed

    def register_in_modules(self) -> None:
        """Register the trained weights next to the model as parameters of the model's modules."""
        return
