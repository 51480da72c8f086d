"""Limits and tables of tools, each at its edge, on small tensors and texts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.tools.images import NumberSettings
from core.settings.tools.loras import ResizeLoraSettings
from core.settings.tools.merge_models import MergeModelsSettings
from core.settings.tools.upscale import LatentUpscalerSettings
from core.tools import output
from core.tools.images import latent_upscaler
from core.tools.images.folders import Copies, _output_problems, natural_order
from core.tools.images.number import numbered_stems
from core.tools.loras.merge_lora_to_model import _cast, _NotFinite
from core.tools.loras.resize_lora import _max_rank, _method_problems, _rank, needed_rank
from core.tools.loras.singular_values import _quantile, rank_that_keeps, usual_rank, values_of
from core.tools.loras.sums import Term, averaged, averaged_as_sd_scripts, concatenated, concatenated_as_sd_scripts
from core.tools.loras.svd import Product, clamped, decompose
from core.tools.merges import ratios_of
from core.tools.metadata.rules import (
    EndlessReplacement,
    Replacement,
    TagRules,
    clean_tags,
    cleaner_of_captions,
    endless_replacements,
    read_replacements,
)
from core.tools.models import merge_models
from core.tools.models.convert_model import misnamed_problems
from core.tools.models.header_edit import replace_header, undo_change, with_metadata
from core.tools.models.merge_models import _weights
from core.tools.models.strip_metadata import private_paths, stripped
from core.tools.output import output_file
from tests.refusals import refused
from tests.tools.models.test_file_metadata import with_private

VALUES = torch.tensor([4.0, 2.0, 1.0, 1.0])  # sum 8, squares 22


@pytest.mark.parametrize(
    ("method", "parameter", "ranks"),  # here, and with sd-scripts' one more
    [("sv_ratio", 1, (1, 2)), ("sv_ratio", 2, (1, 2)), ("sv_ratio", 2.1, (2, 3)), ("sv_ratio", 5, (4, 4))]
    + [("sv_cumulative", 0.5, (1, 2)), ("sv_cumulative", 0.51, (2, 3)), ("sv_cumulative", 0.75, (2, 3))]
    + [("sv_cumulative", 1.0, (4, 4)), ("sv_fro", 0.85, (1, 2)), ("sv_fro", 0.86, (2, 3)), ("sv_fro", 0.99, (4, 4))]
    + [(None, None, (3, 3))],
)
def test_the_rank_of_each_method_at_its_edges(method, parameter, ranks):
    given = {"dynamic_method": method, "dynamic_param": parameter, "file": "a"}
    for compatibility, rank in zip(("none", "sd-scripts"), ranks, strict=True):
        asked = ResizeLoraSettings(**given, compatibility=compatibility)
        assert _rank(VALUES, 3 if method is None else 9, asked) == rank
        assert _rank(VALUES, 1, asked) == 1, "never above the limit"
        assert _rank(torch.full((4,), 1e-6), 9, asked) == 1, "nothing to keep"
    if method == "sv_ratio":
        assert needed_rank(VALUES, method, parameter) == (0 if parameter == 1 else ranks[0])


def test_the_limit_of_convolutions_is_their_own_else_the_common_one():
    kinds = {"linear": (8, 8), "1x1": (8, 8, 1, 1), "3x3": (8, 8, 3, 3)}
    for conv, compatibility, expected in (
        (None, "none", [4, 4, 4]),
        (2, "none", [4, 4, 2]),
        (2, "sd-scripts", [4, 2, 2]),
    ):
        asked = ResizeLoraSettings(file="a", new_rank=4, new_conv_rank=conv, compatibility=compatibility)
        assert [_max_rank(asked, shape) for shape in kinds.values()] == expected


@pytest.mark.parametrize(
    ("method", "parameter", "codes"),
    [(None, None, []), ("sv_ratio", None, ["resize.no-parameter"]), ("sv_fro", None, ["resize.no-parameter"])]
    + [("sv_ratio", 1, []), ("sv_ratio", 0.99, ["resize.bad-parameter"]), ("sv_fro", 1, []), ("sv_cumulative", 1, [])]
    + [("sv_fro", 1.01, ["resize.bad-parameter"]), ("sv_cumulative", 1.01, ["resize.bad-parameter"])],
)
def test_the_parameter_of_each_method(method, parameter, codes):
    asked = ResizeLoraSettings(file="a", dynamic_method=method, dynamic_param=parameter)
    assert [problem.code for problem in _method_problems(asked)] == codes


@pytest.mark.parametrize(("rank", "usual"), [(1, 1), (3, 4), (4, 4), (5, 8), (9, 12), (33, 48), (256, 256), (257, 257)])
def test_the_next_usual_rank_is_recommended(rank, usual):
    assert usual_rank(rank) == usual


def test_ranks_and_quantiles_at_their_edges():
    assert [rank_that_keeps([0.5, 0.9, 1.0], keep) for keep in (0.5, 0.51, 0.9, 0.91, 1.0)] == [1, 2, 2, 3, 3]
    assert [_quantile(list(range(10)), share) for share in (0.0, 0.1, 0.11, 0.5, 0.9, 0.91, 1.0)] == [
        0,
        0,
        1,
        4,
        8,
        9,
        9,
    ]
    assert rank_that_keeps([0.5, 0.9], 1.0) == 2


def test_singular_values_below_a_millionth_of_the_first_are_rounding():
    class Layer:
        def factors(self):
            return None

        def change(self):
            return torch.diag(torch.tensor([2.0, 3e-6, 1e-6]))

    assert values_of(Layer()).tolist() == pytest.approx([2.0, 3e-6])


def test_a_product_is_decomposed_by_its_factors_up_to_its_smaller_side():
    torch.manual_seed(1)
    changes = {
        "small": Product(torch.randn(6, 2), torch.randn(2, 5)),
        "full": Product(torch.randn(6, 5), torch.randn(5, 5)),
    }
    changes |= {"matrix": torch.randn(3, 7), "zero": torch.zeros(3, 7)}
    assert changes["small"].is_low_rank and not changes["full"].is_low_rank
    for name, change in changes.items():
        parts = decompose(change)
        whole = change if isinstance(change, torch.Tensor) else change.up @ change.down
        torch.testing.assert_close(parts.u * parts.s @ parts.v, whole, rtol=1e-4, atol=1e-5)
        assert parts.s.tolist() == sorted(parts.s.tolist(), reverse=True)
        largest = parts.u.gather(0, parts.u.abs().argmax(0, keepdim=True))
        assert (largest > 0).all() and {each.dtype for each in (parts.u, parts.s, parts.v)} == {torch.float32}
        up, down = parts.cut(1)
        torch.testing.assert_close(up @ down, parts.s[0] * parts.u[:, :1] @ parts.v[:1])
        assert parts.retained(len(parts.s)) == 1 and (name == "zero") == (parts.retained(1) == 1)


def test_clamping_bounds_both_matrices_by_one_quantile_of_their_signed_numbers():
    up, down = torch.tensor([[-9.0, 1.0]]), torch.tensor([[2.0], [8.0], [3.0]])
    limit = torch.quantile(torch.tensor([-9.0, 1, 2, 8, 3]), 0.75).item()
    assert limit == 3
    found = clamped(up, down, 0.75)
    assert found[0].tolist() == [[-3.0, 1.0]] and found[1].tolist() == [[2.0], [3.0], [3.0]]


@pytest.mark.parametrize(
    ("text", "ratios", "codes"),
    [("", None, []), ("0.7, 0.3", [0.7, 0.3], []), ("-1,2", [-1.0, 2.0], []), ("1", None, ["merge.bad-ratios"])]
    + [("1,2,3", None, ["merge.bad-ratios"]), ("1,x", None, ["merge.bad-ratios"])],
)
def test_ratios_are_in_the_order_of_the_files(text, ratios, codes):
    problems = []
    assert ratios_of(text, 2, "LoRA", "x", problems) == ratios and [each.code for each in problems] == codes


# What sd-scripts writes into a LoRA that tells of images, captions, prompts and machines, and what does not.
PRIVATE = ["ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets", "ss_tag_frequency", "ss_bucket_info"]
PRIVATE += [
    "ss_sample_prompts",
    "ss_caption_prefix",
    "ss_caption_suffix",
    "ss_output_dir",
    "ss_train_dirs",
    "ss_vae_path",
]
PRIVATE += ["ss_num_train_images", "ss_num_reg_images", "ss_num_validation_images", "ss_session_id"]
PRIVATE += ["ss_training_comment", "ss_wandb_run", "ss_hostname", "ss_username", "workflow", "sd_merge_models"]
PRIVATE += ["ss_cache_info", "ss_data_hash", "Prompt"]
NEEDED = ["ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"]
NEEDED += [
    "ss_network_args",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.architecture",
    "modelspec.sai_model_spec",
]
NEEDED += ["format", "modelspec.prediction_type", "lora_adapter_metadata", "atelier_sizes"]
OTHERS = ["ss_learning_rate", "ss_num_epochs", "ss_steps", "ss_sd_model_name", "modelspec.title", "modelspec.tags"]
OTHERS += ["ss_seed", "ss_max_train_steps", "ss_batch_size_per_device"]


def test_what_each_choice_removes_of_metadata():
    metadata = dict.fromkeys([*PRIVATE, *NEEDED, *OTHERS], "x")
    assert set(stripped(metadata, "training")[0]) == {*NEEDED, *OTHERS}
    assert set(stripped(metadata, "minimum")[0]) == set(NEEDED)
    assert stripped(metadata, "all") == ({"format": "pt"}, [])
    kept, shortened = stripped({"ss_a": "/home/jane/model.safetensors", "ss_b": "x"}, "training")
    assert (kept, shortened) == ({"ss_a": "model.safetensors", "ss_b": "x"}, ["ss_a"])


@pytest.mark.parametrize(
    "root",
    "home Users root mnt media content workspace data tmp var opt srv Volumes kaggle private runpod-volume".split(),
)
def test_paths_below_each_usual_folder_are_private(root):
    assert private_paths(f"a /{root}/b/c.txt d") == [f"/{root}/b/c.txt"]
    assert private_paths(f"~/{root}/b") == [f"~/{root}/b"] and not private_paths(f"example.org/{root}/b /usr/{root}")


@pytest.mark.parametrize(
    ("group", "alone"),
    [
        (["long hair", "short hair"], "medium hair"),
        (["bob cut", "hime cut"], "bob cut"),
        (["red eyes", "blue eyes"], "red eyes"),
    ]
    + [(["long sleeves", "sleeveless"], "short sleeves"), (["red hair", "blonde hair"], "red hair")]
    + [([a, b], a) for a, b in (("ponytail", "braid"), ("french braid", "ahoge"), ("twintails", "hair bun"))]
    + [
        ([a, b], a)
        for a, b in (("single hair bun", "single side bun"), ("two side up", "two tails"), ("sidelocks", "ahoge"))
    ],
)
def test_of_several_people_two_tags_of_a_group_go_and_one_stays(group, alone):
    rules = TagRules(contained=False)
    assert clean_tags(", ".join(["2girls", *group, "smile"]), rules) == "2girls, smile"
    assert clean_tags(", ".join(["multiple boys", *group]), rules) == "multiple boys"
    assert clean_tags(f"2girls, {alone}, smile", rules) == f"2girls, {alone}, smile"
    assert clean_tags(", ".join(["1girl", *group]), rules) == ", ".join(["1girl", *group])


def test_changes_of_a_files_metadata_are_taken_back_newest_first(tmp_path):
    path, workspace, cancel = with_private(tmp_path / "fox.safetensors"), Workspace(tmp_path / "outputs"), CancelToken()
    states = [path.read_bytes()]
    for number in range(11):
        replace_header(path, with_metadata(path, {"number": str(number)}), workspace, cancel)
        states.append(path.read_bytes())
    while len(states) > 1:
        assert path.read_bytes() == states.pop()
        undo_change(path, workspace, cancel)
    assert path.read_bytes() == states[0]


@pytest.mark.parametrize(
    ("output", "file"),
    [("", "models/fox_x.safetensors"), ("OUT", "OUT/fox_x.safetensors"), ("OUT/new.safetensors", "OUT/new.safetensors")]
    + [("OUT/new.SAFETENSORS", "OUT/new.SAFETENSORS"), ("OUT/v1.5", "OUT/v1.5/fox_x.safetensors")],
)
def test_where_a_tool_writes(tmp_path, output, file):
    source, out = tmp_path / "models" / "fox.ckpt", tmp_path / "out"
    found = output_file(output.replace("OUT", str(out)), source, "_x")
    assert str(found) == file.replace("OUT", str(out)).replace("models", str(tmp_path / "models"))


def weights_of(models, **asked):
    problems, family = [], asked.pop("family", "sd1")
    opened = [SimpleNamespace(kind=SimpleNamespace(family=family))] * models
    found = _weights(MergeModelsSettings(models=[str(n) for n in range(models)], **asked), opened, problems)
    assert not problems
    return found


@pytest.mark.parametrize(
    ("models", "asked", "weights"),
    [(3, {}, [1 / 3] * 3), (2, {"ratios": "0.6, 0.2"}, [0.75, 0.25]), (3, {"ratios": "1, 2, 5"}, [0.125, 0.25, 0.625])]
    + [(2, {"ratios": "0.6, 0.2", "compatibility": "sd-scripts"}, [0.6, 0.2])]
    + [(3, {"method": "add_difference", "multiplier": 0.75}, [1, 0.75, -0.75])]
    + [(2, {"method": "sigmoid", "multiplier": 0.3}, [1 - 0.216, 0.216])],
)
def test_each_method_weighs_the_models_in_their_order(models, asked, weights):
    assert weights_of(models, **asked)("model.diffusion_model.out.0.weight") == pytest.approx(weights)


UNET = "model.diffusion_model."
SLOTS_OF_KEYS = {
    "cond_stage_model.x": 0, "first_stage_model.x": 0, f"{UNET}time_embed.0.weight": 1, f"{UNET}label_emb.0.0.weight": 1,
    f"{UNET}input_blocks.0.0.weight": 1, f"{UNET}input_blocks.11.0.weight": 12, f"{UNET}middle_block.1.weight": 13,
    f"{UNET}output_blocks.0.0.weight": 14, f"{UNET}output_blocks.11.1.weight": 25, f"{UNET}out.2.weight": 25,
}  # fmt: skip


def test_block_weights_are_in_the_order_base_inputs_middle_outputs():
    whole = ", ".join(str(number / 100) for number in range(26))
    short = whole.partition(", ")[2]  # without BASE, which then has the multiplier
    for key, slot in SLOTS_OF_KEYS.items():
        given = slot / 100
        assert weights_of(2, block_weights=whole)(key) == pytest.approx((1 - given, given))
        assert weights_of(3, method="add_difference", block_weights=whole)(key) == pytest.approx((1, given, -given))
        given = given if slot else 0.5
        assert weights_of(2, block_weights=short, multiplier=0.5)(key) == pytest.approx((1 - given, given))


def test_loras_add_up_to_their_change_and_the_sign_is_downs():
    """Terms of 1 x 1: strength * alpha / rank * up * down."""

    def term(ratio, block, alpha, up, down):
        return Term(ratio, block, alpha, Product(torch.tensor([[up]]), torch.tensor([[down]])))

    first, second = term(2.0, 0.5, 4.0, 3.0, 5.0), term(-1.0, 1.0, 1.0, 1.0, 7.0)
    up, down, alpha = concatenated([first, second])
    assert (up @ down).item() == pytest.approx(60 - 7) and alpha == 2 and (up > 0).all() and down[1, 0] < 0
    up, down, alpha = averaged([first])
    assert (up * down * alpha).item() == pytest.approx(60)
    up, down, alpha = averaged([first, second])
    assert alpha == 4 and up.item() == pytest.approx(3 + 0.5) and down.item() == pytest.approx((5 - 3.5) / 2)
    up, down, alpha = averaged_as_sd_scripts([first, second])
    assert alpha == 4 and up.item() == pytest.approx(3 + 0.5) and down.item() == pytest.approx(5 - 3.5)
    up, down, alpha = concatenated_as_sd_scripts([first, second])
    assert alpha == 4 and up.tolist() == [[3.0, 0.5]] and down.tolist() == [[5.0], [-3.5]]


# ---- merged models


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        ({"models": ["a"]}, ["merge.model-count"]), ({"models": ["a"] * 2}, []), ({"models": ["a"] * 99}, []),
        ({"models": ["a"] * 100}, ["merge.model-count"]), ({"models": ["a"] * 2, "method": "add_difference"}, ["merge.model-count"]),
        ({"models": ["a"] * 3, "method": "add_difference"}, []), ({"models": ["a"] * 3, "method": "sigmoid"}, ["merge.model-count"]),
        ({"models": ["a"] * 2, "method": "sigmoid", "multiplier": 0}, []),
        ({"models": ["a"] * 2, "method": "sigmoid", "multiplier": 1}, []),
        ({"models": ["a"] * 2, "method": "sigmoid", "multiplier": -0.01}, ["merge.bad-multiplier"]),
        ({"models": ["a"] * 2, "method": "sigmoid", "multiplier": 1.01}, ["merge.bad-multiplier"]),
        ({"models": ["a"] * 2, "multiplier": 2}, []), ({"models": ["a"] * 3, "method": "add_difference", "multiplier": 2}, []),
    ],
)  # fmt: skip
def test_how_many_models_a_method_takes(monkeypatch, given, codes):
    monkeypatch.setattr(merge_models, "model_file", lambda name, workspace, where: Path(name))
    monkeypatch.setattr(merge_models, "_open_model", lambda path, *more: path)
    problems = []
    found = merge_models._open_models(MergeModelsSettings(**given), None, None, problems)
    assert ([each.code for each in problems], len(found)) == (codes, len(given["models"]))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"ratios": "1"}, "merge.bad-ratios"), ({"ratios": "1, -1"}, "merge.bad-ratios"), ({"ratios": "1, x"}, "merge.bad-ratios"),
        ({"ratios": "1, -1", "compatibility": "sd-scripts"}, None), ({"ratios": "1, -0.999"}, None),
        ({"block_weights": "1, 2"}, "merge.block-weights"), ({"block_weights": ", ".join(["1"] * 25)}, None),
        ({"models": ["a"] * 3, "block_weights": "ALL"}, "merge.block-weights"),
        ({"models": ["a"] * 3, "block_weights": "ALL", "method": "add_difference"}, None), ({"block_weights": "ALL"}, None),
    ],
)  # fmt: skip
def test_ratios_and_block_weights_that_cannot_be(given, code):
    problems, settings = [], MergeModelsSettings(**{"models": ["a", "b"], **given})
    found = _weights(settings, [SimpleNamespace(kind=SimpleNamespace(family="sd1"))] * 2, problems)
    assert [each.code for each in problems] == ([code] if code else []) and (found is None) == (code is not None)


def test_the_plain_multiplier_is_the_second_models_share():
    for ratios, compatibility, share in (
        ("", "none", 0.5),
        ("0.6, 0.2", "none", 0.25),
        ("3", "none", 0.5),
        ("1, 2, 3", "none", 0.5),
    ):
        assert MergeModelsSettings(models=["a"], ratios=ratios, compatibility=compatibility).even_multiplier == share
    assert MergeModelsSettings(models=["a"], ratios="3, 2", compatibility="sd-scripts").even_multiplier == 2
    assert MergeModelsSettings(models=["a"], ratios="1, -1").even_multiplier == -1
    assert MergeModelsSettings(models=["a"], method="sigmoid", multiplier=0.3, ratios="1, 9").even_multiplier == 0.3


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({}, "ux uy c"), ({"unet_only": True}, "ux uy"), ({"method": "add_difference"}, "ux"),
        ({"compatibility": "sd-scripts"}, "ux uy uz c"), ({"compatibility": "sd-scripts", "unet_only": True}, "ux uy uz"),
    ],
)  # fmt: skip
def test_which_tensors_are_mixed(given, keys):
    names = {"ux": f"{UNET}x", "uy": f"{UNET}y", "uz": f"{UNET}z", "c": "cond_stage_model.c"}
    tensors = [{names[key]: None for key in each.split()} for each in ("ux uy uz c", "ux uy", "ux c")]
    found = merge_models._mixed_keys(MergeModelsSettings(models=["a"] * 3, **given), tensors)
    assert found == [names[key] for key in keys.split()]


def test_models_are_of_one_family_prediction_and_shape():
    def model(family="sd1", prediction="epsilon", shape=(2, 2)):
        kind, tensors = (
            SimpleNamespace(family=family, variant="", prediction=prediction),
            {"a": SimpleNamespace(shape=shape)},
        )
        return SimpleNamespace(path=Path("m"), kind=kind, tensors=tensors, floats=tensors)

    for other, codes in (
        (model(), []),
        (model("sdxl", "v", (1,)), ["merge.other-family"]),
        (model(prediction="v"), ["merge.other-prediction"]),
        (model(prediction=None), []),
        (model(shape=(2, 3)), ["merge.other-shape"]),
        (model(prediction="v", shape=(4,)), ["merge.other-prediction", "merge.other-shape"]),
    ):
        assert [each.code for each in merge_models._mismatch_problems([model(), model(), other])] == codes


@pytest.mark.parametrize(
    ("value", "dtype", "code"),
    [(65504.0, "float16", None), (70000.0, "float16", "merge.overflow"), (70000.0, "bfloat16", None)]
    + [(float("nan"), "float32", "weights.not-finite"), (float("-inf"), "float16", "weights.not-finite")],
)
def test_a_merged_tensor_has_finite_values_that_its_precision_holds(value, dtype, code):
    mixed, kind = torch.tensor([1.0, value]), getattr(torch, dtype)
    part = SimpleNamespace(read=lambda: torch.ones(1))
    if code is None:
        assert merge_models._checked("a", [(1.0, Path("m"), part)], mixed, kind).dtype == kind
        assert _cast(mixed, kind).dtype == kind
        return
    with refused(code):
        merge_models._checked("a", [(1.0, Path("m"), part)], mixed, kind)
    with pytest.raises(_NotFinite):
        _cast(mixed, kind)


# ---- images


def test_names_are_ordered_by_their_numbers():
    names = ["fox10", "Fox2", "fox", "2", "a1b10", "a1b9", "10"]
    assert sorted(names, key=natural_order) == ["2", "10", "a1b9", "a1b10", "fox", "Fox2", "fox10"]


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "0 images"), ({"written": [Path("a")]}, "1 image"), ({"captions": 1}, "0 images; 1 caption with them")]
    + [({"skipped": [(Path("a"), "b")], "others": 2}, "0 images; 1 skipped; 2 other files not copied")],
)
def test_the_report_of_copies(tmp_path, given, words):
    first, *rest = words.split("; ")
    assert Copies(Path("/o"), **given).sentence().split("; ") == [f"{first} saved in /o", *rest]


def test_images_are_numbered_folder_by_folder_and_files_of_one_name_alike():
    paths = [Path(name) for name in ("a/fox10.png", "a/fox2.png", "a/fox2.jpg", "b/x.png")]
    settings = NumberSettings(folder="a", number_prefix="n", number_start=7, number_digits=3)
    assert numbered_stems(paths, settings) == dict(zip(paths, ("n008", "n007", "n007", "n007"), strict=True))


@pytest.mark.parametrize(
    ("where", "code"),
    [("in", "tools.output-inside-folder"), ("in/below", "tools.output-inside-folder"), ("file", "tools.output-is-file")]
    + [("in-2", None), ("out/new", None), (".", None)],
)
def test_copies_go_to_another_folder(tmp_path, where, code):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    found = _output_problems(NumberSettings(folder="a"), tmp_path / where, tmp_path / "in")
    assert [each.code for each in found] == ([code] if code else [])


@pytest.mark.parametrize(("size", "free", "codes"), [(10, 10, []), (11, 10, ["tools.no-room"]), (0, 0, [])])
def test_a_result_needs_room_on_its_disk(monkeypatch, tmp_path, size, free, codes):
    monkeypatch.setattr(output, "free_disk", lambda folder: free)
    source = tmp_path / "in.safetensors"
    source.touch()
    assert [each.code for each in output.output_problems(tmp_path / "a.safetensors", [source], size, "a")] == codes
    (tmp_path / "b.safetensors").touch()
    for name, code in (("in", "tools.output-is-input"), ("b", "tools.output-exists")):
        (found,) = output.output_problems(tmp_path / f"{name}.safetensors", [source], size, "a")
        assert found.code == code
    for name in ("x.ckpt/a.safetensors", "card.txt/a.html", "x.JSON/a.vae.pt"):
        (found,) = output.output_problems(tmp_path / name, [source], size, "a")
        assert found.code == "tools.output-format"
    (tmp_path / "y.txt").mkdir()
    for name in ("y.txt/a.html", "x.v1/a.html", "x.txt/folder"):
        assert [each.code for each in output.output_problems(tmp_path / name, [source], size, "a")] == codes
    (found,) = output.output_problems(tmp_path / "a" / "b", [tmp_path / "a", tmp_path], 0, "a")
    assert found.code == "tools.output-in-input"


@pytest.mark.parametrize(
    ("name", "result"), [("a.PNG", "a_upscaled.PNG"), ("a.webp", "a_upscaled.webp"), ("a.gif", "a_upscaled.png")]
)
def test_an_upscaled_image_has_its_format_or_is_png(name, result):
    assert latent_upscaler._name(Path(name)) == result


def test_two_images_that_would_become_one_file_are_told_and_so_is_a_file_as_folder(tmp_path):
    for name in ("a.gif", "a.tiff", "b.gif"):
        (tmp_path / name).touch()
    for images, folder, codes in (
        (["a.gif", "a.tiff"], None, {"upscale.same-name"}),
        (["a.gif", "b.gif"], None, set()),
        (["a.gif"], "b.gif", {"upscale.not-a-folder"}),
    ):
        paths = [tmp_path / name for name in images]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ProblemsError) as caught:
            patch.setattr(latent_upscaler, "_images", lambda text, problems, paths=paths: paths)
            given = LatentUpscalerSettings(output_dir=folder and str(tmp_path / folder))
            latent_upscaler.plan(given, Workspace(tmp_path))
        assert {code for code in caught.value.codes if code in ("upscale.same-name", "upscale.not-a-folder")} == codes


@pytest.mark.parametrize(
    ("target", "form", "told"),
    [("a.ckpt", "diffusers", True), ("a", "diffusers", False), ("a.v1", "diffusers", False)]
    + [("x.ckpt/a.safetensors", "safetensors", True), ("x/a.safetensors", "safetensors", False)],
)
def test_an_output_is_named_by_its_format(tmp_path, target, form, told):
    assert [each.code for each in misnamed_problems(tmp_path / target, form, "a")] == ["convert.output-format"] * told


# ---- captions


@pytest.mark.parametrize(
    ("line", "pair"),
    [("a -> b", ("a", "b")), ('"a " -> ""', ("a ", "")), ("a->b -> c", ("a", "b -> c")), ("a ->", ("a", "")), ('"" -> b', None)]
    + [("a", None), ("-> b", None)],
)  # fmt: skip
def test_a_line_of_replacements(line, pair):
    found, problems = read_replacements([("1", line), ("2", "  ")])
    assert [(each.old, each.new) for each in found] == ([pair] if pair else []) and len(problems) == (pair is None)


@pytest.mark.parametrize(
    ("old", "new", "by_word", "never_ends"),
    [("a", "aa", False, True), ("a", "aa", True, False), ("a", "a b", True, True), ("a", "b", True, False), ("a", "a", False, False)]
    + [("+", "x+y", True, True)],
)  # fmt: skip
def test_a_replacement_that_finds_its_own_result_never_ends(old, new, by_word, never_ends):
    assert endless_replacements([Replacement(old, new)], by_word) == [Replacement(old, new)] * never_ends


def test_replacements_by_word_repeat_until_nothing_changes():
    steps = [Replacement("b", "c"), Replacement("a", "b")]
    assert cleaner_of_captions(steps, True)("a, ab, b") == "c, ab, c"
    assert cleaner_of_captions(steps, False)("a, ab, b") == "b, bc, c"
    with pytest.raises(EndlessReplacement):
        cleaner_of_captions([Replacement("a", "b"), Replacement("b", "a")], True)("a")
    assert [str(each) for each in (Replacement("a ", ""), Replacement("a", "b"))] == ['"a " -> ""', "a -> b"]
