"""Reads the metadata of ComfyUI, Fooocus, NovelAI, InvokeAI and sd-scripts as settings by A1111's names, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
class ForeignSettings:
    """source: the program; pairs: {A1111's name: value}; loras: (name, U-Net strength, text encoder strength)"""

    source: str
    prompt: str = ""
    negative: str = ""
    pairs: dict[str, str] = field(default_factory=dict)
    loras: list[tuple[str, float, float]] = field(default_factory=list)

    def put(self, **values: Any) -> None:
        """Add pairs by A1111's names with _ for spaces; None and values that are not text or numbers are left out."""
        for name, value in values.items():
            if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
                self.pairs[name.replace("_", " ")] = f"{value:g}" if isinstance(value, float) else str(value)[:300]

    def sampled(self, sampler: Any, schedule: Any = "") -> None:
        """Add the sampler and scheduler, given by another program's names."""
        name, kind = str(sampler or "").lower(), str(schedule or "").lower()
        for suffix in ("karras", "exponential"):  # samplers of k-diffusion and InvokeAI
            if name.endswith(f"_{suffix}") or (name.endswith("_k") and suffix == "karras"):
                name, kind = name.removesuffix(f"_{suffix}").removesuffix("_k"), suffix
        name = name.removeprefix("sample_").removeprefix("k_").removesuffix("_gpu")
        self.put(Sampler=SAMPLERS.get(name, name))
        self.put(Schedule_type=SCHEDULES.get(kind, kind))


def read_foreign(texts: Mapping[str, str], comment: str, size: tuple[int, int]) -> ForeignSettings | None:
    """The settings written by one of these programs; None if there are none. texts: of a PNG; comment: EXIF's UserComment"""
    block = texts.get("parameters") or comment
    of_novelai = "NovelAI" in (texts.get("Software", ""), texts.get("Source", "")[:7])
    readers = [
        (block if block.lstrip()[:1] == "{" else "", _fooocus),
        (texts.get("invokeai_metadata", ""), _invokeai),
        (texts.get("Comment", "") if of_novelai else "", _novelai),
        (texts.get("prompt", "") if texts.get("prompt", "").lstrip()[:1] == "{" else "", _comfyui),
    ]
    for text, reader in readers:
        content = _object(text)
        if content is not None and (found := reader(content)) is not None:
            return found
    return _sd_scripts(texts, size) if {"prompt", "seed", "steps", "scale"} <= texts.keys() else None


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object of a text; None if it is not one or too large."""
    if not text or len(text) > LONGEST:
        return None
    try:
        found = parse_json(text, "the image's settings", max_values=MOST, finite=False)  # ComfyUI writes NaN
    except ProblemsError:
        return None
    return found if isinstance(found, dict) else None


def _fooocus(content: dict[str, Any]) -> ForeignSettings | None:
    if "prompt" not in content or "guidance_scale" not in content:
        return None
    settings = ForeignSettings("Fooocus", str(content["prompt"]), str(content.get("negative_prompt") or ""))
    settings.put(Steps=content.get("steps"), CFG_scale=content["guidance_scale"], Seed=content.get("seed"))
    settings.put(
        Size=str(content.get("resolution") or "").strip("()").replace(", ", "x"), Model=content.get("base_model")
    )
    settings.put(Clip_skip=content.get("clip_skip"))
    settings.sampled(content.get("sampler"), content.get("scheduler"))
    for each in _list(content.get("loras")):
        if isinstance(each, list) and len(each) > 1:
            _add_lora(settings, each[0], each[1])
    return settings


def _invokeai(content: dict[str, Any]) -> ForeignSettings:
    settings = ForeignSettings(
        "InvokeAI", str(content.get("positive_prompt") or ""), str(content.get("negative_prompt") or "")
    )
    settings.put(Steps=content.get("steps"), CFG_scale=content.get("cfg_scale"), Seed=content.get("seed"))
    settings.put(Size=f"{content.get('width')}x{content.get('height')}", Model=_name(content.get("model")))
    settings.sampled(content.get("scheduler"))
    for each in _list(content.get("loras")):
        if isinstance(each, dict):
            _add_lora(settings, _name(each.get("model") or each.get("lora")), each.get("weight"))
    return settings


def _novelai(content: dict[str, Any]) -> ForeignSettings:
    settings = ForeignSettings("NovelAI", str(content.get("prompt") or ""), str(content.get("uc") or ""))
    settings.put(Steps=content.get("steps"), CFG_scale=content.get("scale"), Seed=content.get("seed"))
    settings.put(Size=f"{content.get('width')}x{content.get('height')}")
    settings.sampled(content.get("sampler"), content.get("noise_schedule"))
    return settings


def _sd_scripts(texts: Mapping[str, str], size: tuple[int, int]) -> ForeignSettings:
    settings = ForeignSettings("sd-scripts", texts["prompt"], texts.get("negative-prompt", ""))
    settings.put(Steps=texts["steps"], CFG_scale=texts["scale"], Seed=texts["seed"], Size=f"{size[0]}x{size[1]}")
    settings.put(Sampler=texts.get("sampler"))
    return settings


def _list(value: Any) -> list[Any]:
    return value[:100] if isinstance(value, list) else []


def _name(model: Any) -> Any:
    found = model.get("name") or model.get("model_name") if isinstance(model, dict) else model
    return found if isinstance(found, str) else None


def _add_lora(settings: ForeignSettings, name: Any, unet: Any, text: Any = None) -> None:
    """Add a LoRA unless its name or strength is missing. The name loses folder and extension."""
    if isinstance(name, str) and name and name != "None" and isinstance(unet, (int, float)):
        plain = name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")
        settings.loras.append((plain, float(unet), float(text if isinstance(text, (int, float)) else unet)))


# -- ComfyUI: a graph of nodes, {id: {"class_type", "inputs": {name: value or [id, output]}}}


class _Graph:
    def __init__(self, nodes: dict[str, Any]):
        self.inputs = {
            name: node["inputs"]
            for name, node in nodes.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }

    def node(self, link: Any) -> str | None:
        """The id of the node that a link leads to; None if it is not a link."""
        leads = isinstance(link, list) and len(link) == 2 and str(link[0]) in self.inputs
        return str(link[0]) if leads else None

    def before(self, link: Any, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Inputs of the nodes upstream of a link, nearest first, each once. names: the inputs to follow; all if empty"""
        seen, left = set(), [self.node(link)]
        while left:
            at = left.pop(0)
            if at is None or at in seen:
                continue
            seen.add(at)
            yield self.inputs[at]
            left += [self.node(value) for name, value in self.inputs[at].items() if not names or name in names]

    def value(self, given: Any, kind: tuple[type, ...], names: Sequence[str]) -> Any:
        """A value of these types, or the nearest one upstream, by these names of inputs; None if there is none."""
        if isinstance(given, kind):
            return given
        for inputs in self.before(given):
            for name in names:
                if isinstance(inputs.get(name), kind):
                    return inputs[name]
        return None


def _comfyui(nodes: dict[str, Any]) -> ForeignSettings | None:
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
    settings = ForeignSettings("ComfyUI", positive, negative)
    numbers = {name: graph.value(chosen.get(name), (int, float), NUMBERS) for name in ("steps", "cfg", "denoise")}
    seed = chosen.get("seed", chosen.get("noise_seed"))
    settings.put(Steps=numbers["steps"], CFG_scale=numbers["cfg"], Seed=graph.value(seed, (int,), NUMBERS))
    settings.put(Denoising_strength=numbers["denoise"] if numbers["denoise"] != 1 else None)
    settings.sampled(*(graph.value(chosen.get(name), (str,), TEXTS) for name in ("sampler_name", "scheduler")))
    for inputs in graph.before(chosen["latent_image"]):
        sides = [graph.value(inputs.get(name), (int,), NUMBERS) for name in ("width", "height")]
        if all(sides):
            settings.put(Size=f"{sides[0]}x{sides[1]}")
            break
    for inputs in graph.before(chosen.get("model"), ("model", "model1", "MODEL")):
        _add_lora(settings, inputs.get("lora_name"), inputs.get("strength_model"), inputs.get("strength_clip"))
        names = (inputs.get(name) for name in ("ckpt_name", "unet_name"))
        settings.put(Model=next((name for name in names if isinstance(name, str)), None))
    return settings
