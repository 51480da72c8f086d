"""Jobs as options of sd-scripts: what is imported comes back, and what cannot be expressed is listed."""

import json
import random
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from core.cli.main import DONE, main
from core.imports.dataset_export import dataset_config, without_passed
from core.imports.projects.export import OURS, SAMPLING, SPANS, _optimizer, export_project, same_training
from core.imports.projects.importers import import_project
from core.imports.projects.kohya_export import export_preset
from core.imports.projects.options import METHODS, SCRIPTS, options_of
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.method import MethodSettings
from core.settings.presets.files import apply, differences, dump, read, to_values
from tests.imports.projects import cases

# Sample prompts as text, and the layers of LyCORIS where sd-scripts has the same network itself
NOT_OPTIONS = {f"samples.{name}" for name in ("sample_prompts", *SAMPLING)} | {
    "network.layers",
    "network.rank_dropout_scale",
    "network.train_norm",
}

# A percentage is a fraction in TOML; states, family, text encoder (of auto) and the folder of logs are as the script or user has them.
SAME_ELSEWHERE = {
    "logging.logging_dir",
    "schedule.lr_warmup_steps",
    "schedule.lr_decay_steps",
    "saving.save_state",
    "saving.save_state_on_train_end",
    "model.family",
    "method.train_text_encoder",
    "method.kind",  # of a full model, which the folders decide
    "controlnet.control_net_lr",  # the learning rate
}


def back(exported):
    return import_project(exported.command).job, import_project(exported.toml, choice=exported.script).job


def job_of(draws):
    """A job of options with random values."""
    name = draws.choice([each for each in SCRIPTS if "XTI" not in each and "control_net" not in each])
    words = [f"{name}.py", "--pretrained_model_name_or_path=m", "--sample_prompts=prompts.txt"]
    samples = {
        "int": lambda: draws.randint(1, 12), "float": lambda: round(draws.uniform(0.11, 0.9), 3), "bool": lambda: "",
        "int_or_float": lambda: draws.choice((5, 0.25, "10%")), "str": lambda: draws.choice(("a", "b c", "d'e", 'f"g')),
    }  # fmt: skip
    special = {
        "network_module": "networks.lora", "network_args": "conv_dim=4", "optimizer_args": "weight_decay=0.1", "resolution": "512,768",
        "lr_scheduler": "cosine", "lr_scheduler_args": "num_cycles=1", "face_crop_aug_range": "1.5,3.0", "caption_extension": ".tags",
    }  # fmt: skip
    left_out = {
        "config_file",
        "output_config",
        "dataset_config",
        "dataset_class",
        "in_json",
        "lr_scheduler_type",
        "caption_extention",
    }
    for option in options_of(name).values():
        if option.name not in left_out and draws.random() < 0.4:
            value = special.get(option.name) or (
                draws.choice(option.choices) if option.choices else samples[option.type]()
            )
            words += [f"--{option.name}"] if option.type == "bool" else [f"--{option.name}={value}"]
    return import_project("python " + " ".join(json.dumps(word) for word in words)).job


@pytest.mark.parametrize("seed", range(8))
def test_an_imported_job_comes_back_from_its_export(seed):
    job = job_of(random.Random(seed))
    exported = export_project(job)
    assert exported.lost == {}
    for other in back(exported):
        assert {path for path in differences(job, other) if path not in SAME_ELSEWHERE} == set()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
def test_two_hundred_random_jobs_come_back(seed):
    assert export_project(job_of(random.Random(seed))).lost == {}


def test_presets_of_kohya_ss_come_back():
    for case in cases("kohya_ss")[::8]:
        try:
            job = import_project(json.dumps(case["preset"]), choice=case["tab"]).job
        except ProblemsError:
            continue
        assert set(export_project(job).lost) <= NOT_OPTIONS, case["name"]


def test_what_sd_scripts_cannot_express_is_listed():
    plain = TrainJob()
    network = plain.network.model_copy(update={"initialization": "orthogonal", "rs_lora": True})
    dataset = plain.dataset.model_copy(update={"skip_broken": True, "resolution": 512})
    lost = export_project(plain.model_copy(update={"network": network, "dataset": dataset})).lost
    assert {"network.initialization", "network.rs_lora", "dataset.skip_broken", "memory.mixed_precision"} <= set(lost)
    assert "dataset.resolution" not in lost and "network.rank" not in lost


@pytest.mark.parametrize(
    ("groups", "cached", "precision"),
    [
        ({}, True, "bf16"),
        ({"memory": {"cache_latents": "off", "mixed_precision": "fp16"}}, False, "fp16"),
        ({"memory": {"cache_latents": "device", "full_precision": "fp16"}}, True, "fp16"),
        ({"memory": {"mixed_precision": "no"}, "dataset": {"random_crop": True}}, False, None),
    ],
)
def test_what_is_automatic_here_is_no_default_of_sd_scripts_that_needs_more_memory(groups, cached, precision):
    exported = export_project(build(TrainJob, groups))
    assert (exported.options.get("cache_latents", False), exported.options.get("mixed_precision")) == (
        cached,
        precision,
    )
    assert "cache_latents_to_disk" not in exported.options
    assert ("memory.cache_latents" in exported.lost) == ("dataset" in groups)


def test_what_only_this_program_names_is_listed_and_an_optimizer_has_its_path():
    groups = {"schedule": {"lr_scheduler": "rex"}, "noise": {"loss_type": "log_cosh", "timestep_shift": 2}}
    exported = export_project(build(TrainJob, groups | {"optimizer": {"optimizer_type": "came"}}))
    assert {"schedule.lr_scheduler", "noise.loss_type", "noise.timestep_shift"} <= set(exported.lost)
    assert not {"lr_scheduler", "loss_type"} & set(exported.options)
    assert exported.options["optimizer_type"] == "pytorch_optimizer.CAME"
    assert "optimizer.optimizer_type" not in exported.lost
    floor = {"lr_scheduler": "cosine", "lr_scheduler_min_lr_ratio": 0.1}
    assert "schedule.lr_scheduler_min_lr_ratio" in export_project(build(TrainJob, {"schedule": floor})).lost


def test_an_optimizer_that_sd_scripts_does_not_have_is_listed():
    exported = export_project(
        build(TrainJob, {"optimizer": {"optimizer_type": "automagic", "optimizer_args": {"lr_bump": 1e-5}}})
    )
    assert {"optimizer.optimizer_type", "optimizer.optimizer_args"} <= set(exported.lost)
    assert not {"optimizer_type", "optimizer_args"} & set(exported.options)
    assert _optimizer("torch.optim.adamw") == "torch.optim.AdamW", "sd-scripts imports the class by its path"


SHIPPED = sorted((PROJECT / "presets").glob("*.json"))
TYPES = {"bool": bool, "int": int, "float": (int, float), "int_or_float": (int, float, str), "str": str}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_export_of_a_shipped_preset_has_options_of_sd_scripts_that_read_back_without_remarks(path):
    preset = read(path)
    job = apply(preset).with_settings(model={"family": preset.family or "sd1"})
    exported = export_project(job)
    assert exported.script == METHODS[job.method.kind][preset.family == "sdxl"] or job.method.kind == "fine_tune"
    known = options_of(exported.script)
    for option, value in exported.options.items():
        values = value if known[option].many else [value]
        assert all(isinstance(each, TYPES[known[option].type]) for each in values), (option, value)
    for text, choice in ((exported.command, ""), (exported.toml, exported.script)):
        imported = import_project(text, choice=choice)
        remarks = [entry for kind in ("changed", "unavailable", "idle") for entry in imported.entries(kind)]
        assert not [entry.line for entry in remarks if entry.key not in (*SPANS, "output_dir")]  # which are explained
        different = {path for path in differences(job, imported.job) if not same_training(path, job, imported.job)}
        assert different <= exported.lost.keys() | OURS | SAME_ELSEWHERE


NO_CAPTION_DROPOUT = {"train_textual_inversion", "sdxl_train_textual_inversion"}
KINDS_OF_SUBSETS = {  # reference: the README about dataset configs; others take all but control images
    "train_db": {"image_dir"},
    "fine_tune": {"metadata_file"},
    **{name: {"conditioning_data_dir"} for name in SCRIPTS if "control_net" in name},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("metadata", [None, "/a/meta.json"])
def test_the_dataset_config_of_a_shipped_preset_has_options_of_its_script(path, metadata):
    preset = read(path)
    job = apply(preset).with_settings(model={"family": preset.family or "sd1"})
    control = job.method.traits.control_images
    if metadata and (control or job.method.kind == "dreambooth"):
        pytest.skip("it has no metadata files")
    sources = [{"folder": "/a", "class_tokens": None if control else "a fox", "metadata_file": metadata}]
    groups = to_values(job)
    groups["dataset"] |= {"folder": None, "sources": sources, "conditioning_data_dir": "/c" if control else None}
    groups["captions"] |= {"caption_dropout_rate": 0.1, "caption_extension": ".txt"}
    groups["validation"] |= {"validation_split": 0.1}
    job = build(TrainJob, groups)
    script = export_project(job).script
    config, _ = dataset_config(job)
    tables = [config.get("general", {}), *config["datasets"]]
    (subset,) = config["datasets"][0]["subsets"]
    names = {name for table in (*tables, subset) for name in table}
    assert ("caption_dropout_rate" in names) == (script not in NO_CAPTION_DROPOUT)
    kind = next(name for name in ("conditioning_data_dir", "metadata_file", "image_dir") if name in names)
    assert kind in KINDS_OF_SUBSETS.get(script, {"image_dir", "metadata_file"})
    assert kind == "image_dir" or "class_tokens" not in names
    assert kind != "metadata_file" or "caption_extension" not in names
    assert kind != "conditioning_data_dir" or not {"validation_split", "is_reg", "alpha_mask"} & names


def test_older_switches_for_an_optimizer_are_not_written():
    job = build(TrainJob, {"optimizer": {"optimizer_type": "Lion"}})
    assert "--optimizer_type=Lion" in export_project(job).command and "use_lion" not in export_project(job).toml


def test_a_method_that_sd_scripts_does_not_have_is_refused():
    job = TrainJob(method=MethodSettings(kind="lllite"))
    with pytest.raises(ProblemsError, match="only for SDXL") as refused:
        export_project(job)
    assert refused.value.codes == ["export.no-script"]
    with pytest.raises(ProblemsError, match="kohya_ss has no tab"):
        export_preset(job.with_settings(model={"family": "sdxl"}))


@pytest.mark.parametrize(
    ("family", "groups", "script", "options"),
    [
        ("sd1", {"noise": {"min_snr_gamma": 5}}, "train_control_net", {}),
        ("sdxl", {"optimizer": {"learning_rate": 2e-5}}, "sdxl_train_control_net", {"control_net_lr": 2e-5}),
        (
            "sdxl",
            {
                "lllite": {"hidden_dim": 16, "dropout": 0.1},
                "method": {"kind": "lllite"},
                "memory": {"full_precision": "bf16"},
            },
            "sdxl_train_control_net_lllite",
            {"cond_emb_dim": 32, "network_dim": 16, "network_dropout": 0.1, "mixed_precision": "bf16"},
        ),
    ],
)
def test_a_controlnet_has_the_options_of_its_script_and_comes_back(family, groups, script, options):
    kind = {"method": {"kind": "controlnet"}, "dataset": {"folder": "/a", "conditioning_data_dir": "/c"}}
    job = build(TrainJob, kind | {"model": {"family": family}} | groups)
    exported = export_project(job)
    options |= {"conditioning_data_dir": "/c", "train_data_dir": "/a"}
    assert (exported.script, {name: exported.options[name] for name in options}) == (script, options)
    assert ("noise.min_snr_gamma" in exported.lost) == (family == "sd1"), "it stops the script"
    assert "controlnet.control_net_lr" not in exported.lost
    for other in back(exported):
        assert other.dataset.conditioning_data_dir == "/c" and other.lllite.hidden_dim == job.lllite.hidden_dim
    advice = dataset_config(job)[1]
    assert not [problem for problem in advice if problem.code == "dataset-config.lost.masked_loss"]
    old = exported.command.replace("train_control_net.py", "train_controlnet.py")
    assert family == "sdxl" or import_project(old).job.method.kind == "controlnet"


def test_the_command_writes_a_config_file(tmp_path, capsys):
    out = tmp_path / "out.toml"
    assert (
        main(["export", "starter_lora", "--save", str(out), "--outputs", str(tmp_path / "o"), "--models", "models"])
        == DONE
    )
    assert "accelerate launch train_network.py" in capsys.readouterr().out
    assert tomllib.loads(out.read_text())["network_module"] == "networks.lora"


def test_the_command_writes_several_folders_as_a_dataset_config_that_the_config_file_names(tmp_path, capsys):
    sources = [{"folder": f"{tmp_path / name}", "batch_group": name} for name in "abc"]
    for source in sources:
        Path(source["folder"]).mkdir()
        Image.new("RGB", (64, 64)).save(Path(source["folder"], "one.png"))
    job = build(TrainJob, {"dataset": {"sources": sources}})
    (tmp_path / "job.json").write_text(json.dumps(dump(job, title="three")))
    assert main(["export", str(tmp_path / "job.json"), "--save", str(tmp_path / "out.toml")]) == DONE
    said = capsys.readouterr().out
    assert "out_dataset.toml, for --dataset_config" in said and "dataset.sources" not in said
    imported = import_project(tmp_path / "out.toml", choice="train_network").job
    assert [each.folder for each in imported.dataset.sources] == [each["folder"] for each in sources]
    assert len({each.batch_group for each in imported.dataset.sources}) == 3


def test_an_export_names_the_folders_without_which_sd_scripts_stops():
    options = export_project(build(TrainJob, {"saving": {"output_name": "fox"}})).options
    assert (options["output_dir"], options["logging_dir"]) == ("outputs/fox", "outputs/fox/logs")
    assert "logging_dir" not in export_project(build(TrainJob, {"logging": {"log_with": "none"}})).options


def test_samples_are_exported_with_a_file_of_prompts_alone():
    samples = {"sample_prompts": ["a fox"], "sample_every_n_steps": 50}
    exported = export_project(build(TrainJob, {"samples": samples}))
    assert not {"sample_at_first", "sample_every_n_steps"} & set(exported.options)
    assert {"samples.sample_prompts", "samples.sample_every_n_steps"} <= set(exported.lost)
    assert (
        "sample_every_n_steps"
        in export_project(build(TrainJob, {"samples": samples | {"sample_prompts_file": "fox.txt"}})).options
    )


@pytest.mark.parametrize("program", ["sd-scripts", "kohya_ss"])
@pytest.mark.parametrize("saved", [True, False])
def test_every_export_names_the_dataset_config_that_it_writes_or_shows(tmp_path, capsys, program, saved):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    source = {"folder": str(tmp_path), "shuffle_caption": False}
    job = build(TrainJob, {"dataset": {"sources": [source], "resolution": 768}, "captions": {"shuffle_caption": True}})
    (tmp_path / "job.json").write_text(json.dumps(dump(job, title="one")))
    words = ["export", str(tmp_path / "job.json"), "--to", program]
    out = tmp_path / f"out.{'toml' if program == 'sd-scripts' else 'json'}"
    assert main([*words, "--save", str(out)] if saved else words) == DONE
    shown = capsys.readouterr().out
    name = (tmp_path / "out_dataset.toml").as_posix() if saved else f"{job.saving.output_name}_dataset.toml"
    text = out.read_text() if saved else shown
    assert re.search(rf"dataset_config\W+{re.escape(name)}", text)
    assert not re.search(r"train_data_dir\W+/|shuffle_caption\W+true|\n  dataset\.", text + shown)
    written = Path(name).read_text() if saved else shown[shown.index("# Dataset config") :]
    assert tomllib.loads(written)["datasets"][0]["subsets"][0]["image_dir"] == tmp_path.as_posix()


@pytest.mark.parametrize(
    ("method", "text_encoder", "metadata", "script", "trains"),
    [
        ("fine_tune", "auto", "", "train_db", {"stop_text_encoder_training": -1}),
        ("fine_tune", "yes", "", "train_db", {}),
        ("fine_tune", "auto", "/a/meta.json", "fine_tune", {}),
        ("dreambooth", "auto", "", "train_db", {}),
        ("dreambooth", "auto", "/a/meta.json", "fine_tune", {"train_text_encoder": True}),
    ],
)
def test_a_full_model_is_exported_to_the_script_that_takes_its_folders(method, text_encoder, metadata, script, trains):
    sources = [{"folder": "/a", "metadata_file": metadata or None}]
    job = build(
        TrainJob,
        {"method": {"kind": method, "train_text_encoder": text_encoder}, "dataset": {"sources": sources}},
    )
    exported = export_project(job)
    names = ("stop_text_encoder_training", "train_text_encoder")
    assert (exported.script, {name: exported.options[name] for name in names if name in exported.options}) == (
        script,
        trains,
    )
    assert not any(path.startswith("method.") for path in exported.lost)
    preset = export_preset(job, "a_dataset.toml")
    assert (
        preset.tab == {"train_db": "dreambooth", "fine_tune": "finetune"}[script]
        and "method.train_text_encoder" not in preset.lost
    )


def test_folders_with_and_without_a_metadata_file_are_refused_for_full_models_of_sd_1_alone():
    sources = [{"folder": "/a", "metadata_file": "/a/meta.json"}, {"folder": "/b"}]
    groups = {"method": {"kind": "fine_tune"}, "dataset": {"sources": sources}}
    with pytest.raises(ProblemsError) as refused:
        export_project(build(TrainJob, groups))
    assert refused.value.codes == ["export.mixed-folders"]
    assert export_project(build(TrainJob, groups | {"model": {"family": "sdxl"}})).script == "sdxl_train"


def test_bucket_sides_are_written_where_sd_scripts_defaults_would_stop_it():
    for resolution, sides in ((128, (64, 256)), (512, (None, None)), (1536, (None, 3072))):
        exported = export_project(build(TrainJob, {"dataset": {"resolution": resolution}}))
        assert (exported.options.get("min_bucket_reso"), exported.options.get("max_bucket_reso")) == sides
        assert not {"dataset.min_bucket_reso", "dataset.max_bucket_reso"} & set(exported.lost)


def test_the_base_model_is_exported_and_a_recipe_without_one_says_so(tmp_path, capsys):
    command = export_project(TrainJob()).with_dataset_config("a.toml").command
    assert f"--pretrained_model_name_or_path={(PROJECT / 'models/starter').as_posix()}" in command
    for preset, named in (("starter_lora", True), ("sd15_lora_style_8gb", False), ("sdxl_lora_8gb", False)):
        assert main(["export", preset]) == DONE
        shown = capsys.readouterr().out
        assert ("sdxl_train_network.py" in shown) == preset.startswith("sdxl")
        assert ("--pretrained_model_name_or_path=" in shown, "names no model" in shown) == (named, not named)


def test_betas_of_optimizer_args_are_not_listed_as_lost():
    groups = {"optimizer": {"optimizer_type": "AdamW8bit", "optimizer_args": {"betas": [0.9, 0.99]}}}
    exported = export_project(build(TrainJob, groups))
    assert exported.options["optimizer_args"] == ["betas=0.9,0.99"]
    assert not [path for path in exported.lost if path.startswith("optimizer.")]


def test_advice_to_pass_an_option_is_left_out_where_it_is_passed():
    masks = {"sources": [{"folder": "/a", "conditioning_data_dir": "/m", "masked_loss": True}], "masked_loss": True}
    for dataset, left in ((masks, []), (masks | {"masked_loss": False}, ["dataset-config.masks-need-option"])):
        job = build(TrainJob, {"dataset": dataset})
        advice = dataset_config(job)[1]
        for options in (export_project(job).options, export_preset(job, "a_dataset.toml").options):
            codes = [problem.code for problem in without_passed(advice, options)]
            assert [code for code in codes if code.endswith("masks-need-option")] == left


def test_the_token_of_a_textual_inversion_is_no_trigger_word_that_is_lost():
    for captions, codes in (
        ({}, {"token-in-captions"}),
        ({"caption_template": "object"}, {"lost.caption_template"}),
        ({"trigger_word": "fox"}, {"lost.trigger_word"}),
    ):
        embedding = {"method": {"kind": "embedding"}, "embedding": {"token_string": "foxy"}, "captions": captions}
        advice = dataset_config(build(TrainJob, embedding | {"dataset": {"sources": [{"folder": "/a"}]}}))[1]
        found = {problem.code.removeprefix("dataset-config.") for problem in advice}
        assert found & {"token-in-captions", "lost.caption_template", "lost.trigger_word"} == codes


def test_the_prediction_type_of_auto_is_exported_or_left_to_the_user_with_a_warning(tmp_path, capsys):
    preset = json.loads((PROJECT / "presets/sd21_lora_8gb.json").read_text(encoding="utf-8"))
    for resolution, opened in ((768, False), (512, True)):
        path = tmp_path / "sd2.json"
        path.write_text(json.dumps(preset | {"dataset": {"resolution": resolution}, "reasons": {}}), encoding="utf-8")
        assert main(["export", str(path)]) == DONE
        output = capsys.readouterr().out
        assert "--v2" in output.split() and 'model.prediction "auto"' not in output
        assert ("--v_parameterization" in output.splitlines()[0]) == (not opened)
        assert ("for a v-prediction model add --v_parameterization" in output) == opened
    assert main(["export", "sd15_lora_style_8gb"]) == DONE
    output = capsys.readouterr().out
    assert "v_parameterization" not in output and "model.prediction" not in output


def test_a_textual_inversion_without_a_token_says_that_it_is_missing(capsys):
    for program in ("sd-scripts", "kohya_ss"):
        assert main(["export", "sd15_textual_inversion_6gb", "--to", program]) == DONE
        output = capsys.readouterr().out
        assert "no model, no folders and no token: add" in output and "--token_string" in output


def test_settings_without_effect_are_not_listed_as_lost():
    network = {"kind": "loha", "conv_rank": 4, "rank_dropout_scale": True}
    for groups in ({}, {"network": network}, {"network": network | {"rank_dropout": 0.1}}):
        job, layers = build(TrainJob, groups), ["network.layers"] if groups else []
        for lost in (export_project(job).lost, export_preset(job).lost):
            assert [path for path in lost if path.startswith(("samples.", "network.", "model."))] == layers
    prompts = build(TrainJob, {"samples": {"sample_prompts": ["a fox"]}})
    assert "samples.sample_steps" in export_project(prompts).lost


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_config_file_is_imported_for_the_script_that_its_first_line_names(script):
    imported = import_project(f"# sd-scripts, {script}.py\nlearning_rate = 0.0001\nmax_train_steps = 10\n")
    assert imported.choice == script and imported.choices == tuple(SCRIPTS)
