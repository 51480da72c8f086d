"""The tree of a model's layers in the Train form: counts of chosen and trained layers, and choosing layers in the tree."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.locate import base_model_family, model_path
from core.formats.models.checkpoint import open_checkpoint
from core.networks.kinds import kind_named, settings_as_text
from core.networks.layer_list import layers_of
from core.networks.layer_sizes import kind_sizes, trains_by_default, trains_part_of
from core.networks.layer_tree import LayerTree
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.layers import LayerChoice
from tabs.form.project import Project
from tabs.roots import Roots

if TYPE_CHECKING:
    from core.engine.engine import Engine

CHOSEN, EXCLUDED = "network.layers", "network.exclude_layers"


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that a job's settings choose, each set as a bit mask over `tree.layers`.

    chosen   by the layer expressions
    usual    chosen when these are empty
    wanted   in the parts (U-Net, text encoders) that are trained
    trained  that get a network
    """

    tree: LayerTree
    chosen: int
    usual: int
    wanted: int
    trained: int

    @cached_property
    def leaves(self) -> list[dict[str, Any]]:
        """Data of each leaf of the tree for the page's script.

        "names"              [block, part, matrix]
        "of", "chosen", "trained"
                             number of its layers, of the chosen and of the trained ones
        "off"                whether none of its layers is in a trained part
        "numbers"            parameters in the leaf's trained layers, and in all of its layers
        """
        return [
            {
                "names": [leaf.block, leaf.part, leaf.matrix],
                "of": leaf.mask.bit_count(),
                "chosen": (leaf.mask & self.chosen).bit_count(),
                "trained": (leaf.mask & self.trained).bit_count(),
                "off": not leaf.mask & self.wanted,
                "numbers": [self.tree.parameter_count(leaf.mask & self.trained), self.tree.parameter_count(leaf.mask)],
            }
            for leaf in self.tree.leaves
        ]


class Layers:
    """The newest layer counts, shared by all browsers."""

    def __init__(self, engine: Engine, workspace: Workspace, project: Project, roots: Roots):
        self._engine, self._workspace, self._project, self._roots = engine, workspace, project, roots
        self._lock = threading.Lock()
        self._task: Any = None
        self._key: Any = None
        self._chosen: ChosenLayers | None = None
        self._problem = ""

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return {"layers": `facts` with "choice"} for the page's periodic update if Train is open and body["wants"]["layers"] is an
        object, whose "choice" is returned; else {}."""
        requested = body.get("wants")
        request = requested.get("layers") if tab == "Train" and isinstance(requested, dict) else None
        if not isinstance(request, dict):
            return {}
        return {"layers": self.facts(self._project.job) | {"choice": request.get("choice")}}

    def facts(self, job: TrainJob) -> dict[str, Any]:
        """Return {"fresh": whether the count is of this job, "tree": name, "problem": text or "", "leaves": `ChosenLayers.leaves`, [] while
        they are counted}. Starts a count if the job has changed."""
        if refused := self._roots.refused(job):
            return {"fresh": True, "tree": _tree_name(job), "problem": refused[0].what, "leaves": []}
        key = (_tree_name(job), settings_as_text(job))
        with self._lock:
            busy = self._task is not None and not self._task.done
            if self._key != key and not busy:
                self._task = self._engine.light(self._count, job, key, title="layers")
            fresh, chosen, problem = self._key == key, self._chosen, self._problem
        leaves = chosen.leaves if fresh and chosen else []
        return {"fresh": fresh, "tree": _tree_name(job), "problem": problem if fresh else "", "leaves": leaves}

    def _count(self, job: TrainJob, key: Any, task: Any) -> None:
        """Count the layers of a job in the background. key: model and settings that the count depends on"""
        chosen, problem = self._chosen, ""
        try:
            chosen = self._find(job)
        except ProblemsError as error:  # the tree does not change
            problem = error.problems[0].what
        if chosen is not None:
            _ = chosen.leaves  # counted here, not while a browser waits
        with self._lock:
            self._key, self._chosen, self._problem = key, chosen, problem

    def _find(self, job: TrainJob) -> ChosenLayers:
        """Return the layers that the job's settings choose. Raises ProblemsError."""
        family = base_model_family(job.model, self._workspace)
        if not family:
            what, fix = "The base model is not known", "choose a base model"
            raise ProblemsError.one(what, "model.base_model", fix, "layers.no-model")
        path = model_path(job.model.base_model, self._workspace)
        return chosen_layers(job, _layer_tree(path, family, os.stat(path).st_mtime_ns))

    def choose(self, data: dict[str, Any]) -> None:
        """Choose ("on") or deselect the tree's leaves data["leaves"] (indices); "usual" empties the settings.

        Raises ProblemsError if the tree is of another base model. It runs within the request, as a choice could be lost on a busy lane.
        """
        texts: tuple[list[str], list[str]] = ([], [])
        if not data.get("usual"):
            job = self._project.job
            if data.get("tree") != _tree_name(job):
                what, fix = "The tree is of another base model", "choose again in this one"
                raise ProblemsError.one(what, CHOSEN, fix, "layers.other-tree")
            self._roots.admit(job)
            current, indices = self._find(job), data.get("leaves")
            leaves = current.tree.leaves
            valid = {each for each in indices if isinstance(each, int)} if isinstance(indices, list) else set()
            mask = sum(leaves[index].mask for index in valid if 0 <= index < len(leaves))
            chosen = current.chosen | mask if data.get("on") else current.chosen & ~mask
            texts = current.tree.settings_for(chosen, current.usual, current.wanted)
        values = {CHOSEN: "\n".join(texts[0]), EXCLUDED: "\n".join(texts[1])}
        self._project.edit_several(values, did="choice of layers")


def _tree_name(job: TrainJob) -> str:
    """Return the name that identifies the model of the tree."""
    return f"{job.model.base_model} {job.model.family}"


def chosen_layers(job: TrainJob, tree: LayerTree) -> ChosenLayers:
    """Return the layers of a model that a job's settings choose. Raises ProblemsError for invalid or too slow expressions."""
    network, kind_settings = job.network, kind_named(job.network.kind).kind_settings(job)
    choice, size_of = LayerChoice(network), kind_sizes(network, kind_settings, tree.layers)
    return ChosenLayers(
        tree,
        tree.mask(choice.trains(layer, trains_by_default(network, layer)) for layer in tree.layers),
        tree.mask(trains_by_default(network.model_copy(update={"layers": []}), layer) for layer in tree.layers),
        tree.mask(trains_part_of(network, layer.name) for layer in tree.layers),
        tree.mask(size_of(layer) is not None for layer in tree.layers),
    )


@lru_cache(maxsize=4)
def _layer_tree(path: Path, family: str, changed: int) -> LayerTree:
    """Return the tree of a model from its header. changed: modification time of the file in ns, only part of the cache key"""
    return LayerTree(layers_of(family, open_checkpoint(path, family).parts))
