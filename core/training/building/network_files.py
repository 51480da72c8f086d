"""The LoRA files that a training starts from or merges: located by name and checked before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.families import family
from core.families.locate import base_model_family, model_path
from core.families.targets import is_norm
from core.formats.hashes import HashMemo, model_hashes
from core.formats.lora.names import module_of_extra
from core.formats.models.checkpoint import open_checkpoint
from core.generation.model.library import find
from core.networks.adapter_file import load_lora, lora_outline, open_lora
from core.networks.files import MergedFile, NetworkFiles, check_file, unmatched_problems, zero_alpha_problems
from core.networks.kinds import kind_named
from core.record.problems import Problem, ProblemsError, collected, errors
from core.record.workspace import Workspace
from core.settings.blocks import numbers
from core.settings.job import TrainJob
from core.settings.network import NetworkSettings
from core.settings.rules.network import block_problems

if TYPE_CHECKING:
    from core.families.targets import Target

START, MERGED = "network.network_weights", "network.base_weights"


def network_problems(job: TrainJob, workspace: Workspace) -> list[Problem]:
    """Return the problems of the LoRA files that the job names and of its choice of layers. [] without a base model."""
    family_name = base_model_family(job.model, workspace)
    if not family_name:
        return []
    problems: list[Problem] = []
    network, blocks_fit = job.network, not any(block_problems(job.network, family_name))
    if blocks_fit and not network.dim_from_weights:
        if network.chooses_layers or network.block_dims or network.has_block_rates:
            problems += collected(problems, _layer_problems, job, workspace, family_name) or []
        if kind_named(network.kind).fits is not None and not errors(problems):
            collected(problems, _refuse_unfit_layers, job, workspace, family_name)
    for setting, name in _named_files(network):
        try:
            path = find("lora", name, workspace, setting)
            check_file(path, family_name)
            if setting == START and blocks_fit and not errors(problems):
                problems += _start_advice(job, workspace, path, family_name)
            if setting == MERGED:
                problems += _unmatched_advice(job, workspace, path, family_name)
            problems += zero_alpha_problems(lora_outline(path))
            HashMemo.of(workspace).get("finite", [path], partial(_refuse_not_finite, path))
        except ProblemsError as error:
            problems += error.problems
    return problems


def _refuse_not_finite(path: Path) -> str:
    """Raise ProblemsError if the weights of a LoRA file have NaN or infinity; else return a value for the memo, so that they are read
    once."""
    with open_lora(path):
        return "finite"


def _layer_problems(job: TrainJob, workspace: Workspace, family_name: str) -> list[Problem]:
    """Return the problems of the chosen layers and of train_norm, by the base model's header."""
    from core.networks.layers import count_layers, layer_count_problems

    targets, kind_settings = _targets(job, workspace, family_name), kind_named(job.network.kind).kind_settings(job)
    problems = list(layer_count_problems(job.network, count_layers(job.network, kind_settings, targets)))
    return problems + ([] if errors(problems) else _norm_problems(job, targets))


def _norm_problems(job: TrainJob, targets: Sequence[Target]) -> list[Problem]:
    """Return advice if train_norm is on and no norm layer would be trained."""
    from core.networks.sizes import sized_layers

    if not job.network.train_norm or not job.network.train_unet:
        return []
    kind_settings = kind_named(job.network.kind).kind_settings(job)
    sized = sized_layers(targets, job.network, kind_settings)
    if any(is_norm(target.module) for target, _ in sized):
        return []
    norms = any(is_norm(target.module) for target in targets)
    if norms:
        what = "No norm layers would be trained: the model has none where layers are chosen"
        fix = "choose them too, such as with the expression norm, or turn it off"
    else:
        what, fix = "No norm layers would be trained: models of this family have none", "turn it off"
    return [Problem(what, "network.train_norm", fix, "advice", code="network.no-norms")]


def _refuse_unfit_layers(job: TrainJob, workspace: Workspace, family_name: str) -> None:
    """Raise ProblemsError if chosen layers cannot have their rank with this kind of network, by the base model's header."""
    from core.networks.sizes import refuse_unfit, sized_layers

    kind = kind_named(job.network.kind)
    refuse_unfit(kind, sized_layers(_targets(job, workspace, family_name), job.network, kind.kind_settings(job)))


def _start_advice(job: TrainJob, workspace: Workspace, path: Path, family_name: str) -> list[Problem]:
    """Return advice about the LoRA file to start from, by the headers of file and model. Raises ProblemsError if its layers or ranks differ
    from the settings."""
    from core.networks.starting import start_network

    kind_settings = kind_named(job.network.kind).kind_settings(job)
    targets = _targets(job, workspace, family_name)
    _, advice = start_network(
        targets, job.network, seed=0, lora=load_lora(path, shapes=True), kind_settings=kind_settings
    )
    return advice


def _unmatched_advice(job: TrainJob, workspace: Workspace, path: Path, family_name: str) -> list[Problem]:
    """Return advice about layers of a LoRA to merge that the base model lacks, by the headers of both."""
    from core.networks.network import Network

    lora = load_lora(path, shapes=True)
    network = Network.from_tensors(lora.tensors, _targets(job, workspace, family_name, every=True))
    parts = open_checkpoint(model_path(job.model.base_model, workspace), family_name).parts
    for key, change in lora.bias_norm.items():
        target = module_of_extra(key)
        weight = parts[target[0]].locations.get(target[1]) if target is not None and target[0] in parts else None
        if weight is None or prod(weight.entry.shape) != change.numel():
            network.unmatched += (key,)
    return unmatched_problems(network, path)


def _targets(job: TrainJob, workspace: Workspace, family_name: str, every: bool = False) -> list[Target]:
    """Return the layers of the trained parts, or with `every` of all parts, by the base model's header."""
    from core.networks.layers import meta_targets

    model_family, model = family(family_name), model_path(job.model.base_model, workspace)
    configs = {
        name: part.full_config(model_family.layout.config(name))
        for name, part in open_checkpoint(model, family_name).parts.items()
        if name == model_family.layout.denoiser
        or (name.startswith("text_encoder") and (every or job.network.train_text_encoder))
    }
    return meta_targets(family_name, configs, norms=not every and job.network.may_train_norms)


def network_files(job: TrainJob, workspace: Workspace, memo: HashMemo) -> NetworkFiles:
    """Return the paths, strengths and hashes of the LoRA files to start from and to merge. Raises ProblemsError for a missing file."""
    if not job.method.traits.uses_network:
        return NetworkFiles()
    network = job.network
    start = find("lora", network.network_weights, workspace, START) if network.network_weights else None
    strengths = numbers(network.base_weights_multiplier) if network.base_weights_multiplier else []
    merged = []
    for index, name in enumerate(network.base_weights):
        path = find("lora", name, workspace, MERGED)
        strength = strengths[index] if index < len(strengths) else 1.0
        merged.append(MergedFile(path, strength, model_hashes(path, memo)[1]))
    return NetworkFiles(start, model_hashes(start, memo)[1] if start is not None else None, tuple(merged))


def merged_identity(files: NetworkFiles) -> str:
    """Return a hash of the merged LoRAs and their strengths for the cache keys of captions; "" without any."""
    merges = [f"{file.sha256} {file.strength!r}" for file in files.merged]
    return hashlib.sha256("\n".join(merges).encode()).hexdigest() if merges else ""


def _named_files(network: NetworkSettings) -> list[tuple[str, str]]:
    """Return [(setting, name)] of the LoRA files that the settings name."""
    start = [(START, network.network_weights)] if network.network_weights else []
    return start + [(MERGED, name) for name in network.base_weights]
