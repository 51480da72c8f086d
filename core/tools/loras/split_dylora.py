"""Splits a DyLoRA into LoRAs of its lower ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.formats.lora.names import ALPHA, DOWN, UP, group_by_module
from core.networks.adapter_file import load_finite, lora_outline, save_lora
from core.networks.kinds import kind_named
from core.networks.kinds.lora import MODULE, size, sizes_as_metadata
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.loras import SplitDyloraSettings
from core.tools.files import lora_of
from core.tools.loras.building import precision_of
from core.tools.loras.headers import bias_norm_of, inherited_metadata, left_out_lines
from core.tools.output import output_file, output_problems

GROUP = "split_dylora"


@dataclass(frozen=True)
class Plan:
    """`path`: the DyLoRA; `targets`: {rank: file to write}."""

    path: Path
    targets: dict[int, Path]

    def __str__(self) -> str:
        return f"cut {display_path(self.path)} into ranks {', '.join(map(str, self.targets))}"


def plan(settings: SplitDyloraSettings, workspace: Workspace) -> Plan:
    """Return the plan, with the multiples of the unit below the rank. Raises ProblemsError for a file that is no DyLoRA, if there is no
    lower rank, and for outputs that cannot be written."""
    path = lora_of(settings.model, workspace, f"{GROUP}.model")
    layers = group_by_module(lora_outline(path).tensors)
    lora = kind_named("lora")
    other_layer = next((name for name, layer in layers.items() if not lora.holds(layer)), None)
    if other_layer is not None:
        what = f"{path.name} is not a DyLoRA: {other_layer} is a layer of another network type"
        raise ProblemsError.one(what, f"{GROUP}.model", "choose a DyLoRA", "split.not-a-lora")
    highest = max(lora.size(layer).rank for layer in layers.values())
    ranks = range(settings.unit, highest, settings.unit)
    if not ranks:
        what = f"The unit is {settings.unit}, the rank {highest}: there is no lower rank"
        raise ProblemsError.one(what, f"{GROUP}.unit", "use the unit it was trained with", "split.no-rank")
    whole = output_file(settings.output, path, "")
    targets = {rank: whole.with_name(f"{whole.stem}-{rank:04d}{whole.suffix}") for rank in ranks}
    total = path.stat().st_size * sum(targets) // highest  # bytes of all files: checked with the first one
    problems: list[Problem] = []
    for rank, target in targets.items():
        problems += output_problems(target, [path], total if rank == settings.unit else 0, f"{GROUP}.output")
    raise_if_errors(problems)
    return Plan(path, targets)


def do(settings: SplitDyloraSettings, plan: Plan, context: JobContext) -> Outcome:
    """Write a LoRA of the first ranks of each layer, for each multiple of the unit below the rank."""
    path, targets = plan.path, plan.targets
    lora = load_finite(path)
    if lora.metadata.get("ss_network_module") == MODULE:
        what = f"{path.name} was trained as a LoRA, not as a DyLoRA: its first ranks are no better than others"
        fix = "lower its rank with resize_lora"
        context.warn(Problem(what, f"{GROUP}.model", fix, "warning", code="split.not-a-dylora"))
    old, comment = lora.metadata.get("ss_network_dim", "unknown"), lora.metadata.get("ss_training_comment", "")
    written: list[Path] = []
    try:
        for number, (rank, target) in enumerate(targets.items()):
            context.check()
            context.stage(f"rank {rank}", number, len(targets))
            tensors = cut(lora.tensors, rank, keep_alpha=settings.compatibility == "sd-scripts")
            added = {"ss_training_comment": f"split from DyLoRA, rank {old} to {rank}; {comment}"}
            sizes = sizes_as_metadata(tensors, lora.metadata.get("ss_network_args", ""))
            tensors |= {**bias_norm_of(lora), **lora.bundled}
            save_lora(target, tensors, {**inherited_metadata(lora), **sizes, **added}, precision_of(lora, None))
            written.append(target)
    except BaseException:
        for target in written:
            atomic.remove(target)
        raise
    lines = [f"{count(len(written), 'LoRA')} of rank {', '.join(map(str, targets))}"]
    lines += [f"Saved: {display_path(target)}" for target in written]
    lines += left_out_lines(lora)
    return Outcome(lines=lines, facts={"file": str(written[0]), "files": [str(target) for target in written]})


def cut(tensors: Mapping[str, Tensor], rank: int, keep_alpha: bool) -> dict[str, Tensor]:
    """Return the tensors of the first `rank` ranks of each layer; alpha is scaled with the rank, which preserves the strength.
    keep_alpha: leave alpha unchanged as sd-scripts does, which makes lower ranks stronger"""
    shortened = {}
    for name, layer in group_by_module(tensors).items():
        old = size(layer)
        layer_rank = min(rank, old.rank)
        alpha = old.alpha if keep_alpha else old.alpha * layer_rank / old.rank
        shortened[f"{name}.{DOWN}"] = layer[DOWN][:layer_rank].contiguous()
        shortened[f"{name}.{UP}"] = layer[UP][:, :layer_rank].contiguous()
        shortened[f"{name}.{ALPHA}"] = torch.tensor(alpha)
    return shortened
