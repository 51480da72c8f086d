"""The loss on pictures that never train, always with the same noise at the same timesteps.

As many training pictures are measured the same way, so that the gap between both says what is learnt by heart. Every
draw has an address of its own and no module's chance is asked: a training with and without validation is the same to
the bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core.dataset.batches import Batch
from core.dataset.captions import Showing, showing_caption
from core.dataset.views import is_varied
from core.record.events import Validated
from core.settings.base import every

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.batches import Placed
    from core.settings.noise import NoiseSettings
    from core.training.run import Run

EPOCH = -1  # in the addresses of its draws: no training epoch has it
PARTS = 5  # the range of timesteps is cut into so many parts, and measured where they meet (reference: section 7.5)
NO_CHANCE = {"flip_aug": False, "color_aug": False, "random_crop": False, "face_crop_aug_range": None}
NO_CAPTION_CHANCE = {
    "shuffle_caption": False,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_step": 0,
}


def timesteps_of(settings: NoiseSettings) -> list[int]:
    """The inner four of six evenly spaced timesteps from the lowest to the highest: 200, 400, 600, 800 of all."""
    low, high = settings.min_timestep, settings.max_timestep
    return [min(low + (high - low) * part // PARTS, 999) for part in range(1, PARTS)]


def as_it_is(placed: Placed) -> Placed:
    """The picture without mirroring, other crops or colours: a held-out one is measured the same way each time."""
    pictures = placed.concept.pictures.model_copy(update=NO_CHANCE)
    return replace(placed, concept=replace(placed.concept, pictures=pictures))


def caption_of(placed: Placed) -> str:
    """Its caption with nothing dropped or shuffled."""
    settings = placed.concept.captions.model_copy(update=NO_CAPTION_CHANCE)
    return showing_caption(Showing(placed.key, 0, placed.caption, settings, placed.picture.words), 0, 0)


def compared_pictures(training: Sequence[Placed], held_out: Sequence[Placed]) -> list[Placed]:
    """As many pictures that train as are held out, evenly picked, always the same; all where there are fewer."""
    own = [placed for placed in training if placed.concept.role == "train"]
    count = min(len(own), len(held_out))
    picked = [own[index * len(own) // count] for index in range(count)]
    # Those that look different at each draw have no latents of their plain look: they keep one fixed look.
    return [placed if is_varied(placed.concept.pictures) else as_it_is(placed) for placed in picked]


@dataclass(frozen=True)
class Measured:
    """Mean losses by timestep, and over all."""

    by_timestep: dict[int, float]
    pictures: int

    @property
    def loss(self) -> float:
        return sum(self.by_timestep.values()) / len(self.by_timestep)


class Validation:
    """Which pictures are measured; made once for a run. Empty when none is held out."""

    def __init__(self, held_out: Sequence[Placed], training: Sequence[Placed], most_batches: int | None):
        most = every(most_batches)
        self.held_out = batches_of([as_it_is(placed) for placed in held_out])
        self.held_out = self.held_out[: int(most)] if most else self.held_out
        self.compared = batches_of(compared_pictures(training, self.pictures)) if self.held_out else []

    @property
    def pictures(self) -> list[Placed]:
        """The held-out pictures that are measured."""
        return [placed for batch in self.held_out for placed, _ in batch.items]

    def captions(self) -> list[str]:
        """Every caption it needs encoded."""
        both = [*self.held_out, *self.compared]
        return list(dict.fromkeys(caption_of(placed) for batch in both for placed, _ in batch.items))

    def measure(self, run: Run) -> Validated:
        """The loss of the weights as they are now."""
        import torch

        with torch.no_grad(), without_chance(run):
            run.text.need(self.captions())
            run.context.stage("measuring the loss on held-out pictures")
            found = _measure(run, self.held_out)
            usual = _measure(run, self.compared)
        return Validated(
            run.state.step,
            found.loss,
            usual.loss,
            found.loss - usual.loss,
            {str(timestep): loss for timestep, loss in found.by_timestep.items()},
            found.pictures,
        )


def batches_of(pictures: Sequence[Placed]) -> list[Batch]:
    """Pictures of one size and folder group together, at most a training batch of them, in the order they came."""
    groups: defaultdict[tuple, list[Placed]] = defaultdict(list)
    for placed in pictures:
        groups[placed.bucket].append(placed)
    batches = []
    for (_, size), members in groups.items():
        most = members[0].concept.pictures.train_batch_size
        for begin in range(0, len(members), most):
            batches.append(Batch(size, tuple((placed, 0) for placed in members[begin : begin + most])))
    return batches


def _measure(run: Run, batches: Sequence[Batch]) -> Measured:
    """Every batch at every timestep. The device is waited for once, at the end."""
    import torch

    timesteps = timesteps_of(run.job.noise)
    losses: list[Tensor] = []
    for batch in batches:
        run.context.check()
        losses.append(torch.stack([_losses_at(run, batch, number, at) for number, at in enumerate(timesteps)]))
    means = torch.cat(losses, dim=1).double().mean(dim=1).tolist()
    return Measured(dict(zip(timesteps, means, strict=True)), sum(len(batch) for batch in batches))


def _losses_at(run: Run, batch: Batch, number: int, timestep: int) -> Tensor:
    """Losses [B] with the noise that belongs to these pictures and this timestep, whatever the training's seed is."""
    from core.training.update import picture_losses

    seed = run.job.validation.validation_seed
    addresses = [(seed, EPOCH, placed.key, number) for placed, _ in batch.items]
    captions = [caption_of(placed) for placed, _ in batch.items]
    return picture_losses(run, EPOCH, batch, addresses, [timestep] * len(batch), captions).float()


@contextmanager
def without_chance(run: Run) -> Iterator[None]:
    """No dropout of any module inside."""
    parts = [run.components.unet, *run.components.text_encoders]
    modules = [module for part in parts for module in part.modules() if module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
