"""LoRA files of every kind as they are written and read, methods on a tiny model, texts of other programs, and the list of runs."""

from __future__ import annotations

import html
import json
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from core.engine.runs import Runs
from core.families import family
from core.methods import MethodInputs
from core.networks.adapter_file import (
    LoraFile,
    load_lora,
    lora_outline,
    peft_layers,
    save_lora,
    to_diffusers,
    to_kohya,
    write_lora,
)
from core.networks.layer_tree import LayerTree
from core.networks.layers import count_layers
from core.networks.misread import misread_problems
from core.networks.sizes import layer_of
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.network import NetworkSettings
from core.training.building.network_files import NetworkFiles
from tests.facts.engine import write_run
from tests.facts.images import told_of
from tests.facts.networks import model
from tests.facts.store import Facts, digest, folder, producer, refused
from tests.generation.images import test_many_programs as programs
from tests.generation.images.test_foreign_metadata import comfy, read
from tests.models import LORA_VERSIONS, tiny_folder
from tests.networks.test_kinds import CASES, trained


@producer
def lora_files() -> Facts:
    """A file of each kind: its tensors, what is read of it, and its tensors for other programs."""
    with folder() as place:
        for case in CASES:
            network = trained(case, model())
            tensors = {key: tensor.detach() for key, tensor in network.saved().items()}
            file = save_lora(
                place / "x.safetensors",
                tensors,
                {"ss_base_model_version": LORA_VERSIONS["sd1"], "a": "b"},
                torch.float16,
            )
            lora, outline = load_lora(file), lora_outline(file)
            row: dict[str, Any] = {
                "file": [file.stat().st_size, lora.family, sorted(lora.metadata), lora.left_out, len(lora.bias_norm)]
            }
            row["same"] = [
                lora.tensors.keys() == tensors.keys(),
                outline.tensors.keys() == tensors.keys(),
                len(lora.tensors),
            ]
            row["types"] = sorted({str(each.dtype) for each in lora.tensors.values()})
            row["misread"] = misread_problems(lora)
            for name, convert in (("diffusers", to_diffusers), ("kohya", to_kohya)):
                row[name] = refused(_converted, convert, lora)
            row["peft"] = refused(lambda lora=lora: [len(list(peft_layers(lora)))])
            yield case, row
        for number, changed in enumerate(BROKEN):
            network = trained("lora", model())
            tensors = {key: tensor.detach().clone() for key, tensor in network.saved().items()}
            changed(tensors, sorted(tensors))
            file = place / f"{number}.safetensors"
            yield f"broken {number}", [refused(write_lora, file, tensors, None, torch.float16), refused(_read, file)]


def _read(file: Path) -> Any:
    lora = load_lora(file)
    return [len(lora.tensors), lora.left_out, sorted(lora.bundled)]


def _converted(convert: Any, lora: LoraFile) -> Any:
    tensors, metadata = convert(lora)
    shapes = {key: [*each.shape] for key, each in tensors.items()}
    return [
        len(tensors),
        digest(shapes),
        list(shapes)[:2],
        sorted(metadata),
        [each.float() for each in list(tensors.values())[:2]],
    ]


def _pop(tensors: dict[str, Any], keys: list[str]) -> None:
    tensors.pop(keys[1])


def _infinite(tensors: dict[str, Any], keys: list[str]) -> None:
    tensors[keys[1]].fill_(1e6)


def _strange(tensors: dict[str, Any], keys: list[str]) -> None:
    tensors["lora_unet_x.nonsense"] = torch.zeros(2)


def _alpha(tensors: dict[str, Any], keys: list[str]) -> None:
    tensors[keys[0]] = torch.tensor(float("nan"))


def _empty(tensors: dict[str, Any], keys: list[str]) -> None:
    tensors.clear()
    tensors["something.weight"] = torch.ones(3)


def _bundled(tensors: dict[str, Any], keys: list[str]) -> None:
    tensors["bundle_emb.w.string_to_param.*"] = torch.ones(1, 4)
    tensors[f"{keys[1].split('.')[0]}.diff_b"] = torch.ones(4)


BROKEN = (_pop, _infinite, _strange, _alpha, _empty, _bundled)

JOBS: dict[str, dict[str, Any]] = {
    "lora": {"network": {"train_text_encoder": True, "conv_rank": 2}, "optimizer": {"loraplus_lr_ratio": 4.0}},
    "lora by blocks": {"network": {"down_lr_weight": "linear", "layers": ["attn"], "exclude_layers": ["to_v"]}},
    "loha": {"network": {"kind": "loha", "rank": 3}},
    "dreambooth": {"method": {"kind": "dreambooth"}},
    "fine tune": {"method": {"kind": "fine_tune", "block_lr": ",".join(["1e-4", "0"] * 12 + ["1e-5"])}},
    "embedding": {"method": {"kind": "embedding"}, "embedding": {"token_string": "zkw, qqw", "init_word": "cat",
                                                                     "num_vectors_per_token": 2}},
    "xti": {"method": {"kind": "embedding"}, "embedding": {"token_string": "zkw", "extended": True}},
    "controlnet": {"method": {"kind": "controlnet"}},
    "lllite": {"method": {"kind": "lllite"}, "lllite": {"cond_emb_dim": 8, "hidden_dim": 8}},
}  # fmt: skip


@producer
def methods() -> Facts:
    """Each method on a tiny SD 1: what trains, what its state and its file hold, also after a step by hand."""
    with folder() as place:
        tiny = tiny_folder("sd1", place / "tiny")
        workspace = Workspace(place / "outputs", place / "models", place / "presets")
        for name, values in JOBS.items():
            job = build(TrainJob, {"model": {"base_model": str(tiny), "family": "sd1"}, **values})
            components = family("sd1").load(tiny)
            method = spec_of(job).make(MethodInputs(job, workspace, 3, tiny, None, NetworkFiles()))
            yield name, refused(_method, method, components, place / name)
        targets = list(family("sd1").layers(components.denoiser, norms=True))
        yield (
            "layers",
            [
                len(targets),
                digest([target.name for target in targets]),
                digest([list(layer_of(each)) for each in targets]),
            ],
        )
        for values in (
            {"layers": ["attn2", "nothing"]},
            {"layers": ["full"], "exclude_layers": ["conv"]},
            {"layer_dims": ["attn=4", "x=2"]},
        ):
            settings = NetworkSettings.model_validate(values)
            yield f"hits {values}", str(count_layers(settings, None, targets))
    assert LayerTree


def _method(method: Any, components: Any, path: Path) -> Any:
    trainables = method.build(components)
    groups: dict[str, list[float]] = {}
    for each in trainables:
        row = groups.setdefault(f"{each.part} {each.role} {each.name}", [0, 0, each.factor, each.rate or 0.0])
        row[0] += len(each.parameters)
        row[1] += sum(weight.numel() for weight in each.parameters)
    with torch.no_grad():
        for number, weight in enumerate(weight for each in trainables for weight in each.parameters):
            weight.add_(torch.cos(torch.arange(weight.numel()) + number).reshape(weight.shape) * 0.01)
    facts = method.after_update()
    state = {key: [*tensor.shape] for key, tensor in method.state_dict().items()}
    flags = [
        method.trains_text,
        method.trains_unet,
        method.extension,
        method.steady_gradients,
        method.keeps_clipped_gradients,
        method.needs_untrained,
    ]
    clipped = method.clipped and len(list(method.clipped))
    target = path.with_suffix(method.extension)
    notes = method.write(target, {"ss_x": "y"}, "fp16", epoch=1, step=5)
    files = sorted(each.relative_to(path.parent).as_posix() for each in path.parent.glob(f"{path.name}*"))
    written = load_file(target) if target.suffix == ".safetensors" and target.exists() else {}
    sums = torch.cat([each.float().reshape(-1) for each in written.values()] or [torch.zeros(1)])
    small = groups if len(groups) < 8 else [len(groups), digest(groups), list(groups)[:3]]
    method.release()
    return [
        small,
        flags,
        clipped,
        [len(state), digest(state), list(state)[:2]],
        notes,
        files,
        [len(written), sums],
        sorted(facts),
        sorted(method.metadata()),
    ]


@producer
def texts_of_other_programs() -> Facts:
    """Settings read from images of other programs."""
    graphs = {**programs.PIPED, "plain": programs.PLAIN, "stack": programs.STACK, "efficient": programs.EFFICIENT}
    with folder() as place:
        own = {
            "prompt": "a",
            "clipstopatlayer": -2,
            "variationseed": 4,
            "variationseedstrength": 0.2,
            "loras": ["x"],
            "loraweights": [0.5],
        }
        texts: dict[str, dict[str, Any]] = {
            "comfy": {"prompt": comfy()},
            "easy": programs.EASY,
            "draw": {"XML:com.adobe.xmp": programs.XMP.format(html.escape(json.dumps(programs.DRAW)))},
            "fooocus": {"Comment": programs.FOOOCUS},
            "novelai": {"Software": "NovelAI", "Description": "a hat", "Comment": programs.NOVELAI},
            "invoke": {"Dream": '"a hat [blur]" -s 9 -S5 -W 512 -H 640 -C 7 -A k_dpm_2 -G 0.8'},
            "invoke 3": {
                "invokeai_metadata": {
                    "positive_prompt": "a",
                    "clip_skip": 1,
                    "rand_device": "cuda",
                    "scheduler": "kdpm_2_a",
                    "steps": 4,
                }
            },
            "swarm": {"parameters": {"sui_image_params": own}},
            "any": {
                "parameters": {
                    "Prompt": "a hat",
                    "negative_prompt": "blur",
                    "seed": 5,
                    "width": 512,
                    "cfg": 3,
                    "odd": 1,
                    "sampler": "dpmpp_2m",
                }
            },
        }
        for name, graph in graphs.items():
            texts[f"graph {name}"] = {"prompt": graph if isinstance(graph, str) else json.dumps(_graph(graph))}
        for name, given in texts.items():
            record = read(place, **given)
            found = (
                [record.source, told_of(record.job), record.notes]
                if record.job is not None
                else ["none", record.reason]
            )
            yield name, [found, {key: value for key, value in vars(record.hashes).items() if value}]


def _graph(graph: Any) -> Any:
    """A graph of {number: (class, inputs)} in ComfyUI's format."""
    if not isinstance(graph, dict) or not all(isinstance(each, tuple | list) for each in graph.values()):
        return graph
    return {number: {"class_type": each[0], "inputs": each[1]} for number, each in graph.items()}


@producer
def lists_of_runs() -> Facts:
    """The list of random runs, read once, from their facts, and after one changed."""
    with folder() as place, patch("core.engine.view.time.time", lambda: 5000.0):
        workspace = Workspace(place / "outputs", place / "models", place / "presets")
        names = [f"2026010{number}-120000_fox {number}" for number in range(1, 7)]
        for number, name in enumerate(names):
            write_run(place, name, Random(f"list {number}"))
        runs = Runs(workspace, lambda name: name.endswith("3"))
        for turn in ("first", "again"):
            yield (
                turn,
                [
                    [
                        row.name,
                        row.state,
                        row.step,
                        row.total,
                        row.best,
                        len(row.files),
                        row.resumable_step,
                        row.message,
                    ]
                    for row in runs.all()
                ],
            )
        yield "states", [[each.name, each.title, each.state] for each in runs.states(4)]
        yield (
            "one",
            [refused(lambda name=name: runs.folder(name).name) for name in (names[0], "nobody", "../x", "", "x" * 300)],
        )
        yield (
            "view",
            [runs.view(name).step for name in names] + [runs.refresh(names[1]).step, runs.is_held(runs.view(names[2]))],
        )
        runs.forget(names[0])
        rows, left = Runs(workspace, lambda name: False).without_journals(60.0)
        yield "at hand", [len(rows), len(left)]
