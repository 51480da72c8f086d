"""Configs of LoRA Easy Training Scripts: the same job as from what that program passes to sd-scripts."""

import json

import pytest

from core.imports.dataset_options import OPTIONS, SUBSET
from core.imports.projects.importers import import_project
from core.imports.projects.options import options_of
from core.record.problems import ProblemsError

MODULE = 'network_module = "networks.lora"\n'
FOLDER = '[[subsets]]\nimage_dir = "a"\n'
LINES = {
    "int": "3",
    "float": "0.25",
    "int_or_float": "3",
    "bool": "true",
    "str": '"a"',
    "text": '"a"',
    "number": "0.5",
    "size": "640",
    "range": "[1.0, 2.0]",
    "path": '"b"',
}


def imported(text, **more):
    return import_project(text, name="fox.toml", **more)


def expected_of(text, **more):
    return imported(text, choice="train_network", **more)


def kinds(found):
    return {entry.key: entry.kind for entry in found.report if entry.kind != "default"}


def test_an_option_in_any_section_is_that_of_sd_scripts():
    """Also those of the dataset config, which are the command line's too."""
    for name, option in options_of("train_network").items():
        value = json.dumps(option.choices[-1]) if option.choices else LINES[option.type]
        if name in ("network_args", "optimizer_args", "lr_scheduler_args", "dataset_config", "config_file"):
            continue
        part = "dataset_args" if name in OPTIONS else "args"
        module = "" if name == "network_module" else MODULE
        found, expected = imported(f"[any_args.{part}]\n{name} = {value}"), expected_of(f"{module}{name} = {value}")
        assert found.program == "easy_scripts" and found.job == expected.job, name
        keys = [name if key == "batch_size" else key for key in kinds(found)]
        assert keys == [key for key in kinds(expected) if not module or key != "network_module"], name


def test_an_option_of_a_folder_is_that_of_a_dataset_config(tmp_path):
    for name, option in OPTIONS.items():
        if SUBSET not in option.levels or name in ("image_dir", "metadata_file", "conditioning_data_dir", "cache_info"):
            continue
        line = f"{name} = {LINES.get(option.kind) or json.dumps(option.default or 'a')}"
        text = f"[general]\nresolution = 640\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n{line}\n"
        (tmp_path / "dataset.toml").write_text(text)
        expected = expected_of(f"{MODULE}dataset_config = 'dataset.toml'\nresolution = 640", folder=tmp_path)
        found = imported(f"{FOLDER}{line}\n[x_args.dataset_args]\nresolution = 640")
        assert found.job == expected.job and not found.entries("unavailable"), name


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("[n_args.args.network_args]\nconv_dim = 4\npreset = ''", "network_args = ['conv_dim=4']"),
        (
            "[n_args.args.network_args]\nalgo = 'loha'\nconv_dim = 4\nuse_tucker = true",
            "network_module = 'lycoris.kohya'\nnetwork_args = ['algo=loha', 'conv_dim=4', 'use_tucker=True']",
        ),
        ("[n_args.args.network_args]\nunit = 4", "network_module = 'networks.dylora'\nnetwork_args = ['unit=4']"),
        ("[n_args.args]\nfa = true", "network_module = 'networks.lora_fa'"),
        (
            "[n_args.args.network_args]\ndown_lr_weight = [1, 0.5, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
            "network_args = ['down_lr_weight=1,0.5,0,1,1,1,1,1,1,1,1,1']",
        ),
        (
            "[o_args.args]\noptimizer_type = 'LoraEasyCustomOptimizer.came.CAME'\n"
            "[o_args.args.optimizer_args]\nbetas = '0.9,0.99,0.999'\nweight_decouple = 'false'",
            "optimizer_type = 'CAME'\noptimizer_args = ['betas=0.9,0.99,0.999', 'weight_decouple=False']",
        ),
        (
            "[o_args.args]\nlr_scheduler = 'cosine'\nwarmup_ratio = 0.05",
            "lr_scheduler = 'cosine'\nlr_warmup_steps = '5%'",
        ),
        (
            "[o_args.args]\nlr_scheduler = 'cosine'\nwarmup_ratio = 1",
            "lr_scheduler = 'cosine'\nlr_warmup_steps = '100%'",
        ),
        ("[o_args.args]\ntext_encoder_lr = 0.0\nunet_lr = 1e-3", "unet_lr = 1e-3"),
    ],
)
def test_tables_and_own_keys_become_the_options_that_the_program_passes_on(lines, words):
    expected = words if "network_module" in words else MODULE + words
    assert imported(f"{lines}\n[g_args.args]\nseed = 5").job == expected_of(f"seed = 5\n{expected}").job


def test_model_and_method_are_told_by_switches_and_what_is_not_taken_is_named():
    text = f"{FOLDER}name = 'fox'\nodd = 1\n[g_args.args]\nsdxl = true\nsave_toml = true\nodder = 2\nunet_lr = 0\n"
    text += "[other]\na = 1\n[g_args.more]\nb = 1\n[train_mode]\ntrain_mode = 'textual_inversion'\n"
    text += "[o_args.args]\nlr_scheduler_type = 'LoraEasyCustomOptimizer.CustomOptimizers.Rex'\nwarmup_ratio = 0.1\n"
    found = imported(text + "[o_args.args.lr_scheduler_args]\nmin_lr = 1e-6\n")
    assert (found.job.method.kind, found.job.model.family) == ("embedding", "sdxl")
    assert found.job.schedule.lr_scheduler_type is None
    assert "import.unknown-scheduler" in [each.code for each in found.problems]
    named = kinds(found)
    unavailable = "subsets.0.odd odder other g_args.more lr_scheduler_type lr_scheduler_args warmup_ratio"
    assert {named[key] for key in unavailable.split()} == {"unavailable"}
    assert (named["subsets.0.name"], named["save_toml"], named["unet_lr"]) == ("idle",) * 3
    for subsets in ("'a'", "['a']"):
        assert kinds(imported(f"subsets = {subsets}\n[g_args.args]\nseed = 5"))["subsets"] == "unavailable"
    with pytest.raises(ProblemsError) as refused:
        imported("[flux_args.args]\nae = 'x'\n[g_args.args]\nseed = 1")
    assert refused.value.codes == ["import.other-family"]
