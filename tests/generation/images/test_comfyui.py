"""Which texts of a ComfyUI graph are the positive prompt."""

import json

from core.generation.images.comfyui import graph_of, positive_prompts


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "is_changed": [float("nan")]}


def encode(text):
    return node("CLIPTextEncode", text=text, clip=["4", 1])


GRAPH = {
    "3": node("KSampler", seed=1, positive=["9", 0], negative=["7", 0], model=["4", 0], latent_image=["5", 0]),
    "4": node("CheckpointLoaderSimple", ckpt_name="text.safetensors"),
    "6": encode("a red fox"),
    "7": encode("blurry"),
    "8": node("CLIPTextEncodeSDXL", text_g=["10", 0], text_l=["10", 0], width=1024, clip=["4", 1]),
    "9": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["8", 0]),
    "10": node("PrimitiveString", value="in snow"),
    "11": encode("reaches no sampler"),
}
API = json.dumps(GRAPH)


def test_the_texts_that_reach_the_positive_input_are_taken_in_order():
    assert positive_prompts(GRAPH) == ["a red fox", "in snow"]


def test_samplers_share_their_prompt_and_control_nets_pass_it_on():
    passing = node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], strength=1.0, image=["2", 0])
    second = node("KSamplerAdvanced", positive=["12", 0], negative=["12", 1])
    assert positive_prompts(GRAPH | {"12": passing, "13": second}) == ["a red fox", "in snow"]


def test_guiders_of_flux_are_followed():
    graph = {
        "1": node("SamplerCustomAdvanced", guider=["2", 0]),
        "2": node("BasicGuider", conditioning=["3", 0], model=["9", 0]),
        "3": node("FluxGuidance", guidance=3.5, conditioning=["4", 0]),
        "4": node("CLIPTextEncodeFlux", clip_l="short", t5xxl="a long text", guidance=3.5),
    }
    assert positive_prompts(graph) == ["short", "a long text"]


def test_the_page_s_workflow_gives_the_same():
    def ui(number, kind, values=(), **links):
        inputs = [{"name": name, "link": link} for name, link in links.items()]
        return {"id": number, "type": kind, "widgets_values": list(values), "inputs": inputs}

    nodes = [
        ui(3, "KSampler", [1, "fixed", "euler"], model=None, positive=1, negative=2),
        ui(6, "CLIPTextEncode", ["a red fox"], clip=9),
        ui(7, "CLIPTextEncode", ["blurry"]),
        ui(8, "Reroute", **{"": 3}),
    ]
    lists = [[1, 8, 0, 3, 1, "CONDITIONING"], [2, 7, 0, 3, 2, "CONDITIONING"], [3, 6, 0, 8, 0, "*"]]
    objects = [{"id": each[0], "origin_id": each[1], "target_id": each[3]} for each in lists]
    for links in (lists, objects):
        assert positive_prompts(graph_of({"nodes": nodes, "links": links})) == ["a red fox"]


def test_graphs_that_are_none_and_circles_end():
    circle = {"1": node("KSampler", positive=["2", 0]), "2": node("ConditioningAverage", conditioning_to=["2", 0])}
    many = {str(n): node("KSampler", positive=[str(n + 1), 0], text=str(n)) for n in range(50_000)}
    assert positive_prompts(circle) == [] and len(positive_prompts(many)) == 49_999
    for wrong in (
        {"1": None, "2": {"class_type": "KSampler", "inputs": []}},
        {"3": node("KSampler", positive=[None, 0])},
    ):
        assert positive_prompts(wrong) == []
    for workflow in (None, [], {"nodes": 3, "links": "x"}, {"nodes": [3, {}], "links": [[], 3, {}]}):
        assert positive_prompts(graph_of(workflow)) == []
