"""What ComfyUI, Fooocus, NovelAI, InvokeAI and sd-scripts write into images, in the words of A1111's block. Only read, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError

LONGEST = 2_000_000  # characters of JSON
MOST = 100_000  # values in it
# Sampler and scheduler of other programs -> ours and A1111's; with _gpu, k_ and the like taken off.
SAMPLERS = {
    "euler": "euler",
    "euler_a": "euler_a",
    "euler_ancestral": "euler_a",
    "euler_cfg_pp": "euler",
    "dpmpp_2m": "dpmsolver++",
    "dpmpp_2m_sde": "dpmsolver++_2m_sde",
    "dpmpp_sde": "dpmsolver++_sde",
    "dpmpp_2s": "dpmsingle",
    "dpmpp_3m": "dpmsolver++_3m",
    "dpm_2": "dpm_2",
    "dpm_2_ancestral": "dpm_2_a",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "unipc": "unipc",
    "ddim": "ddim",
    "ddim_v3": "ddim",
    "heun": "heun",
    "lms": "lms",
    "pndm": "pndm",
    "deis": "deis",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "tcd": "tcd",
}
SCHEDULES = {"normal": "Automatic", "native": "Automatic", "sgm_uniform": "SGM uniform"}
TEXTS = ("text", "text_g", "prompt", "string", "positive", "value")
NUMBERS = ("value", "seed", "noise_seed", "int", "float", "number")


@dataclass
class Told:
    """source: the program; pairs: as in the last line of A1111's block; loras: (name, U-Net, text encoder)"""

    source: str
    prompt: str = ""
    negative: str = ""
    pairs: dict[str, str] = field(default_factory=dict)
    loras: list[tuple[str, float, float]] = field(default_factory=list)

    def put(self, **values: Any) -> None:
        """Pairs by A1111's names with _ for blanks; what is None or no plain value is left out."""
        for name, value in values.items():
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
                self.pairs[name.replace("_", " ")] = f"{value:g}" if isinstance(value, float) else str(value)[:300]

    def sampled(self, sampler: Any, schedule: Any = "") -> None:
        """Sampler and scheduler in their own words."""
        name, kind = str(sampler or "").lower(), str(schedule or "").lower()
        for suffix in ("karras", "exponential"):  # samplers of k-diffusion and InvokeAI
            if name.endswith(f"_{suffix}") or (name.endswith("_k") and suffix == "karras"):
                name, kind = name.removesuffix(f"_{suffix}").removesuffix("_k"), suffix
        name = name.removeprefix("sample_").removeprefix("k_").removesuffix("_gpu")
        self.put(Sampler=SAMPLERS.get(name, name))
        self.put(Schedule_type=SCHEDULES.get(kind, kind))


def told_by(texts: Mapping[str, str], comment: str, size: tuple[int, int]) -> Told | None:
    """What one of these programs wrote; None for another. texts: of a PNG; comment: EXIF's UserComment"""
    block = texts.get("parameters") or comment
    readers = [
        (block if block.lstrip()[:1] == "{" else "", _fooocus),
        (texts.get("invokeai_metadata", ""), _invokeai),
        (
            texts.get("Comment", "") if "NovelAI" in (texts.get("Software", ""), texts.get("Source", "")[:7]) else "",
            _novelai,
        ),
        (texts.get("prompt", "") if texts.get("prompt", "").lstrip()[:1] == "{" else "", _comfyui),
    ]
    for text, reader in readers:
        content = _object(text)
        if content is not None and (found := reader(content)) is not None:
            return found
    return _sd_scripts(texts, size) if {"prompt", "seed", "steps", "scale"} <= texts.keys() else None


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object of a text, within limits."""
    if not text or len(text) > LONGEST:
        return None
    try:
        found = parse_json(text, "the image's settings", max_values=MOST, finite=False)  # ComfyUI writes NaN
    except ProblemsError:
        return None
    return found if isinstance(found, dict) else None


def _fooocus(said: dict[str, Any]) -> Told | None:
    if "prompt" not in said or "guidance_scale" not in said:
        return None
    told = Told("Fooocus", str(said["prompt"]), str(said.get("negative_prompt") or ""))
    told.put(Steps=said.get("steps"), CFG_scale=said["guidance_scale"], Seed=said.get("seed"))
    told.put(Size=str(said.get("resolution") or "").strip("()").replace(", ", "x"), Model=said.get("base_model"))
    told.put(Clip_skip=said.get("clip_skip"))
    told.sampled(said.get("sampler"), said.get("scheduler"))
    for each in _list(said.get("loras")):
        if isinstance(each, list) and len(each) > 1:
            _add_lora(told, each[0], each[1])
    return told


def _invokeai(said: dict[str, Any]) -> Told:
    told = Told("InvokeAI", str(said.get("positive_prompt") or ""), str(said.get("negative_prompt") or ""))
    told.put(Steps=said.get("steps"), CFG_scale=said.get("cfg_scale"), Seed=said.get("seed"))
    told.put(Size=f"{said.get('width')}x{said.get('height')}", Model=_name(said.get("model")))
    told.sampled(said.get("scheduler"))
    for each in _list(said.get("loras")):
        if isinstance(each, dict):
            _add_lora(told, _name(each.get("model") or each.get("lora")), each.get("weight"))
    return told


def _novelai(said: dict[str, Any]) -> Told:
    told = Told("NovelAI", str(said.get("prompt") or ""), str(said.get("uc") or ""))
    told.put(Steps=said.get("steps"), CFG_scale=said.get("scale"), Seed=said.get("seed"))
    told.put(Size=f"{said.get('width')}x{said.get('height')}")
    told.sampled(said.get("sampler"), said.get("noise_schedule"))
    return told


def _sd_scripts(texts: Mapping[str, str], size: tuple[int, int]) -> Told:
    told = Told("sd-scripts", texts["prompt"], texts.get("negative-prompt", ""))
    told.put(Steps=texts["steps"], CFG_scale=texts["scale"], Seed=texts["seed"], Size=f"{size[0]}x{size[1]}")
    told.put(Sampler=texts.get("sampler"))
    return told


def _list(value: Any) -> list[Any]:
    return value[:100] if isinstance(value, list) else []


def _name(model: Any) -> Any:
    found = model.get("name") or model.get("model_name") if isinstance(model, dict) else model
    return found if isinstance(found, str) else None


def _add_lora(told: Told, name: Any, unet: Any, text: Any = None) -> None:
    """One that is used; names without folder and ending."""
    if isinstance(name, str) and name and name != "None" and isinstance(unet, (int, float)):
        plain = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
        told.loras.append((plain, float(unet), float(text if isinstance(text, (int, float)) else unet)))


# -- ComfyUI: a graph of nodes, {id: {"class_type", "inputs": {name: value or [id, output]}}}


class _Graph:
    def __init__(self, nodes: dict[str, Any]):
        self.inputs = {
            name: node["inputs"]
            for name, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def node(self, link: Any) -> str | None:
        """The node that a link leads to."""
        leads = isinstance(link, list) and len(link) == 2 and str(link[0]) in self.inputs
        return str(link[0]) if leads else None

    def before(self, link: Any, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """The inputs of the nodes that lead to a link, nearest first, each once. names: of the inputs to follow; all without"""
        seen, left = set(), [self.node(link)]
        while left:
            at = left.pop(0)
            if at is None or at in seen:
                continue
            seen.add(at)
            yield self.inputs[at]
            left += [self.node(value) for name, value in self.inputs[at].items() if not names or name in names]

    def value(self, given: Any, kind: tuple[type, ...], names: Sequence[str]) -> Any:
        """A value, also where it comes from another node."""
        if isinstance(given, kind):
            return given
        for inputs in self.before(given):
            for name in names:
                if isinstance(inputs.get(name), kind):
                    return inputs[name]
        return None


def _comfyui(nodes: dict[str, Any]) -> Told | None:
    graph = _Graph(nodes)
    samplers = [
        each for each in graph.inputs.values() if {"positive", "negative", "latent_image", "steps"} <= each.keys()
    ]
    if not samplers:
        return None

    def first_stage(sampler: dict[str, Any]) -> bool:
        return all("latent_image" not in inputs for inputs in graph.before(sampler["latent_image"]))

    chosen = next((each for each in samplers if first_stage(each)), samplers[0])
    positive, negative = (str(graph.value(chosen[side], (str,), TEXTS) or "") for side in ("positive", "negative"))
    told = Told("ComfyUI", positive, negative)
    numbers = {name: graph.value(chosen.get(name), (int, float), NUMBERS) for name in ("steps", "cfg", "denoise")}
    seed = chosen.get("seed", chosen.get("noise_seed"))
    told.put(Steps=numbers["steps"], CFG_scale=numbers["cfg"], Seed=graph.value(seed, (int,), NUMBERS))
    told.put(Denoising_strength=numbers["denoise"] if numbers["denoise"] != 1 else None)
    told.sampled(*(graph.value(chosen.get(name), (str,), TEXTS) for name in ("sampler_name", "scheduler")))
    for inputs in graph.before(chosen["latent_image"]):
        sides = [graph.value(inputs.get(name), (int,), NUMBERS) for name in ("width", "height")]
        if all(sides):
            told.put(Size=f"{sides[0]}x{sides[1]}")
            break
    for inputs in graph.before(chosen.get("model"), ("model", "model1", "MODEL")):
        _add_lora(told, inputs.get("lora_name"), inputs.get("strength_model"), inputs.get("strength_clip"))
        with suppress(StopIteration):
            told.put(
                Model=next(inputs[name] for name in ("ckpt_name", "unet_name") if isinstance(inputs.get(name), str))
            )
    return told
