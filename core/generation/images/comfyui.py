"""ComfyUI's graphs: the texts that reach a sampler's positive input, and the settings of the image. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from core.generation.images.record import ForeignSettings

Graph = Mapping[str, Any]  # {id: {"class_type": ..., "inputs": {name: value, or [id, output] for a link}}}
# Inputs that carry a text or a conditioning: of CLIPTextEncode and its relatives, of combining and joining nodes, of
# primitives. Never a negative one, a model or an image.
_CARRIES = re.compile(
    r"populated_text|wildcard_text|t5xxl|clip_[lg]|(text|string|prompt|value|positive|conditioning)(_?([a-z]|\d+|to|from))?"
)
_GUIDED = "BasicGuider"  # takes a conditioning without calling it positive
LINKED = ("noise", "guider", "sampler", "sigmas")  # from where custom samplers have their settings
TEXTS, NUMBERS = ("text", "prompt", "string", "value"), ("value", "seed", "noise_seed", "int", "float", "number")
SEPARATORS = ("delimiter", "separator")
MOST_SAMPLERS, MOST_NODES, DEEPEST, LONGEST = 100, 50, 100, 200_001  # that are looked at
# Nodes that are a sampler or a scheduler by their kind.
IMPLIED = {
    **{f"{kind}Scheduler": {"scheduler": kind.lower()} for kind in ("Karras", "Exponential")},
    "BetaSamplingScheduler": {"scheduler": "beta"},
    "SamplerEulerAncestral": {"sampler_name": "euler_ancestral"},
    "SamplerDPMPP_2S_Ancestral": {"sampler_name": "dpmpp_2s_ancestral"},
    "SamplerDPMPP_2M_SDE": {"sampler_name": "dpmpp_2m_sde"},
    "SamplerDPMPP_3M_SDE": {"sampler_name": "dpmpp_3m_sde"},
    "SamplerDPMPP_SDE": {"sampler_name": "dpmpp_sde"},
    "SamplerLMS": {"sampler_name": "lms"},
}
# Nodes that are read, and those that only hold, join, show or save something; all others are named.
_KNOWN = re.compile(
    r"KSampler(Advanced|Select)?|SamplerCustom(Advanced)?|RandomNoise|CFGGuider|BasicGuider|BasicScheduler"
    r"|CheckpointLoader(Simple)?|UNETLoader|(Dual)?CLIPLoader|VAE(Loader|Decode|DecodeTiled)|LoraLoader(ModelOnly)?"
    r"|Empty.*Latent.*|CLIPTextEncode(SDXL)?|CLIPSetLastLayer|Power Lora Loader.*|Reroute.*|Note.*"
    r"|.*(Preview|Save|Show|Display|Primitive|String|Text|Prompt|Seed|Int|Float|Concat).*",
    re.IGNORECASE,
)


def positive_prompts(graph: Graph) -> list[str]:
    """The texts in the order of the samplers, each node once."""
    seen: set[str] = set()
    texts: list[str] = []
    for start in _starts(graph):
        waiting = [start]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            carried = list(_carried(graph, name))
            texts += [text for text in carried if isinstance(text, str) and text.strip()]
            waiting += [node for value in reversed(carried) if (node := _linked(value))]
    return list(dict.fromkeys(texts))


def _inputs(graph: Graph, name: str) -> Mapping[str, Any]:
    node = graph.get(name)
    if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
        return {}
    return {**node["inputs"], **IMPLIED.get(str(node.get("class_type", "")), {})}


def _linked(value: Any) -> str:
    """The node that an input is linked to; "" for none."""
    link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    return str(value[0]) if link else ""


def _carried(graph: Graph, name: str) -> Iterator[Any]:
    """The texts and links of a node's inputs that carry a text or a conditioning."""
    for key, value in _inputs(graph, name).items():
        if _CARRIES.fullmatch(key) and (isinstance(value, str) or _linked(value)):
            yield value


def _starts(graph: Graph) -> Iterator[str]:
    """What is linked to the positive input of a sampler or guider."""
    for name, each in graph.items():
        kind = str(each.get("class_type", "")) if isinstance(each, dict) else ""
        if "Sampler" in kind or "Guider" in kind:
            if node := _linked(_inputs(graph, name).get("conditioning" if kind == _GUIDED else "positive")):
                yield node


def graph_of(workflow: Any) -> Graph:
    """The graph of a workflow as ComfyUI's page saves it: nodes, links between them and the values of their widgets."""
    nodes, links = (_objects(workflow, "nodes"), _links(workflow)) if isinstance(workflow, dict) else ([], {})
    graph: dict[str, Any] = {}
    for node in nodes:
        kind = str(node.get("type", ""))
        inputs: dict[str, Any] = {}
        if re.search(r"text|string|prompt|primitive", kind, re.IGNORECASE):
            values = node.get("widgets_values")
            texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
            inputs = {f"text_{number}": text for number, text in enumerate(texts)}
        for slot in _objects(node, "inputs"):
            name = "conditioning" if kind == "Reroute" else str(slot.get("name", ""))
            origin = links.get(str(slot.get("link")))
            if origin is not None:
                inputs[name] = [origin, 0]
        graph[str(node.get("id"))] = {"class_type": kind, "inputs": inputs}
    return graph


def _objects(holder: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    listed = holder.get(key)
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _links(workflow: Mapping[str, Any]) -> dict[str, str]:
    """{link: node it comes from}, of lists [link, node, ...] and of objects."""
    found = {str(each.get("id")): str(each.get("origin_id")) for each in _objects(workflow, "links")}
    listed = workflow.get("links")
    pairs = [each for each in listed if isinstance(each, list) and len(each) > 1] if isinstance(listed, list) else []
    return found | {str(each[0]): str(each[1]) for each in pairs}


# ---- settings


def settings_of(nodes: Mapping[str, Any], workflow: Any = None) -> ForeignSettings | None:
    """The settings of the graph that ran, or the prompt alone where no sampler is found in it; None without either.

    workflow   that of ComfyUI's page, where there is no graph that ran
    """
    graph = _Graph(nodes)
    chosen = graph.sampler()
    if chosen is None:
        texts = positive_prompts(nodes or graph_of(workflow))
        return ForeignSettings("ComfyUI", ", ".join(texts), left=graph.unknown()) if texts else None
    positive = chosen.get("positive", chosen.get("conditioning"))
    negative = graph.words(chosen.get("negative"), "negative")
    settings = ForeignSettings("ComfyUI", graph.words(positive, "positive"), negative)
    numbers = {name: graph.value(chosen.get(name), (int, float), NUMBERS) for name in ("steps", "cfg", "denoise")}
    settings.put({"Steps": numbers["steps"], "CFG scale": 1 if "conditioning" in chosen else numbers["cfg"]})
    settings.put({"Seed": graph.value(chosen.get("seed", chosen.get("noise_seed")), (int,), NUMBERS)})
    settings.put({"Denoising strength": numbers["denoise"] if numbers["denoise"] != 1 else None})
    settings.sampled(*(graph.value(chosen.get(name), (str,), TEXTS) for name in ("sampler_name", "scheduler")))
    for inputs in graph.before(chosen["latent_image"]):
        sides = [graph.value(inputs.get(name), (int,), NUMBERS) for name in ("width", "height")]
        if all(sides):
            settings.put({"Size": f"{sides[0]}x{sides[1]}"})
            break
    for inputs in graph.before(chosen.get("model"), ("model", "model1", "MODEL")):
        _add_model(settings, inputs)
    for inputs in graph.before(positive):
        layer = inputs.get("stop_at_clip_layer")
        settings.put({"Clip skip": -layer if isinstance(layer, int) else None})
    settings.put({"VAE": next((each["vae_name"] for each in graph.inputs.values() if "vae_name" in each), None)})
    settings.left = [*graph.unknown(), *(["joined prompts"] if graph.joined else [])]
    settings.left += [f"{graph.samplers - 1} further samplers"] if graph.samplers > 1 else []
    return settings


def _add_model(settings: ForeignSettings, inputs: Mapping[str, Any]) -> None:
    """The model, or the LoRAs, of one node."""
    settings.add_lora(inputs.get("lora_name"), inputs.get("strength_model"), inputs.get("strength_clip"))
    for each in inputs.values():  # of rgthree's loader
        if isinstance(each, dict) and each.get("on"):
            settings.add_lora(each.get("lora"), each.get("strength"), each.get("strengthTwo"))
    names = (inputs.get(name) for name in ("ckpt_name", "unet_name"))
    settings.put({"Model": next((name for name in names if isinstance(name, str)), None)})


class _Graph:
    """samplers: how many there are; joined: whether prompts were joined in a way of their own"""

    def __init__(self, nodes: Graph):
        self.inputs = {name: _inputs(nodes, name) for name in nodes if _inputs(nodes, name)}
        self.kinds = [str(each.get("class_type", "")) for each in nodes.values() if isinstance(each, dict)]
        self.samplers, self.joined = 0, False
        self._words: dict[tuple[str, str], str] = {}

    def unknown(self) -> list[str]:
        """The kinds of the nodes that are not read."""
        return [
            kind for kind in dict.fromkeys(self.kinds) if kind and kind not in IMPLIED and not _KNOWN.fullmatch(kind)
        ]

    def sampler(self) -> dict[str, Any] | None:
        """The inputs of the sampler of the first stage, and of the nodes that give it settings; None if there is none."""
        found = []
        for name in self.inputs:
            inputs: dict[str, Any] = {}
            for each in islice(self.before([name, 0], LINKED), MOST_NODES):
                inputs = {**each, **inputs}
            if (
                "latent_image" in self.inputs[name]
                and inputs.keys() & {"positive", "conditioning"}
                and "steps" in inputs
            ):
                found.append(inputs)
                self.samplers += 1
        first = (each for each in found[:MOST_SAMPLERS] if self._is_first(each))
        return next(first, found[0] if found else None)

    def _is_first(self, sampler: Mapping[str, Any]) -> bool:
        return all("latent_image" not in inputs for inputs in self.before(sampler["latent_image"]))

    def node(self, link: Any) -> str | None:
        """The id of the node that a link leads to; None if it is not a link."""
        name = _linked(link)
        return name if name in self.inputs else None

    def before(self, link: Any, names: Sequence[str] = ()) -> Iterator[Mapping[str, Any]]:
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

    def words(self, link: Any, side: str, depth: int = 0) -> str:
        """The text at a link: of its node, or those that the node takes, joined as it says. side: "positive" or "negative" """
        at = self.node(link)
        if at is None or depth > DEEPEST:
            return ""
        if (at, side) in self._words:
            return self._words[at, side]
        self._words[at, side] = ""  # of a circle
        inputs = self.inputs[at]
        named = [name for name in inputs if name in (side, f"text_{side}", f"{side}_prompt")]
        named = named or [name for name in ("populated_text",) if name in inputs]
        named = named or [name for name in inputs if _CARRIES.fullmatch(name)]
        links = [name for name in inputs if _linked(inputs[name])]
        named = named or (links if len(links) == 1 else [])  # a switch or reroute with a name of its own
        texts = [
            inputs[name] if isinstance(inputs[name], str) else self.words(inputs[name], side, depth + 1)
            for name in named
        ]
        texts = [text for text in texts if text.strip()]
        separator = next((inputs[name] for name in SEPARATORS if isinstance(inputs.get(name), str)), None)
        if separator is None:
            texts = list(dict.fromkeys(texts))
            self.joined |= len(texts) > 1
        self._words[at, side] = (", " if separator is None else separator.replace("\\n", "\n")).join(texts)[:LONGEST]
        return self._words[at, side]
