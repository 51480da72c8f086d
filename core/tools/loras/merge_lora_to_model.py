"""Merges LoRAs into a checkpoint, file to file: each changed weight is read, changed in fp32 and written, without building the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, prod
from pathlib import Path

from core.dataset.sources.image_info import listed
from core.formats.hashes import legacy_hash
from core.formats.lora.names import BIAS, group_by_module, module_of_extra, module_of_layer
from core.formats.models.checkpoint import TensorLocation
from core.formats.models.conversion import TooLarge
from core.formats.models.overflow import largest, overflowing
from core.formats.models.whole_model import States
from core.formats.tensors.lazy import LazyTensor, in_pieces
from core.formats.tensors.writer import WEIGHTS_HASH
from core.networks.adapter_file import load_finite
from core.networks.kinds import kind_of_keys
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.convert_model import ConvertModelSettings
from core.settings.tools.loras import MergeLoraToModelSettings
from core.tools.files import model_file
from core.tools.loras.layers import target_with
from core.tools.merges import DESCRIBED, LoraInput, as_recipe, left_out_texts, lora_inputs, merge_record, texts_of
from core.tools.models import convert_model
from core.tools.models.convert_model import output_form

GROUP = "merge_lora_to_model"
SHOWN = 5
ROWS_NUMBERS = 2**19  # of a weight that are changed at once: 2 MB


@dataclass(frozen=True)
class Plan:
    """The conversion that writes the model (`copy`), and the LoRAs to merge into it."""

    copy: convert_model.Plan
    loras: Sequence[LoraInput]

    def __str__(self) -> str:
        return f"merge {count(len(self.loras), 'LoRA')} into {display_path(self.copy.conversion.target)}"


def plan(settings: MergeLoraToModelSettings, workspace: Workspace) -> Plan:
    """Plan the merge by the headers. Raises ProblemsError with all problems."""
    problems: list[Problem] = []
    path = collected(problems, model_file, settings.file, workspace, f"{GROUP}.file")
    copy = None
    if path is not None:
        form = output_form(settings.output, path)
        conversion = ConvertModelSettings(
            file=settings.file, output=settings.output, save_precision=settings.save_precision, save_model_as=form
        )
        copy = collected(
            problems, lambda: convert_model.plan(conversion, workspace, GROUP, "_merged", vae_optional=True)
        )
    loras = lora_inputs(settings.models, settings.ratios, settings.lbws, workspace, GROUP, problems)
    if copy is not None:
        for lora in loras:
            problems += lora.family_problems(copy.conversion.family, f"{GROUP}.models")
            problems += [] if problems else _no_layer_problems(lora, copy)
    raise_if_errors(problems)
    assert copy is not None
    return Plan(copy, loras)


def _no_layer_problems(lora: LoraInput, copy: convert_model.Plan) -> list[Problem]:
    """Return the problem of a LoRA without any layer of this model."""
    locations = {name: part.locations for name, part in copy.conversion.parts.items()}
    modules = [module for name in lora.layers if (module := module_of_layer(name)) is not None]
    if any(f"{path}.weight" in locations.get(part, ()) for part, path in modules):
        return []
    what = f"The LoRA {lora.path.name} matches no layer of this model"
    fix = "use it with the model it was trained on, or one of the same size"
    return [Problem(what, f"{GROUP}.models", fix, code="lora.no-matching-layers")]


def do(settings: MergeLoraToModelSettings, plan: Plan, context: JobContext) -> Outcome:
    """Write the model with every LoRA's changes."""
    merging = _Merging(plan, context)
    # Without the hash of all weights, which takes longer than the merge.
    metadata = {key: value for key, value in plan.copy.conversion.facts.metadata.items() if key != WEIGHTS_HASH}
    facts = replace(plan.copy.conversion.facts, metadata=metadata | _metadata(plan, context))
    outcome = convert_model.run(
        replace(plan.copy, conversion=replace(plan.copy.conversion, facts=facts)), context, merging.changed
    )
    lines = [f"{count(len(merging.merged), 'layer')} changed"]
    for path, names in merging.left_out.items():
        lines.append(f"layers of {path.name} that this model does not have, left out: {listed(names, SHOWN)}")
    texts, *others = (
        texts_of(each) for each in (plan.copy.conversion.facts.metadata, *(lora.metadata for lora in plan.loras))
    )
    lost = [name for name in DESCRIBED if any(each[name] not in ("", texts[name]) for each in others)]
    lines += left_out_texts("of the LoRAs", lost)
    left = {path.name: len(names) for path, names in merging.left_out.items()}
    return replace(outcome, lines=[*lines, *outcome.lines], facts={**outcome.facts, "left_out": left})


def _metadata(plan: Plan, context: JobContext) -> dict[str, str]:
    """Return the new file's metadata: "modelspec.title" and those of `merge_record`. The model's hash is the short one, which avoids
    reading 7 GB."""
    source = plan.copy.conversion.source.path
    inputs, loras = as_recipe(plan.loras, context)
    first = (source, "" if source.is_dir() else legacy_hash(source))
    recipe = {"method": "loras", "model": source.name, "loras": loras}
    return {"modelspec.title": plan.copy.conversion.target.stem, **merge_record([first, *inputs], recipe)}


class _Merging:
    """Applies the changes of all LoRAs to the lazy tensors of a copy.

    merged     changed layers, (part, module path)
    left_out   {LoRA: names of layers that the model lacks}
    """

    def __init__(self, plan: Plan, context: JobContext):
        self.plan, self.context = plan, context
        self.merged: set[tuple[str, str]] = set()
        self.left_out: dict[Path, list[str]] = {}

    def changed(self, states: States) -> States:
        """Return the tensors, with those of the LoRAs' layers replaced by lazy ones that are changed when read."""
        result = {part: dict(state) for part, state in states.items()}
        for lora in self.plan.loras:
            self.context.stage(f"reading {lora.path.name}")
            file = load_finite(lora.path)
            layers, bias_norm = group_by_module(file.tensors), group_by_module(file.bias_norm)
            if file.bundled:
                self.left_out.setdefault(lora.path, []).extend(file.bundled)
            for name in layers | bias_norm:
                self.context.check()
                module = module_of_layer(name)
                state = result.get(module[0]) if module is not None else None
                if module is None or state is None or f"{module[1]}.weight" not in state:
                    self.left_out.setdefault(lora.path, []).append(name)
                    continue
                change = _Change(name, layers.get(name, {}), lora.strength(name), lora.path)
                if change.tensors:
                    self._change_layer(state, module, change)
                for key, value in bias_norm.get(name, {}).items():
                    self._change_bias_or_norm(state, module, change, key, value)
        return result

    def _change_layer(self, state: dict[str, LazyTensor], module: tuple[str, str], change: _Change) -> None:
        """Replace the weight of a layer, and its bias if the change has one, in `state`. `module`: (part, module path)."""
        part, path = module
        weight, bias = f"{path}.weight", f"{path}.bias"
        before = state[weight]
        product = change.is_product(before.shape, bias in state)
        locations = self.plan.copy.conversion.parts[part].locations
        self.merged.add(module)
        compute = partial(change.product_rows, before) if product else partial(_in_one_piece, before, change.weight)
        state[weight] = change.checked(before, locations[weight], compute)
        if bias in state and change.has_bias:
            compute = partial(_in_one_piece, state[bias], partial(change.bias, before.shape))
            state[bias] = change.checked(state[bias], locations[bias], compute)

    def _change_bias_or_norm(
        self, state: dict[str, LazyTensor], owner: tuple[str, str], change: _Change, key: str, value: Tensor
    ) -> None:
        """Replace the tensor that the bias or norm change `value` belongs to in `state`. `owner`: (part, module path)."""
        extra = module_of_extra(f"{change.name}.{key}")
        before = state.get(extra[1]) if extra is not None else None
        if extra is None or before is None or prod(before.shape) != value.numel():
            self.left_out.setdefault(change.path, []).append(f"{change.name}.{key}")
            return
        self.merged.add(owner)
        compute = partial(_in_one_piece, before, partial(change.added, value))
        state[extra[1]] = change.checked(before, self.plan.copy.conversion.parts[owner[0]].locations[extra[1]], compute)


@dataclass(frozen=True)
class _Change:
    """A layer of a LoRA with its tensors, strength and file."""

    name: str
    tensors: dict[str, Tensor]
    strength: float
    path: Path

    @property
    def has_bias(self) -> bool:
        """Whether the layer also changes the bias."""
        return BIAS in self.tensors

    def _adapter(self, weight: Tensor):
        """Return the adapter of the layer for this weight, with the LoRA's strength as multiplier; None if the shapes do not fit."""
        kind = kind_of_keys(self.tensors, self.name)
        assert kind is not None
        adapter = kind.from_tensors(target_with(self.name, weight, self.has_bias), self.tensors)
        if adapter is not None:
            adapter.multiplier = self.strength
        return adapter

    def is_product(self, shape: tuple[int, ...], bias: bool) -> bool:
        """Return whether the change is up @ down with a strength other than 0.

        Raises ProblemsError if the change does not fit a weight of this shape, or a layer without `bias`.
        """
        adapter = self._adapter(torch.empty(shape, device="meta"))
        if adapter is None or (self.has_bias and not bias):
            what = f"The LoRA {self.path.name} does not fit this model: {self.name} has another size"
            fix = "use it with the model it was trained on, or one of the same size"
            raise ProblemsError.one(what, f"{GROUP}.models", fix, "lora.other-size")
        return adapter.factors() is not None and self.strength != 0

    def weight(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return self._adapter(weight).merged(weight) if self.strength else weight

    def product_rows(self, before: LazyTensor, dtype: torch.dtype) -> Iterator[Tensor]:
        """Yield weight + strength * up @ down in `dtype`, computed in fp32 a few rows at a time, which stay in the CPU's cache."""
        adapter = self._adapter(torch.empty(1).expand(before.shape))
        up, down = adapter.factors()
        columns, first = down.shape[1], 0
        step = max(1, ROWS_NUMBERS // columns)
        for piece in before.pieces(torch.float32, step * columns):
            for part in piece.view(-1, columns).split(step):
                part.addmm_(up[first : first + len(part)], down, alpha=adapter.strength)
                yield _cast(part, dtype).view(-1)
                first += len(part)

    def bias(self, shape: tuple[int, ...], bias: Tensor) -> Tensor:
        """Return the changed bias. `shape`: of the layer's weight."""
        return bias + self._adapter(bias.new_zeros(shape)).bias_delta() * self.strength

    def added(self, value: Tensor, weight: Tensor) -> Tensor:
        """Return `weight` plus the change `value` times the strength."""
        return weight + value.to(weight).view_as(weight) * self.strength

    def checked(
        self, before: LazyTensor, location: TensorLocation, compute: Callable[[torch.dtype], Iterator[Tensor]]
    ) -> LazyTensor:
        """Return the changed lazy tensor; reading it raises ProblemsError for values that are not finite in the dtype.
        compute: (dtype) -> pieces of the changed tensor"""

        def pieces(dtype: torch.dtype, _: int) -> Iterator[Tensor]:
            """Yield the pieces of `compute`, with _NotFinite turned into a ProblemsError."""
            try:
                yield from compute(dtype)
            except _NotFinite:
                raise self._not_finite_error(before, location) from None

        return in_pieces(before.dtype, before.shape, pieces)

    def _not_finite_error(self, before: LazyTensor, location: TensorLocation) -> ProblemsError:
        """Return the error for values that are not finite: in the model's file, or by the merge."""
        if not all(isfinite(largest(piece)) for piece in before.pieces()):
            what, fix = f"{location.name} has NaN or infinite values", "download the model again"
            return ProblemsError.one(what, display_path(location.file), fix, "weights.not-finite")
        what = f"{location.name} becomes too large for the precision of the copy when {self.path.name} is merged"
        fix = "save as bf16 or fp32, or lower the ratio of this LoRA"
        return TooLarge.one(what, f"{GROUP}.save_precision", fix, "merge.overflow")


def _in_one_piece(before: LazyTensor, change: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield a tensor that `change` computes as a whole in fp32, cast to `dtype`, flattened to one piece."""
    with torch.no_grad():
        changed = _cast(change(before.fetch(torch.float32)), dtype)
    yield changed.view(-1)


class _NotFinite(Exception):
    """A value is NaN or infinite in the dtype of the copy."""


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a float32 tensor. Raises _NotFinite for NaN, infinity and values too large for the dtype."""
    size = largest(value)  # in fp32, which is many times as fast as a look at 16 bits
    if not isfinite(size) or overflowing({"": size}, dtype):
        raise _NotFinite
    return value.to(dtype).contiguous()
