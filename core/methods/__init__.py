"""What trains: one file per way of training. `Method` is what a training asks of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from core.dataset.text_cache import EncodeText
    from core.diffusion.text_states import TextStates
    from core.optimization.groups import Trainable
    from core.record.problems import Problem


Use = Literal["files", "samples"]  # what weights are shown for: saved files; samples and validation


class Method(Protocol):
    """One way of training. The loop knows no other words for it, so a new way is one file here.

    trains_text      the text encoders take part in what trains: they are loaded, and texts are encoded at each step
    trains_unet      the U-Net takes part in it
    extension        of the file for people, ".safetensors"; empty for a folder
    steady_gradients whether the same weights get gradients at each step (several processes then agree on them once)
    clipped          weights whose gradients are clipped together, once it is built; None: all that train
    adds_up          whether gradients of clipped weights that do not train add up from step to step, as in sd-scripts
    advice           what to say once it is built
    """

    trains_text: bool
    trains_unet: bool
    extension: str
    steady_gradients: bool
    clipped: Sequence[nn.Parameter] | None
    adds_up: bool
    advice: list[Problem]

    def build(self, components: Any) -> list[Trainable]:
        """Make what trains, on the loaded model; returns it with its parts and rates. Called once."""

    def encode(self, captions: Sequence[str], encode: EncodeText) -> TextStates:
        """The states of captions, made with `encode`, in the form that this method's passes read."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything to continue from, besides the optimizer: the live tensors, not copies."""

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put such a state in force."""

    def write(self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int, step: int) -> list[Problem]:
        """Write the file for people, "fp32", "fp16" or "bf16"; returns advice about it. epoch, step: finished ones."""

    def beside(self, path: Path) -> list[Path]:
        """Further files that `write` makes beside this one."""

    def metadata(self) -> dict[str, str]:
        """What the file says beyond the settings and the dataset."""

    def set_strength(self, strength: float) -> None:
        """How strongly what is trained takes part in the next passes: 1 is whole, 0 the model as it was before. A method
        that changes the model itself knows 1 only."""

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        """The next passes, also those that the gradient repeats, show these images, in this order.

        step    optimizer updates done    number  of the micro-batch in this update
        images  values that name each image: its address in random draws
        """

    def after_micro_batch(self) -> None:
        """Its gradients are there; until the next one, what is trained is used, not trained."""

    def after_update(self) -> dict[str, Tensor]:
        """The weights have moved. Returns numbers for the log by name, 0-d on the device."""

    def untrained(self) -> AbstractContextManager[None]:
        """Inside, passes are of the model as it was before. A method that changes the model itself can do so only where
        it holds a second one."""

    def averaged(self, optimizer: Optimizer, use: Use) -> AbstractContextManager[None]:
        """Inside, the weights for this use (an average, where there is one); outside, those that train."""

    def release(self) -> None:
        """Let go of the model."""
