"""Settings files of other trainers, given where a preset is expected."""

import json

import pytest

from core.cli.main import BAD_INPUT, main
from core.record.problems import ProblemsError
from core.settings.base import declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets import files as presets
from core.settings.presets.foreign import foreign_problem
from core.settings.presets.networks import kind_of, settings_of_arguments
from tests.generation.test_image_to_image import STARTER

KOHYA = {
    "LoRA_type": "Standard",
    "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5",
    "train_data_dir": "/home/mira/img",
    "output_name": "mira",
    "network_dim": 32,
    "network_alpha": 16,
    "learning_rate": 0.0001,
    "unet_lr": 0.0001,
    "text_encoder_lr": 5e-05,
    "max_resolution": "512,512",
    "epoch": 10,
    "max_train_steps": 0,
    "optimizer": "AdamW8bit",
    "wandb_api_key": "a secret",
}
TOML = """
pretrained_model_name_or_path = "/models/sd15.safetensors"
[network]
network_module = "networks.lora"
network_dim = 32
[training]
learning_rate = 1e-4
max_train_epochs = 10
resolution = "512,512"
"""
ONETRAINER = {
    "__version": 6,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": "runwayml/stable-diffusion-v1-5",
    "batch_size": 4,
    "epochs": 100,
    "learning_rate": 0.0003,
    "learning_rate_scheduler": "CONSTANT",
    "resolution": "512",
    "lora_rank": 24,
    "optimizer": {"__version": 0, "optimizer": "ADAMW_8BIT"},
    "unet": {"learning_rate": 0.0002, "train": True},
}


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "text_encoder/config.json"])
def test_a_config_file_of_a_model_is_not_taken_for_a_preset(file):
    with pytest.raises(ProblemsError) as refused:
        presets.read(STARTER / file)
    assert refused.value.codes == ["preset.is-model-config"]
    assert "give the model's folder" in str(refused.value)
    assert foreign_problem({"model_type": "clip_text_model"}, "x") and not foreign_problem({"model_type": "SDXL"}, "x")


def refused(tmp_path, text, name="theirs.json"):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ProblemsError) as caught:
        presets.read(path)
    (problem,) = caught.value.problems
    assert problem.where == str(path) and problem.fix and "schema_version" not in str(problem)
    return problem


def test_a_preset_of_another_program_is_named_with_the_command_that_imports_it(tmp_path):
    problem = refused(tmp_path, json.dumps(ONETRAINER))
    assert "OneTrainer" in problem.what and f"import {tmp_path / 'theirs.json'}" in problem.fix
    problem = refused(tmp_path, json.dumps(KOHYA))
    assert "kohya_ss" in problem.what and f"import {tmp_path / 'theirs.json'}" in problem.fix
    assert "a secret" not in str(problem)
    problem = refused(tmp_path, "job: extension\nconfig:\n  name: fox\n  process: []\n", "fox.yaml")
    assert "AI Toolkit" in problem.what and f"import {tmp_path / 'fox.yaml'}" in problem.fix
    for name in ("config.toml", "renamed.json"):
        problem = refused(tmp_path, TOML, name)
        assert "sd-scripts" in problem.what and f"import {tmp_path / name}" in problem.fix


def test_a_dataset_config_is_sent_to_the_dataset_tab(tmp_path):
    text = '[general]\nenable_bucket = true\n[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "a"\n'
    assert "Dataset tab" in refused(tmp_path, text, "dataset.toml").fix
    assert "Dataset tab" in refused(tmp_path, json.dumps({"datasets": [{"subsets": []}]})).fix


@pytest.mark.parametrize("raw", [{}, [], None, 3, {"title": "mine"}, {"learning_rate": 1e-4}, {"network": {"rank": 4}}])
def test_other_files_are_told_as_before(raw):
    assert foreign_problem(raw, "x.json") is None


def test_the_projects_own_presets_are_not_taken_for_foreign(tmp_path):
    for path in (presets.Path(__file__).parents[2] / "presets").glob("*.json"):
        presets.read(path)


def test_the_command_line_says_it(tmp_path, capsys):
    (tmp_path / "theirs.toml").write_text(TOML)
    assert main(["train", str(tmp_path / "theirs.toml"), "--check"]) == BAD_INPUT
    assert "sd-scripts" in capsys.readouterr().err


FOUND_BY = {
    "kohya_ss": dict.fromkeys(("LoRA_type", "output_dir", "mixed_precision"), ""),
    "OneTrainer": dict.fromkeys(("__version", "workspace_dir", "concepts"), ""),
    "SimpleTuner": dict.fromkeys(("--model_family", "data_backend_config", "--lora_type"), ""),
}


def test_three_names_of_a_program_identify_its_files_and_two_do_not():
    for marks in FOUND_BY.values():
        assert foreign_problem(marks, "x") is not None
        assert foreign_problem(dict(list(marks.items())[:2]), "x") is None


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [  # kohya_ss' LoRA types
        ("Standard", "lora"),
        ("Kohya LoCon", "lora"),
        ("LoRA-FA", "lora_fa"),
        ("Kohya DyLoRA", "dylora"),
        ("LyCORIS/LoCon", "locon"),
        ("LyCORIS/LoHa", "loha"),
        ("LyCORIS/LoKr", "lokr"),
        ("LyCORIS/GLoRA", "glora"),
        ("LyCORIS/DyLoRA", "dylora"),
        ("LyCORIS/iA3", "ia3"),
        ("LyCORIS/Diag-OFT", "diag_oft"),
        ("LyCORIS/BOFT", "boft"),
        ("LyCORIS/Native Fine-Tuning", "full"),
        ("Kohya LoHa", "loha"),
        ("Kohya LoKr", "lokr"),
        ("Flux1", ""),
    ],
)
def test_each_type_of_kohya_ss_is_a_network_of_ours(theirs, kind):
    assert kind_of({"LoRA_type": theirs}) == kind
    decomposed = {"locon": "dora", "loha": "dora_loha", "lokr": "dora_lokr"}.get(kind, kind)
    assert kind_of({"LoRA_type": theirs, "dora_wd": "True"}) == decomposed
    assert kind_of({"LoRA_type": theirs, "dora_wd": "False"}) == kind


@pytest.mark.parametrize(
    ("algo", "kind"),  # of LyCORIS 3; its default is LoCon, which it calls lora
    [(None, "locon"), ("lora", "locon"), ("locon", "locon"), ("loha", "loha"), ("lokr", "lokr"), ("glora", "glora")]
    + [("dylora", "dylora"), ("ia3", "ia3"), ("diag-oft", "diag_oft"), ("boft", "boft"), ("full", "full")],
)
def test_each_algo_of_lycoris_is_a_network_of_ours(algo, kind):
    assert kind_of({"network_module": "lycoris.kohya", **({"algo": algo} if algo else {})}) == kind


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("preset", "locon", "network.layers"),
        ("conv_dim", "locon", "network.conv_rank"),
        ("conv_alpha", "locon", "network.conv_alpha"),
        ("dropout", "locon", "network.network_dropout"),
        ("rank_dropout", "locon", "network.rank_dropout"),
        ("module_dropout", "locon", "network.module_dropout"),
        ("rs_lora", "locon", "network.rs_lora"),
        ("train_norm", "locon", "network.train_norm"),
        ("rank_dropout_scale", "locon", "network.rank_dropout_scale"),
        ("use_tucker", "loha", "loha.use_tucker"),
        ("use_cp", "loha", "loha.use_tucker"),
        ("use_conv_cp", "loha", "loha.use_tucker"),
        ("constrain", "diag_oft", "diag_oft.constraint"),
        ("wd_on_out", "dora", "dora.wd_on_output"),
        ("factor", "lokr", "lokr.factor"),
        ("loraplus_lr_ratio", "lora", "optimizer.loraplus_lr_ratio"),
    ],
)
def test_each_argument_of_a_network_is_a_setting_of_ours(name, kind, path):
    known = {entry.path: entry for entry in declared(TrainJob)}
    assert settings_of_arguments(kind, {name: "4"}, known) == ({path: "4"}, [])
    usual = {"dora.wd_on_output": True} if kind == "dora" else {}  # LyCORIS' default
    assert settings_of_arguments(kind, {"algo": "x", "dora_wd": "1", "nothing": "4"}, known) == (usual, ["nothing"])


def test_each_name_of_a_sampler_in_sd_scripts_is_ours():
    for theirs, ours in {
        "k_lms": "lms",
        "k_euler": "euler",
        "k_euler_a": "euler_a",
        "k_dpm_2": "dpm_2",
        "k_dpm_2_a": "dpm_2_a",
        **{name: name for name in ("ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a")},
        **{name: name for name in ("dpmsolver", "dpmsolver++", "dpmsingle")},
    }.items():
        assert build(TrainJob, {"samples": {"sample_sampler": theirs}}).samples.sample_sampler == ours
