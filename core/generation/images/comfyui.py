"""Reads ComfyUI's graphs: the prompts that reach a sampler, and the settings of the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from core.generation.images.record import ForeignSettings
from core.generation.prompt.loras import LoraTag, split_tags
from core.record.units import count

Graph = Mapping[str, Any]  # {id: {"class_type": ..., "inputs": {name: value, or [id, output] for a link}}}
# Inputs that carry a text or a conditioning: of CLIPTextEncode and its relatives, of combining and joining nodes, of
# primitives. Never a negative one, a model or an image.
_CARRIES = re.compile(
    r"populated_text|wildcard_text|t5xxl|clip_[lg]|(text|string|prompt|value|positive|conditioning)(_?([a-z]|\d+|to|from))?"
)
_GUIDED = "BasicGuider"  # reads a conditioning from an input not called positive
PIPES = ("pipe", "basic_pipe", "sdxl_tuple")  # through which nodes pass model, prompts and latents together
LINKED = ("noise", "guider", "sampler", "sigmas", *PIPES)  # inputs of samplers that lead to their settings
MODELS = ("model", "model1", "MODEL", "lora_stack", "optional_lora_stack")
TEXTS, NUMBERS = ("text", "prompt", "string", "value"), ("value", "seed", "noise_seed", "int", "float", "number")
SIDES = (("width", "height"), ("empty_latent_width", "empty_latent_height"))
CLIP_LAYERS = ("stop_at_clip_layer", "clip_skip", "base_clip_skip")
SEPARATORS = ("delimiter", "separator")
EMPTY, REPLACES = "ConditioningZeroOut", "StringReplace"
NO_TEXT = ("model", "clip", "vae", "image", "pixels", "samples", "latent")
MOST_SAMPLERS, MOST_NODES, DEEPEST, LONGEST = 100, 50, 100, 200_001  # nodes visited at most
# Classes of samplers and schedulers.
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
# Nodes that are read.
_KNOWN = re.compile(
    r"KSampler(Advanced|Select)?|SamplerCustom(Advanced)?|RandomNoise|CFGGuider|BasicGuider|BasicScheduler"
    r"|CheckpointLoader(Simple)?|UNETLoader|(Dual)?CLIPLoader|VAE(Loader|Decode|DecodeTiled)|LoraLoader(ModelOnly)?"
    r"|Empty.*Latent.*|CLIPTextEncode(SDXL)?|CLIPSetLastLayer|ConditioningZeroOut|Power Lora Loader.*|Reroute.*|Note.*"
    r"|(CR )?(Apply )?LoRA Stack(er)?|Lora Loader.*|Efficient Loader|Eff\. Loader SDXL|KSampler.*\(Eff.*\)|(To|From)BasicPipe"
    r"|easy (fullLoader|comfyLoader|preSampling|kSampler)|ttN pipe(Loader|KSampler).*|ImpactKSamplerBasicPipe|KSampler Config.*"
    r"|StringReplace",
    re.IGNORECASE,
)
# Those that only store, join, show or save something; all others are reported.
_PASSIVE = re.compile(
    r".*(Preview|Save|Show|Display|Primitive|String|Text|Prompt|Seed|Float|Concat|Integer|(?-i:Int|INT|\bint)(Constant|\b)).*",
    re.IGNORECASE,
)
# Nodes that change their input texts.
_CHANGES_TEXT = re.compile(
    r"replac|styl|random|wildcard|regex|trim|slic|substring|translat|llm|gpt|generat|template|format|case|interrogat|tagger|schedul"
    r"|travel|split|extract|truncat|enhanc|expan|upsampl|edit|function",
    re.IGNORECASE,
)
_CHANGES_SIZE = re.compile(r"upscal|resiz|crop|scale|outpaint|pad", re.IGNORECASE)
# Inputs that name a LoRA, with the number of one of several, and its strengths in the model and in the text encoder.
_LORA = re.compile(r"lora_name(_\d+)?|lora(_\d+)")
_STRENGTHS = (
    ("strength_model", "lora_model_strength", "model_weight", "lora_wt", "model_str", "strength"),
    ("strength_clip", "lora_clip_strength", "clip_weight", "lora_wt", "clip_str", "strength"),
)


def is_graph(content: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a graph that ran, or part of one: a value has "class_type"."""
    return any(isinstance(each, dict) and "class_type" in each for each in content.values())


def positive_prompts(graph: Graph) -> list[str]:
    """Return the texts that reach positive inputs, in the order of the samplers, without repetitions."""
    visited: set[str] = set()
    texts: list[str] = []
    for start in _positive_nodes(graph):
        stack = [start]
        while stack:
            name = stack.pop()
            if name in visited:
                continue
            visited.add(name)
            inputs = _inputs(graph, name)
            values = [inputs[each] for each in _carriers(inputs)]
            texts += [text for text in values if isinstance(text, str) and text.strip()]
            stack += [node for value in reversed(values) if (node := _linked(value))]
    return list(dict.fromkeys(texts))


def _inputs(graph: Graph, name: str) -> Mapping[str, Any]:
    """Return {input: value or link} of a node, with the settings that its class implies; {} for an unknown node."""
    node = graph.get(name)
    if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
        return {}
    return {**node["inputs"], **IMPLIED.get(str(node.get("class_type", "")), {})}


def _linked(value: Any) -> str:
    """Return the id of the node that an input is linked to; "" if it is not a link."""
    link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    return str(value[0]) if link else ""


def _carriers(inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of the texts and links among a node's inputs that carry a text or a conditioning."""
    return [
        name
        for name, value in inputs.items()
        if _CARRIES.fullmatch(name) and (isinstance(value, str) or _linked(value))
    ]


def _positive_nodes(graph: Graph) -> Iterator[str]:
    """Yield the ids of the nodes that the positive inputs of samplers and guiders are linked to."""
    for name, each in graph.items():
        kind = str(each.get("class_type", "")) if isinstance(each, dict) else ""
        if "Sampler" in kind or "Guider" in kind:
            if node := _linked(_inputs(graph, name).get("conditioning" if kind == _GUIDED else "positive")):
                yield node


def graph_of(workflow: Any) -> Graph:
    """Convert a workflow, as ComfyUI's page saves it, to a graph: nodes with links and the texts of their widgets."""
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
    """Return the objects in the list under `key`; [] if there is no list."""
    listed = holder.get(key)
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _links(workflow: Mapping[str, Any]) -> dict[str, str]:
    """Return {id of a link: id of the node it comes from}, for links as lists [link, node, ...] and as objects."""
    sources = {str(each.get("id")): str(each.get("origin_id")) for each in _objects(workflow, "links")}
    listed = workflow.get("links")
    pairs = [each for each in listed if isinstance(each, list) and len(each) > 1] if isinstance(listed, list) else []
    return sources | {str(each[0]): str(each[1]) for each in pairs}


# ---- settings


def settings_of(
    nodes: Mapping[str, Any], workflow: Any = None, size: tuple[int, int] | None = None
) -> ForeignSettings | None:
    """Return the settings in a graph that ran; the prompt alone if it has no sampler; None if it has neither.

    nodes      the graph that ran; {} if there is none
    workflow   of ComfyUI's page, used if there is no graph
    size       (width, height) of the image, for graphs that do not state it
    """
    graph = _Graph(nodes)
    sampler = graph.sampler()
    if sampler is None:
        texts = positive_prompts(nodes or graph_of(workflow))
        return ForeignSettings("ComfyUI", ", ".join(texts), unread=graph.unknown()) if texts else None
    positive = sampler.get("positive", sampler.get("conditioning"))
    negative = graph.text(sampler.get("negative"), "negative")
    settings = ForeignSettings("ComfyUI", graph.text(positive, "positive"), negative)
    numbers = {name: graph.value(sampler, name, (int, float), NUMBERS) for name in ("steps", "cfg", "denoise")}
    settings.put({"Steps": numbers["steps"], "CFG scale": 1 if "conditioning" in sampler else numbers["cfg"]})
    settings.put({"Seed": graph.value(sampler, "seed" if "seed" in sampler else "noise_seed", (int,), NUMBERS)})
    settings.put({"Denoising strength": numbers["denoise"] if numbers["denoise"] != 1 else None})
    settings.sampled(*(graph.value(sampler, name, (str,), TEXTS) for name in ("sampler_name", "scheduler")))
    settings.put({"Size": graph.size(sampler, size)})
    for inputs in (sampler, *graph.inputs_upstream(sampler.get("model"), MODELS)):
        _add_model(settings, graph, inputs)
    for inputs in (sampler, *graph.inputs_upstream(positive)):
        layers = [layer for name in CLIP_LAYERS if isinstance(layer := inputs.get(name), int) and layer < 0]
        settings.put({"Clip skip": -layers[0] if layers else None})
    settings.put({"VAE": graph.vae()})
    settings.unread = [*graph.unknown(), *dict.fromkeys(graph.missed), *(["joined prompts"] if graph.joined else [])]
    others, later = graph.branches - 1, graph.samplers - graph.branches
    settings.unread += [
        count(others, "other branch", "other branches") + ", one of which may have made this image"
    ] * bool(others)
    settings.unread += [count(later, "further sampler")] * bool(later)
    latents = graph.inputs_upstream(sampler.get("latent_image"))
    batch = max([1, *(size for inputs in (sampler, *latents) if isinstance(size := inputs.get("batch_size"), int))])
    settings.unread += [f"a batch of {batch} images, of which only the first has this seed"] if batch > 1 else []
    return settings


def _add_model(settings: ForeignSettings, graph: _Graph, inputs: Mapping[str, Any]) -> None:
    """Add the model or the LoRAs in one node's inputs to the settings."""
    for name, value in inputs.items():
        if match := _LORA.fullmatch(name):
            file = None if isinstance(value, dict) else graph.value(inputs, name, (str,), TEXTS)
            _add_numbered(settings, graph, inputs, file, match[1] or match[2] or "")
        loras = value.get("__value__") if isinstance(value, dict) else None  # of the LoRA Manager's
        for each in (value, *(loras if isinstance(loras, list) else ())):
            if isinstance(each, dict) and (each.get("on") or each.get("active")):  # rgthree's older form
                texts = each.get("strengthTwo", each.get("clipStrength"))
                settings.add_lora(each.get("lora", each.get("name")), each.get("strength"), texts)
    for tag in _tags(inputs.get("loras")):
        settings.add_lora(tag.name, tag.unet, tag.text_encoder)
    names = (inputs.get(name) for name in ("ckpt_name", "unet_name", "base_ckpt_name"))
    settings.put({"Model": next((name for name in names if isinstance(name, str)), None)})


def _tags(text: Any) -> list[LoraTag]:
    """Return the LoRA tags in a text; [] for other values and invalid tags."""
    try:
        return split_tags(text)[1] if isinstance(text, str) else []
    except ValueError:
        return []


def _add_numbered(settings: ForeignSettings, graph: _Graph, inputs: Mapping[str, Any], name: Any, number: str) -> None:
    """Add the LoRA `name` of a node with several, by the inputs that end with its number, if it is switched on.

    name     file of the LoRA
    number   ending of its inputs such as "_2"; "" for a node with one
    """
    used = inputs.get("lora_count")
    beyond = isinstance(used, int) and number and int(number[1:]) > used
    if beyond or inputs.get(f"switch{number}") == "Off":
        return
    unused = "lora_wt" if inputs.get("input_mode") == "advanced" else ""
    present = ([key + number for key in keys if key + number in inputs and key != unused] for keys in _STRENGTHS)
    unet, text = (graph.value(inputs, names[0], (int, float), NUMBERS) if names else None for names in present)
    settings.add_lora(name, unet, text)


class _Graph:
    """A ComfyUI graph whose settings are being read.

    inputs     {id of a node: {input: value or link}}
    kind_of    {id of a node: its class}
    samplers   number of samplers
    branches   number of samplers that are a first stage: each begins another image
    joined     True if prompts were joined by a node that is not known
    missed     names of inputs whose value was not found
    """

    def __init__(self, nodes: Graph):
        self.inputs = {name: _inputs(nodes, name) for name in nodes if _inputs(nodes, name)}
        self.kind_of = {name: str(each.get("class_type", "")) for name, each in nodes.items() if isinstance(each, dict)}
        self.samplers, self.branches, self.joined, self.missed = 0, 0, False, list[str]()
        self._texts: dict[tuple[str, str], str] = {}

    def unknown(self) -> list[str]:
        """Return the classes of the nodes that are not understood and may affect the image."""
        kinds = dict.fromkeys(kind for kind in self.kind_of.values() if kind and kind not in IMPLIED)
        return [
            kind
            for kind in kinds
            if not _KNOWN.fullmatch(kind) and (_CHANGES_TEXT.search(kind) or not _PASSIVE.fullmatch(kind))
        ]

    def sampler(self) -> dict[str, Any] | None:
        """Return {input: value or link} of the first stage's sampler, merged with the inputs of the nodes that hold its settings; None
        without a sampler."""
        merged: dict[str, dict[str, Any]] = {}
        parts: set[str] = set()  # nodes with another sampler's settings
        for name in self.inputs:
            if "latent_image" not in self.inputs[name] and not self.inputs[name].keys() & {*PIPES}:
                continue
            inputs: dict[str, Any] = {}
            linked = list(islice(self.upstream([name, 0], LINKED), MOST_NODES))
            for each in linked:
                inputs = {**self.inputs[each], **inputs}
            sampled = "latent_image" in self.inputs[name] or "sampl" in self.kind_of[name].lower()
            if sampled and inputs.keys() & {"positive", "conditioning"} and "steps" in inputs:
                merged[name] = inputs
                parts.update(linked[1:])
        samplers = [inputs for name, inputs in merged.items() if name not in parts]
        self.samplers = len(samplers)
        first = [each for each in samplers[:MOST_SAMPLERS] if self._is_first(each)] or samplers[:1]
        self.branches = sum("latent_image" in each for each in first) or 1
        return next(iter(first), None)

    def _is_first(self, sampler: Mapping[str, Any]) -> bool:
        """Return whether no other sampler provides the latents of this one."""
        return all("latent_image" not in inputs for inputs in self.inputs_upstream(sampler.get("latent_image")))

    def node(self, link: Any) -> str | None:
        """Return the id of the node at the other end of a link; None if the value is not a link."""
        name = _linked(link)
        return name if name in self.inputs else None

    def upstream(self, link: Any, names: Sequence[str] = ()) -> Iterator[str]:
        """Yield the ids of the nodes upstream of a link, nearest first, each once. names: inputs to follow; () for all"""
        visited, queue = set(), [self.node(link)]
        while queue:
            node = queue.pop(0)
            if node is None or node in visited:
                continue
            visited.add(node)
            yield node
            queue += [self.node(value) for name, value in self.inputs[node].items() if not names or name in names]

    def inputs_upstream(self, link: Any, names: Sequence[str] = ()) -> Iterator[Mapping[str, Any]]:
        """Yield the inputs of the nodes upstream of a link, nearest first. names: inputs to follow; () for all"""
        return (self.inputs[name] for name in self.upstream(link, names))

    def value(self, inputs: Mapping[str, Any], name: str, kind: tuple[type, ...], names: Sequence[str]) -> Any:
        """Return the value of an input, following its link to the nearest node that states it; None if not found.

        kind    accepted types
        names   further names under which an upstream node may have the value
        """
        value = inputs.get(name)
        if isinstance(value, str) and int in kind and re.fullmatch(r"\d{1,20}", value):
            return int(value)
        if isinstance(value, kind):
            return value
        for each in self.inputs_upstream(value):
            for key in (name, f"{name}_total", *names):
                if isinstance(each.get(key), kind):
                    return each[key]
        nearest = self.inputs.get(_linked(value), {})
        values = [item for key, item in nearest.items() if key != "batch_size" and isinstance(item, kind)]
        values = [item for item in values if not isinstance(item, bool)]
        if len(values) == 1:
            return values[0]
        if _linked(value):
            self.missed.append(name)
        return None

    def size(self, sampler: Mapping[str, Any], image: tuple[int, int] | None) -> str | None:
        """Return "WxH" of the latents from the nearest node that states it, else the size of `image`; None if unknown.
        image: (width, height) of the image file, not used if a node or a second sampler changes the size"""
        for inputs in (sampler, *self.inputs_upstream(sampler.get("latent_image"))):
            for names in SIDES:
                sides = [self.value(inputs, name, (int,), NUMBERS) for name in names]
                if all(sides):
                    return f"{sides[0]}x{sides[1]}"
        changed = self.samplers > 1 or any(map(_CHANGES_SIZE.search, self.kind_of.values()))
        return "{}x{}".format(*image) if image and not changed else None

    def vae(self) -> str | None:
        """Return the file name of the VAE in use; None if no node names one."""
        linked = {_linked(value) for inputs in self.inputs.values() for value in inputs.values()}
        named = (inputs["vae_name"] for name, inputs in self.inputs.items() if "vae_name" in inputs and name in linked)
        return next(named, None)

    def text(self, link: Any, side: str, depth: int = 0) -> str:
        """Return the text that reaches a link, joined from upstream nodes; "" without any.

        link    [node, output]; a text is returned as it is
        side    "positive" or "negative", for nodes that carry both
        depth   number of nodes followed
        """
        if isinstance(link, str):
            return link[:LONGEST]
        node = self.node(link)
        if node is None or depth > DEEPEST or self.kind_of[node] == EMPTY:
            return ""
        if (node, side) in self._texts:
            return self._texts[node, side]
        self._texts[node, side] = ""  # a cycle
        inputs = self.inputs[node]
        named = _text_inputs(inputs, side)
        links = [name for name in inputs if _linked(inputs[name]) and name not in NO_TEXT]
        texts = [self.text(inputs[name], side, depth + 1) for name in named or links]
        texts = [text for text in texts if text.strip()]
        texts = texts if named else texts[:1]  # a switch or reroute with other names
        separator = next((inputs[name] for name in SEPARATORS if isinstance(inputs.get(name), str)), None)
        if separator is None:
            texts = list(dict.fromkeys(texts))
            self.joined |= len(texts) > 1
        text = (", " if separator is None else separator.replace("\\n", "\n")).join(texts)
        if self.kind_of[node] == REPLACES and all(isinstance(inputs.get(name), str) for name in ("find", "replace")):
            text = text.replace(inputs["find"], inputs["replace"])
        self._texts[node, side] = text[:LONGEST]
        return self._texts[node, side]


def _text_inputs(inputs: Mapping[str, Any], side: str) -> list[str]:
    """Return the names of a node's inputs that carry the text of a side ("positive" or "negative").

    Those named after the side, else its result or selected input, else all that carry a text or a conditioning.
    """
    chosen = inputs.get("select")  # a switch
    for names in ((side, f"text_{side}", f"{side}_prompt"), ("populated_text", "result"), (f"input{chosen}",)):
        if named := [name for name in names if inputs.get(name)]:
            return named
    return _carriers(inputs)
