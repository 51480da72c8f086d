"""Header checks of the LoRA tools, without torch: shapes and sizes of LoRAs, and the base model, which `model_of` loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.sources.image_info import listed
from core.families import family
from core.families.locate import family_of, model_path
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.lora.names import BIAS, group_by_module
from core.formats.lora.recognition import CONVOLUTION
from core.formats.tensors.entry import ITEM_BYTES
from core.networks.adapter_file import PEFT_METADATA, LoraFile, lora_outline
from core.networks.kinds import kind_of_keys
from core.record.context import JobContext
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError
from core.record.units import with_article
from core.record.workspace import Workspace
from core.tools.output import PRECISION_BYTES

if TYPE_CHECKING:
    from core.families.components import Components

SHOWN = 3
SPILLED = PRECISION_BYTES["fp32"]  # of each number, on the disk next to the result until that is written


def refuse_device(device: str, where: str) -> None:
    """Raise ProblemsError for "cuda" without a CUDA GPU. `where`: the setting."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ProblemsError.one("No CUDA GPU is found", where, "choose the CPU", "tools.no-gpu")


def outline_without_base(path: Path, where: str) -> LoraFile:
    """Return the outline of a LoRA whose layers' changes can be computed without the base model. Raises ProblemsError for others."""
    lora = lora_outline(path)
    dependent, _ = _dependent_layers(lora)
    if dependent:
        title, names = next(iter(dependent.items()))
        what = f"{path.name} has layers of {title}, whose change depends on the base model: {', '.join(names[:SHOWN])}"
        fix = "make it a LoRA with the tool Convert LoRAs and its base model"
        raise ProblemsError([Problem(what, where, fix, code="tools.needs-base-model")])
    return lora


def _dependent_layers(lora: LoraFile) -> tuple[dict[str, list[str]], int]:
    """Return ({title of a kind: layers whose change depends on the base model}, number of other layers)."""
    dependent: dict[str, list[str]] = {}
    modules = group_by_module(lora.tensors)
    for name, tensors in modules.items():
        kind = kind_of_keys(tensors)
        if kind is None or kind.weight_shape(tensors) is None:
            dependent.setdefault(kind.title if kind is not None else "an unknown kind", []).append(name)
    return dependent, len(modules) - sum(map(len, dependent.values()))


def weight_shape(tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape of the weight that a layer changes, from its tensors; None if its change depends on the weight."""
    kind = kind_of_keys(tensors)
    return kind.weight_shape(tensors) if kind is not None else None


def bias_norm_of(lora: LoraFile) -> dict[str, Tensor]:
    """Return the changes of biases and norm layers by key, including biases of full differences."""
    return {key: value for key, value in lora.tensors.items() if key.endswith(f".{BIAS}")} | lora.bias_norm_in_use


def left_out_lines(lora: LoraFile, further_names: Iterable[str] = ()) -> list[str]:
    """Return [a line that names what a new LoRA leaves out of its source]; [] if nothing is left out.

    Left out are complete biases (PEFT's `bias`), which are not changes of the base model, and `further_names`.
    """
    names = [*(key for key in lora.bias_norm if key not in lora.bias_norm_in_use), *further_names]
    what = f"left out, because the new file has no place for them: {listed(names, SHOWN)}"
    return [f"{lora.path.name}: {what}" if lora.path else what] if names else []


def with_kernel(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a weight's shape with its kernel, by the layer's name: LyCORIS flattens 3x3 kernels."""
    flat = len(shape) == 2 and shape[1] % 9 == 0 and CONVOLUTION.search(name)
    return (shape[0], shape[1] // 9, 3, 3) if flat else shape


def has_large_kernel(shape: tuple[int, ...]) -> bool:
    """Return whether a weight's shape has a kernel larger than 1x1."""
    return any(side != 1 for side in shape[2:])


def inherited_metadata(lora: LoraFile) -> dict[str, str]:
    """Return a file's metadata for a new file, without keys that describe its tensors and names."""
    dropped = (PEFT_METADATA, "format", "ss_network_args", "sshs_model_hash", "sshs_legacy_hash")
    return {key: value for key, value in lora.metadata.items() if key not in dropped}


def usual_type(lora: LoraFile) -> Any:
    """Return the most frequent dtype of the file's matrices, of an outline by its name; "F32" without any."""
    counts = Counter(each.dtype for each in lora.tensors.values() if each.ndim > 1 and each.is_floating_point())
    return counts.most_common(1)[0][0] if counts else "F32"


def item_bytes(lora: LoraFile, precision: str | None) -> int:
    """Return the bytes per element of `precision`; without one, of the file's `usual_type`. `lora` may be an outline."""
    return PRECISION_BYTES[precision] if precision else ITEM_BYTES[str(usual_type(lora))]


def bytes_of(shapes: Iterable[tuple[int, ...]], rank: int, conv_rank: int, width: int) -> int:
    """Return the approximate size in bytes of a LoRA.

    shapes            of the layers' weights
    width             bytes per element
    rank, conv_rank   of layers, and of convolutions with a kernel larger than 1x1
    """
    numbers = 0
    for shape in shapes:
        inputs = shape[1] * (shape[2] * shape[3] if len(shape) > 2 else 1)
        numbers += (shape[0] + inputs) * min(conv_rank if has_large_kernel(shape) else rank, shape[0], inputs)
    return numbers * width


# -- the base model that some LoRA tools need


def check_base_model(name: str | None, lora: Path, workspace: Workspace, where: str) -> None:
    """Raise ProblemsError if the base model does not exist, is not a model, or is of another family than the LoRA.

    name    value of the setting; nothing is checked without one
    where   the setting
    """
    if not name:
        return
    path = model_path(name, workspace, where)
    try:
        family_name = family_of(path)
    except ProblemsError as error:
        raise ProblemsError([replace(problem, where=where) for problem in error.problems]) from None
    lora_family = identify(lora).family
    if lora_family not in (None, family_name):
        what = f"The model is {FAMILY_NAMES[family_name]}, the LoRA {FAMILY_NAMES[lora_family]}"
        fix = f"choose {with_article(FAMILY_NAMES[lora_family])} model"
        raise ProblemsError.one(what, where, fix, "tools.other-family")


def check_measurable(name: str | None, lora: Path, where: str) -> None:
    """Raise ProblemsError if `name`, the base model, is empty and every layer of the LoRA needs it, to rotate or scale its weights."""
    if name:
        return
    kinds, others = _dependent_layers(lora_outline(lora))
    if kinds and not others:
        what = f"{lora.name} ({', '.join(sorted(kinds))}) has no layer that can be measured without its base model"
        raise ProblemsError.one(what, where, "choose the base model that it was trained on", "tools.no-layers")


def model_of(
    name: str | None, lora: Path, context: JobContext, parts: tuple[str, ...] = ("denoiser", "text_encoders")
) -> Components | None:
    """Load parts of the base model in fp32 on the job's device; None if `name` is empty. `lora` is not read."""
    if not name:
        return None
    from core.families.loading import load

    path = model_path(name, context.workspace)
    context.stage(f"loading {path.name}")
    return load(family(family_of(path)).layout, path, parts=parts, device=context.device, cancel=context.cancel)
