"""The positive prompts of a ComfyUI graph: the texts that reach a sampler's positive input. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Graph = Mapping[str, Any]  # {id: {"class_type": ..., "inputs": {name: value, or [id, output] for a link}}}
# Inputs that carry a text or a conditioning: of CLIPTextEncode and its relatives, of combining and joining nodes, of
# primitives. Never a negative one, a model or an image.
_CARRIES = re.compile(
    r"populated_text|wildcard_text|t5xxl|clip_[lg]|(text|string|prompt|value|positive|conditioning)(_?([a-z]|\d+|to|from))?"
)
_GUIDED = "BasicGuider"  # takes a conditioning without calling it positive


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
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


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
