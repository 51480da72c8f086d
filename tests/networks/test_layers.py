"""Which layers a network has: LyCORIS' presets, regular expressions, ranks by expression, and their count."""

import time

import torch
from pytest import fixture, importorskip, mark

from core.networks.layers import count_layers, layer_count_problems, meta_targets
from core.networks.network import Network
from core.networks.sizes import has_large_kernel
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.dora_ia3_oft import Ia3Settings
from core.settings.job import TrainJob
from core.settings.layers import OUTER, LayerChoice
from core.settings.network import NetworkSettings
from core.settings.rules import training_problems
from core.training.building.network_files import network_problems
from tests.refusals import refused

STARTER = "models/starter"
PRESET = importorskip("lycoris.config").PRESET


@fixture(scope="module")
def targets():
    return meta_targets("sd1")


def settings(**given):
    return NetworkSettings(**{"train_text_encoder": True, "rank": 4, "alpha": 2.0, **given})


def hits_of(own, targets):
    return count_layers(own, None, targets)


def names_of(targets, **given):
    return set(Network.create(targets, settings(**given), 0).adapters)


def hooked_by_lycoris(targets, preset):
    """The rule of lycoris.kohya's create_modules: Linear and 1x1 layers in containers of these classes, 3x3 convolutions where
    enabled, and layers by name."""
    config, found = PRESET[preset], set()
    for target in targets:
        unet = target.name.startswith("lora_unet")
        side = "unet" if unet else "text_encoder"
        classes, names = config[f"{side}_target_module"], config[f"{side}_target_name"]
        container = containers_of(target)
        if has_large_kernel(target.module) and not config["enable_conv"]:
            continue
        if set(container) & set(classes) or any(name in target.path for name in names):
            found.add(target.name)
    return found


def containers_of(target):
    path = target.path
    if not target.name.startswith("lora_unet"):
        return ["CLIPAttention" if "self_attn" in path else "CLIPMLP"]
    if target.path in OUTER:
        return []
    if "attentions." in path:
        return ["Transformer2DModel"]
    return ["ResnetBlock2D" if "resnets." in path else "Downsample2D" if "downsamplers." in path else "Upsample2D"]


@mark.parametrize("preset", [name for name in PRESET if name != "attn-only"])
def test_presets_choose_what_lycoris_chooses_of_the_layers_that_are_there(targets, preset):
    assert names_of(targets, layers=[preset]) == hooked_by_lycoris(targets, preset)


def test_layers_outside_of_the_blocks_train_only_where_they_are_chosen(targets):
    outer = {
        "lora_unet_conv_in",
        "lora_unet_conv_out",
        "lora_unet_time_embedding_linear_1",
        "lora_unet_time_embedding_linear_2",
    }
    assert not outer & (
        names_of(targets) | names_of(targets, conv_rank=4) | names_of(targets, exclude_layers=["attn2"])
    )
    full = names_of(targets, layers=["unet-only"])
    assert outer < full and len(full) == 282
    assert names_of(targets, layers=["conv_(in|out)$"]) == {"lora_unet_conv_in", "lora_unet_conv_out"}


def test_layers_outside_of_the_blocks_have_the_original_names_in_files_for_sdxl_as_all_others():
    """InvokeAI and LyCORIS in sd-scripts know no others; InvokeAI refuses a file with names of both kinds."""
    names = {target.path: target.name for target in meta_targets("sdxl") if target.path in OUTER}
    endings = ("input_blocks_0_0", "time_embed_0", "time_embed_2", "out_2")
    assert names == {path: f"lora_unet_{name}" for path, name in zip(OUTER, endings, strict=True)}
    weights = {"lora_unet_time_embedding_linear_1.lora_down.weight": torch.ones(1, 320)}
    weights["lora_unet_time_embedding_linear_1.lora_up.weight"] = torch.ones(1280, 1)
    former = Network.from_tensors(weights, meta_targets("sdxl"))
    assert list(former.adapters) == ["lora_unet_time_embed_0"], "files with diffusers' names are still read"
    former.load_state(weights)


def test_attn_only_is_the_attention_of_both_parts(targets):
    found = names_of(targets, layers=["attn-only"])
    assert len(found) == 16 * 8 + 12 * 4 and all("attn" in name for name in found)


def test_an_expression_finds_names_in_files_and_paths_of_modules(targets):
    by_name = names_of(targets, layers=["down_blocks_1_.*attn2"])
    assert by_name == names_of(targets, layers=[r"down_blocks\.1\..*attn2"]) and len(by_name) == 2 * 4
    assert all("down_blocks_1" in name and "attn2" in name for name in by_name)


def test_excluded_layers_get_none_and_the_others_stay_as_they_are(targets):
    usual = names_of(targets)
    assert names_of(targets, exclude_layers=["attn2"]) == {name for name in usual if "attn2" not in name}


def test_a_layer_has_the_rank_of_the_first_expression_that_finds_it(targets):
    own = settings(layer_dims=["attn2=32", "attn=8", "ff_net=0"], alpha=0)
    network = Network.create(targets, own, 0)
    ranks = {name: (adapter.rank, adapter.alpha) for name, adapter in network.adapters.items()}
    assert {ranks[name] for name in ranks if "attn2" in name} == {(32, 32)}
    assert {ranks[name] for name in ranks if "attn1" in name or "self_attn" in name} == {(8, 8)}
    assert not any("ff_net" in name for name in ranks)
    assert {ranks[name] for name in ranks if "mlp" in name} == {(4, 4)}


def test_convolutions_that_are_chosen_have_the_conv_rank_or_the_networks(targets):
    def sizes(**given):
        adapters = Network.create(targets, settings(layers=["unet-convblock-only"], **given), 0).adapters.values()
        return {(each.rank, each.alpha) for each in adapters if has_large_kernel(each.module)}

    assert sizes() == {(4, 2.0)} and sizes(conv_rank=3, conv_alpha=1.0) == {(3, 1.0)}


def test_the_count_is_of_all_layers_of_the_trained_parts(targets):
    hits = hits_of(settings(layers=["attn-only"], train_text_encoder=False), targets)
    assert str(hits) == "128 of 282 layers"
    assert [problem.code for problem in layer_count_problems(settings(layers=["x"]), hits)] == ["network.layers-chosen"]


def test_the_count_leaves_out_what_the_kind_leaves_alone(targets):
    hits = count_layers(settings(kind="ia3"), Ia3Settings(), targets)
    assert hits.chosen == 16 * 5 + 12 * 3 and hits.total == 354  # k and v of both attentions and ff.net.2; k, v and fc2


def test_an_expression_that_finds_nothing_is_a_problem_with_its_setting(targets):
    own = settings(layers=["attn-only", "atn2"], exclude_layers=["nothing"], layer_dims=["none=4"])
    problems = list(layer_count_problems(own, hits_of(own, targets)))
    assert [problem.where for problem in problems] == [
        "network.layers",
        "network.exclude_layers",
        "network.layer_dims",
    ]
    assert {problem.code for problem in problems} == {"network.layers-not-found"}


def test_a_choice_without_any_layer_is_a_problem(targets):
    own = settings(exclude_layers=["lora_"])
    assert [problem.code for problem in layer_count_problems(own, hits_of(own, targets))] == ["network.no-layers"]


@mark.parametrize(
    ("given", "code"),
    [
        ({"layers": ["attn("]}, "network.bad-pattern"),
        ({"exclude_layers": ["x" * 501]}, "network.bad-pattern"),
        ({"layer_dims": ["attn2"]}, "network.bad-layer-rank"),
        ({"layer_dims": ["attn2=1025"]}, "network.bad-layer-rank"),
        ({"layer_dims": ["[=4"]}, "network.bad-pattern"),
    ],
)
def test_invalid_expressions_are_found_with_the_settings(given, code):
    job = build(TrainJob, {"network": given})
    assert code in [problem.code for problem in training_problems(job)]
    with refused(code):
        LayerChoice(NetworkSettings(**given))


def test_an_expression_that_would_match_for_hours_is_refused_within_two_seconds(targets):
    began = time.thread_time()
    with refused("network.slow-pattern"):
        hits_of(settings(layers=[r"^(\w|_|[a-z])+[^\w_]$"]), targets)
    assert time.thread_time() - began < 2


def job_with(network):
    return build(TrainJob, {"model": {"base_model": STARTER}, "network": network})


def test_norm_layers_that_a_family_lacks_are_not_advised(monkeypatch):
    from core.families.targets import is_norm
    from core.training.building import network_files

    given = network_files._targets
    bare = lambda *asked: [target for target in given(*asked) if not is_norm(target.module)]  # noqa: E731
    monkeypatch.setattr(network_files, "_targets", bare)
    problems = network_problems(job_with({"layers": ["attn2"], "train_norm": True}), Workspace())
    assert problems[1].code == "network.no-norms" and "expression" not in problems[1].fix


def test_the_check_counts_by_the_models_own_header():
    (problem,) = network_problems(job_with({"layers": ["attn2"]}), Workspace())
    assert (problem.level, problem.code) == ("advice", "network.layers-chosen")
    assert problem.what.startswith("The network trains ") and "layers" in problem.what
    problems = network_problems(job_with({"layers": ["attn2"], "train_norm": True}), Workspace())
    assert [problem.code for problem in problems] == ["network.layers-chosen", "network.no-norms"]
    problems = network_problems(job_with({"layers": ["attn2"], "train_norm": True, "kind": "oft"}), Workspace())
    assert [problem.code for problem in problems] == ["network.layers-chosen", "network.no-norms"]
    assert "expression" in problems[1].fix
    (problem,) = network_problems(job_with({"layers": ["attn2", "norm2"], "train_norm": True}), Workspace())
    assert problem.code == "network.layers-chosen"
    (problem,) = network_problems(job_with({"layers": ["norm"], "train_norm": True}), Workspace())
    assert problem.code == "network.no-layers" and problem.what.startswith("Only norm layers")
    (problem,) = network_problems(job_with({"layers": ["atn2"]}), Workspace())
    assert (problem.level, problem.code) == ("error", "network.layers-not-found")


@mark.parametrize(
    "by", [{"down_lr_weight": "0", "mid_lr_weight": "0", "up_lr_weight": "0"}, {"block_dims": ",".join(["0"] * 25)}]
)
def test_blocks_that_are_all_excluded_are_refused_before_the_start(by):
    (problem,) = network_problems(job_with(by), Workspace())
    assert problem.level == "error" and problem.code == "network.no-layers" and "block" in problem.what
    assert not network_problems(job_with(by | {"train_text_encoder": True}), Workspace())
