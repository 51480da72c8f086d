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

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from core.dataset.caches.texts import EncodeText
    from core.networks.files import NetworkFiles
    from core.optimization.groups import Trainable
    from core.record.problems import Problem
    from core.record.workspace import Workspace
    from core.settings.job import TrainJob


Use = Literal["files", "samples"]  # what weights are shown for: saved files; samples and validation


@dataclass(frozen=True)
class MethodInputs:
    """What a method is made from. files: the LoRA files that the job names."""

    job: TrainJob
    workspace: Workspace
    seed: int
    model: Path
    vae: Path | None
    files: NetworkFiles


class Method(ABC):
    """One way of training, as the loop sees it; before that, its MethodSpec describes it.

    trains_text      the text encoders are trained: they are loaded, and captions are encoded at each step
    trains_unet      the U-Net is trained
    extension        of the checkpoint, ".safetensors"; empty for a folder
    steady_gradients whether the same weights get gradients at each step (several processes then agree on them once)
    clipped          weights whose gradients are clipped together, once it is built; None: all that train
    adds_up          whether gradients of clipped weights that do not train add up from step to step, as in sd-scripts
    advice           what to say once it is built
    needs_untrained  whether `untrained` needs a second U-Net, which `hold_untrained` then gets
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

    # -- what each method answers

    @abstractmethod
    def build(self, components: Components) -> list[Trainable]:
        """Make what trains, on the loaded model; returns it with its parts and rates. Called once."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything to resume from, besides the optimizer: the live tensors, not copies."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such a state in force."""

    @abstractmethod
    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        """Write the checkpoint, "fp32", "fp16" or "bf16"; returns advice about it. epoch, step: finished ones."""

    @abstractmethod
    def release(self) -> None:
        """Free the model."""

    # -- what has one answer for most

    def encode(self, captions: Sequence[str], encode: EncodeText) -> TextStates:
        """The states of captions, made with `encode`, in the form that this method's passes read."""
        return encode(captions)

    def conditioned(self, given: Conditioning, noisy_latents: Tensor, timesteps: Tensor) -> Conditioning:
        """What the denoiser reads in a pass of training, validation or samples: with what a model next to it adds."""
        return given

    def beside(self, path: Path) -> list[Path]:
        """Further files that `write` makes next to this one."""
        return []

    def metadata(self) -> dict[str, str]:
        """Metadata beyond the settings and the dataset."""
        return {}

    def set_strength(self, strength: float) -> None:
        """Strength of the trained weights in the next passes: 1 is full, 0 the model as before. A method that changes the
        model itself supports 1 only."""
        return

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        """The next passes, also those that the gradient repeats, show these images, in this order.

        step    optimizer steps done      number  of the micro-batch in this step
        images  values that name each image: its address in random draws
        """
        return

    def after_micro_batch(self) -> None:
        """The gradients are ready; until the next micro-batch, trained weights are only read."""
        return

    def after_update(self) -> dict[str, Tensor]:
        """After the optimizer's step. Returns numbers for the log by name, 0-d on the device."""
        return {}

    def untrained(self) -> AbstractContextManager[None]:
        """Inside, passes use the untrained model."""
        return nullcontext()

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, passes are those of samples."""
        return nullcontext()

    def hold_untrained(self, unet: Any) -> None:
        """A second, untrained U-Net for `untrained`."""
        raise AssertionError("asked of methods that need one")

    def averaged(self, optimizer: Optimizer, use: Use) -> AbstractContextManager[None]:
        """Inside, the weights for this use (an average, where there is one); outside, those that train."""
        from core.optimization.averaging import averaged

        return averaged(optimizer)

    # -- for DeepSpeed

    def lay_in_modules(self) -> None:
        """Let the model's modules know what trains next to them as their own weights."""
        return

    def shows_average(self, use: Use) -> bool:
        """Whether an EMA of its own takes the weights' place for this use."""
        return False

    def average_over(self, weights: Mapping[str, Tensor]) -> None:
        """Average these instead: the parts that this process moves."""
        return

    def average_state(self) -> dict[str, Tensor]:
        """Of the EMA; {} without one."""
        return {}

    def load_average(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such a state in force."""
        return
