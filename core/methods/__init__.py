"""Training methods, one file each. `Method` is the interface that training uses."""

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
    """What a method is built from. files: the LoRA files that the job names."""

    job: TrainJob
    workspace: Workspace
    seed: int
    model: Path
    vae: Path | None
    files: NetworkFiles


class Method(ABC):
    """A training method, as the training loop uses it; its MethodSpec describes it to everything that runs before.

    trains_text      the text encoders are trained: they are loaded, and captions are encoded at each step
    trains_unet      the U-Net is trained
    extension        of the checkpoint, ".safetensors"; empty for a folder
    steady_gradients whether the same weights get gradients at each step (several processes then agree on them once)
    clipped          weights whose gradients are clipped together, set by `build`; None: all trained ones
    adds_up          whether gradients of clipped weights that are not trained add up from step to step, as in
                     sd-scripts
    advice           problems to report after `build`
    needs_untrained  whether `untrained` needs a second U-Net, passed to `hold_untrained`
    """

    trains_text: bool
    trains_unet: bool
    extension: str
    steady_gradients: bool = True
    clipped: Sequence[nn.Parameter] | None = None
    adds_up: bool = True  # sd-scripts clears the gradients of its optimizer's weights
    needs_untrained: bool = False

    def __init__(self) -> None:
        self.advice: list[Problem] = []

    # -- implemented by each method

    @abstractmethod
    def build(self, components: Components) -> list[Trainable]:
        """Create the trained weights on the loaded model; returns them with their parts and rates. Called once."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything to resume from, except the optimizer and the EMA: the live tensors, not copies."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of `state_dict`."""

    @abstractmethod
    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        """Write the checkpoint in "fp32", "fp16" or "bf16"; returns advice about it. epoch, step: how many are done."""

    @abstractmethod
    def release(self) -> None:
        """Free the model."""

    # -- defaults for most methods

    def encode(self, captions: Sequence[str], encode: EncodeText) -> TextStates:
        """Encode captions with `encode`, in the form that this method's passes read."""
        return encode(captions)

    def conditioned(self, conditioning: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        """The conditioning of a pass (training, validation or samples), with the outputs of a model next to the
        denoiser."""
        return conditioning

    def extra_files(self, path: Path) -> list[Path]:
        """Paths of the files that `write` writes besides `path`."""
        return []

    def metadata(self) -> dict[str, str]:
        """Metadata in addition to the settings and the dataset."""
        return {}

    def set_strength(self, strength: float) -> None:
        """Set the strength of the trained weights: 1 is full, 0 the untrained model. Methods that change the model
        itself support 1 only."""
        return

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        """Called before the passes of a micro-batch, including those that gradient checkpointing repeats.

        step    optimizer steps done      number  of the micro-batch in this step
        images  values that identify each image, for random draws, in the batch's order
        """
        return

    def after_micro_batch(self) -> None:
        """Called when the gradients are ready; trained weights are only read until the next micro-batch."""
        return

    def after_update(self) -> dict[str, Tensor]:
        """Called after the optimizer's step. Returns numbers for the log by name, 0-d on the device."""
        return {}

    def untrained(self) -> AbstractContextManager[None]:
        """A context in which passes use the untrained model."""
        return nullcontext()

    def sampling(self) -> AbstractContextManager[None]:
        """A context for the passes of samples."""
        return nullcontext()

    def hold_untrained(self, unet: Any) -> None:
        """Take a second, untrained U-Net for `untrained`."""
        raise AssertionError("only for methods that need one")

    # -- for DeepSpeed

    def register_in_modules(self) -> None:
        """Register the trained weights next to the model as parameters of the model's modules."""
        return
