"""ControlNets and LLLites during sampling: each with its control image, weight and step range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from core.generation.plan.stages import as_sd_scripts, has_regions
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
    """Context with the ControlNets and LLLites of a job, leased from the store, and its control images.

    Models of preprocessors stay loaded until the context ends.
    """

    def load(file: ControlFile) -> ControlNet | LLLite:
        """Load a ControlNet or LLLite to the model's device, in the U-Net's compute dtype."""
        unet, family = components.denoiser, components.family
        if file.is_lllite:
            net: LLLite | ControlNet = load_lllite(file.path, lllite_targets(unet, family), family)
        else:
            net = ControlNet(load_control_net(file.path, unet, family, sources.model))
        # a module around diffusers': its `to` warns about fp32 layers although it lists none
        return net.to(components.device, _compute_dtype(unet)).eval()

    def lease(use: ControlUse, earlier_uses: int) -> AbstractContextManager[ControlNet | LLLite]:
        """Lease the ControlNet or LLLite of an entry of `controls.nets`. earlier_uses: number of uses of its file before this one"""
        file = sources.controls[use.file]
        path = file.path
        size = path.stat().st_size if path.is_file() else 0
        dtype = str(_compute_dtype(components.denoiser))
        key = fingerprint(path), fingerprint(sources.model), components.device, dtype, earlier_uses
        return store.lease("ControlNet", key, partial(load, file), name=path.name, size=size, device=components.device)

    with HintMaker(workspace, NETS, reports.cancel) as maker:
        yield Nets(lease, _cached_hints(maker, reports))


def _cached_hints(maker: HintMaker, reports: Reports) -> Callable[[ControlUse, Size, Canvas | None], np.ndarray]:
    """Return the function `Nets.hint`, which caches the last CACHED_HINTS control images and warns of all-black results.
    maker: runs the preprocessors"""

    @lru_cache(maxsize=CACHED_HINTS)
    def cached(use: ControlUse, size: Size, part: Part | None) -> np.ndarray:
        """Return the control image of `use` at `size`. part: area of the initial image to use, None for all"""

        def make(image: Image) -> Image:
            return image if use.preprocessor == "none" else fromarray(maker.make(np.array(image), use))

        path = resolve_path(use.image or "")
        pixels = np.array(control_image_for(opened(path, CONTROL), use.fit, size, part, make))
        if use.preprocessor != "none" and not pixels.any():
            reports.warn(black_hints([path.name], NETS))
        return pixels

    def hint(use: ControlUse, size: Size, canvas: Canvas | None) -> np.ndarray:
        """Implement `Nets.hint`: look up the control image under those settings of `use` that affect it."""
        part = None if canvas is None or canvas.full is None or canvas.box is None else (canvas.full.size, canvas.box)
        return cached(use.model_copy(update=IRRELEVANT), size, part)

    return hint


def _compute_dtype(unet: Any) -> torch.dtype:
    """Return the dtype in which the U-Net computes; its weights may be stored in fp8."""
    return next(weight.dtype for weight in unet.parameters() if weight.dtype.itemsize > 1)


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook of a stage with active ControlNets or LLLites, else None."""
    is_off = inputs.stage.seed_offset and inputs.job.hires.highres_fix_disable_control_net
    return Controls(inputs) if inputs.job.controls.used and not is_off else None


class Controls(Hook):
    """Adds the residuals of a stage's ControlNets; LLLites are attached to the U-Net during the stage."""

    def __init__(self, inputs: HookInputs):
        self._uses, self._inputs = inputs.job.controls.used, inputs
        # sub-prompts of each image; of several, which regions have, a ControlNet reads the last
        self._regions = len(parts_of(inputs.job.generate.prompt)) if has_regions(inputs.job) else 1
        self._nets: list[ControlNet | LLLite] = []
        self._images: dict[tuple[int, Size], Tensor] = {}

    @contextmanager
    def around(self) -> Iterator[None]:
        """Context with the ControlNets leased and the LLLites attached."""
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
        """Return the conditioning with the sum of the ControlNets' residuals for `noisy`, and set the LLLites' control images."""
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
        """Return for each ControlNet or LLLite whether it acts at this step.

        With compatibility "kohya", one whose range ends within a step still acts at that step, and several ControlNets of SD 1.x
        and 2.x take turns, one per step (reference: controlnet, 4.1 and 4.2).
        """
        kohya = as_sd_scripts(self._inputs.job)
        end = (at.index if kohya else at.index + 1) / at.steps
        acting = [use.start_at <= at.index / at.steps and end <= use.end_at for use in self._uses]
        nets = [number for number, net in enumerate(self._nets) if isinstance(net, ControlNet)]
        if self._take_turns:
            idle = {number for index, number in enumerate(nets) if index != at.index % len(nets)}
            acting = [on and number not in idle for number, on in enumerate(acting)]
        return acting

    @property
    def _take_turns(self) -> bool:
        """Whether ControlNets take turns, one per step, as in sd-scripts' generator for SD 1.x and 2.x."""
        return as_sd_scripts(self._inputs.job) and self._inputs.family.name != "sdxl"

    def _residuals(
        self, use: ControlUse, net: ControlNet, at: Moment, noisy: Tensor, conditioning: Conditioning
    ) -> Residuals:
        """Return the weighted residuals of one ControlNet for all rows of `noisy`.

        Rows of the negative prompt are 0 in the control mode "guess" and for ControlNets with global pooling.
        """
        pooled = bool(net.net.config.global_pool_conditions)
        conditioning = self._last_texts(conditioning, len(noisy))
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
        """Return the batch indices of the prompt's rows (of all prompts joined by AND), int64 [n]."""
        is_prompt = [side.split()[0] in (POSITIVE, PERTURBED) for side in at.sides]
        return torch.tensor(is_prompt, device=device).repeat_interleave(len(at.noises)).nonzero()[:, 0]

    def _last_texts(self, conditioning: Conditioning, rows: int) -> Conditioning:
        """Return the conditioning with one text per row: with regions, the last sub-prompt of each image. rows: batch size of the U-Net"""
        if self._regions == 1:
            return conditioning
        images = len(self._inputs.noises)
        before = self._inputs.sides.index(POSITIVE) * images
        last_rows = before + self._regions * (1 + torch.arange(images)) - 1
        after = before + self._regions * images
        keep = torch.cat([torch.arange(before), last_rows, torch.arange(after, after + rows - before - images)])
        context = conditioning.texts.context
        return replace(conditioning, texts=replace(conditioning.texts, context=context[keep.to(context.device)]))

    def _image(self, number: int, size: Size) -> Tensor:
        """Return the control image of the entry at index `number`, float32 [1, 3, H, W] in 0..1, on the stage's device.

        Preprocessors run once, at the stage's size; for the smaller latents of Gradual Latent their result is resized.

        size   (width, height) in pixels
        """
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
    """Scale residuals by the weight; in the modes "prompt" and "guess", outer residuals are weaker than inner ones."""
    count = len(residuals.down) + 1
    if use.mode == "balanced":
        return residuals if use.weight == 1 else residuals.scaled(use.weight)
    if use.mode == "guess":  # as diffusers' ControlNetModel
        return residuals.scaled([use.weight * float(each) for each in torch.logspace(-1, 0, count)])
    return residuals.scaled([use.weight * SOFT_WEIGHT_RATIO ** (count - 1 - number) for number in range(count)])


def _rows_of(conditioning: Conditioning, rows: Tensor) -> Conditioning:
    """Return the conditioning of some batch rows. rows: their indices, int64 [n]"""
    sizes = None if conditioning.sizes is None else conditioning.sizes[rows]
    return replace(
        conditioning, texts=conditioning.texts.each(lambda tensor: tensor[rows.to(tensor.device)]), sizes=sizes
    )


def _scatter(part: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return [count, ...] with the rows of `part` at the indices `rows` and zeros elsewhere."""
    all_rows = part.new_zeros(count, *part.shape[1:])
    all_rows[rows] = part
    return all_rows
