"""Command lines, scripts and config files of sd-scripts as jobs."""

import json
import shlex

import pytest

from core.imports.projects import sd_scripts
from core.imports.projects.importers import import_project
from core.imports.projects.options import SCRIPTS, Option, convert, is_option, options_of, parse_words
from core.imports.projects.rules import CONVOLUTIONS, RULES
from core.imports.projects.shells import read_script
from core.record.problems import ProblemsError
from core.settings.base import value_of
from core.settings.elsewhere import ELSEWHERE
from tests.imports.projects import cases, options, pasted, plain

SUFFIX = {"bash": ".sh", "cmd": ".bat", "powershell": ".ps1", "toml": ".sh"}
START = "accelerate launch train_network.py --pretrained_model_name_or_path m --network_module networks.lora"


def imported(text, **more):
    return import_project(text, **more)


def lora(more="", **given):
    return imported(f"{START} {more}", **given)


def of_key(found, key):
    return next(entry for entry in found.report if entry.key == key)


def test_recorded_texts_become_the_words_and_options_that_sd_scripts_gets(tmp_path):
    faults = []
    for case in cases("sd_scripts"):
        text = case["text"] if case["style"] != "toml" else shlex.join(case["argv"])
        for name, content in (case["files"] or {}).items():
            (tmp_path / name).write_text(content)
        words = read_script(text, SUFFIX[case["style"]]).commands
        if case["argv"] not in words and case["name"] != "bash_backslash_with_space_breaks":
            faults.append((case["name"], words))
        if not case["given"] or case["refused"]:
            continue
        found = sd_scripts.read(pasted(text, suffix=SUFFIX[case["style"]], folder=tmp_path))
        ours, recorded = options(found.options), options(case["given"])
        if case["style"] == "toml":  # recorded without those at their default
            default = {name: option.default for name, option in SCRIPTS[found.choice].options.items()}
            ours = {name: value for name, value in ours.items() if value != plain(default.get(name))}
        if ours != recorded or f"{found.choice}.py" != case["script"]:
            faults.append((case["name"], ours, recorded))
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_option_of_each_script_has_an_entry_and_the_direct_ones_their_setting(name):
    samples = {"bool": True, "int": "7", "float": "0.5", "int_or_float": "3", "str": "x"}
    words = []
    for option in options_of(name).values():
        value = option.choices[-1] if option.choices else samples[option.type]
        words += [f"--{option.name}"] if option.type == "bool" else [f"--{option.name}={value}"]
    found = imported(shlex.join(["python", f"{name}.py", *words]))
    known = {entry.key for entry in found.report}
    assert set(options_of(name)) <= known | {"config_file"}
    ruled = {each for names in RULES for each in names}
    for entry in found.entries("taken"):
        option = options_of(name).get(entry.key)
        if option and entry.key not in ruled and entry.key not in ELSEWHERE:
            (path,) = entry.settings
            value, given = plain(value_of(found.job, path)), plain(convert(option, entry.value)[0])
            assert given in (value, [value]), entry
    assert all(entry.sentence for entry in found.report if entry.kind in ("changed", "unavailable", "idle", "secret"))


def test_unset_options_have_sd_scripts_defaults():
    found = lora()
    job = found.job
    assert (job.optimizer.learning_rate, job.schedule.max_train_steps) == (2e-6, 1600)
    assert (job.network.rank, job.network.alpha, job.network.train_text_encoder) == (4, 1.0, True)
    assert (job.dataset.enable_bucket, job.dataset.max_bucket_reso, job.captions.caption_extension) == (
        False,
        1024,
        ".caption",
    )
    assert (job.memory.mixed_precision, job.memory.cache_latents, job.saving.save_precision) == ("no", "off", "fp32")
    assert (job.samples.sample_at_first, job.samples.sample_steps, job.samples.width) == (False, 30, 512)
    assert (job.validation.best_checkpoint, job.hub.async_upload, job.model.family) == ("off", False, "sd1")
    assert job.saving.save_state, "which changes no weight"
    keys = {entry.key for entry in found.entries("default")}
    assert {"learning_rate", "max_train_steps", "network_dim", "network_alpha", "enable_bucket", "save_state"} <= keys


@pytest.mark.parametrize(
    ("more", "path", "value"),
    [
        ("--max_train_epochs 4 --max_train_steps 100", "schedule.max_train_steps", None),
        ("--v2 --v_parameterization", "model.prediction", "v"),
        ("--v2", "model.family", "sd2"),
        ("--resolution 512,768", "dataset.resolution", (512, 768)),
        ("--resolution 768", "dataset.resolution", 768),
        ("--network_module networks.lokr --network_dropout 0.3", "network.network_dropout", 0.0),
        ("--skip_image_resolution 512", "dataset.skip_image_resolution", 512),
        ("--skip_image_resolution 100,400", "dataset.skip_image_resolution", 200),
        (
            """--network_module networks.loha --network_args "exclude_patterns=[r'.*ff.*', '.*attn1.*']\"""",
            "network.exclude_layers",
            ["^(?:.*ff.*)$", "^(?:.*attn1.*)$"],
        ),
        (
            "--network_module networks.lokr --network_args network_reg_dims=.*attn1.*=8,mid_block.*=4",
            "network.layer_dims",
            ["^(?:.*attn1.*)$=8", "^(?:mid_block.*)$=4"],
        ),
        ("--network_train_unet_only", "network.train_text_encoder", False),
        ("--text_encoder_lr 5e-5 1e-5", "optimizer.text_encoder_lr", 5e-5),
        ("--use_8bit_adam", "optimizer.optimizer_type", "AdamW8bit"),
        ("--optimizer_args weight_decay=0.1 betas=0.9,0.99 d_coef=2", "optimizer.betas", (0.9, 0.99)),
        ("""--optimizer_args '["weight_decay=0.1", "d_coef=2"]'""", "optimizer.optimizer_args", {"d_coef": 2}),
        ("--optimizer_args weight_decay=0.1 d_coef=2", "optimizer.optimizer_args", {"d_coef": 2}),
        (
            "--optimizer_type adafactor --optimizer_args eps=1e-30,1e-3",
            "optimizer.optimizer_args",
            {"eps": [1e-30, 1e-3]},
        ),
        ("--lr_scheduler cosine --lr_warmup_steps 10%", "schedule.lr_warmup_steps", "10%"),
        ("--lr_scheduler linear --lr_scheduler_min_lr_ratio 0.1", "schedule.lr_scheduler_min_lr_ratio", None),
        (
            "--lr_scheduler cosine_with_min_lr --lr_scheduler_min_lr_ratio 0.1",
            "schedule.lr_scheduler_min_lr_ratio",
            0.1,
        ),
        ("--lr_scheduler rex", "schedule.lr_scheduler", "constant"),
        ("--lr_warmup_steps 100", "schedule.lr_warmup_steps", 0),
        ("--lr_scheduler cosine --lr_warmup_steps 0.1", "schedule.lr_warmup_steps", 0.1),
        ("--cache_latents --cache_latents_to_disk", "memory.cache_latents", "disk"),
        ("--xformers", "memory.attention", "xformers"),
        ("--no_half_vae", "memory.vae_precision", "fp32"),
        ("--save_precision float", "saving.save_precision", "fp32"),
        ("--caption_extention .cap", "captions.caption_extension", ".cap"),
        ("--network_args conv_dim=8", "network.conv_alpha", 1.0),
        ("--network_args loraplus_unet_lr_ratio=8", "optimizer.loraplus_unet_lr_ratio", 8.0),
        ("--logging_dir /x", "logging.log_with", "tensorboard"),
        ("--in_json m.json --train_data_dir /i --dataset_repeats 3", "dataset.folder", None),
        ("--sample_sampler k_euler_a", "samples.sample_sampler", "euler_a"),
        ("--face_crop_aug_range 2.0,4.0", "dataset.face_crop_aug_range", (2.0, 4.0)),
        ("--bucket_reso_steps 1", "dataset.bucket_reso_steps", 8),
        ("--huggingface_repo_visibility public", "hub.huggingface_repo_visibility", "public"),
        ("--validation_split 0.1 --seed 5", "validation.validation_seed", 5),
        ("--min_timestep 50", "noise.min_timestep", 50),
        ("--output_name fox", "saving.output_name", "fox"),
    ],
)
def test_options_that_are_not_one_to_one(more, path, value):
    assert value_of(lora(more).job, path) == value


@pytest.mark.parametrize(
    ("script", "more", "method", "family"),
    [
        ("sdxl_train.py", "--train_data_dir /a", "dreambooth", "sdxl"),
        ("sdxl_train.py", "--train_data_dir /a --in_json m.json", "fine_tune", "sdxl"),
        ("train_db.py", "", "dreambooth", "sd1"),
        ("fine_tune.py", "--v2", "fine_tune", "sd2"),
        ("C:\\sd\\sdxl_train_textual_inversion.py", "--token_string zkw", "embedding", "sdxl"),
        ("/opt/train_textual_inversion_XTI.py", "--token_string zkw", "embedding", "sd1"),
    ],
)
def test_the_script_is_the_method_and_the_family(script, more, method, family):
    job = imported(f"python '{script}' --pretrained_model_name_or_path m {more}").job
    assert (job.method.kind, job.model.family) == (method, family)
    assert job.embedding.extended == ("XTI" in script)


def test_a_full_model_is_saved_as_its_source_and_trains_the_text_encoder_as_the_script_does():
    job = imported("python train_db.py --pretrained_model_name_or_path m --stop_text_encoder_training -1").job
    assert (job.saving.save_model_as, job.method.train_text_encoder) == ("source", "no")
    job = imported(
        "python sdxl_train.py --pretrained_model_name_or_path m --learning_rate 1e-5 --learning_rate_te1 1e-6 --full_bf16"
    ).job
    assert (job.optimizer.text_encoder_lr, job.method.train_text_encoder) == ((1e-6, 1e-5), "no")
    assert (job.memory.full_precision, job.saving.save_precision) == ("bf16", "bf16")


def test_names_are_prefixes_and_unknown_ones_are_named():
    values, entries = parse_words(
        "train_network", "--learning 1 --network_d 8 --network_dims 4 --max_train_e 2 stray --seed".split()
    )
    assert values == {"learning_rate": "1", "max_train_epochs": "2"}
    sentences = {entry.key: entry.sentence for entry in entries}
    assert set(sentences) == {"--network_d", "--network_dims", "stray", "--seed"}
    assert "network_dim" in sentences["--network_d"] and "network_dim?" in sentences["--network_dims"]


def test_keys_and_tokens_are_never_imported():
    found = lora("--wandb_api_key 0123 --huggingface_token hf_x --seed 1")
    assert {entry.key for entry in found.entries("secret")} == {"wandb_api_key", "huggingface_token"}
    assert "0123" not in str(found) and "hf_x" not in str(found)


def test_nothing_is_run_and_no_code_is_named(tmp_path):
    mark = tmp_path / "ran"
    found = lora(f"--output_name $(touch {mark}) --seed `touch {mark}` --dataset_class os.system")
    assert not mark.exists() and found.job.dataset.dataset_class is None
    assert of_key(found, "output_name").kind == of_key(found, "dataset_class").kind == "unavailable"
    assert [problem.code for problem in found.problems].count("import.unset-variable") == 2


def test_inpainting_that_is_not_trained_here_is_a_warning():
    assert "import.inpainting" in [problem.code for problem in lora("--train_inpainting").problems]
    assert "import.inpainting" not in [problem.code for problem in lora("").problems]


def test_variables_arrays_and_arithmetic_of_bash():
    text = """DIM=32
more=(--seed 5 --output_name "my fox")
more+=(--sdpa)
accelerate launch train_network.py --pretrained_model_name_or_path ${MODEL:-m} --network_module networks.lora \\
  --network_dim $DIM --network_alpha $((DIM / 2 + 1)) "${more[@]}" --train_batch_size $SIZE --max_train_steps 9 2>&1 | tee log
"""
    found = imported(text)
    assert (found.job.network.rank, found.job.network.alpha, found.job.saving.output_name) == (32, 17.0, "my fox")
    assert (found.job.model.base_model, found.job.schedule.seed, found.job.memory.attention) == ("m", 5, "sdpa")
    assert of_key(found, "train_batch_size").kind == "unavailable"


def test_variables_of_cmd_and_powershell_and_names_of_notebooks():
    text = "@echo off\r\nrem --seed 1\r\nset DIM=8\r\npython train_network.py --network_dim=%DIM% ^\r\n"
    text += ' --output_name="a %DIM% b" --seed=%SEED%\r\npause'
    found = imported(text)
    assert (found.job.network.rank, found.job.saving.output_name, found.job.schedule.seed) == (8, "a 8 b", None)
    text = """<# python train_network.py --seed 1 #>
$dim = 8
$extra = @("--sdpa", "--output_name=fox")
$extra += "--resolution=512,768"
$seed = Get-Random
python train_network.py --network_dim=$dim $extra `
  --seed $seed"""
    found = imported(text)
    assert (found.job.network.rank, found.job.dataset.resolution, found.job.memory.attention) == (8, (512, 768), "sdpa")
    assert of_key(found, "seed").kind == "unavailable"
    text = "%cd x\nlr = 1e-4 #@param\nname = 'my fox'\nsteps = len(images)\n"
    text += "!accelerate launch train_network.py --network_dim 8 --vae '{a.vae}' \\\n"
    text += " --unet_lr={lr/2} --text_encoder_lr={lr:.0e} \\\n"
    found = imported(text + " --learning_rate {lr} --output_name '{name} 2' --max_train_steps={steps} --sdpa\n")
    assert (found.job.network.rank, found.job.memory.attention) == (8, "sdpa")
    assert (found.job.optimizer.learning_rate, found.job.saving.output_name) == (1e-4, "my fox 2")
    computed = ("vae", "max_train_steps", "unet_lr", "text_encoder_lr")
    assert {of_key(found, name).kind for name in computed} == {"unavailable"}


WITHIN = [
    "bash -c 'cd x && accelerate launch train_network.py --network_dim 8 --seed 5'",
    "```bash\naccelerate launch train_network.py --network_dim 8 --seed 5\n```",
    '$a = "--network_dim=8 --seed 5"\nInvoke-Expression "python train_network.py $a"',
    '$cmd = @"\npython train_network.py --network_dim=8 --seed=5\n"@\nInvoke-Expression $cmd',
    '$a = @{}\n$a = "--network_dim=8",\n  "--seed=5"\npython train_network.py @a',
]
LINES_AFTER = [
    "accelerate launch\n --num_processes=1\n './train_network.py'\n --network_dim 8\n --seed 5",
    "python train_network.py --network_dim=8\n--seed=5\n",
    "python train_network.py \\\n  --network_dim=8 \\\n# --network_dim=4 \\\n  --seed=5\n",
    "python train_network.py --network_dim=8 ^\r\n\r\n  --seed=5\r\npause",
    "x = 1\n!python train_network.py --network_dim=8\n  --seed=5\ny = 2",
]


@pytest.mark.parametrize(("text", "after"), [(text, text in LINES_AFTER) for text in (*WITHIN, *LINES_AFTER)])
def test_a_command_within_a_text_and_its_options_on_lines_after_it_are_read(text, after):
    found = imported(text)
    assert (found.job.network.rank, found.job.schedule.seed) == (8, 5)
    assert ("import.note" in [problem.code for problem in found.problems]) == after
    assert {entry.key for entry in found.entries("unavailable") if entry.value} <= {"accelerate --num_processes"}


def test_a_path_that_swallows_the_rest_is_said():
    found = import_project('python train_network.py --train_data_dir "D:\\train\\" --network_dim 8')
    assert "import.note" in [problem.code for problem in found.problems]
    assert "--network_dim" in found.options["train_data_dir"]


def test_signs_of_chats_are_read_as_plain_ones():
    found = imported("accelerate launch train_network.py –network_dim 8\u00a0—output_name “my fox”")
    assert (found.job.network.rank, found.job.saving.output_name) == (8, "my fox")
    assert "import.note" in [problem.code for problem in found.problems]


def test_several_commands_are_a_choice():
    text = f"{START} --output_name one\n{START} --output_name two\npython gen_img.py --seed 1"
    with pytest.raises(ProblemsError) as asked:
        imported(text)
    assert asked.value.codes == ["import.several-commands"]
    found = imported(text, choice="2")
    assert found.job.saving.output_name == "two" and len(found.choices) == 2 and found.choice == found.choices[1]


def test_options_without_a_script_are_a_loras_or_ask():
    found = imported("--network_module networks.lora\n--network_dim 8\n--v_parameterization")
    assert (found.job.network.rank, found.job.model.family, found.choice) == (8, "auto", "train_network")
    with pytest.raises(ProblemsError) as asked:
        imported("learning_rate = 1e-5\nmax_train_steps = 5")
    assert asked.value.codes == ["import.which-script"]
    assert imported("learning_rate = 1e-5", choice="fine_tune.py").job.method.kind == "fine_tune"
    found = imported("network_module = 'networks.lora'\n[sdxl_arguments]\ncache_text_encoder_outputs = false")
    assert (found.choice, found.job.model.family) == ("sdxl_train_network", "auto") and not found.entries("unavailable")
    found = imported("model_train_type = 'sdxl-finetune'\nlearning_rate = 1e-5\ntrain_data_dir = '/a'")
    assert (found.job.method.kind, found.job.model.family) == ("dreambooth", "sdxl")
    assert of_key(found, "model_train_type").kind == "taken"
    found = imported("[general]\npretrained_model_name_or_path = 'm'\n[x]\nnetwork_module = 'networks.lora'\nseed = 5")
    assert (found.job.model.base_model, found.job.schedule.seed) == ("m", 5)


@pytest.mark.parametrize(
    ("option", "one", "several"),
    [
        ("optimizer_args", '="weight_decay=0.1 betas=0.9, 0.99"', ' weight_decay=0.1 "betas=0.9, 0.99"'),
        ("network_args", ' "conv_dim=4 conv_alpha=2"', " conv_dim=4 conv_alpha=2"),
        ("lr_scheduler_args", '="a=1 b=2"', " a=1 b=2"),
    ],
)
def test_several_arguments_in_one_word_are_separated_and_named(option, one, several):
    found, expected = (lora(f"--network_module networks.lora --{option}{words}") for words in (one, several))
    assert found.job == expected.job and of_key(found, option).kind == "changed"
    assert of_key(expected, option).kind == "taken"


def test_a_script_of_diffusers_is_named_as_one():
    with pytest.raises(ProblemsError) as error:
        imported("accelerate launch train_dreambooth_lora_sdxl.py --instance_data_dir a --rank 8")
    (problem,) = error.value.problems
    assert problem.code == "import.unknown-script" and "diffusers" in problem.what and "paste" not in problem.fix


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("accelerate launch flux_train_network.py --seed 1", "import.other-family"),
        ("network_module = 'networks.lora_flux'\nseed = 1", "import.other-family"),
        ("--network_module networks.lora_wan --seed 1", "import.other-family"),
        ("model_train_type = 'anima-lora'\nnetwork_module = 'lycoris.kohya'", "import.other-family"),
        ("network_module = 'networks.lora'\nprompts_file = 'p.toml'", "import.other-family"),
        ("t5xxl = 't5.safetensors'\nlearning_rate = 1e-5", "import.other-family"),
        ("python train_dreambooth_lora.py --seed 1", "import.unknown-script"),
        ("hello", "import.unknown"),
        ("export MODEL_TYPE='lora'\nexport TRAINER_EXTRA_ARGS='--noise_offset=0.1'", "import.not-read"),
        ('subprocess.run(["python", "train_network.py", "--seed", "1"])', "import.no-command"),
        ("", "import.unknown"),
        ("[[datasets]]\nresolution = 512", "preset.is-dataset-config"),
        ("{}", "import.unknown"),
        ('{"LoRA_type": "Standard",', "file.not-json"),
        (
            '{"LoRA_type": "Standard", "additional_parameters": "--min_bucket_reso 256 --seed 1 --sdpa",}',
            "file.not-json",
        ),
        (
            '{"epoch": 1, "output_dir": "a", "train_data_dir": "b", "x": 1, "y": 1, "z": 1, "u": 1, "v": 1}',
            "import.unknown",
        ),
        ("#!/bin/bash\necho --seed", "import.which-script"),
        ("output_dir = 'a'\nvae = \"C:\\models\\vae.pt\"\n", "file.not-toml"),
    ],
)
def test_texts_of_others_are_refused_by_what_they_are(text, code):
    with pytest.raises(ProblemsError) as refused:
        imported(text)
    assert refused.value.codes == [code]


def test_a_config_file_is_flat_checked_and_below_the_command_line(tmp_path):
    (tmp_path / "a.toml").write_text(
        'seed = 1\nnetwork_dims = 4\n[x]\nseed = 2\nnetwork_dim = "32"\nlearning_rate = "0,1"\nlr_scheduler = "cosine"\n'
        'lr_warmup_steps = 100.0\nresolution = 512\nmixed_precision = "fp64"\noutput_name = ""\n[x.y]\nclip_skip = 2\n'
    )
    text = f"{START} --config_file a --sdpa"
    found = imported(text, folder=tmp_path)
    job = found.job
    assert (job.schedule.seed, job.network.rank, job.dataset.resolution, job.schedule.lr_warmup_steps) == (
        2,
        32,
        512,
        100,
    )
    assert (job.memory.mixed_precision, job.memory.attention, job.model.clip_skip) == ("no", "sdpa", None)
    kinds = {entry.key: entry.kind for entry in found.report}
    assert {kinds[name] for name in ("network_dims", "learning_rate", "mixed_precision", "x.y")} == {"unavailable"}
    assert (kinds["lr_warmup_steps"], kinds["config_file"]) == ("changed", "taken")
    assert imported(f"{text} --seed 9", folder=tmp_path).job.schedule.seed == 9
    assert of_key(imported(text), "config_file").kind == "unavailable", "without a folder no file is read"


@pytest.mark.parametrize("nested", [False, True])
def test_a_config_file_saved_as_json_is_read_as_its_toml(nested):
    """kohya_ss' form has most of the names too, and others for the optimizer, network and resolution."""
    values = {"network_module": "networks.lora", "network_dim": 8, "optimizer_type": "Lion", "resolution": "512,768"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    text = json.dumps({"network": values, "other": {"seed": 5}} if nested else values | {"seed": 5})
    found, expected = imported(text, name="fox.json"), imported("\n".join(["seed = 5", *lines]), name="fox.toml")
    assert found.job == expected.job and found.program == "sd_scripts" and not found.entries("unavailable")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "cp932"])
def test_scripts_and_config_files_are_read_in_the_encodings_of_windows(tmp_path, encoding):
    folder = "狐の絵をさがす" if encoding == "cp932" else "Füchse"
    (tmp_path / "a.toml").write_bytes(f"train_data_dir = '{folder}'\nseed = 3\n".encode(encoding))
    (tmp_path / "a.bat").write_bytes(f'{START} --config_file a --output_name "{folder}"'.encode(encoding))
    job = import_project(tmp_path / "a.bat").job
    assert (job.dataset.folder, job.saving.output_name, job.schedule.seed) == (folder, folder, 3)


def test_a_dataset_config_beside_it_takes_the_options_where_it_is_silent(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "d.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'images'\nkeep_tokens = 2\n")
    found = lora(
        "--dataset_config d.toml --resolution 640 --shuffle_caption --keep_tokens 1 --train_data_dir /x "
        "--skip_image_resolution 100,400",
        folder=tmp_path,
    )
    (folder,) = found.job.dataset.sources
    assert (found.job.dataset.resolution, found.job.dataset.skip_image_resolution) == (
        640,
        200,
    ) and found.job.captions.shuffle_caption
    assert 2 in (folder.keep_tokens, found.job.captions.keep_tokens)
    assert found.job.dataset.folder is None and of_key(found, "train_data_dir").kind == "idle"
    assert of_key(lora("--dataset_config d.toml"), "dataset_config").kind == "unavailable"


def test_options_of_the_launcher():
    text = "accelerate launch --num_processes 2 --mixed_precision=bf16 --gpu_ids 1 train_network.py --network_dim 8"
    found = imported(text)
    assert (found.job.memory.num_processes, found.job.memory.mixed_precision) == (2, "no")
    kinds = {entry.key.partition("--")[2]: entry.kind for entry in found.report if entry.key.startswith("accelerate")}
    assert kinds == {"num_processes": "taken", "mixed_precision": "changed", "gpu_ids": "unavailable"}


@pytest.mark.parametrize(
    ("arguments", "kind", "path", "value"),
    [
        ("algo=lokr factor=8", "lokr", "lokr.factor", 8),
        ("algo=locon preset=attn-mlp", "locon", "network.layers", ["attn-mlp"]),
        ("algo=locon", "locon", "network.layers", ["full"]),
        ("algo=loha weight_decompose=True", "dora_loha", "dora_loha.wd_on_output", True),
        ("algo=loha dora_wd=True", "dora_loha", "dora_loha.wd_on_output", True),
        ("algo=ia3 train_on_input=True", "ia3", "ia3.all_layers", True),
        ("algo=dylora block_size=4", "dylora", "dylora.unit", 4),
        ("algo=locon use_tucker=False use_cp=True", "locon", "locon.use_tucker", True),
        ("algo=locon use_tucker=True use_cp=False", "locon", "locon.use_tucker", False),
        ("algo=locon use_conv_cp=False use_cp=True", "locon", "locon.use_tucker", False),
        ("algo=locon", "locon", "locon.use_tucker", False),
        ("algo=locon conv_dim=8", "locon", "network.conv_alpha", 1.0),
        ("algo=locon conv_dim=", "locon", "network.layers", ["full"]),
        ("algo=locon conv_dim=", "locon", "network.conv_rank", None),
        ("algo=locon conv_alpha=2", "locon", "network.conv_rank", 4),
        ("algo=locon conv_dim=0 conv_alpha=2", "locon", "network.conv_rank", None),
        ("algo=locon conv_dim=0", "locon", "network.layers", ["full-lin"]),
        ("algo=loha conv_dim=0 preset=attn-mlp", "loha", "network.layers", ["attn-mlp"]),
        ("algo=loha conv_dim=0 preset=unet-only", "loha", "network.exclude_layers", [CONVOLUTIONS]),
        ("algo=unheard", "lora", "network.rank", 4),
    ],
)
def test_networks_of_lycoris(arguments, kind, path, value):
    found = imported(f"python train_network.py --network_module lycoris.kohya --network_args {arguments}")
    assert found.job.network.kind == kind and value_of(found.job, path) == value
    codes = [problem.code for problem in found.problems]
    assert ("import.unknown-network" in codes) == ("unheard" in arguments)


@pytest.mark.parametrize(
    ("value", "kind", "named"), [("0", "loha", True), ("False", "loha", False), ("1", "dora_loha", False)]
)
def test_a_flag_that_lycoris_may_read_as_on_is_named(value, kind, named):
    text = f"python train_network.py --network_module lycoris.kohya --network_args algo=loha dora_wd={value}"
    found = imported(text)
    entries = [entry for entry in found.report if entry.value == f"dora_wd={value}"]
    assert found.job.network.kind == kind and [each.kind for each in entries] == ["changed"] * named


@pytest.mark.parametrize(
    ("type", "value", "expected"),
    [
        ("int", "5", 5),
        ("int", "-5", -5),
        ("int", 5.0, 5),
        ("int", "5.5", None),
        ("int", "1" * 40, int("1" * 40)),
        ("int", "1" * 41, None),
        ("float", "5", 5.0),
        ("float", "1e-4", 1e-4),
        ("float", "nan", None),
        ("float", "inf", None),
        ("float", "1,5", None),
        ("int_or_float", "0", 0),
        ("int_or_float", "0.5", 0.5),
        ("int_or_float", "0.999", 0.999),
        ("int_or_float", "1", 1),
        ("int_or_float", 1.0, "100%"),
        ("int_or_float", "1.0", "100%"),
        ("int_or_float", 2.0, 2),
        ("int_or_float", "1.5", None),
        ("int_or_float", "0%", "0%"),
        ("int_or_float", "100%", "100%"),
        ("int_or_float", "100.1%", None),
        ("int_or_float", "-1%", None),
        ("bool", "yes", True),
        ("bool", "1", True),
        ("bool", "None", False),
        ("bool", "no", False),
        ("bool", " 0 ", False),
        ("bool", "on", None),
        ("str", 0.5, "0.5"),
        ("str", [512, 768], "512,768"),
        ("str", True, None),
        ("str", {"a": 1}, None),
        ("float", [1.0], None),
    ],
)
def test_a_value_is_read_in_the_type_of_its_option(type, value, expected):
    if expected is None:
        with pytest.raises(ValueError):
            convert(Option("x", type), value)
        return
    found, _ = convert(Option("x", type), value)
    assert found == expected and found.__class__ is expected.__class__


@pytest.mark.parametrize("type", ["int", "float", "str", "int_or_float"])
def test_nothing_and_false_are_not_set(type):
    for value in (None, "", [], False, "False"):
        assert convert(Option("x", type), value)[0] is None
    assert convert(Option("x", "bool"), False)[0] is False


def test_choices_and_lists_are_read_value_by_value():
    assert [convert(Option("a", "str", many=True), value)[0] for value in (False, "False", [False, "b"])] == [
        None,
        None,
        ["b"],
    ]
    assert imported("network_module = 'networks.lora'\nnetwork_args = false").job.network.kind == "lora"
    chosen = Option("max_token_length", "int", choices=(None, 150, 225))
    assert convert(chosen, "150")[0] == 150 and convert(chosen, "75")[0] is None
    with pytest.raises(ValueError):
        convert(chosen, "76")
    many = Option("x", "int", many=True)
    assert convert(many, ["1", 2])[0] == [1, 2] and convert(many, "3")[0] == [3]


@pytest.mark.parametrize(
    ("word", "is_name"),
    [
        ("--a", True),
        ("-a", True),
        ("-", False),
        ("-1", False),
        ("-1.5e-4", False),
        ("-.5", False),
        ("-1a", True),
        ("a", False),
    ]
    + [("--a b", False), ("--a=b c", True)],
)
def test_a_negative_number_is_a_value_and_no_name(word, is_name):
    assert is_option(word) is is_name


def test_the_report_leaves_out_defaults_of_what_a_dataset_config_or_network_args_state(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "data.toml").write_text(
        'general = { flip_aug = true, caption_extension = ".txt" }\n[[datasets]]\nresolution = 512\nbatch_size = 2\n'
        f"[[datasets.subsets]]\nimage_dir = '{(tmp_path / 'images').as_posix()}'\nalpha_mask = true\n"
    )
    path = tmp_path / "run.sh"
    path.write_text(
        "python train_network.py --dataset_config=data.toml --masked_loss --resolution=768 --keep_tokens=2 "
        "--network_module=networks.lora --network_args dropout=0.1"
    )
    imported = import_project(path)
    defaults = {name for entry in imported.entries("default") for name in entry.settings}
    stated = (
        "dataset.flip_aug dataset.alpha_mask dataset.train_batch_size captions.caption_extension captions.keep_tokens"
    )
    assert not defaults & {*stated.split(), "network.network_dropout"} and "dataset.max_bucket_reso" in defaults
    job, lines = imported.job, list(imported.lines())
    assert (job.network.network_dropout, job.dataset.resolution, job.captions.keep_tokens) == (0.1, 512, 2)
    assert "  resolution 768: dataset.resolution is set by the dataset config" in lines
    assert not job.dataset.masked_loss and "masked_loss" in [entry.key for entry in imported.entries("idle")]
    assert [each.key for each in imported.entries("taken") if "network.network_dropout" in each.settings] == [
        "network_module",
        "network_args",
    ]


@pytest.mark.parametrize("value", [r"D:\my models\sd 15.safetensors", r'from "D:\pics\fox" set', r"it's D:\x y"])
@pytest.mark.parametrize("more", ["", r" --vae=D:\v\x.pt"])
def test_single_quotes_keep_backslashes_and_spaces_with_windows_paths_around(value, more):
    command = shlex.join(["python", "train_network.py", f"--training_comment={value}"]) + more
    imported = import_project(command)
    assert imported.options["training_comment"] == value
    assert imported.options.get("vae") == (r"D:\v\x.pt" if more else None)
