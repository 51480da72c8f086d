"""Shared code of all merges: the LoRAs to merge, the list of ratios, and the metadata about merged files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.formats.detect import FAMILY_NAMES
from core.formats.hashes import file_sha256, legacy_hash
from core.formats.lora.names import group_by_module, layer_name
from core.networks.adapter_file import lora_outline
from core.networks.block_weights import block_weights, weight_of
from core.record.context import JobContext
from core.record.problems import Problem, collected, problems_at
from core.record.units import count, listed
from core.record.workspace import Workspace
from core.settings.blocks import has_nine_blocks, numbers
from core.settings.tools.file_metadata import TEXTS
from core.tools.files import lora_of


def ratios_of(text: str, files: int, noun: str, where: str, problems: list[Problem]) -> list[float] | None:
    """Parse the comma-separated ratios, one per file; None for an empty or invalid setting. Adds problems to `problems`.

    noun    of one file: "LoRA", "model"
    where   the setting
    """
    if not text.strip():
        return None
    try:
        ratios = numbers(text)
    except ValueError:
        what, fix = f"'{text[:40]}' is not a list of numbers", "write for example 0.7, 0.3"
        problems.append(Problem(what, where, fix, code="merge.bad-ratios"))
        return None
    if len(ratios) != files:
        what = f"{count(len(ratios), 'ratio')} given for {count(files, noun)}"
        problems.append(Problem(what, where, f"give one number per {noun}", code="merge.bad-ratios"))
        return None
    return ratios


DESCRIBED = (*TEXTS[1:], "usage_hint")  # but the title, which is the new file's


def texts_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return {name: modelspec text} for each of DESCRIBED; "" for a missing one."""
    return {name: metadata.get(f"modelspec.{name}", "") for name in DESCRIBED}


def agreed_texts(files: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return (modelspec texts that are equal in all files, a line that names those that differ). `files`: metadata of each."""
    texts_of_each = [texts_of(each) for each in files]
    stated = {name: {each[name] for each in texts_of_each} for name in DESCRIBED}
    agreed = {f"modelspec.{name}": min(texts) for name, texts in stated.items() if len(texts) == 1 and min(texts)}
    return agreed, left_out_texts("since the files differ", [name for name, texts in stated.items() if len(texts) > 1])


def left_out_texts(reason: str, names: Sequence[str]) -> list[str]:
    """Return [a line that names modelspec texts that the new file lacks]; [] without names. `reason`: why, for the line."""
    titles = [name.replace("_", " ") for name in names]
    return [f"left out, {reason}: {listed(titles)}"] if titles else []


def merge_record(inputs: Iterable[tuple[Path, str]], recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a merged file: "modelspec.merged_from" (titles), "sd_merge_recipe" and "sd_merge_models" (A1111's format,
    JSON).

    inputs   (file or folder, its SHA-256) in order; folders have none
    recipe   {"method", "compatibility", "loras" ...}: method and parameters, in JSON types
    """
    files = list(inputs)
    models = {
        sha256: {"name": path.name, "legacy_hash": legacy_hash(path)} for path, sha256 in files if not path.is_dir()
    }
    return {
        "modelspec.merged_from": ", ".join(_title(path) for path, _ in files),
        "sd_merge_recipe": json.dumps({"type": "atelier", **recipe}),
        "sd_merge_models": json.dumps(models),
    }


def _title(path: Path) -> str:
    """Return the name of a folder, or of a file without extension."""
    return path.name if path.is_dir() else path.stem


# -- the LoRAs to merge: files, ratios and block weights, checked by their headers


@dataclass(frozen=True)
class LoraInput:
    """A LoRA to merge.

    ratio      its strength
    lbw        its block weights as text
    blocks     its block weight by slot; None: 1 everywhere
    layers     names of its layers
    family     None if unknown
    metadata   of the file
    """

    path: Path
    ratio: float
    lbw: str
    blocks: tuple[float, ...] | None
    family: str | None
    layers: Sequence[str]
    metadata: Mapping[str, str]

    def block_weight(self, layer: str) -> float:
        """Return the block weight of a layer."""
        return 1.0 if self.blocks is None else weight_of(self.blocks, layer_name(layer))

    def strength(self, layer: str) -> float:
        """Return the strength of a layer: the ratio times its block weight."""
        return self.ratio * self.block_weight(layer)

    def family_problems(self, family: str, where: str) -> list[Problem]:
        """Return the problem of a LoRA for another family than `family`; [] if that is unknown. `where`: the setting."""
        if self.family in (None, family):
            return []
        what = f"{self.path.name} is a LoRA for {FAMILY_NAMES[str(self.family)]}, not for {FAMILY_NAMES[family]}"
        fix = f"choose LoRAs for {FAMILY_NAMES[family]}"
        return [Problem(what, where, fix, code="lora.other-family")]


def lora_inputs(
    models: Sequence[str], ratios: str, lbws: Sequence[str], workspace: Workspace, group: str, problems: list[Problem]
) -> list[LoraInput]:
    """Return the LoRAs of a merge. LoRAs with problems are left out, and their problems added to `problems`.

    models   paths or names of the LoRAs
    group    of the settings, for problems
    ratios   comma-separated strengths, one per LoRA; "" for 1
    lbws     block weights or a preset for each LoRA, in order; "" or a missing entry for 1 everywhere
    """
    where, inputs = f"{group}.models", list[LoraInput]()
    if not models:
        fix = "give LoRAs, one per line"
        problems.append(Problem("No LoRA is given", where, fix, code="tools.no-file-given"))
    strengths = ratios_of(ratios, len(models), "LoRA", f"{group}.ratios", problems) or [1.0] * len(models)
    block_lists = [*lbws, *([""] * (len(models) - len(lbws)))]
    if len(lbws) > len(models):
        what = f"{count(len(lbws), 'line')} of block weights given for {count(len(models), 'LoRA')}"
        problems.append(Problem(what, f"{group}.lbws", "give one line per LoRA", code="merge.block-weights"))
    outline = problems_at(where)(lora_outline)
    for name, ratio, lbw in zip(models, strengths, block_lists, strict=False):
        path = collected(problems, lora_of, name, workspace, where)
        lora = collected(problems, outline, path) if path is not None else None
        if path is None or lora is None:
            continue
        lbw = lbw.strip().removeprefix("[").removesuffix("]")  # sd-scripts takes JSON lists
        try:
            blocks = block_weights(lbw, has_nine_blocks(lora.family)) if lbw else None
        except ValueError as error:
            fix = "write 12, 17, 20 or 26 numbers, or a preset"
            problems.append(Problem(f"{path.name}: {error}", f"{group}.lbws", fix, code="merge.block-weights"))
            continue
        layers = list(group_by_module(lora.tensors))
        inputs.append(LoraInput(path, ratio, lbw, blocks, lora.family, layers, lora.metadata))
    return inputs


def as_recipe(loras: Sequence[LoraInput], context: JobContext) -> tuple[list[tuple[Path, str]], list[dict[str, Any]]]:
    """Return ([(file, SHA-256)], [{"sha256", "ratio", "lbw"} of each LoRA]), for the arguments of `merge_record`."""
    inputs, recipe = list[tuple[Path, str]](), list[dict[str, Any]]()
    for lora in loras:
        context.stage(f"hashing {lora.path.name}")
        sha256 = file_sha256(lora.path, context.cancel)
        inputs.append((lora.path, sha256))
        recipe.append({"sha256": sha256, "ratio": lora.ratio, "lbw": lora.lbw})
    return inputs, recipe
