"""ControlNets and LLLites at the steps of a generation: each with its control image, its weight and its range of the
steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from core.control.controlnet import ControlNet, Residuals
from core.control.controlnet_file import load_control_net
from core.control.hints import black_hints
from core.control.hints.by_model import HintMaker
from core.control.lllite import LLLite, lllite_targets
from core.control.lllite_file import load_lllite
from core.control.shapes import LLLiteTarget
from core.diffusion.text_states import Conditioning
from core.generation.model.other_files import NETS, ControlFile, Nets
from core.generation.model.store import ModelStore, fingerprint
from core.generation.plan.hooks import HookInputs
from core.generation.plan.initial import CONTROL, opened
from core.generation.plan.stages import as_generator, has_regions
from core.generation.prompt.runs import parts_of
from core.generation.sample.canvas import Canvas, Part, Size, control_image_for, fitted
from core.generation.sample.guidance import PERTURBED, POSITIVE, Moment
from core.generation.sample.loop import Hook
from core.record.context import Reports
from core.record.workspace import Workspace, resolve_path
from core.settings.generation.controls import ControlUse

if TYPE_CHECKING:
    from core.families.components import Components
    from core.generation.model.sources import Sources

SOFT_WEIGHT_RATIO = 0.825  # ratio of each residual's weight to the next one inwards, in A1111 (sd-webui-controlnet)
CACHED_HINTS = 40  # of a job in RAM: twenty nets in two stages
# Settings that do not change a control image.
IRRELEVANT: dict[str, Any] = {"file": "", "weight": 1.0, "start_at": 0.0, "end_at": 1.0, "mode": "balanced"}


@contextmanager
def nets_of(
    store: ModelStore, components: Components, sources: Sources, workspace: Workspace, reports: Reports
) -> Iterator[Nets]:
    """The ControlNets and LLLites of a job, leased from the store; models of preprocessors run until it ends."""

    def load(file: ControlFile) -> ControlNet | LLLite:
        unet, family = components.denoiser, components.family
        if file.is_lllite:
            net: LLLite | ControlNet = load_lllite(file.path, lllite_targets(unet, family), family)
        else:
            net = ControlNet(load_control_net(file.path, unet, family, sources.model))
        # a module around diffusers': its `to` warns about fp32 layers although it lists none
        return net.to(components.device, _compute_dtype(unet)).eval()

    def lease(use: ControlUse, earlier_uses: int) -> AbstractContextManager[ControlNet | LLLite]:
        file = sources.controls[use.file]
        path = file.path
        size = path.stat().st_size if path.is_file() else 0
        dtype = str(_compute_dtype(components.denoiser))
        key = fingerprint(path), fingerprint(sources.model), components.device, dtype, earlier_uses
        return store.lease("ControlNet", key, partial(load, file), name=path.name, size=size, device=components.device)

    with HintMaker(workspace, NETS, reports.cancel) as maker:
        yield Nets(lease, _cached_hints(maker, reports))


def _cached_hints(maker: HintMaker, reports: Reports) -> Callable[[ControlUse, Size, Canvas | None], np.ndarray]:
    """Return `Nets.hint`: a function to a control image, which caches the last CACHED_HINTS and warns of black results."""

    @lru_cache(maxsize=CACHED_HINTS)
    def cached(use: ControlUse, size: Size, part: Part | None) -> np.ndarray:
        def make(image: Image) -> Image:
            return image if use.preprocessor == "none" else fromarray(maker.make(np.array(image), use))

        path = resolve_path(use.image or "")
        pixels = np.array(control_image_for(opened(path, CONTROL), use.fit, size, part, make))
        if use.preprocessor != "none" and not pixels.any():
            reports.warn(black_hints([path.name], NETS))
        return pixels

    def hint(use: ControlUse, size: Size, canvas: Canvas | None) -> np.ndarray:
        part = None if canvas is None or canvas.full is None or canvas.box is None else (canvas.full.size, canvas.box)
        return cached(use.model_copy(update=IRRELEVANT), size, part)

    return hint


def _compute_dtype(unet: Any) -> torch.dtype:
    """The U-Net's compute dtype: weights may be stored in fewer bytes."""
    return next(weight.dtype for weight in unet.parameters() if weight.dtype.itemsize > 1)


def hook_of(inputs: HookInputs) -> Hook | None:
    """The hook, if there are active ControlNets."""
    uses = inputs.job.controls.used
    if not uses or (inputs.stage.another and inputs.job.hires.highres_fix_disable_control_net):
        return None
    regions = len(parts_of(inputs.job.generate.prompt)) if has_regions(inputs.job) else 1
    return Controls(uses, inputs, regions)


class Controls(Hook):
    """Adds the residuals of a stage's ControlNets; LLLites are attached to the U-Net for the stage.

    regions   number of sub-prompts with their own regions in each image: a ControlNet reads the last of them
    """

    def __init__(self, uses: Sequence[ControlUse], inputs: HookInputs, regions: int = 1):
        self._uses, self._inputs, self._regions = uses, inputs, regions
        self._nets: list[ControlNet | LLLite] = []
        self._images: dict[tuple[int, Size], Tensor] = {}

    @contextmanager
    def around(self) -> Iterator[None]:
        inputs, unet, files = self._inputs, self._inputs.components.denoiser, [use.file for use in self._uses]
        targets: list[LLLiteTarget] = []
        with ExitStack() as stack:
            for number, use in enumerate(self._uses):
                assert inputs.nets is not None, "what has ControlNets lends them"
                net = stack.enter_context(inputs.nets.lease(use, files[:number].count(use.file)))
                if isinstance(net, LLLite):
                    targets = targets or lllite_targets(unet, inputs.family.name)
                    stack.callback(net.detach)
                    net.attach(unet, targets)
                    net.multiplier = use.weight
                self._nets.append(net)
            try:
                yield
            finally:
                self._nets = []

    def conditioned(self, at: Moment, noisy: Tensor, conditioning: Conditioning) -> Conditioning:
        height, width = noisy.shape[-2:]
        size = width * self._inputs.family.latent_pixels, height * self._inputs.family.latent_pixels
        hint = self._inputs.stage.size if self._take_turns else size  # then sd-scripts resizes the embedding
        total: Residuals | None = None
        for number, (use, net, acts) in enumerate(zip(self._uses, self._nets, self._acting(at), strict=True)):
            if isinstance(net, LLLite):
                net.set_control(self._image(number, size) if acts else None)
            elif acts:
                added = self._residuals(use, net, at, noisy, replace(conditioning, control=self._image(number, hint)))
                total = added if total is None else total.plus(added)
        return conditioning if total is None else replace(conditioning, added={**conditioning.added, **total.added()})

    def _acting(self, at: Moment) -> list[bool]:
        """Which of them act at a step. With sd-scripts compatibility, one whose range ends within a step still acts at
        it, and several ControlNets of SD 1.x and 2.x take turns, one per step (reference: controlnet, 4.1 and 4.2)."""
        kohya = as_generator(self._inputs.job)
        end = (at.index if kohya else at.index + 1) / at.steps
        acting = [use.start_at <= at.index / at.steps and end <= use.end_at for use in self._uses]
        nets = [number for number, net in enumerate(self._nets) if isinstance(net, ControlNet)]
        if self._take_turns:
            idle = {number for index, number in enumerate(nets) if index != at.index % len(nets)}
            acting = [on and number not in idle for number, on in enumerate(acting)]
        return acting

    @property
    def _take_turns(self) -> bool:
        """Whether ControlNets take turns as in sd-scripts' generator for SD 1.x and 2.x."""
        return as_generator(self._inputs.job) and self._inputs.family.name != "sdxl"

    def _residuals(
        self, use: ControlUse, net: ControlNet, at: Moment, noisy: Tensor, conditioning: Conditioning
    ) -> Residuals:
        """The weighted residuals of one net, for all rows."""
        pooled = bool(net.net.config.global_pool_conditions)
        conditioning = self._one_text(conditioning, len(noisy))
        if use.mode in ("balanced", "prompt") and not pooled:
            return _weighted(net.residuals(noisy, at.timestep, conditioning), use)
        rows = self._prompt_rows(at, noisy.device)
        part = net.residuals(noisy[rows], at.timestep, _rows_of(conditioning, rows))
        weighted = part.scaled(use.weight) if pooled and use.mode == "guess" else _weighted(part, use)
        return Residuals(
            tuple(_scatter(each, rows, len(noisy)) for each in weighted.down), _scatter(weighted.mid, rows, len(noisy))
        )

    @staticmethod
    def _prompt_rows(at: Moment, device: torch.device) -> Tensor:
        """The indices of the prompt's rows, or of all that AND joins, among those of all sides."""
        which = [side.split()[0] in (POSITIVE, PERTURBED) for side in at.sides]
        return torch.tensor(which, device=device).repeat_interleave(len(at.noises)).nonzero()[:, 0]

    def _one_text(self, conditioning: Conditioning, rows: int) -> Conditioning:
        """The conditioning with one text per row: with regions, the last sub-prompt of each image."""
        if self._regions == 1:
            return conditioning
        images = len(self._inputs.noises)
        before = self._inputs.sides.index(POSITIVE) * images
        last = before + self._regions * (1 + torch.arange(images)) - 1
        after = before + self._regions * images
        keep = torch.cat([torch.arange(before), last, torch.arange(after, after + rows - before - images)])
        context = conditioning.texts.context
        return replace(conditioning, texts=replace(conditioning.texts, context=context[keep.to(context.device)]))

    def _image(self, number: int, size: Size) -> Tensor:
        """A control image at a size, float32 [1, 3, H, W] in 0..1, on the stage's device. A preprocessor computes it
        once, at the size of the stage, also for the smaller latents of Gradual Latent."""
        if (number, size) not in self._images:
            inputs, use = self._inputs, self._uses[number]
            assert inputs.nets is not None
            pixels = inputs.nets.hint(use, size if use.preprocessor == "none" else inputs.stage.size, inputs.canvas)
            if pixels.shape[1::-1] != size:
                pixels = np.array(fitted(fromarray(pixels), size, "resize"))
            hint = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
            self._images[number, size] = hint.to(inputs.components.device)
        return self._images[number, size]


def _weighted(residuals: Residuals, use: ControlUse) -> Residuals:
    """The residuals times the use's weight; unless its mode is balanced, outer residuals are weaker than inner ones."""
    count = len(residuals.down) + 1
    if use.mode == "balanced":
        return residuals if use.weight == 1 else residuals.scaled(use.weight)
    if use.mode == "guess":  # as diffusers' ControlNetModel
        return residuals.scaled([use.weight * float(each) for each in torch.logspace(-1, 0, count)])
    return residuals.scaled([use.weight * SOFT_WEIGHT_RATIO ** (count - 1 - number) for number in range(count)])


def _rows_of(conditioning: Conditioning, rows: Tensor) -> Conditioning:
    sizes = None if conditioning.sizes is None else conditioning.sizes[rows]
    return replace(
        conditioning, texts=conditioning.texts.each(lambda tensor: tensor[rows.to(tensor.device)]), sizes=sizes
    )


def _scatter(part: Tensor, rows: Tensor, count: int) -> Tensor:
    """The rows of `part` at their indices among `count` rows of zeros."""
    all_rows = part.new_zeros(count, *part.shape[1:])
    all_rows[rows] = part
    return all_rows
