"""Settings files of other trainers, given where a preset is expected."""

import json

import pytest

from core.cli.main import BAD_INPUT, main
from core.record.problems import ProblemsError
from core.settings.presets import files as presets
from core.settings.presets.foreign import foreign_problem

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


def refused(tmp_path, text, name="theirs.json"):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ProblemsError) as caught:
        presets.read(path)
    (problem,) = caught.value.problems
    assert problem.where == str(path) and problem.fix and "schema_version" not in str(problem)
    return problem


LOKR = {
    "conv_dim": 8,
    "conv_alpha": "4",
    "factor": 8,
    "use_cp": True,
    "decompose_both": "False",
    "LyCORIS_preset": "attn-mlp",
}


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (
            {"LoRA_type": "LyCORIS/LoKr", **LOKR},
            "Network type LoKr; Layers attn-mlp; Conv rank (dim) 8; Conv alpha 4; Tucker decomposition (CP) on; Factor 8",
        ),
        (
            {"LoRA_type": "LyCORIS/LoHa", **LOKR, "conv_dim": 0, "use_cp": False},
            "Network type LoHa; Layers attn-mlp; Conv alpha 4",
        ),
        ({"LoRA_type": "LyCORIS/LoCon", "dora_wd": True}, "Network type DoRA"),
        ({"LoRA_type": "LyCORIS/Native Fine-Tuning"}, "Network type Full difference"),
        (
            {"network_args": ["algo=lokr", "factor=4", "full_matrix=True"]},
            "Network type LoKr; Factor 4; Full matrix on",
        ),
        (
            {"network_args": '"algo=loha" conv_dim=16 use_scalar=True'},
            "Network type LoHa; Conv rank (dim) 16; Trainable scalar on",
        ),
        ({"LoRA_type": "Standard", **LOKR}, "Network type LoRA"),
        ({"LoRA_type": "Flux1"}, "LoRA type Flux1"),
    ],
)
def test_the_network_type_of_kohya_ss_is_named_with_its_options(tmp_path, given, values):
    problem = refused(tmp_path, json.dumps({**KOHYA, "LoRA_type": "", **given}))
    assert problem.fix.endswith(f"; {values}")


def test_a_preset_of_kohya_ss_is_named_with_its_main_values(tmp_path):
    problem = refused(tmp_path, json.dumps(KOHYA))
    assert "kohya_ss" in problem.what
    for value in (
        "runwayml/stable-diffusion-v1-5",
        "/home/mira/img",
        "32",
        "16",
        "0.0001",
        "5e-05",
        "AdamW8bit",
        "512,512",
    ):
        assert value in problem.fix
    assert "a secret" not in str(problem) and "Steps" not in problem.fix  # 0 was not set


def test_settings_of_sd_scripts_in_toml_are_named_with_their_main_values(tmp_path):
    for name in ("config.toml", "renamed.json"):
        problem = refused(tmp_path, TOML, name)
        assert "sd-scripts" in problem.what
        assert all(value in problem.fix for value in ("/models/sd15.safetensors", "32", "0.0001", "10", "512,512"))


def test_a_preset_of_onetrainer_is_named_with_its_main_values(tmp_path):
    problem = refused(tmp_path, json.dumps(ONETRAINER))
    assert "OneTrainer" in problem.what
    for value in ("LORA", "runwayml/stable-diffusion-v1-5", "ADAMW_8BIT", "0.0003", "0.0002", "24", "100"):
        assert value in problem.fix


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
