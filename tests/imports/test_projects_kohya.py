"""Presets of kohya_ss: resolved as its own tabs and command builder do, with an entry for each key."""

import json

import pytest

from core.imports.projects import kohya_ss
from core.imports.projects.importers import import_project
from core.imports.projects.options import SCRIPTS
from core.record.problems import ProblemsError
from tests.imports.projects import cases, options, pasted, plain

PATHS = {
    "train_data_dir": "/data/train",
    "output_dir": "/data/out",
    "pretrained_model_name_or_path": "/data/a.safetensors",
}
LORA = {"LoRA_type": "Standard", **PATHS}


def counts_of(dataset):
    def counts(folder):
        found = dataset.get(folder)
        return {"": found} if isinstance(found, int) else found

    return counts


def imported(preset, **more):
    return import_project(json.dumps(preset), **more)


def of_key(found, key):
    return next(entry for entry in found.report if entry.key == key and entry.kind != "default")


def test_recorded_presets_become_the_options_that_kohya_ss_runs():
    faults = []
    for case in cases("kohya_ss"):
        if case["script"] is None:  # kohya_ss refuses the preset
            continue
        if case["script"].removesuffix(".py") not in SCRIPTS:
            with pytest.raises(ProblemsError) as refused:
                kohya_ss.resolve(case["preset"], case["tab"], "x", counts_of(case["dataset"]))
            assert refused.value.codes == ["import.other-family"]
            continue
        found = kohya_ss.resolve(case["preset"], case["tab"], "x", counts_of(case["dataset"]))
        ours, recorded = options(found.options), options(case["options"])
        if case["stops"]:  # words that kohya_ss garbles are read as they are meant
            ours = {name: value for name, value in ours.items() if name in recorded}
        if ours != recorded or f"{found.script}.py" != case["script"]:
            names = sorted(name for name in ours | recorded if ours.get(name) != recorded.get(name))
            faults.append((case["name"], {name: (ours.get(name), recorded.get(name)) for name in names}))
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "weight_decay=0.1 betas=(0.9, 0.99)",
            'weight_decay=0.1, "betas=(0.9, 0.99)"',
            "weight_decay=0.1 betas=0.9,0.99",
        ),
        *('[ "weight_decay=0.1", "betas=(0.9, 0.99)" ]', ["weight_decay=0.1", "betas=0.9,0.99"]),
    ],
)
def test_optimizer_arguments_with_spaces_in_brackets_or_commas_between_them_are_whole(text):
    found = imported({**LORA, "optimizer_args": text})
    optimizer = found.job.optimizer
    assert (optimizer.weight_decay, optimizer.betas, optimizer.optimizer_args) == (0.1, (0.9, 0.99), {})
    assert not [entry for entry in found.entries("unavailable") if entry.key == "optimizer_args"]


def test_words_of_additional_parameters_are_read_as_they_are_meant():
    extra = "--keep_tokens_sep=||| --caption_pre='a fox,'"
    found = imported({**LORA, "additional_parameters": extra})
    assert (found.job.captions.keep_tokens_separator, found.job.captions.caption_prefix) == ("|||", "a fox,")


@pytest.mark.parametrize("tab", kohya_ss.TABS)
def test_each_field_of_each_tab_has_an_entry(tab):
    preset = {name: _other(value) for name, value in kohya_ss.form_of(tab).items()}
    preset = {name: value for name, value in preset.items() if name not in kohya_ss.FAMILIES} | PATHS
    preset |= dict.fromkeys(kohya_ss.FORMER, "1") | {"LoRA_type": "LyCORIS/LoKr", "unheard": 1}
    found = imported(preset, choice=tab)
    assert set(preset) <= {entry.key for entry in found.report}
    assert all(entry.settings or entry.sentence for entry in found.report if entry.kind not in ("taken", "secret"))
    assert of_key(found, "unheard").kind == "unavailable"
    assert {entry.key for entry in found.entries("secret")} == {"wandb_api_key", "huggingface_token"}


def _other(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else f"{value}x"


def test_a_preset_without_a_length_trains_1600_steps_and_one_with_epochs_those():
    assert imported(LORA).job.schedule.max_train_steps == 1600
    found = imported({**LORA, "max_train_steps": 0, "epoch": 7})
    assert (found.job.schedule.max_train_steps, found.job.schedule.max_train_epochs) == (None, 7)
    (entry,) = (entry for entry in found.report if entry.key == "epoch")
    assert entry.kind == "changed"


def test_steps_are_counted_in_the_folders_where_they_are_here(tmp_path):
    for name, number in (("10_fox", 3), ("2_wolf", 5), ("none", 9)):
        (tmp_path / name).mkdir()
        for each in range(number):
            (tmp_path / name / f"{each}.png").touch()
    preset = {**LORA, "train_data_dir": str(tmp_path), "max_train_steps": 0, "epoch": 2}
    assert imported(preset, folder=tmp_path).job.schedule.max_train_steps == (10 * 3 + 2 * 5) * 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epoch": 6}, True),
        ({"epoch": 6, "max_train_steps": None}, True),
        ({"epoch": 1}, False),
        ({"epoch": 6, "max_train_steps": 1600}, False),
        ({"epoch": 6, "max_train_steps": 0}, False),
        ({"epoch": 6, "max_train_epochs": 4}, False),
    ],
)
def test_epochs_of_a_file_without_steps_are_a_warning_since_older_versions_trained_them(values, said):
    preset = {
        name: value for name, value in LORA.items() if name not in ("epoch", "max_train_steps", "max_train_epochs")
    }
    found = imported(preset | values)
    assert ("import.steps-or-epochs" in [problem.code for problem in found.problems]) is said
    if said:
        assert found.job.schedule.max_train_steps == 1600


def test_a_decimal_comma_is_a_warning():
    found = imported({**LORA, "learning_rate": "0,0001"})
    assert "import.decimal-comma" in [problem.code for problem in found.problems]
    assert found.job.optimizer.learning_rate == 2e-6, "what sd-scripts then trains with"
    assert of_key(found, "learning_rate").kind == "changed"


def test_defaults_are_those_of_kohya_ss():
    job = imported({"LoRA_type": "Standard", "v2": False}).job
    assert (job.network.rank, job.network.alpha, job.network.train_text_encoder) == (8, 1.0, True)
    assert (job.schedule.lr_scheduler, job.schedule.lr_warmup_steps) == ("cosine", 0.1)
    assert (job.dataset.bucket_no_upscale, job.dataset.max_bucket_reso) == (True, 2048)
    assert (job.memory.mixed_precision, job.memory.cache_latents, job.captions.caption_extension) == (
        "fp16",
        "memory",
        ".txt",
    )


def test_a_lokr_of_rank_100000_has_whole_matrices():
    preset = {**LORA, "LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000, "factor": 6}
    found = imported(preset)
    assert (found.job.network.kind, found.job.lokr.full_matrix, found.job.lokr.factor) == ("lokr", True, 6)
    assert of_key(found, "network_dim").kind == "changed"


def test_sample_prompts_are_taken_as_lines():
    found = imported({**LORA, "sample_prompts": "a fox --w 512\n# none\n\na wolf"})
    assert found.job.samples.sample_prompts == ["a fox --w 512", "a wolf"]
    assert found.job.samples.sample_prompts_file is None


def test_the_tab_is_told_by_the_keys_unless_it_is_chosen():
    for keys, method in (
        ({"network_dim": 4}, "lora"),
        ({"token_string": "zkw"}, "embedding"),
        ({"image_folder": "a"}, "fine_tune"),
    ):
        assert imported({**PATHS, **keys}).job.method.kind == method
    found = imported(PATHS)
    assert (found.job.method.kind, found.choice) == ("dreambooth", "dreambooth")
    assert imported(PATHS, choice="lora").job.method.kind == "lora"


@pytest.mark.parametrize(("key", "title"), [("flux1_checkbox", "FLUX"), ("leco_denoise_guidance_scale", "LECO")])
def test_a_preset_of_another_family_is_refused_by_its_name(key, title):
    with pytest.raises(ProblemsError) as refused:
        imported({**LORA, key: 1.0})
    assert refused.value.codes == ["import.other-family"] and title in refused.value.problems[0].what


def test_the_recorded_presets_import_with_every_key(tmp_path):
    for case in cases("kohya_ss")[::6]:
        found = (
            kohya_ss.read(pasted(json.dumps(case["preset"]), choice=case["tab"])) if case["script"] in NAMES else None
        )
        assert found is None or set(case["preset"]) <= {entry.key for entry in found.report}, case["name"]


NAMES = {f"{name}.py" for name in SCRIPTS}


def test_entries_have_the_values_of_the_file_and_what_follows_from_them_is_no_default():
    found = imported({**LORA, "lr_warmup": "5", "max_train_steps": 200, "text_encoder_lr": 5e-5, "unet_lr": 0})
    assert (of_key(found, "lr_warmup").kind, of_key(found, "lr_warmup").value) == ("changed", "5")
    taken = {path for entry in found.entries("taken") if entry.key == "text_encoder_lr" for path in entry.settings}
    assert taken >= {"optimizer.text_encoder_lr", "network.train_text_encoder"}
    assert not {"text_encoder_lr", "lr_warmup", "max_train_steps"} & {entry.key for entry in found.entries("default")}


def test_texts_are_numbers_where_they_are_exact():
    assert plain("1e-4") == plain(0.0001)
    job = imported({**LORA, "network_dim": "32", "min_snr_gamma": "5", "train_batch_size": "2"}).job
    assert (job.network.rank, job.noise.min_snr_gamma, job.dataset.train_batch_size) == (32, 5.0, 2)
