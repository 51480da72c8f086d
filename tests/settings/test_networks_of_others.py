"""--network_module, --network_args and kohya_ss' LoRA_type: what is written instead of them."""

import pytest

from core.cli.options import split_options
from core.settings.base import declared
from core.settings.flags import read_flags
from core.settings.job import TrainJob
from core.settings.presets.networks import arguments_of, kind_of, settings_of_arguments

KNOWN = {entry.path: entry for entry in declared(TrainJob)}


def problem(*words):
    given = split_options(list(words), {})
    assert not given.problems
    values, problems = read_flags(TrainJob, given.settings)
    assert not values
    (found,) = problems
    return found


@pytest.mark.parametrize(
    ("module", "arguments", "kind"),
    [
        ("networks.lora", {}, "lora"),
        ("networks.lora_fa", {}, "lora_fa"),
        ("networks.dylora", {}, "dylora"),
        ("lycoris.kohya", {}, "locon"),
        ("lycoris.kohya", {"algo": "lokr"}, "lokr"),
        ("lycoris.kohya", {"algo": "LoHa", "dora_wd": "True"}, "dora_loha"),
        ("lycoris.kohya", {"algo": "loha", "dora_wd": "False"}, "loha"),
        ("lycoris.kohya", {"algo": "unheard"}, ""),
        ("someones.network", {}, ""),
    ],
)
def test_the_kind_of_a_module_and_its_arguments(module, arguments, kind):
    assert kind_of({"network_module": module, **arguments}) == kind


@pytest.mark.parametrize(
    ("lora_type", "kind"),
    [
        ("Standard", "lora"),
        ("Kohya LoCon", "lora"),
        ("Kohya DyLoRA", "dylora"),
        ("LoRA-FA", "lora_fa"),
        ("LyCORIS/LoKr", "lokr"),
        ("Kohya LoHa", "loha"),
        ("LyCORIS/iA3", "ia3"),
        ("LyCORIS/Native Fine-Tuning", "full"),
        ("Flux1", ""),
    ],
)
def test_the_kind_of_kohya_ss_type(lora_type, kind):
    assert kind_of({"LoRA_type": lora_type}) == kind


def test_each_argument_is_the_setting_of_its_name_in_sd_scripts():
    words = ["unit=4", "conv_dim=8", "conv_alpha=1", "dropout=0.1", "loraplus_lr_ratio=16", "preset=attn-mlp", "odd=1"]
    found, left = settings_of_arguments("dylora", arguments_of(words), KNOWN)
    assert found == {
        "dylora.unit": "4",
        "network.conv_rank": "8",
        "network.conv_alpha": "1",
        "network.network_dropout": "0.1",
        "optimizer.loraplus_lr_ratio": "16",
        "network.layers": "attn-mlp",
    }
    assert left == ["odd"]
    assert settings_of_arguments("lokr", {"use_cp": "True", "factor": "8", "algo": "lokr"}, KNOWN) == (
        {"lokr.use_tucker": "True", "lokr.factor": "8"},
        [],
    )
    names = {"exclude_patterns": "a", "network_reg_dims": "b=1", "rs_lora": "True"}
    assert list(settings_of_arguments("lora", names, KNOWN)[0]) == [
        "network.exclude_layers",
        "network.layer_dims",
        "network.rs_lora",
    ]


def test_the_command_line_says_which_flags_to_write():
    found = problem("--network_module", "networks.dylora", "--network_args", "unit=4", "conv_dim=16")
    assert found.code == "settings.unknown-name"
    assert found.fix == "write --network.kind dylora --dylora.unit 4 --network.conv_rank 16"
    assert "lycoris" not in problem("--network_args", "loraplus_lr_ratio=4").fix


@pytest.mark.parametrize(("given", "value"), [([], "True"), (["wd_on_out=False"], "False")])
def test_dora_of_lycoris_has_a_magnitude_per_output_unless_it_is_told_otherwise(given, value):
    words = ["--network_module", "lycoris.kohya", "--network_args", "algo=loha", "dora_wd=True", *given]
    assert f"--dora_loha.wd_on_output {value}" in problem(*words).fix


@pytest.mark.parametrize("words", [["someones.network"], ["lycoris.kohya", "--network_args", "algo=unheard"]])
def test_a_module_that_is_neither_known_nor_allowed_is_refused(words):
    assert problem("--network_module", *words).code == "network.unknown-module"
