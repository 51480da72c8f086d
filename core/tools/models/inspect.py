"""Inspects a model file or folder: kind, family, metadata, hashes; of a LoRA also ranks and damaged weights."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.dataset.sources.image_info import listed
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.embedding_file import read_shapes, tokens_in
from core.formats.hashes import file_sha256, legacy_hash
from core.formats.lora.names import BUNDLED, split_key, to_kohya_key
from core.formats.models.overflow import largest, not_finite_names
from core.formats.tensors.header import read_header, sniff
from core.formats.tensors.reading import TensorFile
from core.networks.kinds import kind_of_keys
from core.record.bounded_json import parse_json
from core.record.cancel import CancelToken
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.regular import open_regular
from core.record.workspace import Workspace, display_path
from core.settings.network import SIZES
from core.settings.tools.model_files import InspectSettings
from core.tools.files import file_of
from core.tools.models.header_edit import tensors_offset
from core.tools.plans import FilePlan

SHOWN_NAMES = 5
FAR_TOO_LARGE = 1e4  # a weight above this is damage, not training


def plan(settings: InspectSettings, workspace: Workspace) -> FilePlan:
    """Return the plan. Raises ProblemsError if the file or folder does not exist."""
    path = file_of(settings.file, workspace, "inspect.file")
    return FilePlan(f"inspect {display_path(path)}", path)


def do(settings: InspectSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Inspect the file and list the facts."""
    context.stage(f"reading {plan.path.name}")
    facts = inspect(plan.path, context.cancel)
    return Outcome(lines=fact_lines(facts), facts=facts)


def inspect(path: Path | str, cancel: CancelToken | None = None) -> dict[str, Any]:
    """Return facts about a model file or folder as JSON. Raises ProblemsError for a damaged one.

    Keys: path, what (text), kind, family, layout, prediction, evidence, offered, bytes; of a folder also parts; of a file also
    tensors, parameters, types, sha256, model_hash (A1111's old one), metadata; of a LoRA also lora (see `inspect_lora`) and
    weights_hash (see `weights_hash`); of an embedding also embedding (see `inspect_embedding`).
    """
    path = Path(path)
    kind = identify(path)
    facts: dict[str, Any] = {
        "path": display_path(path),
        "what": str(kind),
        "kind": kind.kind,
        "family": kind.family,
        "layout": kind.layout,
        "prediction": kind.prediction,
        "evidence": kind.evidence,
        "offered": kind.offered,
        "bytes": total_bytes(path),
    }
    if path.is_dir():
        facts["parts"] = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
        return facts
    tensors, metadata = read_header(path)
    facts["tensors"] = len(tensors)
    facts["parameters"] = sum(math.prod(entry.shape) for entry in tensors.values())
    facts["types"] = dict(Counter(entry.dtype for entry in tensors.values()))
    facts["sha256"] = file_sha256(path, cancel)
    facts["model_hash"] = legacy_hash(path)
    facts["metadata"] = readable(metadata)
    if kind.kind == "embedding":
        facts["embedding"] = inspect_embedding(path)
    if kind.kind == "lora":
        facts["lora"] = inspect_lora(path, cancel)
        facts["weights_hash"] = weights_hash(path, metadata, cancel)
    return facts


def total_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def readable(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return metadata sorted by name, with JSON objects and lists parsed."""
    return {name: _json_or_text(metadata[name]) for name in sorted(metadata)}


def _json_or_text(text: str) -> Any:
    """Parse a JSON object or list; return any other text unchanged."""
    if text[:1] in ("{", "["):
        with suppress(ProblemsError):
            return parse_json(text, "", finite=False)
    return text


def weights_hash(path: Path, metadata: Mapping[str, str], cancel: CancelToken | None = None) -> dict[str, Any]:
    """Return {sha256: of the tensors only, as_in_metadata: whether the metadata state this hash, None if they state none}.

    False shows an edited file. Both are None for formats other than safetensors.
    """
    if sniff(path) != "safetensors":
        return {"sha256": None, "as_in_metadata": None}
    with open_regular(path) as handle:
        start = tensors_offset(handle)
    digest, stated = file_sha256(path, cancel, start=start), metadata.get("sshs_model_hash")
    return {"sha256": digest, "as_in_metadata": None if stated is None else stated == digest}


def inspect_embedding(path: Path) -> dict[str, Any]:
    """Return {vectors: {token: number of vectors}, not_finite, too_large, untrained, largest} of an embedding.

    The token is "" in a file with a single one. The other keys are as of `inspect_lora`; untrained is [].
    """
    vectors = {token: next(iter(read_shapes(path, token).values()))[0] for token in tokens_in(path) or [""]}
    with TensorFile(path) as file:
        sizes = {name: largest(file.read(name)) for name in file.entries}
    finite = {name: size for name, size in sizes.items() if math.isfinite(size)}
    too_large = [name for name, size in finite.items() if size > FAR_TOO_LARGE]
    damage = {"not_finite": not_finite_names(sizes), "too_large": too_large, "untrained": []}
    return {"vectors": vectors, **damage, "largest": max(finite.values(), default=0.0)}


def inspect_lora(path: Path, cancel: CancelToken | None = None) -> dict[str, Any]:
    """Return ranks, alphas and damaged weights of a LoRA, by the kind of each layer (core/networks/kinds).

    layers          {"unet": n, "text_encoder": n}
    ranks, alphas   {value: number of layers}
    not_finite      tensors with NaN or infinity
    too_large       tensors with values above FAR_TOO_LARGE
    untrained       layers without effect, such as an up matrix of zeros
    largest         largest absolute value of the weights
    """
    layers: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    alphas: Counter[float] = Counter()
    findings: dict[str, list[str]] = {"not_finite": [], "too_large": [], "untrained": []}
    top = 0.0
    with TensorFile(path) as file:
        for layer, names in _layers(file.entries).items():
            if cancel is not None:
                cancel.check()
            tensors = {key: file.read(name) for key, name in names.items()}
            floats = {key: value for key, value in tensors.items() if value.is_floating_point() and value.numel()}
            peaks = {key: float(value.float().abs().max()) for key, value in floats.items()}
            damaged = [key for key, peak in peaks.items() if not math.isfinite(peak)]
            findings["not_finite"] += [names[key] for key in damaged]
            kind = kind_of_keys(tensors, layer)
            if kind is None or kind.flaw(layer, tensors):
                continue
            layers["text_encoder" if layer.startswith("lora_te") else "unet"] += 1
            size = kind.size(tensors)
            if kind.uses & SIZES:
                ranks[size.rank] += 1
            if "alpha" in tensors:
                alphas[size.alpha] += 1
            weights = {key: peak for key, peak in peaks.items() if key != "alpha" and key not in damaged}
            top = max(top, *weights.values(), 0.0)
            findings["too_large"] += [names[key] for key, peak in weights.items() if peak > FAR_TOO_LARGE]
            if not damaged and kind.idle(tensors):
                findings["untrained"].append(layer)
    counts = {"layers": dict(layers), "ranks": dict(sorted(ranks.items())), "alphas": dict(sorted(alphas.items()))}
    return {**counts, **findings, "largest": top}


def _layers(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return {layer: {kohya's key: the tensor's name}}, for key names of any program."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        if name.startswith(BUNDLED):
            continue
        layer, key = to_kohya_key(name, None)
        layers.setdefault(layer or split_key(name)[0], {})[key] = name
    return layers


def fact_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts as lines of text, the metadata last."""
    lines = [f"{facts['path']}: {facts['what']} ({facts['evidence']})", f"size: {facts['bytes']:,} bytes"]
    if not facts["offered"]:
        lines.append("recognized; not offered: nothing here uses files of this kind")
    if facts["family"] is not None:
        lines.append(f"family: {FAMILY_NAMES[facts['family']]}")
    if facts["prediction"] is not None:
        lines.append(f"prediction type: {facts['prediction']}")
    if "parts" in facts:
        return [*lines, f"parts: {', '.join(facts['parts'])}"]
    types = ", ".join(f"{name} x {count}" for name, count in facts["types"].items())
    lines.append(f"tensors: {facts['tensors']:,} with {facts['parameters']:,} parameters ({types})")
    lines.append(
        f"SHA-256: {facts['sha256']} (model hash {facts['sha256'][:10]}, old model hash {facts['model_hash']})"
    )
    if "embedding" in facts:
        vectors = facts["embedding"]["vectors"]
        lines.append(
            f"vectors: {', '.join(f'{number} in {token}' if token else str(number) for token, number in vectors.items())}"
        )
        lines += _damage_lines(facts["embedding"])
    if "lora" in facts:
        lines += _lora_lines(facts["lora"], facts["weights_hash"])
    lines += [f"{name}: {_short(value)}" for name, value in facts["metadata"].items()] or ["metadata: none"]
    return lines


def _lora_lines(lora: Mapping[str, Any], hashed: Mapping[str, Any]) -> list[str]:
    """Return lines on a LoRA's layers, ranks and hash. `hashed`: result of `weights_hash`."""
    layers = ", ".join(f"{count} of {part.replace('_', ' ')}" for part, count in lora["layers"].items())
    lines = [f"layers: {layers or 'none of a known kind'}"]
    for title, name in (("rank", "ranks"), ("alpha", "alphas")):
        values = lora[name]
        if values:
            several = len(values) > 1
            each = [f"{value:g} in {count} layers" if several else f"{value:g}" for value, count in values.items()]
            lines.append(f"{title}: {', '.join(each)}")
    if hashed["sha256"]:
        notes = {
            None: "",
            True: ", as in the metadata",
            False: ", NOT as in the metadata: the weights were changed later",
        }
        lines.append(f"hash of the weights: {hashed['sha256']}{notes[hashed['as_in_metadata']]}")
    return lines + _damage_lines(lora)


def _damage_lines(damage: Mapping[str, Any]) -> list[str]:
    """Return lines on damaged and untrained weights. `damage`: result of `inspect_lora` or `inspect_embedding`."""
    damaged = damaged_lines(damage, SHOWN_NAMES)
    untrained = [f"no effect (untrained): {listed(names, SHOWN_NAMES)}"] if (names := damage["untrained"]) else []
    fine = f"no NaN, infinite or very large values; the largest is {damage['largest']:.4g}"
    return [*damaged, *untrained, *([] if damaged else [fine])]


def damaged_lines(damage: Mapping[str, Any], shown: int) -> list[str]:
    """Return lines with the first `shown` of the "not_finite" and the "too_large" tensors; [] without any."""
    labels = {"not_finite": "NaN or infinity", "too_large": f"values above {FAR_TOO_LARGE:,.0f}"}
    return [f"DAMAGED: {label} in {listed(damage[name], shown)}" for name, label in labels.items() if damage[name]]


def _short(value: Any) -> str:
    """Return a metadata value as text, cut to 500 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 500 else text[:500] + " ..."
